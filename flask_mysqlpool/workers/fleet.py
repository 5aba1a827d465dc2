"""All workers of an app on this host: what they publish, and their desired state."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from ..config import PoolConfig
from .desired_state import DesiredState
from .exited import ExitedCounters, total
from .records import reason_of, user_name
from .status import Counts, WorkerStatus, identity, key_of
from .status_dir import Reading, StatusDir

#: Seconds within which every worker with a connection makes a round; a little more than
#: ``agent.QUIET``.
ROUND = 0.6

#: Seconds between two polls of workers that are pending.
_POLL = 0.05


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

    def workers(self) -> dict[str, list[WorkerStatus]]:
        """Read the records of all live workers, by bind; OSError if that fails.

        There are none where no worker has ever published.
        """
        try:
            return self._by_bind(self.status_dir.read())
        except FileNotFoundError:
            return self._by_bind(Reading())

    def counts(self) -> tuple[dict[str, list[WorkerStatus]], dict[str, Counts]]:
        """Read the same, and the sums of all counters, with those of exited workers."""
        try:
            reading, exited = self.status_dir.read_with_exited()
        except FileNotFoundError:
            reading, exited = Reading(), ExitedCounters()
        by_bind = self._by_bind(reading)
        sums = {
            bind: total(
                [exited.counts(key), *(w.counts for w in by_bind.get(bind, []))]
            )
            for bind, key in self._keys.items()
        }
        return by_bind, sums

    def _by_bind(self, reading: Reading) -> dict[str, list[WorkerStatus]]:
        self.hidden = list(reading.hidden)
        others: Counter[str] = Counter()
        by_bind: dict[str, list[WorkerStatus]] = {}
        for record in reading.records:
            try:
                worker = WorkerStatus.from_json(record)
            except ValueError as error:
                self.hidden.append(f"{record['id']}.worker: {error}")
                continue
            worker.id = record["id"]
            worker.heard = reading.heard[worker.id]
            if self._keys.get(worker.bind) == worker.key:
                by_bind.setdefault(worker.bind, []).append(worker)
            elif worker.app == self._app and worker.bind in self._keys:
                place = f"{worker.server} as {worker.user or 'the system user'}"
                others[f"{worker.bind} on {place}"] += 1
        for workers in by_bind.values():
            workers.sort(key=lambda worker: (worker.pid, worker.id))
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
            return f"orders: {reason_of(error)}"
        return ""

    def desired(self, bind: str) -> DesiredState:
        """Read the desired state; if it cannot be read, what was requested here."""
        try:
            return self.status_dir.desired(self._keys[bind])
        except (OSError, ValueError):
            return self.requested.get(bind, DesiredState()).now()  # see desired_problem

    def is_paused(self, bind: str, workers: Iterable[WorkerStatus]) -> bool:
        """Tell whether checkouts wait; workers tell if the state is unreadable."""
        if self.desired_problem:
            return any(worker.paused for worker in workers)
        return self.desired(bind).paused

    def reset(self, bind: str) -> Callable[[WorkerStatus], bool]:
        """Request new connections; returns the test for a worker that has them.

        Raises OSError, as `pause` and `resume`, if the directory cannot be written to.
        """
        seen = [worker.generation for worker in self.workers().get(bind, [])]

        def change(desired: DesiredState) -> DesiredState:
            # A file that was removed had the generation that workers have applied.
            newest = max([desired.generation, *seen])
            return desired._replace(generation=newest + 1)

        desired = self._request(bind, change)

        def is_done(worker: WorkerStatus) -> bool:
            applied = worker.generation >= desired.generation
            return not worker.size or (applied and not worker.outdated)

        return is_done

    def pause(
        self, bind: str, by: str = "", seconds: float | None = None
    ) -> Callable[[WorkerStatus], bool]:
        """Hold new checkouts; returns the test for a worker without connections.

        The pause ends after ``seconds``, if given, or with :meth:`resume`. ``by`` names
        the user who requests it, by default that of this process.
        """

        def change(desired: DesiredState) -> DesiredState:
            user = by or f"{user_name(os.geteuid())} on {socket.gethostname()}"
            return desired.pause(user, seconds)

        self._request(bind, change)
        return lambda worker: not worker.size

    def resume(self, bind: str) -> Callable[[WorkerStatus], bool]:
        """End a pause; returns the test for a worker that has resumed.

        A worker without connections and waiters makes no rounds: it reads the desired
        state before its next connect.
        """
        self._request(bind, lambda desired: DesiredState(desired.generation))
        return lambda worker: not worker.paused or not (worker.size or worker.waiting)

    def _request(
        self, bind: str, change: Callable[[DesiredState], DesiredState]
    ) -> DesiredState:
        desired = self.status_dir.update_desired(self._keys[bind], change)
        self.requested[bind] = desired
        self._requested_at = time.monotonic()
        return desired

    def wait(
        self, bind: str, is_done: Callable[[WorkerStatus], bool], seconds: float
    ) -> Iterator[list[WorkerStatus]]:
        """Yield the pending workers: now, and each time that their state changes.

        Ends when none is left, or after ``seconds``; but not before every worker whose
        status file was removed had the time to write a new one.
        """
        deadline = time.monotonic() + seconds
        last: object = None
        while True:
            now = time.monotonic()
            pending = [w for w in self.workers().get(bind, []) if not is_done(w)]
            state = [[getattr(w, key) for key in _PROGRESS] for w in pending]
            if state != last:
                yield pending
            last = state
            if now >= self._requested_at + ROUND and (not pending or now >= deadline):
                return
            time.sleep(_POLL)


def _name(workers: list[WorkerStatus]) -> None:
    """Name workers by process id, and by id where containers share process ids."""
    pids = Counter(worker.pid for worker in workers)
    for worker in workers:
        worker.name = str(worker.pid)
        if pids[worker.pid] > 1:
            worker.name += f"-{worker.id[:4]}"


def _other_pool(pool: tuple[str, int]) -> str:
    place, number = pool
    has = "worker has" if number == 1 else "workers have"
    return (
        f"{number} {has} {place}: of another site, or of other settings; commands with"
        " those settings show and control them"
    )


#: The fields by which the progress of a pending worker is seen.
_PROGRESS = "id", "outdated", "in_use", "size", "waiting"
