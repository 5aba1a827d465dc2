"""The same Flask app twice: wired to ``PooledDB`` as tutorials do it, and to this."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pymysql
from dbutils.pooled_db import PooledDB
from flask import Flask, g
from werkzeug.test import TestResponse

from flask_mysqlpool import MySQLPool

from ..target import Target

#: How a process that is started is told what its app is to be.
ENVIRONMENT = "BENCHMARKS_WIRING"

#: Of the wirings.
OBVIOUS, OURS = "obvious", "flask_mysqlpool"

GetDb = Callable[[], Any]
Close = Callable[[], None]


@dataclass(frozen=True)
class Settings:
    """What both wirings are told, as far as they have it."""

    wiring: str
    target: Target
    folder: str
    size: int = 4
    autocommit: bool = False
    timeout: float = 10.0
    #: Whether to begin transactions explicitly, as the manual of DBUtils asks for.
    begin: bool = False

    def environment(self) -> dict[str, str]:
        """For a process that is to have the same app."""
        own = {k: v for k, v in os.environ.items() if not k.startswith("FLASK_")}
        return own | {ENVIRONMENT: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> Settings:
        given = json.loads(os.environ[ENVIRONMENT])
        return cls(**given | {"target": Target(**given["target"])})


def obvious(app: Flask, settings: Settings) -> tuple[GetDb, Close]:
    """Flask's own pattern for databases, around a PooledDB."""
    pool = PooledDB(
        creator=pymysql,
        maxconnections=settings.size,
        blocking=True,
        autocommit=settings.autocommit,
        host=settings.target.host,
        port=settings.target.port,
        user=settings.target.user,
        password=settings.target.password,
        database=settings.target.database,
    )

    def get_db() -> Any:
        if "db" not in g:
            g.db = pool.connection()
            if settings.begin:
                g.db.begin()
        return g.db

    @app.teardown_appcontext
    def close_db(error: BaseException | None) -> None:
        db = g.pop("db", None)
        if db is not None:
            db.close()

    @app.cli.command("pool")
    def show_pool() -> None:
        print(pool._connections, "in use")

    return get_db, pool.close


def flask_mysqlpool(app: Flask, settings: Settings) -> tuple[GetDb, Close]:
    """Ours, with its defaults."""
    app.config["MYSQLPOOL_URL"] = settings.target.url
    app.config["MYSQLPOOL_MAX_SIZE"] = settings.size
    app.config["MYSQLPOOL_AUTOCOMMIT"] = settings.autocommit
    app.config["MYSQLPOOL_TIMEOUT"] = settings.timeout
    app.config["MYSQLPOOL_STATUS_DIR"] = settings.folder
    db = MySQLPool(app)

    def close() -> None:
        with app.app_context():
            db.close_pool()

    return db.get_db, close


WIRINGS = {OBVIOUS: obvious, OURS: flask_mysqlpool}


def add_views(app: Flask, get_db: GetDb, meanwhile: Callable[[], object]) -> None:
    """What the app does, whatever it is wired to; ``meanwhile()`` is the trouble."""

    @app.post("/transfer")
    def transfer() -> str:
        db = get_db()
        with db.cursor() as cursor:
            cursor.execute("UPDATE account SET balance = balance - 10 WHERE id = 1")
            meanwhile()
            cursor.execute("UPDATE account SET balance = balance + 10 WHERE id = 2")
        db.commit()
        return "done"

    @app.post("/visit")
    def visit() -> str:
        db = get_db()
        meanwhile()
        with db.cursor() as cursor:
            cursor.execute("INSERT INTO visit VALUES (NOW())")
        return "done"

    @app.get("/balances")
    def balances() -> list[Any]:
        with get_db().cursor() as cursor:
            cursor.execute("SELECT balance FROM account ORDER BY id")
            return [balance for (balance,) in cursor.fetchall()]

    @app.get("/id")
    def connection_id() -> str:
        with get_db().cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID()")
            [(number,)] = cursor.fetchall()
            return str(number)

    @app.get("/slow")
    def slow() -> list[Any]:
        found = balances()
        meanwhile()
        return found

    @app.post("/run")
    def run() -> str:
        db = get_db()
        with db.cursor() as cursor:
            for statement in STATEMENTS:
                cursor.execute(statement)
        db.commit()
        return "done"

    @app.get("/session")
    def session() -> dict[str, str]:
        found = {}
        with get_db().cursor() as cursor:
            for name, statement in QUESTIONS.items():
                cursor.execute(statement)
                found[name] = str(cursor.fetchall())
        return found


#: What requests do to their session, and do not undo.
STATEMENTS = (
    "SET @customer = 42",
    "SET SESSION sql_mode = ''",
    "SET SESSION time_zone = '+05:00'",
    "SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
    "SET SESSION foreign_key_checks = 0",
    "SELECT GET_LOCK('report', 0)",
    "CREATE TEMPORARY TABLE basket (item INT)",
    "USE information_schema",
)
#: How the next one can tell; one for each.
QUESTIONS = {
    "user variable": "SELECT @customer",
    "sql_mode": "SELECT @@sql_mode",
    "time zone": "SELECT @@time_zone",
    "isolation level": "SHOW SESSION VARIABLES LIKE '%_isolation'",
    "foreign_key_checks": "SELECT @@foreign_key_checks",
    "GET_LOCK": "SELECT COALESCE(IS_USED_LOCK('report') = CONNECTION_ID(), 0)",
    # Behind which a table of that name, with a row, is hidden.
    "temporary table": "SELECT COUNT(*) FROM test.basket",
    "USE": "SELECT DATABASE()",
}


class Site:
    """The app, wired one way or the other, and those who visit it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        #: What happens in the middle of a request.
        self.meanwhile: Callable[[], object] = lambda: None
        self.app = Flask("site")
        get_db, self.close = WIRINGS[settings.wiring](self.app, settings)
        add_views(self.app, get_db, lambda: self.meanwhile())

    def get(self, path: str) -> TestResponse:
        return self.app.test_client().get(path)

    def post(self, path: str) -> TestResponse:
        return self.app.test_client().post(path)


def create_app() -> Flask:
    """For ``flask --app``."""
    return Site(Settings.from_environment()).app
