"""The connections of requests, which are kept in ``flask.g``.

Up to Flask 3.1 one application context, and so one ``g``, can serve several requests:
those of a test client inside a pushed context, or those that follow an abandoned stream
on the same thread. Each must check out, and return, a separate connection.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from logging import WARNING
from typing import Any

import flask.globals
from flask.ctx import AppContext, has_app_context, has_request_context
from flask.globals import app_ctx

from ..pool.connection import PooledConnection
from ..pool.driver.logs import log
from ..pool.driver.session import Writes
from ..pool.query_log import RecordedQuery

#: Key in ``g`` of the recorded statements.
QUERIES_IN_G = "_mysqlpool_queries"
#: Statements that are kept; then the oldest go.
RECORDED = 1000


class Held(dict[str, PooledConnection]):
    """The connections of one request, by bind. Threads may share a request."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        #: Whether the request has written, by bind, on connections old and new.
        self.writes: dict[str, Writes] = {}

    def has_written(self, bind: str) -> bool:
        connection, writes = self.get(bind), self.writes.get(bind)
        may_have_written = connection is not None and connection.may_have_written
        return may_have_written or (writes is not None and writes.sent)


class Requests(dict[Any, Held]):
    """The requests of one application context, and what each has checked out."""

    #: Whether all teardown functions have been called.
    ended = False

    def held(self, key: Any) -> Held:
        held = self.get(key)
        return self.setdefault(key, Held()) if held is None else held

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Return the block's connections at its end."""
        key = request_context()
        before = [h for h in list(self.held(key).values()) if not h.returned]
        thread = threading.get_ident()
        try:
            yield
        finally:
            held = self.held(key)
            # Another thread that shares the context keeps its connections.
            own = [
                bind
                for bind, handle in list(held.items())
                if handle not in before and handle.holder in (None, thread)
            ]
            release([held.pop(bind) for bind in own])


def requests_in_g(key: str) -> Requests:
    """Return the requests that ``g`` has under this key."""
    values: dict[str, Any] = app_context().g.__dict__
    requests: Requests | None = values.get(key)
    # Threads may share a context.
    return values.setdefault(key, Requests()) if requests is None else requests


def keep_query(query: RecordedQuery) -> None:
    if has_app_context():
        values = app_context().g.__dict__
        values.setdefault(QUERIES_IN_G, deque(maxlen=RECORDED)).append(query)


def release(
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
            release(held, error)  # an interrupt must not keep the others
            raise
        if forgotten:
            _warn_of_rollback(connection.endpoint, rows)


def _warn_of_rollback(endpoint: str | None, rows: int) -> None:
    if has_app_context() and app_ctx.app.debug:
        log(
            WARNING,
            "%s %s and did not commit: they are rolled back; call commit(), or use"
            " 'with db.transaction():'",
            endpoint or "outside a request, something",
            f"changed {rows} rows" if rows else "may have changed rows",
            logger=app_ctx.app.logger,
        )


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
    if context is None or not has_request_context():
        return None
    return context._get_current_object()


def endpoint(request: Any) -> str | None:
    """Return the endpoint of the request with this key; None outside requests."""
    context: Any = app_context() if request is None else request
    if request is None and not getattr(context, "has_request", False):
        return None
    found: str | None = context.request.endpoint
    return found
