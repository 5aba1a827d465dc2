"""Pools over a driver that answers at once, so that only their own cost is left."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, ClassVar

from flask_mysqlpool import Pool
from flask_mysqlpool.testing.fake_driver import FakeConnection, FakePool


class Error(Exception):
    """Never raised; DBUtils wants a driver to have some."""


class StubConnection:
    """A connection to nowhere."""

    def _do_nothing(self) -> None: ...

    commit = rollback = close = _do_nothing


class _OurConnection(FakeConnection):
    """The fake one of our tests, without what it asserts."""

    def is_alive(self) -> bool:
        return True

    def reset_session(self) -> bool:
        return True


class _OurPool(FakePool):
    """Real but for the connections: the lock is the one that a pool has."""

    def _begin(self) -> None:
        Pool._begin(self)

    def io(self) -> None: ...

    def steady_connection(self) -> Any:
        number = self.count(+1)
        if self.on_connect is not None:
            self.on_connect()
        return _OurConnection(self, number)


class Stub:
    """A pool of at most ``size`` connections, each opened in ``connect_seconds``."""

    label: ClassVar[str]
    needs: ClassVar[str]

    def __init__(self, size: int, connect_seconds: float = 0.0) -> None:
        self.opened = 0
        self._numbers = itertools.count(1)
        self._connect_seconds = connect_seconds
        self.get: Callable[[], Any] = self.begin(size)

    @classmethod
    def is_installed(cls) -> bool:
        return find_spec(cls.needs) is not None

    def begin(self, size: int) -> Callable[[], Any]:
        """Make the pool; what takes a connection out of it."""
        raise NotImplementedError

    def pause(self) -> None:
        """What opening a connection takes."""
        self.opened = next(self._numbers)
        if self._connect_seconds:
            time.sleep(self._connect_seconds)

    def connect(self, *args: object, **kwargs: object) -> StubConnection:
        self.pause()
        return StubConnection()

    def cycle(self) -> None:
        self.get().close()

    def warm(self, count: int) -> None:
        """Have ``count`` idle connections."""
        for connection in [self.get() for _ in range(count)]:
            connection.close()


class StubOurs(Stub):
    label = "flask_mysqlpool"
    needs = "flask_mysqlpool"

    def begin(self, size: int) -> Callable[[], Any]:
        return _OurPool(self.pause, max_size=size, timeout=600).connection


class StubDBUtils(Stub):
    label = "DBUtils ping=0 reset=False"
    needs = "dbutils"

    def begin(self, size: int) -> Callable[[], Any]:
        from dbutils.pooled_db import PooledDB

        errors = dict.fromkeys(
            ("OperationalError", "InterfaceError", "InternalError"), Error
        )
        driver = SimpleNamespace(threadsafety=1, connect=self.connect, **errors)
        options = {"ping": 0, "reset": False, "blocking": True}
        take: Callable[[], Any] = PooledDB(
            driver, maxconnections=size, **options
        ).connection
        return take


class StubSQLAlchemy(Stub):
    label = "SQLAlchemy"
    needs = "sqlalchemy"

    def begin(self, size: int) -> Callable[[], Any]:
        from sqlalchemy.pool import QueuePool

        connect: Any = self.connect
        pool = QueuePool(connect, pool_size=size, max_overflow=0, timeout=600)
        take: Callable[[], Any] = pool.connect
        return take


STUBS: dict[str, type[Stub]] = {
    "ours": StubOurs,
    "dbutils_bare": StubDBUtils,
    "sqlalchemy": StubSQLAlchemy,
}
