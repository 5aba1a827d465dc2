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


def _sends(signal: NamedSignal, *names: str) -> Any:
    """Return a method of an observer that sends its arguments, by these names."""

    def method(self: _Signaller, pool: Any, *arguments: Any) -> None:
        self.send(signal, pool, dict(zip(names, arguments, strict=True)))

    return method


class _Signaller(Observer):
    """Sends the signals of one pool."""

    def __init__(self, app: Flask, bind: str) -> None:
        # The app holds the pool: a reference back would keep both alive.
        self._app = ref(app)
        self._bind = bind

    def send(self, signal: NamedSignal, pool: Any, about: dict[str, Any]) -> None:
        app = self._app()
        for receiver in list(signal.receivers_for(app)) if app is not None else ():
            try:
                receiver(app, pool=pool, bind=self._bind, **about)
            except Exception as error:
                signal.disconnect(receiver)
                text = "%s: %r is not called any more"
                log(ERROR, text, signal.name, receiver, error=error)

    created = _sends(connection_created, "thread_id", "seconds")
    checked_out = _sends(connection_checked_out, "connection", "waited")
    checked_in = _sends(connection_checked_in, "thread_id", "used")
    discarded = _sends(connection_discarded, "thread_id", "reason")
    connect_failed = _sends(connect_failed, "error")
    timed_out = _sends(pool_timeout, "error")
    was_reset = _sends(pool_reset)
    leaked = _sends(leak_detected, "endpoint", "report")


def attach(pool: Any, app: Flask, bind: str) -> None:
    """Send the signals of this pool once a receiver is connected."""
    _unobserved[pool] = _Signaller(app, bind)
    if any(signal.receivers for signal in _signals.values()):
        _listen()


def _listen(*_: object, **__: object) -> None:
    # References, as another thread may add a pool meanwhile.
    for reference in _unobserved.keyrefs():
        pool = reference()
        if pool is not None and (signaller := _unobserved.pop(pool, None)) is not None:
            pool.add_observer(signaller)


for _signal in _signals.values():
    _signal.receiver_connected.connect(_listen)
