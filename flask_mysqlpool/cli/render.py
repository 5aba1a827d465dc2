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

#: Columns of the table of workers, and the order in which a narrow terminal drops them.
_COLUMNS = {
    "pid": "worker",
    "size": "size",
    "in_use": "in use",
    "idle": "idle",
    "waiting": "waiting",
    "connecting": "connecting",
    "checkouts": "checkouts",
    "timeouts": "timeouts",
    "opened": "opened",
    "discarded": "discarded",
}
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
    """A line in a colour, with a rest that has none."""

    colour: str
    text: str
    rest: str = ""


Line = str | Styled


def printable(line: Line) -> str:
    """Escape all control characters of a line but those of its colour."""
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
            if pool["spread"] > _SILENCE:
                yield f"the sums are of moments that are {pool['spread']:.0f} s apart"
            yield from _holders(pool, width)
        if pool["checkout_timeout"]:
            yield from _timeout(pool["checkout_timeout"], width)
        if pool["connect_failure"]:
            yield from _failure(pool["connect_failure"], width)
        if "seen_by_server" in pool:
            yield from _server(pool["seen_by_server"], width)


def finding(finding: Finding) -> Line:
    """Render one finding of ``check``."""
    fix = f" -> {finding.fix}" if finding.fix else ""
    text = f" {finding.subject}: {finding.text}{fix}"
    return Styled(_COLOURS[finding.level], f"{finding.level:<8}", text)


def _fitted(text: str, width: int) -> list[str]:
    return textwrap.wrap(plain(text), max(width, 20), subsequent_indent="  ")


def _headline(bind: str, pool: Mapping[str, Any]) -> Line:
    text = f"{bind}: {pool['server']}, at most {pool['max_size']} for each worker"
    if pool["max_host_connections"] is not None:
        text += f", {pool['max_host_connections']} for this host"
    if pool["paused"]:
        pause = DesiredState(paused=True, **(pool["pause"] or {})).in_words()
        return Styled("yellow", f"{text}, {pause}")
    return text


def _workers(pool: Mapping[str, Any], width: int) -> Iterator[Line]:
    columns = dict(_COLUMNS)
    dropped = iter(_DROPPED_FIRST)
    total = {**pool["totals"], "pid": "total"}
    while True:
        rows = [
            list(columns.values()),
            *(
                [worker["name" if key == "pid" else key] for key in columns]
                for worker in pool["workers"]
            ),
            [total[key] for key in columns],
        ]
        lines = _aligned(rows)
        if len(lines[0]) <= width or not (key := next(dropped, None)):
            break
        del columns[key]
    yield lines[0]
    for line, worker in zip(lines[1:-1], pool["workers"], strict=True):
        yield Styled("yellow", line) if worker["waiting"] else line
    yield lines[-1]


def _silent(workers: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Name the workers whose heartbeat is late: their numbers may be outdated."""
    now = time.time()
    for worker in workers:
        silence = now - worker["heard"]
        if silence > _SILENCE and (worker["size"] or worker["waiting"]):
            yield f"worker {worker['name']}: last heard of {silence:.0f} s ago"


def _failure(failure: Mapping[str, Any], width: int) -> list[Line]:
    text = f"a connect failed {failure['ago']:.0f} s ago in worker {failure['worker']}"
    lines = _fitted(f"{text}: {failure['error']}", width)
    return [Styled("red", line) for line in lines]


def _timeout(timeout: Mapping[str, Any], width: int) -> list[Line]:
    text = f"a checkout timed out {timeout['ago']:.0f} s ago"
    lines = _fitted(f"{text} in worker {timeout['worker']}", width)
    return [Styled("yellow", line) for line in lines]


def _holders(pool: Mapping[str, Any], width: int) -> Iterator[str]:
    held = pool["holders"]
    if not held:
        return
    yield "in use, the oldest first:"
    rows: list[Row] = [("seconds", "worker", "thread", "holder")]
    rows += [
        (f"{one['for']:.3f}", one["worker"], one["thread_id"], one["endpoint"] or "?")
        for one in held[:_LISTED]
    ]
    for line in _aligned(rows):
        yield line[:width]
    if len(held) > _LISTED:
        # A worker publishes the details of its first connections only.
        yield f"  and {max(len(held), pool['totals']['in_use']) - _LISTED} more"


def _server(seen: Mapping[str, Any], width: int) -> Iterator[Line]:
    if "error" in seen:
        for line in _fitted(f"server: cannot connect: {seen['error']}", width):
            yield Styled("red", line)
        return
    yield from _fitted(
        f"server {seen['version']}: {seen['connected']} connected of"
        f" {seen['max_connections']} allowed; {len(seen['threads'])} of this user,"
        f" {seen['orphans']} of them claimed by no worker here",
        width,
    )
    named = any(thread["program"] for thread in seen["threads"])
    if seen["orphans"] and not named:
        yield from _fitted("  no program names: its performance_schema is off", width)
    head = ("thread", "worker", "seconds", "command", "client", "program")
    rows: list[Row] = [head if named else head[:-1]]
    threads = sorted(seen["threads"], key=lambda t: (t["pid"] is not None, -t["for"]))
    rows += [
        (
            *(t["thread_id"], t["pid"] or "-", t["for"], t["command"], t["client"]),
            *([t["program"] or "-"] if named else []),
        )
        for t in threads[:_LISTED]
    ]
    for line in _aligned(rows):
        yield line[:width]
    if len(threads) > _LISTED:
        yield f"  and {len(threads) - _LISTED} more"


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
