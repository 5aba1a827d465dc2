"""Many worker processes on one host, seen and steered as one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from records import POOLS, complete, config_of, worker
from websites import BOARD, PATIENCE, Load, Site, good_site

from flask_mysqlpool.testing import LocalServer
from flask_mysqlpool.workers.agent import QUIET
from flask_mysqlpool.workers.fleet import ROUND, Fleet
from flask_mysqlpool.workers.overview import (
    holders,
    last_failure,
    last_timeout,
    recent,
    spread,
    totals,
)
from flask_mysqlpool.workers.status import WorkerStatus
from flask_mysqlpool.workers.status_dir import StatusDir
from flask_mysqlpool.workers.status_file import StatusFile

BUDGET, MAX_SIZE, WORKERS = 12, 10, 8

WORKER = """
import sys, threading
from flask import Flask
from flask_mysqlpool import MySQLPool

url, folder, max_size, budget = sys.argv[1:]
app = Flask("shop")
app.config.update(
    MYSQLPOOL_URL=url,
    MYSQLPOOL_STATUS_DIR=folder,
    MYSQLPOOL_MAX_SIZE=int(max_size),
    MYSQLPOOL_MAX_HOST_CONNECTIONS=int(budget),
    MYSQLPOOL_TIMEOUT=30,
)
db = MySQLPool(app)
busy = threading.Event()

def work():
    while busy.wait():
        with app.app_context(), db.connection() as connection:
            with connection.cursor() as cursor:
                cursor.execute("SELECT SLEEP(0.005)")

for _ in range(12):
    threading.Thread(target=work, daemon=True).start()
for line in sys.stdin:
    busy.set() if line == "work\\n" else busy.clear()
"""


class Process:
    """A worker that works, or does not, as it is told."""

    def __init__(self, server: LocalServer, folder: Path) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", WORKER),
                *(server.url, str(folder), str(MAX_SIZE), str(BUDGET)),
            ],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def tell(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        with self._process:  # waits, and closes the pipes
            self._process.kill()

    def end(self) -> str:
        """What it has complained about."""
        return self._process.communicate(timeout=30)[1]


def open_ports(server: LocalServer) -> set[int]:
    """The ports from which clients of this host have connections to the server."""
    ports = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if state == "01" and int(remote.split(":")[1], 16) == server.port:
            ports.add(int(local.split(":")[1], 16))
    return ports


class Watcher:
    """The most connections that were open at once, looked at all the time.

    A busy server lists a connection for some time after its client has closed it. So
    those count that the server lists and that are still open afterwards: all of them
    were open at the moment of the list.
    """

    def __init__(self, server: LocalServer) -> None:
        self.most = 0
        self._server = server
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        clients = "SELECT HOST FROM information_schema.PROCESSLIST WHERE USER = %s"
        with self._server.connect() as root, root.cursor() as cursor:
            while not self._enough.is_set():
                cursor.execute(clients, (self._server.user,))
                listed = {int(host.split(":")[1]) for (host,) in cursor.fetchall()}
                self.most = max(self.most, len(listed & open_ports(self._server)))

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._enough.set()
        self._thread.join()


@contextmanager
def workers(server: LocalServer, folder: Path, count: int) -> Iterator[list[Process]]:
    processes = [Process(server, folder) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


@pytest.mark.one_engine
def test_a_budget_holds_over_all_processes_and_goes_to_who_needs_it(
    server: LocalServer, tmp_path: Path
) -> None:
    folder = tmp_path / "status"
    fleet = Fleet(StatusDir(folder), "shop", {"default": config_of(server)})

    def sizes() -> dict[int, int]:
        found = fleet.workers().get("default", [])
        return {worker.pid: worker.size for worker in found}

    with workers(server, folder, WORKERS) as processes, Watcher(server) as watcher:
        first, second, third, *others = processes
        for process in processes:
            process.tell("work")
        # Nobody starves, and nothing is left over.
        until(lambda: len(sizes()) == WORKERS and min(sizes().values()) > 0)
        until(lambda: sum(sizes().values()) == BUDGET)

        for process in processes[1:]:
            process.tell("rest")
        until(lambda: sizes()[first.pid] == MAX_SIZE, 2)

        first.kill()
        second.tell("work")
        third.tell("work")
        until(lambda: sizes()[second.pid] == sizes()[third.pid] == BUDGET // 2, 3)
        for process in (second, third):
            process.tell("rest")
        complaints = [process.end() for process in processes[1:]]

    assert watcher.most == BUDGET
    assert "".join(complaints) == ""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with good_site(tmp_path, monkeypatch) as site:
        yield site


def begin(site: Site, load: Load) -> Fleet:
    """Wait until all workers are at work."""
    until(lambda: len(load.workers) == BOARD.workers, PATIENCE)
    fleet = site.fleet()
    until(lambda: len(fleet.workers().get("default", [])) == BOARD.workers, PATIENCE)
    return fleet


def go_on(load: Load) -> None:
    goal = load.requests + 200
    until(lambda: load.requests >= goal, PATIENCE)


def test_a_reset_under_load_fails_no_request_and_leaves_no_old_connection(
    site: Site,
) -> None:
    load = Load(site.port())
    with load.running():
        fleet = begin(site, load)
        go_on(load)
        before = site.connections()
        *_, still_to_follow = fleet.wait("default", fleet.reset("default"), 10)
        after = site.connections()
        go_on(load)

    assert still_to_follow == []
    assert before and not before & after
    assert load.failures == load.wrong == []


def test_the_server_is_restarted_under_load_without_one_failed_request(
    site: Site,
) -> None:
    load = Load(site.port())
    with load.running():
        fleet = begin(site, load)
        *_, still_to_follow = fleet.wait("default", fleet.pause("default"), 10)
        assert still_to_follow == []
        assert site.connections() == set()
        site.database.stop()
        site.database.start()
        waiting = totals(fleet.workers()["default"])["waiting"]
        fleet.resume("default")
        go_on(load)

    assert waiting > 0
    assert load.failures == load.wrong == []


def test_totals_of_nobody_are_zero() -> None:
    assert set(totals([]).values()) == {0}


@pytest.mark.parametrize(
    ("ago", "is_recent"), [(None, False), (1e9, False), (61.0, False), (0.0, True)]
)
def test_a_timeout_is_recent_for_a_minute(ago: float | None, is_recent: bool) -> None:
    moment = None if ago is None else time.time() - ago
    found = last_timeout([worker(), worker(last_timeout=moment, pid=7, name="7-a")])

    assert (found is None) is (not moment)
    assert (recent(found) is not None) is is_recent
    if is_recent:
        assert found == {"pid": 7, "worker": "7-a", "ago": 0.0}


def test_of_failed_connects_the_last_is_shown_and_recent_for_a_minute() -> None:
    now = time.time()
    failed = {"last_connect_failure": now - 5, "connect_error": "2003: down"}
    older = {"last_connect_failure": now - 50, "connect_error": "1045: wrong"}
    long_ago = {"last_connect_failure": now - 70, "connect_error": "1045: wrong"}

    assert recent(last_failure([worker(), worker(**long_ago)])) is None
    assert last_failure([worker()]) is None
    found = last_failure(
        [worker(**older), worker(**failed, pid=7, name="7-a"), worker()]
    )
    assert found is not None and recent(found) is found
    assert 5 <= found.pop("ago") < 50
    assert found == {"pid": 7, "worker": "7-a", "error": "2003: down"}


def test_who_waits_for_all_workers_waits_longer_than_a_round() -> None:
    assert ROUND > QUIET


@pytest.mark.parametrize(
    "about",
    [
        {"pid": "many"},
        {"app": None},
        {"server": None},
        {"user": 5},
        {"paused": None},
        {"last_timeout": "never"},
        {"connections": {}},
        {"connections": [{"thread_id": 1}]},
        {"thread_ids": [[]]},
        {"outdated": None},
        {"generation": 0.5},
        {"checkouts": 10**400},
        {"checkouts": -1},
        {"in_use": -1},
    ],
)
def test_a_worker_of_another_version_is_named_and_the_others_are_read(
    tmp_path: Path, about: dict[str, Any]
) -> None:
    folder = StatusDir(tmp_path / "status")
    files = [StatusFile(folder) for _ in range(2)]
    files[0].write(complete(pid=4))
    files[1].write(complete() | about)
    fleet = Fleet(folder, "shop", POOLS)

    [found] = fleet.workers()["default"]

    assert found.pid == 4
    assert fleet.problems == fleet.hidden
    assert fleet.problems == [
        f"{files[1].id}.worker: a worker of another version of this package"
    ]


def damage(path: Path) -> None:
    path.write_bytes(b"damage")


def make_dir(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


@pytest.mark.parametrize("name", ["orders.lock", "past", "past.lock", "budget-shop"])
def test_a_shared_file_that_cannot_be_used_is_a_problem(
    tmp_path: Path, name: str
) -> None:
    folder = StatusDir(tmp_path / "status")
    StatusFile(folder).write(complete())
    assert folder.read().problems == []
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(folder.path, name))
    os.mkdir(os.path.join(folder.path, name))

    assert folder.read().problems == [f"{name}: not a file"]


def test_what_was_before_the_clock_was_set_back_is_of_no_certain_age() -> None:
    now = time.time()
    ahead, known = worker(last_timeout=now + 3600), worker(last_timeout=now - 5)

    assert last_timeout([ahead]) is None
    found = last_timeout([ahead, known])
    assert found is not None and 5 <= found["ago"] < 60


def test_sums_are_as_old_as_the_oldest_worker_that_may_have_changed() -> None:
    def heard(moment: float, size: int, waiting: int = 0) -> WorkerStatus:
        return worker(heard=moment, size=size, waiting=waiting)

    assert spread([]) == spread([heard(1.0, 0), heard(50.0, 1)]) == 0
    assert spread([heard(1.0, 0), heard(50.0, 1), heard(52.04, 0, waiting=1)]) == 2.0


@pytest.mark.parametrize("harm", [damage, make_dir, make_link])
def test_where_orders_cannot_be_read_a_pause_is_what_workers_say(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    folder = StatusDir(tmp_path / "status")
    file = StatusFile(folder)
    file.write(complete(paused=True))
    fleet = Fleet(folder, "shop", POOLS)
    fleet.resume("default")
    workers = fleet.workers()["default"]
    assert not fleet.is_paused("default", workers)

    harm(tmp_path / "status" / "orders")
    workers = fleet.workers()["default"]

    assert fleet.is_paused("default", workers)
    assert not fleet.is_paused("default", [])
    assert fleet.problems == [fleet.desired_problem]
    assert fleet.desired_problem.startswith("orders: ")


def test_who_is_paused_and_has_somebody_waiting_has_not_resumed(tmp_path: Path) -> None:
    has_resumed = Fleet(StatusDir(tmp_path / "status"), "shop", POOLS).resume("default")

    assert has_resumed(worker(paused=False, size=1, waiting=1))
    assert has_resumed(worker(paused=True))
    assert not has_resumed(worker(paused=True, waiting=1))
    assert not has_resumed(worker(paused=True, size=1))


def test_the_oldest_holder_comes_first_over_all_workers() -> None:
    def held(number: int, seconds: float) -> dict[str, Any]:
        return {"thread_id": number, "state": "in_use", "for": seconds}

    now = {"updated": float("inf")}
    fleet = [
        worker(**now, connections=[held(1, 0.5), {**held(2, 9.0), "state": "idle"}]),
        worker(**now, pid=2, connections=[held(3, 0.7), held(4, 0.1)]),
    ]

    assert [one["thread_id"] for one in holders(fleet)] == [3, 1, 4]


def test_a_reset_is_newer_than_what_workers_have_seen_if_orders_were_lost(
    tmp_path: Path,
) -> None:
    fleet = Fleet(StatusDir(tmp_path / "status"), "shop", POOLS)
    for _ in range(2):
        fleet.reset("default")
    assert fleet.desired("default").generation == 2

    read: Callable[[], dict[str, list[WorkerStatus]]] = lambda: {  # noqa: E731
        "default": [worker(generation=2)]
    }
    (tmp_path / "status" / "orders").unlink()
    fleet.workers = read  # type: ignore[method-assign]
    fleet.reset("default")

    assert fleet.desired("default").generation == 3
