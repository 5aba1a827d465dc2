"""A pool in touch with its site: what it publishes, obeys and shares. No server."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

import pytest
from conftest import until
from pymysql.err import OperationalError
from workers import Worker, started

import flask_mysqlpool.pool.maintenance
import flask_mysqlpool.workers.agent
import flask_mysqlpool.workers.status
from flask_mysqlpool import PoolError, PoolTimeout
from flask_mysqlpool.testing.fake_driver import FakePool
from flask_mysqlpool.workers.agent import PATIENCE, WorkerAgent
from flask_mysqlpool.workers.desired_state import DesiredState
from flask_mysqlpool.workers.status_dir import StatusDir
from flask_mysqlpool.workers.status_file import StatusFile

#: What the pools of these tests are kept under.
KEY = "shop/default @localhost:3306"

SHARER = """
import sys, threading, time
from flask_mysqlpool.workers.status_dir import StatusDir
from flask_mysqlpool.workers.agent import WorkerAgent
from flask_mysqlpool.testing.fake_driver import FakePool
pool = FakePool(MAX_SIZE=4, MAX_HOST_CONNECTIONS=int(sys.argv[2]), TIMEOUT=60)
WorkerAgent(pool, StatusDir(sys.argv[1]), app="shop")
held = []
def timed(timeout=60):
    started = time.monotonic()
    pool.connection(timeout=timeout).close()
    return time.monotonic() - started
def keep_busy(threads, seconds):
    "Every thread holds one, and wants it back as soon as it has returned it."
    def work():
        while True:
            with pool.connection():
                time.sleep(seconds)
    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()
for line in sys.stdin:
    print(eval(line), flush=True)
"""


class MakePool(Protocol):
    def __call__(
        self, on_connect: Callable[[], None] | None = None, **settings: Any
    ) -> FakePool: ...


@pytest.fixture
def folder(tmp_path: Path) -> StatusDir:
    return StatusDir(tmp_path / "status")


@pytest.fixture
def make(folder: StatusDir) -> Iterator[MakePool]:
    pools = []

    def make(on_connect: Callable[[], None] | None = None, **settings: Any) -> FakePool:
        pool = FakePool(on_connect, **{"TIMEOUT": 30, **settings})
        WorkerAgent(pool, folder, app="shop")
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16, thread_name_prefix="visitor") as executor:
        yield executor


@pytest.fixture
def start(folder: StatusDir) -> Iterator[Callable[[int], Worker]]:
    with ExitStack() as stack:
        yield lambda size: stack.enter_context(started(SHARER, folder.path, size))


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When something was published."""
    moments: list[float] = []
    write = StatusFile.write

    def count(file: StatusFile, content: Any) -> None:
        moments.append(time.monotonic())
        write(file, content)

    monkeypatch.setattr(StatusFile, "write", count)
    return moments


def shown(folder: StatusDir, **expected: Any) -> bool:
    """Whether the only status file says so."""
    with suppress(FileNotFoundError):
        return any(
            expected.items() <= record.items() for record in folder.read().records
        )
    return False


def pause(folder: StatusDir, paused: bool = True) -> None:
    folder.update_desired(KEY, lambda desired: desired._replace(paused=paused))


def reset(folder: StatusDir) -> DesiredState:
    return folder.update_desired(KEY, lambda o: o._replace(generation=o.generation + 1))


# What is published


def test_checkouts_and_returns_are_published(make: MakePool, folder: StatusDir) -> None:
    pool = make(MAX_SIZE=3)
    first, second = pool.connection(), pool.connection()
    until(lambda: shown(folder, size=2, in_use=2, idle=0, checkouts=2, opened=2))

    first.close()
    until(lambda: shown(folder, size=2, in_use=1, idle=1))
    second.close()
    until(lambda: shown(folder, size=2, in_use=0, idle=2, waiting=0))

    assert shown(folder, app="shop", bind="default", pid=os.getpid(), paused=False)


def test_timeouts_and_those_who_wait_are_published(
    make: MakePool, folder: StatusDir, threads: ThreadPoolExecutor
) -> None:
    pool = make(MAX_SIZE=1)
    held = pool.connection()
    with pytest.raises(PoolTimeout):
        pool.connection(timeout=0)
    until(lambda: shown(folder, timeouts=1, waiting=0))

    waiter = threads.submit(pool.connection)
    until(lambda: shown(folder, waiting=1))
    held.close()
    waiter.result().close()

    until(lambda: shown(folder, waiting=0, idle=1))


def test_every_connection_says_who_holds_it(
    make: MakePool, folder: StatusDir, threads: ThreadPoolExecutor
) -> None:
    pool = make(MAX_SIZE=2)
    pool.connection().close()
    handle = threads.submit(pool.connection).result()
    until(lambda: shown(folder, in_use=1, checkouts=2))
    [record] = folder.read().records
    [connection] = record["connections"]
    assert connection["endpoint"].startswith("visitor")
    assert (connection["state"], connection["thread_id"]) == ("in_use", 1)

    handle.close()

    until(lambda: shown(folder, idle=1))
    [record] = folder.read().records
    assert [c["endpoint"] for c in record["connections"]] == [None]


def test_a_closed_pool_is_no_longer_in_the_folder(
    make: MakePool, folder: StatusDir
) -> None:
    pool = make()
    pool.connection().close()
    until(lambda: shown(folder, idle=1))

    pool.close()

    assert folder.read().records == []


def test_nothing_is_written_while_nothing_changes(
    make: MakePool, folder: StatusDir, writes: list[float]
) -> None:
    pool = make()
    pool.connection().close()
    until(lambda: shown(folder, idle=1, checkouts=1))
    before = len(writes)

    time.sleep(1)  # for what should not happen

    assert before
    assert len(writes) == before


def file_of(folder: StatusDir) -> Path:
    [path] = Path(folder.path).glob("*.worker")
    return path


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: os.truncate(path, 10)])
def test_a_status_file_that_somebody_harmed_is_written_again_although_nothing_changes(
    make: MakePool, folder: StatusDir, harm: Callable[[Path], None]
) -> None:
    make().connection().close()
    until(lambda: shown(folder, idle=1, checkouts=1))

    harm(file_of(folder))

    until(lambda: shown(folder, idle=1, checkouts=1), 2)


def test_what_could_not_be_published_is_published_as_soon_as_it_can_be(
    make: MakePool, folder: StatusDir
) -> None:
    make_file(folder)
    make().connection().close()

    os.unlink(folder.path)

    until(lambda: shown(folder, idle=1, checkouts=1), 2)


def test_a_worker_at_rest_is_heard_of(
    make: MakePool, folder: StatusDir, writes: list[float]
) -> None:
    make().connection().close()
    until(lambda: shown(folder, idle=1, checkouts=1))
    before = len(writes)
    os.utime(file_of(folder), (0, 0))

    until(lambda: file_of(folder).stat().st_mtime > 0, 2)

    assert len(writes) == before


def test_of_many_connections_some_are_described_and_all_are_named(
    make: MakePool, folder: StatusDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flask_mysqlpool.workers.status, "LISTED", 2)
    pool = make(MAX_SIZE=3)
    held = [pool.connection() for _ in range(3)]
    until(lambda: shown(folder, in_use=3))

    [record] = folder.read().records
    assert [c["thread_id"] for c in record["connections"]] == [1, 2]
    assert record["thread_ids"] == [1, 2, 3]
    for handle in held:
        handle.close()


def test_a_connect_that_failed_is_published_with_what_was_said(
    make: MakePool, folder: StatusDir
) -> None:
    faults: list[Exception] = [
        OperationalError(1045, "Access denied"),
        RuntimeError("the token is t0ps3cret"),
    ]

    def connect() -> None:
        if faults:
            raise faults.pop(0)

    pool = make(connect)
    before = time.time()
    with pytest.raises(OperationalError):
        pool.connection()
    until(lambda: shown(folder, connect_error="1045: Access denied", waiting=0))
    [record] = folder.read().records
    assert before <= record["last_connect_failure"] <= time.time()

    with pytest.raises(RuntimeError):
        pool.connection()
    until(lambda: shown(folder, connect_error="RuntimeError"))
    pool.connection().close()
    until(lambda: shown(folder, idle=1, connect_error="RuntimeError"))


# Silence


def test_who_is_silent_neither_publishes_nor_obeys_and_keeps_the_budget(
    make: MakePool, folder: StatusDir
) -> None:
    pause(folder)
    silent, other = (FakePool(MAX_HOST_CONNECTIONS=1, TIMEOUT=5) for _ in range(2))
    for pool in (silent, other):
        WorkerAgent(pool, folder, app="shop", read_only=True)

    with silent.connection():
        with pytest.raises(PoolTimeout):
            other.connection(timeout=0.1)
        assert folder.read().records == []
    other.close()
    silent.close()


def rate(moments: list[float], started: float) -> float:
    return len(moments) / (time.monotonic() - started)


def test_however_much_changes_it_is_published_ten_times_a_second(
    make: MakePool, threads: ThreadPoolExecutor, writes: list[float]
) -> None:
    pool = make(MAX_SIZE=4)
    started = time.monotonic()

    def hammer() -> None:
        while time.monotonic() < started + 1.5:
            pool.connection().close()

    for done in [threads.submit(hammer) for _ in range(4)]:
        done.result()

    assert 2 < rate(writes, started) < 14


def test_need_is_published_no_more_often(make: MakePool, writes: list[float]) -> None:
    rich, poor = (make(MAX_HOST_CONNECTIONS=1) for _ in range(2))
    with rich.connection():
        started = time.monotonic()
        with pytest.raises(PoolTimeout):
            poor.connection(timeout=1.5)

    assert 2 < rate(writes, started) < 24  # two pools


def test_a_pool_without_connections_needs_no_rounds(
    make: MakePool, folder: StatusDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = []
    maintain = WorkerAgent.maintain

    def count(agent: WorkerAgent) -> float | None:
        rounds.append(agent)
        return maintain(agent)

    monkeypatch.setattr(WorkerAgent, "maintain", count)
    pool = make()
    pool.connection().close()
    until(lambda: shown(folder, idle=1))
    pool.reset()
    until(lambda: shown(folder, size=0))
    time.sleep(0.5)  # for the last
    before = [r for r in rounds if r is pool.coordinator]
    time.sleep(0.8)  # for what should not happen
    after = [r for r in rounds if r is pool.coordinator]

    assert before
    assert len(after) == len(before)
    pool.connection().close()
    until(lambda: shown(folder, idle=1, checkouts=2))


# Pausing


def test_a_pause_closes_what_is_idle_now_and_what_is_in_use_when_it_comes_back(
    make: MakePool, folder: StatusDir
) -> None:
    pool = make(MAX_SIZE=2)
    busy = pool.connection()
    pool.connection().close()
    pause(folder)

    until(lambda: shown(folder, paused=True, idle=0, in_use=1, outdated=1))
    assert pool.open_now == 1
    busy.close()

    assert pool.open_now == 0
    until(lambda: shown(folder, paused=True, size=0))


def test_who_waits_while_paused_is_served_in_order_afterwards(
    make: MakePool, folder: StatusDir, threads: ThreadPoolExecutor
) -> None:
    pool = make(MAX_SIZE=1)
    pool.connection().close()
    pause(folder)
    until(lambda: shown(folder, paused=True, size=0))
    served: list[int] = []

    def visit(number: int) -> None:
        with pool.connection():
            served.append(number)

    visits = []
    for number in range(5):
        visits.append(threads.submit(visit, number))
        until(lambda: pool.stats().waiting == number + 1)  # noqa: B023
    until(lambda: shown(folder, waiting=5))
    assert (served, pool.connects) == ([], 1)

    pause(folder, False)

    for done in visits:
        done.result(timeout=10)
    assert served == [0, 1, 2, 3, 4]
    assert pool.connects == 2


def test_a_pause_does_not_lengthen_a_deadline(
    make: MakePool, folder: StatusDir
) -> None:
    pool = make()
    pool.connection().close()
    pause(folder)
    until(lambda: pool.stats().paused)
    started = time.monotonic()

    with pytest.raises(PoolTimeout, match="paused"):
        pool.connection(timeout=0.3)

    assert 0.3 <= time.monotonic() - started < 5


def test_a_new_process_learns_of_a_pause_before_it_connects(
    make: MakePool, folder: StatusDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flask_mysqlpool.pool.maintenance, "_OF_PROCESS", {})
    monkeypatch.setattr(flask_mysqlpool.workers.agent, "PATIENCE", 10)
    pause(folder)
    pool = make()

    with pytest.raises(PoolTimeout, match="paused"):
        pool.connection(timeout=0.5)
    assert pool.connects == 0

    pause(folder, False)
    pool.connection(timeout=10).close()


def test_a_pool_at_rest_learns_of_a_pause_before_it_connects(
    make: MakePool, folder: StatusDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    desired, before_connect = StatusDir.desired, WorkerAgent.before_connect
    begun = threading.Event()

    def take_time(folder: StatusDir, pool: str) -> DesiredState:
        begun.set()
        time.sleep(0.1)
        return desired(folder, pool)

    def come_later(agent: WorkerAgent) -> None:
        begun.wait(0.2)
        before_connect(agent)

    monkeypatch.setattr(flask_mysqlpool.workers.agent, "PATIENCE", 10)
    pool = make()
    pool.connection().close()
    pool.reset()
    until(lambda: shown(folder, size=0))
    monkeypatch.setattr(StatusDir, "desired", take_time)
    monkeypatch.setattr(WorkerAgent, "before_connect", come_later)
    pause(folder)

    with suppress(PoolTimeout):
        pool.connection(timeout=1).close()

    assert pool.connects == 1


def test_a_connect_that_a_pause_overtakes_serves_nobody(
    make: MakePool, folder: StatusDir, threads: ThreadPoolExecutor
) -> None:
    connecting, proceed = threading.Event(), threading.Event()

    def connect() -> None:
        connecting.set()
        assert proceed.wait(30)

    pool = make(connect)
    waiter = threads.submit(pool.connection)
    assert connecting.wait(10)
    pause(folder)
    until(lambda: shown(folder, paused=True, connecting=1, outdated=1))
    proceed.set()

    until(lambda: shown(folder, paused=True, size=0, waiting=1))
    assert pool.open_now == 0
    pause(folder, False)
    waiter.result(timeout=10).close()
    assert pool.connects == 2


# Resets


def test_a_reset_replaces_idle_ones_without_any_request(
    make: MakePool, folder: StatusDir
) -> None:
    pool = make(MAX_SIZE=3)
    held = [pool.connection() for _ in range(3)]
    for handle in held[1:]:
        handle.close()
    until(lambda: shown(folder, idle=2))
    ordered = reset(folder)

    until(lambda: shown(folder, generation=ordered.generation, idle=0, outdated=1))
    assert pool.open_now == 1
    held[0].close()

    until(lambda: shown(folder, size=0, outdated=0))
    assert pool.open_now == 0


def test_a_reset_is_carried_out_within_a_second(
    make: MakePool, folder: StatusDir
) -> None:
    pool = make()
    pool.connection().close()
    until(lambda: shown(folder, idle=1))
    waits = []
    for _ in range(3):
        generation = reset(folder).generation
        started = time.monotonic()
        until(lambda: shown(folder, generation=generation, outdated=0))  # noqa: B023
        waits.append(time.monotonic() - started)
        pool.connection().close()
        until(lambda: shown(folder, idle=1))

    assert min(waits) < 1


def test_what_was_reset_before_its_first_connection_is_not_reset_again(
    make: MakePool, folder: StatusDir
) -> None:
    generation = reset(folder).generation
    pool = make()

    with pool.connection():
        until(lambda: shown(folder, generation=generation, in_use=1))

    assert pool.stats().discarded == 0
    assert pool.connects == 1


def test_orders_that_somebody_removed_reset_nothing_and_end_a_pause(
    make: MakePool, folder: StatusDir, threads: ThreadPoolExecutor
) -> None:
    reset(folder)
    pool = make()
    pool.connection().close()
    generation = reset(folder).generation
    until(lambda: shown(folder, generation=generation, size=0))
    held = pool.connection()
    pause(folder)
    until(lambda: shown(folder, paused=True, outdated=1))
    held.close()
    waiter = threads.submit(pool.connection)
    until(lambda: shown(folder, waiting=1))

    Path(folder.path, "orders").unlink()
    waiter.result(timeout=10).close()
    until(lambda: shown(folder, generation=generation, paused=False, idle=1))
    time.sleep(1)  # for what should not happen
    assert shown(folder, generation=generation, idle=1)

    folder.update_desired(KEY, lambda desired: DesiredState(generation + 1))
    until(lambda: shown(folder, generation=generation + 1, size=0), 2)


# Folders that cannot be used


def make_file(folder: StatusDir) -> None:
    Path(folder.path).touch()


def make_link(folder: StatusDir) -> None:
    Path(folder.path).symlink_to(".")


def make_readonly(folder: StatusDir) -> None:
    os.mkdir(folder.path, 0o500)


def make_damaged(folder: StatusDir) -> None:
    pause(folder)
    Path(folder.path, "orders").write_bytes(b"damage")


@pytest.mark.parametrize(
    "spoil",
    [
        make_file,
        make_link,
        make_damaged,
        pytest.param(
            make_readonly,
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write"),
        ),
    ],
)
def test_requests_go_on_where_the_status_folder_cannot_be_used(
    make: MakePool,
    folder: StatusDir,
    spoil: Callable[[StatusDir], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoil(folder)
    pool = make(MAX_SIZE=2)

    for _ in range(200):
        with pool.connection(timeout=5), pool.connection(timeout=5):
            pass

    assert pool.connects == 2
    assert not caplog.records


def test_requests_go_on_where_the_folder_does_not_answer(
    make: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, release = threading.Event(), threading.Event()

    def write(file: StatusFile, content: Any) -> None:
        stuck.set()
        release.wait(60)

    monkeypatch.setattr(StatusFile, "write", write)
    pool = make(MAX_SIZE=2)
    try:
        with pool.connection(timeout=12 * PATIENCE):
            assert stuck.is_set()
            pool.connection(timeout=12 * PATIENCE).close()
    finally:
        release.set()


def test_a_pool_is_closed_where_the_folder_does_not_answer(
    make: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, release = threading.Event(), threading.Event()
    utime = os.utime

    def hang(file: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            stuck.set()
            release.wait(60)
        utime(file)

    pool = make()
    pool.connection().close()
    monkeypatch.setattr(os, "utime", hang)
    try:
        assert stuck.wait(10)
        began = time.monotonic()
        pool.close()
        assert time.monotonic() - began < 30
    finally:
        release.set()


# Limits


def test_a_limit_closes_what_is_too_much_and_lets_wait_who_wants_more(
    make: MakePool, threads: ThreadPoolExecutor
) -> None:
    pool = make(MAX_SIZE=4)
    held = [pool.connection() for _ in range(4)]
    held.pop().close()
    pool.limit(2)
    assert (pool.open_now, pool.stats().in_use) == (3, 3)

    held.pop(0).close()  # the first has held longest
    assert pool.open_now == 2
    waiter = threads.submit(pool.connection)
    until(lambda: pool.stats().waiting == 1)
    assert not waiter.done()

    pool.limit(99)
    waiter.result(timeout=10).close()
    assert pool.open_most == 4
    for handle in held:
        handle.close()


# One budget for all processes


def test_who_is_in_touch_with_nobody_cannot_keep_a_budget() -> None:
    pool = FakePool(MAX_HOST_CONNECTIONS=5)

    with pytest.raises(PoolError, match="MAX_HOST_CONNECTIONS"):
        pool.connection(timeout=5)
    assert pool.connects == 0


def test_pools_of_one_name_share_their_budget(make: MakePool) -> None:
    first, second = (make(MAX_HOST_CONNECTIONS=1) for _ in range(2))

    with first.connection(), pytest.raises(PoolTimeout):
        second.connection(timeout=0.2)
    second.connection().close()

    assert (first.open_now, second.open_now) == (0, 1)


def test_a_connect_that_failed_holds_no_slot_however_long_its_error_is_kept(
    make: MakePool,
) -> None:
    faults = [ConnectionRefusedError("down")]

    def connect() -> None:
        if faults:
            raise faults.pop()

    pool = make(connect, MAX_HOST_CONNECTIONS=1)
    with pytest.raises(ConnectionRefusedError) as kept:
        pool.connection()

    pool.connection(timeout=2).close()
    assert kept.value.args == ("down",)


def test_who_needs_one_gets_what_another_process_holds_idle(
    start: Callable[[int], Worker],
) -> None:
    rich, poor = start(3), start(3)
    rich.ask("held.extend([pool.connection() for _ in range(3)])")
    rich.ask("[handle.close() for handle in held]")
    assert rich.ask("pool.stats().idle") == "3"

    waits = []
    for _ in range(3):
        waits.append(float(poor.ask("timed()")))
        rich, poor = poor, rich

    assert min(waits) < 1.5
    assert max(waits) < 10


def test_the_share_of_a_killed_process_is_free_at_once(
    start: Callable[[int], Worker],
) -> None:
    rich, poor = start(2), start(2)
    rich.ask("held.extend([pool.connection() for _ in range(2)])")
    poor.tell("timed()")

    rich.kill()

    assert float(poor.hear()) < 10


def test_of_more_processes_than_there_are_slots_each_gets_its_turn(
    start: Callable[[int], Worker],
) -> None:
    workers = [start(1) for _ in range(3)]
    for worker in workers:
        worker.ask("keep_busy(2, 0.01)")

    for worker in workers:
        worker.ask("timed()")


def test_who_needs_one_gets_it_from_who_has_two(
    make: MakePool, threads: ThreadPoolExecutor
) -> None:
    rich, equal, poor = (make(MAX_HOST_CONNECTIONS=4, MAX_SIZE=4) for _ in range(3))
    held = [pool.connection() for pool in (rich, equal) for _ in range(2)]
    waiter = threads.submit(poor.connection, timeout=5)

    until(lambda: rich._state.limit + equal._state.limit == 3, seconds=3)
    for handle in held:
        handle.close()

    waiter.result().close()


def test_a_pool_at_rest_whose_share_was_zero_gets_what_is_free_now(
    make: MakePool, folder: StatusDir
) -> None:
    pool = make(MAX_HOST_CONNECTIONS=1)
    pool.connection().close()
    pool.reset()
    until(lambda: shown(folder, size=0))
    time.sleep(0.5)  # for the last round
    pool.coordinator._limit = 0  # type: ignore[attr-defined]
    pool.limit(0)

    pool.connection(timeout=5).close()


def test_a_status_file_of_another_version_is_in_no_share_and_in_nobodys_way(
    make: MakePool, folder: StatusDir, threads: ThreadPoolExecutor
) -> None:
    StatusFile(folder).write(foreign := {"app": "shop", "bind": "default"})
    files = [StatusFile(folder) for _ in range(2)]
    files[0].write({**foreign, "updated": "yesterday", "waiting": 1})
    files[1].write({"colour": "blue"})
    rich, poor = (make(MAX_HOST_CONNECTIONS=1) for _ in range(2))
    rich.connection().close()

    threads.submit(poor.connection, timeout=10).result().close()
