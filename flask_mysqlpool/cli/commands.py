"""``flask mysqlpool …``: each command parses arguments, prints lines, and exits."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, NamedTuple, NoReturn

import click
from flask import current_app
from flask.cli import AppGroup

from ..config import PoolConfig
from ..config.validators import YEAR
from ..pool.driver.logs import MOST
from ..workers.fleet import Fleet
from ..workers.mysql_server import Unanswered, connect_to
from ..workers.overview import (
    Overview,
    holders,
    last_failure,
    last_timeout,
    map_texts,
    reason,
    recent,
    spread,
    totals,
)
from ..workers.status import WorkerStatus
from . import render, scripts
from .check import (
    FAILURE,
    Finding,
    examine,
    examine_installation,
    examine_status_dir,
    fix_of,
)

#: Exit codes; 2 is click's, for a command that was typed wrong.
HEALTHY, DEGRADED, NOTHING = 0, 1, 3

#: Seconds in which workers without busy connections apply a desired state.
SOON = 2.0

NO_WORKER = (
    "No worker of {app!r} is running, or none has used its pool yet: none publishes in"
    " {place}. This command's own pool is empty."
)
UNREADABLE = "No worker of {app!r} can be read in {place}."


def find_site(bind: str | None = None) -> Overview:
    states = current_app.extensions["mysqlpool"].values()
    try:
        return Overview(current_app.name, states, bind)
    except LookupError as error:
        raise click.UsageError(str(error)) from None


def _reason(error: OSError) -> str:
    fix = fix_of(error)
    return f"{reason(error)}{' -> ' * bool(fix)}{fix}"


class _Seconds(click.FloatRange):
    """A duration; ``inf`` becomes the longest one, ``nan`` is refused."""

    _UNITS: ClassVar = {"s": 1, "m": 60, "h": 3600, "d": 86400}

    def convert(self, value: Any, *about: Any) -> float:
        unit = self._UNITS.get(str(value)[-1:], 0)
        try:
            seconds = float(str(value)[:-1] if unit else value) * (unit or 1)
        except ValueError:
            seconds = math.nan
        if math.isnan(seconds):
            text = f"{value!r} is not a duration, such as 90, 90s, 10m or 2h."
            self.fail(text, *about)
        return min(super().convert(seconds, *about), YEAR)


_Command = Callable[..., None]


def duration_option(
    *names: str,
    help: str,
    metavar: str = "SECONDS",
    default: float | None = None,
    **limits: Any,
) -> Callable[[_Command], _Command]:
    about: Any = {"metavar": metavar, "default": default, "help": help}
    return click.option(*names, type=_Seconds(**limits), **about)


bind_option = click.option("--bind", metavar="NAME", help="This pool only.")


class _Group(AppGroup):
    def invoke(self, ctx: click.Context) -> Any:
        # A daemon may have closed them; Python has None in their places.
        for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        return super().invoke(ctx)


#: The command group, to be added to ``app.cli`` under the name that ``CLI`` sets.
group = _Group("mysqlpool", help="Show and control the connections of all workers.")


@group.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@duration_option("--watch", help="Refresh every SECONDS.", min=0.1)
@bind_option
@click.option("--server", is_flag=True, help="Query the server, too.")
def status(as_json: bool, watch: float | None, bind: str | None, server: bool) -> None:
    """Show the pools of all workers.

    Exit code 0: all is well. 1: a pool is paused; a checkout waits; within the last
    minute a checkout has timed out or a connect failed; or the server cannot be
    queried. 3: no worker is running.
    """
    code = NOTHING
    try:
        while True:
            code, report = _report(find_site(bind), server)
            _show(report, as_json, clear=watch is not None)
            if watch is None:
                break
            time.sleep(watch)
    except KeyboardInterrupt:
        if watch is None:
            raise
    sys.exit(code)


def _show(report: dict[str, Any], as_json: bool, clear: bool) -> None:
    if as_json:
        _print(json.dumps(map_texts(_truncated, report)) + "\n")
        return
    if clear and sys.stdout.isatty():
        click.clear()
    echo(render.status(report, sys.stdout.isatty()))


def _truncated(text: str) -> str:
    return text[:MOST] + "…" * (len(text) > MOST)


def _report(site: Overview, with_server: bool) -> tuple[int, dict[str, Any]]:
    """Return the exit code, and the object that ``--json`` prints."""
    pools = {bind: _pool(site, bind, with_server) for bind in site.pools}
    has_workers = any(site.workers.values())
    problems = [*([] if has_workers else [_why_no_worker(site)]), *site.problems]
    code = HEALTHY if has_workers else NOTHING
    if any(map(_is_degraded, pools.values())):
        code = DEGRADED
    report = {"app": site.app, "host": socket.gethostname(), "pools": pools}
    return code, {**report, "problems": problems}


def _why_no_worker(site: Overview) -> str:
    if site.error is not None:
        return f"the workers cannot be seen: {_reason(site.error)}"
    fleet = site.fleet()
    text = UNREADABLE if fleet.hidden else NO_WORKER
    return text.format(app=site.app, place=fleet.status_dir.place())


def _is_degraded(pool: dict[str, Any]) -> bool:
    reasons = pool["paused"], pool["checkout_timeout"], pool["connect_failure"]
    is_unanswered = "error" in pool.get("seen_by_server", ())
    return any(reasons) or pool["totals"]["waiting"] > 0 or is_unanswered


def _pool(site: Overview, bind: str, with_server: bool) -> dict[str, Any]:
    config, workers = site.pools[bind], site.workers[bind]
    desired = site.desired(bind)
    pool = {
        "max_size": config.max_size,
        "max_host_connections": config.max_host_connections,
        "server": config.server,
        "paused": site.is_paused(bind),
        "pause": desired.about() if desired.paused else None,
        "generation": desired.generation,
        "totals": totals(workers),
        "spread": spread(workers),
        "workers": [_public(worker) for worker in workers],
        "holders": holders(workers),
        "checkout_timeout": recent(last_timeout(workers)),
        "connect_failure": recent(last_failure(workers)),
    }
    if with_server:
        pool["seen_by_server"] = _ask_server(config, workers)
    return pool


def _public(worker: WorkerStatus) -> dict[str, Any]:
    hidden = ("app", "bind", "user", "server")
    return {k: value for k, value in worker.to_json().items() if k not in hidden}


def _ask_server(config: PoolConfig, workers: Iterable[WorkerStatus]) -> dict[str, Any]:
    """Query what each connection does, and which ones belong to no live worker."""
    pid_of = {number: w.pid for w in workers for number in w.all_thread_ids}
    try:
        with connect_to(config) as server:
            report = server.report()
    except Unanswered as error:
        return {"error": error.text}
    threads = [
        {
            "thread_id": thread.thread_id,
            "pid": pid_of.get(thread.thread_id),
            "client": thread.client,
            "program": thread.program,
            "command": thread.command,
            "for": thread.seconds,
        }
        for thread in report.threads or ()
    ]
    return {
        "version": report.version,
        "max_connections": report.max_connections,
        "connected": report.connected,
        "threads": None if report.threads is None else threads,
        "orphans": sum(thread["pid"] is None for thread in threads),
    }


@group.command()
@bind_option
@duration_option(
    "--wait",
    help="Wait up to SECONDS for busy connections, and show the progress.",
    min=0,
)
@click.option("--server", is_flag=True, help="Kill idle connections at the server.")
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
def reset(bind: str | None, wait: float | None, server: bool, yes: bool) -> None:
    """Replace the connections of all workers.

    Idle ones are replaced within a second, busy ones when they are returned; no request
    fails. With --server, the sleeping connections of this database user are killed at
    the server, whatever host they come from; a request between two statements then gets
    an error.
    """
    if server and wait is not None:
        raise click.UsageError("--server ends connections at once: there is no --wait")
    site = find_site(bind)
    if not yes and sys.stdin.isatty():
        click.confirm(f"Replace the connections of {site.app!r}?", abort=True)
    if server:
        _reset_at_server(site)
        return
    code = _request(site, RESET, wait)
    sys.exit(HEALTHY if wait is None and code == DEGRADED else code)


def _reset_at_server(site: Overview) -> None:
    for bind, config in site.pools.items():
        try:
            with connect_to(config) as server:
                idle = [thread for thread in server.threads() if thread.sleeps]
                ended = server.kill(idle)
        except Unanswered as error:
            text = (
                f"{bind}: cannot end the idle connections on {config.server}: {error}"
            )
            echo([text])
            sys.exit(DEGRADED)
        s = "" if ended == 1 else "s"
        echo([f"{bind}: ended {ended} idle connection{s} on {config.server}"])


@group.command()
@duration_option(
    "--wait", help="Wait up to SECONDS for all connections to be closed.", min=0
)
@duration_option(
    "--for",
    "seconds",
    help="Resume automatically after this time, such as 90s, 10m or 2h.",
    metavar="DURATION",
    min=0,
    min_open=True,
)
@bind_option
def pause(wait: float | None, seconds: float | None, bind: str | None) -> None:
    """Hold new checkouts, in order, until `resume`.

    Connections in use may finish. When none is left, the server can be restarted. A
    checkout waits no longer than its deadline (TIMEOUT).
    """
    code = _request(find_site(bind), PAUSE, wait, seconds=seconds)
    # Without --wait, the pause may be meant for workers that start later.
    sys.exit(code if wait is not None else HEALTHY)


@group.command()
@bind_option
def resume(bind: str | None) -> None:
    """End `pause`: serve all waiting checkouts."""
    sys.exit(_request(find_site(bind), RESUME, None))


class _Change(NamedTuple):
    """A change of a pool in all workers, and the words for its progress."""

    #: The method of :class:`Fleet` that requests it.
    method: str
    done: str
    #: The field of a pending worker that goes down to zero, and the words for it.
    field: str
    to_go: str

    def progress(self, bind: str, worker: WorkerStatus) -> str:
        number: int = getattr(worker, self.field)
        what = f"{number} {self.to_go.format(s='s' * (number != 1))}"
        what = what if number else "not started"
        return f"{bind}: worker {worker.pid}: {what}, {worker.in_use} in use"


RESET = _Change("reset", "replaced", "outdated", "connection{s} to go")
PAUSE = _Change("pause", "paused", "size", "connection{s} to go")
RESUME = _Change("resume", "resumed", "waiting", "checkout{s} still waiting")


def _request(site: Overview, change: _Change, wait: float | None, **how: Any) -> int:
    """Request a change of all pools, wait for the workers, and return the exit code.

    However that ends, it prints what is paused at last.
    """
    try:
        fleet = site.fleet()
    except OSError as error:
        _end(f"The workers cannot be reached: {_reason(error)}")
    with interrupted_by_signals():
        try:
            request = getattr(fleet, change.method)
            tests = {bind: request(bind, **how) for bind in site.pools}
            return _wait_for_workers(site, fleet, change, tests, wait)
        except KeyboardInterrupt as interrupt:
            state = "the request stands" if fleet.requested else "nothing was requested"
            echo([f"Interrupted: {state}."])
            sys.exit(128 + interrupt.args[0] if interrupt.args else DEGRADED)
        except OSError as error:
            what = "seen" if fleet.requested else "reached"
            _end(f"The workers cannot be {what}: {_reason(error)}")
        finally:
            paused = site.pauses()
            echo([*paused, f"To end that: {_typed('resume')}"] if paused else [])


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Have SIGTERM, and the SIGHUP of a lost terminal, do what Ctrl-C does."""

    def interrupt(number: int, _: object) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # a shell sends SIGHUP once more
        raise KeyboardInterrupt(number)

    numbers = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread():
        numbers = set()
    with ExitStack() as stack:
        for number in numbers:
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):  # by nohup; not set by Python
                signal.signal(number, interrupt)
                stack.callback(signal.signal, number, handler)
        yield


def _typed(command: str) -> str:
    """Return the command line of another command for the same pools."""
    context = click.get_current_context()
    group, bind = context.parent, context.params.get("bind")
    only = f" --bind {shlex.quote(bind)}" if bind is not None else ""
    return f"flask {group.info_name if group else 'mysqlpool'} {command}{only}"


def _end(text: str) -> NoReturn:
    echo([text])
    sys.exit(NOTHING)


def _wait_for_workers(
    site: Overview,
    fleet: Fleet,
    change: _Change,
    tests: Mapping[str, Callable[[WorkerStatus], bool]],
    wait: float | None,
) -> int:
    """Wait for all pools, show the pending workers, and return the exit code.

    1 if a worker is still pending, or cannot be read; 3 if there is no worker.
    """
    deadline = time.monotonic() + (SOON if wait is None else wait)
    seen = late = 0
    for bind, is_done in tests.items():
        lines: list[str] = []
        for pending in fleet.wait(bind, is_done, deadline - time.monotonic()):
            before, lines = lines, [change.progress(bind, each) for each in pending]
            echo(line for line in lines if wait is not None and line not in before)
        workers = len(fleet.workers().get(bind, []))
        s = "" if workers == 1 else "s"
        if lines:
            summary = f"{bind}: {len(lines)} of {workers} worker{s} pending"
            echo([summary, *(lines if wait is None else ())])
        elif workers:
            echo([f"{bind}: {change.done} ({workers} worker{s})"])
        else:
            echo([f"{bind}: requested; no running worker to confirm it"])
        seen += workers
        late += len(lines)
    echo(fleet.hidden)
    if not seen:
        echo([_why_no_worker(site)])
        return NOTHING
    return DEGRADED if late or fleet.hidden else HEALTHY


def echo(lines: Iterable[render.Line]) -> None:
    """Print lines and flush; end the command if that fails."""
    _print("".join(f"{render.printable(line)}\n" for line in lines))


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        click.echo(text, nl=False, color=False if os.environ.get("NO_COLOR") else None)
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # for Click to handle
    except OSError as error:
        click.echo(f"The output cannot be written: {error.strerror}", err=True)
        # At exit, Python would flush again, and replace the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(DEGRADED)


@group.command()
@bind_option
def check(bind: str | None) -> None:
    """Connect once and examine settings, server and workers.

    Exit code 1 if there is a failure.
    """
    site = find_site(bind)
    findings: list[Finding] = []

    def show(found: Iterable[Finding]) -> None:
        for finding in found:
            findings.append(finding)
            echo([render.finding(finding)])

    show(examine_installation())
    show(examine_status_dir(site, _typed))
    for name, config in site.pools.items():
        echo(["", f"{name}: {config.server}"])
        show(examine(config, len(site.workers[name]) or None))
    sys.exit(DEGRADED if any(f.level == FAILURE for f in findings) else HEALTHY)


_SCRIPT = click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True)


@group.command("run")
@click.argument("files", nargs=-1, required=True, type=_SCRIPT)
@click.option("--bind", metavar="NAME", help="Execute them on this pool's server.")
def run_scripts(files: tuple[str, ...], bind: str | None) -> None:
    """Execute scripts of statements, such as schema.sql or a dump.

    `-` is standard input. All FILES share one connection of their own, with the
    settings of the pool but without its time-outs. Each statement commits
    automatically, as in the mysql client, unless the script begins a transaction. The
    first error ends the command with exit code 1.
    """
    pools = find_site(bind).pools
    if bind is None and "default" not in pools and len(pools) > 1:
        raise click.UsageError(f"name one pool by --bind: {', '.join(pools)}")
    config = pools.get("default") or next(iter(pools.values()))
    for line in scripts.execute(config, files):
        echo([line])
