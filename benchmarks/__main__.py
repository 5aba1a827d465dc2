"""Measure, and say what came out: tables as text, everything as JSON, plots as SVG."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import (
    aims,
    connecting,
    plots,
    request,
    scale,
    sharing,
    statement,
    trips,
    website,
)
from .adapters import ADAPTERS
from .bench import Bench, say
from .effort import FULL, QUICK
from .stubs import STUBS
from .table import Table
from .target import Server, local_server, server_at

MEASUREMENTS: dict[str, Callable[[Bench], Iterator[Table]]] = {
    "statement": statement.measure,
    "trips": trips.measure,
    "sharing": sharing.measure,
    "connecting": connecting.measure,
    "scale": scale.measure,
    "request": request.measure,
    "website": website.measure,
}
#: Where tests look for a MySQL server, too.
MYSQL_ROOT = "FLASK_MYSQLPOOL_MYSQL_ROOT"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="less exact, in less than a minute")
    add("--only", nargs="+", choices=MEASUREMENTS, metavar="NAME", help=_names())
    add("--pools", nargs="+", choices=ADAPTERS, metavar="NAME", help="of these only")
    add("--json", type=Path, metavar="FILE", help="write every figure there")
    add("--plots", type=Path, metavar="DIR", help="draw the plots there")
    add("--url", help="of a server with a database; without it one is started")
    add("--engine", choices=("mariadb", "mysql"), default="mariadb")
    root = os.environ.get(MYSQL_ROOT)
    add("--mysql-root", default=root, metavar="DIR", help=f"default: ${MYSQL_ROOT}")
    return parser


def _names() -> str:
    return "one or more of: " + ", ".join(MEASUREMENTS)


def main() -> None:
    arguments = parser().parse_args()
    # It tells of every connection that it finds dead.
    logging.getLogger("sqlalchemy").setLevel(logging.CRITICAL + 1)
    with _server(arguments) as server:
        bench = _bench(server, arguments)
        about = _about(server, bench)
        print(" · ".join(f"{key} {value}" for key, value in about.items()), "\n")
        tables = _measure(bench, arguments.only or list(MEASUREMENTS))
    verdicts = aims.find_side_effects(tables)
    print(aims.show(verdicts))
    if arguments.json:
        _write(arguments.json, about, tables, verdicts)
    if arguments.plots:
        written = plots.draw(tables, arguments.plots)
        say(f"drawn: {', '.join(map(str, written)) or 'nothing: no matplotlib?'}")
    say("done")


def _server(arguments: argparse.Namespace) -> AbstractContextManager[Server]:
    if arguments.url:
        return server_at(arguments.url)
    root = arguments.mysql_root if arguments.engine == "mysql" else None
    return local_server(arguments.engine, root)


def _bench(server: Server, arguments: argparse.Namespace) -> Bench:
    """Those pools that are wanted and installed; tell of those that are not."""
    wanted = arguments.pools or list(ADAPTERS)
    for name in wanted:
        if not ADAPTERS[name].is_installed():
            say(f"skipped: {ADAPTERS[name].label} is not installed")
    return Bench(
        server,
        {name: ADAPTERS[name] for name in wanted if ADAPTERS[name].is_installed()},
        {n: stub for n, stub in STUBS.items() if n in wanted and stub.is_installed()},
        QUICK if arguments.quick else FULL,
    )


def _about(server: Server, bench: Bench) -> dict[str, str]:
    distributions = {pool.distribution for pool in bench.adapters.values()}
    return {
        "server": server.version,
        "Python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        **{name: version(name) for name in sorted(distributions, key=str.lower)},
    }


def _measure(bench: Bench, names: list[str]) -> dict[str, Table]:
    tables = {}
    for name in names:
        for table in MEASUREMENTS[name](bench):
            tables[table.name] = table
            print(f"{table}\n", flush=True)
    return tables


def _write(
    path: Path,
    about: dict[str, str],
    tables: dict[str, Table],
    verdicts: list[aims.Verdict | str],
) -> None:
    content: dict[str, Any] = {
        "about": about,
        "tables": {name: table.as_json() for name, table in tables.items()},
        "aims": [v if isinstance(v, str) else v.as_json() for v in verdicts],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
