"""Every pool and driver that is compared, with the same interface.

Each is used as its own documentation says; where a default makes it safer or faster,
both ways are here. One that is not installed is a row without figures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import pymysql

from flask_mysqlpool import Pool, PoolConfig
from flask_mysqlpool.pool.transaction import transaction

from .target import Target


class Adapter:
    """A pool of at most ``size`` connections; opening none before they are needed."""

    label: ClassVar[str]
    #: The module that it is made of, and the distribution that has it.
    needs: ClassVar[str] = "pymysql"
    distribution: ClassVar[str] = "PyMySQL"
    #: Where its classes of cursors are.
    cursors: ClassVar[str] = "pymysql.cursors"
    #: Whether callers share connections that are opened when one is missing.
    grows: ClassVar[bool] = True

    def __init__(self, target: Target, size: int, autocommit: bool = True) -> None:
        self.target = target
        self.size = size
        self.autocommit = autocommit
        self.begin()

    @classmethod
    def is_installed(cls) -> bool:
        return find_spec(cls.needs) is not None

    def begin(self) -> None:
        """Make the pool."""

    def cursor_of(self, kind: str) -> Callable[[Any], Any]:
        """Return what makes a cursor: for "rows", for "dicts", or for "streams"."""
        name = {"rows": "Cursor", "dicts": "DictCursor", "streams": "SSCursor"}[kind]
        cls = getattr(import_module(self.cursors), name)
        return lambda connection: connection.cursor(cls)

    def get(self) -> Any:
        """Take a connection."""
        raise NotImplementedError

    def put(self, connection: Any) -> None:
        """Return it."""
        connection.close()

    def close(self) -> None:
        """Close what is idle."""

    def block(self, connection: Any) -> AbstractContextManager[object]:
        """Make a transaction, where autocommit is off."""
        return _committed(connection)

    def nested(self, connection: Any) -> AbstractContextManager[object]:
        """Make a part of it that could be undone alone."""
        return _with_savepoint(connection)

    def cycle(self) -> None:
        """Take a connection and return it."""
        self.put(self.get())

    def query(self) -> Any:
        """Take a connection, ask for something and return it."""
        connection = self.get()
        try:
            return select(connection)
        finally:
            self.put(connection)


def select(connection: Any) -> Any:
    """Execute the least that a request asks for; return its rows."""
    cursor = connection.cursor()
    cursor.execute("SELECT 1")
    rows = cursor.fetchall()
    cursor.close()
    return rows


def execute(connection: Any, statement: str) -> None:
    cursor = connection.cursor()
    cursor.execute(statement)
    cursor.close()


@contextmanager
def _committed(connection: Any) -> Iterator[None]:
    yield
    connection.commit()


@contextmanager
def _with_savepoint(connection: Any) -> Iterator[None]:
    execute(connection, "SAVEPOINT benchmarks")
    yield
    execute(connection, "RELEASE SAVEPOINT benchmarks")


class Ours(Adapter):
    """This project, standing alone, every guarantee on."""

    label = "flask_mysqlpool"
    needs = "flask_mysqlpool"
    distribution = "flask-pymysqlpool"

    def begin(self) -> None:
        settings = {"AUTOCOMMIT": self.autocommit, "MAX_SIZE": self.size}
        self.pool = Pool(
            PoolConfig.from_mapping({"URL": self.target.url, "TIMEOUT": 60, **settings})
        )

    def get(self) -> Any:
        return self.pool.connection()

    def block(self, connection: Any) -> AbstractContextManager[object]:
        return transaction(connection)

    nested = block

    def close(self) -> None:
        self.pool.close()


class Direct(Adapter):
    """The floor: bare PyMySQL, one connection for each thread."""

    label = "bare PyMySQL per thread"
    grows = False

    def begin(self) -> None:
        self._own = threading.local()
        self._all: list[Any] = []

    def get(self) -> Any:
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self.connect()
            self._all.append(connection)
        return connection

    def connect(self) -> Any:
        return self.target.connect(autocommit=self.autocommit)

    def put(self, connection: Any) -> None:
        pass

    def close(self) -> None:
        for connection in self._all:
            with suppress(Exception):  # it may be closed already
                connection.close()


class MySQLClient(Direct):
    """The driver in C."""

    label = "mysqlclient per thread"
    needs = "MySQLdb"
    distribution = "mysqlclient"
    cursors = "MySQLdb.cursors"

    def connect(self) -> Any:
        import MySQLdb

        return MySQLdb.connect(autocommit=self.autocommit, **self.target.arguments())


class MariaDB(Direct):
    """MariaDB's own driver, in C or in Python."""

    label = "mariadb per thread"
    needs = "mariadb"
    distribution = "mariadb"

    def connect(self) -> Any:
        import mariadb

        return mariadb.connect(autocommit=self.autocommit, **self.target.arguments())

    def cursor_of(self, kind: str) -> Callable[[Any], Any]:
        options = {
            "rows": {},
            "dicts": {"dictionary": True},
            "streams": {"buffered": False},
        }
        return lambda connection: connection.cursor(**options[kind])


class PerRequest(Adapter):
    """As Flask-MySQL does."""

    label = "connect per request"
    grows = False

    def get(self) -> Any:
        return self.target.connect(autocommit=self.autocommit)


class DBUtils(Adapter):
    label = "DBUtils"
    needs = "dbutils"
    distribution = "DBUtils"
    options: ClassVar[dict[str, Any]] = {}

    def begin(self) -> None:
        from dbutils.pooled_db import PooledDB

        own = {"autocommit": self.autocommit, **self.options}
        self.pool = PooledDB(
            pymysql,
            maxconnections=self.size,
            blocking=True,
            **self.target.arguments() | own,
        )

    def get(self) -> Any:
        return self.pool.connection()

    def close(self) -> None:
        self.pool.close()


class DBUtilsBare(DBUtils):
    """Neither asks whether a connection lives nor ends its transaction."""

    label = "DBUtils ping=0 reset=False"
    options = {"ping": 0, "reset": False}


class PyMySQLPool(Adapter):
    label = "pymysql-pool"
    needs = "pymysqlpool"
    distribution = "pymysql-pool"
    pre_ping = False

    def begin(self) -> None:
        from pymysqlpool import ConnectionPool

        size = {"size": self.size, "maxsize": self.size}
        self.pool = ConnectionPool(
            **size, autocommit=self.autocommit, **self.target.arguments()
        )

    def get(self) -> Any:
        return self.pool.get_connection(
            retry_num=10, retry_interval=0.1, pre_ping=self.pre_ping
        )

    def close(self) -> None:
        while self.pool.available_num:
            connection = self.pool.get_connection()
            connection._pool = None
            connection._force_close()


class PyMySQLPoolPing(PyMySQLPool):
    label = "pymysql-pool pre_ping"
    pre_ping = True


class SQLAlchemy(Adapter):
    label = "SQLAlchemy"
    needs = "sqlalchemy"
    distribution = "SQLAlchemy"
    pre_ping = False

    def begin(self) -> None:
        from sqlalchemy import create_engine

        self.engine = create_engine(
            "mysql+pymysql://",
            creator=lambda: self.target.connect(autocommit=self.autocommit),
            pool_size=self.size,
            max_overflow=0,
            pool_pre_ping=self.pre_ping,
        )

    def get(self) -> Any:
        return self.engine.raw_connection()

    def close(self) -> None:
        self.engine.dispose()


class SQLAlchemyPing(SQLAlchemy):
    label = "SQLAlchemy pre_ping"
    pre_ping = True


class Connector(Adapter):
    """What the other project named flask-mysqlpool wraps. Opens all at once."""

    label = "mysql-connector"
    needs = "mysql.connector"
    distribution = "mysql-connector-python"
    grows = False

    @classmethod
    def is_installed(cls) -> bool:
        return find_spec("mysql") is not None and super().is_installed()

    def begin(self) -> None:
        from mysql.connector.errors import PoolError
        from mysql.connector.pooling import MySQLConnectionPool

        self._none_left = PoolError
        self.pool = MySQLConnectionPool(
            pool_name=f"b{id(self)}-{time.monotonic_ns()}",
            pool_size=self.size,
            autocommit=self.autocommit,
            use_pure=True,
            **self.target.arguments(),
        )

    def get(self) -> Any:
        # It raises where the others wait.
        while True:
            try:
                return self.pool.get_connection()
            except self._none_left:
                time.sleep(0.0005)

    def close(self) -> None:
        self.pool._remove_connections()


class MariaDBPool(Adapter):
    label = "mariadb-pool"
    needs = "mariadb_pool"
    distribution = "mariadb-pool"

    def begin(self) -> None:
        import mariadb

        login = self.target.arguments()
        # Where that raises, acquire() would try again without an end.
        mariadb.connect(**login).close()
        self.pool = mariadb.create_pool(
            min_size=1,
            max_size=self.size,
            acquire_timeout=60,
            autocommit=self.autocommit,
            **login,
        )

    def get(self) -> Any:
        return self.pool.acquire()

    def close(self) -> None:
        self.pool.close()


class SQLSpec(Adapter):
    """A connection for each thread, however many threads; rolled back at a return."""

    label = "sqlspec"
    needs = "sqlspec"
    distribution = "sqlspec"
    grows = False

    def begin(self) -> None:
        from sqlspec.adapters.pymysql import PyMysqlConfig

        options = self.target.arguments() | {"autocommit": self.autocommit}
        self.pool = PyMysqlConfig(connection_config=options).provide_pool()

    def get(self) -> Any:
        return self.pool.acquire()

    def put(self, connection: Any) -> None:
        self.pool.release(connection)

    def close(self) -> None:
        self.pool.close()


class ConnPool(Adapter):
    """A pool of anything, which pings what was idle for 30 s."""

    label = "connpool"
    needs = "connpool"
    distribution = "connpool"

    def begin(self) -> None:
        from connpool import ConnectionPool, PoolConfig

        def is_alive(connection: Any) -> bool:
            connection.ping(reconnect=False)
            return True

        self.pool = ConnectionPool.from_callables(
            partial(self.target.connect, autocommit=self.autocommit),
            validate=is_alive,
            reset=lambda connection: connection.rollback(),
            close=lambda connection: connection.close(),
            config=PoolConfig(max_size=self.size, acquire_timeout=60),
        )

    def get(self) -> Any:
        return self.pool.acquire()

    def put(self, connection: Any) -> None:
        self.pool.release(connection)

    def close(self) -> None:
        self.pool.close()


ADAPTERS: dict[str, type[Adapter]] = {
    "ours": Ours,
    "direct": Direct,
    "per_request": PerRequest,
    "dbutils": DBUtils,
    "dbutils_bare": DBUtilsBare,
    "pymysql_pool": PyMySQLPool,
    "pymysql_pool_ping": PyMySQLPoolPing,
    "sqlalchemy": SQLAlchemy,
    "sqlalchemy_ping": SQLAlchemyPing,
    "connector": Connector,
    "mysqlclient": MySQLClient,
    "mariadb": MariaDB,
    "mariadb_pool": MariaDBPool,
    "sqlspec": SQLSpec,
    "connpool": ConnPool,
}
