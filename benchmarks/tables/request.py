"""A whole request through a Flask app, called as a WSGI server would call it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

from flask import Flask
from werkzeug.test import create_environ, run_wsgi_app

from flask_mysqlpool import MySQLPool, get_db

from ..adapters import ADAPTERS, select
from ..bench import FLOOR, OURS, Bench, say
from ..results import Column, Table
from .clock import Action, quiet, take_turns

COLUMNS = (
    Column("us", "µs", 1),
    Column("cpu_us", "µs of\nCPU", 1),
    Column("per_second", "requests/s"),
    Column("share", "of the\nfloor", 3),
)


def measure(bench: Bench) -> Table:
    say("a Flask request")
    title = "A Flask request with one query, one thread, no web server around it"
    table = bench.table("request", title, bench.only(OURS, FLOOR), *COLUMNS)
    with ExitStack() as stack:
        target = stack.enter_context(bench.on_one_cpu()).server.target
        db = MySQLPool()
        floor = stack.enter_context(closing(ADAPTERS[FLOOR](target, 1)))
        apps = {OURS: _app(get_db), FLOOR: _app(floor.get)}
        apps[OURS].config.update(MYSQLPOOL_URL=target.url, MYSQLPOOL_AUTOCOMMIT=True)
        db.init_app(apps[OURS])
        requests = {name: _request(app) for name, app in apps.items()}
        turns = take_turns(requests, bench.effort.rounds, bench.effort.turn * 2)
        with apps[OURS].app_context():
            db.close_pool()
    table.raw["seconds"] = turns
    table.check_floor([turn.wall for turn in turns[FLOOR]])
    for name, taken in turns.items():
        wall, cpu = quiet(taken)
        share = quiet(turns[FLOOR]).wall / wall
        times = {"us": wall * 1e6, "cpu_us": cpu * 1e6}
        table.add({name: times | {"per_second": 1 / wall, "share": share}})
    return table


def _app(connection: Callable[[], Any]) -> Flask:
    app = Flask(__name__)
    app.add_url_rule("/", "answer", lambda: str(select(connection())))
    return app


def _request(app: Flask) -> Action:
    environ = create_environ()

    def request() -> None:
        answer, status, _ = run_wsgi_app(app, environ, buffered=True)
        assert status.startswith("200") and list(answer)

    return request
