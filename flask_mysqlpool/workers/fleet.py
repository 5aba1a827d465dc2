"""All workers of a site together: what they publish, and how they are steered."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..config import PoolConfig
from .exited import (
    Counts,
    ExitedCounters,
    counts,
    identity,
    key_of,
    process_group_id,
    total,
)
from .records import user_name
from .status_dir import DesiredState, Reading, StatusDir

#: What ``status`` adds up over the workers of a pool.
COUNTS = (
    *("size", "idle", "in_use", "connecting", "waiting"),
    *("checkouts", "timeouts", "opened", "discarded"),
)

#: Seconds after a timeout, or a connect that failed, during which a pool counts as
#: degraded.
RECENT = 60.0

#: Seconds within which every live worker with a connection makes a round; a little more
#: than ``agent.QUIET``.
ROUND = 0.6

#: Seconds between two looks at workers that are being waited for.
_POLL = 0.05

Worker = dict[str, Any]


class Fleet:
    """The workers of one app's pools on this host, by way of their board."""

    def __init__(
        self, board: StatusDir, app: str, pools: Mapping[str, PoolConfig]
    ) -> None:
        self.board = board
        self._app = app
        #: What each bind is kept under.
        self._keys = {
            bind: key_of(identity(app, bind, pool)) for bind, pool in pools.items()
        }
        #: What could not be read at the last look, one sentence each.
        self.problems: list[str] = []
        #: Those of them that hide a live worker.
        self.hidden: list[str] = []
        #: That the orders cannot be read, or an empty string.
        self.misorder = ""
        self._ordered = 0.0
        #: What was ordered here, by bind.
        self.given: dict[str, DesiredState] = {}

    def workers(self) -> dict[str, list[Worker]]:
        """What every live worker publishes, by bind; raises OSError if it cannot be.

        Nothing, where no worker has ever published anything.
        """
        try:
            return self._by_bind(self.board.read())
        except FileNotFoundError:
            return self._by_bind(Reading())

    def counts(self) -> tuple[dict[str, list[Worker]], dict[str, Counts]]:
        """The same, and what all workers have counted together, those that died too.

        Of the dead, those that the process has started that has started a live one, or
        this one.
        """
        try:
            reading, past = self.board.read_with_past()
        except FileNotFoundError:
            reading, past = Reading(), ExitedCounters()
        by_bind = self._by_bind(reading)
        workers = [worker for each in by_bind.values() for worker in each]
        sites = {process_group_id(), *(worker.get("site", "") for worker in workers)}
        together = {
            bind: total([past.counts(key, sites), *map(counts, by_bind.get(bind, []))])
            for bind, key in self._keys.items()
        }
        return by_bind, together

    def _by_bind(self, reading: Reading) -> dict[str, list[Worker]]:
        self.hidden = list(reading.hidden)
        strangers: Counter[str] = Counter()
        by_bind: dict[str, list[Worker]] = {}
        for sheet in reading.sheets:
            if not _fits(sheet, _SHEET, _OF_SHEET):
                text = "a worker of another version of this package"
                self.hidden.append(f"{sheet['id']}.worker: {text}")
            elif self._keys.get(sheet["bind"]) == key_of(sheet):
                worker = {**sheet, "heard": reading.heard[sheet["id"]]}
                by_bind.setdefault(sheet["bind"], []).append(worker)
            elif sheet["app"] == self._app and sheet["bind"] in self._keys:
                place = f"{sheet['server']} as {sheet['user'] or 'the system user'}"
                strangers[f"{sheet['bind']} on {place}"] += 1
        for workers in by_bind.values():
            workers.sort(key=lambda worker: (int(worker["pid"]), worker["id"]))
            _name(workers)
        self.misorder = next(filter(None, map(self._fault_of_orders, self._keys)), "")
        others = [p for p in reading.problems if p not in reading.hidden]
        self.problems = [
            *filter(None, [self.misorder]),
            *self.hidden,
            *map(_stranger, strangers.items()),
            *others,
        ]
        return by_bind

    def _fault_of_orders(self, bind: str) -> str:
        try:
            self.board.orders(self._key(bind))
        except FileNotFoundError:
            return ""  # the folder has been removed meanwhile
        except (OSError, ValueError) as error:
            return f"orders: {getattr(error, 'strerror', None) or error}"
        return ""

    def orders(self, bind: str) -> DesiredState:
        """What is ordered, as far as that can be read; or else what was, here."""
        try:
            return self.board.orders(self._key(bind))
        except (OSError, ValueError):
            return self.given.get(bind, DesiredState()).now()  # `misorder` says so

    def is_paused(self, bind: str, workers: Iterable[Worker]) -> bool:
        """Whether checkouts are to wait; what workers do, if orders cannot be read."""
        if self.misorder:
            return any(worker["paused"] for worker in workers)
        return self.orders(bind).paused

    def _key(self, bind: str) -> str:
        return self._keys[bind]

    def reset(self, bind: str) -> Callable[[Worker], bool]:
        """Have all connections replaced; gives the test for a worker that has done so.

        Raises OSError, as all that follows, if the board cannot be written.
        """
        seen = [worker["generation"] for worker in self.workers().get(bind, [])]

        def change(orders: DesiredState) -> DesiredState:
            # Somebody may have removed the orders that workers have obeyed before.
            newest = max([orders.generation, *seen])
            return orders._replace(generation=newest + 1)

        orders = self._order(bind, change)

        def has_done(worker: Worker) -> bool:
            applied = worker["generation"] >= orders.generation
            return not worker["size"] or (applied and not worker["outdated"])

        return has_done

    def pause(
        self, bind: str, by: str = "", seconds: float | None = None
    ) -> Callable[[Worker], bool]:
        """Let all checkouts wait; gives the test for a worker without connections.

        For so many seconds, or until :meth:`resume`. ``by`` is who wants it, by default
        this process's user.
        """

        def change(orders: DesiredState) -> DesiredState:
            user = by or f"{user_name(os.geteuid())} on {socket.gethostname()}"
            return orders.pause(user, seconds)

        self._order(bind, change)
        return lambda worker: not worker["size"]

    def resume(self, bind: str) -> Callable[[Worker], bool]:
        """End a pause; gives the test for a worker that lets checkouts through.

        One without connections, and without anybody who waits for one, makes no rounds:
        it looks for orders before its next connect.
        """
        self._order(bind, lambda orders: DesiredState(orders.generation))
        return lambda worker: (
            not worker["paused"] or not (worker["size"] or worker["waiting"])
        )

    def _order(
        self, bind: str, change: Callable[[DesiredState], DesiredState]
    ) -> DesiredState:
        orders = self.given[bind] = self.board.update_desired(self._key(bind), change)
        self._ordered = time.monotonic()
        return orders

    def wait(
        self, bind: str, has_done: Callable[[Worker], bool], seconds: float
    ) -> Iterator[list[Worker]]:
        """Those that have not done so yet: now, and again each time that it changes.

        Ends when there are none left, or after so many seconds; but not before a worker
        had time to notice that somebody has removed its sheet, and to write another.
        """
        deadline = time.monotonic() + seconds
        last: object = None
        while True:
            now = time.monotonic()
            others = [w for w in self.workers().get(bind, []) if not has_done(w)]
            state = [tuple(w[key] for key in _PROGRESS) for w in others]
            if state != last:
                yield others
            last = state
            if now >= self._ordered + ROUND and (not others or now >= deadline):
                return
            time.sleep(_POLL)


def _name(workers: list[Worker]) -> None:
    """Name each by its process id and, where containers share that, by its file."""
    pids = Counter(worker["pid"] for worker in workers)
    for worker in workers:
        pid = worker["pid"]
        worker["name"] = f"{pid}-{worker['id'][:4]}" if pids[pid] > 1 else str(pid)


def _stranger(pool: tuple[str, int]) -> str:
    place, number = pool
    has = "worker has" if number == 1 else "workers have"
    return (
        f"{number} {has} {place}: of another site, or of other settings; commands with"
        " those settings show and steer them"
    )


#: What tells that a worker has come nearer to what was ordered.
_PROGRESS = "id", "outdated", "in_use", "size", "waiting"


def _is_number(value: Any) -> bool:
    """Whether it is one that can be counted with: finite, and of no absurd size."""
    return isinstance(value, (int, float)) and abs(value) < 1 << 64


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _are_integers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_integer, value))


def _are_connections(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict) and _fits(each, _CONNECTION, _OF_CONNECTION)
        for each in value
    )


#: What the commands read of a sheet; and what they do if it says that.
_SHEET = {
    **dict.fromkeys(COUNTS, _is_number),
    **dict.fromkeys(("pid", "generation", "outdated"), _is_integer),
    **dict.fromkeys(("app", "bind", "server"), _is_text),
    "updated": _is_number,
    "paused": _is_flag,
    "connections": _are_connections,
}
_OF_SHEET = {
    **dict.fromkeys(("last_timeout", "last_connect_failure", "waited"), _is_number),
    **dict.fromkeys(("user", "site", "connect_error"), _is_text),
    "thread_ids": _are_integers,
}
_CONNECTION = {"state": _is_text, "thread_id": _is_integer, "for": _is_number}
_OF_CONNECTION = {"endpoint": _is_text, "age": _is_number}

_Schema = Mapping[str, Callable[[Any], bool]]


def _fits(record: Worker, needed: _Schema, optional: _Schema) -> bool:
    """Whether it says all that is read of it, in the way that it is read."""
    return all(test(record.get(key)) for key, test in needed.items()) and all(
        record.get(key) is None or test(record[key]) for key, test in optional.items()
    )


def totals(workers: Iterable[Worker]) -> dict[str, int]:
    """The sum of each count, and the number of workers."""
    workers = list(workers)
    sums = {count: sum(int(worker[count]) for worker in workers) for count in COUNTS}
    return {"workers": len(workers), **sums}


def spread(workers: Iterable[Worker]) -> float:
    """Seconds between the moments that a sum is of: the first and the last of them.

    Workers without connections tell every change at once.
    """
    heard = [w["heard"] for w in workers if w["size"] or w["waiting"]]
    return round(max(heard) - min(heard), 1) if heard else 0.0


def is_degraded(workers: Iterable[Worker]) -> bool:
    """Whether somebody waits; or gave up, or could not connect, a short while ago."""
    since = time.time() - RECENT
    return any(
        w["waiting"] or _timed_out_at(w) > since or _failed_at(w) > since
        for w in workers
    )


def last_failure(workers: Iterable[Worker]) -> dict[str, Any] | None:
    """The last connect that failed, if it did so within the last minute."""
    last = max(workers, key=_failed_at, default=None)
    if last is None or (ago := time.time() - _failed_at(last)) > RECENT:
        return None
    error = str(last.get("connect_error"))
    return {**_told(last), "ago": round(max(ago, 0.0), 1), "error": error}


def last_timeout(workers: Iterable[Worker]) -> dict[str, Any] | None:
    """The last checkout that timed out, if it did so within the last minute."""
    last = max(workers, key=_timed_out_at, default=None)
    if last is None or (ago := time.time() - _timed_out_at(last)) > RECENT:
        return None
    return {**_told(last), "ago": round(max(ago, 0.0), 1)}


def _told(worker: Worker) -> dict[str, Any]:
    """Tell which worker it is about."""
    return {"pid": worker["pid"], "worker": worker["name"]}


def _timed_out_at(worker: Worker) -> float:
    return float(worker.get("last_timeout") or 0.0)


def _failed_at(worker: Worker) -> float:
    return float(worker.get("last_connect_failure") or 0.0)


def holders(workers: Iterable[Worker]) -> list[dict[str, Any]]:
    """All connections in use, with their worker's pid; the oldest holder first."""
    held = [
        {**_told(worker), **connection, "for": _until_now(worker, connection)}
        for worker in workers
        for connection in worker["connections"]
        if connection["state"] == "in_use"
    ]
    return sorted(held, key=lambda connection: -connection["for"])


def _until_now(worker: Worker, connection: dict[str, Any]) -> float:
    """A worker publishes changes only, so time has passed since."""
    return round(float(connection["for"] + max(time.time() - worker["updated"], 0)), 3)
