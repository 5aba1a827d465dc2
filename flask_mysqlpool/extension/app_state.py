"""What one :class:`MySQLPool` has for one app: pools, and what requests hold of them.

A connection lives in ``flask.g``, under the request context that asked for it. Up to
Flask 3.1 one application context, and so one ``g``, can serve several requests: those
of a test client inside a pushed context, or those that follow an abandoned stream on
the same thread. Each must get, and give back, a connection of its own.
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

#: Under this key in ``g``: what each of the app's states has checked out.
KEY_IN_G = "_mysqlpool"
#: And under this one: whether all functions of its teardown have been called.
KEY_OF_END = "_mysqlpool_end"
#: And under this one: what was executed.
QUERIES_IN_G = "_mysqlpool_queries"
#: The last so many.
RECORDED = 1000


class _Held(dict[str, PooledConnection]):
    """What one request has taken, by bind. Threads may share a request."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        #: Whether it has written, by bind: on whatever connection, returned or lost.
        self.writes: defaultdict[str, Writes] = defaultdict(Writes)


class State:
    """What one :class:`MySQLPool` has for one app."""

    def __init__(self, config: AppConfig, app: Flask, number: int) -> None:
        self.config = config
        self.status_dir = _status_dir(app, config)
        self._app = app
        # Commands tell the pools of a second MySQLPool in one app by a number.
        self._suffix = f"-{number + 1}" if number else ""
        self._pools: dict[str, Pool] = {}
        self._observers: list[Observer] = []
        #: By thread, what was taken after the functions of the teardown.
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
            # A pool that has opened nothing costs nothing, so whoever comes second
            # here throws his away.
            pool = self._pools.setdefault(bind, self._make(bind, config))
        return pool

    def pools_in_use(self) -> list[Pool]:
        """Those that somebody has asked for."""
        return list(self._pools.values())

    def named_pools(self) -> list[tuple[str, Pool]]:
        """The same, with what the commands call them."""
        return [(f"{b}{self._suffix}", pool) for b, pool in self._pools.items()]

    def observe(self, observer: Observer) -> None:
        """Have this told of every event in every pool, also in those to come."""
        self._observers.append(observer)
        for pool in self.pools_in_use():
            pool.add_observer(observer)

    def published(self) -> dict[str, PoolConfig]:
        """The pools, by what the commands call them."""
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
            # What stands in for a pool in a test stays.
            if known is pool and isinstance(pool, Pool):
                del self._pools[bind]

    def reader(self, bind: str) -> str:
        """The bind to read from instead of this one, in the current request."""
        readers = self.readers(bind)
        if readers is None:
            return bind
        held = self._all_held(app_context()).get(request_context())
        if held is None:
            return readers
        own = held.get(bind)
        written = held.writes[bind].sent or (own is not None and own.may_have_written)
        return bind if written else readers

    def readers(self, bind: str) -> str | None:
        """What ``READERS`` of this bind says."""
        config = self.config.pools.get(bind)
        return None if config is None else config.readers

    def get_db(self, bind: str) -> PooledConnection:
        context, key = app_context(), request_context()
        held = self._held_by(context, key)
        connection = held.get(bind)
        if connection is not None and not connection.returned:
            return connection
        taken = self.pool(bind).connection(endpoint=endpoint_of(context, key))
        taken.note_writes_in(held.writes[bind])
        with held.lock:
            connection = held.get(bind)
            if connection is None or connection.returned:
                held[bind] = connection = taken
        if context.g.__dict__.get(KEY_OF_END):
            self._return_when_popped(connection)
        if connection is not taken:
            # A thread with a copy of this context was faster.
            taken.close()
        return connection

    def _return_when_popped(self, connection: PooledConnection) -> None:
        """Return a connection that a receiver of the signal of the teardown takes."""
        late = self._late.setdefault(threading.get_ident(), [])
        late.append(connection)
        flask.signals.appcontext_popped.connect(self.release_late, self._app)

    def connection(self, bind: str, timeout: float | None) -> PooledConnection:
        """Check out a connection of its own for something in the current request."""
        context, key = app_context(), request_context()
        endpoint = endpoint_of(context, key)
        taken = self.pool(bind).connection(timeout=timeout, endpoint=endpoint)
        taken.note_writes_in(self._held_by(context, key).writes[bind])
        return taken

    def _held_by(self, context: AppContext, key: Any) -> _Held:
        all_held = self._all_held(context)
        held = all_held.get(key)
        return all_held.setdefault(key, _Held()) if held is None else held

    def close_db(self, bind: str | None) -> None:
        held = self._held()
        for name in [bind] if bind is not None else list(held):
            if name in held:
                held.pop(name).close()

    def _held(self) -> dict[str, PooledConnection]:
        """What the current request has taken so far."""
        return self._all_held(app_context()).get(request_context()) or {}

    def _all_held(self, context: AppContext) -> dict[Any, _Held]:
        """The connections in ``g``, by request context and bind."""
        values: dict[str, Any] = context.g.__dict__
        by_state = values.get(KEY_IN_G) or values.setdefault(KEY_IN_G, {})
        held: dict[Any, _Held] = by_state.get(self) or by_state.setdefault(self, {})
        return held

    @contextmanager
    def closing(self) -> Iterator[None]:
        """A block at whose end is returned what it has taken."""
        all_held, key = self._all_held(app_context()), request_context()
        taken = list((all_held.get(key) or {}).values())
        before = [handle for handle in taken if not handle.returned]
        thread = threading.get_ident()
        try:
            yield
        finally:
            held: dict[str, PooledConnection] = all_held.get(key) or {}
            # A thread that shares the context may be using what it has taken.
            own = [
                bind
                for bind, handle in list(held.items())
                if handle not in before and handle.holder in (None, thread)
            ]
            _release([held.pop(bind) for bind in own])

    def release_request(self, error: BaseException | None = None) -> None:
        """Return what the request that ends has taken. Never raises."""
        if all_held := self._all_held(app_context()):
            if held := all_held.pop(request_context(), None):
                _release(held.values(), error)

    def release_all(self, error: BaseException | None = None) -> None:
        """Return what is left at the end of the application context. Never raises."""
        if not app_ctx:
            return  # of a stream, dropped on a thread that has nothing to do with it
        all_held = self._all_held(app_context())
        while all_held:
            _release(all_held.popitem()[1].values(), error)

    def release_last(self, error: BaseException | None = None) -> None:
        """Do so once more, after all functions of the teardown. Never raises."""
        self.release_all(error)
        if app_ctx:
            app_context().g.__dict__[KEY_OF_END] = True

    def begin_again(self, app: Flask, **_: object) -> None:
        """Note that a context is pushed, perhaps once more, as Flask 3.1 streams do."""
        app_context().g.__dict__.pop(KEY_OF_END, None)

    def release_late(self, app: Flask, **_: object) -> None:
        """Return what was taken on this thread after that. Never raises."""
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
            _release(held, error)  # an interrupt: the others are returned all the same
            raise
        if forgotten:
            _warn_of_rollback(connection.endpoint, rows)


def _warn_of_rollback(endpoint: str | None, rows: int) -> None:
    if app_ctx and app_ctx.app.debug:
        log(
            WARNING,
            "%s %s and did not commit: they are rolled back; call commit(), or use"
            " 'with db.transaction():'",
            endpoint or "outside of a request, something",
            f"changed {rows} rows" if rows else "may have changed rows",
            logger=app_ctx.app.logger,
        )


def _status_dir(app: Flask, config: AppConfig) -> StatusDir | None:
    if config.status_dir is None:
        return None
    return StatusDir(os.path.join(app.instance_path, config.status_dir))


def _is_own_command(group: str | None) -> bool:
    """Whether this process is ``flask mysqlpool …``, and no worker of the site.

    Importing the app may use the pool; were that paused, nothing could resume it.
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
    """The context that the proxies ``g``, ``current_app`` and ``app_ctx`` look for.

    They do so at every step, which takes longer than all else that is done here.
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
    """The key of the current request; None outside of one.

    From Flask 3.2 on every request has an application context, and a ``g``, to itself.
    """
    context = vars(flask.globals).get("request_ctx")
    return context._get_current_object() if context else None


def endpoint_of(context: AppContext, request_context: Any) -> str | None:
    """What the current request is for; None outside of one."""
    if request_context is None:
        if not getattr(context, "has_request", False):
            return None
        request_context = context
    endpoint: str | None = request_context.request.endpoint
    return endpoint
