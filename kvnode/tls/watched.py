"""Something made from files, and made anew when they change.

Files are looked at, not subscribed to: kubelet exchanges a mounted Secret by moving one symbolic link,
configuration tools rename over, an editor writes in place, and on NFS nothing of it is announced. A look
is one ``stat`` per file; links are followed, so an exchanged link is a changed file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

from kvnode.errors import SettingError

T = TypeVar("T")

_LOG = structlog.get_logger("kvnode.tls")

Signature = tuple[tuple[int, ...], ...]


class Watched(Generic[T]):
    """A value with the files that it came from.

    Attributes:
        value: The newest good one.
        reloads: How often a change was taken over.
        failures: How often a change was refused.
    """

    def __init__(self, what: str, paths: tuple[str, ...], make: Callable[[], T]) -> None:
        """Make it the first time.

        Args:
            what: For the log, such as ``certificate``.
            paths: The files; none: nothing ever changes.
            make: Makes it; blocks; raises ``SettingError`` when the files cannot be used.

        Raises:
            SettingError: From ``make``.
        """
        self._what = what
        self._paths = paths
        self._make = make
        self._seen = self._look()
        self.value = make()
        self.reloads = 0
        self.failures = 0

    def refresh(self, *, again: bool = False) -> bool:
        """Look at the files; make the value anew when they changed. Blocks; not to run twice at a time.

        Args:
            again: Also when they did not change: the operator asked.

        Returns:
            Whether ``value`` is another one now. What cannot be used is logged, once for each change.
        """
        before = self._look()
        if before == self._seen and not again:
            return False
        try:
            value = self._make()
        except SettingError as error:
            # A certificate is there and its key is not yet: the key's arrival is another change.
            self._seen = before
            self.failures += 1
            _LOG.error("reload_refused", what=self._what, error=str(error), kept="the one in use")
            return False
        if self._look() != before:
            return False  # caught in the middle of a change: the next look finds it finished
        self._seen = before
        self.value = value
        self.reloads += 1
        return True

    def _look(self) -> Signature:
        found: list[tuple[int, ...]] = []
        for path in self._paths:
            try:
                status = os.stat(path)
            except OSError as error:
                found.append((error.errno or 0,))
            else:
                found.append(
                    (
                        status.st_dev,
                        status.st_ino,
                        status.st_size,
                        status.st_mtime_ns,
                        status.st_ctime_ns,
                    )
                )
        return tuple(found)
