"""Two workers, forked from a process that has loaded the app: gunicorn's --preload.

A program of its own, which :mod:`benchmarks.pitfalls` starts, as a fork copies one
thread and no other.
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.synchronize import Semaphore
from typing import Any

from .wirings import Settings, Site

SECONDS = 30.0


def main(times: int) -> None:
    """Make transfers in one worker, in each of which the other one has a request."""
    site = Site(Settings.from_environment())
    # The app asks its database when it is loaded: for its settings, say.
    site.get("/balances")
    fork = multiprocessing.get_context("fork")
    begun, answered, ids = fork.Semaphore(0), fork.Semaphore(0), fork.SimpleQueue()
    workers = [
        fork.Process(target=work, args=(site, times, begun, answered, ids), daemon=True)
        for work in (transfer, visit)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SECONDS)
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker has not come to its end")
    print(*(ids.get() for _ in workers))


def transfer(
    site: Site, times: int, begun: Semaphore, answered: Semaphore, ids: Any
) -> None:
    def meanwhile() -> None:
        begun.release()
        answered.acquire(timeout=SECONDS)

    site.meanwhile = meanwhile
    ids.put(site.get("/id").text)
    for _ in range(times):
        site.post("/transfer")


def visit(
    site: Site, times: int, begun: Semaphore, answered: Semaphore, ids: Any
) -> None:
    for number in range(times):
        begun.acquire(timeout=SECONDS)
        site.get("/balances")
        if not number:
            ids.put(site.get("/id").text)
        answered.release()


if __name__ == "__main__":
    main(int(sys.argv[1]))
