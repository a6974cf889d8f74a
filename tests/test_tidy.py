"""The project's habits as tests: what a reviewer would otherwise have to say every time."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kvnode"
LINES_MAX = 600
TEST_LINES_MAX = 900
"""A test file is read one test at a time."""

TRACKED = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.splitlines()
] or sorted(path for path in ROOT.rglob("*") if ".venv" not in path.parts)  # fmt: skip
FILES = [path for path in TRACKED if path.is_file()]
MODULES = sorted(path for path in FILES if path.suffix == ".py" and PACKAGE in path.parents)
SOURCES = sorted(
    path for path in FILES if path.suffix in {".py", ".sh", ".toml", ".md", ".yaml", ".yml"}
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def found(pattern: str, files: list[Path], flags: int = 0) -> list[str]:
    """Every place where a pattern occurs, as ``file:line: text``."""
    regex = re.compile(pattern, flags)
    return [
        f"{name(path)}:{number}: {line.strip()}"
        for path in files
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if regex.search(line)
    ]


def test_there_is_something_to_look_at() -> None:
    """An empty list would let every other test here pass."""
    assert len(MODULES) > 30


def test_nothing_is_left_to_do_in_the_code() -> None:
    """What is not done stands in the README, where users read it."""
    assert found(r"\b(TODO|FIXME|XXX|HACK)\b", SOURCES) == []


def test_only_the_command_line_prints() -> None:
    """A node's only voice is its log."""
    modules = [path for path in MODULES if PACKAGE / "cli" not in path.parents]
    calls = [
        f"{name(path)}:{node.lineno}"
        for path in modules
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert calls == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert "To be written" not in docstring


@pytest.mark.parametrize("package", sorted({path.parent for path in MODULES}), ids=name)
def test_every_package_opens_with_an_essay(package: Path) -> None:
    """Style §5: what it is, its words, its invariants, what it does not do."""
    essay = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    least = 1 if package in (PACKAGE, PACKAGE / "ui") else 10
    assert len(essay.splitlines()) >= least


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix == ".py"], ids=name)
def test_no_file_has_outgrown_a_readers_patience(path: Path) -> None:
    """A mirror, not a fence: split it, or raise the number here and say why."""
    most = LINES_MAX if PACKAGE in path.parents else TEST_LINES_MAX
    assert len(path.read_text().splitlines()) <= most


def test_no_path_of_somebodys_machine() -> None:
    """Whoever clones this has other directories."""
    assert found(r"(?<![\w.])/(work|root|home|Users)/\w", SOURCES) == []


def test_every_exception_is_named() -> None:
    """A bare except hides the one error that mattered."""
    assert found(r"^\s*except\s*:", MODULES) == []


def test_the_tests_mirror_the_package() -> None:
    """``tests/<package>/`` for each package, so that one knows where to look."""
    packages = {path.parent for path in MODULES} - {PACKAGE}
    named = {package.relative_to(PACKAGE).parts[0] for package in packages} - {"ui", "config"}
    missing = [package for package in sorted(named) if not (ROOT / "tests" / package).is_dir()]
    assert missing == []


def test_links_between_documents_lead_somewhere() -> None:
    links = [
        (path, target)
        for path in FILES
        if path.suffix == ".md"
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text())
        if "://" not in target
    ]
    broken = [f"{name(path)}: {to}" for path, to in links if not (path.parent / to).exists()]
    assert broken == []


def test_dependencies_are_ranges() -> None:
    """An open range breaks some day by itself, a pin keeps security fixes out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = [d for d in project["dependencies"] if "==" in d or ">=" not in d]
    assert pinned == []


def test_every_target_that_the_readme_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert named - targets == set()
