"""What a checkout waits for, and what it leaves alone when it has no time to wait."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pymysql.err
import pytest
from conftest import MakePool, execute, until

import flask_mysqlpool.pool.pool
from flask_mysqlpool import Pool, PooledConnection, PoolTimeout
from flask_mysqlpool.pool.driver import transport
from flask_mysqlpool.pool.driver.transport import SILENCE
from flask_mysqlpool.pool.pool import PING_PATIENCE
from flask_mysqlpool.testing import FaultProxy, LocalServer
from flask_mysqlpool.testing.fake_driver import FakePool

pytestmark = pytest.mark.one_engine

BACKENDS = pytest.mark.parametrize("backend", ["pooled", "null"])


def insert(pool: Pool, **timeout: Any) -> None:
    with pool.connection(**timeout) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO t (a) VALUES (1)")


def wait_for(gate: threading.Event) -> None:
    assert gate.wait(10)


# TIMEOUT = 0


@BACKENDS
def test_without_time_to_wait_a_connect_is_made_where_there_is_room(
    make_pool: MakePool, backend: str
) -> None:
    pool = make_pool(TIMEOUT=0, BACKEND=backend, MAX_SIZE=2)
    for _ in range(3):
        with pool.connection() as one, pool.connection() as other:
            assert one.thread_id() != other.thread_id()
            with pytest.raises(PoolTimeout, match="in use 2/2"):
                pool.connection()
        pool.reset()

    assert pool.stats().timeouts == 3


def test_without_time_to_wait_a_dead_connection_is_replaced(
    make_pool: MakePool, sql: Any
) -> None:
    pool = make_pool(TIMEOUT=0, MAX_SIZE=1)
    with pool.connection() as connection:
        number = connection.thread_id()
    sql(f"KILL {number}")
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def test_without_time_to_wait_a_checkout_fails_at_once() -> None:
    gate = threading.Event()
    pool = FakePool(lambda: wait_for(gate), MAX_SIZE=1)
    first = threading.Thread(target=lambda: pool.connection(timeout=5).close())
    first.start()
    until(lambda: pool.stats().connecting)
    started = time.monotonic()

    with pytest.raises(PoolTimeout, match="connecting 1"):
        pool.connection(timeout=0)

    assert time.monotonic() < started + 1
    gate.set()
    first.join()


def test_without_time_to_wait_a_paused_pool_fails_at_once() -> None:
    pool = FakePool()
    pool.pause()

    with pytest.raises(PoolTimeout, match="paused"):
        pool.connection(timeout=0)


def test_a_connect_that_hangs_ends_by_its_own_deadline() -> None:
    gate = threading.Event()
    pool = FakePool(lambda: wait_for(gate), CONNECT_TIMEOUT=0.05)
    started = time.monotonic()

    with pytest.raises(PoolTimeout):
        pool.connection(timeout=0)

    assert 0.05 <= time.monotonic() - started < 5
    gate.set()


def test_a_connect_that_fails_is_reported_and_the_next_does_not_wait() -> None:
    down = pymysql.err.OperationalError(2003, "down")

    def fail() -> None:
        raise down

    pool = FakePool(fail)
    with pytest.raises(pymysql.err.OperationalError, match="down"):
        pool.connection(timeout=0)
    with pytest.raises(PoolTimeout) as info:
        pool.connection(timeout=0)

    assert "down" in str(info.value.__cause__)


def test_a_connect_that_serves_another_waiter_is_not_waited_for() -> None:
    gates: list[threading.Event] = []

    def wait_in_turn() -> None:
        gates.append(gate := threading.Event())
        wait_for(gate)

    pool = FakePool(wait_in_turn, MAX_SIZE=2)
    got: list[Any] = []
    first = threading.Thread(target=lambda: got.append(pool.connection(timeout=10)))
    first.start()
    until(lambda: len(gates) == 1)
    second = threading.Thread(target=lambda: got.append(attempt(pool)))
    second.start()
    until(lambda: len(gates) == 2)
    gates[1].set()  # the connect of the second serves the first
    first.join(5)
    second.join(5)

    assert not second.is_alive()
    assert {type(each) for each in got} == {PooledConnection, PoolTimeout}
    gates[0].set()
    for each in got:
        if isinstance(each, PooledConnection):
            each.close()


def attempt(pool: Pool) -> Any:
    try:
        return pool.connection(timeout=0)
    except PoolTimeout as error:
        return error


def test_without_time_to_wait_a_connect_of_another_is_not_waited_for() -> None:
    gates = [threading.Event() for _ in range(3)]
    next_gate = iter(gates)
    gates[0].set()
    gates[2].set()
    pool = FakePool(lambda: wait_for(next(next_gate)), MAX_SIZE=3)
    with pool.connection():
        with pytest.raises(PoolTimeout, match="connecting 1"):
            pool.connection(timeout=0.001)
        pool.connection(timeout=0).close()

    gates[1].set()


# Answers that are under way


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the server time to answer on a busy machine."""
    for module in transport, flask_mysqlpool.pool.pool:
        monkeypatch.setattr(module, "SILENCE", 5.0)
    monkeypatch.setattr(transport, "REST", 5.0)


@pytest.mark.parametrize("timeout", [0, 0.001, 0.03, 0.06])
@pytest.mark.parametrize("ping_after", [30, 0])
def test_a_server_far_away_costs_an_impatient_checkout_no_connection(
    make_pool: MakePool,
    server: LocalServer,
    table: str,
    patient: None,
    timeout: float,
    ping_after: float,
) -> None:
    with FaultProxy(server.host, server.port, delay=0.02) as proxy:
        pool = make_pool(
            URL=server.url_at(proxy.port),
            AUTOCOMMIT=True,
            SSL_MODE="DISABLED",
            PING_AFTER=ping_after,
        )
        pool.connection().close()
        for _ in range(6):
            try:
                insert(pool, timeout=timeout)
            except PoolTimeout:
                time.sleep(0.05)
        insert(pool)

    assert pool.stats().opened == 1


def test_answers_that_come_one_by_one_are_waited_for(
    make_pool: MakePool, table: str, patient: None
) -> None:
    slow = "DO SLEEP(0.05)"
    pool = make_pool(SETSESSION=[slow, slow], MAX_SIZE=1)
    pool.connection().close()
    for _ in range(3):
        with suppress(PoolTimeout):
            insert(pool, timeout=0.06)
        time.sleep(0.05)
    insert(pool)

    assert pool.stats().opened == 1
    with pool.connection() as connection:
        con: Any = connection._con
        con.read_answers(time.monotonic() + 5)
        for letter in "xy":  # each answer is given once
            answer = con.ask(f"SELECT '{letter}' AS a", time.monotonic() + 5)
            assert answer == [{"a": letter}]


def test_an_impatient_checkout_lets_a_server_answer_until_it_is_silent() -> None:
    pool = FakePool()
    pool.connection().close()
    con: Any = pool._state.idle[0]
    until_when: list[float] = []
    con.read_answers = until_when.append
    con.unanswered, con.asked = 1, time.monotonic()
    # Half of it is less than SILENCE, after which a server is out of reach.
    pool.connection(timeout=SILENCE * 1.5).close()

    assert until_when[0] >= con.asked + SILENCE


def test_a_session_that_the_server_has_cleaned_is_preferred(
    make_pool: MakePool, proxy: FaultProxy, server: LocalServer, table: str
) -> None:
    url = server.url_at(proxy.port)
    pool = make_pool(URL=url, SSL_MODE="DISABLED", MAX_SIZE=3)
    oldest, clean, last = (pool.connection() for _ in range(3))
    number = last.thread_id()
    for connection in oldest, last:
        connection.query("INSERT INTO t (a) VALUES (1)")
    proxy.hang()
    con: Any = last._con
    expected = clean.thread_id()
    for connection in oldest, clean, last:
        connection.close()

    with pool.connection() as connection:
        assert connection.thread_id() == expected
        assert not con.is_answered()
        proxy.resume()
        until(con.is_answered)
        with pool.connection() as other:
            assert other.thread_id() == number
    assert pool.stats().discarded == 0


def test_a_server_that_stays_silent_is_given_up(
    make_pool: MakePool, server: LocalServer, table: str
) -> None:
    with FaultProxy(server.host, server.port) as proxy:
        pool = make_pool(
            URL=server.url_at(proxy.port),
            SSL_MODE="DISABLED",
            MAX_SIZE=1,
            CONNECT_TIMEOUT=0.5,
        )
        pool.connection().close()
        with pool.connection() as connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO t (a) VALUES (1)")
            proxy.drop_replies()
        with pytest.raises(PoolTimeout):
            pool.connection(timeout=SILENCE / 5)
        assert pool.stats().discarded == 0
        with pytest.raises(pymysql.err.OperationalError):
            pool.connection(timeout=SILENCE * 3)

        assert pool.stats().discarded == 1


# Answers that nobody has asked for


class Echo:
    """A proxy that can send an answer of the server twice."""

    def __init__(self, target: tuple[str, int], pause: float) -> None:
        self.pause = pause
        self.twice = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._target = target
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                server = socket.create_connection(self._target)
                for ends in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                twice = answers and self.twice
                self.twice = self.twice and not answers
                if twice and not self.pause:
                    data *= 2
                sink.sendall(data)
                if twice and self.pause:
                    time.sleep(self.pause)
                    sink.sendall(data)
        # The other thread waits in recv(), which close() would not end.
        for end in source, sink:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture(params=[0.0, 0.005])
def echo(server: LocalServer, request: pytest.FixtureRequest) -> Iterator[Echo]:
    with closing(Echo((server.host, server.port), request.param)) as echo:
        yield echo


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("statement", ["SELECT 'mine'", "SET @a = 1", "DO 1"])
def test_an_answer_that_comes_twice_is_not_the_next_borrowers(
    make_pool: MakePool,
    server: LocalServer,
    echo: Echo,
    autocommit: bool,
    statement: str,
) -> None:
    pool = make_pool(
        URL=server.url_at(echo.port), SSL_MODE="DISABLED", AUTOCOMMIT=autocommit
    )
    pool.connection().close()
    for number in range(3):
        with pool.connection() as connection, connection.cursor() as cursor:
            echo.twice = True
            cursor.execute(statement)
            time.sleep(3 * echo.pause)
        with pool.connection() as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT {number}, 'next'")
            assert cursor.fetchall() == ((number, "next"),)

    assert pool.stats().opened >= 4


@pytest.mark.parametrize("size", [10, 9000, 100_000])
def test_what_was_read_ahead_counts_as_unread(make_pool: MakePool, size: int) -> None:
    pool = make_pool(AUTOCOMMIT=True)
    with pool.connection() as connection:
        con: Any = connection._con
        assert con.is_alive()
        con._send([(3, b"SELECT REPEAT('a', %d)" % size)])
        con._readable(time.monotonic() + 5)
        con.raw._rfile.read(9)

        assert not con.is_alive()
        con.discard_reason = "invalidated"


def test_connections_that_the_network_has_forgotten_cost_a_request_a_second(
    server: LocalServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    """Also if there are several: those after the first are not waited for."""
    pool = make_pool(URL=server.url_at(proxy.port), PING_AFTER=0, TIMEOUT=10)
    held = [pool.connection() for _ in range(3)]
    for connection in held:
        connection.close()
    proxy.forget()
    started = time.monotonic()
    with pool.connection() as connection:
        assert execute(connection, "SELECT 1") == ((1,),)
    took = time.monotonic() - started

    assert 0.9 * PING_PATIENCE < took < 2.5 * PING_PATIENCE
    assert pool.stats().discarded_by_reason["dead"] >= 1


@pytest.mark.parametrize(("idle", "expected"), [(60, 60), (0.2, 1), (86400, 32767)])
def test_the_system_probes_idle_connections(
    make_pool: MakePool, idle: float, expected: int
) -> None:
    with make_pool(KEEPALIVE=idle).connection() as connection:
        assert connection._con is not None
        sock = connection._con.raw._sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == expected
        unacknowledged = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert unacknowledged == (expected + 30) * 1000
