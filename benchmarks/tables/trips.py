"""Round trips: how many a request makes, and for how many its caller waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

from ..adapters import Adapter, execute, select
from ..bench import Bench, say
from ..results import Column, Table
from .waits import Waits

#: Requests over which round trips on the wire are counted.
COUNTED = 4
#: Statements of an ``executemany()``.
MANY = 300
NAME = "benchmarks_counter"
UPDATE = f"UPDATE {NAME} SET value = value + 1 WHERE id = "

#: What a request does with a connection of a pool.
Work = Callable[[Adapter, Any], object]


def _query(pool: Adapter, connection: Any) -> None:
    select(connection)


def _commit(pool: Adapter, connection: Any) -> None:
    select(connection)
    connection.commit()


def _block(updates: int, pool: Adapter, connection: Any) -> None:
    with pool.block(connection):
        for number in range(updates):
            execute(connection, f"{UPDATE}{number}")


def _nested(pool: Adapter, connection: Any) -> None:
    with pool.block(connection):
        with pool.nested(connection):
            execute(connection, f"{UPDATE}1")
            execute(connection, f"{UPDATE}2")


def _many(pool: Adapter, connection: Any) -> None:
    with pool.block(connection):
        cursor = connection.cursor()
        cursor.executemany(f"{UPDATE}%s", [(number,) for number in range(MANY)])
        cursor.close()


#: Requests, with their heading, whether with autocommit, and what they do.
Requests = Mapping[str, tuple[str, bool, Work]]

REQUESTS: Requests = {
    "query": ("SELECT\nautocommit", True, _query),
    "transaction": ("SELECT,\nCOMMIT", False, _commit),
    "read": ("SELECT\nonly", False, _query),
}
BLOCKS: Requests = {
    "one": ("block with\none UPDATE", False, partial(_block, 1)),
    "three": ("block with\n3 UPDATEs", False, partial(_block, 3)),
    "nested": ("nested block\nwith two", False, _nested),
    "many": (f"block with\nexecutemany\nof {MANY}", False, _many),
}


def requests(bench: Bench) -> Table:
    columns = []
    for key, (heading, _, _) in REQUESTS.items():
        columns += [
            Column(f"{key}_wire", f"{heading}\non the wire", 1),
            Column(f"{key}_waited", "waited for\nafter a\npause", 1),
            Column(f"{key}_at_once", "waited for\nback to\nback", 1),
        ]
    table = bench.table("trips", "Round trips of a request", bench.kinds, *columns)
    return _measured(bench, table, REQUESTS, "waited", "at_once")


def blocks(bench: Bench) -> Table:
    columns = []
    for key, (heading, _, _) in BLOCKS.items():
        columns += [
            Column(f"{key}_wire", f"{heading}\non the wire", 1),
            Column(f"{key}_waited", "waited\nfor", 1),
        ]
    title = "Round trips of a transaction block"
    table = bench.table("blocks", title, bench.kinds, *columns)
    return _measured(bench, table, BLOCKS, "waited")


def _measured(bench: Bench, table: Table, works: Requests, *kinds: str) -> Table:
    records = [(number, 0) for number in range(MANY)]
    with bench.server.table(NAME, "id INT PRIMARY KEY, value INT", records):
        for name in bench.adapters:
            say(f"{table.name}: {bench.kinds[name].label}")
            table.raw[name] = {}
            for key, (_, autocommit, work) in works.items():
                wire = _on_the_wire(bench, name, autocommit, work)
                table.add({name: {f"{key}_wire": wire}})
                counts = _waited(bench, name, autocommit, work, kinds)
                table.raw[name][key] = counts
                # A driver in C has no sockets that can be counted.
                if any(counts["waited"]):
                    figures = {f"{key}_{n}": median(c) for n, c in counts.items()}
                    table.add({name: figures})
    return table


def _request(pool: Adapter, work: Work) -> None:
    connection = pool.get()
    work(pool, connection)
    pool.put(connection)


def _on_the_wire(bench: Bench, name: str, autocommit: bool, work: Work) -> float:
    """How often the client spoke after the server did, be it waited for or not."""
    with bench.server.proxied() as (proxy, target):
        with bench.pool(name, 1, target, autocommit) as pool:
            _request(pool, work)
            time.sleep(0.02)
            before = proxy.round_trips
            for _ in range(COUNTED):
                _request(pool, work)
                time.sleep(0.02)
            return (proxy.round_trips - before) / COUNTED


def _waited(
    bench: Bench, name: str, autocommit: bool, work: Work, kinds: Sequence[str]
) -> dict[str, list[int]]:
    """Round trips that requests wait for: "waited" after a pause, "at_once" without.

    The network is slow, so that nothing has arrived when a request follows at once.
    """
    with ExitStack() as stack:
        proxy, target = stack.enter_context(bench.server.proxied())
        # A pool may make a class of sockets for itself, and connections keep methods of
        # their socket: so here is one pool before the counting begins, and one after.
        first = stack.enter_context(bench.pool(name, 1, target, autocommit))
        _request(first, work)
        waits = stack.enter_context(Waits())
        pool = stack.enter_context(bench.pool(name, 1, target, autocommit))
        _request(pool, work)
        proxy.delay = bench.effort.delay

        def count(pause: float) -> int:
            if pause:
                time.sleep(pause)
                waits.let_arrive()
            before = waits.trips
            _request(pool, work)
            return waits.trips - before

        pauses = {"waited": proxy.delay * 3, "at_once": 0.0}
        return {
            key: [count(pauses[key]) for _ in range(bench.effort.requests)]
            for key in kinds
        }
