"""Measure what the pool costs, beside other pools and drivers on the same machine.

Without names of tables, all of them. Tables are printed; --save writes the file
results.json, from which everything else comes: the tables as text, the plots, and the
figures in the documentation.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from . import aims, plots
from .adapters import ADAPTERS, Adapter
from .bench import FULL, QUICK, Bench, Effort, say
from .results import Results, Table
from .tables import (
    connecting,
    request,
    rows,
    scale,
    sharing,
    statement,
    trips,
    website,
)
from .tables.stubs import STUBS
from .target import Server, local_server, server_at

#: What measures a table, by its name, and what is in it.
TABLES: dict[str, tuple[str, Callable[[Bench], Table]]] = {
    "statement": (
        "SELECT 1: cost, commands, 16 threads on 8 connections, faults",
        statement.measure,
    ),
    "rows": (
        "result sets of 1 to 10,000 rows, as tuples",
        partial(rows.measure, "rows"),
    ),
    "dicts": ("the same, as dicts", partial(rows.measure, "dicts")),
    "streams": (
        "the same, streamed by an SSCursor",
        partial(rows.measure, "streams"),
    ),
    "trips": ("round trips of a request", trips.requests),
    "blocks": ("round trips of transaction blocks", trips.blocks),
    "sharing": (
        "throughput, fairness, and a spike, on a stub driver",
        sharing.measure,
    ),
    "connecting": ("to open a connection", connecting.measure),
    "connections": (
        "a checkout with up to 1,000 idle connections (stub)",
        scale.connections,
    ),
    "waiters": ("a checkout with up to 1,000 waiters (stub)", scale.waiters),
    "memory": ("what is left of many checkouts (stub)", scale.memory),
    "request": ("a Flask request, without a web server", request.measure),
    "website": ("a Flask request, through gunicorn", website.measure),
}
#: Where tests look for a MySQL server, too.
MYSQL_ROOT = "FLASK_MYSQLPOOL_MYSQL_ROOT"
#: The file in the folder of --save.
RESULTS, TEXT = "results.json", "results.txt"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=__doc__,
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("tables", nargs="*", metavar="TABLE", help="one of those below")
    add("--quick", action="store_true", help="less exact, in less than a minute")
    add("--rounds", type=int, metavar="N", help="of costs: the more, the less noise")
    add("--pools", nargs="+", choices=ADAPTERS, metavar="POOL", help="of these only")
    add("--save", type=Path, metavar="DIR", help=f"write {RESULTS}, {TEXT}, and plots")
    add(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help=f"measure nothing: take a {RESULTS}",
    )
    add("--url", help="of a server with a database; without it some are started")
    add("--engine", choices=("mariadb", "mysql"), default="mariadb")
    root = os.environ.get(MYSQL_ROOT)
    add("--mysql-root", default=root, metavar="DIR", help=f"default: ${MYSQL_ROOT}")
    return parser


def _epilog() -> str:
    tables = "\n".join(f"  {name:12} {text}" for name, (text, _) in TABLES.items())
    pools = "\n".join(f"  {name:18} {kind.label}" for name, kind in ADAPTERS.items())
    return f"""tables:
{tables}

pools; what is not installed is a row without figures:
{pools}

Where costs are compared, client and server share one CPU, the pools take turns in many
rounds, and the quietest tenth of the rounds counts; a CPU time is that of the client.
With --url nothing is pinned to a CPU.

More programs, each with a --help: benchmarks/pitfalls (run it by scripts/pitfalls),
python -m benchmarks.trees, benchmarks.soak, benchmarks.at_rest.
"""


def main() -> None:
    command = parser()
    arguments = command.parse_args()
    if unknown := [name for name in arguments.tables if name not in TABLES]:
        command.error(f"no such table: {', '.join(unknown)}")
    if arguments.source:
        results = Results.load(arguments.source)
        print(results)
    else:
        results = _measure(arguments)
    if arguments.save:
        _save(results, arguments.save)


def _measure(arguments: argparse.Namespace) -> Results:
    # They tell of every connection that they find dead.
    for name in ("sqlalchemy", "connpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with _server(arguments)() as server:
        bench = _bench(server, arguments)
        results = Results(_about(bench), {}, [])
        print(f"{results.first_line}\n")
        for name in arguments.tables or TABLES:
            table = results.tables[name] = TABLES[name][1](bench)
            print(f"{table}\n", flush=True)
    results.aims.extend(aims.verdicts(results.tables))
    print(results.last_lines)
    return results


def _server(
    arguments: argparse.Namespace,
) -> Callable[[], AbstractContextManager[Server]]:
    if arguments.url:
        return partial(server_at, arguments.url)
    root = arguments.mysql_root if arguments.engine == "mysql" else None
    return partial(local_server, arguments.engine, root)


def _bench(server: Server, arguments: argparse.Namespace) -> Bench:
    wanted = [
        name
        for name in arguments.pools or ADAPTERS
        if _can_connect(ADAPTERS[name], server)
    ]
    return Bench(
        server,
        {name: ADAPTERS[name] for name in wanted},
        {name: stub for name, stub in STUBS.items() if name in wanted},
        _effort(arguments),
        None if arguments.url else _server(arguments),
    )


def _can_connect(kind: type[Adapter], server: Server) -> bool:
    """Whether a pool can use this server, as far as it is installed."""
    if kind.is_installed():
        try:
            with closing(kind(server.target, 1)) as pool:
                pool.query()
        except Exception as error:
            say(f"left out: {kind.label}: {error}")
            return False
    return True


def _effort(arguments: argparse.Namespace) -> Effort:
    effort = QUICK if arguments.quick else FULL
    return replace(effort, rounds=arguments.rounds) if arguments.rounds else effort


def _about(bench: Bench) -> dict[str, str]:
    distributions = {pool.distribution for pool in bench.adapters.values()}
    return {
        "server": bench.server.version,
        "Python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "date": datetime.date.today().isoformat(),
        "rounds": str(bench.effort.rounds),
        **{name: version(name) for name in sorted(distributions, key=str.lower)},
    }


def _save(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results.save(folder / RESULTS)
    (folder / TEXT).write_text(f"{results}\n", "utf-8")
    drawn = plots.draw(results.tables, folder)
    say(f"drawn: {', '.join(map(str, drawn)) or 'nothing: no matplotlib?'}")


if __name__ == "__main__":
    main()
