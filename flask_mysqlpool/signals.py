"""Signals of the pools of an app, like those of Flask.

The sender is the app; ``pool`` is the :class:`~flask_mysqlpool.Pool`, and ``bind`` its
name. They cost nothing until a receiver is connected. Receivers run within checkouts
and returns. A receiver that raises is disconnected and logged; the request goes on.
"""

from __future__ import annotations

from logging import ERROR
from typing import Any
from weakref import WeakKeyDictionary, ref

from blinker import NamedSignal, Namespace
from flask import Flask

from .pool.driver.logs import log
from .pool.stats import Observer

_signals = Namespace()

connection_created = _signals.signal(
    "connection-created", "A connection was opened: thread_id, seconds."
)
connection_checked_out = _signals.signal(
    "connection-checked-out", "A connection was checked out: connection, waited."
)
connection_checked_in = _signals.signal(
    "connection-checked-in", "A connection was returned: thread_id, used."
)
connection_discarded = _signals.signal(
    "connection-discarded", "A connection was closed: thread_id, reason."
)
connect_failed = _signals.signal(
    "connect-failed", "A connection could not be opened: error."
)
pool_timeout = _signals.signal("pool-timeout", "A checkout timed out: error.")
pool_reset = _signals.signal("pool-reset", "All connections are being replaced.")
leak_detected = _signals.signal(
    "leak-detected", "A connection was not returned in time: endpoint, report."
)

#: The pools without an observer, until a receiver is connected.
_unobserved: WeakKeyDictionary[Any, _Signaller] = WeakKeyDictionary()


class _Signaller(Observer):
    """Sends the signals of one pool."""

    def __init__(self, app: Flask, bind: str) -> None:
        # The app holds the pool: a reference back would keep both alive.
        self._app = ref(app)
        self._bind = bind

    def _send(self, signal: NamedSignal, pool: Any, **about: Any) -> None:
        app = self._app()
        for receiver in list(signal.receivers_for(app)) if app is not None else ():
            try:
                receiver(app, pool=pool, bind=self._bind, **about)
            except Exception as error:
                signal.disconnect(receiver)
                text = "%s: %r is not called any more"
                log(ERROR, text, signal.name, receiver, error=error)

    def created(self, pool: Any, thread_id: int, seconds: float) -> None:
        self._send(connection_created, pool, thread_id=thread_id, seconds=seconds)

    def checked_out(self, pool: Any, connection: Any, waited: float) -> None:
        self._send(connection_checked_out, pool, connection=connection, waited=waited)

    def checked_in(self, pool: Any, thread_id: int, used: float) -> None:
        self._send(connection_checked_in, pool, thread_id=thread_id, used=used)

    def discarded(self, pool: Any, thread_id: int, reason: str) -> None:
        self._send(connection_discarded, pool, thread_id=thread_id, reason=reason)

    def connect_failed(self, pool: Any, error: BaseException) -> None:
        self._send(connect_failed, pool, error=error)

    def timed_out(self, pool: Any, error: Exception) -> None:
        self._send(pool_timeout, pool, error=error)

    def was_reset(self, pool: Any) -> None:
        self._send(pool_reset, pool)

    def leaked(self, pool: Any, endpoint: str | None, report: str) -> None:
        self._send(leak_detected, pool, endpoint=endpoint, report=report)


def attach(pool: Any, app: Flask, bind: str) -> None:
    """Send the signals of this pool once a receiver is connected."""
    _unobserved[pool] = _Signaller(app, bind)
    if any(signal.receivers for signal in _signals.values()):
        _listen()


def _listen(*_: object, **__: object) -> None:
    for pool in list(_unobserved):
        if (signaller := _unobserved.pop(pool, None)) is not None:
            pool.add_observer(signaller)


for _signal in _signals.values():
    _signal.receiver_connected.connect(_listen)
