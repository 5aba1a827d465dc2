"""The state of one :class:`MySQLPool` in one app: pools, and requests' connections.

A connection is kept in ``flask.g``, by the request context that checked it out. Up to
Flask 3.1 one application context, and so one ``g``, can serve several requests: those
of a test client inside a pushed context, or those that follow an abandoned stream on
the same thread. Each must check out, and return, a separate connection.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from logging import WARNING
from typing import Any

import flask.globals
import flask.signals
from flask import Flask
from flask.ctx import AppContext
from flask.globals import app_ctx

from .. import signals
from ..config import PoolConfig
from ..config.settings import AppConfig
from ..errors import ConfigError
from ..pool import Pool
from ..pool.connection import PooledConnection
from ..pool.driver.logs import log
from ..pool.driver.session import Writes
from ..pool.pool import make_pool
from ..pool.query_log import RecordedQuery, make_recorder
from ..pool.stats import Observer
from ..workers.agent import WorkerAgent
from ..workers.status_dir import StatusDir

#: Key in ``g`` of the recorded statements.
QUERIES_IN_G = "_mysqlpool_queries"
#: Statements that are kept; then the oldest go.
RECORDED = 1000


class _Held(dict[str, PooledConnection]):
    """The connections of one request, by bind. Threads may share a request."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        #: Whether the request has written, by bind, on connections old and new.
        self.writes: defaultdict[str, Writes] = defaultdict(Writes)

    def has_written(self, bind: str) -> bool:
        connection = self.get(bind)
        may_have_written = connection is not None and connection.may_have_written
        return may_have_written or self.writes[bind].sent


class _Requests(dict[Any, _Held]):
    """The requests of one application context, and what each has checked out."""

    #: Whether all teardown functions have been called.
    ended = False

    def held(self, key: Any) -> _Held:
        held = self.get(key)
        return self.setdefault(key, _Held()) if held is None else held


class State:
    """The state of one :class:`MySQLPool` in one app."""

    def __init__(self, config: AppConfig, app: Flask, number: int) -> None:
        self.config = config
        self.status_dir: StatusDir | None = None
        if config.status_dir is not None:
            path = os.path.join(app.instance_path, config.status_dir)
            self.status_dir = StatusDir(path)
        self._app = app
        # Commands know the pools of a second MySQLPool of one app by this suffix.
        self._suffix = f"-{number + 1}" if number else ""
        self._key_in_g = f"_mysqlpool{self._suffix}"
        self._pools: dict[str, Pool] = {}
        self._observers: list[Observer] = []
        #: By thread, connections that were checked out after all teardown functions.
        self._late: dict[int, list[PooledConnection]] = {}

    def pool(self, bind: str) -> Pool:
        pool = self._pools.get(bind)
        if pool is None:
            try:
                config = self.config.pools[bind]
            except KeyError:
                known = ", ".join(map(repr, self.config.pools))
                message = f"no bind is called {bind!r}; configured: {known}"
                raise ConfigError([message]) from None
            # Two threads may each create a pool; the second one is dropped, unused.
            pool = self._pools.setdefault(bind, self._make(bind, config))
        return pool

    def pools_in_use(self) -> dict[str, Pool]:
        """Return the pools that have been used, by their names for commands."""
        return {f"{b}{self._suffix}": pool for b, pool in list(self._pools.items())}

    def observe(self, observer: Observer) -> None:
        """Add an observer to all pools, present and future."""
        self._observers.append(observer)
        for pool in list(self._pools.values()):
            pool.add_observer(observer)

    def published(self) -> dict[str, PoolConfig]:
        """Return the configuration of all pools, by their names for commands."""
        return {f"{b}{self._suffix}": pool for b, pool in self.config.pools.items()}

    def _make(self, bind: str, config: PoolConfig) -> Pool:
        pool = make_pool(config)
        pool.recorder = make_recorder(config, _keep)
        for observer in self._observers:
            pool.add_observer(observer)
        signals.attach(pool, self._app, bind + self._suffix)
        if self.status_dir is not None:
            WorkerAgent(
                pool,
                self.status_dir,
                app=self._app.name,
                bind=bind + self._suffix,
                read_only=_is_own_command(self.config.cli),
            )
        return pool

    def forget(self, pool: Pool) -> None:
        for bind, known in tuple(self._pools.items()):
            # A test's substitute for a pool stays.
            if known is pool and isinstance(pool, Pool):
                del self._pools[bind]

    def readers(self, bind: str) -> str:
        """Return the bind that ``READERS`` names, or the bind itself."""
        config = self.config.pools.get(bind)
        return bind if config is None else config.readers or bind

    def get_db(self, bind: str, readonly: bool) -> PooledConnection:
        requests = self._requests()
        held = requests.held(request_context())
        if readonly and not held.has_written(bind):
            bind = self.readers(bind)
        connection = held.get(bind)
        if connection is not None and not connection.returned:
            return connection
        taken = self._checkout(bind, held)
        with held.lock:
            connection = held.get(bind)
            if connection is None or connection.returned:
                held[bind] = connection = taken
        if requests.ended:
            # A receiver of a teardown signal has taken it.
            self._late.setdefault(threading.get_ident(), []).append(connection)
            flask.signals.appcontext_popped.connect(self.release_late, self._app)
        if connection is not taken:
            # A thread with a copy of this context has checked out one meanwhile.
            taken.close()
        return connection

    def connection(self, bind: str, timeout: float | None) -> PooledConnection:
        """Check out a separate connection, for use in the current request."""
        return self._checkout(bind, self._held(), timeout)

    def _checkout(
        self, bind: str, held: _Held, timeout: float | None = None
    ) -> PooledConnection:
        taken = self.pool(bind).connection(timeout=timeout, endpoint=endpoint())
        taken.note_writes_in(held.writes[bind])
        return taken

    def _held(self) -> _Held:
        """Return the current request's connections."""
        return self._requests().held(request_context())

    def close_db(self, bind: str | None) -> None:
        held = self._held()
        for name in list(held) if bind is None else [bind]:
            if name in held:
                held.pop(name).close()

    def _requests(self) -> _Requests:
        values: dict[str, Any] = app_context().g.__dict__
        requests: _Requests | None = values.get(self._key_in_g)
        if requests is None:
            # Threads may share a context.
            requests = values.setdefault(self._key_in_g, _Requests())
        return requests

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Return the block's connections at its end."""
        requests, key = self._requests(), request_context()
        before = [h for h in list(requests.held(key).values()) if not h.returned]
        thread = threading.get_ident()
        try:
            yield
        finally:
            held = requests.held(key)
            # Another thread that shares the context keeps its connections.
            own = [
                bind
                for bind, handle in list(held.items())
                if handle not in before and handle.holder in (None, thread)
            ]
            _release([held.pop(bind) for bind in own])

    def release_request(self, error: BaseException | None = None) -> None:
        """Return the connections of the request that ends. Never raises."""
        if held := self._requests().pop(request_context(), None):
            _release(held.values(), error)

    def release_all(self, error: BaseException | None = None) -> None:
        """Return all connections of the application context. Never raises."""
        if not app_ctx:
            return  # of a stream that was dropped on an unrelated thread
        requests = self._requests()
        while requests:
            _release(requests.popitem()[1].values(), error)

    def release_last(self, error: BaseException | None = None) -> None:
        """Return them again, after all teardown functions. Never raises."""
        self.release_all(error)
        if app_ctx:
            self._requests().ended = True

    def begin_again(self, app: Flask, **_: object) -> None:
        """Clear the mark of the end; Flask 3.1 pushes the context of a stream twice."""
        self._requests().ended = False

    def release_late(self, app: Flask, **_: object) -> None:
        """Return what this thread has checked out after the end. Never raises."""
        _release(self._late.pop(threading.get_ident(), ()))


def _keep(query: RecordedQuery) -> None:
    if app_ctx:
        queries = app_ctx.g.__dict__.setdefault(QUERIES_IN_G, deque(maxlen=RECORDED))
        queries.append(query)


def _release(
    held: Iterable[PooledConnection], error: BaseException | None = None
) -> None:
    held = iter(held)
    for connection in held:
        forgotten = error is None and connection.has_uncommitted_writes
        rows = connection.changed if forgotten else 0
        try:
            connection.close()
        except Exception as refused:
            text = "a connection was discarded instead of returned: %s"
            log(WARNING, text, refused)
        except BaseException:
            _release(held, error)  # an interrupt must not keep the others
            raise
        if forgotten:
            _warn_of_rollback(connection.endpoint, rows)


def _warn_of_rollback(endpoint: str | None, rows: int) -> None:
    if app_ctx and app_ctx.app.debug:
        log(
            WARNING,
            "%s %s and did not commit: they are rolled back; call commit(), or use"
            " 'with db.transaction():'",
            endpoint or "outside a request, something",
            f"changed {rows} rows" if rows else "may have changed rows",
            logger=app_ctx.app.logger,
        )


def _is_own_command(group: str | None) -> bool:
    """Tell whether this process is ``flask mysqlpool …``, not a worker of the site.

    Importing the app may use the pool. If a command applied a pause then, ``resume``
    would wait for itself.
    """
    if os.environ.get("FLASK_RUN_FROM_CLI") != "true":
        return False
    words = iter(sys.argv[1:])
    for word in words:
        if word in ("-A", "--app", "-e", "--env-file"):
            next(words, None)  # its value
        elif not word.startswith("-"):
            return word == group
    return False


def app_context() -> AppContext:
    """Return the application context, to use instead of Flask's proxies.

    Each access to a proxy would take longer than everything else on this path.
    """
    try:
        return app_ctx._get_current_object()  # type: ignore[attr-defined,no-any-return]
    except RuntimeError:
        raise RuntimeError(
            "the connection pool belongs to an app, and none is active here; work"
            " inside a view, or a command with @with_appcontext, or use"
            " 'with app.app_context():'"
        ) from None


def request_context() -> Any:
    """Return the key of the current request; None outside requests.

    Since Flask 3.2 every request has its own application context and ``g``.
    """
    context = vars(flask.globals).get("request_ctx")
    return context._get_current_object() if context else None


def endpoint() -> str | None:
    """Return the endpoint of the current request; None outside requests."""
    context = request_context()
    if context is None:
        context = app_context()
        if not getattr(context, "has_request", False):
            return None
    found: str | None = context.request.endpoint
    return found
