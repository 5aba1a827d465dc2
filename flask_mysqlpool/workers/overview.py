"""The pools of an app and all their workers, as commands and the monitor show them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from operator import attrgetter
from typing import Any

from ..config import PoolConfig
from .desired_state import DesiredState
from .fleet import Fleet
from .status import Counts, WorkerStatus, identity

#: The fields that are added up over the workers of a pool.
COUNTS = (
    *("size", "idle", "in_use", "connecting", "waiting"),
    *("checkouts", "timeouts", "opened", "discarded"),
)

#: Seconds for which a pool is degraded after a timeout or a failed connect.
RECENT = 60.0

#: Seconds by which the clocks of two processes may seem to differ.
_TICK = 1.0


class Overview:
    """The pools of an app and their workers or, if these cannot be seen, why.

    ``states`` are those of the app's extension objects. With ``only``, it shows one
    pool; raises :exc:`LookupError` if there is none of that name. With
    ``with_counts``, it reads the sums of all counters, too.
    """

    def __init__(
        self,
        app: str,
        states: Collection[Any],
        only: str | None = None,
        with_counts: bool = False,
    ) -> None:
        self.app = app
        self.pools: dict[str, PoolConfig] = {}
        for state in states:
            self.pools.update(state.published())
        if only is not None:
            if only not in self.pools:
                known = ", ".join(map(repr, self.pools))
                raise LookupError(f"no bind is called {only!r}; configured: {known}")
            self.pools = {only: self.pools[only]}
        self.status_dir = next(iter(states)).status_dir
        self.workers: dict[str, list[WorkerStatus]] = {b: [] for b in self.pools}
        self.counts: dict[str, Counts] = {}
        self.error: OSError | None = None
        try:
            if self.status_dir is None:
                raise OSError("STATUS_DIR is False")
            self._fleet = Fleet(self.status_dir, app, self.pools)
            if with_counts:
                workers, self.counts = self._fleet.counts()
            else:
                workers = self._fleet.workers()
            self.workers |= workers
        except OSError as error:
            self.error = error

    def read_own(self, states: Collection[Any]) -> None:
        """Show what this process would publish of the pools that it has used."""
        for state in states:
            for bind, pool in state.pools_in_use().items():
                about = identity(self.app, bind, self.pools[bind])
                own = WorkerStatus.of(pool.stats(), pool.connections(), **about)
                own.name, own.heard = str(own.pid), own.updated
                self.workers[bind], self.counts[bind] = [own], own.counts

    def fleet(self) -> Fleet:
        """Return the workers; :exc:`OSError` if they cannot be seen."""
        if self.error is not None:
            raise self.error
        return self._fleet

    @property
    def problems(self) -> list[str]:
        return [] if self.error else self._fleet.problems

    def desired(self, bind: str) -> DesiredState:
        return DesiredState() if self.error else self._fleet.desired(bind)

    def pauses(self) -> list[str]:
        """Describe each pause: the pool, who requested it, its begin and its end."""
        desired = {bind: self.desired(bind) for bind in self.pools}
        return [f"{b}: {d.in_words()}" for b, d in desired.items() if d.paused]

    def is_paused(self, bind: str) -> bool:
        workers = self.workers[bind]
        if self.error:
            return any(worker.paused for worker in workers)
        return self._fleet.is_paused(bind, workers)


def reason(error: OSError) -> str:
    """Describe why the workers cannot be seen."""
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"


def map_texts(change: Callable[[str], str], data: Any) -> Any:
    """Return the data with all texts changed, at any depth."""
    if isinstance(data, dict):
        return {change(k): map_texts(change, value) for k, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [map_texts(change, each) for each in data]
    return change(data) if isinstance(data, str) else data


def capacity(config: PoolConfig, workers: int) -> int:
    """Return the maximum number of connections of these workers together."""
    most = config.max_size * workers
    return min(most, config.max_host_connections or most)


def totals(workers: Collection[WorkerStatus]) -> dict[str, int]:
    """Add up each count, and count the workers."""
    sums = {count: sum(getattr(w, count) for w in workers) for count in COUNTS}
    return {"workers": len(workers), **sums}


def spread(workers: Iterable[WorkerStatus]) -> float:
    """Return the seconds between the oldest and the newest record of a sum.

    Workers without connections are left out: they make no rounds.
    """
    heard = [w.heard for w in workers if w.size or w.waiting]
    return round(max(heard) - min(heard), 1) if heard else 0.0


def last_timeout(workers: Iterable[WorkerStatus]) -> dict[str, Any] | None:
    """Return the worker of the last checkout that timed out, and how long ago."""
    return _last(workers, "last_timeout")


def last_failure(workers: Collection[WorkerStatus]) -> dict[str, Any] | None:
    """Return the worker of the last failed connect, how long ago, and the error."""
    return _last(workers, "last_connect_failure", error="connect_error")


def _last(
    workers: Iterable[WorkerStatus], field: str, **more: str
) -> dict[str, Any] | None:
    now = time.time()
    # A time in the future is from before the clock was set back: its age is unknown.
    soon = now + _TICK
    with_one = [
        worker for worker in workers if 0 < (getattr(worker, field) or 0) < soon
    ]
    if not with_one:
        return None
    last = max(with_one, key=attrgetter(field))
    ago = max(now - getattr(last, field), 0.0)
    about = {name: getattr(last, of) or "unknown" for name, of in more.items()}
    return {**_worker_ids(last), "ago": round(ago, 1), **about}


def recent(event: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the event if it was within the last minute."""
    return event if event is not None and event["ago"] <= RECENT else None


def _worker_ids(worker: WorkerStatus) -> dict[str, Any]:
    """Return the fields that identify a worker."""
    return {"pid": worker.pid, "worker": worker.name}


def holders(workers: Iterable[WorkerStatus]) -> list[dict[str, Any]]:
    """List all connections in use, with their workers; the longest held first."""
    held = [
        {**_worker_ids(worker), **connection, "for": _held_for(worker, connection)}
        for worker in workers
        for connection in worker.connections
        if connection["state"] == "in_use"
    ]
    return sorted(held, key=lambda connection: -connection["for"])


def _held_for(worker: WorkerStatus, connection: dict[str, Any]) -> float:
    """Add the time since the worker published: it publishes changes only."""
    return round(float(connection["for"] + max(time.time() - worker.updated, 0)), 3)
