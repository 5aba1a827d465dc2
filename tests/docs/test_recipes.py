"""docs/recipes.rst: what it prints is what runs here, on real servers, with faults."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pymysql.err
import pytest
from certificates import Authority
from conftest import MakeApp, Sql, until
from flask import Flask
from flask.testing import FlaskClient
from relays import Relay, by_socket, socks

from flask_mysqlpool import (
    ConnectionReturned,
    ConnectionShared,
    MySQLPool,
    PooledConnection,
    ServerUnavailable,
    TransactionError,
    close_db,
    get_db,
)
from flask_mysqlpool.testing import LocalServer

pytestmark = pytest.mark.one_engine

PAGE = Path(__file__).parents[2] / "docs" / "recipes.rst"
BLOCK = re.compile(
    r"^\.\. code-block:: (?:python|mysql)\n    :name: (\S+)\n\n((?:    .*\n|\n)+)",
    re.MULTILINE,
)
BLOCKS = {name: textwrap.dedent(text) for name, text in BLOCK.findall(PAGE.read_text())}

PEEWEE_DATABASE: Any = import_module("flask_mysqlpool.contrib.peewee")
PEEWEE: Any = import_module("peewee")
SQLALCHEMY: Any = import_module("sqlalchemy.exc")


class Oops(Exception):
    """What only the test raises."""


def execute(block: str, namespace: dict[str, Any]) -> None:
    code = compile(BLOCKS[block], f"{PAGE.name}, {block}", "exec", dont_inherit=True)
    exec(code, namespace)


class Recipe:
    """An app that has the blocks of the page which are named."""

    def __init__(self, make_app: MakeApp, settings: str, *blocks: str, **more: Any):
        stand_in = types.SimpleNamespace(config={})
        if settings:
            execute(settings, {"app": stand_in})
        binds = stand_in.config.get("MYSQLPOOL_BINDS", {})
        self.app: Flask = make_app(BINDS=binds, **more)
        self.bind = next(iter(binds), "default")
        [self.db] = self.app.extensions["mysqlpool"]
        self.names = {"app": self.app, "db": self.db, "__name__": __name__}
        for block in blocks:
            execute(block, self.names)

    def __getattr__(self, name: str) -> Any:
        return self.names[name]

    @property
    def client(self) -> FlaskClient:
        return self.app.test_client()

    @property
    def in_use(self) -> int:
        with self.app.app_context():
            db: MySQLPool = self.db
            return db.stats(self.bind).in_use


@pytest.fixture
def stored(sql: Sql) -> Callable[[], list[str]]:
    """The names that are committed in a table of two people."""
    sql("DROP TABLE IF EXISTS person")
    sql(
        "CREATE TABLE person (id INT AUTO_INCREMENT PRIMARY KEY,"
        " name VARCHAR(80) NOT NULL UNIQUE)"
    )
    sql("INSERT INTO person (name) VALUES ('Ann'), ('Bob')")
    return lambda: [name for (name,) in sql("SELECT name FROM person ORDER BY id")]


Stored = Callable[[], list[str]]


@pytest.fixture
def kill(sql: Sql) -> Callable[[int], None]:
    """Kill a connection, and wait until it is gone."""
    alive = "SELECT 1 FROM information_schema.processlist WHERE id = %s"

    def kill(number: int) -> None:
        sql(f"KILL {number}")
        until(lambda: not sql(alive, number))

    return kill


Kill = Callable[[int], None]


def test_every_block_of_the_page_is_run_here() -> None:
    used = Path(__file__).read_text()

    assert PAGE.read_text().count("code-block::") == len(BLOCKS) > 0
    assert [name for name in BLOCKS if f'"{name}"' not in used] == []


# peewee


@pytest.fixture
def peewee(make_app: MakeApp, stored: Stored) -> Recipe:
    blocks = "peewee-database", "peewee-views"
    return Recipe(make_app, "peewee-settings", *blocks, MAX_SIZE=2)


@pytest.fixture
def database(peewee: Recipe) -> Any:
    return peewee.Person._meta.database


def test_peewee_serves_the_pages_and_notices_no_kill(
    peewee: Recipe, kill: Kill
) -> None:
    numbers = []

    @peewee.app.after_request
    def note(response: Any) -> Any:
        numbers.append(get_db("peewee").thread_id())
        return response

    client = peewee.client
    for _ in range(3):
        assert client.get("/person/all").json == [
            {"id": 1, "name": "Ann"},
            {"id": 2, "name": "Bob"},
        ]
        assert client.get("/person/first").json == {"name": "Ann"}
        assert peewee.in_use == 0
        assert numbers[-2] == numbers[-1]
        kill(numbers[-1])

    assert len(set(numbers)) == 3


def test_peewee_serves_requests_inside_of_one_context(peewee: Recipe) -> None:
    with peewee.app.app_context():
        for _ in range(2):
            assert peewee.client.get("/person/first").json == {"name": "Ann"}
            assert peewee.in_use == 0
        assert peewee.Person.select().count() == 2
        assert peewee.client.get("/person/first").json == {"name": "Ann"}

    assert peewee.in_use == 0


def test_peewee_has_autocommit_and_get_db_has_not(
    peewee: Recipe, stored: Stored
) -> None:
    with peewee.app.app_context():
        peewee.Person.create(name="Cy")
        assert stored() == ["Ann", "Bob", "Cy"]
        assert get_db("peewee").get_autocommit() and not get_db().get_autocommit()


def test_peewee_without_autocommit_is_refused(make_app: MakeApp) -> None:
    """Or what it creates would be rolled back at the end of the request."""
    peewee = Recipe(make_app, "", "peewee-database", "peewee-views")
    peewee.Person._meta.set_database(peewee.PooledDatabase("default"))

    with peewee.app.app_context(), pytest.raises(RuntimeError, match="AUTOCOMMIT"):
        peewee.Person.create(name="Cy")
    assert peewee.in_use == 0


def test_peewee_makes_tables(peewee: Recipe, database: Any, sql: Sql) -> None:
    sql("DROP TABLE person")
    with peewee.app.app_context():
        database.create_tables([peewee.Person])
        peewee.Person.insert_many([{"name": "Cy"}, {"name": "Dee"}]).execute()
        assert "person" in database.get_tables()
        names = [person.name for person in peewee.Person.select().iterator()]

    assert names == ["Cy", "Dee"]


def test_peewee_nests_transactions(
    peewee: Recipe, database: Any, stored: Stored
) -> None:
    create = peewee.Person.create
    with peewee.app.app_context():
        with database.atomic():
            create(name="Cy")
            with pytest.raises(Oops), database.atomic():
                create(name="Dee")
                raise Oops
            with database.atomic():
                create(name="Eve")
            assert stored() == ["Ann", "Bob"]
        assert stored() == ["Ann", "Bob", "Cy", "Eve"]
        with pytest.raises(Oops), database.atomic():
            with database.atomic():
                create(name="Fay")
            raise Oops

    assert stored() == ["Ann", "Bob", "Cy", "Eve"]
    assert peewee.in_use == 0


@pytest.mark.parametrize("when", ["statement", "commit"])
def test_peewee_commits_nothing_of_a_transaction_that_was_killed(
    peewee: Recipe, database: Any, stored: Stored, kill: Kill, when: str
) -> None:
    error = PEEWEE.OperationalError
    with peewee.app.app_context():
        with pytest.raises(error, match="Lost connection|gone away|killed|closed"):
            with database.atomic():
                peewee.Person.create(name="Cy")
                kill(get_db("peewee").thread_id())
                if when == "statement":
                    peewee.Person.create(name="Dee")
        assert stored() == ["Ann", "Bob"]
        peewee.Person.create(name="Eve")

    assert stored() == ["Ann", "Bob", "Eve"]
    assert peewee.in_use == 0


def test_peewee_commits_nothing_after_a_kill_in_a_savepoint(
    peewee: Recipe, database: Any, stored: Stored, kill: Kill
) -> None:
    error = PEEWEE.OperationalError
    with peewee.app.app_context():
        with pytest.raises(error), database.atomic():
            peewee.Person.create(name="Cy")
            with pytest.raises(error), database.atomic():
                kill(get_db("peewee").thread_id())
                peewee.Person.create(name="Dee")
            peewee.Person.create(name="Eve")
        assert peewee.Person.select().count() == 2

    assert stored() == ["Ann", "Bob"]
    assert peewee.in_use == 0


def test_peewee_does_not_go_on_with_half_a_transaction(
    peewee: Recipe, database: Any, stored: Stored
) -> None:
    with peewee.app.app_context():
        with pytest.raises(ConnectionReturned), database.atomic():
            peewee.Person.create(name="Cy")
            close_db()
            peewee.Person.create(name="Dee")
        assert peewee.Person.select().count() == 2

        # Nor can it be ended if that error is caught inside. What that raises depends
        # on the version of peewee.
        errors = PEEWEE.InterfaceError, ConnectionReturned
        with pytest.raises(errors), database.atomic():
            peewee.Person.create(name="Cy")
            close_db()
            with pytest.raises(ConnectionReturned):
                peewee.Person.create(name="Dee")
        peewee.Person.create(name="Eve")

    assert stored() == ["Ann", "Bob", "Eve"]
    assert peewee.in_use == 0


def test_peewee_begins_nothing_inside_of_a_transaction_of_the_pool(
    peewee: Recipe, database: Any, stored: Stored
) -> None:
    with peewee.app.app_context():
        with pytest.raises((TransactionError, PEEWEE.ProgrammingError)):
            with peewee.db.transaction("peewee"):
                peewee.Person.create(name="Cy")
                with database.atomic():
                    peewee.Person.create(name="Dee")

    assert stored() == ["Ann", "Bob"]
    assert peewee.in_use == 0


def test_peewee_returns_the_connection_after_an_exception(
    peewee: Recipe, database: Any, stored: Stored
) -> None:
    @peewee.app.post("/<name>/<how>")
    def add(name: str, how: str) -> str:
        if how == "open":
            # Never ended, and open when the request is over.
            database.session_start()
            peewee.Person.create(name=name)
            raise Oops
        with database.atomic():
            peewee.Person.create(name=name)
            raise Oops

    for how in ["open", "atomic"]:
        with pytest.raises(Oops):
            peewee.client.post(f"/Cy/{how}")
        assert peewee.in_use == 0
        assert peewee.client.get("/person/first").json == {"name": "Ann"}

    assert stored() == ["Ann", "Bob"]


def test_peewee_errors_are_peewees(peewee: Recipe, stored: Stored) -> None:
    peewee.app.testing = False

    @peewee.app.errorhandler(PEEWEE.IntegrityError)
    def known(error: Any) -> Any:
        return str(error.args[0]), 409

    @peewee.app.post("/<name>")
    def add(name: str) -> str:
        peewee.Person.create(name=name)
        return "done"

    response = peewee.client.post("/Ann")

    assert (response.status_code, response.text) == (409, "1062")
    assert peewee.client.post("/Cy").text == "done"
    assert peewee.in_use == 0


def test_peewee_threads_have_connections_of_their_own(
    peewee: Recipe, database: Any, stored: Stored
) -> None:
    both = threading.Barrier(2)

    def add(name: str) -> tuple[int, int]:
        with peewee.app.app_context(), database.atomic():
            peewee.Person.create(name=name)
            both.wait(10)
            seen = peewee.Person.select().count()
            both.wait(10)
            return seen, get_db("peewee").thread_id()

    with ThreadPoolExecutor(2) as executor:
        (one, first), (other, second) = executor.map(add, ["Cy", "Dee"])

    assert one == other == 3
    assert first != second
    assert sorted(stored()) == ["Ann", "Bob", "Cy", "Dee"]
    assert peewee.in_use == 0


def test_peewee_waits_without_its_lock(make_app: MakeApp, stored: Stored) -> None:
    """Who waits for the pool must not keep others from returning theirs."""
    blocks = "peewee-database", "peewee-views"
    peewee = Recipe(make_app, "peewee-settings", *blocks, MAX_SIZE=1)
    with peewee.app.app_context(), ThreadPoolExecutor(1) as executor:
        assert peewee.Person.select().count() == 2
        waits = executor.submit(lambda: peewee.client.get("/person/first"))
        until(lambda: peewee.db.stats("peewee").waiting)

        peewee.Person._meta.database.close()

        assert waits.result(3).json == {"name": "Ann"}


def test_peewee_without_a_connection_is_a_503(
    make_app: MakeApp, stored: Stored
) -> None:
    blocks = "peewee-database", "peewee-views"
    peewee = Recipe(make_app, "peewee-settings", *blocks, MAX_SIZE=1, TIMEOUT=1)

    with peewee.db.connection("peewee", app=peewee.app):
        response = peewee.client.get("/person/all")
    assert response.status_code == 503
    assert response.headers["Retry-After"]
    assert peewee.client.get("/person/all").status_code == 200


# SQLAlchemy


@pytest.fixture
def alchemy(make_app: MakeApp, stored: Stored) -> Recipe:
    blocks = "sqlalchemy-engine", "sqlalchemy-views"
    return Recipe(make_app, "sqlalchemy-settings", *blocks, MAX_SIZE=2)


@pytest.fixture
def context(alchemy: Recipe) -> Iterator[None]:
    with alchemy.app.app_context():
        yield
        assert alchemy.in_use == 0


def test_sqlalchemy_serves_the_pages(alchemy: Recipe) -> None:
    assert alchemy.client.get("/person/all").json == ["Ann", "Bob"]
    assert alchemy.client.post("/person/Cy").status_code == 204
    assert alchemy.client.get("/person/all").json == ["Ann", "Bob", "Cy"]
    assert alchemy.in_use == 0


def test_sqlalchemy_after_an_error_the_pages_are_served(
    alchemy: Recipe, stored: Stored
) -> None:
    error = SQLALCHEMY.IntegrityError

    with pytest.raises(error) as info:
        alchemy.client.post("/person/Ann")

    assert isinstance(info.value.orig, pymysql.err.IntegrityError)
    assert not info.value.connection_invalidated
    assert alchemy.in_use == 0
    assert alchemy.client.post("/person/Cy").status_code == 204
    assert stored() == ["Ann", "Bob", "Cy"]


@pytest.mark.usefixtures("context")
def test_sqlalchemy_core_transactions(alchemy: Recipe, stored: Stored) -> None:
    table = alchemy.Person.__table__
    with alchemy.engine.begin() as connection:
        connection.execute(table.insert(), [{"name": "Cy"}, {"name": "Dee"}])
        with pytest.raises(Oops), connection.begin_nested():
            connection.execute(table.delete())
            raise Oops
        assert stored() == ["Ann", "Bob"]
    assert stored() == ["Ann", "Bob", "Cy", "Dee"]

    with pytest.raises(Oops), alchemy.engine.begin() as connection:
        connection.execute(table.delete())
        raise Oops
    with alchemy.engine.connect() as connection:
        connection.execute(table.delete())
    assert stored() == ["Ann", "Bob", "Cy", "Dee"]


@pytest.mark.usefixtures("context")
def test_sqlalchemy_sessions_have_connections_of_their_own(
    alchemy: Recipe, stored: Stored
) -> None:
    select = alchemy.select(alchemy.Person.name)
    with alchemy.Session(alchemy.engine) as one, alchemy.Session(alchemy.engine) as two:
        one.add(alchemy.Person(name="Cy"))
        one.flush()
        assert two.scalars(select).all() == ["Ann", "Bob"]
        assert alchemy.in_use == 2
        one.commit()
        two.rollback()
        assert two.scalars(select).all() == ["Ann", "Bob", "Cy"]


@pytest.mark.usefixtures("context")
def test_sqlalchemy_finds_a_row_that_was_right_already(
    alchemy: Recipe, sql: Sql, stored: Stored
) -> None:
    """That is what CLIENT.FOUND_ROWS is for."""
    # Kept after the commit: MariaDB 11 refuses to change in a transaction what has
    # changed since it was read in there.
    with alchemy.Session(alchemy.engine, expire_on_commit=False) as session:
        ann = session.get(alchemy.Person, 1)
        session.commit()
        assert ann.name == "Ann"
        sql("UPDATE person SET name = 'Zoe' WHERE id = 1")
        ann.name = "Zoe"
        session.commit()

    assert stored() == ["Zoe", "Bob"]


@pytest.mark.usefixtures("context")
def test_sqlalchemy_is_told_of_a_lost_connection(
    alchemy: Recipe, stored: Stored, kill: Kill
) -> None:
    error = SQLALCHEMY.OperationalError
    with alchemy.Session(alchemy.engine) as session:
        session.add(alchemy.Person(name="Cy"))
        session.flush()
        handle = session.connection().connection.dbapi_connection
        assert isinstance(handle, PooledConnection)
        kill(handle.thread_id())
        with pytest.raises(error) as info:
            session.execute(alchemy.select(alchemy.Person))
        assert info.value.connection_invalidated
        assert handle.returned

        session.rollback()
        session.add(alchemy.Person(name="Dee"))
        session.commit()

    assert stored() == ["Ann", "Bob", "Dee"]
    assert alchemy.db.stats("orm").discarded_by_reason == {"dead": 1}


@pytest.mark.usefixtures("context")
def test_sqlalchemy_commits_nothing_of_a_transaction_that_was_killed(
    alchemy: Recipe, stored: Stored, kill: Kill
) -> None:
    error = SQLALCHEMY.OperationalError
    with pytest.raises(error):
        with alchemy.Session(alchemy.engine) as session, session.begin():
            session.add(alchemy.Person(name="Cy"))
            session.flush()
            kill(session.connection().connection.dbapi_connection.thread_id())

    assert stored() == ["Ann", "Bob"]


def test_sqlalchemy_notices_no_kill_between_two_requests(
    alchemy: Recipe, kill: Kill
) -> None:
    assert alchemy.client.get("/person/all").json == ["Ann", "Bob"]
    with alchemy.db.connection("orm", app=alchemy.app) as connection:
        number = connection.thread_id()
    kill(number)

    assert alchemy.client.get("/person/all").json == ["Ann", "Bob"]


@pytest.mark.usefixtures("context")
def test_sqlalchemy_isolation_levels_end_with_the_checkout(alchemy: Recipe) -> None:
    numbers = set()
    for level in ["SERIALIZABLE", "READ COMMITTED", "AUTOCOMMIT"]:
        with alchemy.engine.connect() as connection:
            assert connection.get_isolation_level() == "REPEATABLE READ"
            connection.execution_options(isolation_level=level)
            handle = connection.connection.dbapi_connection
            assert handle.get_autocommit() == (level == "AUTOCOMMIT")
            if level != "AUTOCOMMIT":
                assert connection.get_isolation_level() == level
            numbers.add(handle.thread_id())

    assert len(numbers) == 1
    with alchemy.db.connection("orm") as handle:
        assert not handle.get_autocommit()


@pytest.mark.usefixtures("context")
def test_sqlalchemy_isolation_levels_are_lost_with_the_connection(
    alchemy: Recipe, kill: Kill
) -> None:
    with alchemy.engine.connect() as connection:
        connection.execution_options(isolation_level="SERIALIZABLE")
        kill(connection.connection.dbapi_connection.thread_id())
        with pytest.raises(SQLALCHEMY.OperationalError):
            connection.exec_driver_sql("SELECT 1")
        connection.rollback()
        assert connection.get_isolation_level() == "REPEATABLE READ"


@pytest.mark.usefixtures("context")
def test_sqlalchemy_streams_rows(alchemy: Recipe) -> None:
    with alchemy.engine.connect() as connection:
        rows = connection.execution_options(yield_per=1).execute(
            alchemy.select(alchemy.Person.name)
        )
        assert type(rows.cursor).__name__ == "SSCursor"
        assert rows.scalars().all() == ["Ann", "Bob"]
    with alchemy.engine.connect() as connection:
        rows = connection.execution_options(yield_per=1).execute(
            alchemy.select(alchemy.Person.name)
        )
        assert rows.scalars().first() == "Ann"


@pytest.mark.usefixtures("context")
def test_sqlalchemy_and_the_pool_end_a_transaction_once(
    alchemy: Recipe, stored: Stored, sql: Sql
) -> None:
    def rollbacks() -> int:
        [[_, count]] = sql("SHOW GLOBAL STATUS LIKE 'Com_rollback'")
        return int(count)

    with alchemy.engine.connect() as connection:
        number = connection.connection.dbapi_connection.thread_id()
        connection.execute(alchemy.Person.__table__.delete())
        before = rollbacks()
    assert stored() == ["Ann", "Bob"]
    with alchemy.db.connection("orm") as handle:
        assert handle.thread_id() == number
        with handle.cursor() as cursor:
            cursor.execute("SELECT 1")
        # SQLAlchemy's: there was nothing left for the pool to do.
        assert rollbacks() - before == 1


def test_sqlalchemy_without_a_connection_is_a_503(
    make_app: MakeApp, stored: Stored
) -> None:
    blocks = "sqlalchemy-engine", "sqlalchemy-views"
    alchemy = Recipe(make_app, "sqlalchemy-settings", *blocks, MAX_SIZE=1, TIMEOUT=1)
    assert alchemy.client.get("/person/all").status_code == 200

    with alchemy.db.connection("orm", app=alchemy.app):
        response = alchemy.client.get("/person/all")

    assert response.status_code == 503
    assert response.headers["Retry-After"]
    assert alchemy.client.get("/person/all").status_code == 200


# pandas


@pytest.fixture
def pandas(make_app: MakeApp, stored: Stored) -> Recipe:
    return Recipe(make_app, "sqlalchemy-settings", "sqlalchemy-engine", "pandas")


def test_libraries_read_tuples_in_an_app_whose_rows_are_dicts(
    make_app: MakeApp, stored: Stored, sql: Sql
) -> None:
    make = partial(make_app, CURSORCLASS="DictCursor")
    names = "peewee-settings", "peewee-database", "peewee-views"
    peewee = Recipe(make, *names)
    alchemy = Recipe(make, "sqlalchemy-settings", "sqlalchemy-engine", "pandas")

    assert peewee.client.get("/person/first").json == {"name": "Ann"}
    assert alchemy.client.get("/person/lengths").json == [3, 3]
    with peewee.app.app_context():
        assert "person" in peewee.database.get_tables()
        peewee.database.close()
    app = make(AUTOCOMMIT=True)
    with app.app_context():
        assert "person" in PEEWEE_DATABASE.PooledDatabase().get_tables()
        with get_db().cursor() as cursor:
            cursor.execute("SELECT 1 AS one")
            row: Any = cursor.fetchone()
            assert row == {"one": 1}


def test_pandas_reads_and_writes(pandas: Recipe, stored: Stored) -> None:
    assert pandas.client.get("/person/lengths").json == [3, 3]

    with pandas.app.app_context():
        pandas.store(pandas.pandas.DataFrame({"name": ["Cyrus", "Dee"]}))

    assert stored() == ["Ann", "Bob", "Cyrus", "Dee"]
    assert pandas.client.get("/person/lengths").json == [3, 3, 5, 3]
    assert pandas.in_use == 0


def test_pandas_writes_all_or_nothing(pandas: Recipe, stored: Stored) -> None:
    frame = pandas.pandas.DataFrame({"name": ["Cy", "Ann"]})
    with pandas.app.app_context():
        # Which one depends on the version of pandas.
        wrapped = import_module("pandas.errors").DatabaseError
        with pytest.raises((SQLALCHEMY.IntegrityError, wrapped), match="1062"):
            pandas.store(frame)
        with pytest.raises(Oops), pandas.engine.begin() as connection:
            frame[:1].to_sql("person", connection, if_exists="append", index=False)
            assert stored() == ["Ann", "Bob"]
            raise Oops

    assert stored() == ["Ann", "Bob"]
    assert pandas.in_use == 0


def test_pandas_warns_of_a_plain_connection(pandas: Recipe) -> None:
    with pandas.app.app_context():
        with pytest.warns(UserWarning, match="only supports SQLAlchemy"):
            frame = pandas.pandas.read_sql("SELECT name FROM person", get_db())

    assert frame["name"].tolist() == ["Ann", "Bob"]
    assert pandas.in_use == 0


# Async views


def test_async_views_have_a_connection_for_each_thread(
    make_app: MakeApp, stored: Stored
) -> None:
    recipe = Recipe(make_app, "", "async-views")
    both = threading.Barrier(2)
    load = recipe.load

    def meet(number: int) -> Any:
        with recipe.db.connection() as connection:
            both.wait(10)
            return load(number), connection.thread_id()

    recipe.names["load"] = meet
    met: Any = recipe.client.get("/person/1/2").json

    assert [name for name, _ in met] == ["Ann", "Bob"]
    assert met[0][1] != met[1][1]
    assert recipe.in_use == 0
    recipe.names["load"] = load
    assert recipe.client.get("/person/1/2").json == ["Ann", "Bob"]


@pytest.mark.parametrize("decorated", [False, True])
def test_async_views_that_share_are_told_so(
    make_app: MakeApp, stored: Stored, sql: Sql, decorated: bool
) -> None:
    recipe = Recipe(make_app, "", "async-views")
    statement = f"SELECT GET_LOCK('recipe {decorated}', 10)"
    free = f"DO RELEASE_LOCK('recipe {decorated}')"
    sql(statement)
    waiting = "SELECT 1 FROM information_schema.processlist WHERE info = %s"

    def load(number: int) -> str:
        if number == 2:
            until(lambda: sql(waiting, statement))
        try:
            with get_db().cursor() as cursor:
                cursor.execute(statement)
                return "served"
        except ConnectionShared:
            sql(free)
            return "refused"

    recipe.names["load"] = recipe.db.auto_close_db(load) if decorated else load
    assert recipe.client.get("/person/1/2").json == ["served", "refused"]
    sql(free)
    assert recipe.in_use == 0


def test_async_views_that_stop_waiting_return_the_connection(
    make_app: MakeApp, stored: Stored
) -> None:
    recipe = Recipe(make_app, "", "async-views")
    late, ends = threading.Event(), []

    def work() -> None:
        with recipe.db.connection() as connection:
            late.wait(10)
            ends.append(connection.thread_id())

    @recipe.app.get("/late")
    async def view() -> str:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(work), 0.01)
        late.set()
        return "late"

    assert recipe.client.get("/late").text == "late"
    assert len(ends) == 1
    assert recipe.in_use == 0


def test_async_views_with_peewee(peewee: Recipe, database: Any) -> None:
    @peewee.app.get("/async")
    async def view() -> list[int]:
        with database.atomic():
            peewee.Person.create(name="Cy")
            count = peewee.Person.select().count
            return [count(), await asyncio.to_thread(count)]

    assert peewee.client.get("/async").json == [3, 3]
    assert peewee.in_use == 0


# Threads and jobs


def test_threads_return_what_they_took(make_app: MakeApp, stored: Stored) -> None:
    recipe = Recipe(make_app, "", "threads")

    recipe.greet_all([1, 2, 1])

    assert stored() == ["Hello Hello Ann", "Hello Bob"]
    assert recipe.in_use == 0


def test_threads_return_what_they_took_after_an_exception(
    make_app: MakeApp, stored: Stored, sql: Sql
) -> None:
    recipe = Recipe(make_app, "", "threads", SQL_MODE="STRICT_ALL_TABLES")
    sql("UPDATE person SET name = REPEAT('x', 80) WHERE id = 2")

    with pytest.raises(pymysql.err.DataError):
        recipe.greet_all([2, 1])

    assert stored() == ["Hello Ann", 80 * "x"]
    assert recipe.in_use == 0


FORKING = """
from flask import Flask
from flask_mysqlpool import MySQLPool

app = Flask("shop")
app.config["MYSQLPOOL_URL"] = {url!r}
app.config["MYSQLPOOL_STATUS_DIR"] = {status_dir!r}
db = MySQLPool(app)
{blocks}
print(greet_in_a_child(2))
with app.app_context():
    print(db.stats().opened, db.stats().in_use)
"""


def test_forks_need_no_close_pool(
    server: LocalServer, stored: Stored, tmp_path: Path
) -> None:
    program = FORKING.format(
        url=server.url,
        status_dir=str(tmp_path / "board"),
        blocks=BLOCKS["threads"] + BLOCKS["forks"],
    )
    # From Python 3.12 on it warns of every fork of a process with threads.
    options = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]

    run = subprocess.run(
        [sys.executable, *options, "-c", program],
        capture_output=True,
        text=True,
        timeout=40,
        cwd=tmp_path,
    )

    assert (run.stdout, run.stderr) == ("0\n1 0\n", "")
    assert stored() == ["Hello Hello Ann", "Hello Bob"]


# Tunnels and gateways


def settings_of(block: str) -> dict[str, Any]:
    stand_in = types.SimpleNamespace(config={})
    execute(block, {"app": stand_in})
    return {k.removeprefix("MYSQLPOOL_"): v for k, v in stand_in.config.items()}


def answer(make_app: MakeApp, **settings: Any) -> Any:
    app = make_app(**settings)
    with app.app_context(), get_db().cursor() as cursor:
        cursor.execute("SELECT 'an answer'")
        [[text]] = cursor.fetchall()
        return text


def test_connect_by_a_socks_proxy(
    make_app: MakeApp, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Relay(socks({"db.internal": server.host})) as relay:
        monkeypatch.setenv("SOCKS_HOST", relay.address[0])
        monkeypatch.setenv("SOCKS_PORT", str(relay.address[1]))
        settings = settings_of("connect-socks")
        assert answer(make_app, HOST="db.internal", **settings) == "an answer"

    with pytest.raises(ServerUnavailable, match="Error connecting to SOCKS5 proxy"):
        answer(make_app, HOST="db.internal", **settings)


#: What the recipe uses of OpenSSH's command, without SSH.
SSH = """
import os, socket, sys, threading
assert sys.argv[-1] == "shop@bastion" and "BatchMode=yes" in sys.argv, sys.argv
host, port = sys.argv[sys.argv.index("-W") + 1].rsplit(":", 1)
if host != "db.internal":
    sys.exit(255)
sock = socket.create_connection(("127.0.0.1", int(port)))
def send():
    while data := os.read(0, 65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
try:
    while data := sock.recv(65536):
        os.write(1, data)
except OSError:  # the client has closed its end
    sys.exit(255)
"""


def test_connect_by_ssh(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = tmp_path / "ssh"
    command.write_text(f"#!{sys.executable}\n{SSH}")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    settings = settings_of("connect-ssh")

    def waiting() -> list[str]:
        """The recipe's threads, by the name that Python gives them."""
        names = [thread.name for thread in threading.enumerate()]
        return [name for name in names if name.endswith("(wait)")]

    app = make_app(HOST="db.internal", **settings)
    with app.app_context():
        with get_db().cursor() as cursor:
            cursor.execute("SELECT 'an answer'")
            assert cursor.fetchone() == ("an answer",)
        assert len(waiting()) == 1
    [db] = app.extensions["mysqlpool"]
    with app.app_context():
        db.close_pool()
    until(lambda: not waiting())

    with pytest.raises(ServerUnavailable, match="the server closed the connection"):
        answer(make_app, HOST="elsewhere", **settings)


def test_connect_by_a_gateway_with_tls(
    make_app: MakeApp,
    server: LocalServer,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Relay(by_socket(server), authority.context()) as relay:
        monkeypatch.setenv("GATEWAY_CA", str(authority.ca))
        settings = settings_of("connect-tls")
        host, port = relay.address
        assert answer(make_app, HOST=host, PORT=port, **settings) == "an answer"
        with pytest.raises(ServerUnavailable, match="localhost"):
            answer(make_app, HOST="localhost", PORT=port, **settings)


def test_cloud_sql_is_connected_to_by_its_socket(
    make_app: MakeApp, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSTANCE_UNIX_SOCKET", server.unix_socket)
    assert answer(make_app, **settings_of("connect-cloud-sql")) == "an answer"


# Celery, RQ and APScheduler

JOBS = """
import os
from flask import Flask
from flask_mysqlpool import MySQLPool

app = Flask("shop", instance_path=os.environ["SHOP"])
app.config["MYSQLPOOL_URL"] = os.environ["SHOP_URL"]
app.config["MYSQLPOOL_MAX_SIZE"] = 1
app.config["MYSQLPOOL_TIMEOUT"] = 5
db = MySQLPool(app)
"""

#: Celery without another server: messages are files.
BROKER = """
celery.conf.broker_url = "filesystem://"
celery.conf.broker_transport_options = dict.fromkeys(
    ("data_folder_in", "data_folder_out", "control_folder"), os.environ["SHOP"]
)
"""


@pytest.fixture
def shop(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """Write a module, which a worker can import by its name, and import it here."""
    monkeypatch.setenv("SHOP", str(tmp_path))
    monkeypatch.setenv("SHOP_URL", server.url)
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def shop(block: str, more: str = "") -> Any:
        name = f"shop_with_{block}"
        code = JOBS + BLOCKS["job"] + BLOCKS[block] + more
        (tmp_path / f"{name}.py").write_text(code)
        made.append(import_module(name))
        return made[-1]

    yield shop
    for module in made:
        del sys.modules[module.__name__]
        with module.app.app_context():
            module.db.close_pool()


Shop = Callable[..., Any]

#: Is too long for the column, which is an error within the job.
TOO_LONG = "x" * 90


def test_celery_runs_tasks_one_after_the_other_on_one_connection(
    shop: Shop, stored: Stored, sql: Sql, tmp_path: Path
) -> None:
    pytest.importorskip("celery")
    module = shop("celery", BROKER)
    client = module.app.test_client()
    app = f"{module.__name__}:celery"
    command = [sys.executable, "-m", "celery", "-A", app, "worker"]
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [*command, "--pool=prefork", "--concurrency=1", "--without-mingle"],
            cwd=tmp_path,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    def send(name: str, done: Callable[[], bool]) -> None:
        """One at a time, as files of one millisecond have no order."""
        assert client.post(f"/person/1/{name}").status_code == 202
        until(lambda: done() or worker.poll() is not None, 60)

    try:
        for number, name in enumerate(("Cy", "Dan"), 1):
            failures = partial(lambda n: log.read_text().count("raised") == n, number)
            send(TOO_LONG, failures)
            send(name, partial(lambda name: stored() == [name, "Bob"], name))
        assert stored() == ["Dan", "Bob"]
    finally:
        worker.terminate()
        worker.wait(60)
        print(log.read_text())

    assert log.read_text().count("DataError") >= 2
    assert "PoolTimeout" not in log.read_text()


def test_rq_runs_jobs_one_after_the_other_on_one_connection(
    shop: Shop, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    rq = pytest.importorskip("rq")
    monkeypatch.setattr("redis.Redis", pytest.importorskip("fakeredis").FakeRedis)
    module = shop("rq")
    client = module.app.test_client()
    for name in (TOO_LONG, "Cy", TOO_LONG, "Dan"):
        assert client.post(f"/person/1/{name}").status_code == 202

    worker = rq.SimpleWorker([module.queue], connection=module.queue.connection)
    worker.work(burst=True)

    assert stored() == ["Dan", "Bob"]
    assert module.queue.failed_job_registry.count == 2
    with module.app.app_context():
        assert (module.db.stats().opened, module.db.stats().in_use) == (1, 0)


def test_apscheduler_runs_jobs_that_return_their_connections(
    shop: Shop, stored: Stored, sql: Sql
) -> None:
    pytest.importorskip("apscheduler")
    module = shop("apscheduler")
    [job] = module.scheduler.get_jobs()
    try:
        for name in (TOO_LONG, "Cy", TOO_LONG, "Dan"):
            module.scheduler.add_job(module.rename, args=[1, name])
            until(lambda: len(module.scheduler.get_jobs()) == 1)
        until(lambda: stored() == ["Dan", "Bob"])
        job.modify(next_run_time=datetime.now(timezone.utc))
        until(lambda: stored() == ["Ann", "Bob"])
    finally:
        module.scheduler.shutdown()

    with module.app.app_context():
        assert (module.db.stats().opened, module.db.stats().in_use) == (1, 0)


# A schema


def test_a_command_of_the_app_executes_its_schema(
    make_app: MakeApp, sql: Sql, tmp_path: Path
) -> None:
    sql("DROP TABLE IF EXISTS person")
    (tmp_path / "schema.sql").write_text(BLOCKS["schema-script"])
    recipe = Recipe(make_app, "", "schema")
    recipe.app.root_path = str(tmp_path)

    for _ in range(2):
        ended = recipe.app.test_cli_runner().invoke(args=["init-db"])
        assert ended.exit_code == 0, ended.output

    assert sql("SELECT id, name FROM person ORDER BY id") == ((1, "Ann"), (2, "Bob"))


# Streams


def test_streams_return_the_connection_with_the_last_line(
    make_app: MakeApp, stored: Stored
) -> None:
    recipe = Recipe(make_app, "", "streams")

    response = recipe.client.get("/person.csv")

    assert response.text == "1,Ann\n2,Bob\n"
    assert recipe.in_use == 0
    with recipe.app.app_context():
        assert recipe.db.stats().idle == 1


def test_streams_return_the_connection_when_another_thread_drops_them(
    make_app: MakeApp, stored: Stored
) -> None:
    recipe = Recipe(make_app, "", "streams")
    response = recipe.client.get("/person.csv")
    assert next(response.iter_encoded()) == b"1,Ann\n"
    assert recipe.in_use == 1

    with ThreadPoolExecutor(1) as executor:
        executor.submit(response.close).result(10)

    assert recipe.in_use == 0
    assert recipe.client.get("/person.csv").text == "1,Ann\n2,Bob\n"
