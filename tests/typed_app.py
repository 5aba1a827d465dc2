"""An app as users write it, for the type checkers; nothing runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flask import Flask
from pymysql.connections import Connection
from pymysql.cursors import Cursor, DictCursor

from flask_mysqlpool import (
    MySQLPool,
    Pool,
    PoolConfig,
    PooledConnection,
    PoolStats,
    get_db,
)

if TYPE_CHECKING:
    from typing_extensions import assert_type

    def checks() -> None:
        assert_type(get_db(), PooledConnection)
        assert_type(get_db().open, bool)
        assert_type(db.run_in_transaction(count_people, "a"), int)
        assert_type(db.stats(), PoolStats)
        assert_type(db.pools, dict[str, Pool])
        assert_type(nightly("now"), int)
        # To PyMySQL's users, it is what they know.
        plain: Connection[Cursor] = get_db()
        plain.commit()


db = MySQLPool()


def create_app() -> Flask:
    app = Flask(__name__)
    app.config["MYSQLPOOL_URL"] = "mysql://shop@localhost/shop"
    db.init_app(app)

    @app.get("/")
    def index() -> dict[str, Any]:
        with db.get_db().cursor(DictCursor) as cursor:
            cursor.execute("SELECT * FROM person WHERE id = %s", (1,))
            return cursor.fetchone() or {}

    @app.post("/")
    def add() -> dict[str, int]:
        with db.transaction() as connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO person (name) VALUES ('John')")
            return {"id": int(cursor.lastrowid)}

    return app


def count_people(connection: PooledConnection, name: str) -> int:
    with connection.cursor() as cursor:
        return cursor.execute("SELECT 1 FROM person WHERE name = %s", (name,))


@db.auto_close_db
def nightly(when: str) -> int:
    get_db("reports").rollback()
    return len(when)


def without_flask(settings: Mapping[str, Any]) -> None:
    with Pool(PoolConfig.from_mapping(settings)).connection(timeout=1.5) as connection:
        connection.ping()
