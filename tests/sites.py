"""A small site for the tests of WSGI servers, which start it as ``sites:app``.

It does what is asking for trouble: on import it opens connections, which are the
master process's where the app is loaded before the fork, and keeps one of them; unless
it is told to be good. What it needs to know is in the environment.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

from flask import Flask, request
from prometheus_client import CollectorRegistry, generate_latest

from flask_mysqlpool import MySQLPool, get_db
from flask_mysqlpool.metrics.prometheus import PoolCollector

#: Connections of a process; fewer than there are threads, so that requests wait. One of
#: them is never returned.
MAX_SIZE = 4

app = Flask(__name__)
app.config.update(
    MYSQLPOOL_URL=os.environ["SITE_URL"],
    MYSQLPOOL_STATUS_DIR=os.environ["SITE_STATUS_DIR"],
    MYSQLPOOL_MAX_SIZE=MAX_SIZE,
    MYSQLPOOL_TIMEOUT=30,
)
db = MySQLPool(app)


def connection_id(connection: Any) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        [number] = cursor.fetchone()
    return int(number)


#: Who imported this, and the connections opened then.
ORIGIN: dict[str, Any] = {"pid": os.getpid(), "ids": []}
if "SITE_IS_GOOD" not in os.environ:
    with app.app_context(), ExitStack() as stack:
        kept = db.connection()
        opened = [kept, get_db()]
        while len(opened) < MAX_SIZE:
            opened.append(stack.enter_context(db.connection()))
        ORIGIN["ids"] = [connection_id(each) for each in opened]


@app.get("/echo")
def echo() -> dict[str, Any]:
    """The value that was asked for, by way of the database."""
    with get_db().cursor() as cursor:
        cursor.execute(
            "SELECT %s, CONNECTION_ID(), SLEEP(%s)",
            (request.args["value"], float(request.args["pause"])),
        )
        [[value, number, _]] = cursor.fetchall()
    return {"value": value, "id": number, "pid": os.getpid(), "origin": ORIGIN}


@app.get("/metrics")
def metrics() -> bytes:
    """What Prometheus would scrape."""
    registry = CollectorRegistry()
    registry.register(PoolCollector(app))
    return generate_latest(registry)
