"""What is given up in the middle of a statement is killed, and nothing else."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from conftest import MakePool, Sql, execute, until
from interrupts import Interrupt, interrupted_by
from liars import Liar, Talk, config, refusal
from pymysql.constants import CR
from pymysql.cursors import SSCursor
from pymysql.err import MySQLError, OperationalError

from flask_mysqlpool import ConnectionShared
from flask_mysqlpool.pool import Pool
from flask_mysqlpool.pool.driver import connector
from flask_mysqlpool.pool.driver.connector import _Abandoned
from flask_mysqlpool.testing import FaultProxy

#: A statement that lasts longer than any test, and how the server lists it.
LONG = "SELECT SLEEP(600)"
LISTED = (
    "SELECT ID FROM information_schema.PROCESSLIST"
    " WHERE INFO LIKE '%SLEEP(600)%' AND ID <> CONNECTION_ID()"
)


#: How many statements are given up at random. More by GIVE_UPS=10000.
GIVE_UPS = int(os.environ.get("GIVE_UPS", "200"))


@pytest.fixture
def running(sql: Sql) -> Iterator[Callable[[], set[int]]]:
    """The threads that execute a long statement; killed at the end."""

    def running() -> set[int]:
        listed = sql(LISTED)
        return {number for (number,) in listed}

    yield running
    for number in running():
        with suppress(MySQLError):  # it has just ended
            sql(f"KILL {number}")


def _until_it_ends(con: Any) -> None:
    with suppress(MySQLError):
        execute(con, LONG)


def read_timeout(make_pool: MakePool, sql: Sql) -> Pool:
    pool = make_pool(READ_TIMEOUT=0.5)
    with pool.connection() as con, pytest.raises(OperationalError):
        execute(con, LONG)
    return pool


def interrupt(make_pool: MakePool, sql: Sql) -> Pool:
    pool = make_pool()
    with pool.connection() as con, pytest.raises(Interrupt):
        with interrupted_by(Interrupt, 0.5):
            execute(con, LONG)
    return pool


def close_by_another_thread(make_pool: MakePool, sql: Sql) -> Pool:
    pool = make_pool()
    con = pool.connection()

    user = threading.Thread(target=_until_it_ends, args=(con,))
    user.start()
    until(lambda: sql(LISTED))
    with pytest.raises(ConnectionShared):
        con.close()
    user.join()
    return pool


def rows_left_unread(make_pool: MakePool, sql: Sql) -> Pool:
    pool = make_pool()
    statement = "SELECT REPEAT('x', 100000) UNION ALL SELECT SLEEP(600)"
    with pool.connection() as con:
        cursor = con.cursor(SSCursor)
        cursor.execute(statement)
        assert cursor.fetchone()
    return pool


def results_left_unread(make_pool: MakePool, sql: Sql) -> Pool:
    pool = make_pool(MAX_SIZE=2, CONNECT_ARGS={"client_flag": 1 << 16})
    with pool.connection() as con:
        con.cursor().execute("SELECT 1; SELECT SLEEP(600)")
    with pool.connection(timeout=3) as con:
        execute(con, "SELECT 1")
    return pool


@pytest.mark.parametrize(
    "give_up",
    [
        read_timeout,
        interrupt,
        close_by_another_thread,
        rows_left_unread,
        results_left_unread,
    ],
)
def test_what_is_given_up_is_killed(
    make_pool: MakePool,
    sql: Sql,
    running: Callable[[], set[int]],
    give_up: Callable[[MakePool, Sql], Pool],
) -> None:
    pool = give_up(make_pool, sql)

    until(lambda: pool.stats().killed == 1)
    until(lambda: not running())


def test_a_set_up_that_is_given_up_is_killed_by_the_next_connect(
    make_pool: MakePool, running: Callable[[], set[int]]
) -> None:
    pool = make_pool(INIT_COMMAND="DO SLEEP(600)", CONNECT_TIMEOUT=0.5, PIPELINING="on")
    given_up: set[int] = set()
    for _ in range(3):
        with pytest.raises(OperationalError):
            pool.connection()
        [number] = running()
        assert number not in given_up
        given_up.add(number)

    assert pool.stats().killed == 2
    assert pool.stats().connecting == 0  # none is made for this alone


def test_a_pool_that_is_exhausted_by_such_statements_kills_them(
    make_pool: MakePool, sql: Sql, running: Callable[[], set[int]]
) -> None:
    pool = make_pool(MAX_SIZE=3, READ_TIMEOUT=0.5, TIMEOUT=30)

    def give_up() -> None:
        with pool.connection() as con, pytest.raises(OperationalError):
            execute(con, LONG)

    threads = [threading.Thread(target=give_up) for _ in range(9)]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, len(sql(LISTED + " AND COMMAND <> 'Killed'")))
        threads[0].join(0.05)
    until(lambda: pool.stats().killed == 9)

    until(lambda: not running())
    # Those that are executed, and those whose successors are being opened.
    assert most <= 2 * 3


def test_the_connection_that_has_killed_is_like_a_new_one(
    make_pool: MakePool, sql: Sql
) -> None:
    state = "SELECT ROW_COUNT(), FOUND_ROWS(), LAST_INSERT_ID(), @@warning_count"
    with make_pool().connection() as con:
        new = execute(con, state)

    pool = read_timeout(make_pool, sql)
    until(lambda: pool.stats().killed == 1)
    until(lambda: pool.stats().idle == 1)

    with pool.connection() as con:
        assert execute(con, state) == new


def test_a_kill_is_logged_and_counted(
    make_pool: MakePool, sql: Sql, caplog: pytest.LogCaptureFixture
) -> None:
    pool = read_timeout(make_pool, sql)
    until(lambda: pool.stats().killed)
    until(lambda: "killed" in caplog.text)

    [line] = [r.getMessage() for r in caplog.records if "killed" in r.getMessage()]
    assert "its statement was given up (OperationalError)" in line
    assert pool.stats().killed == 1


def test_without_kill_abandoned_it_goes_on(
    make_pool: MakePool, running: Callable[[], set[int]]
) -> None:
    pool = make_pool(READ_TIMEOUT=0.1, KILL_ABANDONED=False)
    for _ in range(2):
        with pool.connection() as con, pytest.raises(OperationalError):
            execute(con, LONG)

    assert len(running()) == 2
    assert pool.stats().killed == 0


def test_a_statement_is_killed_after_a_commit_that_was_refused_too() -> None:
    def server(talk: Talk) -> None:
        talk.let_in()
        talk.serve(until=b"\3COMMIT")
        talk.say(refusal(1213))
        talk.serve(until=b"\3SELECT SLEEP")
        with suppress(OSError):
            talk.hear()

    with Liar(server) as liar:
        settings = config(
            liar.port, READ_TIMEOUT=0.3, MAX_SIZE=1, RESET_SESSION="transaction"
        )
        pool = Pool(settings)
        with pool.connection() as connection:
            with pytest.raises(OperationalError, match="1213"):
                connection.commit()
        with pool.connection() as connection:
            with pytest.raises(OperationalError, match="2013"):
                execute(connection, LONG)
            abandoned = pool._connector.abandoned
            assert len(abandoned._sessions) == 1
        pool.close()


def test_what_was_not_killed_for_want_of_an_answer_is_killed_later() -> None:
    def server(talk: Talk) -> None:
        talk.let_in()
        talk.serve(until=b"\3SHOW PROCESSLIST")
        with suppress(OSError):
            talk.hear()

    with Liar(server) as liar:
        made = connector.Connector(config(liar.port, CONNECT_TIMEOUT=0.2))
        long_ago = time.monotonic()
        one = _Abandoned(("127.0.0.1", liar.port), 42, 4242, "", long_ago, True)
        made.abandoned._sessions.append(one)
        with pytest.raises(OperationalError):
            made.connect(time.monotonic() + 0.2)
        assert one in made.abandoned._sessions
        assert not made.abandoned._hidden


# Never another's


@pytest.mark.parametrize("seconds", [60.0, 0.0])
def test_behind_a_proxy_nothing_is_killed_and_soon_nothing_tried(
    make_pool: MakePool,
    proxy: FaultProxy,
    running: Callable[[], set[int]],
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
) -> None:
    """The server lists the port of the proxy, not ours."""
    monkeypatch.setattr(connector, "PORTS_HIDDEN", seconds)
    pool = make_pool(HOST=proxy.host, PORT=proxy.port, READ_TIMEOUT=0.1)
    abandoned = pool._connector.abandoned
    for _ in range(4):
        with pool.connection() as con, pytest.raises(OperationalError):
            execute(con, LONG)
        until(lambda: not abandoned and not pool.stats().connecting)

    # With the one that was opened to kill the first, and has executed the second.
    assert proxy.connections == (4 if seconds else 5)
    assert len(running()) == 4
    assert pool.stats().killed == 0


@pytest.mark.parametrize("what", ["port", "thread", "server"])
def test_a_thread_with_another_number_or_port_is_not_killed(
    make_pool: MakePool, running: Callable[[], set[int]], what: str
) -> None:
    """As after a restart of the server, which begins its numbers anew."""
    others, pool = make_pool(), make_pool()
    other = others.connection()
    session: Any = other._con
    raw, abandoned = session.raw, pool._connector.abandoned
    user = threading.Thread(target=_until_it_ends, args=(other,))
    user.start()
    until(running)

    server, number, port = (raw.host, raw.port), raw.thread_id(), session.port
    if what == "port":
        port += 1
    elif what == "thread":
        number += 1
    else:
        server = raw.host, raw.port + 1
    about = "a test", time.monotonic(), True
    abandoned._sessions.append(_Abandoned(server, number, port, *about))
    with pool.connection() as con:
        execute(con, "SELECT 1")
    assert running() == {raw.thread_id()}
    assert pool.stats().killed == 0

    # And that is all that has prevented it.
    right = (raw.host, raw.port), raw.thread_id(), session.port
    abandoned._sessions.append(_Abandoned(*right, *about))
    pool.reset()
    with pool.connection() as con:
        execute(con, "SELECT 1")
    user.join(30)
    until(lambda: pool.stats().killed == 1)
    other.close()


def test_a_thread_that_executes_nothing_is_not_killed(make_pool: MakePool) -> None:
    others, pool = make_pool(), make_pool()
    with others.connection() as other:
        execute(other, "SELECT 1")
        session: Any = other._con
        session.abandoned = pool._connector.abandoned
        session.abandoned.add(session)
        with pool.connection() as con:
            execute(con, "SELECT 1")
        execute(other, "SELECT 1")
    assert pool.stats().killed == 0


def test_random_give_ups_end_no_statement_of_anybody_else(
    make_pool: MakePool, sql: Sql
) -> None:
    """Another pool of the same account executes statements all the time."""
    pool = make_pool(MAX_SIZE=4, READ_TIMEOUT=0.01, TIMEOUT=30)
    others, enough = make_pool(MAX_SIZE=4), threading.Event()
    failures, given_up = [], []

    def go_on() -> None:
        while not enough.is_set():
            try:
                with others.connection() as con:
                    execute(con, "SELECT SLEEP(0.002)")
            except MySQLError as error:
                failures.append(error)

    def give_up() -> None:
        for _ in range(GIVE_UPS // 4):
            length = random.choice((0, 0.005, 0.009, 0.01, 0.011, 0.02, 600))
            try:
                with pool.connection() as con:
                    execute(con, f"SELECT SLEEP({length})")
            except OperationalError as error:
                given_up.append(error)

    at_work = [threading.Thread(target=go_on) for _ in range(4)]
    giving_up = [threading.Thread(target=give_up) for _ in range(4)]
    for thread in at_work + giving_up:
        thread.start()
    for thread in giving_up:
        thread.join()
    enough.set()
    for thread in at_work:
        thread.join()

    assert failures == []
    assert given_up
    assert {error.args[0] for error in given_up} == {CR.CR_SERVER_LOST}
    assert 0 < pool.stats().killed <= len(given_up)
