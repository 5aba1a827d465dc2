"""The extension object, which gives each request a connection."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from logging import ERROR
from typing import Any, TypeVar, cast
from weakref import WeakSet

from flask import Flask, current_app
from flask.globals import app_ctx
from flask.signals import appcontext_pushed, request_started
from werkzeug.exceptions import ServiceUnavailable

from ..cli import group
from ..config.settings import AppConfig
from ..errors import ConfigError, PoolFull, PoolTimeout, ServerUnavailable
from ..pool import Pool
from ..pool.connection import PooledConnection
from ..pool.driver.logs import Throttle, log
from ..pool.query_log import RecordedQuery
from ..pool.stats import Health, PoolStats, examine
from ..pool.transaction import TransactionBlock, beginning_of, run_in_transaction
from .app_state import State
from .contexts import QUERIES_IN_G, app_context, request_context, requests_in_g

#: Under this key in ``app.extensions``: ``{MySQLPool: its state for the app}``.
KEY = "mysqlpool"

#: The ``Retry-After`` of an answer 503.
RETRY_AFTER = 1  # second

#: The errors that are answered so.
_UNAVAILABLE = PoolTimeout, PoolFull, ServerUnavailable

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class MySQLPool:
    """The extension object; the state of each app is kept in the app.

    Write ``MySQLPool(app)``, or ``MySQLPool()`` and later ``init_app(app)``, for any
    number of apps.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._apps: WeakSet[Flask] = WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the ``MYSQLPOOL_*`` settings of ``app.config``, without connecting.

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
            text = f"MYSQLPOOL_CLI names an existing command: {config.cli}"
            raise ConfigError([f"{text}; choose another name, or False for none"])
        state = State(config, app, len(states))
        names = {name for other in states.values() for name in other.published()}
        if clash := names.intersection(state.published()):
            text = f"commands would know two pools as {min(clash)!r}, of two MySQLPool"
            raise ConfigError([f"{text} objects; give the bind another name"])
        states[self] = state
        self._apps.add(app)
        # Flask calls the last function first. Those at the front release what others
        # have taken; those above are called also if one that is there by now fails.
        if app.teardown_request_funcs.get(None):
            app.teardown_request(state.release_request)
        if app.teardown_appcontext_funcs:
            app.teardown_appcontext(state.release_all)
        app.teardown_request_funcs.setdefault(None, []).insert(0, state.release_request)
        app.teardown_appcontext_funcs.insert(0, state.release_last)
        appcontext_pushed.connect(state.begin_again, app)
        if config.radar:
            state.switch_on_radar()
        elif config.radar is None:
            request_started.connect(state.decide_on_radar, app)
        if len(states) > 1:
            return
        if config.handle_errors:
            handlers = app.error_handler_spec[None][None]
            answer = functools.partial(_unavailable, Throttle(), config.cli)
            for error in _UNAVAILABLE:
                if error not in handlers:
                    app.register_error_handler(error, answer)
        if config.cli is not None:
            app.cli.add_command(group, config.cli)
        # At the front: the names that the app itself adds replace them.
        app.shell_context_processors.insert(0, self._names_in_shell)

    def _names_in_shell(self) -> dict[str, Any]:
        """Return what ``flask shell`` knows without an import."""
        return {"db": self, "get_db": self.get_db}

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
        """Return this request's connection; the first call checks it out.

        Further calls return the same one until the request ends or, outside requests,
        the application context. Then it is returned to the pool automatically, and
        uncommitted changes are rolled back.

        With ``readonly``, use the bind that ``READERS`` names, if any; but once this
        request has written, use ``bind``, whose data include the changes.

        Raises what :meth:`Pool.connection() <flask_mysqlpool.Pool.connection>` raises,
        and :exc:`RuntimeError` without an application context.
        """
        return self._state().get_db(bind, readonly)

    def close_db(self, bind: str | None = None) -> None:
        """Return this request's connection of one bind, or of all binds, early."""
        self._state().close_db(bind)

    def connection(
        self,
        bind: str = "default",
        timeout: float | None = None,
        *,
        readonly: bool = False,
        app: Flask | None = None,
    ) -> PooledConnection:
        """Check out a separate connection, for a ``with`` statement.

        It is for generators, threads and jobs. A thread has no application context of
        its own: pass the ``app``, or write ``with app.app_context():`` around the call.
        ``timeout`` is in seconds, by default the setting ``TIMEOUT``.
        """
        state = self._state(app)
        if readonly:
            bind = state.readers(bind)
        if app is None or (app_ctx and app_ctx.app is app):
            return state.connection(bind, timeout)
        return state.pool(bind).connection(timeout=timeout)

    def transaction(
        self,
        bind: str = "default",
        *,
        app: Flask | None = None,
        isolation: str | None = None,
        read_only: bool = False,
    ) -> AbstractContextManager[PooledConnection]:
        """Begin a transaction block, on the connection that :meth:`get_db` returns.

        Commits at the end of the ``with`` statement; rolls back after any exception.
        Inside another such block it is a savepoint. With ``app``, it works outside
        contexts, too, and has a separate connection.

        The ``isolation`` level, such as ``"READ COMMITTED"``, and ``read_only`` are
        those of this transaction alone; an inner block cannot have others.

        Raises :exc:`~flask_mysqlpool.TransactionError` if an open transaction that is
        not such a block has changed or locked something, and for everything that would
        end the block early: ``commit()``, ``rollback()``, DDL. Raises
        :exc:`~flask_mysqlpool.CommitUnknown` if the connection is lost between the
        COMMIT and its answer.
        """
        context = None if app is None else partial(self._context_of, app)
        beginning = beginning_of(isolation, read_only)
        return TransactionBlock(lambda: self.get_db(bind), context, beginning)

    @contextmanager
    def _context_of(self, app: Flask) -> Iterator[None]:
        """Push a context of the app; in one of the same app, its writes count there."""
        key, outer = self._state(app).key_in_g, None
        if app_ctx and app_ctx.app is app:
            outer = requests_in_g(key).held(request_context())
        with app.app_context():
            if outer is not None:
                requests_in_g(key).held(request_context()).writes = outer.writes
            yield

    def after_commit(
        self, function: Callable[[], object], bind: str = "default"
    ) -> None:
        """Call a function once this request's work so far is committed.

        In a block of :meth:`transaction` or :meth:`run_in_transaction`, that is after
        the COMMIT of the outermost one was answered. It is not called after a rollback,
        and once only if the block was repeated. Outside of blocks, it is called at
        once. What it raises is logged, and the commit stays.
        """
        self._state().after_commit(function, bind)

    def run_in_transaction(
        self,
        function: Callable[..., T],
        *args: Any,
        retries: int = 3,
        bind: str = "default",
        isolation: str | None = None,
        read_only: bool = False,
    ) -> T:
        """Call ``function(connection, *args)`` in a transaction, and return its result.

        The whole function is called again, after a short pause, if the transaction was
        rolled back by a deadlock or a lock wait timeout, or if the connection was lost
        before COMMIT was sent; at most ``retries`` times. So it should have no effects
        outside the database: :meth:`after_commit` is for these.

        Raises what the last call raised. After a COMMIT of unknown outcome, it is not
        called again, and :exc:`~flask_mysqlpool.CommitUnknown` is raised.
        """
        connection = self.get_db(bind)
        return run_in_transaction(
            connection,
            function,
            *args,
            retries=retries,
            isolation=isolation,
            read_only=read_only,
        )

    def auto_close_db(self, function: F) -> F:
        """Decorate a function: return the connections of its :meth:`get_db` at its end.

        This is for threads, daemons and jobs, also for coroutine functions. Connections
        that were checked out before the call stay. Without an active application
        context, the function gets one of the only app that has this extension object.
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(
            function
        ):
            raise TypeError(
                "auto_close_db cannot tell when a generator ends; use"
                " 'with db.connection() as conn:' inside it"
            )
        if not inspect.iscoroutinefunction(function):
            return self._closing()(function)

        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self._closing():
                return await function(*args, **kwargs)

        return cast(F, wrapper)

    @contextmanager
    def _closing(self) -> Iterator[None]:
        if app_ctx:
            with requests_in_g(self._state().key_in_g).closing():
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
        """Return the current app's pool for this bind."""
        return self._state().pool(bind)

    @property
    def pools(self) -> dict[str, Pool]:
        """The pools of the current app, by bind."""
        state = self._state()
        return {bind: state.pool(bind) for bind in state.config.pools}

    def stats(self, bind: str = "default") -> PoolStats:
        """Return a snapshot of this process's pool."""
        return self.pool(bind).stats()

    def health(self, bind: str | None = None) -> Health:
        """Tell whether this process's pools can serve, from their counters.

        It is for readiness checks. It takes no connection, so it returns at once, and
        tells a saturated pool from a database that is down.
        """
        return examine(self._chosen(bind))

    def warm_up(self, timeout: float | None = None, bind: str | None = None) -> None:
        """Open the connections of ``MIN_SIZE``, and at least one, in this process.

        A worker that does so as it starts does not make its first requests wait.
        ``timeout`` is of each pool, in seconds, by default the setting ``TIMEOUT``.

        Raises what :meth:`Pool.warm_up() <flask_mysqlpool.Pool.warm_up>` raises.
        """
        for pool in self._chosen(bind).values():
            pool.warm_up(timeout)

    def reset(self, bind: str | None = None) -> None:
        """Replace this process's connections: idle ones now, others when returned."""
        for pool in self._chosen(bind).values():
            pool.reset()

    def close_pool(self, bind: str | None = None) -> None:
        """Close this process's pools. The next checkout creates a new pool."""
        state = self._state()
        for pool in self._chosen(bind).values():
            state.forget(pool)
            pool.close()

    def _chosen(self, bind: str | None) -> dict[str, Pool]:
        return self.pools if bind is None else {bind: self.pool(bind)}


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
    """Call :meth:`MySQLPool.get_db` of the current app's only :class:`MySQLPool`."""
    return _only_state().get_db(bind, readonly)


def close_db(bind: str | None = None) -> None:
    """Call :meth:`MySQLPool.close_db` of the current app's only :class:`MySQLPool`."""
    _only_state().close_db(bind)


def get_recorded_queries() -> list[RecordedQuery]:
    """Return the statements of the current request, or application context, so far.

    The list is empty unless ``MYSQLPOOL_RECORD_QUERIES`` is set. Raises
    :exc:`RuntimeError` without an application context.
    """
    return list(app_context().g.__dict__.get(QUERIES_IN_G, ()))


def _unavailable(
    throttle: Throttle,
    command: str | None,
    error: PoolTimeout | PoolFull | ServerUnavailable,
) -> Any:
    """Answer 503, unless the app has a handler for a more general error."""
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    handlers = app.error_handler_spec[None][None]
    for parent in type(error).__mro__:
        if parent in handlers and parent not in _UNAVAILABLE:
            return app.ensure_sync(handlers[parent])(error)
    # The text of a time-out differs each time, and that of an error has a number.
    cause = type(error), error.args[0] if len(error.args) > 1 else None
    held_back = throttle.passes(cause)
    if held_back is not None:
        more = f" ({held_back} more since the last line)" if held_back else ""
        if command and isinstance(error, ServerUnavailable):
            more += f"; to see what to do: flask {command} check"
        log(ERROR, "%s%s", error, more, logger=app.logger)
    return app.handle_http_exception(ServiceUnavailable(retry_after=RETRY_AFTER))
