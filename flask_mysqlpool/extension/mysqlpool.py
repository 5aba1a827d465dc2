""":class:`MySQLPool`: where Flask's contexts meet the pools."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from logging import ERROR
from typing import Any, TypeVar, cast
from weakref import WeakSet

from flask import Flask, current_app
from flask.globals import app_ctx
from flask.signals import appcontext_pushed
from werkzeug.exceptions import ServiceUnavailable

from ..cli import commands
from ..config.settings import AppConfig
from ..errors import ConfigError, PoolFull, PoolTimeout
from ..pool import Pool
from ..pool.connection import PooledConnection
from ..pool.driver.logs import log
from ..pool.query_log import RecordedQuery
from ..pool.stats import Health, PoolStats, examine
from ..pool.transaction import TransactionBlock, run_in_transaction
from .app_state import QUERIES_IN_G, State, app_context

#: Under this key in ``app.extensions``: ``{MySQLPool: its state for the app}``.
KEY = "mysqlpool"

#: What a client that was refused for lack of connections is told to wait.
RETRY_AFTER = 1  # second

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


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
        if not states and config.cli in (*app.cli.commands, "run", "shell", "routes"):
            text = f"MYSQLPOOL_CLI names a command that there is: {config.cli}"
            raise ConfigError([f"{text}; choose another name, or False for none"])
        states[self] = state = State(config, app, len(states))
        self._apps.add(app)
        app.teardown_request(state.release_request)
        app.teardown_appcontext(state.release_all)
        # Flask calls the last first. So these are for what functions take that were
        # registered earlier, and those above for when one of them fails.
        app.teardown_request_funcs.setdefault(None, []).insert(0, state.release_request)
        app.teardown_appcontext_funcs.insert(0, state.release_last)
        appcontext_pushed.connect(state.begin_again, app)
        if len(states) > 1:
            return
        if config.handle_errors:
            handlers = app.error_handler_spec[None][None]
            for error in (PoolTimeout, PoolFull):
                if error not in handlers:
                    app.register_error_handler(error, _unavailable)
        if config.cli is not None:
            app.cli.add_command(commands.create_group(config.cli))

    def _state(self, app: Flask | None = None) -> State:
        app = app or app_context().app
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
            bind = state.readers(bind) or bind
        if app is None:
            return state.connection(bind, timeout)
        return state.pool(bind).connection(timeout=timeout)

    def transaction(
        self, bind: str = "default", *, app: Flask | None = None
    ) -> AbstractContextManager[PooledConnection]:
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
        context = None if app is None else app.app_context()
        return TransactionBlock(lambda: self.get_db(bind), context)

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


def _states(app: Flask) -> dict[MySQLPool, State]:
    states: dict[MySQLPool, State] = app.extensions.get(KEY, {})
    if not states:
        raise RuntimeError(
            f"the app {app.name!r} has no connection pool; create one with"
            " MySQLPool(app), or call init_app(app) of the one that you have"
        )
    return states


def _only_state() -> State:
    states = _states(app_context().app)
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


def get_recorded_queries() -> list[RecordedQuery]:
    """What the current request, or application context, has executed so far.

    Empty unless ``MYSQLPOOL_RECORD_QUERIES`` is set. :exc:`RuntimeError` without an
    application context.
    """
    return list(app_context().g.__dict__.get(QUERIES_IN_G, ()))


def _unavailable(error: PoolTimeout | PoolFull) -> Any:
    """Answer 503, unless the app handles a more general error by itself."""
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    handlers = app.error_handler_spec[None][None]
    for parent in _ancestors(type(error)):
        if parent in handlers:
            return app.ensure_sync(handlers[parent])(error)
    log(ERROR, "%s", error, logger=app.logger)
    return app.handle_http_exception(ServiceUnavailable(retry_after=RETRY_AFTER))


def _ancestors(cls: type[BaseException]) -> Iterator[type[BaseException]]:
    for parent in cls.__mro__:
        if parent not in (PoolTimeout, PoolFull) and issubclass(parent, BaseException):
            yield parent
