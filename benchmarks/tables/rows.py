"""What reading a result set costs: tuples, dicts, and rows that are streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from ..adapters import Adapter
from ..bench import FLOOR, OURS, Bench, say
from ..results import Column, Table
from .clock import quiet, take_turns

#: Rows of a result set.
SIZES = 1, 10, 100, 1000, 10000
NAME = "benchmarks_row"
FIELDS = (
    "id INT, name VARCHAR(40), amount DECIMAL(10, 2), at DATETIME, note VARCHAR(100)"
)
#: Drivers, and ours.
READERS = OURS, FLOOR, "mysqlclient", "mariadb"
TITLES = {
    "rows": "To take a connection, read 1 to 10,000 rows as tuples, and return it",
    "dicts": "The same with rows as dicts",
    "streams": "The same with rows that are streamed, read one by one",
}


def columns() -> Iterator[Column]:
    for size in SIZES:
        digits = 1 if size < 1000 else 0
        yield Column(f"{size}_us", f"{size:,}:\nµs", digits)
        yield Column(f"{size}_cpu_us", "CPU", digits)
        yield Column(f"{size}_share", "of the\nfloor", 2)


def _records() -> list[tuple[Any, ...]]:
    row = "12.34", "2026-01-02 03:04:05", "x" * 50
    return [(number, f"name {number}", *row) for number in range(max(SIZES))]


def measure(kind: str, bench: Bench) -> Table:
    table = bench.table(kind, TITLES[kind], bench.only(*READERS), *columns())
    say(f"result sets: {kind}")
    with ExitStack() as stack:
        pinned = stack.enter_context(bench.on_one_cpu())
        stack.enter_context(pinned.server.table(NAME, FIELDS, _records()))
        actions: dict[tuple[str, int], Callable[[], Any]] = {}
        for row in table.rows:
            if row not in bench.adapters:
                continue
            pool = stack.enter_context(pinned.pool(row, 1))
            for size in SIZES:
                statement = f"SELECT * FROM {NAME} LIMIT {size}"
                actions[row, size] = _reader(pool, kind, statement)
                assert len(actions[row, size]()) == size
        turns = take_turns(actions, bench.effort.rounds, bench.effort.turn)
    for (row, size), taken in turns.items():
        table.raw[f"{row} {size}"] = taken
        wall, cpu = quiet(taken)
        figures = {f"{size}_us": wall * 1e6, f"{size}_cpu_us": cpu * 1e6}
        if FLOOR in table.rows:
            figures[f"{size}_share"] = wall / quiet(turns[FLOOR, size]).wall
        table.add({row: figures})
    if FLOOR in table.rows:
        floor = [taken for (row, _), taken in turns.items() if row == FLOOR]
        table.check_floor(*([turn.wall for turn in taken] for taken in floor))
    return table


def _reader(pool: Adapter, kind: str, statement: str) -> Callable[[], Any]:
    cursor_of = pool.cursor_of(kind)

    def read() -> Any:
        connection = pool.get()
        cursor = cursor_of(connection)
        cursor.execute(statement)
        rows = list(cursor) if kind == "streams" else cursor.fetchall()
        cursor.close()
        pool.put(connection)
        return rows

    return read
