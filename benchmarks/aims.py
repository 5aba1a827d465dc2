"""What this project wants to reach, judged by what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .bench import OURS
from .scale import CONNECTIONS, WAITERS
from .table import Table
from .trips import REQUESTS

#: Most that a query may cost, of the floor; and least requests, of the floor's.
QUERY, REQUEST = 1.10, 0.97
#: How many times shorter the worst wait has to be.
SHORTER = 50
#: Flat: the dearest of several costs as much as the cheapest, but for noise.
FLAT = 1.5
#: What a round trip on a slow network may differ from a whole number of them.
TOLERANCE = 0.2
#: Round trips that are the application's own.
OWN = {"query": 1, "transaction": 2, "read": 1}

#: Those whose worst wait is compared, and those whose throughput is.
SLOW = "dbutils_bare", "sqlalchemy"
FAST = "dbutils", "dbutils_bare", "sqlalchemy", "sqlalchemy_ping"

Tables = Mapping[str, Table]


@dataclass(frozen=True)
class Verdict:
    aim: str
    met: bool
    figures: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class NotMeasured(Exception):
    """A figure is missing that the aim is about."""


def find_side_effects(tables: Tables) -> list[Verdict | str]:
    """For each aim a verdict, or what it is about if that was not measured."""
    return [_judged(aim, tables) for aim in (_cost, _trips, _waits, _flat, _request)]


def _judged(aim: Callable[[Tables], Verdict], tables: Tables) -> Verdict | str:
    try:
        return aim(tables)
    except NotMeasured:
        return str(aim.__doc__).partition("\n")[0]


def _figure(tables: Tables, name: str, key: str, row: str = OURS) -> float:
    value = tables[name].get(row, key) if name in tables else None
    if value is None:
        raise NotMeasured
    return value


def _of_others(tables: Tables, key: str, rows: tuple[str, ...]) -> dict[str, float]:
    table = tables.get("statement")
    values = {row: table.get(row, key) for row in rows} if table else {}
    found = {row: value for row, value in values.items() if value is not None}
    if not found:
        raise NotMeasured
    return found


def _cost(tables: Tables) -> Verdict:
    """1. The cost of a query."""
    share = _figure(tables, "statement", "ratio")
    text = f"1. take + query + return at most {QUERY:.2f} of the floor"
    return Verdict(text, share <= QUERY, f"{share:.3f}")


def _trips(tables: Tables) -> Verdict:
    """2. Commands, and round trips that a caller waits for."""
    commands = _figure(tables, "statement", "commands")
    waited = {k: _figure(tables, "trips", f"{k}_waited") for k in REQUESTS}
    met = commands == 1 and all(waited[k] <= OWN[k] + TOLERANCE for k in waited)
    shown = ", ".join(f"{k} {waited[k]:.2f} of {OWN[k]}" for k in waited)
    text = "2. one command per query, no round trip waited for but the caller's own"
    return Verdict(text, met, f"{commands:.2f} commands; {shown}")


def _waits(tables: Tables) -> Verdict:
    """3. The worst wait, and the throughput."""
    longest = _figure(tables, "statement", "longest_ms")
    speed = _figure(tables, "statement", "per_second")
    others = _of_others(tables, "longest_ms", SLOW)
    times = {row: value / longest for row, value in others.items()}
    speeds = _of_others(tables, "per_second", FAST)
    best = max(speeds, key=lambda row: speeds[row])
    met = min(times.values()) >= SHORTER and speed >= speeds[best]
    shown = ", ".join(f"{row} {value:.0f} times" for row, value in times.items())
    return Verdict(
        f"3. worst wait {SHORTER} times shorter, at no lower throughput than the best",
        met,
        f"{longest:.1f} ms: {shown};"
        f" {speed:,.0f} queries/s, {best} {speeds[best]:,.0f}",
    )


def _flat(tables: Tables) -> Verdict:
    """4. Cost per checkout, however many connections and waiters."""
    # Without anybody waiting there is no hand-off, and no thread to be woken.
    waiting = [str(n) for n in WAITERS if n]
    by_connections = [_figure(tables, "connections", str(n)) for n in CONNECTIONS]
    by_waiters = [_figure(tables, "waiters", n) for n in waiting]
    growth = [costs[-1] / min(costs) for costs in (by_connections, by_waiters)]
    met = max(growth) <= FLAT
    shown = " · ".join(
        ", ".join(f"{cost:.2f}" for cost in costs)
        for costs in (by_connections, by_waiters)
    )
    text = "4. cost per checkout flat, to 1,000 connections and to 1,000 waiters"
    return Verdict(text, met, f"µs: {shown}")


def _request(tables: Tables) -> Verdict:
    """5. A whole Flask request, through a web server."""
    share = _figure(tables, "website", "share")
    text = f"5. a whole Flask request at least {REQUEST:.2f} of the floor"
    return Verdict(text, share >= REQUEST, f"{share:.3f}")


def show(verdicts: list[Verdict | str]) -> str:
    lines = ["The aims"]
    for verdict in verdicts:
        if isinstance(verdict, str):
            lines.append(f"not measured  {verdict}")
        else:
            word = "met" if verdict.met else "MISSED"
            lines.append(f"{word:12}  {verdict.aim}")
            lines.append(f"{'':12}     {verdict.figures}")
    return "\n".join(lines)
