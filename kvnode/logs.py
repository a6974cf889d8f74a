"""Where log lines go and what they look like: structlog, and the standard library's loggers through it.

One line per event on stderr: a JSON object in a pod, coloured ``key=value`` on a terminal. An event is a
past-tense constant (``leader_elected``) with its facts beside it (``node``, ``term``, ``index``). A copy
may go to a file. Writing never fails and never stops the node: a full disk costs log lines, not data.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TextIO, cast

import structlog

_LEVELS = {
    "trace": logging.DEBUG,  # Consul's finest; there is nothing finer than debug here
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
_FILE_NAME = "kvnode.log"
_NUMBERS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_SHORT = {"warning": "WARN", "critical": "ERROR"}
FOLLOWER_LINES_MAX = 1000
"""Lines that wait for one reader."""


class _Tee:
    """A text stream that writes to stderr and, perhaps, to a file; swallows every failure to write."""

    def __init__(self) -> None:
        self.file: IO[str] | None = None

    def write(self, text: str) -> int:
        for stream in (sys.stderr, self.file):
            if stream is not None:
                try:
                    stream.write(text)
                    stream.flush()
                except (OSError, ValueError):
                    continue  # a full disk, a closed pipe: nobody is left to tell
        return len(text)

    def flush(self) -> None:
        """Each ``write`` flushes."""


class Follower:
    """Somebody who reads the log as it is written; whoever is slow misses lines and is told how many."""

    __slots__ = ("_lines", "_loop", "_news", "as_json", "level", "missed")

    def __init__(self, level: int, *, as_json: bool) -> None:
        """Follow from ``level`` on; made in the loop that reads."""
        self.level = level
        self.as_json = as_json
        self.missed = 0
        self._lines: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def put(self, line: bytes) -> None:
        """Add a line; called from any thread."""
        if len(self._lines) >= FOLLOWER_LINES_MAX:
            self.missed += 1
        else:
            self._lines.append(line)
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._news.set)

    async def take(self) -> bytes:
        """Wait for lines; return all there are."""
        await self._news.wait()
        self._news.clear()
        lines: list[bytes] = []
        while self._lines:
            lines.append(self._lines.popleft())
        missed, self.missed = self.missed, 0
        if missed:
            lines.append(b"%d lines were missed: they came faster than they were read\n" % missed)
        return b"".join(lines)


class Logs:
    """The process's logging. One per process, since the loggers are global."""

    def __init__(self, node: str, *, level: str, form: str, file: str) -> None:
        """Set up both structlog and ``logging``.

        Args:
            node: The node's name, added to every line.
            level: ``trace``, ``debug``, ``info``, ``warn`` or ``error``.
            form: ``json``, ``text``, or ``auto`` to decide by whether stderr is a terminal.
            file: Path of a copy; empty: none. A folder means ``kvnode.log`` inside it.
        """
        self._node = node
        self._tee = _Tee()
        self._path = _file_path(file) if file else None
        self.problem = self.reopen()
        terminal = sys.stderr.isatty()
        text = form == "text" or (form == "auto" and terminal)
        last: Any = (
            structlog.dev.ConsoleRenderer(colors=terminal and self._path is None)
            if text
            else structlog.processors.JSONRenderer(default=str)
        )
        self._level = logging.INFO
        self._followers: list[Follower] = []
        shared: list[Any] = [
            self._add_node,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
        ]
        if not text:
            shared.append(structlog.processors.format_exc_info)
        self._processors = [*shared, self._show_followers, last]
        # aiohttp and asyncio speak through the standard library.
        handler = logging.StreamHandler(self._tee)
        handler.addFilter(self._admit)
        handler.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
                processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
            )
        )
        logging.root.handlers[:] = [handler]
        self.set_level(level)

    def set_level(self, level: str) -> None:
        """Log from this level on; also for loggers that exist already."""
        self._level = _LEVELS[level]
        self._configure()

    def _configure(self) -> None:
        """Let through what the log or anybody who follows it wants; see ``_show_followers``."""
        number = min([self._level, *(follower.level for follower in self._followers)])
        logging.root.setLevel(max(number, logging.INFO))
        structlog.configure(
            processors=self._processors,
            wrapper_class=structlog.make_filtering_bound_logger(number),
            logger_factory=structlog.PrintLoggerFactory(cast("TextIO", self._tee)),
            # A cached logger would keep the level that it was first used with.
            cache_logger_on_first_use=False,
        )

    def reopen(self) -> str:
        """Open the file, again after it was rotated; return what went wrong, or an empty text."""
        if self._path is None:
            return ""
        old, self._tee.file = self._tee.file, None
        if old is not None:
            old.close()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._tee.file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            return f"{self._path}: {error.strerror}"
        return ""

    async def follow(self, level: str, as_json: bool) -> AsyncGenerator[bytes, None]:
        """Yield lines from now on, some at a time, until closed.

        Args:
            level: From this level on, whatever the level of the log itself.
            as_json: One JSON object per line, else text for people.
        """
        follower = Follower(_LEVELS[level], as_json=as_json)
        self._followers.append(follower)
        self._configure()
        try:
            while True:
                yield await follower.take()
        finally:
            self._followers.remove(follower)
            self._configure()

    def _show_followers(
        self, _logger: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Give everybody who follows the log their line; the log itself may want less than they do."""
        if self._followers:
            number = _NUMBERS.get(str(event.get("level", method)), logging.INFO)
            self._show(number, event)
            if number < self._level:
                raise structlog.DropEvent
        return event

    def _admit(self, record: logging.LogRecord) -> bool:
        """The same for what speaks through the standard library."""
        if self._followers:
            level = record.levelname.lower()
            event = {"event": record.getMessage(), "logger": record.name, "level": level}
            self._show(record.levelno, event)
        return record.levelno >= self._level

    def _show(self, number: int, event: MutableMapping[str, Any]) -> None:
        for follower in list(self._followers):
            if number >= follower.level:
                follower.put(_line(event, as_json=follower.as_json))

    def close(self) -> None:
        """Close the file."""
        if self._tee.file is not None:
            self._tee.file.close()
            self._tee.file = None

    def _add_node(
        self, _logger: Any, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        event.setdefault("node", self._node)
        return event


def _file_path(given: str) -> Path:
    """Return the file meant: Consul manifests give a folder as often as a file."""
    path = Path(given)
    if given.endswith(os.sep) or path.is_dir():
        return path / _FILE_NAME
    return path


def _line(event: MutableMapping[str, Any], *, as_json: bool) -> bytes:
    """Put one event into a line; see Consul's ``monitor`` (spec §10)."""
    shown = {name: value for name, value in event.items() if not name.startswith("_")}
    if as_json:
        return json.dumps(shown, default=str).encode() + b"\n"
    level = str(shown.pop("level", "info"))
    word = _SHORT.get(level, level.upper())
    stamp, name = shown.pop("timestamp", ""), shown.pop("event", "")
    shown.pop("node", None)
    facts = " ".join(f"{key}={value!r:.200}" for key, value in shown.items())
    colon = ": " if facts else ""
    return f"{stamp} [{word}]".encode() + f" {name}{colon}{facts}\n".encode("utf-8", "replace")
