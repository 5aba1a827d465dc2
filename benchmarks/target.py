"""The server that is measured against, and what it says about itself."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import pymysql

from flask_mysqlpool import PoolConfig
from flask_mysqlpool.testing import FaultProxy, LocalServer


@dataclass(frozen=True)
class Target:
    """Where a pool connects to."""

    host: str
    port: int
    user: str
    password: str
    database: str

    @classmethod
    def of(cls, url: str) -> Target:
        config = PoolConfig.from_mapping({"URL": url})
        password = config.password if isinstance(config.password, str) else ""
        user, database = config.user or "", config.database or ""
        return cls(config.host, config.port, user, password, database)

    @property
    def url(self) -> str:
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        place = f"{self.host}:{self.port}"
        return f"mysql://{login}@{place}/{quote(self.database, safe='')}"

    def through(self, proxy: FaultProxy) -> Target:
        return replace(self, host=proxy.host, port=proxy.port)

    def arguments(self) -> dict[str, Any]:
        """As ``pymysql.connect`` and its like take them."""
        return dict(vars(self))

    def connect(self, **more: Any) -> pymysql.Connection[Any]:
        return pymysql.connect(**self.arguments() | more)


class Server:
    """A server that is running, seen through a connection of its own."""

    def __init__(self, target: Target, spare: LocalServer | None = None) -> None:
        self.target = target
        self._spare = spare
        self._probe = target.connect(autocommit=True)
        [(self.version, schema)] = self.rows(
            "SELECT VERSION(), @@global.performance_schema"
        )
        self._counts_all = bool(schema)

    def close(self) -> None:
        self._probe.close()

    def rows(self, statement: str) -> tuple[tuple[Any, ...], ...]:
        with self._probe.cursor() as cursor:
            cursor.execute(statement)
            return tuple(cursor.fetchall())

    @contextmanager
    def table(
        self, name: str, fields: str, records: Sequence[tuple[Any, ...]]
    ) -> Iterator[None]:
        """Have a table with these records, and remove it."""
        self.rows(f"DROP TABLE IF EXISTS {name}")
        self.rows(f"CREATE TABLE {name} ({fields})")
        values = ", ".join(["%s"] * len(records[0]))
        try:
            with self._probe.cursor() as cursor:
                cursor.executemany(f"INSERT INTO {name} VALUES ({values})", records)
            yield
        finally:
            self.rows(f"DROP TABLE {name}")

    def commands(self) -> int:
        """Commands from clients so far; to ask is one more.

        Without its performance schema a server counts a ping in one variable, a query
        in another and COM_RESET_CONNECTION in both.
        """
        if self._counts_all:
            [(count,)] = self.rows(
                "SELECT SUM(COUNT_STAR) FROM"
                " performance_schema.events_statements_summary_global_by_event_name"
                " WHERE EVENT_NAME LIKE 'statement/sql/%'"
                " OR EVENT_NAME LIKE 'statement/com/%'"
            )
            return int(count)
        variables = self.rows(
            "SHOW GLOBAL STATUS"
            " WHERE Variable_name IN ('Questions', 'Com_admin_commands')"
        )
        return sum(int(value) for _, value in variables)

    @contextmanager
    def counting(self) -> Iterator[Server]:
        """A server that counts exactly, which makes it slower, so not for timing."""
        if self._counts_all or self._spare is None:
            yield self
            return
        with self._spare as local, closing(Server(Target.of(local.url))) as server:
            yield server

    def kill(self, threads: Iterable[int]) -> None:
        """End these connections, as far as they exist; return when they have ended."""
        wanted = set(threads)
        for thread in wanted:
            with suppress(pymysql.err.OperationalError):
                self.rows(f"KILL {thread:d}")
        while wanted & {row[0] for row in self.rows("SHOW PROCESSLIST")}:
            time.sleep(0.01)
        time.sleep(0.1)

    @contextmanager
    def proxied(self, delay: float = 0.0) -> Iterator[tuple[FaultProxy, Target]]:
        with FaultProxy(self.target.host, self.target.port, delay=delay) as proxy:
            yield proxy, self.target.through(proxy)

    @contextmanager
    def detour(self) -> Iterator[Detour]:
        with self.proxied() as (front, target), self.proxied() as (side, _):
            yield Detour(front, side, target)


class Detour:
    """A way to the server on which new connections can hang while old ones work."""

    def __init__(self, front: FaultProxy, side: FaultProxy, target: Target) -> None:
        self.target = target
        self._front, self._side, self._server = front, side, front.target

    @property
    def connections(self) -> int:
        """All that have been begun so far."""
        return self._front.connections

    def hang(self) -> None:
        self._side.hang()
        self._front.target = self._side.host, self._side.port

    def resume(self) -> None:
        self._front.target = self._server
        self._side.resume()


@contextmanager
def local_server(engine: str, root: str | None) -> Iterator[Server]:
    """A server of our own, gone afterwards."""
    spare = LocalServer(engine=engine, root=root, options=["--performance-schema=ON"])
    with LocalServer(engine=engine, root=root) as local:
        with closing(Server(Target.of(local.url), spare)) as server:
            yield server


@contextmanager
def server_at(url: str) -> Iterator[Server]:
    with closing(Server(Target.of(url))) as server:
        yield server
