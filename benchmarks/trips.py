"""Round trips: how many a request makes, and for how many its caller waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from .adapters import Adapter, select
from .bench import Bench, say
from .clock import now
from .table import Column, Table

#: Requests over which round trips are counted.
COUNTED = 10


def _commit(connection: Any) -> None:
    select(connection)
    connection.commit()


#: What a request does: its heading, whether with autocommit, and its statements.
REQUESTS: dict[str, tuple[str, bool, Callable[[Any], object]]] = {
    "query": ("SELECT\nautocommit", True, select),
    "transaction": ("SELECT,\nCOMMIT", False, _commit),
    "read": ("SELECT\nonly", False, select),
}


def measure(bench: Bench) -> Iterator[Table]:
    columns = []
    for key, (heading, _, _) in REQUESTS.items():
        columns += [
            Column(f"{key}_wire", f"{heading}\non the wire", 1),
            Column(f"{key}_waited", "waited for\nafter a\npause", 2),
            Column(f"{key}_at_once", "waited for\nback to\nback", 2),
        ]
    table = bench.table("trips", "Round trips of a request", *columns)
    for name in bench.adapters:
        say(f"round trips: {bench.adapters[name].label}")
        table.add({name: _trips(bench, name, table.raw.setdefault(name, {}))})
    yield table


def _trips(bench: Bench, name: str, raw: dict[str, Any]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for key, (_, autocommit, work) in REQUESTS.items():
        figures[f"{key}_wire"] = _on_the_wire(bench, name, autocommit, work)
        paused, at_once = _waited(bench, name, autocommit, work)
        raw[key] = {"after_a_pause": paused, "back_to_back": at_once}
        figures[f"{key}_waited"] = median(paused)
        figures[f"{key}_at_once"] = median(at_once)
    return figures


def _request(pool: Adapter, work: Callable[[Any], object]) -> None:
    connection = pool.get()
    work(connection)
    pool.put(connection)


def _on_the_wire(
    bench: Bench, name: str, autocommit: bool, work: Callable[[Any], object]
) -> float:
    """How often the client spoke after the server did, be it waited for or not."""
    with bench.server.proxied() as (proxy, target):
        with bench.pool(name, 1, target, autocommit) as pool:
            _request(pool, work)
            time.sleep(0.02)
            before = proxy.round_trips
            for _ in range(COUNTED):
                _request(pool, work)
                time.sleep(0.002)
            return (proxy.round_trips - before) / COUNTED


def _waited(
    bench: Bench, name: str, autocommit: bool, work: Callable[[Any], object]
) -> tuple[list[float], list[float]]:
    """How long requests take on a slow network, in units of its round trip."""
    delay = bench.effort.delay
    with bench.server.proxied() as (proxy, target):
        with bench.pool(name, 1, target, autocommit) as pool:
            _request(pool, work)
            proxy.delay = delay
            _request(pool, work)

            def times(pause: float) -> list[float]:
                return [_timed(pool, work, pause) / delay / 2 for _ in range(requests)]

            requests = bench.effort.requests
            return times(delay * 3), times(0.0)


def _timed(pool: Adapter, work: Callable[[Any], object], pause: float) -> float:
    time.sleep(pause)
    start = now()
    _request(pool, work)
    return now() - start
