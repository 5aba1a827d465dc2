"""What this project wants to reach, judged by what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from .bench import OURS
from .results import Table, Verdict
from .tables.rows import TITLES
from .tables.scale import CONNECTIONS, WAITERS

#: Most that a query may cost, of the floor; and least requests, of the floor's.
QUERY, REQUEST = 0.85, 1.0
#: Most that result sets may cost by their number of rows, of the floor.
ROWS = {1: 0.75, 100: 0.45, 1000: 0.38, 10000: 0.38}
#: Most that the largest of them may cost, of what they cost with the driver in C.
DRIVER, LARGEST = 1.05, (1000, 10000)
#: How many times shorter the worst wait has to be.
SHORTER = 50
#: Flat: the dearest of several costs as much as the cheapest, but for noise.
FLAT = 1.5
#: Most round trips that a caller may wait for, by table and request.
TRIPS = {
    "trips": {"query": 1, "transaction": 2, "read": 1},
    "blocks": {"one": 2, "three": 4, "nested": 3, "many": 5},
}

#: Those whose worst wait is compared, and those whose throughput is.
SLOW = "dbutils_bare", "sqlalchemy"
FAST = "dbutils", "dbutils_bare", "sqlalchemy", "sqlalchemy_ping"

Tables = Mapping[str, Table]


class NotMeasured(Exception):
    """A figure is missing that the aim is about."""


def verdicts(tables: Tables) -> list[Verdict]:
    """Return a verdict on each aim."""
    aims = _cost, _rows, _driver, _trips, _waits, _flat, _request
    return [_judged(aim, tables) for aim in aims]


def _judged(aim: Callable[[Tables], Verdict], tables: Tables) -> Verdict:
    try:
        return aim(tables)
    except NotMeasured:
        return Verdict(str(aim.__doc__), None)


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


def _shown(shares: Iterable[float]) -> str:
    return ", ".join(f"{share:.2f}" for share in shares)


def _cost(tables: Tables) -> Verdict:
    """1. The cost of a query."""
    share = _figure(tables, "statement", "ratio")
    text = f"1. take + query + return at most {QUERY:.2f} of the floor"
    return Verdict(text, share <= QUERY, f"{share:.3f}")


def _rows(tables: Tables) -> Verdict:
    """2. The cost of result sets."""
    shares = {
        (name, size): _figure(tables, name, f"{size}_share")
        for name in TITLES
        for size in ROWS
    }
    met = all(share <= ROWS[size] for (_, size), share in shares.items())
    shown = [f"{name} {_shown(shares[name, size] for size in ROWS)}" for name in TITLES]
    sizes = ", ".join(f"{size:,}" for size in ROWS)
    text = (
        f"2. result sets of {sizes} rows at most {_shown(ROWS.values())} of the floor"
    )
    return Verdict(text, met, "; ".join(shown))


def _driver(tables: Tables) -> Verdict:
    """3. Large result sets, beside the driver in C."""
    keys = [f"{size}_us" for size in LARGEST]
    shares = [
        _figure(tables, "rows", key) / _figure(tables, "rows", key, "mysqlclient")
        for key in keys
    ]
    sizes = " and ".join(f"{size:,}" for size in LARGEST)
    text = f"3. result sets of {sizes} rows at most {DRIVER:.2f} of mysqlclient"
    return Verdict(text, max(shares) <= DRIVER, _shown(shares))


def _trips(tables: Tables) -> Verdict:
    """4. Commands, and round trips that a caller waits for."""
    commands = _figure(tables, "statement", "commands")
    met, shown = commands == 1, [f"{commands:.2f} commands"]
    for name, requests in TRIPS.items():
        for key, most in requests.items():
            waited = _figure(tables, name, f"{key}_waited")
            met = met and waited <= most
            shown.append(f"{key} {waited:g} of {most}")
    text = "4. one command per query, no round trip waited for but the caller's own"
    return Verdict(text, met, ", ".join(shown))


def _waits(tables: Tables) -> Verdict:
    """5. The worst wait, and the throughput."""
    longest = _figure(tables, "statement", "longest_ms")
    speed = _figure(tables, "statement", "per_second")
    others = _of_others(tables, "longest_ms", SLOW)
    times = {row: value / longest for row, value in others.items()}
    speeds = _of_others(tables, "per_second", FAST)
    best = max(speeds, key=lambda row: speeds[row])
    met = min(times.values()) >= SHORTER and speed >= speeds[best]
    shown = ", ".join(f"{row} {value:.0f} times" for row, value in times.items())
    return Verdict(
        f"5. worst wait {SHORTER} times shorter, at no lower throughput than the best",
        met,
        f"{longest:.1f} ms: {shown};"
        f" {speed:,.0f} queries/s, {best} {speeds[best]:,.0f}",
    )


def _flat(tables: Tables) -> Verdict:
    """6. Cost per checkout, however many connections and waiters."""
    # Without waiters there is no hand-off, and no thread to be woken.
    waiting = [str(n) for n in WAITERS if n]
    by_connections = [_figure(tables, "connections", str(n)) for n in CONNECTIONS]
    by_waiters = [_figure(tables, "waiters", n) for n in waiting]
    growth = [costs[-1] / min(costs) for costs in (by_connections, by_waiters)]
    met = max(growth) <= FLAT
    shown = " · ".join(map(_shown, (by_connections, by_waiters)))
    text = "6. cost per checkout flat, to 1,000 connections and to 1,000 waiters"
    return Verdict(text, met, f"µs: {shown}")


def _request(tables: Tables) -> Verdict:
    """7. A whole Flask request, through a web server."""
    share = _figure(tables, "website", "share")
    text = f"7. a whole Flask request at least {REQUEST:.2f} of the floor"
    return Verdict(text, share >= REQUEST, f"{share:.3f}")
