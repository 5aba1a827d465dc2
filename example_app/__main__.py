"""``python -m example_app``: the app, and unless told otherwise a database for it."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flask import Flask
from pymysql.constants import ER
from pymysql.err import MySQLError
from werkzeug.serving import make_server

from flask_mysqlpool import ConfigError, PoolError
from flask_mysqlpool.testing import LocalServer, ServerFailed, ServerNotFound

from . import create_app
from .database import db, describe, init_db

if TYPE_CHECKING:
    from clusters import GaleraCluster

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
    place = cluster() if options.cluster else database()
    with listen(options.host, options.port) as sock, place as (config, name):
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
        description="Serve the people directory, on a throw-away MariaDB unless"
        " FLASK_MYSQLPOOL_URL says where a database is.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument(
        "--port", type=port, default=5000, help="default: %(default)s; 0: any free one"
    )
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="on three nodes of a Galera cluster behind HAProxy, to see them fail",
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


@contextmanager
def cluster() -> Iterator[tuple[dict[str, Any], str]]:
    """The same for a cluster whose nodes may be killed, and come back."""
    try:
        from clusters import HOST, PASSWORD, GaleraCluster, HAProxy
    except ImportError:
        raise fail(
            "a cluster is there in a clone only: scripts/example --cluster"
        ) from None
    try:
        nodes = GaleraCluster()
        with nodes, HAProxy(nodes) as proxy:
            config = {
                "MYSQLPOOL_URL": f"mysql://app:{PASSWORD}@{HOST}:{proxy.port}/test",
                "MYSQLPOOL_TARGET": "primary",
                "MYSQLPOOL_READ_TIMEOUT": 10,
            }
            over = threading.Event()
            threading.Thread(target=revive, args=(nodes, over), daemon=True).start()
            try:
                place = f"{HOST}:{proxy.port}"
                yield config, f"Galera behind HAProxy on {place}{pids(nodes)}"
            finally:
                over.set()
    except (ServerNotFound, ServerFailed) as error:
        raise fail(str(error)) from None


def pids(nodes: GaleraCluster) -> str:
    return "".join(
        f"\n    node {number}, port {node.port}:   kill -9 {node.pid}"
        for number, node in enumerate(nodes.servers)
    )


def revive(nodes: GaleraCluster, over: threading.Event) -> None:
    """Start again what was killed, after a while in which one can see it missing."""
    while not over.wait(1):
        for number, node in enumerate(nodes.servers):
            if node.running:
                continue
            print(f"  node {number} is gone, and comes back in 15 s", flush=True)
            if not over.wait(15):
                nodes.rejoin(number)
                print(f"  node {number} is back:{pids(nodes)}", flush=True)


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
            raise fail(
                f"no use can be made of the database at {place}: {reason}"
            ) from None
    return app


def url_of(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def status_command(url: str | None) -> str:
    """What shows this app's connections: in the clone, from another terminal."""
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


if __name__ == "__main__":
    main()
