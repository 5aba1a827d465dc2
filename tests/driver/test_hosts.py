"""Several hosts: which is tried, which will do, and what if they change roles."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pymysql.err
import pytest
from conftest import local_server, until
from flask import Flask
from pymysql.cursors import DictCursor

from flask_mysqlpool import (
    ConfigError,
    MySQLPool,
    Pool,
    PoolConfig,
    PooledConnection,
    PoolTimeout,
    get_db,
)
from flask_mysqlpool.config.addresses import Place, parse
from flask_mysqlpool.pool.driver.connector import FIRST_PAUSE, Hosts
from flask_mysqlpool.pool.pool import LAG_VALID, SECOND_BEST
from flask_mysqlpool.pool.transaction import run_in_transaction
from flask_mysqlpool.testing import FaultProxy, LocalServer

A, B, C = Place("a", 1), Place("b", 2), Place("c", 3)


# What is written


def config(**settings: Any) -> PoolConfig:
    return PoolConfig.from_mapping(settings)


@pytest.mark.parametrize(
    ("host", "places"),
    [
        ("db", "db:3307"),
        ("db1,db2", "db1:3307,db2:3307"),
        ("db1:1, db2:2", "db1:1,db2:2"),
        (["db1", "db2:3306"], "db1:3307,db2:3306"),
        (("db1",), "db1:3307"),
        ("[::1]:1,[::2]", "[::1]:1,[::2]:3307"),
        ("10.0.0.1:1,10.0.0.2", "10.0.0.1:1,10.0.0.2:3307"),
    ],
)
def test_hosts_may_be_a_list(host: Any, places: str) -> None:
    assert config(HOST=host, PORT=3307, DATABASE="shop").server == f"{places}/shop"


@pytest.mark.parametrize(
    ("url", "places"),
    [
        ("mysql://u:p@db1:1,db2:2/shop", "db1:1,db2:2"),
        ("mysql://u@db1,db2:2/shop?max_size=3", "db1:3306,db2:2"),
        ("mysql://db1,db2/shop", "db1:3306,db2:3306"),
        ("mysql://u@[::1]:1,[::2]:2/shop", "[::1]:1,[::2]:2"),
        ("mysql://u@[::1]/shop", "[::1]:3306"),
    ],
)
def test_a_url_may_have_several_hosts(url: str, places: str) -> None:
    assert config(URL=url).server == f"{places}/shop"


@pytest.mark.parametrize(
    "host",
    ["db1,", "db1,,db2", "db1,db2:0", "db1:99999,db2", "a,b/c", [], ["a b"], [1]],
)
def test_a_list_with_a_wrong_host_is_refused(host: Any) -> None:
    with pytest.raises(ConfigError, match="HOST must be"):
        config(HOST=host)


def test_other_contradictions_are_refused() -> None:
    with pytest.raises(ConfigError, match="HOST must not name one host twice"):
        config(HOST="db,db")
    with pytest.raises(ConfigError, match="HOST must be one where UNIX_SOCKET is set"):
        config(HOST="db1,db2", UNIX_SOCKET="/s")
    with pytest.raises(ConfigError, match="TARGET must be one of any, primary"):
        config(HOST="db", TARGET="master")


# In which order


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1000.0]
    monkeypatch.setattr("flask_mysqlpool.pool.driver.error_codes.random.uniform", max)
    monkeypatch.setattr(
        "flask_mysqlpool.pool.driver.connector.monotonic", lambda: now[0]
    )
    yield now


def test_they_are_tried_as_given_and_those_that_failed_last(clock: list[float]) -> None:
    hosts = Hosts([A, B, C], in_random_order=False)
    assert list(hosts) == [A, B, C]

    hosts.failed(A)
    clock[0] += 0.1
    hosts.failed(B)
    assert list(hosts) == [C, A, B]

    hosts.works(A)
    assert list(hosts) == [A, C, B]


def test_one_that_failed_is_tried_again_by_one_connect(clock: list[float]) -> None:
    hosts = Hosts([A, B], in_random_order=False)
    hosts.failed(A)
    clock[0] += FIRST_PAUSE

    assert list(hosts) == [A, B]
    assert list(hosts) == [B, A]


def test_pauses_grow_and_have_an_end(clock: list[float]) -> None:
    hosts = Hosts([A, B], in_random_order=False)
    pauses = []
    for failures in [1] * 9 + [2000]:  # 2000 in a row, as in half a day
        for _ in range(failures):
            hosts.failed(A)
        begun = clock[0]
        while list(hosts) == [B, A]:
            clock[0] += 0.25
        pauses.append(clock[0] - begun)

    assert pauses[:3] == [1, 2, 4]
    assert pauses[-1] == 30


def test_a_random_order_is_one(clock: list[float]) -> None:
    hosts = Hosts([A, B, C], in_random_order=True)
    first = Counter(next(iter(hosts)) for _ in range(300))
    assert set(first) == {A, B, C}
    assert min(first.values()) > 50

    hosts.failed(B)
    assert all(list(hosts)[-1] == B for _ in range(20))


def test_one_host_is_a_list_too() -> None:
    assert parse("db", 5) == (Place("db", 5),)


# On servers


@pytest.fixture(scope="module")
def servers(engine: str) -> Iterator[list[LocalServer]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(local_server(engine, password="same")) for _ in range(2)
        ]


@pytest.fixture
def pair(servers: list[LocalServer]) -> Iterator[list[LocalServer]]:
    """Two servers, neither of them read-only, before and after."""
    yield servers
    for server in servers:
        server.start()
        set_role(server, writable=True)


def set_role(server: LocalServer, writable: bool) -> None:
    execute(server, f"SET GLOBAL read_only = {int(not writable)}")


def execute(server: LocalServer, *statements: str) -> None:
    with server.connect(database="test") as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def make_pool(
    *servers: LocalServer, ports: list[int] | None = None, **settings: Any
) -> Pool:
    listed = ports or [server.port for server in servers]
    if len(listed) == 1:
        settings["PORT"], listed = listed[0], []
    given = {
        "HOST": ",".join(f"127.0.0.1:{port}" for port in listed) or "127.0.0.1",
        "USER": servers[0].user,
        "PASSWORD": servers[0].password,
        "DATABASE": "test",
        "TIMEOUT": 5,
    }
    return Pool(PoolConfig.from_mapping(given | settings))


def port(connection: PooledConnection) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@port")
        [[number]] = cursor.fetchall()
        return int(number)


def test_the_first_that_works_is_taken(pair: list[LocalServer]) -> None:
    one, other = pair
    pool = make_pool(one, other)
    with pool.connection() as connection:
        assert port(connection) == one.port
    one.stop()
    with pool.connection() as connection:
        assert port(connection) == other.port
    pool.close()


def test_a_wrong_host_in_the_list_costs_nobody_the_deadline(
    pair: list[LocalServer],
) -> None:
    one, _ = pair
    with FaultProxy(one.host, one.port) as proxy:
        proxy.hang()
        pool = make_pool(one, ports=[1, proxy.port, one.port], CONNECT_TIMEOUT=3)
        with pool.connection() as connection:
            assert port(connection) == one.port
        pool.reset()
        asked = proxy.connections
        with pool.connection() as connection:
            assert port(connection) == one.port
        # By now the two are known to be bad.
        assert proxy.connections == asked > 0
        pool.close()


def test_a_primary_is_waited_for_and_then_all_that_is_wrong_is_said(
    pair: list[LocalServer],
) -> None:
    one, other = pair
    set_role(one, writable=False)
    other.stop()
    pool = make_pool(one, other, TARGET="primary", TIMEOUT=0.5)

    with pytest.raises(PoolTimeout) as info:
        pool.connection()

    text = str(info.value.__cause__)
    assert "No host can be used" in text
    assert f"127.0.0.1:{one.port}: it is read-only, not a primary" in text
    assert f"127.0.0.1:{other.port}: Can't connect" in text

    promotion = threading.Timer(0.3, set_role, (one, True))
    promotion.start()
    with pool.connection(timeout=5) as connection:
        assert port(connection) == one.port
    promotion.join()
    pool.close()


def test_hosts_that_are_all_down_are_an_error_at_once(pair: list[LocalServer]) -> None:
    pool = make_pool(pair[0], ports=[1, 2], TARGET="primary")
    with pytest.raises(pymysql.err.OperationalError) as info:
        pool.connection()
    assert info.value.args[0] == 2003
    assert not isinstance(info.value, PoolTimeout)
    pool.close()


def test_an_account_that_a_replica_does_not_know_yet_is_tried_elsewhere(
    pair: list[LocalServer],
) -> None:
    one, other = pair
    execute(one, "DROP USER IF EXISTS late")
    execute(
        other,
        "CREATE USER IF NOT EXISTS late@'%' IDENTIFIED BY 'token'",
        "GRANT ALL ON *.* TO late@'%'",
    )
    pool = make_pool(one, other, USER="late", PASSWORD=lambda: "token")
    with pool.connection() as connection:
        assert port(connection) == other.port
    pool.close()


def test_a_password_that_has_rotated_is_asked_for_again_wherever_it_was_refused(
    pair: list[LocalServer],
) -> None:
    one = pair[0]
    first = iter(["stale"])
    for ports in ([one.port, 1], [1, one.port]):
        pool = make_pool(
            one,
            ports=ports,
            PASSWORD=lambda: next(first, one.password),  # noqa: B023
        )
        with pool.connection() as connection:
            assert port(connection) == one.port
        pool.close()
        first = iter(["stale"])


def test_a_refused_account_is_not_tried_elsewhere(pair: list[LocalServer]) -> None:
    one, other = pair
    with FaultProxy(other.host, other.port) as proxy:
        pool = make_pool(one, ports=[one.port, proxy.port], PASSWORD="wrong")
        with pytest.raises(pymysql.err.OperationalError) as info:
            pool.connection()
        assert info.value.args[0] == 1045
        assert proxy.connections == 0
        pool.close()


@pytest.mark.parametrize(
    ("target", "writable", "expected"),
    [
        ("any", (False, True), 0),
        ("primary", (False, True), 1),
        ("primary", (True, False), 0),
        ("replica", (True, False), 1),
        ("prefer-replica", (True, False), 1),
        ("prefer-replica", (True, True), 0),
        ("prefer-replica", (False, False), 0),
    ],
)
def test_the_role_decides(
    pair: list[LocalServer], target: str, writable: tuple[bool, bool], expected: int
) -> None:
    for server, is_writable in zip(pair, writable, strict=True):
        set_role(server, is_writable)
    pool = make_pool(*pair, TARGET=target)
    with pool.connection() as connection:
        assert port(connection) == pair[expected].port
    assert pool.stats().size == 1
    pool.close()


def test_a_set_up_that_writes_does_not_end_the_search_for_the_primary(
    pair: list[LocalServer],
) -> None:
    for server in pair:
        make_account(server)
    set_role(pair[0], writable=False)
    settings: Any = {"INIT_COMMAND": "INSERT INTO w VALUES (1)", "TARGET": "primary"}
    pool = make_pool(*pair, USER="plain", PASSWORD="plain", **settings)
    with pool.connection() as connection:
        assert port(connection) == pair[1].port
    pool.close()


def test_the_role_costs_no_further_round_trip(pair: list[LocalServer]) -> None:
    one, _ = pair
    # MySQL takes a longer way to authenticate the first time.
    make_pool(one).connection().close()
    trips = []
    for target in ("any", "primary"):
        with FaultProxy(one.host, one.port) as proxy:
            settings = {"TARGET": target, "SSL_MODE": "DISABLED"}
            pool = make_pool(one, ports=[proxy.port], **settings)
            pool.connection().close()
            trips.append(proxy.round_trips)
            pool.close()

    assert trips[0] == trips[1]


def make_account(server: LocalServer) -> None:
    """Without the right to write to a server that is read-only."""
    execute(
        server,
        "CREATE USER IF NOT EXISTS plain@'%' IDENTIFIED BY 'plain'",
        "GRANT ALL ON test.* TO plain@'%'",
        "DROP TABLE IF EXISTS w",
        "CREATE TABLE w (a INT)",
    )


WRITERS = 4


def test_a_demoted_primary_costs_each_connection_one_error_at_most(
    pair: list[LocalServer],
) -> None:
    """Roles are swapped under load; the writers find the new primary by themselves."""
    one, other = pair
    for server in pair:
        make_account(server)
    set_role(other, writable=False)
    pool = make_pool(
        *pair, TARGET="primary", USER="plain", PASSWORD="plain", MAX_SIZE=WRITERS
    )
    errors: list[int] = []
    written: Counter[int] = Counter()
    first_write: list[float] = []
    enough = threading.Event()
    swapped = threading.Event()

    def work() -> None:
        while not enough.is_set():
            try:
                with pool.connection() as connection, connection.cursor() as cursor:
                    cursor.execute("INSERT INTO w VALUES (1)")
                    connection.commit()
                    cursor.execute("SELECT @@port")
                    [[where]] = cursor.fetchall()
                    written[where] += 1
                    if where == other.port and swapped.is_set() and not first_write:
                        first_write.append(time.monotonic())
            except pymysql.err.MySQLError as error:
                errors.append(error.args[0])

    threads = [threading.Thread(target=work) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: written[one.port] > 50)
        set_role(one, writable=False)
        set_role(other, writable=True)
        now = time.monotonic()
        swapped.set()
        until(lambda: first_write and written[other.port] > 50)
    finally:
        enough.set()
        for thread in threads:
            thread.join()
        pool.close()

    assert first_write[0] - now < 1.0
    assert set(errors) <= {1290, 1792, 1836}
    assert len(errors) <= WRITERS


def test_run_in_transaction_rides_through(pair: list[LocalServer]) -> None:
    one, other = pair
    for server in pair:
        make_account(server)
    set_role(other, writable=False)
    pool = make_pool(*pair, TARGET="primary", USER="plain", PASSWORD="plain")

    def swap(connection: PooledConnection) -> None:
        if not swapped:
            swapped.append(True)
            set_role(one, writable=False)
            set_role(other, writable=True)
        connection.query("INSERT INTO w VALUES (7)")

    swapped: list[bool] = []
    with pool.connection() as connection:
        connection.query("SELECT 1")
        run_in_transaction(connection, swap, retries=3)
    pool.close()

    with other.connect(database="test") as check, check.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM w WHERE a = 7")
        assert cursor.fetchall() == ((1,),)


MISTAKES = {
    1792: ["START TRANSACTION READ ONLY", "INSERT INTO w VALUES (1)"],
    1290: ["SELECT 1 INTO OUTFILE '/nowhere/x'"],
    **{
        number: [f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}"]
        for number in (1836, 1874, 1047, 9001)
    },
}


@pytest.mark.parametrize("target", ["any", "primary"])
@pytest.mark.parametrize("number", MISTAKES)
def test_ones_own_mistake_is_no_demotion(
    pair: list[LocalServer], number: int, target: str
) -> None:
    make_account(pair[0])
    pool = make_pool(*pair, TARGET=target, MAX_SIZE=3)
    threads = set()
    for _ in range(3):
        held = [pool.connection() for _ in range(3)]
        threads |= {connection.thread_id() for connection in held}
        *_, connection = held
        with pytest.raises(pymysql.err.MySQLError) as info:
            for statement in MISTAKES[number]:
                connection.query(statement)
        assert info.value.args[0] == number
        for connection in held:
            connection.close()
    assert len(threads) == 3
    assert pool.stats().discarded == 0

    # In a block, too, where the rollback asks.
    with pool.connection() as connection:
        with pytest.raises(pymysql.err.MySQLError) as info:
            run_in_transaction(connection, fails, MISTAKES[number][-1], retries=2)
    assert pool.stats().opened == 3
    pool.close()


def fails(connection: PooledConnection, statement: str) -> None:
    connection.query(statement)
    raise pymysql.err.ProgrammingError("the write went well")


def test_a_server_that_refuses_to_write_is_asked_without_waiting(
    pair: list[LocalServer],
) -> None:
    one, _ = pair
    make_account(one)
    with FaultProxy(one.host, one.port) as proxy:
        settings: Any = {"USER": "plain", "PASSWORD": "plain", "TARGET": "primary"}
        pool = make_pool(one, ports=[proxy.port], SSL_MODE="DISABLED", **settings)
        first = pool.connection()
        second = pool.connection()
        set_role(one, writable=False)
        with pytest.raises(pymysql.err.MySQLError, match="read-only"):
            first.query("INSERT INTO w VALUES (1)")
        proxy.hang()
        before = time.monotonic()
        first.close()
        assert time.monotonic() - before < 0.1
        second.close()
        set_role(one, writable=True)
        proxy.resume()
        pool.connection().close()
        assert pool.stats().discarded == 0
        pool.close()


def test_a_demotion_that_is_confirmed_replaces_all(pair: list[LocalServer]) -> None:
    one, other = pair
    for server in pair:
        make_account(server)
    set_role(other, writable=False)
    settings: Any = {"USER": "plain", "PASSWORD": "plain", "TARGET": "primary"}
    pool = make_pool(one, other, MAX_SIZE=3, **settings)
    held = [pool.connection() for _ in range(3)]
    set_role(one, writable=False)
    set_role(other, writable=True)
    with pytest.raises(pymysql.err.MySQLError, match="read-only"):
        held[0].query("INSERT INTO w VALUES (1)")
    for connection in held:
        connection.close()
    [suspect] = [con for con in pool._state.idle if con.is_suspect]
    until(suspect.is_answered)
    for _ in range(3):
        with pool.connection() as connection:
            assert port(connection) == other.port
    assert set(pool.stats().discarded_by_reason) == {"invalidated"}
    pool.close()


# Readers


def make_app(primary: LocalServer, replica: LocalServer, **settings: Any) -> Flask:
    app = Flask("shop")
    hosts = f"127.0.0.1:{replica.port},127.0.0.1:{primary.port}"
    app.config.update(
        MYSQLPOOL_URL=primary.url,
        MYSQLPOOL_STATUS_DIR=False,
        MYSQLPOOL_READERS="replicas",
        MYSQLPOOL_BINDS={
            "replicas": {
                "HOST": hosts,
                "TARGET": "prefer-replica",
                "READ_ONLY": True,
                "AUTOCOMMIT": True,
                **settings,
            }
        },
    )
    MySQLPool(app)
    return app


def close(app: Flask) -> None:
    [db] = app.extensions["mysqlpool"]
    with app.app_context():
        db.close_pool()


def test_reads_go_to_a_replica_and_cannot_write(pair: list[LocalServer]) -> None:
    primary, replica = pair
    for server in pair:
        make_account(server)
    set_role(replica, writable=False)
    app = make_app(primary, replica)
    with app.app_context():
        reader = get_db(readonly=True)
        assert reader is get_db(readonly=True)
        assert reader is not get_db()
        assert port(reader) == replica.port
        assert port(get_db()) == primary.port
        with pytest.raises(pymysql.err.OperationalError) as info:
            reader.query("INSERT INTO w VALUES (1)")
        assert info.value.args[0] == 1792
    close(app)


def test_without_a_replica_the_primary_serves_and_is_not_written_to(
    pair: list[LocalServer],
) -> None:
    primary, replica = pair
    make_account(primary)
    set_role(replica, writable=False)
    app = make_app(primary, replica)
    replica.stop()
    served = []
    for _ in range(20):
        with app.app_context():
            reader = get_db(readonly=True)
            served.append(port(reader))
    with app.app_context():
        reader = get_db(readonly=True)
        with pytest.raises(pymysql.err.OperationalError) as info:
            reader.query("INSERT INTO w VALUES (1)")
        assert info.value.args[0] == 1792
        # It is given up soon, for the sake of a replica that may be back.
        assert reader._con is not None
        assert reader._con.expires - reader._con.opened <= SECOND_BEST
    close(app)

    assert set(served) == {primary.port}


def test_after_a_write_a_request_reads_what_it_wrote(pair: list[LocalServer]) -> None:
    primary, replica = pair
    make_account(primary)
    set_role(replica, writable=False)
    app = make_app(primary, replica)
    [db] = app.extensions["mysqlpool"]
    with app.app_context():
        get_db().query("SELECT 1")
        assert port(get_db(readonly=True)) == replica.port
        with db.transaction() as connection:
            connection.query("INSERT INTO w VALUES (1)")
            assert get_db(readonly=True) is connection
        assert get_db(readonly=True) is get_db()
    with app.app_context():
        assert port(get_db(readonly=True)) == replica.port
        with db.connection(readonly=True) as connection:
            assert port(connection) == replica.port
    for separate in db.connection, db.transaction:
        with app.app_context():
            with separate(app=app) as connection:
                connection.query("INSERT INTO w VALUES (2)")
            assert port(get_db(readonly=True)) == primary.port
    close(app)


def test_without_readers_the_same_code_works(pair: list[LocalServer]) -> None:
    primary, _ = pair
    app = Flask("plain")
    app.config.update(MYSQLPOOL_URL=primary.url, MYSQLPOOL_STATUS_DIR=False)
    MySQLPool(app)
    with app.app_context():
        assert get_db(readonly=True) is get_db()
    close(app)


def test_readers_must_be_a_bind() -> None:
    app = Flask("shop")
    app.config.update(MYSQLPOOL_HOST="db", MYSQLPOOL_READERS="replica")
    with pytest.raises(ConfigError, match="READERS must name one of MYSQLPOOL_BINDS"):
        MySQLPool(app)


def test_a_bound_on_lag_is_for_replicas() -> None:
    with pytest.raises(ConfigError, match="MAX_LAG needs TARGET to be replica or"):
        config(HOST="db", MAX_LAG=5)


# A replica that replicates


@pytest.fixture(scope="module")
def replicated() -> Iterator[tuple[LocalServer, LocalServer]]:
    """A primary of MariaDB and its replica, both with binary logs."""
    with ExitStack() as stack:
        primary, replica = (
            stack.enter_context(
                local_server(
                    "mariadb",
                    password="same",
                    options=[f"--server-id={n}", *REPLICATES],
                )
            )
            for n in (1, 2)
        )
        execute(
            replica,
            f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={primary.port},"
            f" MASTER_USER='{primary.user}', MASTER_PASSWORD='same',"
            " MASTER_USE_GTID=slave_pos",
            "SET GLOBAL read_only = 1",
            "START REPLICA",
        )
        # What it replays first has the accounts removed, and then made.
        execute(primary, "CREATE TABLE replayed (a INT)")
        until(lambda: has_table(replica, "replayed"))
        yield primary, replica


def has_table(server: LocalServer, name: str) -> bool:
    try:
        execute(server, f"SELECT 1 FROM {name}")
    except pymysql.err.MySQLError:
        return False
    return True


REPLICATES = ["--log-bin=log", "--gtid-domain-id=1", "--log-slave-updates"]


def lag(replica: LocalServer) -> int | None:
    with replica.connect(cursorclass=DictCursor) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SHOW REPLICA STATUS")
            [status] = cursor.fetchall()
    seconds: int | None = status["Seconds_Behind_Master"]
    return seconds


def test_a_replica_that_is_behind_is_not_read_from(
    replicated: tuple[LocalServer, LocalServer],
) -> None:
    primary, replica = replicated
    execute(primary, "CREATE TABLE IF NOT EXISTS lagging (a INT)")
    until(lambda: lag(replica) == 0)
    app = make_app(primary, replica, MAX_LAG=0.5, MAX_SIZE=2)
    with app.app_context():
        assert port(get_db(readonly=True)) == replica.port

    set_delay(replica, 3600)
    execute(primary, "INSERT INTO lagging VALUES (1)", "COMMIT")
    until(lambda: (lag(replica) or 0) >= 1)
    asked_before = time.monotonic() + LAG_VALID
    until(lambda: time.monotonic() > asked_before)
    seen = set()
    for _ in range(50):
        with app.app_context():
            seen.add(port(get_db(readonly=True)))
    assert seen == {primary.port}

    set_delay(replica, 0)
    until(lambda: lag(replica) == 0)
    until(lambda: reads_from(replica, app))
    close(app)


def set_delay(replica: LocalServer, seconds: int) -> None:
    execute(
        replica,
        "STOP REPLICA",
        f"CHANGE MASTER TO MASTER_DELAY = {seconds}",
        "START REPLICA",
    )


def reads_from(server: LocalServer, app: Flask) -> bool:
    with app.app_context():
        [db] = app.extensions["mysqlpool"]
        db.reset()
        return port(get_db(readonly=True)) == server.port


def test_a_replica_that_is_stopped_is_not_read_from(
    replicated: tuple[LocalServer, LocalServer],
) -> None:
    primary, replica = replicated
    execute(replica, "STOP REPLICA")
    app = make_app(primary, replica, MAX_LAG=5)
    with app.app_context():
        assert port(get_db(readonly=True)) == primary.port
    close(app)
    execute(replica, "START REPLICA")


def test_a_replica_of_several_is_judged_by_each(
    replicated: tuple[LocalServer, LocalServer],
) -> None:
    """The last test with these servers: replication goes on under another name."""
    primary, replica = replicated
    pool = make_pool(replica, TARGET="replica", MAX_LAG=600, TIMEOUT=0.2)

    def refusal() -> str:
        pool.reset()
        try:
            pool.connection().close()
        except PoolTimeout as error:
            return str(error.__cause__)
        return ""

    until(lambda: refusal() == "")
    # Written as another address; a root folder may have no names, not even localhost.
    execute(
        replica,
        f"CHANGE MASTER 'north' TO MASTER_HOST='127.1', MASTER_PORT={primary.port},"
        f" MASTER_USER='{primary.user}', MASTER_PASSWORD='same',"
        " MASTER_USE_GTID=slave_pos",
    )
    until(lambda: "a replica that is stopped" in refusal())
    # Now the only one there is has a name.
    execute(replica, "STOP SLAVE", "RESET SLAVE ALL", "START SLAVE 'north'")
    until(lambda: refusal() == "")
    execute(replica, "STOP SLAVE 'north'")
    until(lambda: "a replica that is stopped" in refusal())
    pool.close()
