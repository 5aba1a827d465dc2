"""All workers of a site together: what they publish, and how they are steered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .board import Board, Orders

#: What ``status`` adds up over the workers of a pool.
COUNTS = (
    *("size", "idle", "in_use", "connecting", "waiting"),
    *("checkouts", "timeouts", "opened", "discarded"),
)

#: Seconds after a timeout during which a pool counts as degraded.
RECENT = 60.0

#: Seconds between two looks at workers that are being waited for.
_POLL = 0.05

Worker = dict[str, Any]


class Fleet:
    """The workers of one app on this host, by way of their board."""

    def __init__(self, board: Board, app: str) -> None:
        self.board = board
        self._app = app
        #: What could not be read at the last look, one sentence each.
        self.problems: list[str] = []

    def workers(self) -> dict[str, list[Worker]]:
        """What every live worker publishes, by bind; raises OSError if it cannot be.

        Nothing, where no worker has ever published anything.
        """
        try:
            reading = self.board.read()
        except FileNotFoundError:
            return {}
        self.problems = reading.problems
        by_bind: dict[str, list[Worker]] = {}
        for sheet in sorted(reading.sheets, key=lambda sheet: int(sheet["pid"])):
            if sheet["app"] == self._app:
                by_bind.setdefault(sheet["bind"], []).append(sheet)
        return by_bind

    def orders(self, bind: str) -> Orders:
        try:
            return self.board.orders(self._key(bind))
        except (FileNotFoundError, ValueError):
            return Orders()

    def _key(self, bind: str) -> str:
        return f"{self._app}/{bind}"

    def reset(self, bind: str) -> Callable[[Worker], bool]:
        """Have all connections replaced; gives the test for a worker that has done so.

        Raises OSError, as all that follows, if the board cannot be written.
        """
        seen = [worker["generation"] for worker in self.workers().get(bind, [])]

        def change(orders: Orders) -> Orders:
            # Somebody may have removed the orders that workers have obeyed before.
            newest = max([orders.generation, *seen])
            return orders._replace(generation=newest + 1)

        orders = self.board.order(self._key(bind), change)

        def has_done(worker: Worker) -> bool:
            obeyed = worker["generation"] == orders.generation
            return not worker["size"] or (obeyed and not worker["outdated"])

        return has_done

    def pause(self, bind: str) -> Callable[[Worker], bool]:
        """Let all checkouts wait; gives the test for a worker without connections."""
        self.board.order(self._key(bind), lambda orders: orders._replace(paused=True))
        return lambda worker: not worker["size"]

    def resume(self, bind: str) -> Callable[[Worker], bool]:
        """End a pause; gives the test for a worker that lets checkouts through."""
        self.board.order(self._key(bind), lambda orders: orders._replace(paused=False))
        return lambda worker: not worker["paused"] or not worker["size"]

    def wait(
        self, bind: str, has_done: Callable[[Worker], bool], seconds: float
    ) -> Iterator[list[Worker]]:
        """Those that have not done so yet: now, and again each time that it changes.

        Ends when there are none left, or after so many seconds.
        """
        deadline = time.monotonic() + seconds
        last: object = None
        while True:
            others = [w for w in self.workers().get(bind, []) if not has_done(w)]
            state = [(w["id"], w["outdated"], w["in_use"], w["size"]) for w in others]
            if state != last:
                yield others
            last = state
            if not others or time.monotonic() >= deadline:
                return
            time.sleep(_POLL)


def totals(workers: Iterable[Worker]) -> dict[str, int]:
    """The sum of each count, and the number of workers."""
    workers = list(workers)
    sums = {count: sum(int(worker[count]) for worker in workers) for count in COUNTS}
    return {"workers": len(workers), **sums}


def is_degraded(workers: Iterable[Worker]) -> bool:
    """Whether somebody waits now, or gave up within the last minute."""
    since = time.time() - RECENT
    return any(w["waiting"] or (w["last_timeout"] or 0.0) > since for w in workers)


def holders(workers: Iterable[Worker]) -> list[dict[str, Any]]:
    """All connections in use, with their worker's pid; the oldest holder first."""
    held = [
        {"pid": worker["pid"], **connection, "for": _until_now(worker, connection)}
        for worker in workers
        for connection in worker["connections"]
        if connection["state"] == "in_use"
    ]
    return sorted(held, key=lambda connection: -connection["for"])


def _until_now(worker: Worker, connection: dict[str, Any]) -> float:
    """A worker publishes changes only, so time has passed since."""
    return round(float(connection["for"] + max(time.time() - worker["updated"], 0)), 3)
