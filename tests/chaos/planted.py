"""A node with a deliberate bug: ``python -m tests.chaos.planted <bug> agent …``.

Some bugs live below what the simulator runs (a sync that does nothing, a failed one that is ignored, an
answer that says the wrong thing), and a net that has never caught anything proves nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from unittest import mock

from kvnode.cli.main import main
from kvnode.disk import files
from kvnode.http import errors as http_errors
from kvnode.raft import read_index, replication
from kvnode.raft.core import Core
from kvnode.raft.types import Index, NodeId


def _sync_nothing(_fd: int) -> None:
    """RC-1: the data stay in the kernel's memory."""


def _confirm_alone(core: Core) -> None:
    """RC-30: a read is answered without asking anybody."""
    while core.open_rounds:
        _, index, reads = core.open_rounds.popleft()
        core.confirmed_reads.append((index, reads))


def _any_one(_voters: object, match_index: Mapping[NodeId, Index]) -> Index:
    """RC-21: what a single node holds counts as committed."""
    return max(match_index.values())


def _sync_once_more(fd: int) -> None:
    """RC-8: a failed sync is tried again, and then "succeeds" without the data."""
    for last in (False, True):
        try:
            _real_sync(fd)
        except OSError:
            if last:
                raise
        else:
            return


_real_sync = files._sync_data


def _deny_unknown(error: BaseException, *, write: bool) -> tuple[int, str, bool]:
    """RC-58: a write whose outcome is unknown is said to have had none."""
    del write
    return _real_describe(error, write=False)


_real_describe = http_errors._describe


def _set(owner: object, name: str, value: object) -> Callable[[], object]:
    return lambda: mock.patch.object(owner, name, value).start()


BUGS: dict[str, Callable[[], object]] = {
    "sync_nothing": _set(files, "_sync_data", _sync_nothing),
    "sync_once_more": _set(files, "_sync_data", _sync_once_more),
    "confirm_alone": _set(read_index, "confirm_rounds", _confirm_alone),
    "commit_alone": _set(replication, "majority_index", _any_one),
    "deny_unknown": _set(http_errors, "_describe", _deny_unknown),
}


if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    main()
