"""``get_db()`` where it is used: under real WSGI servers, and under load.

Each server is started as a program of its own, with :mod:`sites` as its app. Clients
ask it for values of their own, and what comes back is counted; a table of that ends
the test session.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import local_server, until
from websites import (
    BOARD,
    PATIENCE,
    REQUESTS,
    THREADS,
    WORKERS,
    Kind,
    Load,
    Site,
    gunicorn,
)

from flask_mysqlpool.testing import LocalServer


@pytest.fixture(scope="module")
def database() -> Iterator[LocalServer]:
    with local_server("mariadb") as server:
        yield server


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


def granian() -> Kind:
    # It names the port that it was given, so 0 would not tell which it listens on. The
    # process holds a port that is free, bound in a way that lets granian listen on it.
    start = (
        "import socket, sys; from granian.cli import entrypoint;"
        " held = socket.socket();"
        " held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1);"
        " held.bind(('127.0.0.1', 0));"
        " sys.argv += ['--port', str(held.getsockname()[1])]; entrypoint()"
    )
    return Kind(
        "granian",
        (
            *("-c", start, "--interface=wsgi", f"--workers={WORKERS}"),
            *(f"--blocking-threads={THREADS}", "sites:app"),
        ),
        ("granian",),
        refuses_first=True,
    )


def mod_wsgi() -> Kind:
    # It names the port that it was given; the socket holds one for it. As root, Apache
    # serves nothing; in a namespace of its own, root is another user of the same files.
    start = (
        "import os, socket, sys; held = socket.socket();"
        " held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1);"
        " held.bind(('127.0.0.1', 0)); held.set_inheritable(True);"
        " sys.argv += ['--port', str(held.getsockname()[1])];"
        " user = ['unshare', '--user', '--map-user=1000', '--map-group=1000'];"
        " command = [*(() if os.getuid() else user), *sys.argv[1:]];"
        " os.execvp(command[0], command)"
    )
    return Kind(
        "mod_wsgi",
        (
            *("-c", start, str(Path(sys.executable).with_name("mod_wsgi-express"))),
            *("start-server", "--application-type=module", "sites"),
            *("--callable-object=app", "--host=127.0.0.1", "--log-to-terminal"),
            *(f"--processes={WORKERS}", f"--threads={THREADS}", "--locale=C.UTF-8"),
            "--server-root=apache",
        ),
        ("mod_wsgi",),
        refuses_first=True,
    )


KINDS = [
    *(
        gunicorn(worker, *needs, preload=preload)
        for worker, *needs in [("sync",), ("gthread",), ("gevent", "gevent")]
        for preload in (False, True)
    ),
    uwsgi(),
    # Aborts from Python 3.13 on: uWSGI 2.0.30 does not take a lock of Python's that the
    # hooks for forks release.
    *([uwsgi("--py-call-osafterfork")] if sys.version_info < (3, 13) else []),
    uwsgi(lazy=True),
    waitress(),
    granian(),
    mod_wsgi(),
]
RECYCLING = [
    gunicorn("gthread --max-requests=40", preload=preload) for preload in (False, True)
]
RELOADED = [gunicorn("gthread"), gunicorn("sync")]


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


StartSite = Callable[[Kind], Site]


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


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only on Linux")
def test_no_thread_runs_where_uwsgi_forks(start: StartSite) -> None:
    site = start(uwsgi())

    load = Load(site.port())
    load.run(lambda: bool(load.workers))

    assert len(list(Path(f"/proc/{site.pid}/task").iterdir())) == 1


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
