"""A whole request through a Flask app, called as a WSGI server would call it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask
from werkzeug.test import create_environ, run_wsgi_app

from flask_mysqlpool import MySQLPool, get_db

from .adapters import ADAPTERS, select
from .bench import FLOOR, OURS, Bench, say
from .clock import Action, quiet, take_turns
from .table import Column, Table

COLUMNS = (
    Column("us", "µs", 1),
    Column("per_second", "requests/s"),
    Column("share", "of the\nfloor", 3),
)


def measure(bench: Bench) -> Iterator[Table]:
    say("a Flask request")
    title = "A Flask request with one query, one thread, no web server around it"
    table = bench.table("request", title, *COLUMNS)
    target = bench.server.target
    db = MySQLPool()
    floor = ADAPTERS[FLOOR](target, 1)
    apps = {OURS: _app(get_db), FLOOR: _app(floor.get)}
    apps[OURS].config.update(MYSQLPOOL_URL=target.url, MYSQLPOOL_AUTOCOMMIT=True)
    db.init_app(apps[OURS])
    requests = {name: _request(app) for name, app in apps.items()}
    turns = take_turns(requests, bench.effort.rounds, bench.effort.turn * 2)
    table.raw["seconds"] = turns
    for name, times in turns.items():
        cost = quiet(times)
        share = quiet(turns[FLOOR]) / cost
        figures = {"us": cost * 1e6, "per_second": 1 / cost, "share": share}
        table.add({name: figures})
    with apps[OURS].app_context():
        db.close_pool()
    floor.close()
    yield table


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
