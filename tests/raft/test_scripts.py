"""Every story in ``tests/scripts/raft`` happens exactly as it is told.

``pytest tests/raft/test_scripts.py --rewrite-scripts`` tells them anew; commit a changed story only
when you can explain each changed line.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.raft.script import rewrite

STORIES = sorted((Path(__file__).parent.parent / "scripts" / "raft").glob("*.txt"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_story(path: Path, request: pytest.FixtureRequest) -> None:
    told = path.read_text(encoding="utf-8")
    happened = rewrite(told)
    if request.config.getoption("--rewrite-scripts", default=False):
        path.write_text(happened, encoding="utf-8")
        return
    assert happened.splitlines() == told.splitlines()


def test_there_are_stories() -> None:
    assert len(STORIES) >= 15
