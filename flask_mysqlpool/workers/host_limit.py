"""How many connections all processes of a host may have together.

A semaphore over processes that no crash can upset: one byte of a file stands for each
connection, and whoever has locked the byte may have it. The locks are POSIX record
locks, which end with their process, however it ends, and which a forked child does not
inherit. Within one process they do not exclude each other, and they all end when the
process closes the file once; so a process opens it once, and keeps account itself.

Further on in the file each process notes, in a place that is locked likewise, what it
could use. So all know the needs of all others from one short read.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from ..errors import PoolError
from ..pool.driver.process import process
from .records import is_at, open_shared
from .status_dir import StatusDir

#: Seconds that the server has to notice that a process was killed, whose connection is
#: one too many until then.
AFTER_DEATH = 0.5

#: What the byte holds, which its lock does not tell: whether its last owner closed the
#: connection.
_TAKEN, _GIVEN_BACK = b"1", b"0"

#: Seconds after which what others need, and do not repeat, is disregarded.
STALE = 2.0

#: Where the needs are in the file, and what each is: the moments of the note and of the
#: claim, the demand, and whether it is short of connections.
_NEEDS, _NEED = 1 << 20, struct.Struct("<ddII")


class Slot:
    """The right to one connection; given back with the last reference to it."""

    def __init__(self, file: _File, number: int) -> None:
        self._file = file
        self._number = number

    def __del__(self) -> None:
        self._file.give_back(self._number)


class _File:
    """The file of one budget, as this process has it open."""

    def __init__(self, board: StatusDir, name: str) -> None:
        self._board, self._name = board, name
        self._path = os.path.join(board.path, name)
        #: The file; and those that it was before, if it was removed, or moved.
        self._fds = [self._open()]
        #: The one in which all that is locked is locked.
        self._current = self._fds[0]
        self._pid = process()
        #: What this process has locked. No lock of its own: a slot may be given back
        #: by a finalizer, and each step here is one atomic operation of a dict.
        self._locked: dict[int, object] = {}
        #: What of that is still to be unlocked, because it failed.
        self._owed: deque[int] = deque()

    def _open(self) -> int:
        with self._board.opened(create=True) as folder:
            return open_shared(folder, self._name)

    def reopen_if_deleted(self) -> None:
        """If the file was removed, lock the same bytes of a new one.

        So does every other process, within a second. Until then, whoever takes another
        one has to lock it in the old file, too.
        """
        if not is_at(self._path, self._fds[-1]):
            self._fds.append(self._open())
        # If that fails on the way, it is tried again.
        if self._current != self._fds[-1]:
            newest = self._fds[-1]
            for number in tuple(self._locked):
                self._lock_everywhere(number)
            self._current = newest
        for _ in range(len(self._owed)):
            with suppress(IndexError):  # of another thread that does the same
                self.unlock(self._owed.popleft())

    def lock(self, number: int) -> bool:
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
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def unlock(self, number: int) -> None:
        """Unlock it now, or at the next :meth:`reopen_if_deleted`. Never raises."""
        if self._pid != process():
            return
        try:
            for fd in self._fds:
                fcntl.lockf(fd, fcntl.LOCK_UN, 1, number)
        except BaseException as error:
            self._owed.append(number)
            if not isinstance(error, OSError):
                raise
        else:
            del self._locked[number]

    def take(self, number: int) -> Slot | None:
        """Lock the byte of a connection, once that of its last owner has ended."""
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
        """Unlock it after its connection was closed."""
        if self._pid == process():
            try:
                with suppress(OSError):
                    os.pwrite(self._fds[-1], _GIVEN_BACK, number)
            finally:
                self.unlock(number)

    def find_place(self) -> int:
        """Lock a place for the needs of a pool."""
        number = _NEEDS
        while not self.lock(number):
            number += _NEED.size
        return number

    def note(self, place: int, *need: Any) -> None:
        os.pwrite(self._fds[-1], _NEED.pack(*need), place)

    def needs(self) -> Iterator[tuple[int, tuple[float, float, int, int]]]:
        """What is noted in each place."""
        fd = self._fds[-1]
        count, _ = divmod(os.fstat(fd).st_size - _NEEDS, _NEED.size)
        data = os.pread(fd, max(count, 0) * _NEED.size, _NEEDS)
        for n, need in enumerate(_NEED.iter_unpack(data)):
            yield _NEEDS + n * _NEED.size, need


#: Never closed, and never forgotten: see above.
_FILES: dict[tuple[str, int], _File] = {}


class HostLimit:
    """At most ``size`` slots at once, over all processes that use this name."""

    def __init__(self, board: StatusDir, name: str, size: int) -> None:
        self.size = size
        self._board, self._name = board, name
        self._path = os.path.realpath(os.path.join(board.path, name))
        #: The place for what this process needs, and its file.
        self._place: tuple[_File, int] | None = None

    def take(self) -> Slot | None:
        """A slot, or None if all are taken.

        Raises :exc:`~.errors.PoolError` if the file cannot be used: a limit that
        cannot be kept is none.
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
        """Note what a pool needs; its fair share, or None while no other is short.

        It could use ``demand`` connections, the first of them ``since`` that moment.
        """
        file, now = self._file(), time.time()
        file.reopen_if_deleted()
        if self._place is None or self._place[0] is not file:
            self._place = file, file.find_place()
        own = self._place[1]
        file.note(own, now, since, demand, short)
        needs = {
            place: need for place, need in file.needs() if abs(now - need[0]) < STALE
        }
        if not any(need[3] for place, need in needs.items() if place != own):
            return None
        claims = [Demand(need[1], place, need[2]) for place, need in needs.items()]
        return fair_shares(self.size, claims)[own]

    def leave(self) -> None:
        """Need nothing any more. Never raises."""
        place, self._place = self._place, None
        if place is not None:
            file, own = place
            with suppress(OSError):
                file.note(own, 0.0, 0.0, 0, False)
            file.unlock(own)

    def _file(self) -> _File:
        key = self._path, process()
        file = _FILES.get(key)
        if file is None:
            # If two threads come here at once, the one that loses leaves it open, too.
            file = _FILES.setdefault(key, _File(self._board, self._name))
        return file


class Demand(NamedTuple):
    """What one process would like to have."""

    #: Since when the first of its checkouts waits; ``inf`` if none does.
    since: float
    worker: int
    #: Connections that it could use right now.
    demand: int


def fair_shares(size: int, claims: Iterable[Demand]) -> dict[int, int]:
    """So many connections for each: nobody has two before all that need one have it.

    Who has been waiting for longest comes first, so that those take turns who cannot
    all have one.
    """
    order = sorted(claims)
    shares = {claim.worker: 0 for claim in order}
    while unmet := [claim for claim in order if shares[claim.worker] < claim.demand]:
        for claim in unmet[:size]:
            shares[claim.worker] += 1
        size -= len(unmet[:size])
        if size <= 0:
            break
    return shares
