"""What the projects offered that this one grew out of, and that it works here.

One test for each feature of their pages, in their order. ``docs/seeds.rst`` is the
table of them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pymysql
import pytest
from conftest import MakeApp, MakePool, Sql, extension, until
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from pymysql.cursors import Cursor, DictCursor
from workers import Worker, started

from flask_mysqlpool import (
    ConfigError,
    ConnectionReturned,
    ConnectionShared,
    Pool,
    PooledConnection,
    PoolTimeout,
    get_db,
)
from flask_mysqlpool.pool.pool import NullPool
from flask_mysqlpool.testing import FaultProxy, LocalServer

TABLE = Path(__file__).parents[2] / "docs" / "seeds.rst"

JOHN, JANE = {"id": 1, "name": "John"}, {"id": 2, "name": "Jane"}


def ask(connection: PooledConnection, statement: str, *args: object) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement, args)
        return cursor.fetchall()


def number(connection: PooledConnection) -> int:
    """What the server calls the connection, asked for from the server."""
    [[number]] = ask(connection, "SELECT CONNECTION_ID()")
    return int(number)


def present(sql: Sql, user: str = "app") -> list[int]:
    """The account's connections in the server's process list."""
    statement = "SELECT id FROM information_schema.processlist WHERE user = %s"
    return [int(number) for (number,) in sql(statement, user)]


def kill_all(sql: Sql) -> None:
    for thread in present(sql):
        sql(f"KILL {thread}")
    until(lambda: not present(sql))


def in_use(app: Flask) -> int:
    with app.app_context():
        return extension(app).stats().in_use


def command(app: Flask, *arguments: str) -> str:
    return FlaskCliRunner(app).invoke(args=["mysqlpool", *arguments]).output


@pytest.fixture
def alone(sql: Sql) -> None:
    """At the server nothing is left of the test before."""
    until(lambda: not present(sql))


@pytest.fixture
def people(sql: Sql) -> Iterator[str]:
    sql("DROP TABLE IF EXISTS person")
    sql("CREATE TABLE person (id INT PRIMARY KEY, name VARCHAR(50))")
    sql("INSERT INTO person VALUES (1, 'John'), (2, 'Jane')")
    yield "person"
    sql("DROP TABLE person")


@pytest.fixture
def other_database(sql: Sql) -> Iterator[str]:
    sql("CREATE DATABASE other")
    yield "other"
    sql("DROP DATABASE other")


@pytest.fixture
def guest(sql: Sql) -> Iterator[str]:
    """An account that may do what it likes in its database, and nothing else."""
    sql("CREATE USER guest IDENTIFIED BY 'guest'")
    sql("GRANT ALL ON test.* TO guest")
    yield "guest"
    sql("DROP USER guest")


def site(app: Flask) -> FlaskClient:
    """The two pages of simplerr-mysql, and one for the connection's number."""

    @app.get("/person/all")
    def person_all() -> Any:
        with get_db().cursor(DictCursor) as cursor:
            cursor.execute("SELECT id, name FROM person ORDER BY id")
            return list(cursor.fetchall())

    @app.get("/person/first")
    def person_first() -> Any:
        with get_db().cursor(DictCursor) as cursor:
            cursor.execute("SELECT id, name FROM person ORDER BY id LIMIT 1")
            return cursor.fetchone()

    @app.get("/number")
    def which() -> str:
        return str(number(get_db()))

    return app.test_client()


# simplerr-mysql, in its repository: connect before each request, close after it


def test_simplerr_the_database_is_configured_in_one_place(
    make_app: MakeApp, server: LocalServer, people: str
) -> None:
    app = make_app(
        URL=None,
        DATABASE="test",
        USER="app",
        PASSWORD=server.password,
        HOST="127.0.0.1",
        PORT=server.port,
    )

    assert site(app).get("/person/first").json == JOHN


def test_simplerr_the_process_list_is_shown(make_app: MakeApp) -> None:
    app = make_app()
    with app.app_context(), extension(app).connection() as connection:
        thread = str(connection.thread_id())

        until(lambda: thread in command(app, "status"))

        assert thread in command(app, "status", "--server")


def test_simplerr_a_killed_connection_is_replaced_and_no_page_breaks(
    make_app: MakeApp, sql: Sql, people: str, alone: None
) -> None:
    client = site(make_app())
    assert client.get("/person/first").json == JOHN

    kill_all(sql)

    assert client.get("/person/first").json == JOHN


def test_simplerr_connections_are_stopped_without_admin_rights(
    make_app: MakeApp, people: str, guest: str
) -> None:
    app = make_app(USER=guest, PASSWORD=guest)
    client = site(app)
    before = client.get("/number").text

    answer = command(app, "reset", "--server", "--yes")

    assert "1 idle connection" in answer
    assert client.get("/number").text != before
    assert client.get("/person/first").json == JOHN


def test_simplerr_each_request_connects_and_closes_without_hooks(
    make_app: MakeApp, sql: Sql, alone: None
) -> None:
    client = site(make_app(BACKEND="null"))
    seen = set()

    for _ in range(3):
        seen.add(client.get("/number").text)
        until(lambda: not present(sql))

    assert len(seen) == 3


# simplerr-mysql, its own page: the same, with what may go wrong


def test_simplerr_pages_show_people(make_app: MakeApp, people: str) -> None:
    client = site(make_app())

    assert client.get("/person/all").json == [JOHN, JANE]
    assert client.get("/person/first").json == JOHN


def test_simplerr_a_connection_that_timed_out_is_replaced(
    make_app: MakeApp, sql: Sql, people: str, alone: None
) -> None:
    client = site(make_app(SETSESSION=["SET wait_timeout = 1"]))
    before = client.get("/number").text

    until(lambda: not present(sql))

    assert client.get("/person/first").json == JOHN
    assert client.get("/number").text != before


def test_simplerr_a_connection_closed_by_accident_is_no_harm(
    make_app: MakeApp, people: str
) -> None:
    app = make_app()

    @app.get("/")
    def careless() -> str:
        get_db().close()
        return str(ask(get_db(), "SELECT name FROM person WHERE id = 1"))

    assert app.test_client().get("/").text == "(('John',),)"
    assert in_use(app) == 0


def test_simplerr_an_error_in_the_view_closes_all_the_same(
    make_app: MakeApp, people: str
) -> None:
    app = make_app(MAX_SIZE=1, TIMEOUT=1)
    app.config["PROPAGATE_EXCEPTIONS"] = False
    client = site(app)

    @app.get("/broken")
    def broken() -> str:
        return str(ask(get_db(), "SELECT nothing FROM person"))

    assert [client.get("/broken").status_code for _ in range(3)] == [500] * 3
    assert in_use(app) == 0
    assert client.get("/person/first").json == JOHN


def test_simplerr_no_connect_is_an_error_with_its_reason_and_passes(
    make_app: MakeApp,
    server: LocalServer,
    proxy: FaultProxy,
    people: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make_app(URL=server.url_at(proxy.port))
    app.config["PROPAGATE_EXCEPTIONS"] = False
    client = site(app)
    proxy.refuse()

    assert client.get("/person/first").status_code == 503
    assert "2003" in caplog.text

    proxy.listen()
    assert client.get("/person/first").json == JOHN


# django-mysqlpool: a process has so many connections and no more


def test_django_mysqlpool_the_driver_is_used_as_it_is_installed(
    make_pool: MakePool,
) -> None:
    with make_pool().connection() as connection, connection.cursor() as cursor:
        assert isinstance(cursor, Cursor)
        assert connection.get_server_info() == connection.server_version
        assert connection.escape("it's") == r"'it\'s'"


def test_django_mysqlpool_a_process_has_no_more_than_max_size(
    make_pool: MakePool, sql: Sql, alone: None
) -> None:
    pool = make_pool(MAX_SIZE=3)
    with ExitStack() as stack:
        held = [stack.enter_context(pool.connection()) for _ in range(3)]

        with pytest.raises(PoolTimeout, match="in use 3/3"):
            pool.connection(timeout=0.05)

        assert sorted(present(sql)) == sorted(map(number, held))


PROCESS = """
import sys
from flask import Flask
from flask_mysqlpool import MySQLPool, PoolTimeout

app = Flask("shop")
app.config.update(
    MYSQLPOOL_URL=sys.argv[1],
    MYSQLPOOL_STATUS_DIR=sys.argv[2],
    MYSQLPOOL_MAX_HOST_CONNECTIONS=3,
)
db = MySQLPool(app)
held = []

def take(timeout):
    try:
        held.append(db.connection(timeout=timeout, app=app))
    except PoolTimeout:
        return False
    return True

for line in sys.stdin:
    print(eval(line), flush=True)
"""


def test_django_mysqlpool_a_limit_for_all_processes_of_the_host(
    server: LocalServer, tmp_path: Path, sql: Sql, alone: None
) -> None:
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(started(PROCESS, server.url, tmp_path / "board"))
            for _ in range(2)
        )
        assert [took(one, timeout=10) for _ in range(3)] == [True] * 3
        assert not took(one, timeout=0.3)
        assert not took(other, timeout=0.3)
        assert len(present(sql)) == 3

        one.ask("held.pop().close()")

        assert took(other, timeout=10)
        assert len(present(sql)) <= 3


def took(worker: Worker, timeout: float) -> bool:
    return worker.ask(f"take({timeout})") == "True"


def test_django_mysqlpool_who_exhausts_the_pool_is_named(
    make_app: MakeApp, people: str, caplog: pytest.LogCaptureFixture
) -> None:
    shop, reports = make_app(MAX_SIZE=1, TIMEOUT=0.05), make_app(NAME="reports")

    def hold() -> PooledConnection:
        return extension(shop).connection(app=shop, timeout=5)

    with ThreadPoolExecutor(1, "greedy") as executor:
        with executor.submit(hold).result():
            assert site(shop).get("/person/first").status_code == 503
            assert site(reports).get("/person/first").json == JOHN

    assert "shop: no connection" in caplog.text
    assert "by thread 'greedy" in caplog.text


def test_django_mysqlpool_the_pool_implementation_is_a_setting(
    make_app: MakeApp,
) -> None:
    class Own(Pool):
        pass

    kinds = {"pooled": Pool, "null": NullPool, Own: Own}
    for backend, kind in kinds.items():
        app = make_app(BACKEND=backend)
        with app.app_context():
            assert type(extension(app).pool()) is kind
            assert number(get_db())
    with pytest.raises(ConfigError, match="MYSQLPOOL_BACKEND must be pooled, null"):
        make_app(BACKEND="QueuePool")


def test_django_mysqlpool_the_arguments_of_the_pool_are_settings(
    make_app: MakeApp,
) -> None:
    with pytest.raises(ConfigError, match="write each of them as a setting"):
        make_app(ARGUMENTS={"pool_size": 7})

    app = make_app(MAX_SIZE=7)
    with app.app_context():
        assert extension(app).stats().max_size == 7


def test_django_mysqlpool_threads_take_turns_on_few_connections(
    make_app: MakeApp,
) -> None:
    app = make_app(MAX_SIZE=2, TIMEOUT=30)
    db = extension(app)

    @db.auto_close_db
    def job(_: int) -> int:
        return number(db.get_db())

    with ThreadPoolExecutor(8) as executor:
        seen = list(executor.map(job, range(80)))

    assert len(seen) == 80
    assert 1 <= len(set(seen)) <= 2


def test_django_mysqlpool_auto_close_db_returns_what_a_thread_took(
    make_app: MakeApp, people: str, sql: Sql
) -> None:
    app = make_app(MAX_SIZE=1)
    db = extension(app)

    @db.auto_close_db
    def function_that_uses_db(fail: bool) -> int:
        deleted = db.get_db().cursor().execute("DELETE FROM person WHERE id = 1")
        if fail:
            raise LookupError
        db.get_db().commit()
        return deleted

    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(LookupError):
            executor.submit(function_that_uses_db, True).result()
        assert executor.submit(function_that_uses_db, False).result() == 1

    assert in_use(app) == 0
    assert sql("SELECT name FROM person") == (("Jane",),)


DAEMON = """
import json, os, signal, socket, sys
if "hookless" in sys.argv:
    os.register_at_fork = lambda **hooks: None  # as under a server that forks in C
from flask import Flask
from flask_mysqlpool import MySQLPool

app = Flask("daemon")
app.config.update(MYSQLPOOL_URL=sys.argv[1], MYSQLPOOL_STATUS_DIR=False)
db = MySQLPool(app)

@db.auto_close_db
def number():
    with db.get_db().cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        return cursor.fetchone()[0]

def heard(end):
    end.setblocking(False)
    try:
        return repr(end.recv(100))
    except BlockingIOError:
        return None

def child():
    signal.alarm(20)
    # What it opens next gets the numbers of the connections that it inherited.
    os.closerange(3, 40)
    ends = [end for _ in range(20) for end in socket.socketpair()]
    seen = number()
    return seen, [words for end in ends if (words := heard(end))]

close_before = "close" in sys.argv
with app.app_context():
    held = None if close_before else db.connection()
    before = number()
    if close_before:
        db.close_pool()
    answer, out = os.pipe()
    os.dup2(out, 50)
    if os.fork() == 0:
        os.write(50, json.dumps(child()).encode())
        os._exit(0)
    os.close(50), os.close(out)
    seen, words = json.loads(open(answer).read())
    print(json.dumps({
        "before": before,
        "child": seen,
        "strangers heard": words,
        "after": number(),
        "held is alive": close_before or held.ping() is None,
    }))
    if held:
        held.close()
"""


def daemon(server: LocalServer, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-c", DAEMON, server.url, *arguments],
        capture_output=True,
        text=True,
        timeout=40,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    said: dict[str, Any] = json.loads(run.stdout)
    return said


def test_django_mysqlpool_close_pool_before_a_fork(
    server: LocalServer, tmp_path: Path
) -> None:
    said = daemon(server, tmp_path, "close")

    assert len({said["before"], said["child"], said["after"]}) == 3
    assert said["strangers heard"] == []


@pytest.mark.parametrize("arguments", [[], ["hookless"]])
def test_django_mysqlpool_close_pool_before_a_fork_is_not_needed(
    server: LocalServer, tmp_path: Path, arguments: list[str]
) -> None:
    said = daemon(server, tmp_path, *arguments)

    assert said["child"] != said["before"] == said["after"]
    assert said["held is alive"]
    assert said["strangers heard"] == []


# pymysql-pool: threads borrow connections


def test_pymysql_pool_threads_that_share_a_connection_are_told(
    make_pool: MakePool, sql: Sql
) -> None:
    """Where PyMySQL's packets get out of step."""
    sql("SELECT GET_LOCK('turn', 0)")
    waiting = "SELECT 1 FROM information_schema.processlist WHERE state = 'User lock'"
    with make_pool().connection() as shared, ThreadPoolExecutor(1) as executor:
        first = executor.submit(ask, shared, "SELECT GET_LOCK('turn', 30)")
        until(lambda: sql(waiting))

        with pytest.raises(ConnectionShared, match="take one for each thread"):
            ask(shared, "SELECT 2")

        sql("SELECT RELEASE_LOCK('turn')")
        assert first.result() == ((1,),)
        assert ask(shared, "SELECT 3") == ((3,),)


def test_pymysql_pool_threads_need_not_connect_each_for_itself(
    make_pool: MakePool,
) -> None:
    pool = make_pool()

    def job() -> int:
        with pool.connection() as connection:
            return number(connection)

    for _ in range(10):
        with ThreadPoolExecutor(1) as executor:
            assert executor.submit(job).result()

    assert (pool.stats().opened, pool.stats().checkouts) == (1, 10)


def test_pymysql_pool_pre_create_num_connections_are_kept_ready(
    make_pool: MakePool, sql: Sql, alone: None
) -> None:
    pool = make_pool(MIN_SIZE=2, MAX_SIZE=3)
    assert not present(sql)

    with pool.connection():
        until(lambda: pool.stats().idle == 1)

    until(lambda: pool.stats().idle == 2)
    assert len(present(sql)) == 2


def test_pymysql_pool_size_and_maxsize_are_its_bounds(
    make_pool: MakePool, sql: Sql, alone: None
) -> None:
    pool = make_pool(MIN_SIZE=2, MAX_SIZE=3, MAX_IDLE=0.01)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(pool.connection())
        assert len(present(sql)) == 3

    until(lambda: pool.maintain() and pool.stats().size == 2)

    until(lambda: len(present(sql)) == 2)
    pool.maintain()
    assert pool.stats().size == 2


def test_pymysql_pool_an_exhausted_pool_raises_an_error_with_its_name(
    make_pool: MakePool,
) -> None:
    pool = make_pool(NAME="pool1", MAX_SIZE=1)
    with pool.connection():
        with pytest.raises(PoolTimeout, match="^pool1: no connection within"):
            pool.connection(timeout=0)


def test_pymysql_pool_who_waits_is_served_without_retries(
    make_pool: MakePool,
) -> None:
    pool = make_pool(MAX_SIZE=1, TIMEOUT=30)
    with ThreadPoolExecutor(1) as executor:
        with pool.connection() as connection:
            taken = connection.thread_id()
            waiter = executor.submit(pool.connection)
            until(lambda: pool.stats().waiting == 1)
            assert not waiter.done()

        with waiter.result() as handed_over:
            assert number(handed_over) == taken


def test_pymysql_pool_close_returns(make_pool: MakePool) -> None:
    pool = make_pool(MAX_SIZE=1)
    connection = pool.connection()
    assert (pool.stats().in_use, pool.stats().idle) == (1, 0)

    connection.close()
    connection.close()

    assert (pool.stats().in_use, pool.stats().idle) == (0, 1)


def test_pymysql_pool_with_returns(make_pool: MakePool) -> None:
    pool = make_pool(MAX_SIZE=1)

    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 + 1")
        assert cursor.fetchall() == ((2,),)

    assert (pool.stats().in_use, pool.stats().idle) == (0, 1)


def test_pymysql_pool_a_connection_cannot_be_used_after_its_return(
    make_pool: MakePool,
) -> None:
    """Their page does so in its last example, and gets somebody else's."""
    connection = make_pool().connection()
    cursor = connection.cursor()
    connection.close()

    with pytest.raises(ConnectionReturned):
        ask(connection, "SELECT 1 + 1")
    with pytest.raises(ConnectionReturned):
        cursor.execute("SELECT 1 + 1")


@pytest.mark.filterwarnings("ignore:.*was never returned:ResourceWarning")
def test_pymysql_pool_what_nobody_returned_does_not_exhaust_it(
    make_pool: MakePool,
) -> None:
    pool = make_pool(MAX_SIZE=1)

    seen = {number(pool.connection()) for _ in range(3)}

    assert len(seen) == 3
    until(lambda: pool.stats().in_use == 0)


def test_pymysql_pool_a_connection_is_used_as_pymysql_has_it(
    make_pool: MakePool, table: str
) -> None:
    with make_pool(CURSORCLASS="DictCursor").connection() as connection:
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO t (a) VALUES (%s)", [[1], [2]])
            assert (cursor.rowcount, cursor.lastrowid) == (2, 1)
        connection.commit()
        connection.begin()
        connection.query("DELETE FROM t")
        assert connection.affected_rows() == 2
        connection.rollback()
        assert ask(connection, "SELECT a FROM t") == [{"a": 1}, {"a": 2}]
        connection.ping()
        assert connection.open


def test_pymysql_pool_a_connection_has_a_lifetime(make_pool: MakePool) -> None:
    pool = make_pool(MAX_LIFETIME=0.05)

    def job() -> int:
        with pool.connection() as connection:
            return number(connection)

    first = job()
    until(lambda: job() != first)

    assert pool.stats().discarded_by_reason["expired"] >= 1


def test_pymysql_pool_what_wait_timeout_closed_is_not_lent(
    make_pool: MakePool, sql: Sql, alone: None
) -> None:
    """And without a ping for each checkout."""
    pool = make_pool(SETSESSION=["SET wait_timeout = 1"], PING_AFTER=3600)
    with pool.connection() as one, pool.connection() as other:
        before = {number(one), number(other)}

    until(lambda: not present(sql))

    with pool.connection() as one, pool.connection() as other:
        assert not before & {number(one), number(other)}


def test_pymysql_pool_after_an_error_of_a_statement_it_is_used_again(
    make_pool: MakePool, table: str
) -> None:
    pool = make_pool(MAX_SIZE=1)
    with pytest.raises(pymysql.err.ProgrammingError):
        with pool.connection() as connection:
            before = number(connection)
            ask(connection, "INSERT INTO t (a) VALUES (1)")
            ask(connection, "SELECT * FROM no_such_table")

    with pool.connection() as connection:
        assert number(connection) == before
        assert ask(connection, "SELECT a FROM t") == ()


def test_pymysql_pool_after_the_loss_of_the_connection_it_is_not(
    make_pool: MakePool, sql: Sql, alone: None
) -> None:
    pool = make_pool(MAX_SIZE=1)
    with pytest.raises(pymysql.err.OperationalError):
        with pool.connection() as connection:
            before = number(connection)
            kill_all(sql)
            ask(connection, "SELECT 1")

    with pool.connection() as connection:
        assert number(connection) != before


def test_pymysql_pool_several_pools_have_names_and_databases(
    make_app: MakeApp, other_database: str
) -> None:
    app = make_app(
        NAME="pool1", BINDS={"second": {"DATABASE": "other", "NAME": "pool2"}}
    )
    with app.app_context():
        db = extension(app)
        assert ask(get_db(), "SELECT DATABASE()") == (("test",),)
        assert ask(get_db("second"), "SELECT DATABASE()") == (("other",),)
        assert [pool.name for pool in db.pools.values()] == ["pool1", "pool2"]


def test_pymysql_pool_what_the_pool_does_can_be_seen(make_pool: MakePool) -> None:
    pool = make_pool(NAME="pool1", MAX_SIZE=3)
    with pool.connection():
        assert "'pool1'" in repr(pool) and "in use 1/3, idle 0" in repr(pool)
        [connection] = pool.connections()
        assert (connection.state, connection.endpoint) == ("in_use", "MainThread")

    stats = pool.stats()
    assert (stats.name, stats.opened, stats.checkouts, stats.idle) == ("pool1", 1, 1, 1)


# django-conn-pool: not one more connection than the server can bear


def test_django_conn_pool_requests_do_not_connect_each_for_itself(
    make_app: MakeApp, people: str
) -> None:
    app = make_app()
    client = site(app)

    assert len({client.get("/number").text for _ in range(10)}) == 1
    with app.app_context():
        assert extension(app).stats().opened == 1


@contextmanager
def max_connections(sql: Sql, value: int) -> Iterator[None]:
    [(before,)] = sql("SELECT @@global.max_connections")
    sql(f"SET GLOBAL max_connections = {value}")
    try:
        yield
    finally:
        sql(f"SET GLOBAL max_connections = {before}")


def test_django_conn_pool_a_siege_is_not_too_many_connections(
    make_app: MakeApp, sql: Sql, guest: str, alone: None
) -> None:
    app = make_app(USER=guest, PASSWORD=guest, MAX_SIZE=8, TIMEOUT=30)
    refused = "SHOW GLOBAL STATUS LIKE 'Connection_errors_max_connections'"
    [(_, before)] = sql(refused)

    @app.get("/")
    def view() -> str:
        """How many there are, while this one is kept busy."""
        statement = "SELECT COUNT(*), SLEEP(0.002) FROM information_schema.processlist"
        return str(ask(get_db(), statement)[0][0])

    with max_connections(sql, 10), ThreadPoolExecutor(40) as executor:
        answers = list(executor.map(lambda _: app.test_client().get("/"), range(200)))

    assert {answer.status_code for answer in answers} == {200}
    assert 1 <= max(int(answer.text) for answer in answers) <= 8
    assert [count for _, count in sql(refused)] == [before]


def test_django_conn_pool_pool_size_and_max_overflow_are_one_number(
    make_pool: MakePool, sql: Sql, alone: None
) -> None:
    """What goes beyond their pool's size is closed at once, and opened again."""
    pool = make_pool(MAX_SIZE=2 + 2)
    with ExitStack() as stack:
        held = [stack.enter_context(pool.connection()) for _ in range(4)]
        threads = {number(connection) for connection in held}
        with pytest.raises(PoolTimeout):
            pool.connection(timeout=0)

    assert pool.stats().idle == 4
    assert set(present(sql)) == threads


def test_django_conn_pool_timeout_is_an_error_of_the_request(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(MAX_SIZE=1, TIMEOUT=0.05)
    client = site(app)
    with app.app_context(), extension(app).connection(timeout=5):
        answer = client.get("/number")
        with pytest.raises(PoolTimeout):
            get_db()

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "shop: no connection within" in caplog.text
    assert client.get("/number").status_code == 200


def test_django_conn_pool_recycle_disturbs_nobody(make_pool: MakePool) -> None:
    pool = make_pool(MAX_SIZE=1, MAX_LIFETIME=0.02)
    with pool.connection() as connection:
        before = number(connection)
        until(lambda: pool.connections()[0].age > 0.03)
        assert number(connection) == before

    with pool.connection() as connection:
        # Before this one comes back, which may be too old by then.
        assert pool.stats().discarded_by_reason["expired"] == 1
        assert number(connection) != before


def test_django_conn_pool_two_databases_have_a_pool_each(
    make_app: MakeApp, other_database: str
) -> None:
    app = make_app(MAX_SIZE=1, BINDS={"other": {"DATABASE": "other"}})
    with app.app_context():
        assert ask(get_db(), "SELECT DATABASE()") == (("test",),)
        assert ask(get_db("other"), "SELECT DATABASE()") == (("other",),)
        assert [pool.stats().in_use for pool in extension(app).pools.values()] == [1, 1]


def test_django_conn_pool_databases_of_one_name_are_told_apart(
    make_app: MakeApp, guest: str
) -> None:
    """There, the first whose database is called so takes it all."""
    app = make_app(BINDS={"other": {"USER": guest, "PASSWORD": guest}})
    with app.app_context():
        [[default]] = ask(get_db(), "SELECT CURRENT_USER()")
        [[other]] = ask(get_db("other"), "SELECT CURRENT_USER()")

    assert (default.split("@")[0], other.split("@")[0]) == ("app", guest)


def test_django_conn_pool_charset_and_sql_mode_reach_the_session(
    make_pool: MakePool,
) -> None:
    pool = make_pool(SQL_MODE="STRICT_TRANS_TABLES")
    session = "SELECT @@sql_mode, @@character_set_client"
    with pool.connection() as connection:
        assert ask(connection, session) == (("STRICT_TRANS_TABLES", "utf8mb4"),)
        ask(connection, "SET sql_mode = ''")

    with pool.connection() as connection:
        assert ask(connection, session) == (("STRICT_TRANS_TABLES", "utf8mb4"),)


# The table of all these


def test_the_table_names_every_test_of_this_module_and_no_other() -> None:
    tests = {name for name in globals() if name.startswith("test_")}

    named = re.findall(r"``(test_\w+)``", TABLE.read_text(encoding="utf-8"))

    assert set(named) == tests
    assert len(named) == len(set(named))
