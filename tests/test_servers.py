"""``get_db()`` where it is used: under real WSGI servers, and under load.

Each server is started as a program of its own, with :mod:`sites` as its app. Clients
ask it for values of their own, and what comes back is counted; a table of that ends
the test session.
"""

from __future__ import annotations

import http.client
import importlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from conftest import local_server, until

from flask_mysqlpool import PoolConfig
from flask_mysqlpool.testing import LocalServer
from flask_mysqlpool.workers.fleet import Fleet
from flask_mysqlpool.workers.status_dir import StatusDir

TESTS = Path(__file__).parent

WORKERS, THREADS = 2, 4
CLIENTS = 8
#: Requests of one load, at the least.
REQUESTS = 400
#: Requests that a client sends over one connection, where the server allows that.
KEPT_ALIVE = 25
#: One request of so many is slow, by so many seconds.
SLOW, PAUSE = 5, 0.01
#: Seconds until what should happen counts as not happening.
PATIENCE = 20.0
#: Seconds that a client waits for an answer.
ANSWER = 10.0
#: Seconds that the database may take to notice that a client is gone.
LEAK = 5.0


@dataclass(frozen=True)
class Kind:
    """A server, and the arguments for Python that start it on a port of its choice."""

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    #: Whether the app is loaded in the process that is started, and forked from there.
    preloaded: bool = False
    workers: int = WORKERS
    stop: signal.Signals = signal.SIGTERM


def gunicorn(
    options: str, *needs: str, preload: bool = False, workers: int = WORKERS
) -> Kind:
    if preload:
        options += " --preload"
    return Kind(
        f"gunicorn {options}",
        (
            *("-m", "gunicorn", "sites:app", "--bind=127.0.0.1:0"),
            *(f"--workers={workers}", f"--threads={THREADS}", "--graceful-timeout=8"),
            *f"--worker-class={options}".split(),
        ),
        ("gunicorn", *needs),
        preloaded=preload,
        workers=workers,
    )


def uwsgi(options: str = "", *, lazy: bool = False) -> Kind:
    if lazy:
        options = f"--lazy-apps {options}"
    return Kind(
        f"uwsgi {options}".strip(),
        (
            *("-c", "import pyuwsgi; pyuwsgi.run()", "--http-socket=127.0.0.1:0"),
            *("--module=sites:app", "--need-app", "--master", "--die-on-term"),
            *(f"--processes={WORKERS}", f"--threads={THREADS}", "--enable-threads"),
            *("--disable-logging", *options.split()),
        ),
        ("pyuwsgi",),
        preloaded=not lazy,
    )


def waitress() -> Kind:
    # SIGINT may have been ignored when the tests were started, and is inherited so.
    start = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        " from waitress.runner import run; run()"
    )
    return Kind(
        "waitress",
        ("-c", start, "--listen=127.0.0.1:0", f"--threads={THREADS}", "sites:app"),
        ("waitress",),
        workers=1,
        stop=signal.SIGINT,
    )


KINDS = [
    *(
        gunicorn(worker, *needs, preload=preload)
        for worker, *needs in [("sync",), ("gthread",), ("gevent", "gevent")]
        for preload in (False, True)
    ),
    # From Python 3.13 on a worker that was forked with the app in it crashes at times
    # when it starts a thread (signal 11). With the hooks for forks it always aborts:
    # uWSGI 2.0.30 does not take a lock of Python's that they release.
    *([uwsgi(), uwsgi("--py-call-osafterfork")] if sys.version_info < (3, 13) else []),
    uwsgi(lazy=True),
    waitress(),
]
RECYCLING = [
    gunicorn("gthread --max-requests=40", preload=preload) for preload in (False, True)
]
RELOADED = [gunicorn("gthread"), gunicorn("sync")]
BOARD = gunicorn("gthread", workers=3)


@dataclass
class Row:
    """A row of the table."""

    server: str
    requests: int
    failed: int
    wrong: int
    shared: int
    leaked: int


class Table:
    """What all tests of this module have counted; a plugin of pytest's."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.rows:
            return
        width = max(len(row.server) for row in self.rows)
        line = f"{{:{width}}}  {{:>8}}  {{:>6}}  {{:>10}}  {{:>10}}  {{:>6}}".format
        terminalreporter.section("get_db() under WSGI servers")
        terminalreporter.write_line(
            "Shared ids: connections seen in two processes. Leaked: those that the"
            " database still has after the stop."
        )
        titles = "server", "requests", "failed", "wrong rows", "shared ids", "leaked"
        terminalreporter.write_line(line(*titles))
        for row in self.rows:
            terminalreporter.write_line(line(*astuple(row)))


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Table:
    table = Table()
    request.config.pluginmanager.register(table)
    return table


@contextmanager
def good_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """One under gunicorn that does nothing odd, with a database that only it uses."""
    pytest.importorskip("gunicorn")
    monkeypatch.setenv("SITE_IS_GOOD", "yes")
    with local_server("mariadb") as database:
        site = Site(BOARD, database, tmp_path)
        try:
            yield site
        finally:
            site.end()


@dataclass
class Load:
    """Clients with a thread each, and what they were answered."""

    port: int
    requests: int = 0
    failures: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    #: The processes that answered.
    workers: set[int] = field(default_factory=set)
    #: The processes in which each connection to the database was seen.
    users: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    #: Those that were opened by the import of the app, by process.
    origins: dict[int, set[int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def running(self) -> Iterator[None]:
        """With all clients at work; at the end, let them finish what they began."""
        enough = threading.Event()
        clients = [
            threading.Thread(target=self._client, args=(name, enough), daemon=True)
            for name in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        try:
            yield
        finally:
            enough.set()
            for client in clients:
                client.join(PATIENCE)
        assert not any(client.is_alive() for client in clients), "unanswered"

    def run(self, enough: Callable[[], bool]) -> None:
        """At least ``REQUESTS`` more, and until this holds."""
        goal = self.requests + REQUESTS
        with self.running():
            until(lambda: self.requests >= goal and enough(), PATIENCE)

    def _client(self, name: int, enough: threading.Event) -> None:
        http_client = http.client.HTTPConnection("127.0.0.1", self.port, ANSWER)
        for number in itertools.count(1):
            # Of all lengths, so that what is out of step is out of order as well.
            value = f"{name}-{number}-" + "x" * (number * 7 % 300)
            pause = 0 if number % SLOW else PAUSE
            query = urlencode({"value": value, "pause": pause})
            try:
                self._note(value, *_get(http_client, f"/echo?{query}"))
            except (OSError, http.client.HTTPException) as error:
                http_client.close()
                with self._lock:
                    self.requests += 1
                    self.failures.append(repr(error))
            if number % KEPT_ALIVE == 0:
                http_client.close()
            if enough.is_set():
                break
        http_client.close()

    def _note(self, asked: str, status: int, body: bytes) -> None:
        with self._lock:
            self.requests += 1
            if status != 200:
                self.failures.append(f"{status}: {body[:100]!r}")
                return
            answer = json.loads(body)
            if answer["value"] != asked:
                self.wrong.append(f"{answer['value']!r} instead of {asked!r}")
            self.workers.add(answer["pid"])
            self.users[answer["id"]].add(answer["pid"])
            origin = answer["origin"]
            self.origins[origin["pid"]] = set(origin["ids"])
            for number in origin["ids"]:
                self.users[number].add(origin["pid"])

    @property
    def shared(self) -> dict[int, set[int]]:
        """Connections that were seen in more than one process."""
        return {id: pids for id, pids in self.users.items() if len(pids) > 1}


def _get(client: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    """Ask; and again, as clients do, if a server closed the connection it had kept."""
    kept = client.sock is not None
    try:
        client.request("GET", path)
        response = client.getresponse()
    except ConnectionError:  # and http.client.RemoteDisconnected, which is one
        if not kept:
            raise
        client.close()
        client.request("GET", path)
        response = client.getresponse()
    return response.status, response.read()


class Site:
    """A server that was started, and the database that it uses."""

    def __init__(self, kind: Kind, database: LocalServer, folder: Path) -> None:
        self.kind, self.database = kind, database
        self.board = StatusDir(folder / "board")
        self._config = PoolConfig.from_mapping({"URL": database.url})
        self._log = folder / "log"
        arguments = list(kind.arguments)
        if "gunicorn" in kind.needs and _has_control_socket():
            arguments.append("--no-control-socket")
        path = [str(TESTS), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "SITE_URL": database.url,
            "SITE_BOARD": self.board.path,
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def fleet(self) -> Fleet:
        return Fleet(self.board, "sites", {"default": self._config})

    def port(self) -> int:
        """The port that it says it listens on; connections wait for its workers."""
        pattern = re.compile(r"127\.0\.0\.1:([1-9][0-9]*)")
        until(lambda: pattern.search(self.log) or self._process.poll(), PATIENCE)
        found = pattern.search(self.log)
        assert found, self.log
        return int(found[1])

    def connections(self) -> set[int]:
        """The site's connections, as the database sees them."""
        with self.database.connect() as root, root.cursor() as cursor:
            cursor.execute(
                "SELECT ID FROM information_schema.PROCESSLIST WHERE USER = %s",
                (self.database.user,),
            )
            return {number for (number,) in cursor.fetchall()}

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self) -> int:
        """Ask it to end, wait until it has; how many connections are left."""
        self.signal(self.kind.stop)
        self._process.wait(PATIENCE)
        with suppress(AssertionError):
            until(lambda: not self.connections(), LEAK)
        return len(self.connections())

    def end(self) -> None:
        """End what is left of it: its session is its own."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def _has_control_socket() -> bool:
    """Whether gunicorn is of those that leave a socket in the home folder."""
    return hasattr(importlib.import_module("gunicorn.config"), "ControlSocketDisable")


StartSite = Callable[[Kind], Site]


@pytest.fixture(scope="module")
def database() -> Iterator[LocalServer]:
    with local_server("mariadb") as server:
        yield server


@pytest.fixture
def start(database: LocalServer, tmp_path: Path) -> Iterator[StartSite]:
    sites: list[Site] = []

    def start(kind: Kind) -> Site:
        for name in kind.needs:
            if find_spec(name) is None:
                pytest.skip(f"{kind.name}: {name} is not installed")
        sites.append(Site(kind, database, tmp_path))
        return sites[-1]

    yield start
    for site in sites:
        site.end()
        # The end of the log is shown if the test has failed.
        print(site.log[-5000:])


def named(kinds: list[Kind]) -> list[Any]:
    return [pytest.param(kind, id=kind.name.replace(" ", "_")) for kind in kinds]


@contextmanager
def counted(site: Site, load: Load, table: Table, and_then: str = "") -> Iterator[None]:
    """With the site under load; then stop it: whatever was counted must be zero."""
    still_open: set[int] = set()
    try:
        yield
        still_open = site.connections()
    finally:
        row = Row(
            f"{site.kind.name} {and_then}".strip(),
            load.requests,
            len(load.failures),
            len(load.wrong),
            len(load.shared),
            site.stop(),
        )
        table.rows.append(row)
    assert load.failures == []
    assert load.wrong == []
    assert load.shared == {}
    assert row.leaked == 0
    # What was opened before the fork is the parent's, and no child may have ended it.
    alone = load.workers == {site.pid}
    assert (site.pid in load.origins) == (site.kind.preloaded or alone)
    assert load.origins.get(site.pid, set()) <= still_open


@pytest.mark.parametrize("kind", named(KINDS))
def test_every_request_gets_its_own_row_on_a_connection_of_its_own_process(
    start: StartSite, table: Table, kind: Kind
) -> None:
    site = start(kind)
    load = Load(site.port())

    with counted(site, load, table):
        load.run(lambda: len(load.workers) == kind.workers)


@pytest.mark.parametrize("kind", named(RECYCLING))
def test_workers_that_are_replaced_after_some_requests_take_nothing_along(
    start: StartSite, table: Table, kind: Kind
) -> None:
    site = start(kind)
    load = Load(site.port())

    with counted(site, load, table):
        load.run(lambda: len(load.workers) > 2 * kind.workers)


@pytest.mark.parametrize("kind", named(RELOADED))
def test_a_graceful_reload_under_load_fails_no_request(
    start: StartSite, table: Table, kind: Kind
) -> None:
    site = start(kind)
    load = Load(site.port())

    with counted(site, load, table, "+ SIGHUP"), load.running():
        until(lambda: len(load.workers) == kind.workers, PATIENCE)
        until(lambda: load.requests >= REQUESTS / 2, PATIENCE)
        site.signal(signal.SIGHUP)
        until(lambda: len(load.workers) == 2 * kind.workers, PATIENCE)
        goal = load.requests + REQUESTS / 2
        until(lambda: load.requests >= goal, PATIENCE)


def test_the_board_shows_each_worker_until_it_is_killed_and_then_its_replacement(
    start: StartSite, table: Table
) -> None:
    site = start(BOARD)
    load = Load(site.port())

    def sheets() -> dict[int, dict[str, Any]]:
        reading = site.board.read()
        assert reading.problems == []
        pids = [sheet["pid"] for sheet in reading.records]
        assert len(set(pids)) == len(pids)
        return dict(zip(pids, reading.records, strict=True))

    def agrees_with_the_database() -> bool:
        size = sum(int(sheet["size"]) for sheet in sheets().values())
        return size == len(site.connections()) > 0

    with counted(site, load, table, "+ SIGKILL"):
        with load.running():
            until(lambda: len(load.workers) == BOARD.workers, PATIENCE)
            until(lambda: sheets().keys() == load.workers, PATIENCE)
        until(agrees_with_the_database)

        first = sheets()
        victim = min(first)
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in sheets())
        with load.running():
            until(lambda: len(load.workers) == BOARD.workers + 1, PATIENCE)
            until(lambda: sheets().keys() == load.workers - {victim}, PATIENCE)
        until(agrees_with_the_database)

        assert first[victim]["id"] not in {sheet["id"] for sheet in sheets().values()}
