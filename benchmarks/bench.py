"""What every measurement works with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from .adapters import Adapter
from .clock import now
from .effort import Effort
from .stubs import Stub
from .table import Column, Table
from .target import Server, Target

#: The pool that the others are compared with, and what no pool can be faster than.
OURS, FLOOR = "ours", "direct"
STARTED = now()


@dataclass(frozen=True)
class Bench:
    server: Server
    adapters: dict[str, type[Adapter]]
    stubs: dict[str, type[Stub]]
    effort: Effort

    def table(self, name: str, title: str, *columns: Column) -> Table:
        labels = {key: kind.label for key, kind in self.stubs.items()}
        labels |= {key: kind.label for key, kind in self.adapters.items()}
        return Table(name, title, columns, labels)

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
        with closing(self.adapters[name](target, size, autocommit)) as pool:
            yield pool


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"{now() - STARTED:4.0f} s  {text}", file=sys.stderr, flush=True)
