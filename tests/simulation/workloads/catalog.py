"""The workloads that there are. The order is that of the hooks' calls; the names are drawn by."""

from __future__ import annotations

from tests.simulation.workloads.base import Workload
from tests.simulation.workloads.beyond_consul import BeyondConsul
from tests.simulation.workloads.blocking_queries import BlockingQueries
from tests.simulation.workloads.change_feed import ChangeFeed
from tests.simulation.workloads.control import Control
from tests.simulation.workloads.keys import Keys
from tests.simulation.workloads.registry import Registry
from tests.simulation.workloads.restores import Restores
from tests.simulation.workloads.sessions import Sessions
from tests.simulation.workloads.standing_watches import StandingWatches
from tests.simulation.workloads.transactions import Transactions

CATALOG: tuple[type[Workload], ...] = (
    Keys,
    StandingWatches,
    Sessions,
    Transactions,
    BlockingQueries,
    BeyondConsul,
    ChangeFeed,
    Restores,
    Registry,
    Control,
)
