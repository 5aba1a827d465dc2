"""``flask mysqlpool …``: arguments in, lines out, an exit code; nothing else."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, NoReturn

import click
from flask import current_app
from flask.cli import AppGroup, with_appcontext
from pymysql.err import MySQLError

from . import tables
from .check import FAILURE, Finding, examine, look_at_board
from .config import PoolConfig
from .fleet import Fleet, Worker, holders, is_degraded, totals
from .server import ServerReport, Thread, connect_to

#: Exit codes.
HEALTHY, DEGRADED, NOTHING = 0, 1, 2

#: Seconds in which workers that are not busy have done what they were told.
SOON = 2.0

NO_WORKER = (
    "No worker of {app!r} is running, or none has used its pool yet. This command's own"
    " pool is empty."
)


class Site(NamedTuple):
    """What a command works on: the current app, its pools, and their workers."""

    app: str
    pools: dict[str, PoolConfig]
    fleet: Fleet | None
    #: Why the workers cannot be seen, if they cannot.
    blind: str


def _site(bind: str | None = None) -> Site:
    pools: dict[str, PoolConfig] = {}
    states = list(current_app.extensions["mysqlpool"].values())
    for state in states:
        pools.update(state.published())
    if bind is not None:
        if bind not in pools:
            known = ", ".join(map(repr, pools))
            raise click.UsageError(f"no bind is called {bind!r}; configured: {known}")
        pools = {bind: pools[bind]}
    board = states[0].board
    if board is None:
        return Site(current_app.name, pools, None, "STATUS_DIR is False")
    fleet = Fleet(board, current_app.name)
    try:
        fleet.workers()
    except OSError as error:
        return Site(current_app.name, pools, fleet, _reason(error))
    return Site(current_app.name, pools, fleet, "")


def _reason(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"


def create_group(name: str) -> AppGroup:
    """The command group, to be added to ``app.cli`` under this name."""
    group = AppGroup(name, help="See and steer the connections of all workers.")
    for command in (status, reset, pause, resume, check):
        group.add_command(command)
    return group


_bind = click.option("--bind", metavar="NAME", help="This pool only.")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--watch",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="Print it again and again.",
)
@_bind
@click.option("--server", is_flag=True, help="Ask the server as well.")
@with_appcontext
def status(as_json: bool, watch: float | None, bind: str | None, server: bool) -> None:
    """Show the pools of all workers.

    Exit code 0: all is well. 1: somebody waits, or a checkout has timed out within the
    last minute. 2: no worker is running.
    """
    while True:
        code, report = _report(_site(bind), server)
        if as_json:
            click.echo(json.dumps(report))
        else:
            if watch is not None and sys.stdout.isatty():
                click.clear()
            click.echo("\n".join(tables.status(report, sys.stdout.isatty())))
        if watch is None:
            sys.exit(code)
        time.sleep(watch)


def _report(site: Site, with_server: bool) -> tuple[int, dict[str, Any]]:
    """The exit code, and what ``--json`` prints."""
    by_bind = site.fleet.workers() if site.fleet and not site.blind else {}
    pools = {
        bind: _pool(site, bind, by_bind.get(bind, []), with_server)
        for bind in site.pools
    }
    workers = [worker for bind in pools for worker in by_bind.get(bind, [])]
    problems = list(site.fleet.problems) if site.fleet else []
    if site.blind:
        problems.insert(0, f"the workers cannot be seen: {site.blind}")
    elif not workers:
        problems.insert(0, NO_WORKER.format(app=site.app))
    report = {"app": site.app, "host": socket.gethostname(), "pools": pools}
    code = DEGRADED if is_degraded(workers) else HEALTHY if workers else NOTHING
    return code, {**report, "problems": problems}


def _pool(
    site: Site, bind: str, workers: list[Worker], with_server: bool
) -> dict[str, Any]:
    config = site.pools[bind]
    readable = site.fleet is not None and not site.blind
    orders = site.fleet.orders(bind) if site.fleet and readable else None
    pool = {
        "max_size": config.max_size,
        "max_host_connections": config.max_host_connections,
        "server": config.server,
        "paused": bool(orders and orders.paused),
        "generation": orders.generation if orders else 0,
        "totals": totals(workers),
        "workers": [_public(worker) for worker in workers],
        "holders": holders(workers),
    }
    if with_server:
        pool["seen_by_server"] = _ask_server(config, workers)
    return pool


def _public(worker: Worker) -> dict[str, Any]:
    hidden = ("id", "app", "bind")
    return {key: value for key, value in worker.items() if key not in hidden}


def _ask_server(config: PoolConfig, workers: Iterable[Worker]) -> dict[str, Any]:
    """What each connection is doing, and which ones no live worker knows of."""
    pid_of = {c["thread_id"]: w["pid"] for w in workers for c in w["connections"]}
    try:
        with connect_to(config) as server:
            report: ServerReport = server.report()
    except (MySQLError, OSError) as error:
        return {"error": _text(error)}
    threads = [_thread(thread, pid_of) for thread in report.threads]
    return {
        "version": report.version,
        "max_connections": report.max_connections,
        "connected": report.connected,
        "threads": threads,
        "orphans": sum(thread["pid"] is None for thread in threads),
    }


def _thread(thread: Thread, pid_of: dict[int, int]) -> dict[str, Any]:
    return {
        "thread_id": thread.thread_id,
        "pid": pid_of.get(thread.thread_id),
        "client": thread.client,
        "command": thread.command,
        "for": thread.seconds,
    }


@click.command()
@_bind
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Wait so long for busy connections, and show the progress.",
)
@click.option("--server", is_flag=True, help="End idle connections at the server.")
@click.option("--yes", is_flag=True, help="Do not ask first, as at a terminal.")
@with_appcontext
def reset(bind: str | None, wait: float | None, server: bool, yes: bool) -> None:
    """Replace the connections of all workers.

    Idle ones are replaced within a second, busy ones when they are returned; no request
    notices. With --server, the sleeping connections of this database user are ended at
    the server, wherever they come from; a request between two statements then gets an
    error.
    """
    site = _site(bind)
    if not yes and sys.stdin.isatty():
        click.confirm(f"Replace the connections of {site.app!r}?", abort=True)
    if server:
        _reset_at_server(site)
        return
    fleet = _steerable(site)
    tests = _for_all(site, fleet.reset)
    _follow(fleet, tests, wait, "replaced", "outdated")


def _reset_at_server(site: Site) -> None:
    for bind, config in site.pools.items():
        try:
            with connect_to(config) as server:
                idle = [thread for thread in server.report().threads if thread.sleeps]
                ended = server.kill(idle)
        except (MySQLError, OSError) as error:
            click.echo(f"{bind}: cannot connect to {config.server}: {_text(error)}")
            sys.exit(DEGRADED)
        s = "" if ended == 1 else "s"
        click.echo(f"{bind}: ended {ended} idle connection{s} on {config.server}")


@click.command()
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Wait so long for all connections to be closed.",
)
@_bind
@with_appcontext
def pause(wait: float | None, bind: str | None) -> None:
    """Let new checkouts wait, in order, until `resume`.

    What is in use may finish; then no worker has a connection any more, and the server
    can be restarted. A checkout waits no longer than its deadline (TIMEOUT).
    """
    site = _site(bind)
    fleet = _steerable(site, need_workers=False)
    tests = _for_all(site, fleet.pause)
    _follow(fleet, tests, wait, "paused", "size")


@click.command()
@_bind
@with_appcontext
def resume(bind: str | None) -> None:
    """End `pause`: serve all who wait."""
    site = _site(bind)
    fleet = _steerable(site, need_workers=False)
    _follow(fleet, _for_all(site, fleet.resume), SOON, "resumed", "waiting")


def _steerable(site: Site, need_workers: bool = True) -> Fleet:
    """The workers to give orders to; ends the command if there are none."""
    if site.fleet is None or site.blind:
        _end(f"The workers cannot be reached: {site.blind}")
    if need_workers and not any(site.fleet.workers().get(b) for b in site.pools):
        _end(NO_WORKER.format(app=site.app))
    return site.fleet


def _end(text: str) -> NoReturn:
    click.echo(text)
    sys.exit(NOTHING)


_Tests = dict[str, Callable[[Worker], bool]]


def _for_all(site: Site, order: Callable[[str], Callable[[Worker], bool]]) -> _Tests:
    try:
        return {bind: order(bind) for bind in site.pools}
    except OSError as error:
        _end(f"The workers cannot be reached: {_reason(error)}")


def _follow(
    fleet: Fleet, tests: _Tests, wait: float | None, done: str, count: str
) -> None:
    """Show who has still to follow; exit code 1 if somebody has not, in time."""
    deadline = time.monotonic() + (SOON if wait is None else wait)
    complete = True
    for bind, has_done in tests.items():
        others: list[Worker] = []
        for others in fleet.wait(bind, has_done, deadline - time.monotonic()):
            if wait is not None and others:
                _echo(_progress(bind, others, count))
        workers = len(fleet.workers().get(bind, []))
        s = "" if workers == 1 else "s"
        if not others:
            _echo([f"{bind}: {done} ({workers} worker{s})"])
            continue
        complete = False
        later = f"{bind}: {len(others)} of {workers} worker{s} will follow"
        _echo([later, *_progress(bind, others, count)] if wait is None else [later])
    if not complete and wait is not None:
        sys.exit(DEGRADED)


def _progress(bind: str, others: Iterable[Worker], count: str) -> Iterator[str]:
    for worker in others:
        number = worker[count]
        what = f"{number} connection{'s' * (number != 1)} to go"
        if not number:
            what = "has still to begin"
        yield f"{bind}: worker {worker['pid']}: {what}, {worker['in_use']} in use"


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)
    sys.stdout.flush()


@click.command()
@_bind
@with_appcontext
def check(bind: str | None) -> None:
    """Connect once and examine settings, server and workers.

    Exit code 1 if something is wrong.
    """
    site = _site(bind)
    findings: list[Finding] = []
    by_bind = site.fleet.workers() if site.fleet and not site.blind else None
    for finding in look_at_board(site.fleet):
        findings.append(finding)
        click.echo(tables.finding(finding))
    for name, config in site.pools.items():
        click.echo(f"\n{name}: {config.server}")
        workers = None if by_bind is None else len(by_bind.get(name, [])) or None
        for finding in examine(config, workers):
            findings.append(finding)
            click.echo(tables.finding(finding))
    sys.exit(DEGRADED if any(f.level == FAILURE for f in findings) else HEALTHY)


def _text(error: Exception) -> str:
    """A server's error as the mysql client prints it."""
    return ": ".join(map(str, error.args))
