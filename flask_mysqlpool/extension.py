""":class:`MySQLPool`: where Flask's contexts meet the pools.

A connection lives in ``flask.g``, under the request context that asked for it. Up to
Flask 3.1 one application context, and so one ``g``, can serve several requests: those
of a test client inside a pushed context, or those that follow an abandoned stream on
the same thread. Each must get, and give back, a connection of its own.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast
from weakref import WeakSet

import flask.globals
from flask import Flask, current_app
from flask.ctx import AppContext
from flask.globals import app_ctx
from werkzeug.exceptions import ServiceUnavailable

from . import cli, signals
from .backends import make_pool
from .board import Board
from .config import AppConfig, PoolConfig
from .errors import ConfigError, PoolFull, PoolTimeout
from .handle import PooledConnection
from .health import Health, examine
from .pool import Pool
from .presence import Presence
from .recording import RecordedQuery, make_recorder
from .stats import Observer, PoolStats
from .transaction import run_in_transaction, transaction

log = logging.getLogger(__name__)

#: Under this key in ``app.extensions``: ``{MySQLPool: its state for the app}``.
KEY = "mysqlpool"
#: Under this one in ``g``: what each of these states has checked out.
KEY_IN_G = "_mysqlpool"
#: And under this one: what was executed.
QUERIES_IN_G = "_mysqlpool_queries"
#: The last so many.
RECORDED = 1000

#: What a client that was refused for lack of connections is told to wait.
RETRY_AFTER = 1  # second

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class _Held(dict[str, PooledConnection]):
    """What one request has taken, by bind. Threads may share a request."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class MySQLPool:
    """The extension object. It holds nothing that belongs to one app.

    ``MySQLPool(app)``, or ``MySQLPool()`` and later ``init_app(app)``, as often as
    there are apps.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._apps: WeakSet[Flask] = WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the ``MYSQLPOOL_*`` settings of ``app.config``; connect to nothing yet.

        Raises :exc:`~flask_mysqlpool.errors.ConfigError`, which lists every fault of
        the settings, and :exc:`RuntimeError` the second time for one app.
        """
        states = app.extensions.setdefault(KEY, {})
        if self in states:
            raise RuntimeError(
                f"init_app() was called twice for the app {app.name!r}; call it once,"
                " or not at all after MySQLPool(app)"
            )
        config = AppConfig.from_mapping(app.config, name=app.name)
        state = _State(config, _board(app, config), app, len(states))
        states[self] = state
        self._apps.add(app)
        app.teardown_request(state.release_request)
        app.teardown_appcontext(state.release_all)
        if len(states) > 1:
            return
        if config.handle_errors:
            handlers = app.error_handler_spec[None][None]
            for error in (PoolTimeout, PoolFull):
                if error not in handlers:
                    app.register_error_handler(error, _unavailable)
        if config.cli is not None:
            app.cli.add_command(cli.create_group(config.cli))

    def _state(self, app: Flask | None = None) -> _State:
        app = app or _app_context().app
        states = _states(app)
        if self not in states:
            raise RuntimeError(
                f"this MySQLPool does not know the app {app.name!r}; call"
                " init_app(app) when the app is created"
            )
        return states[self]

    def get_db(
        self, bind: str = "default", *, readonly: bool = False
    ) -> PooledConnection:
        """The connection of this request, checked out when it is first asked for.

        The same one all through a request; outside of requests, all through an
        application context. It is returned by itself at the end. What is not
        committed by then is rolled back.

        With ``readonly``, one of the bind that ``READERS`` names, if it does; but once
        this request has written, it is the same as without, to see what was written.

        Raises what :meth:`Pool.connection() <flask_mysqlpool.Pool.connection>` raises,
        and :exc:`RuntimeError` without an application context.
        """
        state = self._state()
        return state.get_db(state.reader(bind) if readonly else bind)

    def close_db(self, bind: str | None = None) -> None:
        """Return the connection of this request early, or those of all binds."""
        self._state().close_db(bind)

    def connection(
        self,
        bind: str = "default",
        timeout: float | None = None,
        *,
        readonly: bool = False,
        app: Flask | None = None,
    ) -> PooledConnection:
        """A connection of one's own, for ``with``; it has nothing to do with ``g``.

        For generators, threads and jobs. A thread has no application context by itself:
        name the ``app``, or write ``with app.app_context():`` around it. ``timeout`` is
        in seconds, by default the setting ``TIMEOUT``.
        """
        state = self._state(app)
        if readonly:
            bind = state.config.pools[bind].readers or bind
        endpoint = None
        if app is None:
            endpoint = _endpoint(_app_context(), _request_context())
        return state.pool(bind).connection(timeout=timeout, endpoint=endpoint)

    @contextmanager
    def transaction(
        self, bind: str = "default", *, app: Flask | None = None
    ) -> Iterator[PooledConnection]:
        """All of a block or nothing, on the connection that :meth:`get_db` gives.

        Commits at the end; rolls back after any exception. Inside of another such
        block it is a savepoint. With ``app``, it works outside of contexts, too, and
        has a connection of its own.

        Raises :exc:`~flask_mysqlpool.TransactionError` where a transaction is open
        already that has changed or locked something and is no such block, and for
        whatever would end this one early: ``commit()``, ``rollback()``, DDL.
        :exc:`~flask_mysqlpool.CommitUnknown` if the connection is lost between the
        COMMIT and its answer.
        """
        with ExitStack() as stack:
            if app is not None:
                stack.enter_context(app.app_context())
            yield stack.enter_context(transaction(self.get_db(bind)))

    def run_in_transaction(
        self,
        function: Callable[..., T],
        *args: Any,
        retries: int = 3,
        bind: str = "default",
    ) -> T:
        """Call ``function(connection, *args)`` in a transaction; what it returns.

        All of the function is called again, after a short pause, if the transaction
        was rolled back by a deadlock or a lock wait timeout, or if the connection was
        lost before COMMIT was sent; at most ``retries`` times. So it should have no
        other effects than on the database.

        Raises what the last call raised. After a COMMIT of unknown outcome nothing is
        called again: that is a :exc:`~flask_mysqlpool.CommitUnknown`.
        """
        connection = self.get_db(bind)
        return run_in_transaction(connection, function, *args, retries=retries)

    def auto_close_db(self, function: F) -> F:
        """Decorate a function: what it takes by :meth:`get_db` is returned at its end.

        However it ends; what was taken before the call stays. For threads, daemons and
        jobs: where no application context is active, the function gets one, of the
        only app that this object was initialised for. Coroutine functions, too.
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(
            function
        ):
            raise TypeError(
                "auto_close_db cannot tell when a generator ends; use"
                " 'with db.connection() as conn:' inside of it"
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self._closing():
                    return await function(*args, **kwargs)

        else:

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self._closing():
                    return function(*args, **kwargs)

        return cast(F, wrapper)

    @contextmanager
    def _closing(self) -> Iterator[None]:
        if app_ctx:
            with self._state().closing():
                yield
            return
        apps = list(self._apps)
        if len(apps) != 1:
            raise RuntimeError(
                f"no application context is active, and this MySQLPool has {len(apps)}"
                " apps; use 'with app.app_context():' around the call"
            )
        with apps[0].app_context():
            yield

    def pool(self, bind: str = "default") -> Pool:
        """The pool of the current app for this bind."""
        return self._state().pool(bind)

    @property
    def pools(self) -> dict[str, Pool]:
        """All pools of the current app, by the names of their binds."""
        state = self._state()
        return {bind: state.pool(bind) for bind in state.config.pools}

    def stats(self, bind: str = "default") -> PoolStats:
        """What this process's pool looks like now."""
        return self.pool(bind).stats()

    def health(self, bind: str | None = None) -> Health:
        """Whether this process's pools can serve: at once, from their counters.

        Takes no connection, so it tells a pool that is saturated from a database that
        is down, and is as quick then as ever. For readiness checks.
        """
        chosen = self.pools if bind is None else {bind: self.pool(bind)}
        return examine(chosen)

    def reset(self, bind: str | None = None) -> None:
        """Replace this process's connections: idle ones now, others as they return."""
        for pool in self._chosen(bind):
            pool.reset()

    def close_pool(self, bind: str | None = None) -> None:
        """Close this process's connections. The next checkout opens a pool anew."""
        state = self._state()
        for pool in self._chosen(bind):
            state.forget(pool)
            pool.close()

    def _chosen(self, bind: str | None) -> list[Pool]:
        return list(self.pools.values()) if bind is None else [self.pool(bind)]


class _State:
    """What one :class:`MySQLPool` has for one app."""

    def __init__(
        self, config: AppConfig, board: Board | None, app: Flask, number: int
    ) -> None:
        self.config = config
        self.board = board
        self._app = app
        # Commands tell the pools of a second MySQLPool in one app by a number.
        self._suffix = f"-{number + 1}" if number else ""
        self._pools: dict[str, Pool] = {}
        self._observers: list[Observer] = []

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
        if self.board is not None:
            Presence(
                pool,
                self.board,
                app=self._app.name,
                bind=bind + self._suffix,
                silent=_is_own_command(self.config.cli),
            )
        return pool

    def forget(self, pool: Pool) -> None:
        for bind, known in tuple(self._pools.items()):
            # What stands in for a pool in a test stays.
            if known is pool and isinstance(pool, Pool):
                del self._pools[bind]

    def reader(self, bind: str) -> str:
        """The bind to read from instead of this one, in the current request."""
        readers = self.config.pools[bind].readers if bind in self.config.pools else None
        held = self._all_held(_app_context()).get(_request_context(), _Held())
        if readers is None or (bind in held and held[bind].may_have_written):
            return bind
        return readers

    def get_db(self, bind: str) -> PooledConnection:
        context, key = _app_context(), _request_context()
        all_held = self._all_held(context)
        held = all_held.get(key)
        if held is None:
            held = all_held.setdefault(key, _Held())
        connection = held.get(bind)
        if connection is not None and not connection.returned:
            return connection
        taken = self.pool(bind).connection(endpoint=_endpoint(context, key))
        with held.lock:
            connection = held.get(bind)
            if connection is None or connection.returned:
                held[bind] = connection = taken
        if connection is not taken:
            # A thread with a copy of this context was faster.
            taken.close()
        return connection

    def close_db(self, bind: str | None) -> None:
        held = self._all_held(_app_context()).get(_request_context(), _Held())
        for name in [bind] if bind is not None else list(held):
            if name in held:
                held.pop(name).close()

    def _all_held(self, context: AppContext) -> dict[Any, _Held]:
        """The connections in ``g``, by request context and bind."""
        values: dict[str, Any] = context.g.__dict__
        by_state = values.get(KEY_IN_G) or values.setdefault(KEY_IN_G, {})
        held: dict[Any, _Held] = by_state.get(self) or by_state.setdefault(self, {})
        return held

    @contextmanager
    def closing(self) -> Iterator[None]:
        """A block at whose end is returned what it has taken."""
        all_held, key = self._all_held(_app_context()), _request_context()
        before = list(all_held.get(key, _Held()).values())
        before = [handle for handle in before if not handle.returned]
        thread = threading.get_ident()
        try:
            yield
        finally:
            held = all_held.get(key, _Held())
            # A thread that shares the context may be using what it has taken.
            own = [
                bind
                for bind, handle in list(held.items())
                if handle not in before and handle.holder in (None, thread)
            ]
            _release([held.pop(bind) for bind in own])

    def release_request(self, error: BaseException | None = None) -> None:
        """Return what the request that ends has taken. Never raises."""
        if all_held := self._all_held(_app_context()):
            if held := all_held.pop(_request_context(), None):
                _release(held.values(), error)

    def release_all(self, error: BaseException | None = None) -> None:
        """Return what is left at the end of the application context. Never raises."""
        if not app_ctx:
            return  # of a stream, dropped on a thread that has nothing to do with it
        all_held = self._all_held(_app_context())
        while all_held:
            _release(all_held.popitem()[1].values(), error)


def _keep(query: RecordedQuery) -> None:
    if app_ctx:
        queries = app_ctx.g.__dict__.setdefault(QUERIES_IN_G, deque(maxlen=RECORDED))
        queries.append(query)


def get_recorded_queries() -> list[RecordedQuery]:
    """What the current request, or application context, has executed so far.

    Empty unless ``MYSQLPOOL_RECORD_QUERIES`` is set. :exc:`RuntimeError` without an
    application context.
    """
    return list(_app_context().g.__dict__.get(QUERIES_IN_G, ()))


def _release(
    held: Iterable[PooledConnection], error: BaseException | None = None
) -> None:
    for connection in held:
        try:
            if connection.changed and error is None:
                _warn_of_rollback(connection)
            connection.close()
        except Exception as error:
            log.warning("a connection was discarded instead of returned: %s", error)


def _warn_of_rollback(connection: PooledConnection) -> None:
    app = _app_context().app
    if app.debug:
        app.logger.warning(
            "%s changed %d rows and did not commit: they are rolled back; call"
            " commit(), or use 'with db.transaction():'",
            connection.endpoint or "outside of a request, something",
            connection.changed,
        )


def _request_context() -> Any:
    """The key of the current request; None outside of one.

    From Flask 3.2 on every request has an application context, and a ``g``, to itself.
    """
    context = vars(flask.globals).get("request_ctx")
    return context._get_current_object() if context else None


def _endpoint(context: AppContext, request_context: Any) -> str | None:
    """What the current request is for; None outside of one."""
    if request_context is None:
        if not getattr(context, "has_request", False):
            return None
        request_context = context
    endpoint: str | None = request_context.request.endpoint
    return endpoint


def _board(app: Flask, config: AppConfig) -> Board | None:
    if config.status_dir is None:
        return None
    return Board(os.path.join(app.instance_path, config.status_dir))


def _is_own_command(group: str | None) -> bool:
    """Whether this process is ``flask mysqlpool …``, and no worker of the site.

    Importing the app may use the pool; were that paused, nothing could resume it.
    """
    from_cli = os.environ.get("FLASK_RUN_FROM_CLI") == "true"
    return from_cli and group in sys.argv[1:]


def _app_context() -> AppContext:
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


def _states(app: Flask) -> dict[MySQLPool, _State]:
    states: dict[MySQLPool, _State] = app.extensions.get(KEY, {})
    if not states:
        raise RuntimeError(
            f"the app {app.name!r} has no connection pool; create one with"
            " MySQLPool(app), or call init_app(app) of the one that you have"
        )
    return states


def _only_state() -> _State:
    states = _states(_app_context().app)
    if len(states) > 1:
        raise RuntimeError(
            f"the app {current_app.name!r} has {len(states)} MySQLPool objects;"
            " call get_db() and close_db() of the one that you mean"
        )
    [state] = states.values()
    return state


def get_db(bind: str = "default", *, readonly: bool = False) -> PooledConnection:
    """:meth:`MySQLPool.get_db` of the current app's only :class:`MySQLPool`."""
    state = _only_state()
    return state.get_db(state.reader(bind) if readonly else bind)


def close_db(bind: str | None = None) -> None:
    """:meth:`MySQLPool.close_db` of the current app's only :class:`MySQLPool`."""
    _only_state().close_db(bind)


def _unavailable(error: PoolTimeout | PoolFull) -> Any:
    """Answer 503, unless the app handles a more general error by itself."""
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    handlers = app.error_handler_spec[None][None]
    for parent in _ancestors(type(error)):
        if parent in handlers:
            return app.ensure_sync(handlers[parent])(error)
    app.logger.error("%s", error)
    return app.handle_http_exception(ServiceUnavailable(retry_after=RETRY_AFTER))


def _ancestors(cls: type[BaseException]) -> Iterator[type[BaseException]]:
    for parent in cls.__mro__:
        if parent not in (PoolTimeout, PoolFull) and issubclass(parent, BaseException):
            yield parent
