"""Background threads: one maintains the pools, another publishes their status.

A process has one thread of each kind. It starts with its first task and sleeps while no
task is due.
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
from .driver.process import is_uwsgi_before_fork, process

#: Seconds until a task is called again after it has raised.
RECOVERY = 1.0


class Task(Protocol):
    """Work that is repeated at intervals."""

    def maintain(self) -> float | None:
        """Do what is due; return the seconds until the next call, None to end."""


# No WeakKeyDictionary: it would change in the thread that drops the last reference.
_Due = dict[ref[Task], float]


class MaintenanceThread:
    """Calls ``maintain()`` of each task when it is due."""

    def __init__(self, kind: str = "maintenance") -> None:
        self._kind = kind
        # Looked up now: gevent may have replaced the class after this was imported.
        self._inbox: queue.SimpleQueue[ref[Task] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def watch(self, task: Task) -> bool:
        """Add a task, due now, and start the thread unless it is running.

        Returns False if it does not run: what it does is then left undone until a
        later call. Where uWSGI preloads the app, only its workers run one.
        """
        self._inbox.put(ref(task))
        if self._thread is None or not self._thread.is_alive():
            if is_uwsgi_before_fork():
                return False
            try:
                with self._starting:
                    self._start()
            except RuntimeError as error:
                text = "the thread for %s cannot be started yet: %s"
                log(WARNING, text, self._kind, error)
                return False
        return True

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
        """Make all tasks due now, including this one, without starting the thread.

        ``SimpleQueue.put`` is reentrant, so finalizers may call this.
        """
        self._inbox.put(ref(task) if task is not None else None)

    def _run(self) -> None:
        due: _Due = {}
        while True:
            # All pools depend on this thread, so not even a SystemExit may end it.
            with suppress(BaseException):
                self._wait(due)
                _run_due(due)

    def _wait(self, due: _Due) -> None:
        """Sleep until a task is due or a message arrives."""
        soonest = min(due.values(), default=None)
        left = None if soonest is None else max(soonest - time.monotonic(), 0.0)
        with suppress(queue.Empty):
            _add_task(due, self._inbox.get(timeout=left))


# Functions, so that no variable of the sleeping thread refers to a task.


def _add_task(due: _Due, reference: ref[Task] | None) -> None:
    """Add a task, if there is one, and make all tasks due now."""
    task = reference() if reference is not None else None
    if reference is not None and task is not None:
        due[reference] = 0.0
    due.update(dict.fromkeys(due, 0.0))


def _run_due(due: _Due) -> None:
    """Call each task that is due, and note when it is due next."""
    now = time.monotonic()
    for reference in [one for one, moment in due.items() if moment <= now]:
        due[reference] = now + RECOVERY  # in case the next line raises
        pause = _maintain(reference())
        if pause is None:
            del due[reference]
        else:
            due[reference] = time.monotonic() + pause


def _maintain(task: Task | None) -> float | None:
    """Call one task; log an error."""
    try:
        return task.maintain() if task is not None else None
    except Exception as error:
        text = "maintenance failed; trying again in %s s"
        log(ERROR, text, RECOVERY, error=error)
        return RECOVERY


_OF_PROCESS: dict[tuple[str, int], MaintenanceThread] = {}


def maintenance_thread(kind: str = "maintenance") -> MaintenanceThread:
    """Return the one of this process: threads and locks do not survive a fork."""
    key = kind, process()
    return _OF_PROCESS.get(key) or _OF_PROCESS.setdefault(key, MaintenanceThread(kind))
