"""Background threads: one maintains the pools, one what workers publish of them.

There is one of each kind for a process. It starts with its first task, and sleeps while
no task is due. All it knows of a task is its ``maintain()``.
"""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from logging import ERROR, WARNING
from typing import Protocol
from weakref import ref

from .driver.logs import log
from .driver.process import process

#: Seconds until the next round after one that failed.
RECOVERY = 1.0


class Task(Protocol):
    def maintain(self) -> float | None:
        """Do what is due; seconds until the next time, None for not at all."""


# No WeakKeyDictionary: whoever lets go of one last would change it, in any thread.
_Due = dict[ref[Task], float]


class MaintenanceThread:
    """Calls ``maintain()`` of each task when it is due."""

    def __init__(self, kind: str = "maintenance") -> None:
        self._kind = kind
        # Looked up now, since gevent may have replaced it after the import of this.
        self._inbox: queue.SimpleQueue[ref[Task] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def watch(self, task: Task) -> None:
        """Look after this, from now on, until it says that nothing is left to do."""
        self._inbox.put(ref(task))
        if self._thread is None or not self._thread.is_alive():
            try:
                with self._starting:
                    self._start()
            except RuntimeError as error:
                text = "nobody looks after %s until later: %s"
                log(WARNING, text, self._kind, error)

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        thread = threading.Thread(
            target=self._run,
            name=f"mysqlpool-{self._kind}",
            daemon=True,
        )
        thread.start()
        self._thread = thread

    def wake(self, task: Task | None = None) -> None:
        """Make a round now, with this one in it. Starts no thread.

        Safe in a finalizer and with a lock held, as ``SimpleQueue.put`` is.
        """
        self._inbox.put(ref(task) if task is not None else None)

    def _run(self) -> None:
        due: _Due = {}
        while True:
            # All pools depend on this thread: not even a SystemExit may end it.
            with suppress(BaseException):
                self._wait(due)
                _make_round(due)

    def _wait(self, due: _Due) -> None:
        soonest = min(due.values(), default=None)
        left = None if soonest is None else max(soonest - time.monotonic(), 0.0)
        with suppress(queue.Empty):
            _add_task(due, self._inbox.get(timeout=left))


# Functions, as the thread must not be what keeps anything alive while it sleeps.


def _add_task(due: _Due, newcomer: ref[Task] | None) -> None:
    """A newcomer is due at once, and so are all others."""
    task = newcomer() if newcomer is not None else None
    if newcomer is not None and task is not None:
        due[newcomer] = 0.0
    due.update(dict.fromkeys(due, 0.0))


def _make_round(due: _Due) -> None:
    now = time.monotonic()
    for reference in [one for one, moment in due.items() if moment <= now]:
        due[reference] = now + RECOVERY  # if the next line does not end well
        pause = _maintain(reference())
        if pause is None:
            del due[reference]
        else:
            due[reference] = time.monotonic() + pause


def _maintain(task: Task | None) -> float | None:
    try:
        return task.maintain() if task is not None else None
    except Exception as error:
        text = "maintenance failed; trying again in %s s"
        log(ERROR, text, RECOVERY, error=error)
        return RECOVERY


_OF_PROCESS: dict[tuple[str, int], MaintenanceThread] = {}


def maintenance_thread(kind: str = "maintenance") -> MaintenanceThread:
    """That of this process; its thread, locks and mail do not survive a fork."""
    key = kind, process()
    return _OF_PROCESS.get(key) or _OF_PROCESS.setdefault(key, MaintenanceThread(kind))
