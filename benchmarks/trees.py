"""Compare two working trees of this project, and bare PyMySQL, in one interleaved run.

Client and server share one CPU, so that no time is spent in parallel::

    git worktree add /tmp/before COMMIT
    python -m benchmarks.trees /tmp/before .

Printed is the quietest tenth of the rounds: microseconds by the clock (client and
server), and of them CPU time of the client.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pymysql

from .tables.clock import Action, Turn, alternate, one_cpu, quiet, timed

ROOT = Path(__file__).resolve().parents[1]
BARE = "PyMySQL"
ROW = "SELECT a FROM t WHERE id = 7"
INSERT = "INSERT INTO log (a) VALUES (1)"
UPDATE = "UPDATE t SET a = a + 1 WHERE id = 7"


def run(connection: Any, statement: str) -> None:
    cursor = connection.cursor()
    cursor.execute(statement)
    cursor.fetchall()
    cursor.close()


def pooled(url: str) -> dict[str, Action]:
    """Return what is timed, through the pool of the package that is imported."""
    from flask_mysqlpool import Pool, PoolConfig

    try:
        from flask_mysqlpool.pool.transaction import transaction
    except ImportError:  # where it was before
        transaction = import_module("flask_mysqlpool.transaction").transaction

    def pool(**settings: Any) -> Pool:
        return Pool(PoolConfig.from_mapping({"URL": url, "MAX_SIZE": 2, **settings}))

    auto, manual = pool(AUTOCOMMIT=True), pool()

    def select(pool: Pool, statement: str) -> None:
        connection = pool.connection()
        run(connection, statement)
        connection.close()

    def insert() -> None:
        connection = manual.connection()
        run(connection, INSERT)
        connection.commit()
        connection.close()

    def block() -> None:
        connection = manual.connection()
        with transaction(connection):
            run(connection, UPDATE)
        connection.close()

    return {
        "SELECT 1": lambda: select(auto, "SELECT 1"),
        "row, autocommit": lambda: select(auto, ROW),
        "row, rollback": lambda: select(manual, ROW),
        "INSERT, commit": insert,
        "block with UPDATE": block,
    }


def bare(url: str) -> dict[str, Action]:
    """Return the same, on connections that are held."""
    from flask_mysqlpool import PoolConfig

    config = PoolConfig.from_mapping({"URL": url})
    arguments: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("host", "port", "user", "password", "database")
    }
    auto = pymysql.connect(**arguments, autocommit=True)
    manual = pymysql.connect(**arguments)

    def ended(statement: str, end: Callable[[], None]) -> None:
        run(manual, statement)
        end()

    def block() -> None:
        manual.begin()
        ended(UPDATE, manual.commit)

    return {
        "SELECT 1": lambda: run(auto, "SELECT 1"),
        "row, autocommit": lambda: run(auto, ROW),
        "row, rollback": lambda: ended(ROW, manual.rollback),
        "INSERT, commit": lambda: ended(INSERT, manual.commit),
        "block with UPDATE": block,
    }


def serve(kind: str, tree: str, url: str) -> None:
    """Time what is asked for on stdin: its name, and for how many seconds."""
    # Before the package is imported, which is also in the folder of this process.
    sys.path.insert(0, tree)
    actions = bare(url) if kind == BARE else pooled(url)
    for action in actions.values():
        for _ in range(300):
            action()
    gc.collect()
    gc.freeze()
    print(json.dumps(list(actions)), flush=True)
    for line in sys.stdin:
        name, seconds = json.loads(line)
        print(json.dumps(timed(actions[name], seconds)), flush=True)


# The other side of it


class Side:
    """A process that times one tree."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.names: list[str] = self._answer()

    def time(self, name: str, seconds: float) -> Turn:
        assert self._process.stdin is not None
        print(json.dumps((name, seconds)), file=self._process.stdin, flush=True)
        return Turn(*self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def side(kind: str, tree: Path, url: str) -> Iterator[Side]:
    with subprocess.Popen(
        [sys.executable, "-m", __spec__.name, "--serve", kind, tree.resolve(), url],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Side(process)
        assert process.stdin is not None
        process.stdin.close()


Times = dict[tuple[str, str], list[Turn]]


def measure(trees: dict[str, Path], url: str, rounds: int, seconds: float) -> Times:
    with ExitStack() as stack:
        sides = {
            kind: stack.enter_context(side(kind, tree, url))
            for kind, tree in trees.items()
        }
        turns = {
            (kind, name): partial(each.time, name, seconds)
            for kind, each in sides.items()
            for name in each.names
        }
        return alternate(turns, rounds)


def show(times: Times, before: str, after: str) -> None:
    print(f"{'µs: clock (CPU)':20}{BARE:>16}{'before':>16}{'after':>16}   after/before")
    for name in dict.fromkeys(name for _, name in times):
        turns = [quiet(times[kind, name]) for kind in (BARE, before, after)]
        cells = [f"{wall * 1e6:.1f} ({cpu * 1e6:.1f})" for wall, cpu in turns]
        _, old, new = turns
        ratios = f"{new.wall / old.wall:.3f} ({new.cpu / old.cpu:.3f})"
        print(f"{name:20}{''.join(f'{cell:>16}' for cell in cells)}   {ratios}")


def main() -> None:
    from flask_mysqlpool.testing import LocalServer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--engine", choices=("mariadb", "mysql"), default="mariadb")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--turn", type=float, default=0.02, help="seconds")
    options = parser.parse_args()
    root = os.environ.get("FLASK_MYSQLPOOL_MYSQL_ROOT")
    trees = {BARE: options.after, "before": options.before, "after": options.after}
    local = LocalServer(
        engine=options.engine, root=root if options.engine == "mysql" else None
    )
    # Inherited by the server, and by the processes that are timed.
    with one_cpu(), local as server:
        connection = server.connect(database="test", autocommit=True)
        run(connection, "CREATE TABLE log (id INT AUTO_INCREMENT PRIMARY KEY, a INT)")
        run(connection, "CREATE TABLE t (id INT PRIMARY KEY, a INT)")
        run(
            connection,
            f"INSERT INTO t VALUES {', '.join(f'({i}, 0)' for i in range(99))}",
        )
        times = measure(trees, server.url, options.rounds, options.turn)
        connection.close()
    show(times, "before", "after")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        main()
