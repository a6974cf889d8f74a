"""Where log lines go and what they look like: structlog, and the standard library's loggers through it.

One line per event on stderr: a JSON object in a pod, coloured ``key=value`` on a terminal. An event is a
past-tense constant (``leader_elected``) with its facts beside it (``node``, ``term``, ``index``). A copy
may go to a file. Writing never fails and never stops the node: a full disk costs log lines, not data.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
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
        shared: list[Any] = [
            self._add_node,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
        ]
        if not text:
            shared.append(structlog.processors.format_exc_info)
        self._processors = [*shared, last]
        # aiohttp and asyncio speak through the standard library.
        handler = logging.StreamHandler(self._tee)
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
        number = _LEVELS[level]
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
