"""What the obvious wiring of Flask to ``PooledDB`` does, and what this does instead.

Each line is measured while you wait: the same app, wired one way and the other
(benchmarks/wirings.py), has the same trouble on a MariaDB server of its own. Ends with
0 if flask_mysqlpool did nothing of what is counted here, with 1 otherwise.
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pymysql

from flask_mysqlpool.testing import FaultProxy, LocalServer

from ..target import Server, Target
from .wirings import OBVIOUS, OURS, STATEMENTS, WIRINGS, Settings, Site

ROOT = Path(__file__).resolve().parents[2]
#: How often something is done, and the sum of two accounts.
TIMES, TOTAL = 5, 200
#: ``TIMEOUT`` where all connections stay in use, and after which time that is judged.
TIMEOUT, PATIENCE = 0.5, 2.0
#: For what happens in any case.
SECONDS = 20.0


@dataclass(frozen=True)
class Outcome:
    """How often it went wrong, and that in words; the words are made of counts."""

    faults: int
    text: str


class World:
    """The server, and a connection of its administrator."""

    def __init__(self, local: LocalServer, folder: str, begin: bool) -> None:
        self.local = local
        self._begin = begin
        self.target = Target.of(local.url)
        self._folder = folder
        self._root = local.connect(database=local.database)
        for statement in TABLES:
            self.rows(statement)

    def close(self) -> None:
        self._root.close()

    def rows(self, statement: str) -> tuple[tuple[Any, ...], ...]:
        with self._root.cursor() as cursor:
            cursor.execute(statement)
            return tuple(cursor.fetchall())

    def settings(self, wiring: str, **more: Any) -> Settings:
        folder = tempfile.mkdtemp(dir=self._folder)
        given: dict[str, Any] = {"target": self.target, "begin": self._begin} | more
        return Settings(wiring=wiring, folder=folder, **given)

    @contextmanager
    def site(self, wiring: str, **more: Any) -> Iterator[Site]:
        with closing(Site(self.settings(wiring, **more))) as site:
            yield site

    def open_accounts(self) -> None:
        self.rows(f"UPDATE account SET balance = {TOTAL // 2}")

    def balance(self) -> int:
        [(total,)] = self.rows("SELECT SUM(balance) FROM account")
        return int(total)

    def kill_connections(self) -> None:
        """All of the app, as an administrator does, or a proxy that has waited."""
        user = self.local.user
        find = f"SELECT id FROM information_schema.processlist WHERE user = '{user}'"
        for (number,) in self.rows(find):
            with suppress(pymysql.err.OperationalError):
                self.rows(f"KILL {number}")
        until(lambda: not self.rows(find))


TABLES = (
    "CREATE TABLE account (id INT PRIMARY KEY, balance INT NOT NULL)",
    "INSERT INTO account VALUES (1, 100), (2, 100)",
    "CREATE TABLE visit (at DATETIME)",
    "CREATE TABLE basket (item INT)",
    "INSERT INTO basket VALUES (1)",
    "CREATE TABLE stock (id INT AUTO_INCREMENT PRIMARY KEY, items INT)",
    f"INSERT INTO stock (items) VALUES {', '.join(['(1)'] * 50)}",
)


class Gate:
    """Where requests stop, connection in hand, until it is opened."""

    def __init__(self) -> None:
        self._arrivals = threading.Semaphore(0)
        self._opened = threading.Event()
        self.open = self._opened.set

    def __call__(self) -> None:
        self._arrivals.release()
        self._opened.wait(SECONDS)

    def wait_for(self, requests: int) -> None:
        for _ in range(requests):
            if not self._arrivals.acquire(timeout=SECONDS):
                raise TimeoutError("a request has not come so far")


def until(condition: Callable[[], object]) -> None:
    """Wait for what another process does without a notice."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        time.sleep(0.005)


# What happens


def kill(world: World, wiring: str) -> Outcome:
    """A connection is lost in mid-transaction."""
    with world.site(wiring) as site:
        return transfer(world, site, world.kill_connections)


def deadlock(world: World, wiring: str) -> Outcome:
    """The server rolls a transaction back, and says so."""
    with world.site(wiring) as site, ThreadPoolExecutor() as threads:
        with closing(world.local.connect(database=world.local.database)) as rival:

            def meanwhile() -> None:
                settle()
                rival.begin()
                # Who has changed most is not the one that the server ends.
                rival.cursor().execute("UPDATE stock SET items = items - 1")
                rival.cursor().execute(LOCK.format(2))
                begun.append(threads.submit(finish))

            def finish() -> None:
                rival.cursor().execute(LOCK.format(1))
                rival.rollback()

            def settle() -> None:
                while begun:
                    begun.pop().result(SECONDS)

            begun: list[Future[None]] = []
            outcome = transfer(world, site, meanwhile)
            settle()
            return outcome


LOCK = "SELECT balance FROM account WHERE id = {} FOR UPDATE"


def transfer(world: World, site: Site, meanwhile: Callable[[], None]) -> Outcome:
    """Move money, again and again; in the middle of it something happens."""
    site.meanwhile = meanwhile
    halves = told = 0
    for _ in range(TIMES):
        world.open_accounts()
        told += site.post("/transfer").text == "done"
        halves += world.balance() != TOTAL
    return Outcome(halves, f"{halves} half committed, {told} answered “done”")


def lost_answer(world: World, wiring: str) -> Outcome:
    """The network takes an answer away: the server has done what it was asked."""
    world.rows("TRUNCATE visit")
    with FaultProxy(world.target.host, world.target.port) as proxy:
        target = world.target.through(proxy)
        with world.site(wiring, target=target, autocommit=True) as site:
            site.meanwhile = proxy.cut_after_request
            for _ in range(TIMES):
                site.post("/visit")
    [(stored,)] = world.rows("SELECT COUNT(*) FROM visit")
    return Outcome(stored - TIMES, f"{stored} rows")


def hung_connect(world: World, wiring: str) -> Outcome:
    """A request needs a new connection, and the server does not answer."""
    with ExitStack() as stack:
        server = stack.enter_context(closing(Server(world.target)))
        detour = stack.enter_context(server.detour())
        site = stack.enter_context(world.site(wiring, target=detour.target))
        threads = stack.enter_context(ThreadPoolExecutor())
        stack.callback(detour.resume)
        gate = site.meanwhile = Gate()
        stack.callback(gate.open)
        answered: list[int] = []

        def visit_twice() -> None:
            for path in ("/slow", "/balances"):
                answered.append(site.get(path).status_code)

        visitors = []
        for _ in range(3):
            # One after the other, so that there is no connection more than they have.
            visitors.append(threads.submit(visit_twice))
            gate.wait_for(1)
        before = detour.connections
        detour.hang()
        threads.submit(site.get, "/balances")
        until(lambda: detour.connections > before)
        gate.open()
        wait(visitors, PATIENCE)
        count = answered.count(200)
    return Outcome(6 - count, f"{count} of 6 are answered")


def exhausted(world: World, wiring: str) -> Outcome:
    """More requests than connections, for longer than a client would wait."""
    with ExitStack() as stack:
        site = stack.enter_context(world.site(wiring, size=2, timeout=TIMEOUT))
        threads = stack.enter_context(ThreadPoolExecutor())
        gate = site.meanwhile = Gate()
        stack.callback(gate.open)
        for _ in range(2):
            threads.submit(site.get, "/slow")
        gate.wait_for(2)
        late = [threads.submit(site.get, "/balances") for _ in range(3)]
        answered, waiting = wait(late, PATIENCE)
    refused = [each.result() for each in answered]
    count = sum(r.status_code == 503 and "Retry-After" in r.headers for r in refused)
    text = f"{len(waiting)} of 3 still wait, {count} of 3 got a 503"
    return Outcome(len(late) - count, text)


def session(world: World, wiring: str) -> Outcome:
    """A request leaves its session as it should not."""
    with world.site(wiring, size=1) as site:
        new = site.get("/session").get_json()
        site.post("/run")
        used = site.get("/session").get_json()
    left = [name for name in new if used[name] != new[name]]
    return Outcome(len(left), f"{len(left)} of {len(STATEMENTS)} still there")


def fork(world: World, wiring: str) -> Outcome:
    """The app is loaded, asks its database, and only then are workers forked."""
    world.open_accounts()
    command = [sys.executable, "-W", "ignore", "-m", f"{__package__}.preload"]
    ids = run([*command, str(TIMES)], world.settings(wiring)).split()
    count = len(set(ids))
    # What the other worker has rolled back is the withdrawals.
    halves = (world.balance() - TOTAL) // 10
    text = f"{count} connection{'s' * (count != 1)}, {halves} half committed"
    return Outcome(halves + 2 - count, text)


def status(world: World, wiring: str) -> Outcome:
    """A command asks from a terminal, which is another process."""
    command, read = COMMANDS[wiring]
    with ExitStack() as stack:
        site = stack.enter_context(world.site(wiring))
        threads = stack.enter_context(ThreadPoolExecutor())
        gate = site.meanwhile = Gate()
        stack.callback(gate.open)
        for _ in range(3):
            threads.submit(site.get, "/slow")
        gate.wait_for(3)
        ask = [sys.executable, "-m", "flask", "--app", f"{__package__}.wirings"]
        # What is published is a moment old.
        for _ in range(2):
            said = read(run([*ask, *command.split()], site.settings))
            if said == 3:
                break
    return Outcome(3 - said, f"it says {said}")


def _in_use(report: str) -> int:
    pools = json.loads(report)["pools"].values()
    return sum(pool["totals"]["in_use"] for pool in pools)


#: What an operator types, and how to read the answer.
COMMANDS: dict[str, tuple[str, Callable[[str], int]]] = {
    OBVIOUS: ("pool", lambda text: int(text.split()[0])),
    OURS: ("mysqlpool status --json", _in_use),
}


def run(command: list[str], settings: Settings) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=settings.environment(),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=60,
    )
    return done.stdout


PITFALLS: dict[str, tuple[str, Callable[[World, str], Outcome]]] = {
    "kill": (f"{TIMES} transfers; each loses its connection halfway", kill),
    "deadlock": (f"{TIMES} transfers; each runs into a deadlock halfway", deadlock),
    "lost-answer": (f"The reply to an INSERT is lost, {TIMES} times", lost_answer),
    "hung-connect": (
        "A connect hangs; 6 other requests could use open connections",
        hung_connect,
    ),
    "exhausted": (
        f"All connections are in use; 3 more requests, after {PATIENCE:g} s"
        f" (`TIMEOUT`: {TIMEOUT:g})",
        exhausted,
    ),
    "session": (
        f"A request changes {len(STATEMENTS)} things in its session; in the next"
        " request",
        session,
    ),
    "fork": (
        f"2 workers, forked after the app was used; {TIMES} transfers in one of them",
        fork,
    ),
    "status": ("3 connections are in use; a command asks for their number", status),
}
HEAD = ("what happens", "`PooledDB` in Flask's `g`", "`flask_mysqlpool`")


@dataclass(frozen=True)
class Line:
    name: str
    what: str
    obvious: Outcome
    ours: Outcome

    def __str__(self) -> str:
        return row(self.what, self.obvious.text, self.ours.text)


def row(*cells: str) -> str:
    widths = max(len(what) for what, _ in PITFALLS.values()), 36, 36
    padded = [cell.ljust(n) for cell, n in zip(cells, widths, strict=True)]
    return f"| {' | '.join(padded)} |"


def measure(names: list[str], begin: bool = False) -> Iterator[Line]:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        # Two processes that share a connection break its TLS, if it has any.
        local = stack.enter_context(LocalServer(options=["--skip-ssl"]))
        world = stack.enter_context(closing(World(local, folder, begin)))
        for name in names:
            what, happen = PITFALLS[name]
            yield Line(name, what, happen(world, OBVIOUS), happen(world, OURS))


def about() -> dict[str, str]:
    names = ("Flask", "PyMySQL", "DBUtils", "flask-pymysqlpool")
    return {
        "MariaDB": LocalServer().version,
        "Python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("scripts/pitfalls", description=__doc__)
    add = parser.add_argument
    names = f"one or more of: {', '.join(PITFALLS)}"
    add("--only", nargs="+", choices=PITFALLS, metavar="NAME", help=names)
    explicit = "let PooledDB begin transactions explicitly, as its manual asks for"
    add("--begin", action="store_true", help=explicit)
    add("--json", type=Path, metavar="FILE", help="write it there, too")
    return parser


def main() -> int:
    arguments = parser().parse_args()
    logging.disable(logging.CRITICAL)
    print(" · ".join(f"{name} {number}" for name, number in about().items()), "\n")
    for name in (OBVIOUS, OURS):
        print(inspect.getsource(WIRINGS[name]))
    print(row(*HEAD), row("---", "---", "---"), sep="\n", flush=True)
    lines = []
    for line in measure(arguments.only or list(PITFALLS), arguments.begin):
        print(line, flush=True)
        lines.append(line)
    if arguments.json:
        content = {"about": about(), "lines": [asdict(line) for line in lines]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    return int(any(line.ours.faults for line in lines))


if __name__ == "__main__":
    sys.exit(main())
