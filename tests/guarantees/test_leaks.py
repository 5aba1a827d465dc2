"""Connections that do not come back: reported, and never lost to the pool."""

from __future__ import annotations

import gc
import inspect
import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from weakref import ref

import pytest
from conftest import MakeApp, MakePool, extension, until
from pymysql.cursors import Cursor

from flask_mysqlpool import Pool, PooledConnection, PoolTimeout, get_db

pytestmark = pytest.mark.one_engine


def connection_id(connection: PooledConnection) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        [[number]] = cursor.fetchall()
        return int(number)


def taken_here() -> str:
    """The line of the caller, as a stack shows it."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    caller = frame.f_back
    return f'test_leaks.py", line {caller.f_lineno}, in {caller.f_code.co_name}'


@pytest.mark.parametrize("way", ["get_db", "connection", "transaction"])
def test_a_holder_is_logged_once_with_the_line_that_took_it(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    app = make_app(LEAK_THRESHOLD=0.02)
    db = extension(app)
    lines: list[str] = []

    @app.get("/", endpoint="shop.slow")
    def view() -> str:
        with ExitStack() as stack:
            if way == "get_db":
                lines.append(taken_here())
                get_db()
            elif way == "connection":
                lines.append(taken_here())
                stack.enter_context(db.connection())
            else:
                lines.append(taken_here())
                stack.enter_context(db.transaction())
            until(lambda: caplog.messages)
            # Two more rounds of maintenance say nothing more.
            pool = db.pool()
            pool.maintain()
            pool.maintain()
        return "done"

    app.test_client().get("/")

    [message] = caplog.messages
    assert message.startswith("shop: a connection has been in use for 0.")
    assert f"taken for 'shop.slow' by thread {threading.current_thread().name!r}" in (
        message
    )
    [line] = lines
    file, number, name = line.split(", ")
    after = f"{file}, line {int(number.removeprefix('line ')) + 1}, {name}"
    assert after in message
    assert "flask_mysqlpool/extension/" not in message


def test_nothing_is_noted_and_nothing_logged_by_default(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    with pool.connection() as connection:
        assert connection.stack == ()
        pool.maintain()

    assert caplog.messages == []


@pytest.fixture
def careless(make_pool: MakePool) -> Iterator[Pool]:
    """A pool whose users drop what they take."""
    yield make_pool(MAX_SIZE=3, LEAK_THRESHOLD=60)


@pytest.mark.filterwarnings("ignore:.*was never returned:ResourceWarning")
def test_a_dropped_handle_is_logged_and_its_session_is_not_used_again(
    careless: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    connection = careless.connection(endpoint="jobs.careless")
    number = connection_id(connection)
    del connection
    gc.collect()
    until(lambda: careless.stats().size == 0)

    [message] = caplog.messages
    assert "dropped without being returned; taken for 'jobs.careless'" in message
    assert "test_leaks.py" in message and "connection = careless.connection" in message
    with careless.connection() as connection:
        assert connection_id(connection) != number


@pytest.mark.filterwarnings("ignore:.*was never returned:ResourceWarning")
def test_a_thousand_dropped_handles_leave_the_pool_all_its_places(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    pool = make_pool(MAX_SIZE=5)
    seen = set()

    def work(count: int) -> None:
        for _ in range(count):
            seen.add(connection_id(pool.connection(timeout=10)))

    threads = [threading.Thread(target=work, args=(250,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(seen) == 1000
    until(lambda: pool.stats().in_use == 0)
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(pool.connection())
        assert pool.stats().in_use == 5


def test_a_thread_that_waits_for_itself_is_told_so(make_pool: MakePool) -> None:
    pool = make_pool(MAX_SIZE=2)
    with pool.connection(), pool.connection():
        with pytest.raises(PoolTimeout) as info:
            pool.connection(timeout=0.01)

    assert "this thread itself holds 2, so it waits for itself" in str(info.value)


def test_a_thread_that_waits_for_others_too_is_told_how_many_are_its_own(
    make_pool: MakePool,
) -> None:
    pool = make_pool(MAX_SIZE=2)
    others: list[Any] = []
    thread = threading.Thread(target=lambda: others.append(pool.connection()))
    thread.start()
    thread.join()
    with pool.connection():
        with pytest.raises(PoolTimeout) as info:
            pool.connection(timeout=0.01)
    others.pop().close()

    assert str(info.value).endswith("; this thread itself holds 1")


@pytest.mark.parametrize("records", [False, True])
def test_a_class_of_cursors_that_a_view_defines_goes_with_it(
    make_pool: MakePool, records: bool
) -> None:
    pool = make_pool(SLOW_QUERY=10.0 * records)

    def view() -> ref[type[Cursor]]:
        class Own(Cursor):
            pass

        with pool.connection() as connection:
            made = [type(connection.cursor(Own)) for _ in range(2)]
            assert made[0] is made[1]
            assert issubclass(made[0], Own)
        return ref(Own)

    seen = [view() for _ in range(3)]
    gc.collect()

    assert [reference() for reference in seen] == [None] * 3
