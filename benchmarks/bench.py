"""What every measurement works with: a server, the pools, and the time it may take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace

from .adapters import Adapter
from .results import Column, Table
from .tables.clock import one_cpu
from .tables.stubs import Stub
from .target import Server, Target

#: The pool that the others are compared with, and what no pool can be faster than.
OURS, FLOOR = "ours", "direct"
STARTED = time.perf_counter()


@dataclass(frozen=True)
class Effort:
    """How long to measure; durations are in seconds."""

    #: Rounds in which everything that is compared takes its turn, and a turn's length.
    rounds: int = 40
    turn: float = 0.03
    #: Cycles in which the server's commands are counted.
    counted: int = 200
    #: Runs of many threads: how many, and how long each.
    runs: int = 2
    run: float = 2.0
    #: How long a connect hangs.
    hang: float = 2.0
    #: Requests of which round trips are counted, on a network with such a delay.
    requests: int = 2
    delay: float = 0.002
    #: How long threads compete for a few connections of the stub driver.
    fight: float = 2.5
    #: Spikes of requests, of which the median counts.
    spikes: int = 3
    #: Connects that are timed.
    connects: int = 40
    #: Visits to each website: how many, and how long each.
    visits: int = 3
    visit: float = 1.0
    #: Checkouts after which the memory must be what it was.
    checkouts: int = 1_000_000


FULL = Effort()
QUICK = Effort(
    rounds=10,
    turn=0.01,
    counted=40,
    runs=1,
    run=0.6,
    hang=0.5,
    requests=1,
    fight=1.0,
    spikes=1,
    connects=10,
    visits=1,
    visit=0.5,
    checkouts=100_000,
)

Kinds = Mapping[str, type[Adapter] | type[Stub]]


@dataclass(frozen=True)
class Bench:
    server: Server
    #: Those that are compared, installed or not.
    kinds: dict[str, type[Adapter]]
    stub_kinds: dict[str, type[Stub]]
    effort: Effort
    #: What starts one more server; without it no server can be pinned to a CPU.
    start_server: Callable[[], AbstractContextManager[Server]] | None = None

    @property
    def adapters(self) -> dict[str, type[Adapter]]:
        return {n: kind for n, kind in self.kinds.items() if kind.is_installed()}

    @property
    def stubs(self) -> dict[str, type[Stub]]:
        return {n: kind for n, kind in self.stub_kinds.items() if kind.is_installed()}

    def table(self, name: str, title: str, kinds: Kinds, *columns: Column) -> Table:
        """Make a table with a row for each of these pools."""
        labels = {row: kind.label for row, kind in kinds.items()}
        return Table(name, title, columns, labels, {row: {} for row in kinds})

    def only(self, *rows: str) -> dict[str, type[Adapter]]:
        """Return these of the pools that are compared."""
        return {row: self.kinds[row] for row in rows if row in self.kinds}

    @contextmanager
    def on_one_cpu(self) -> Iterator[Bench]:
        """Pin this thread to one CPU, and have another server that is pinned to it."""
        if self.start_server is None:
            yield self
            return
        with one_cpu(), self.start_server() as server:
            yield replace(self, server=server)

    def pools(
        self, size: int, target: Target | None = None
    ) -> Iterator[tuple[str, Adapter]]:
        """Each pool, one after the other; closed when the next one is asked for."""
        for name in self.adapters:
            with self.pool(name, size, target) as pool:
                yield name, pool

    @contextmanager
    def pool(
        self,
        name: str,
        size: int,
        target: Target | None = None,
        autocommit: bool = True,
    ) -> Iterator[Adapter]:
        target = target or self.server.target
        with closing(self.kinds[name](target, size, autocommit)) as pool:
            yield pool


def say(text: str) -> None:
    """Tell the progress."""
    seconds = time.perf_counter() - STARTED
    print(f"{seconds:4.0f} s  {text}", file=sys.stderr, flush=True)
