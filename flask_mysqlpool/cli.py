"""``flask mysqlpool …``: arguments in, lines out, an exit code; nothing else.

For now both commands look from the server's side. What each worker process knows of
itself is not published yet, and both say so.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup, with_appcontext
from pymysql.err import MySQLError

from .config import PoolConfig
from .server import ServerReport, Thread, connect_to

#: Exit codes.
HEALTHY, DEGRADED, NOTHING = 0, 1, 2

NOTE = (
    "Seen from the server: what this database user has connected to this database."
    " This command's own pool is empty."
)


def create_group(name: str) -> AppGroup:
    """The command group, to be added to ``app.cli`` under this name."""
    group = AppGroup(name, help="See and steer the connections to MySQL.")
    group.add_command(status)
    group.add_command(reset)
    return group


def _configs() -> Mapping[str, PoolConfig]:
    [state, *_] = current_app.extensions["mysqlpool"].values()
    pools: Mapping[str, PoolConfig] = state.config.pools
    return pools


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_appcontext
def status(as_json: bool) -> None:
    """Show the settings, the server, and this app's connections to it.

    Exit code 0: connections, and room for more. 1: the server cannot be reached, or
    has no room. 2: nobody is connected.
    """
    pools, codes = {}, []
    for bind, config in _configs().items():
        code, pools[bind] = _look(config)
        codes.append(code)
    if as_json:
        whole = {"app": current_app.name, "host": socket.gethostname(), "pools": pools}
        click.echo(json.dumps({**whole, "seen_from": "server"}, default=str))
    else:
        click.echo(NOTE)
        for bind, pool in pools.items():
            click.echo("\n".join(["", *_lines(bind, pool)]))
    sys.exit(DEGRADED if DEGRADED in codes else min(codes))


def _look(config: PoolConfig) -> tuple[int, dict[str, Any]]:
    """The exit code for one pool, and what there is to say of it."""
    seen: dict[str, Any] = {
        "max_size": config.max_size,
        "server": config.server,
        "settings": config.settings(),
    }
    try:
        with connect_to(config) as server:
            report = server.report()
    except MySQLError as error:
        return DEGRADED, {**seen, "error": _text(error)}
    return _judge(report), {
        **seen,
        "version": report.version,
        "max_connections": report.max_connections,
        "connected": report.connected,
        "threads": [_as_dict(thread) for thread in report.threads],
    }


def _judge(report: ServerReport) -> int:
    if not report.threads:
        return NOTHING
    return DEGRADED if report.connected >= report.max_connections else HEALTHY


def _as_dict(thread: Thread) -> dict[str, Any]:
    return {
        "thread_id": thread.thread_id,
        "client": thread.client,
        "state": "idle" if thread.sleeps else "in_use",
        "command": thread.command,
        "for": thread.seconds,
    }


def _lines(bind: str, pool: Mapping[str, Any]) -> Iterable[str]:
    yield f"{bind}: {pool['server']}, at most {pool['max_size']} for each process"
    if "error" in pool:
        yield f"  cannot connect: {pool['error']}"
    else:
        yield f"  server {pool['version']}, {pool['connected']} connected of" + (
            f" {pool['max_connections']} allowed; {len(pool['threads'])} of this app"
        )
        yield from _table(pool["threads"])
        if not pool["threads"]:
            yield "  No worker is connected."
    yield "  settings"
    for key, value in pool["settings"].items():
        yield f"    {key} = {value!r}"


def _table(threads: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    form = "  {:>10}  {:<24} {:<8} {:<16} {:>8}"
    rows = [tuple(map(str, thread.values())) for thread in threads]
    if rows:
        yield form.format("thread", "client", "state", "command", "seconds")
    for row in rows:
        yield form.format(*row)


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask first, as at a terminal.")
@with_appcontext
def reset(yes: bool) -> None:
    """End this app's idle connections at the server.

    Workers do not notice: they never hand out a connection that has been closed. But to
    the server a connection looks idle, too, whose worker is between two statements of a
    transaction, or has just taken its connection and not yet sent its statement. That
    worker gets an error, and nothing half done is stored.
    """
    if not yes and sys.stdin.isatty():
        click.confirm("End the idle connections of this app?", abort=True)
    for bind, config in _configs().items():
        try:
            with connect_to(config) as server:
                idle = [thread for thread in server.report().threads if thread.sleeps]
                ended = server.kill(idle)
        except MySQLError as error:
            click.echo(f"{bind}: cannot connect to {config.server}: {_text(error)}")
            sys.exit(DEGRADED)
        s = "" if ended == 1 else "s"
        click.echo(f"{bind}: ended {ended} idle connection{s} on {config.server}")


def _text(error: MySQLError) -> str:
    """A server's error as the mysql client prints it."""
    return ": ".join(map(str, error.args))
