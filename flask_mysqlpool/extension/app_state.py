"""The state of one :class:`MySQLPool` in one app: its pools, and their checkouts."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet, ref

import flask.signals
from flask import Flask
from flask.ctx import has_app_context

from .. import signals
from ..config import PoolConfig
from ..config.settings import AppConfig
from ..errors import ConfigError
from ..pool import Pool
from ..pool.connection import PooledConnection
from ..pool.pool import make_pool
from ..pool.query_log import Keep
from ..pool.stats import Observer
from ..pool.transaction import after_commit_of
from ..workers.agent import WorkerAgent
from ..workers.status_dir import StatusDir
from . import radar
from .contexts import (
    Held,
    endpoint,
    keep_query,
    release,
    request_context,
    requests_in_g,
)


class State:
    """The state of one :class:`MySQLPool` in one app."""

    def __init__(self, config: AppConfig, app: Flask, number: int) -> None:
        self.config = config
        self.status_dir: StatusDir | None = None
        if config.status_dir is not None:
            path = os.path.join(app.instance_path, config.status_dir)
            self.status_dir = StatusDir(path)
        # The app holds this state: a reference back would keep both alive.
        self._reference = ref(app)
        # Commands know the pools of a second MySQLPool of one app by this suffix.
        self._suffix = f"-{number + 1}" if number else ""
        self.key_in_g = f"_mysqlpool{self._suffix}"
        self._pools: dict[str, Pool] = {}
        self._given: Mapping[str, Pool] = {}
        self._observers: list[Observer] = []
        #: By thread, connections that were checked out after all teardown functions.
        self._late: dict[int, WeakSet[PooledConnection]] = {}
        #: Whether the statements of requests are counted, and judged.
        self.has_radar = False

    @property
    def _app(self) -> Flask:
        app = self._reference()
        assert app is not None  # the caller has it
        return app

    def decide_on_radar(self, app: Flask, **_: object) -> None:
        """Switch the radar on if the app is in debug mode by its first request."""
        flask.signals.request_started.disconnect(self.decide_on_radar, app)
        if app.debug:
            self.switch_on_radar()

    def switch_on_radar(self) -> None:
        """Count and judge the statements of requests from now on."""
        self.has_radar = True
        radar.attach(self._app)
        for pool in list(self._pools.values()):
            pool.record(*self._keep(pool.config))

    def _keep(self, config: PoolConfig) -> list[Keep]:
        """Return what receives the statements of a pool."""
        kept = (config.record_queries, keep_query), (self.has_radar, radar.keep)
        return [keep for is_wanted, keep in kept if is_wanted]

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
            made = self._given.get(bind) or self._make(bind, config)
            pool = self._pools.setdefault(bind, made)
        return pool

    @contextmanager
    def using(self, pools: Mapping[str, Pool]) -> Iterator[None]:
        """Use the given pools, one for each bind, until the end of the block."""
        before = self._pools, self._given
        self._pools, self._given = dict(pools), pools
        try:
            yield
        finally:
            self._pools, self._given = before

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
        pool.record(*self._keep(config))
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
            if known is pool:
                del self._pools[bind]

    def readers(self, bind: str) -> str:
        """Return the bind that ``READERS`` names, or the bind itself."""
        config = self.config.pools.get(bind)
        return bind if config is None else config.readers or bind

    def get_db(self, bind: str, readonly: bool) -> PooledConnection:
        requests, request = requests_in_g(self.key_in_g), request_context()
        held = requests.held(request)
        if readonly and not held.has_written(bind):
            bind = self.readers(bind)
        connection = held.get(bind)
        if connection is not None and not connection.returned:
            return connection
        taken = self._checkout(bind, held, request)
        with held.lock:
            connection = held.get(bind)
            if connection is None or connection.returned:
                held[bind] = connection = taken
        if requests.ended:
            # A receiver of a teardown signal has taken it.
            late = self._late.setdefault(threading.get_ident(), WeakSet())
            late.add(connection)
            flask.signals.appcontext_popped.connect(self.release_late, self._app)
        if connection is not taken:
            # A thread with a copy of this context has checked out one meanwhile.
            taken.close()
        return connection

    def connection(self, bind: str, timeout: float | None) -> PooledConnection:
        """Check out a separate connection, for use in the current request."""
        request = request_context()
        held = requests_in_g(self.key_in_g).held(request)
        return self._checkout(bind, held, request, timeout)

    def _checkout(
        self, bind: str, held: Held, request: Any, timeout: float | None = None
    ) -> PooledConnection:
        pool = self.pool(bind)
        started = time.perf_counter() if self.has_radar else None
        try:
            taken = pool.connection(timeout=timeout, endpoint=endpoint(request))
        finally:
            if started is not None:
                radar.keep_wait(time.perf_counter() - started)
        taken.note_writes_in(held.writes.setdefault(bind, taken.writes))
        return taken

    def close_db(self, bind: str | None) -> None:
        held = requests_in_g(self.key_in_g).held(request_context())
        for name in list(held) if bind is None else [bind]:
            if name in held:
                held[name].close()

    def after_commit(self, function: Callable[[], object], bind: str) -> None:
        """Call a function at once, or after the COMMIT of the open block."""
        connection = requests_in_g(self.key_in_g).held(request_context()).get(bind)
        if connection is None or (
            connection.returned and not connection.in_returned_block
        ):
            self.pool(bind)  # which raises if there is no such bind
            after_commit_of(None, function)
        else:
            connection.after_commit(function)

    def release_request(self, error: BaseException | None = None) -> None:
        """Return the connections of the request that ends. Never raises."""
        if held := requests_in_g(self.key_in_g).pop(request_context(), None):
            release(held.values(), error)

    def release_all(self, error: BaseException | None = None) -> None:
        """Return all connections of the application context. Never raises."""
        if not has_app_context():
            return  # of a stream that was dropped on an unrelated thread
        requests = requests_in_g(self.key_in_g)
        while requests:
            release(requests.popitem()[1].values(), error)

    def release_last(self, error: BaseException | None = None) -> None:
        """Return them again, after all teardown functions. Never raises."""
        self.release_all(error)
        if has_app_context():
            requests_in_g(self.key_in_g).ended = True

    def begin_again(self, app: Flask, **_: object) -> None:
        """Clear the mark of the end; Flask 3.1 pushes the context of a stream twice."""
        requests_in_g(self.key_in_g).ended = False

    def release_late(self, app: Flask, **_: object) -> None:
        """Return what this thread has checked out after the end. Never raises."""
        release(list(self._late.pop(threading.get_ident(), ())))


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
