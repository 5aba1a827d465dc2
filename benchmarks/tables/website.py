"""A whole request: gunicorn with one worker of eight threads, and a client for each."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from flask import Flask

from flask_mysqlpool import MySQLPool, get_db

from ..adapters import ADAPTERS, select
from ..bench import FLOOR, OURS, Bench, say
from ..results import Column, Table
from ..target import Target

THREADS = 8
#: How the programs that are started are told what they are to do.
POOL, URL = "BENCHMARKS_POOL", "BENCHMARKS_URL"
START_SECONDS = 30.0

COLUMNS = (
    Column("per_second", "requests/s"),
    Column("share", "of the\nfloor", 3),
    Column("p99_ms", "99 %\nms", 1),
)


def make_app() -> Flask:
    """The website; gunicorn calls this."""
    name, url = os.environ[POOL], os.environ[URL]
    app = Flask(__name__)
    if name == OURS:
        settings = {"URL": url, "AUTOCOMMIT": True, "MAX_SIZE": THREADS}
        app.config.update({f"MYSQLPOOL_{key}": settings[key] for key in settings})
        MySQLPool(app)
        app.add_url_rule("/", "answer", lambda: str(select(get_db())))
    else:
        pool = ADAPTERS[name](Target.of(url), THREADS)
        app.add_url_rule("/", "answer", lambda: str(pool.query()))
    return app


def measure(bench: Bench) -> Table:
    title = "A Flask request with one query, through gunicorn, from 8 clients"
    table = bench.table("website", title, bench.kinds, *COLUMNS)
    if find_spec("gunicorn") is None:
        table.notes.append("gunicorn is not installed.")
        return table
    visits: dict[str, list[dict[str, float]]] = {name: [] for name in bench.adapters}
    with ExitStack() as stack:
        url = bench.server.target.url
        ports = {name: stack.enter_context(_website(name, url)) for name in visits}
        for port in ports.values():
            _visit(port, 0.2)
        for number in range(bench.effort.visits):
            say(f"website: round {number + 1}")
            for name, port in ports.items():
                visits[name].append(_visit(port, bench.effort.visit))
    table.raw["visits"] = visits
    for name in visits:
        table.add({name: _figures(visits, name)})
    if FLOOR in visits:
        table.check_floor([1 / visit["per_second"] for visit in visits[FLOOR]])
    return table


def _figures(
    visits: Mapping[str, list[dict[str, float]]], name: str
) -> dict[str, float]:
    """Of the best visit: whatever else runs on a machine only ever slows it."""
    figures = _best(visits[name])
    if FLOOR in visits:
        floor = _best(visits[FLOOR])
        figures["share"] = figures["per_second"] / floor["per_second"]
    return figures


def _best(visits: list[dict[str, float]]) -> dict[str, float]:
    return dict(max(visits, key=lambda visit: visit["per_second"]))


@contextmanager
def _website(name: str, url: str) -> Iterator[int]:
    """A web server of our own, gone afterwards; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    options = f"--bind=127.0.0.1:{port} --workers=1 --threads={THREADS}"
    app = f"{__package__}.website:make_app()"
    command = [sys.executable, "-m", "gunicorn", *options.split(), app]
    quiet = ["--worker-class=gthread", "--log-level=error"]
    with subprocess.Popen(
        command + quiet, cwd=_root(), env=os.environ | {POOL: name, URL: url}
    ) as process:
        try:
            _wait_for(port)
            yield port
        finally:
            process.terminate()


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def _wait_for(port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _visit(port: int, seconds: float) -> dict[str, float]:
    """Visit it from a process of its own, which has its own global lock."""
    command = [sys.executable, "-m", f"{__package__}.visitors"]
    run = subprocess.run(
        [*command, str(port), str(THREADS), str(seconds)],
        cwd=_root(),
        capture_output=True,
        check=True,
    )
    answer: dict[str, float] = json.loads(run.stdout)
    return answer
