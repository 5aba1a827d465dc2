"""Whose the files of the status folder are, and what a fault at any of them costs."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from conftest import until
from flask import Flask
from records import complete, identity_of
from workers import AS_ROOT, published, raised, started

import flask_mysqlpool.cli.commands
import flask_mysqlpool.workers.agent
import flask_mysqlpool.workers.fleet
import flask_mysqlpool.workers.host_limit
from flask_mysqlpool import MySQLPool, PoolConfig, PoolError
from flask_mysqlpool.pool.stats import BOUNDS
from flask_mysqlpool.testing.fake_driver import FakePool
from flask_mysqlpool.workers.agent import WorkerAgent
from flask_mysqlpool.workers.fleet import Fleet
from flask_mysqlpool.workers.host_limit import HostLimit
from flask_mysqlpool.workers.records import Unusable
from flask_mysqlpool.workers.status import COUNTED
from flask_mysqlpool.workers.status_dir import MARK, StatusDir
from flask_mysqlpool.workers.status_file import try_out


@pytest.fixture
def folder(tmp_path: Path) -> StatusDir:
    return StatusDir(tmp_path / "status")


# Whose folder it is

#: What each way to use a folder does to what is in it.
USES: dict[str, Callable[[StatusDir], object]] = {
    "read": StatusDir.read,
    "counts": StatusDir.read_with_exited,
    "orders": lambda folder: folder.desired("shop/default"),
    "order": lambda folder: folder.update_desired("shop/default", raised),
    "publish": lambda folder: published(folder, n=1),
    "limit": lambda folder: HostLimit(folder, "budget-0", 1).take(),
    "try": try_out,
}

#: Files of others, some with names that ours have, too.
FOREIGN = {
    "config.py.new": "settings",
    "email.worker": "a worker",
    "orders": "3 apples",
    "past": "times",
    "a" * 16 + ".worker": "hexadecimal",
    "b" * 16 + ".new": "hexadecimal as well",
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_with_other_things_is_refused_and_left_as_it_is(
    folder: StatusDir, name: str, use: str
) -> None:
    os.mkdir(folder.path, 0o700)
    path = Path(folder.path, name)
    path.write_text(FOREIGN[name])
    os.utime(path, (0, 0))

    with pytest.raises((Unusable, PoolError), match=f"holds other things.*{name}"):
        USES[use](folder)

    assert os.listdir(folder.path) == [name]
    assert path.read_text() == FOREIGN[name]


@pytest.mark.parametrize("use", USES)
def test_in_a_folder_of_ours_the_files_of_others_stay(
    folder: StatusDir, use: str
) -> None:
    folder.update_desired("shop/default", raised)
    own = {"orders", "past"}
    for name in FOREIGN.keys() - own:
        Path(folder.path, name).write_text(FOREIGN[name])
        os.utime(Path(folder.path, name), (0, 0))

    USES[use](folder)
    problems = folder.read().problems

    kept = {n: Path(folder.path, n).read_text() for n in FOREIGN.keys() - own}
    assert kept == {n: FOREIGN[n] for n in kept}
    assert sorted(p.partition(":")[0] for p in problems) == sorted(kept)


@pytest.mark.parametrize("use", USES)
def test_what_an_older_version_left_is_no_obstacle(folder: StatusDir, use: str) -> None:
    published(folder, n=1)._close()
    folder.update_desired("shop/default", raised)
    Path(folder.path, "orders.lock").touch()
    Path(folder.path, "past.lock").touch()
    Path(folder.path, "budget-shop%2Fdefault").write_bytes(b"10")
    Path(folder.path, ".gitkeep").touch()
    os.unlink(Path(folder.path, MARK))

    USES[use](folder)

    assert folder.read().problems == []


def test_a_folder_that_was_empty_gets_a_mark(folder: StatusDir) -> None:
    os.mkdir(folder.path, 0o700)
    os.mkdir(os.path.join(folder.path, "lost+found"))

    folder.update_desired("shop/default", raised)
    Path(folder.path, "notes.txt").touch()

    assert MARK in os.listdir(folder.path)
    assert folder.desired("shop/default").generation == 1


@AS_ROOT
@pytest.mark.parametrize("use", ["order", "counts", "limit"])
def test_root_takes_no_file_of_others_that_has_one_of_our_names(
    folder: StatusDir, tmp_path: Path, use: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"mysqlpool1 root's own")
    for path in (tmp_path, Path(folder.path)):
        path.mkdir(exist_ok=True)
    os.chmod(folder.path, 0o700)
    os.chown(folder.path, 65534, 65534)
    for name in ("orders", "past", "budget-0"):
        os.link(secret, Path(folder.path, name))

    with pytest.raises((Unusable, PoolError), match="belongs to root"):
        USES[use](folder)

    assert secret.stat().st_uid == 0
    assert secret.read_bytes() == b"mysqlpool1 root's own"


def test_a_limit_is_not_split_by_a_folder_that_was_moved(
    folder: StatusDir, tmp_path: Path
) -> None:
    script = (
        "import sys; held = []\n"
        "from flask_mysqlpool.workers.status_dir import StatusDir\n"
        "from flask_mysqlpool.workers.host_limit import HostLimit\n"
        "budget = HostLimit(StatusDir(sys.argv[1]), 'budget-0', 1)\n"
        "for line in sys.stdin:\n"
        "    held.append(budget.take()); print(held[-1] is not None, flush=True)\n"
    )
    with started(script, folder.path) as holder, started(script, folder.path) as other:
        assert holder.ask("take") == "True"
        os.rename(folder.path, tmp_path / "moved")

        assert holder.ask("take") == "False"  # and holds it in the new file, too
        assert other.ask("take") == "False"


# Two sites, two versions, two containers


def make(folder: StatusDir, server: str, **settings: Any) -> FakePool:
    pool = FakePool(HOST=server, TIMEOUT=5, **settings)
    WorkerAgent(pool, folder, app="shop")
    return pool


def fleet_of(folder: StatusDir, pool: FakePool) -> Fleet:
    return Fleet(folder, "shop", {"default": pool.config})


def test_two_sites_of_one_checkout_are_two(folder: StatusDir) -> None:
    ours, theirs = (
        make(folder, server, MAX_HOST_CONNECTIONS=1) for server in ("a", "b")
    )
    fleet, other = (fleet_of(folder, pool) for pool in (ours, theirs))
    with ours.connection(), theirs.connection():
        until(lambda: len(folder.read().records) == 2)

    [worker] = fleet.workers()["default"]
    [problem] = fleet.problems
    assert worker.server == "a:3306"
    assert problem.startswith("1 worker has default on b:3306 as ")
    assert fleet.hidden == []
    fleet.pause("default")
    assert not other.desired("default").paused
    until(lambda: ours.stats().paused)
    theirs.connection().close()
    theirs.close()

    _, counts = fleet.counts()
    assert counts["default"]["checkouts"] == 1
    assert other.counts()[1]["default"]["checkouts"] == 2
    ours.close()


def test_another_version_is_counted_as_far_as_it_counts_alike(
    folder: StatusDir,
) -> None:
    config = PoolConfig.from_mapping({})
    about = complete(size=1, site="1", discarded_by_reason={"idle": 1})
    times = [1] * (len(BOUNDS) + 2)
    ours = published(folder, **about | {"checkouts": 2, "wait": times})
    theirs = published(folder, **about | {"checkouts": 3, "wait": [1, 2], "use": None})
    fleet = Fleet(folder, "shop", {"default": config})

    for dead in (False, True):
        if dead:
            theirs._close()
        by_bind, counts = fleet.counts()
        assert len(by_bind["default"]) == 2 - dead
        assert counts["default"]["checkouts"] == 5
        assert counts["default"]["wait"] == times
        assert counts["default"]["discarded_by_reason"] == {"idle": 2}
    assert "use" in COUNTED and "use" not in counts["default"]
    ours.remove()


CONTAINED = """
import os, sys, time
from flask_mysqlpool.workers.status_dir import StatusDir
from flask_mysqlpool.workers.agent import WorkerAgent
from flask_mysqlpool.testing.fake_driver import FakePool
pool = FakePool()
WorkerAgent(pool, StatusDir(sys.argv[1]), app="shop")
for line in sys.stdin:
    print(eval(line), flush=True)
"""


IN_A_CONTAINER = "unshare", "--pid", "--fork", "--mount-proc", "--kill-child"


def may_unshare() -> bool:
    return shutil.which("unshare") is not None and not subprocess.call(
        [*IN_A_CONTAINER, "true"], stderr=subprocess.DEVNULL
    )


def contained(folder: StatusDir) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*IN_A_CONTAINER, sys.executable, "-c", CONTAINED, folder.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(not may_unshare(), reason="no namespaces of process ids")
def test_workers_of_two_containers_are_told_apart(folder: StatusDir) -> None:
    fleet = Fleet(folder, "shop", {"default": PoolConfig.from_mapping({})})
    processes = [contained(folder) for _ in range(2)]
    for checkouts, process in enumerate(processes, 1):
        assert process.stdin is not None
        for _ in range(checkouts):
            process.stdin.write("pool.connection().close()\n")
        process.stdin.flush()

    def done() -> bool:
        found = fleet.workers().get("default", [])
        return sorted(w.checkouts for w in found) == [1, 2]

    until(done)
    workers = fleet.workers()["default"]
    ids, names, sites = (
        {getattr(w, k) for w in workers} for k in ("id", "name", "site")
    )
    for process in processes:
        process.communicate(timeout=10)

    assert [worker.pid for worker in workers] == [1, 1]
    assert len(ids) == len(names) == len(sites) == 2
    assert all(worker.name == f"1-{worker.id[:4]}" for worker in workers)


# Nobody reads everybody


def test_a_worker_with_a_host_limit_reads_no_other_worker(
    folder: StatusDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(folder: StatusDir) -> None:
        raise AssertionError

    monkeypatch.setattr(StatusDir, "read", read)
    rich, poor = (make(folder, "a", MAX_HOST_CONNECTIONS=2) for _ in range(2))
    held = [rich.connection() for _ in range(2)]
    for handle in held:
        handle.close()

    with poor.connection(timeout=5):  # although it has to be given up
        assert rich.stats().size <= 1
    for pool in (rich, poor):
        pool.close()


def test_what_is_no_need_in_the_file_of_a_limit_is_in_nobodys_way(
    folder: StatusDir,
) -> None:
    pool = make(folder, "a", MAX_HOST_CONNECTIONS=1)
    pool.connection().close()
    [path] = Path(folder.path).glob("budget-*")
    with path.open("r+b") as file:
        file.seek((1 << 20) + 24)
        file.write(b"\xff" * 24 + b"7" * 24 + b"torn")
    other = make(folder, "a", MAX_HOST_CONNECTIONS=1)

    other.connection(timeout=5).close()
    for each in (pool, other):
        each.close()


# Faults

#: Every call by which the package comes to a file of the folder.
CALLS = (
    *("open", "stat", "fstat", "listdir", "mkdir", "rename", "unlink", "utime"),
    *("pread", "pwrite", "posix_fallocate", "flock", "lockf"),
)
ERRORS = errno.ENOSPC, errno.EIO, errno.EACCES, errno.ENOLCK


class Shim:
    """Lets a call fail that concerns the folder: once, or until it is mended."""

    def __init__(self, path: str, patch: pytest.MonkeyPatch) -> None:
        self._path = path
        self._call, self._number, self._left = "", 0, 0
        self.fired, self._lock = 0, threading.Lock()
        for name in CALLS:
            module = fcntl if name in ("flock", "lockf") else os
            patch.setattr(module, name, self._shim(name, getattr(module, name)))

    def _shim(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._call == name and self._concerns(*args, **kwargs):
                with self._lock:
                    fails, self._left = self._left > 0, max(self._left - 1, 0)
                    self.fired += fails
                if fails:
                    raise OSError(self._number, os.strerror(self._number))
            return function(*args, **kwargs)

        return call

    def _concerns(self, *args: Any, **kwargs: Any) -> bool:
        for place in (args[0], kwargs.get("dir_fd"), kwargs.get("src_dir_fd")):
            with suppress(OSError):
                if isinstance(place, int):
                    place = os.readlink(f"/proc/self/fd/{place}")
                if str(place).startswith(self._path):
                    return True
        return False

    def break_(self, call: str, number: int, times: int) -> None:
        self.fired = 0
        self._call, self._number, self._left = call, number, times

    def mend(self) -> None:
        with self._lock:
            self._left = 0


@pytest.fixture
def shim(folder: StatusDir, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shim]:
    with monkeypatch.context() as patch:
        yield Shim(folder.path, patch)


class Visitors:
    """A thread for each pool that uses it all the time, and what went wrong."""

    def __init__(self, pools: list[FakePool]) -> None:
        self.failures = list[Exception]()
        #: Whether it may fail, because of a fault.
        self.excused = False
        self._done = dict.fromkeys(pools, 0)
        self._end = False
        self._threads = ThreadPoolExecutor(len(pools))
        self._visits = [self._threads.submit(self._visit, pool) for pool in pools]

    def _visit(self, pool: FakePool) -> None:
        while not self._end:
            excused = self.excused
            try:
                pool.connection().close()
            except Exception as error:
                if not (excused or self.excused):
                    self.failures.append(error)
            else:
                self._done[pool] += 1

    def go_on(self) -> None:
        before = self._done.copy()
        until(lambda: all(self._done[p] > before[p] + 1 for p in before), 20)

    def leave(self) -> None:
        self._end = True
        for visit in self._visits:
            visit.result()
        self._threads.shutdown()


def provoke(folder: StatusDir, call: str) -> None:
    """Have done again what else is done once."""
    with suppress(OSError):
        if call == "mkdir":
            # At once: while it were emptied, a worker could make another file in it.
            os.rename(folder.path, f"{mkdtemp(dir=Path(folder.path).parent)}/gone")
        elif call in ("rename", "posix_fallocate"):
            for path in Path(folder.path).glob("*.worker"):
                path.unlink()
        elif call == "unlink":
            published(folder, n=1)._close()
    for use in StatusDir.read, StatusDir.read_with_exited:
        with suppress(OSError):
            use(folder)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("limit", [None, 2])
def test_no_request_fails_for_what_fails_at_the_folder(
    folder: StatusDir,
    shim: Shim,
    monkeypatch: pytest.MonkeyPatch,
    limit: int | None,
    call: str,
) -> None:
    for name, seconds in ("BUSY", 0.002), ("QUIET", 0.005):
        monkeypatch.setattr(flask_mysqlpool.workers.agent, name, seconds)
    monkeypatch.setattr(flask_mysqlpool.workers.host_limit, "AFTER_DEATH", 0.0)
    settings: dict[str, Any] = {
        "MAX_HOST_CONNECTIONS": limit,
        "MAX_USAGE": 1,
        "MAX_SIZE": 2,
    }
    pools = [make(folder, "a", **settings) for _ in range(2)]
    resting = make(folder, "b", **settings | {"MAX_USAGE": 0})
    resting.connection().close()
    visitors = Visitors(pools)
    for number, times in itertools.product(ERRORS, (1, 20)):
        visitors.go_on()
        visitors.excused = limit is not None
        shim.break_(call, number, times)
        provoke(folder, call)
        if (limit, call) != (None, "lockf"):
            until(lambda: shim.fired > 0, 5)
        if limit is None:
            visitors.go_on()
        shim.mend()
        visitors.go_on()
        visitors.excused = False
    visitors.go_on()
    visitors.leave()
    assert visitors.failures == []

    # No slot is lost.
    held = [pools[0].connection(timeout=5) for _ in range(2)]
    until(lambda: os.path.exists(folder.path), 5)  # another folder is made
    until(lambda: len(folder.read().records) == 3, 5)
    for handle in held:
        handle.close()
    for pool in (*pools, resting):
        pool.close()


@pytest.mark.parametrize("call", CALLS)
def test_what_a_command_cannot_do_at_the_folder_it_says_in_lines(
    folder: StatusDir, shim: Shim, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    app = Flask("shop")
    app.config["MYSQLPOOL_URL"] = "mysql://u@127.0.0.1:1/shop"
    app.config["MYSQLPOOL_STATUS_DIR"] = folder.path
    MySQLPool(app)
    monkeypatch.setattr(flask_mysqlpool.cli.commands, "SOON", 0.0)
    monkeypatch.setattr(flask_mysqlpool.workers.fleet, "ROUND", 0.0)
    worker = published(folder, **complete(**identity_of(app)))
    folder.update_desired("blog/default", raised)

    def run(command: str) -> str:
        result = app.test_cli_runner().invoke(args=["mysqlpool", command])
        assert isinstance(result.exception, (SystemExit, type(None)))
        return result.output

    for command, number in itertools.product(COMMANDS, ERRORS):
        shim.break_(call, number, 10**9)
        output = run(command)
        shim.mend()
        if shim.fired and call not in HARMLESS:
            assert os.strerror(number) in output, (command, output)
        assert worker.id in {record["id"] for record in folder.read().records}
    assert "workers" in run("check") and os.strerror(number) not in run("check")


COMMANDS = "status", "pause", "resume", "reset", "check"

#: What can fail without anything being left undone that was asked for.
HARMLESS = {"unlink", "posix_fallocate"}
