"""One thread per process that lets pools do what nobody asks for.

It starts when there is first something to look after, sleeps for good while there
is nothing, and knows of a pool only that it has a ``housekeep()``.
"""

from __future__ import annotations

import logging
import threading
from os import getpid
from queue import Empty, SimpleQueue
from typing import Protocol
from weakref import WeakSet, ref

#: Seconds between two rounds.
INTERVAL = 1.0

log = logging.getLogger(__name__)


class Kept(Protocol):
    def housekeep(self) -> bool: ...


class Housekeeper:
    """Calls ``housekeep()`` of the pools it watches, until they are at rest."""

    def __init__(self) -> None:
        self._mail: SimpleQueue[ref[Kept] | None] = SimpleQueue()
        self._pid = 0

    def watch(self, pool: Kept) -> None:
        """Look after this pool until it says that nothing is left to do."""
        if self._pid != getpid():
            # Threads do not survive a fork, and mail may be half written.
            self._pid, self._mail = getpid(), SimpleQueue()
            threading.Thread(
                target=self._run,
                args=(self._mail,),
                name="mysqlpool-housekeeper",
                daemon=True,
            ).start()
        self._mail.put(ref(pool))

    def nudge(self) -> None:
        """Make a round now. Safe in a finalizer, as ``SimpleQueue.put`` is."""
        self._mail.put(None)

    def _run(self, mail: SimpleQueue[ref[Kept] | None]) -> None:
        pools: WeakSet[Kept] = WeakSet()
        while True:
            try:
                mentioned = mail.get(timeout=INTERVAL if pools else None)
            except Empty:
                mentioned = None
            pool = mentioned() if mentioned is not None else None
            if pool is not None:
                pools.add(pool)
            for pool in tuple(pools):
                if not _has_more_to_do(pool):
                    pools.discard(pool)
            # The thread must not be what keeps a pool alive while it sleeps.
            del pool


def _has_more_to_do(pool: Kept) -> bool:
    """Let the pool do what is due."""
    try:
        return pool.housekeep()
    except Exception:
        log.exception("housekeeping failed; trying again in %s s", INTERVAL)
        return True


HOUSEKEEPER = Housekeeper()
