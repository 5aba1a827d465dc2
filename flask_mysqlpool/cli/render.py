"""The output of the commands for people: lines that fit the terminal."""

from __future__ import annotations

import shutil
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import click

from ..pool.driver.logs import plain
from ..workers.desired_state import DesiredState
from .check import FAILURE, OK, WARNING, Finding

#: Columns of the table of workers, and those that a narrow terminal drops, in order.
_COLUMNS = (
    *("pid", "size", "in_use", "idle", "waiting"),
    *("connecting", "checkouts", "timeouts", "opened", "discarded"),
)
_DROPPED_FIRST = (
    *("opened", "discarded", "connecting", "checkouts", "timeouts", "idle", "size"),
)
_COLOURS = {OK: "green", WARNING: "yellow", FAILURE: "red"}

#: Holders, and threads of the server, that are listed.
_LISTED = 10

#: Seconds after which a worker with connections has missed its heartbeat.
_SILENCE = 1.0

#: Characters of a cell that are shown, and of a line.
_WIDEST, _LONGEST = 60, 4000

Row = Sequence[object]


class Styled(NamedTuple):
    """A line that begins with text in a colour."""

    colour: str
    text: str
    rest: str = ""


Line = str | Styled


def printable(line: Line) -> str:
    """Escape all control characters of a line except those of its colour."""
    if isinstance(line, str):
        return plain(line, _LONGEST)
    styled = click.style(plain(line.text, _LONGEST), fg=line.colour)
    return styled + plain(line.rest, _LONGEST)


def status(report: Mapping[str, Any], terminal: bool) -> Iterator[Line]:
    """Render the report of ``status``."""
    width = shutil.get_terminal_size().columns if terminal else 120
    yield f"{report['app']} on {report['host']}"
    yield from report["problems"]
    for bind, pool in report["pools"].items():
        yield ""
        yield _headline(bind, pool)
        if pool["workers"]:
            yield from _workers(pool, width)
            yield from _silent(pool["workers"])
            if not all(worker["pipelining"] for worker in pool["workers"]):
                yield "the server is sent one command at a time (PIPELINING)"
            if pool["spread"] > _SILENCE:
                yield f"the sums are of moments that are {pool['spread']:.0f} s apart"
            yield from _holders(pool, width)
        if timeout := pool["checkout_timeout"]:
            text = f"a checkout timed out {_of_worker(timeout)}"
            yield from _coloured("yellow", text, width)
        if failure := pool["connect_failure"]:
            text = f"a connect failed {_of_worker(failure)}: {failure['error']}"
            yield from _coloured("red", text, width)
        if "seen_by_server" in pool:
            yield from _server(pool["seen_by_server"], width)


def finding(finding: Finding) -> Line:
    """Render one finding of ``check``."""
    text = f" {finding.subject}: {finding.advice}"
    return Styled(_COLOURS[finding.level], f"{finding.level:<8}", text)


def _fitted(text: str, width: int) -> list[str]:
    return textwrap.wrap(plain(text), max(width, 20), subsequent_indent="  ")


def _coloured(colour: str, text: str, width: int) -> Iterator[Line]:
    for line in _fitted(text, width):
        yield Styled(colour, line)


def _of_worker(event: Mapping[str, Any]) -> str:
    return f"{event['ago']:.0f} s ago in worker {event['worker']}"


def _headline(bind: str, pool: Mapping[str, Any]) -> Line:
    text = f"{bind}: {pool['server']}, at most {pool['max_size']} for each worker"
    if pool["max_host_connections"] is not None:
        text += f", {pool['max_host_connections']} for this host"
    if pool["paused"]:
        pause = DesiredState(paused=True, **(pool["pause"] or {})).in_words()
        return Styled("yellow", f"{text}, {pause}")
    return text


def _workers(pool: Mapping[str, Any], width: int) -> Iterator[Line]:
    workers = [{**worker, "pid": worker["name"]} for worker in pool["workers"]]
    heads = {name: name.replace("_", " ") for name in _COLUMNS} | {"pid": "worker"}
    total = {**pool["totals"], "pid": "total"}
    for number in range(len(_DROPPED_FIRST) + 1):
        columns = [name for name in _COLUMNS if name not in _DROPPED_FIRST[:number]]
        rows = [[row[name] for name in columns] for row in (heads, *workers, total)]
        head, *lines, last = _aligned(rows)
        if len(head) <= width:
            break
    yield head
    for line, worker in zip(lines, workers, strict=True):
        yield Styled("yellow", line) if worker["waiting"] else line
    yield last


def _silent(workers: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Name the workers whose heartbeat is late: their numbers may be outdated."""
    now = time.time()
    for worker in workers:
        silence = now - worker["heard"]
        if silence > _SILENCE and (worker["size"] or worker["waiting"]):
            yield f"worker {worker['name']}: last heard of {silence:.0f} s ago"


def _holders(pool: Mapping[str, Any], width: int) -> Iterator[str]:
    held = pool["holders"]
    if not held:
        return
    yield "in use, the oldest first:"
    rows = [
        (f"{one['for']:.3f}", one["worker"], one["thread_id"], one["endpoint"] or "?")
        for one in held
    ]
    # A worker publishes the details of its first connections only.
    total = max(len(held), pool["totals"]["in_use"])
    yield from _listed(("seconds", "worker", "thread", "holder"), rows, total, width)


def _server(seen: Mapping[str, Any], width: int) -> Iterator[Line]:
    if "error" in seen:
        text = f"server: cannot connect: {seen['error']}"
        yield from _coloured("red", text, width)
        return
    connected, most = (
        "unknown" if seen[name] is None else seen[name]
        for name in ("connected", "max_connections")
    )
    text = f"server {seen['version']}: {connected} connected of {most} allowed"
    if seen["threads"] is None:
        yield from _fitted(f"{text}; it does not list them", width)
        return
    text += f"; {len(seen['threads'])} of this user, {seen['orphans']} of them"
    yield from _fitted(f"{text} claimed by no worker here", width)
    columns = ["thread_id", "pid", "for", "command", "client", "program"]
    heads = ["thread", "worker", "seconds", "command", "client", "program"]
    if not any(thread["program"] for thread in seen["threads"]):
        if seen["orphans"]:
            text = "  no program names: its performance_schema is off"
            yield from _fitted(text, width)
        columns.pop()
        heads.pop()
    threads = sorted(seen["threads"], key=lambda t: (t["pid"] is not None, -t["for"]))
    rows = [
        ["-" if thread[key] in (None, "") else thread[key] for key in columns]
        for thread in threads
    ]
    yield from _listed(heads, rows, len(rows), width)


def _listed(heads: Row, rows: Sequence[Row], total: int, width: int) -> Iterator[str]:
    """Show the first rows of a table, and how many others there are in total."""
    for line in _aligned([heads, *rows[:_LISTED]]):
        yield line[:width]
    if len(rows) > _LISTED:
        yield f"  and {total - _LISTED} more"


def _aligned(rows: Sequence[Row]) -> list[str]:
    """Align columns, numbers to the right and other cells to the left."""
    texts = [[plain(cell, _WIDEST) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    numeric = [
        all(text.replace(".", "").isdigit() for text in column[1:-1] or column[1:])
        for column in zip(*texts, strict=True)
    ]
    return [
        "  "
        + "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in texts
    ]
