"""A limit to the connections that all processes of a host have together.

It is a crash-safe semaphore over processes: each byte of a file stands for one
connection, and the process that has locked the byte may open it. The locks are POSIX
record locks, which end with their process, however it ends, and which a forked child
does not inherit. Within one process they do not exclude each other, and closing any
descriptor of the file ends them all: so a process opens it once, never closes it, and
keeps a table of what it has locked.

Further on in the file each process publishes its demand, in a place that it has locked
likewise. So every process learns the demands of all others from one short read.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from ..errors import PoolError
from ..pool.driver.process import process
from .records import is_at, lock_byte, open_shared, unlock_byte
from .status_dir import StatusDir

#: Seconds in which the server notices that a process was killed; until then, the slot's
#: old connection counts, too.
AFTER_DEATH = 0.5

#: Values of a slot's byte: whether its last owner has closed the connection, which the
#: lock does not tell.
_TAKEN, _GIVEN_BACK = b"1", b"0"

#: Seconds after which a demand that was not published again is ignored.
STALE = 2.0

#: Where the demands begin in the file, and the layout of each: when it was published,
#: since when its first waiter waits, its size, and whether it met the host's limit.
_DEMANDS, _DEMAND = 1 << 20, struct.Struct("<ddII")
#: The number of demands that are read, at most: the file may be sparse, and huge.
_MOST = 1 << 15
#: Where in a demand is the byte that tells that it met the limit.
_SHORT = 20


class Slot:
    """The right to one connection; given back when its last reference goes."""

    def __init__(self, file: _File, number: int) -> None:
        self._file = file
        self._number = number

    def __del__(self) -> None:
        self._file.give_back(self._number)


class _File:
    """The file of one limit, as this process has it open."""

    def __init__(self, status_dir: StatusDir, name: str) -> None:
        self._status_dir, self._name = status_dir, name
        self._path = os.path.join(status_dir.path, name)
        #: The file, after its predecessors, which were removed or renamed.
        self._fds = [self._open()]
        #: The newest file in which every slot of this process is locked.
        self._current = self._fds[0]
        self._pid = process()
        #: The bytes that this process has locked. A finalizer may give back a slot, so
        #: there is no mutex: each step is one atomic operation of the dict.
        self._locked: dict[int, object] = {}
        #: Bytes that could not be unlocked, to be tried again.
        self._to_unlock: deque[int] = deque()

    def _open(self) -> int:
        with self._status_dir.opened(create=True) as folder:
            return open_shared(folder, self._name)

    def reopen_if_deleted(self) -> None:
        """If the file was removed, lock the same bytes of a new one.

        Every other process does so within a second. Until then, a new slot has to be
        locked in the old file, too.
        """
        if not is_at(self._path, self._fds[-1]):
            self._fds.append(self._open())
        # If that fails half-way, the next call tries again.
        if self._current != self._fds[-1]:
            newest = self._fds[-1]
            for number in tuple(self._locked):
                self._lock_everywhere(number)
            self._current = newest
        for _ in range(len(self._to_unlock)):
            with suppress(IndexError):  # another thread does the same
                self.unlock(self._to_unlock.popleft())

    def lock(self, number: int) -> bool:
        """Lock a byte; False if this process or another has it locked."""
        token = object()
        if self._locked.setdefault(number, token) is not token:
            return False
        locked = False
        try:
            locked = self._lock_everywhere(number)
        finally:
            if not locked:
                self.unlock(number)
        return locked

    def _lock_everywhere(self, number: int) -> bool:
        try:
            for fd in self._fds:
                lock_byte(fd, number)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def unlock(self, number: int) -> None:
        """Unlock a byte now, or in the next :meth:`reopen_if_deleted`. Never raises."""
        if self._pid != process():
            return
        try:
            for fd in self._fds:
                unlock_byte(fd, number)
        except BaseException as error:
            self._to_unlock.append(number)
            if not isinstance(error, OSError):
                raise
        else:
            del self._locked[number]

    def take(self, number: int) -> Slot | None:
        """Take a slot; wait for the old connection if its owner was killed."""
        if not self.lock(number):
            return None
        try:
            if os.pread(self._fds[-1], 1, number) == _TAKEN:
                time.sleep(AFTER_DEATH)
            os.pwrite(self._fds[-1], _TAKEN, number)
            return Slot(self, number)
        except BaseException:
            self.unlock(number)
            raise

    def give_back(self, number: int) -> None:
        """Free a slot after its connection was closed."""
        if self._pid == process():
            try:
                with suppress(OSError):
                    os.pwrite(self._fds[-1], _GIVEN_BACK, number)
            finally:
                self.unlock(number)

    def find_place(self) -> int:
        """Lock a place in which to publish the demand of a pool."""
        number = _DEMANDS
        while not self.lock(number):
            number += _DEMAND.size
        return number

    def publish(self, place: int, *demand: Any) -> None:
        os.pwrite(self._fds[-1], _DEMAND.pack(*demand), place)

    def demands(self) -> dict[int, tuple[float, float, int, int]]:
        """Read the demand in each place; nothing while no process is short."""
        fd = self._fds[-1]
        count, _ = divmod(os.fstat(fd).st_size - _DEMANDS, _DEMAND.size)
        data = os.pread(fd, min(max(count, 0), _MOST) * _DEMAND.size, _DEMANDS)
        if not any(data[_SHORT :: _DEMAND.size]):
            return {}
        places = range(_DEMANDS, _DEMANDS + len(data), _DEMAND.size)
        return dict(zip(places, _DEMAND.iter_unpack(data), strict=True))


#: By path and process. Closing a file would end its locks.
_FILES: dict[tuple[str, int], _File] = {}


class HostLimit:
    """At most ``size`` slots at once, over all processes that use this name."""

    def __init__(self, status_dir: StatusDir, name: str, size: int) -> None:
        self.size = size
        self._status_dir, self._name = status_dir, name
        self._path = os.path.realpath(os.path.join(status_dir.path, name))
        #: The place of this process's demand, and its file.
        self._place: tuple[_File, int] | None = None
        #: Whether the demand that was published last is above zero.
        self._demanded = False

    def take(self) -> Slot | None:
        """Take a slot; None if all are taken.

        Raises :exc:`~.errors.PoolError` if the file cannot be used: without it, the
        limit could be exceeded.
        """
        try:
            file = self._file()
            file.reopen_if_deleted()
            for number in range(self.size):
                if (slot := file.take(number)) is not None:
                    return slot
        except OSError as error:
            raise PoolError(f"MAX_HOST_CONNECTIONS cannot be kept: {error}") from error
        return None

    def share(self, since: float, demand: int, short: bool) -> int | None:
        """Publish a pool's demand, and return its fair share of the slots.

        The pool could use ``demand`` connections, and its first waiter waits since the
        moment ``since``. The share is None while no other process lacks slots.
        """
        file, now = self._file(), time.time()
        file.reopen_if_deleted()
        if self._place is None or self._place[0] is not file:
            self._place = file, file.find_place()
        own, mine = self._place[1], (now, since, demand, int(short))
        if demand or self._demanded:
            file.publish(own, *mine)
        self._demanded = demand > 0
        found = {p: d for p, d in file.demands().items() if abs(now - d[0]) < STALE}
        if not any(d[3] for place, d in found.items() if place != own):
            return None
        found[own] = mine
        demands = [Demand(d[1], place, d[2]) for place, d in found.items()]
        return fair_shares(self.size, demands)[own]

    def leave(self) -> None:
        """Withdraw the demand of this process. Never raises."""
        place, self._place = self._place, None
        if place is not None:
            file, own = place
            with suppress(OSError):
                file.publish(own, 0.0, 0.0, 0, False)
            file.unlock(own)

    def _file(self) -> _File:
        key = self._path, process()
        file = _FILES.get(key)
        if file is None:
            # Two threads may open it at once; the loser's stays open, too.
            file = _FILES.setdefault(key, _File(self._status_dir, self._name))
        return file


class Demand(NamedTuple):
    """The connections that one process could use."""

    #: Since when its first checkout waits; ``inf`` without one.
    since: float
    worker: int
    #: The number of connections that it could use now.
    demand: int


def fair_shares(size: int, demands: Iterable[Demand]) -> dict[int, int]:
    """Divide ``size`` connections in rounds of one for each process with demand.

    The longest waiting process comes first, so that processes take turns when there is
    not one connection for each.
    """
    order = sorted(demands)
    shares = {each.worker: 0 for each in order}
    while unmet := [each for each in order if shares[each.worker] < each.demand]:
        for each in unmet[:size]:
            shares[each.worker] += 1
        size -= len(unmet[:size])
        if size <= 0:
            break
    return shares
