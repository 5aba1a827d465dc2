"""Serve the app, by default on a throw-away database: ``python -m example_app``."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from flask import Flask
from pymysql.constants import ER
from pymysql.err import MySQLError
from werkzeug.serving import make_server

from flask_mysqlpool import ConfigError, PoolError
from flask_mysqlpool.testing import LocalServer, ServerFailed, ServerNotFound

from .. import create_app
from ..database import db, describe, init_db

#: If one of these is set, its database is used, and none is started.
PLACES = (
    "FLASK_MYSQLPOOL_URL",
    "FLASK_MYSQLPOOL_HOST",
    "FLASK_MYSQLPOOL_UNIX_SOCKET",
)

#: Starts a database; gives the settings for it, and what to call it.
Place = Callable[[], AbstractContextManager[tuple[dict[str, Any], str]]]


def main(arguments: Sequence[str] | None = None, place: Place | None = None) -> None:
    options = parse(arguments)
    # Both ways to end unwind the stack, and so stop the database.
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    # Listen first: requests that come while the database starts wait for it.
    with (
        listen(options.host, options.port) as sock,
        (place or database)() as (config, name),
    ):
        app = prepared_app(config)
        server = make_server(options.host, 0, app, threaded=True, fd=sock.fileno())
        command = status_command(config.get("MYSQLPOOL_URL"))
        announce(url_of(options.host, server.port), name, command)
        try:
            server.serve_forever()
        finally:
            server.server_close()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=os.environ.get("EXAMPLE", "python -m example_app"),
        description="Serve the people directory until Ctrl-C.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument(
        "--port", type=port, default=5000, help="default: %(default)s; 0: any free one"
    )
    return parser.parse_args(arguments)


def port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError("must be from 0 to 65535")
    return number


def end(*_: object) -> None:
    sys.exit(0)


def fail(message: str) -> SystemExit:
    return SystemExit(f"example_app: {message}")


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        # Python repeats the address: "… (while attempting to bind on address …)".
        reason = (error.strerror or str(error)).partition(" (while ")[0]
        hint = "choose another with --port"
        raise fail(f"cannot listen on {host}, port {port}: {reason}; {hint}") from None


@contextmanager
def database() -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the settings for the database, and its name; start one if none is given."""
    if any(os.environ.get(place) for place in PLACES):
        yield {}, "yours, as FLASK_MYSQLPOOL_… says"
        return
    try:
        server = LocalServer(database="people")
        server.start()
    except (ServerNotFound, ServerFailed) as error:
        raise fail(str(error)) from None
    with server:
        name = f"{server.engine} {server.version} on {server.host}:{server.port}"
        yield {"MYSQLPOOL_URL": server.url}, f"{name}, thrown away at the end"


def prepared_app(config: dict[str, Any]) -> Flask:
    try:
        app = create_app(config)
    except ConfigError as error:
        raise fail(describe(error)) from None
    with app.app_context():
        try:
            init_db()
        except (MySQLError, PoolError) as error:
            place = db.pool().config.server + "".join(
                f" ({name})" for name in PLACES if os.environ.get(name)
            )
            reason = describe(error)
            if error.args[:1] == (ER.BAD_FIELD_ERROR,):
                reason += "; the table person there is not the example's"
            raise fail(f"cannot use the database at {place}: {reason}") from None
    return app


def url_of(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def status_command(url: str | None) -> str:
    """Return the command that shows this app's connections, from the clone's root."""
    place = f"FLASK_MYSQLPOOL_URL={shlex.quote(url)} " if url else ""
    flask = os.path.relpath(os.path.join(os.path.dirname(sys.executable), "flask"))
    return f"{place}{flask} --app example_app mysqlpool status"


def announce(url: str, name: str, command: str) -> None:
    print(
        f"\n  The people directory   {url}/"
        f"\n  Its monitor            {url}/mysqlpool/"
        f"\n  Its database           {name}"
        "\n\n  In another terminal:"
        f"\n\n    curl {url}/person/all"
        f"\n    curl {url}/person/first"
        f"\n    {command}"
        "\n\n  Ctrl-C ends it.\n",
        flush=True,
    )
