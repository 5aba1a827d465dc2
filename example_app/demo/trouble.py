"""Buttons that load the pool or kill its connections, to watch it in the monitor.

Only requests from this machine are served, on a bounded number of threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import Any, cast

from flask import (
    Blueprint,
    Flask,
    abort,
    current_app,
    flash,
    jsonify,
    redirect,
    request,
    url_for,
)
from flask.typing import ResponseReturnValue
from pymysql.err import MySQLError

from flask_mysqlpool import PoolError
from flask_mysqlpool.monitor import is_local

from ..database import describe
from ..web import reply
from . import connections as db

blueprint = Blueprint(
    "trouble", __name__, url_prefix="/trouble", template_folder="templates"
)

log = logging.getLogger(__name__)

#: The most threads that run at once.
MOST = 40
#: Largest values of the forms; requests are those of each visitor.
LIMITS = {"connections": 20, "seconds": 15, "visitors": 40, "requests": 20}
DEFAULTS = {"connections": 10, "seconds": 8, "visitors": 30, "requests": 10}

_threads = ThreadPoolExecutor(MOST, thread_name_prefix="trouble")
_places = BoundedSemaphore(MOST)


@blueprint.before_request
def refuse_strangers() -> None:
    if not is_local():
        abort(403, "Trouble is made from this machine only.")


@blueprint.get("/")
def page() -> ResponseReturnValue:
    data = {"limits": LIMITS, "post": ["hold", "flood", "kill"]}
    return reply("trouble.html", data, limits=LIMITS, defaults=DEFAULTS)


@blueprint.post("/hold")
def hold() -> ResponseReturnValue:
    """Keep connections busy."""
    connections, seconds = number("connections"), number("seconds")
    app = this_app()
    started = start(connections, lambda: keep_busy(app, seconds))
    return told(f"{started} connections are held for {seconds} seconds.")


@blueprint.post("/flood")
def flood() -> ResponseReturnValue:
    """Let many visitors send requests at once."""
    visitors, requests = number("visitors"), number("requests")
    app = this_app()
    started = start(visitors, lambda: visit(app, requests))
    return told(f"{started} visitors ask for {requests} slow pages each.")


@blueprint.post("/kill")
def kill() -> ResponseReturnValue:
    """Kill every connection of the app."""
    ended = db.end_connections_from_outside()
    return told(f"The server has ended {ended} connections.")


@blueprint.get("/slow")
def slow() -> ResponseReturnValue:
    """Answer slowly; this is the page that the visitors request."""
    return jsonify(slept=db.sleep(0.1))


def number(name: str) -> int:
    data = request.get_json() if request.is_json else request.form
    try:
        value = int(data.get(name, DEFAULTS[name]))
    except (AttributeError, TypeError, ValueError):
        value = 0
    if not 1 <= value <= LIMITS[name]:
        abort(400, f"{name} must be a number from 1 to {LIMITS[name]}.")
    return value


def this_app() -> Flask:
    app: Any = current_app
    return cast(Flask, app._get_current_object())


def start(count: int, work: Callable[[], None]) -> int:
    """Start the work on up to ``count`` free threads; return their number."""
    started = 0
    while started < count and _places.acquire(blocking=False):
        _threads.submit(work).add_done_callback(lambda _: _places.release())
        started += 1
    if not started:
        abort(429, f"There is trouble enough: {MOST} threads are at it.")
    return started


def keep_busy(app: Flask, seconds: float) -> None:
    with app.test_request_context("/trouble/hold", method="POST"):
        try:
            db.sleep(seconds)
        except (MySQLError, PoolError) as error:
            log.info("no longer held: %s", describe(error))


def visit(app: Flask, requests: int) -> None:
    client = app.test_client()
    for _ in range(requests):
        try:
            client.get("/trouble/slow")
        except (MySQLError, PoolError) as error:
            # Where app.testing lets errors through.
            log.info("a visitor got an error: %s", describe(error))


def told(message: str) -> ResponseReturnValue:
    if request.is_json:
        return jsonify(message=message)
    flash(message)
    return redirect(url_for(".page"), 303)
