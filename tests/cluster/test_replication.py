"""A primary of MySQL and its replicas: roles change, names move, tokens expire."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from clusters import (
    HOST,
    PASSWORD,
    Replication,
    Router,
    find_mysql,
    find_router,
    missing,
    run,
)
from conftest import until
from flask import Flask
from pymysql.cursors import DictCursor
from pymysql.err import MySQLError

from flask_mysqlpool import MySQLPool, Pool, PoolConfig, PooledConnection, get_db
from flask_mysqlpool.pool.transaction import run_in_transaction
from flask_mysqlpool.testing import LocalServer

LACK = missing(find_mysql)
pytestmark = pytest.mark.skipif(bool(LACK), reason=LACK)
NO_ROUTER = missing(find_router)

WORKERS = 4
#: For more than a second.
RETRIES = 8
#: What a server says that has become a replica.
READ_ONLY = {1290, 1792, 1836}
#: For how long tokens are rotated under load, five times or more often; a minute tells
#: more.
TOKEN_SECONDS = float(os.environ.get("TOKEN_SECONDS", "4"))
TOKEN_LIFETIME = 0.8


@pytest.fixture(scope="module")
def three() -> Iterator[Replication]:
    with Replication() as replication:
        run(
            replication.primary,
            "CREATE TABLE test.w (n INT PRIMARY KEY, server INT)",
            "CREATE TABLE test.counter (value INT)",
            "INSERT INTO test.counter VALUES (0)",
        )
        yield replication


@pytest.fixture
def replication(three: Replication) -> Iterator[Replication]:
    """One whose replicas have all that the primary has, before and after."""
    three.repair()
    run(three.primary, "DELETE FROM test.w")
    yield three
    three.repair()


def settings(**more: Any) -> dict[str, Any]:
    account = {"USER": "app", "PASSWORD": PASSWORD, "DATABASE": "test"}
    return {**account, "MAX_SIZE": WORKERS, "TIMEOUT": 5, **more}


def make_pool(**more: Any) -> Pool:
    return Pool(PoolConfig.from_mapping(settings(**more)))


class Load:
    """Threads that insert rows, each a request of its own, for as long as the block."""

    def __init__(self, pool: Pool, *, in_transaction: bool = False) -> None:
        self._pool = pool
        self.in_transaction = in_transaction
        self.errors: list[tuple[float, MySQLError]] = []
        self.done: list[float] = []
        self.acknowledged: set[int] = set()
        self._numbers = itertools.count(1)
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(WORKERS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while not self._enough.wait(0.002):
            number = next(self._numbers)
            try:
                with self._pool.connection() as connection:
                    self._insert(connection, number)
            except MySQLError as error:
                self.errors.append((time.monotonic(), error))
            else:
                self.acknowledged.add(number)
                self.done.append(time.monotonic())

    def _insert(self, connection: PooledConnection, number: int) -> None:
        statement = f"INSERT INTO w VALUES ({number}, @@server_id)"
        if self.in_transaction:
            run_in_transaction(
                connection, PooledConnection.query, statement, retries=RETRIES
            )
        else:
            connection.query(statement)
            connection.commit()

    def first_after(self, moment: float) -> float:
        """When the first request after the moment was done; waits for some more."""
        until(lambda: sum(t > moment for t in self.done[-100:]) > 20, 30)
        return min(t for t in self.done if t > moment)

    def go_on(self) -> None:
        self.first_after(time.monotonic())

    def codes(self) -> Counter[int]:
        return Counter(error.args[0] for _, error in self.errors)


def stored(server: LocalServer) -> set[int]:
    return {number for [number] in run(server, "SELECT n FROM test.w")}


@pytest.mark.parametrize("in_transaction", [False, True])
def test_a_demoted_primary_costs_each_connection_one_error_at_most(
    replication: Replication, in_transaction: bool
) -> None:
    pool = make_pool(HOST=replication.hosts, TARGET="primary")
    with closing(pool), Load(pool, in_transaction=in_transaction) as load:
        load.go_on()
        for node in (1, 2, 0):
            check_switch(load, lambda node=node: replication.promote(node))  # type: ignore[misc]
    assert load.acknowledged <= stored(replication.primary)


def check_switch(load: Load, switch: Callable[[], float]) -> None:
    """Have the primary change, and see what that costs."""
    load.errors.clear()
    begin, writable = time.monotonic(), switch()
    first = load.first_after(writable)
    print(
        f"\nno primary for {writable - begin:.3f} s; first write"
        f" {first - writable:.3f} s after that; errors {dict(load.codes())}"
    )
    assert first - writable < 1.0
    in_use = [error for _, error in load.errors if error.args[0] in READ_ONLY]
    assert len(in_use) <= (0 if load.in_transaction else WORKERS)
    # For as long as there is no primary, there are no connections to it.
    others = [t for t, error in load.errors if error.args[0] not in READ_ONLY]
    assert all(t < writable + 0.5 for t in others)
    assert load.codes().keys() <= READ_ONLY | {2003}


@pytest.mark.parametrize("in_transaction", [False, True])
def test_a_name_that_moves_is_followed(
    replication: Replication, monkeypatch: pytest.MonkeyPatch, in_transaction: bool
) -> None:
    place = [replication.primary.port]
    resolve = socket.getaddrinfo

    def moved(host: Any, port: Any, *args: Any, **more: Any) -> Any:
        if host == "db.test":
            host, port = HOST, place[0]
        return resolve(host, port, *args, **more)

    def switch() -> float:
        # Not the one that is primary: it would be read-only for a moment, and not be it
        # any more when it is asked.
        replication.promote(replication.servers.index(replication.replicas[0]))
        place[0] = replication.primary.port
        return time.monotonic()

    monkeypatch.setattr(socket, "getaddrinfo", moved)
    pool = make_pool(HOST="db.test", TARGET="primary")
    with closing(pool), Load(pool, in_transaction=in_transaction) as load:
        load.go_on()
        check_switch(load, switch)
    assert load.acknowledged <= stored(replication.primary)


# Readers


@pytest.fixture
def make_app(replication: Replication) -> Iterator[Callable[..., Flask]]:
    apps = []

    def make(**readers: Any) -> Flask:
        app = Flask("shop")
        given = settings(
            HOST=replication.hosts,
            TARGET="primary",
            STATUS_DIR=False,
            READERS="readers",
            BINDS={
                "readers": {
                    "TARGET": "prefer-replica",
                    "HOST_ORDER": "random",
                    "READ_ONLY": True,
                    **readers,
                }
            },
        )
        app.config.from_mapping({f"MYSQLPOOL_{k}": v for k, v in given.items()})
        MySQLPool(app)
        apps.append(app)
        return app

    yield make
    for app in apps:
        [db] = app.extensions["mysqlpool"]
        with app.app_context():
            db.close_pool()


def read_port(app: Flask) -> int:
    with app.app_context(), get_db(readonly=True).cursor() as cursor:
        cursor.execute("SELECT @@port")
        [[port]] = cursor.fetchall()
        return int(port)


def test_without_replicas_no_read_fails(
    replication: Replication, make_app: Callable[..., Flask]
) -> None:
    app = make_app()
    assert read_port(app) != replication.primary.port
    for replica in replication.replicas:
        replica.stop()
    assert {read_port(app) for _ in range(200)} == {replication.primary.port}


def test_a_replica_that_is_behind_is_not_read_from(
    replication: Replication, make_app: Callable[..., Flask]
) -> None:
    behind, other = replication.replicas
    replication.follow(behind, delay=3600)
    run(replication.primary, "UPDATE test.counter SET value = value + 1")
    until(lambda: seconds_behind(behind) >= 2)
    app = make_app(MAX_LAG=1)
    [db] = app.extensions["mysqlpool"]
    seen = Counter[int]()
    for number in range(200):
        if number % 10 == 0:
            with app.app_context():
                db.reset("readers")
        seen[read_port(app)] += 1
    assert seen == {other.port: 200}


def seconds_behind(replica: LocalServer) -> int:
    with closing(replica.connect(cursorclass=DictCursor)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SHOW REPLICA STATUS")
            [status] = cursor.fetchall()
    return int(status["Seconds_Behind_Source"] or 0)


def test_a_request_reads_what_it_has_written(
    replication: Replication, make_app: Callable[..., Flask]
) -> None:
    for replica in replication.replicas:
        replication.follow(replica, delay=1)
    app = make_app()
    [db] = app.extensions["mysqlpool"]
    read = "SELECT value FROM counter"
    stale = behind = 0
    for number in range(1000):
        with app.app_context():
            with get_db(readonly=True).cursor() as cursor:
                cursor.execute(read)
                [[seen]] = cursor.fetchall()
                behind += seen != number - 1
            with db.transaction() as connection:
                connection.query(f"UPDATE counter SET value = {number}")
            with get_db(readonly=True).cursor() as cursor:
                cursor.execute(read)
                [[seen]] = cursor.fetchall()
                stale += seen != number
    print(f"\n1000 requests, {behind} had begun on a replica behind, {stale} stale")
    assert stale == 0
    # Otherwise there was nothing to be stale.
    assert behind > 500


# Tokens


class Tokens:
    """Give out passwords that expire, and have the server change them in two phases."""

    def __init__(self, primary: LocalServer) -> None:
        self._primary = primary
        self.calls = self.rotations = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._token = "token-0"
        run(primary, "CREATE USER iam IDENTIFIED BY 'token-0'")
        run(primary, "GRANT ALL ON test.* TO iam")
        self._thread = threading.Thread(target=self._rotate)

    def __call__(self) -> str:
        with self._lock:
            self.calls += 1
            return self._token

    def __enter__(self) -> Tokens:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        run(self._primary, "DROP USER iam")

    def _rotate(self) -> None:
        with closing(self._primary.connect()) as root, root.cursor() as cursor:
            while not self._stop.wait(TOKEN_LIFETIME / 2):
                self.rotations += 1
                token = f"token-{self.rotations}"
                # The one before the last is of no use from now on.
                cursor.execute(
                    f"ALTER USER iam IDENTIFIED BY '{token}' RETAIN CURRENT PASSWORD"
                )
                self._token = token


def refusals(server: LocalServer) -> int:
    """How many logins the server has refused."""
    [[_, count]] = run(server, "SHOW GLOBAL STATUS LIKE 'Aborted_connects'")
    return int(count)


@pytest.mark.timeout(TOKEN_SECONDS + 60)
def test_tokens_that_expire_fail_no_request(replication: Replication) -> None:
    before = refusals(replication.primary)
    with Tokens(replication.primary) as tokens:
        pool = make_pool(
            HOST=HOST,
            PORT=replication.primary.port,
            USER="iam",
            PASSWORD=tokens,
            MAX_LIFETIME=0.2,
        )
        with closing(pool), Load(pool) as load:
            end = time.monotonic() + TOKEN_SECONDS
            until(lambda: time.monotonic() > end, TOKEN_SECONDS + 5)
        # One may have been under way when the pool was closed.
        until(lambda: not pool.stats().connecting)
        opened = pool.stats().opened
    print(
        f"\n{len(load.done)} requests in {TOKEN_SECONDS:.0f} s, {len(load.errors)}"
        f" failed; {tokens.rotations} tokens, {opened} connects, {tokens.calls} calls"
    )
    refused = refusals(replication.primary) - before
    assert not load.errors
    # One that expires between being given out and being used is asked for again.
    assert tokens.calls == opened + refused
    assert opened > 2 * TOKEN_SECONDS / TOKEN_LIFETIME
    assert tokens.rotations >= TOKEN_SECONDS / TOKEN_LIFETIME


@pytest.mark.skipif(bool(NO_ROUTER), reason=NO_ROUTER)
def test_behind_a_router_with_a_fixed_list(replication: Replication) -> None:
    """It follows no roles, so the next in its list must be the next primary."""
    following = [replication.primary, *replication.replicas]
    with Router(following) as router:
        pool = make_pool(HOST=HOST, PORT=router.port, TARGET="primary")
        with closing(pool), Load(pool) as load:
            load.go_on()

            def switch() -> float:
                replication.primary.kill()
                replication.primary = following[1]
                run(following[1], "STOP REPLICA", "RESET REPLICA ALL")
                run(following[1], "SET GLOBAL super_read_only = OFF")
                run(following[1], "SET GLOBAL read_only = OFF")
                return time.monotonic()

            writable = switch()
            first = load.first_after(writable)
            print(f"\nfirst write {first - writable:.3f} s later, {load.codes()}")
    assert first - writable < 1.0
