"""``python -m example_app``: the app, and unless told otherwise a database for it."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flask import Flask
from pymysql.err import MySQLError
from werkzeug.serving import make_server

from flask_mysqlpool import ConfigError, PoolError
from flask_mysqlpool.testing import LocalServer, ServerFailed, ServerNotFound

from . import create_app
from .database import db, describe, init_db

#: Any of these says where a database is; then none is started here.
PLACES = (
    "FLASK_MYSQLPOOL_URL",
    "FLASK_MYSQLPOOL_HOST",
    "FLASK_MYSQLPOOL_UNIX_SOCKET",
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    # Both ways to end unwind the stack, and so stop the database.
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    # First of all: whoever asks while the database starts waits instead of failing.
    with listen(options.host, options.port) as sock, database() as (config, name):
        app = prepared_app(config)
        server = make_server(options.host, 0, app, threaded=True, fd=sock.fileno())
        announce(url_of(options.host, server.port), name)
        try:
            server.serve_forever()
        finally:
            server.server_close()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m example_app",
        description="Serve the people directory, on a throw-away MariaDB unless"
        " FLASK_MYSQLPOOL_URL says where a database is.",
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
    """The settings for a database, and what to call it."""
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
            raise fail(
                f"no use can be made of the database at {place}: {reason}"
            ) from None
    return app


def url_of(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def announce(url: str, name: str) -> None:
    print(
        f"\n  The people directory   {url}/"
        f"\n  Its database           {name}"
        f"\n\n    curl {url}/person/all"
        f"\n    curl {url}/person/first"
        "\n\n  Ctrl-C ends it.\n",
        flush=True,
    )


if __name__ == "__main__":
    main()
