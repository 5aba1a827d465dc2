"""What opening a connection costs."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from flask_mysqlpool import Pool, PoolConfig

from ..bench import FLOOR, OURS, Bench, say
from ..results import Column, Table
from ..target import Server, Target
from .clock import Action, now

COLUMNS = (
    Column("default_ms", "default TLS\nmode, ms", 2),
    Column("plain_ms", "without\nTLS, ms", 2),
    Column("tls", "default is\nTLS: 1, plain: 0"),
)


def measure(bench: Bench) -> Table:
    say("connecting")
    kinds = bench.only(OURS, FLOOR)
    table = bench.table("connecting", "To open a connection", kinds, *COLUMNS)
    with bench.on_one_cpu() as pinned:
        encrypted = float(_is_encrypted(pinned.server))
        for key, disabled in (("default_ms", False), ("plain_ms", True)):
            times = _times(pinned, disabled)
            table.raw[key] = times
            for name, several in times.items():
                figures = {key: median(several) * 1e3, "tls": encrypted}
                table.add({name: figures})
    return table


def _is_encrypted(server: Server) -> bool:
    [(_, cipher)] = server.rows("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
    return bool(cipher)


def _times(bench: Bench, disabled: bool) -> dict[str, list[float]]:
    target = bench.server.target
    openers = {OURS: _ours(target, disabled), FLOOR: _floor(target, disabled)}
    times: dict[str, list[float]] = {name: [] for name in openers}
    for _ in range(bench.effort.connects):
        for name, opener in openers.items():
            start = now()
            close = opener()
            times[name].append(now() - start)
            close()
    return times


def _ours(target: Target, disabled: bool) -> Callable[[], Action]:
    mode = "DISABLED" if disabled else "PREFERRED"
    pool = Pool(PoolConfig.from_mapping({"URL": target.url, "SSL_MODE": mode}))
    return lambda: pool.steady_connection().close


def _floor(target: Target, disabled: bool) -> Callable[[], Action]:
    options = {"ssl_disabled": True} if disabled else {}
    return lambda: target.connect(**options).close
