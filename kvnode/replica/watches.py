"""Parked readers: who waits for which key or prefix to change (spec §2.4, RC-65).

A watcher is one-shot: it is called once, after the batch that changed what it watches was applied,
and then forgotten; whoever wants more watches again. It is registered in the same call-back that read
the store, so no change can slip between the read and the watch. A change costs one dictionary look-up
per distinct length of watched prefix, however many watchers there are; watchers that are not concerned
are not touched.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from kvnode.errors import Overloaded

RECENT_MAX = 8192
"""How many of the newest changes are remembered."""


class Watcher:
    """One parked reader."""

    __slots__ = ("callback", "is_prefix", "key")

    def __init__(self, key: bytes, *, is_prefix: bool, callback: Callable[[int], None]) -> None:
        """See ``Watches.watch``."""
        self.key = key
        self.is_prefix = is_prefix
        self.callback = callback


class Watches:
    """All watchers of one node. Bounded (RC-67)."""

    def __init__(self, count_max: int, known_from: int) -> None:
        """Refuse the watcher after the ``count_max``-th; changes are told from ``known_from`` on."""
        self._count_max = count_max
        self._recent: deque[tuple[int, bytes, bool]] = deque(maxlen=RECENT_MAX)
        self._known_from = known_from
        self._keys: dict[bytes, dict[Watcher, None]] = {}
        self._prefixes: dict[bytes, dict[Watcher, None]] = {}
        self._lengths: Counter[int] = Counter()
        """How many distinct prefixes of each length are watched."""
        self._hit: dict[Watcher, int] = {}
        """Who is concerned, and by the change of which index."""
        self.count = 0
        self.settled = known_from
        """Whoever was parked all the time has missed nothing up to this index. Within a call-back: up to
        the one before the batch that it is about."""

    def watch(self, key: bytes, *, is_prefix: bool, callback: Callable[[int], None]) -> Watcher:
        """Call ``callback`` once, as soon as the key, or anything under the prefix, has changed.

        It is given the index of the newest such change.

        Raises:
            Overloaded: There are too many watchers; nothing was registered.
        """
        if self.count >= self._count_max:
            raise Overloaded(f"more than {self._count_max} parked queries on this node")
        watcher = Watcher(key, is_prefix=is_prefix, callback=callback)
        table = self._prefixes if is_prefix else self._keys
        if is_prefix and key not in table:
            self._lengths[len(key)] += 1
        table.setdefault(key, {})[watcher] = None
        self.count += 1
        return watcher

    def cancel(self, watcher: Watcher) -> None:
        """Forget a watcher. Idempotent, also after its call."""
        self._hit.pop(watcher, None)
        table = self._prefixes if watcher.is_prefix else self._keys
        group = table.get(watcher.key)
        if group is None or group.pop(watcher, watcher) is not None:
            return
        self.count -= 1
        if not group:
            self._drop(watcher.key, is_prefix=watcher.is_prefix)

    def _drop(self, key: bytes, *, is_prefix: bool) -> None:
        if not is_prefix:
            del self._keys[key]
            return
        del self._prefixes[key]
        self._lengths[len(key)] -= 1
        if not self._lengths[len(key)]:
            del self._lengths[len(key)]

    def changed_since(self, index: int, prefix: bytes) -> bool | None:
        """Whether anything under ``prefix`` has changed after ``index``; None: that is not known.

        A parked list need not be read in full only to learn that it is still the same.
        """
        if index < self._known_from:
            return None
        for at, key, tree in reversed(self._recent):
            if at <= index:
                return False
            if key.startswith(prefix) or (tree and prefix.startswith(key)):
                return True
        return False

    # -- the store's side -------------------------------------------------------------------------

    def changed(self, index: int, key: bytes, tree: bool) -> None:
        """The store applied a change of ``key``, or deleted everything under it (``tree``).

        This is ``Store.on_change``: it only notes who is concerned.
        """
        recent = self._recent
        if len(recent) == RECENT_MAX:
            self._known_from = recent[0][0]
        recent.append((index, key, tree))
        if not self.count:
            return
        if tree:
            self._note_tree(index, key)
            return
        group = self._keys.get(key)
        if group is not None:
            self._hit.update(dict.fromkeys(group, index))
        for length in self._lengths:
            if length <= len(key):
                group = self._prefixes.get(key[:length])
                if group is not None:
                    self._hit.update(dict.fromkeys(group, index))

    def _note_tree(self, index: int, prefix: bytes) -> None:
        for key, group in self._keys.items():
            if key.startswith(prefix):
                self._hit.update(dict.fromkeys(group, index))
        for watched, group in self._prefixes.items():
            if watched.startswith(prefix) or prefix.startswith(watched):
                self._hit.update(dict.fromkeys(group, index))

    def wake(self, applied: int = 0) -> None:
        """Call everybody who is concerned, in the order in which they were noted.

        ``applied`` is the store's index, up to which all changes have been noted, for who asks ``settled``.
        """
        while self._hit:
            hit, self._hit = self._hit, {}
            for watcher in hit:
                self._forget(watcher)
            for watcher, index in hit.items():
                watcher.callback(index)
        self.settled = max(self.settled, applied)

    def _forget(self, watcher: Watcher) -> None:
        table = self._prefixes if watcher.is_prefix else self._keys
        group = table[watcher.key]
        del group[watcher]
        self.count -= 1
        if not group:
            self._drop(watcher.key, is_prefix=watcher.is_prefix)
