"""All workers of an app on this host: what they publish, and their desired state."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..config import PoolConfig
from .desired_state import DesiredState
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
from .status_dir import Reading, StatusDir

#: The fields that ``status`` adds up over the workers of a pool.
COUNTS = (
    *("size", "idle", "in_use", "connecting", "waiting"),
    *("checkouts", "timeouts", "opened", "discarded"),
)

#: Seconds for which a pool is degraded after a timeout or a failed connect.
RECENT = 60.0

#: Seconds within which every worker with a connection makes a round; a little more than
#: ``agent.QUIET``.
ROUND = 0.6

#: Seconds between two polls of workers that are pending.
_POLL = 0.05

Worker = dict[str, Any]


class Fleet:
    """The workers of one app's pools on this host, seen in their status directory."""

    def __init__(
        self, status_dir: StatusDir, app: str, pools: Mapping[str, PoolConfig]
    ) -> None:
        self.status_dir = status_dir
        self._app = app
        #: The key of each bind in the files.
        self._keys = {
            bind: key_of(identity(app, bind, pool)) for bind, pool in pools.items()
        }
        #: What could not be read by the last call, one sentence each.
        self.problems: list[str] = []
        #: Those of the problems that hide a live worker.
        self.hidden: list[str] = []
        #: Why the desired state cannot be read, or an empty string.
        self.desired_problem = ""
        #: What this object has requested, by bind, and when it last did.
        self.requested: dict[str, DesiredState] = {}
        self._requested_at = 0.0

    def workers(self) -> dict[str, list[Worker]]:
        """Read the records of all live workers, by bind; OSError if that fails.

        There are none where no worker has ever published.
        """
        try:
            return self._by_bind(self.status_dir.read())
        except FileNotFoundError:
            return self._by_bind(Reading())

    def counts(self) -> tuple[dict[str, list[Worker]], dict[str, Counts]]:
        """Read the same, and the sums of all counters, with those of exited workers.

        Exited workers count only if they had the same parent process as a live worker
        or as this process.
        """
        try:
            reading, exited = self.status_dir.read_with_exited()
        except FileNotFoundError:
            reading, exited = Reading(), ExitedCounters()
        by_bind = self._by_bind(reading)
        workers = [worker for each in by_bind.values() for worker in each]
        groups = {process_group_id(), *(w.get("site", "") for w in workers)}
        sums = {
            bind: total(
                [exited.counts(key, groups), *map(counts, by_bind.get(bind, []))]
            )
            for bind, key in self._keys.items()
        }
        return by_bind, sums

    def _by_bind(self, reading: Reading) -> dict[str, list[Worker]]:
        self.hidden = list(reading.hidden)
        others: Counter[str] = Counter()
        by_bind: dict[str, list[Worker]] = {}
        for record in reading.records:
            if not _fits(record, _RECORD, _OPTIONAL):
                text = "a worker of another version of this package"
                self.hidden.append(f"{record['id']}.worker: {text}")
            elif self._keys.get(record["bind"]) == key_of(record):
                worker = {**record, "heard": reading.heard[record["id"]]}
                by_bind.setdefault(record["bind"], []).append(worker)
            elif record["app"] == self._app and record["bind"] in self._keys:
                place = f"{record['server']} as {record['user'] or 'the system user'}"
                others[f"{record['bind']} on {place}"] += 1
        for workers in by_bind.values():
            workers.sort(key=lambda worker: (int(worker["pid"]), worker["id"]))
            _name(workers)
        faults = filter(None, map(self._desired_fault, self._keys))
        self.desired_problem = next(faults, "")
        self.problems = [
            *filter(None, [self.desired_problem]),
            *self.hidden,
            *map(_other_pool, others.items()),
            *(p for p in reading.problems if p not in reading.hidden),
        ]
        return by_bind

    def _desired_fault(self, bind: str) -> str:
        try:
            self.status_dir.desired(self._keys[bind])
        except FileNotFoundError:
            return ""  # the directory has been removed meanwhile
        except (OSError, ValueError) as error:
            return f"orders: {getattr(error, 'strerror', None) or error}"
        return ""

    def desired(self, bind: str) -> DesiredState:
        """Read the desired state; if it cannot be read, what was requested here."""
        try:
            return self.status_dir.desired(self._keys[bind])
        except (OSError, ValueError):
            return self.requested.get(bind, DesiredState()).now()  # see desired_problem

    def is_paused(self, bind: str, workers: Iterable[Worker]) -> bool:
        """Tell whether checkouts wait; workers tell if the state is unreadable."""
        if self.desired_problem:
            return any(worker["paused"] for worker in workers)
        return self.desired(bind).paused

    def reset(self, bind: str) -> Callable[[Worker], bool]:
        """Request new connections; returns the test for a worker that has them.

        Raises OSError, as `pause` and `resume`, if the directory cannot be written to.
        """
        seen = [worker["generation"] for worker in self.workers().get(bind, [])]

        def change(desired: DesiredState) -> DesiredState:
            # A file that was removed had the generation that workers have applied.
            newest = max([desired.generation, *seen])
            return desired._replace(generation=newest + 1)

        desired = self._request(bind, change)

        def is_done(worker: Worker) -> bool:
            applied = worker["generation"] >= desired.generation
            return not worker["size"] or (applied and not worker["outdated"])

        return is_done

    def pause(
        self, bind: str, by: str = "", seconds: float | None = None
    ) -> Callable[[Worker], bool]:
        """Hold new checkouts; returns the test for a worker without connections.

        The pause ends after ``seconds``, if given, or with :meth:`resume`. ``by`` names
        the user who requests it, by default that of this process.
        """

        def change(desired: DesiredState) -> DesiredState:
            user = by or f"{user_name(os.geteuid())} on {socket.gethostname()}"
            return desired.pause(user, seconds)

        self._request(bind, change)
        return lambda worker: not worker["size"]

    def resume(self, bind: str) -> Callable[[Worker], bool]:
        """End a pause; returns the test for a worker that has resumed.

        A worker without connections and waiters makes no rounds: it reads the desired
        state before its next connect.
        """
        self._request(bind, lambda desired: DesiredState(desired.generation))
        return lambda worker: (
            not worker["paused"] or not (worker["size"] or worker["waiting"])
        )

    def _request(
        self, bind: str, change: Callable[[DesiredState], DesiredState]
    ) -> DesiredState:
        desired = self.status_dir.update_desired(self._keys[bind], change)
        self.requested[bind] = desired
        self._requested_at = time.monotonic()
        return desired

    def wait(
        self, bind: str, is_done: Callable[[Worker], bool], seconds: float
    ) -> Iterator[list[Worker]]:
        """Yield the pending workers: now, and each time that their state changes.

        Ends when none is left, or after ``seconds``; but not before every worker whose
        status file was removed had the time to write a new one.
        """
        deadline = time.monotonic() + seconds
        last: object = None
        while True:
            now = time.monotonic()
            pending = [w for w in self.workers().get(bind, []) if not is_done(w)]
            state = [tuple(w[key] for key in _PROGRESS) for w in pending]
            if state != last:
                yield pending
            last = state
            if now >= self._requested_at + ROUND and (not pending or now >= deadline):
                return
            time.sleep(_POLL)


def _name(workers: list[Worker]) -> None:
    """Name workers by process id, and by id where containers share process ids."""
    pids = Counter(worker["pid"] for worker in workers)
    for worker in workers:
        pid = worker["pid"]
        worker["name"] = f"{pid}-{worker['id'][:4]}" if pids[pid] > 1 else str(pid)


def _other_pool(pool: tuple[str, int]) -> str:
    place, number = pool
    has = "worker has" if number == 1 else "workers have"
    return (
        f"{number} {has} {place}: of another site, or of other settings; commands with"
        " those settings show and steer them"
    )


#: The fields by which the progress of a pending worker is seen.
_PROGRESS = "id", "outdated", "in_use", "size", "waiting"


def _is_number(value: Any) -> bool:
    """Tell whether it is a finite number of plausible size."""
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
        isinstance(each, dict) and _fits(each, _CONNECTION, _CONNECTION_OPTIONAL)
        for each in value
    )


#: The fields of a record that commands need, and those that it may lack.
_RECORD = {
    **dict.fromkeys(COUNTS, _is_number),
    **dict.fromkeys(("pid", "generation", "outdated"), _is_integer),
    **dict.fromkeys(("app", "bind", "server"), _is_text),
    "updated": _is_number,
    "paused": _is_flag,
    "connections": _are_connections,
}
_OPTIONAL = {
    **dict.fromkeys(("last_timeout", "last_connect_failure", "waited"), _is_number),
    **dict.fromkeys(("user", "site", "connect_error"), _is_text),
    "thread_ids": _are_integers,
}
_CONNECTION = {"state": _is_text, "thread_id": _is_integer, "for": _is_number}
_CONNECTION_OPTIONAL = {"endpoint": _is_text, "age": _is_number}

_Schema = Mapping[str, Callable[[Any], bool]]


def _fits(record: Worker, needed: _Schema, optional: _Schema) -> bool:
    """Tell whether the record has the needed fields, and all fields the right types."""
    return all(test(record.get(key)) for key, test in needed.items()) and all(
        record.get(key) is None or test(record[key]) for key, test in optional.items()
    )


def totals(workers: Iterable[Worker]) -> dict[str, int]:
    """Add up each count, and count the workers."""
    workers = list(workers)
    sums = {count: sum(int(worker[count]) for worker in workers) for count in COUNTS}
    return {"workers": len(workers), **sums}


def spread(workers: Iterable[Worker]) -> float:
    """Return the seconds between the oldest and the newest record of a sum.

    Workers without connections are left out: they publish every change at once.
    """
    heard = [w["heard"] for w in workers if w["size"] or w["waiting"]]
    return round(max(heard) - min(heard), 1) if heard else 0.0


def is_degraded(workers: Iterable[Worker]) -> bool:
    """Tell whether a checkout waits, or a checkout or connect failed recently."""
    since = time.time() - RECENT
    return any(
        w["waiting"] or _timed_out_at(w) > since or _failed_at(w) > since
        for w in workers
    )


def last_failure(workers: Iterable[Worker]) -> dict[str, Any] | None:
    """Return the last failed connect, if it was within the last minute."""
    last = max(workers, key=_failed_at, default=None)
    if last is None or (ago := time.time() - _failed_at(last)) > RECENT:
        return None
    error = str(last.get("connect_error"))
    return {**_worker_ids(last), "ago": round(max(ago, 0.0), 1), "error": error}


def last_timeout(workers: Iterable[Worker]) -> dict[str, Any] | None:
    """Return the last checkout that timed out, if it was within the last minute."""
    last = max(workers, key=_timed_out_at, default=None)
    if last is None or (ago := time.time() - _timed_out_at(last)) > RECENT:
        return None
    return {**_worker_ids(last), "ago": round(max(ago, 0.0), 1)}


def _worker_ids(worker: Worker) -> dict[str, Any]:
    """Return the fields that identify a worker."""
    return {"pid": worker["pid"], "worker": worker["name"]}


def _timed_out_at(worker: Worker) -> float:
    return float(worker.get("last_timeout") or 0.0)


def _failed_at(worker: Worker) -> float:
    return float(worker.get("last_connect_failure") or 0.0)


def holders(workers: Iterable[Worker]) -> list[dict[str, Any]]:
    """List all connections in use, with their workers; the longest held first."""
    held = [
        {**_worker_ids(worker), **connection, "for": _held_for(worker, connection)}
        for worker in workers
        for connection in worker["connections"]
        if connection["state"] == "in_use"
    ]
    return sorted(held, key=lambda connection: -connection["for"])


def _held_for(worker: Worker, connection: dict[str, Any]) -> float:
    """Add the time since the worker published: it publishes changes only."""
    return round(float(connection["for"] + max(time.time() - worker["updated"], 0)), 3)
