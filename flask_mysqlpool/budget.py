"""How many connections all processes of a host may have together.

A semaphore over processes that no crash can upset: one byte of a file stands for each
connection, and whoever has locked the byte may have it. The locks are POSIX record
locks, which end with their process, however it ends, and which a forked child does not
inherit. Within one process they do not exclude each other, and they all end when the
process closes the file once; so a process opens it once, and keeps account itself.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from .board import Board
from .errors import PoolError
from .files import open_shared
from .process import process

#: Seconds that the server has to notice that a process was killed, whose connection is
#: one too many until then.
AFTER_DEATH = 0.5

#: What the byte holds, which its lock does not tell: whether its last owner closed the
#: connection.
_TAKEN, _GIVEN_BACK = b"1", b"0"


class Slot:
    """The right to one connection; given back with the last reference to it."""

    def __init__(self, file: _File, number: int) -> None:
        self._file = file
        self._number = number

    def __del__(self) -> None:
        self._file.give_back(self._number)


class _File:
    """The file of one budget, as this process has it open."""

    def __init__(self, board: Board, name: str) -> None:
        self._board, self._name = board, name
        #: The file; and those that it was before, if somebody has removed it.
        self._fds = [self._open()]
        #: The one in which all that is locked is locked.
        self._current = self._fds[0]
        self._pid = process()
        #: What this process has locked. No lock of its own: a slot may be given back
        #: by a finalizer, and each step here is one atomic operation of a dict.
        self._locked: dict[int, object] = {}

    def _open(self) -> int:
        with self._board.opened(create=True) as folder:
            return open_shared(folder, self._name)

    def come_back(self) -> None:
        """If somebody has removed the file, lock the same bytes of a new one.

        So does every other process, within a second. Until then, whoever takes another
        one has to lock it in the old file, too.
        """
        if os.fstat(self._fds[-1]).st_nlink == 0:
            self._fds.append(self._open())
        # If that fails on the way, it is tried again.
        if self._current != self._fds[-1]:
            newest = self._fds[-1]
            for number in tuple(self._locked):
                self._lock_everywhere(number)
            self._current = newest

    def lock(self, number: int) -> bool:
        token = object()
        if self._locked.setdefault(number, token) is not token:
            return False
        try:
            locked = self._lock_everywhere(number)
        except OSError:
            del self._locked[number]
            raise
        if not locked:
            self.unlock(number)
            return False
        if os.pread(self._fds[-1], 1, number) == _TAKEN:
            time.sleep(AFTER_DEATH)
        os.pwrite(self._fds[-1], _TAKEN, number)
        return True

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
        if self._pid == process():
            for fd in self._fds:
                fcntl.lockf(fd, fcntl.LOCK_UN, 1, number)
            del self._locked[number]

    def give_back(self, number: int) -> None:
        """Unlock it after its connection was closed."""
        if self._pid == process():
            with suppress(OSError):
                os.pwrite(self._fds[-1], _GIVEN_BACK, number)
            self.unlock(number)


#: Never closed, and never forgotten: see above.
_FILES: dict[tuple[str, int], _File] = {}


class Budget:
    """At most ``size`` slots at once, over all processes that use this name."""

    def __init__(self, board: Board, name: str, size: int) -> None:
        self.size = size
        self._board, self._name = board, name
        self._path = os.path.realpath(os.path.join(board.path, name))

    def take(self) -> Slot | None:
        """A slot, or None if all are taken.

        Raises :exc:`~.errors.PoolError` if the file cannot be used: a limit that
        cannot be kept is none.
        """
        try:
            file = self._file()
            file.come_back()
            for number in range(self.size):
                if file.lock(number):
                    return Slot(file, number)
        except OSError as error:
            raise PoolError(f"MAX_HOST_CONNECTIONS cannot be kept: {error}") from error
        return None

    def come_back(self) -> None:
        """If somebody has removed the file, hold the same places in a new one."""
        file = _FILES.get((self._path, process()))
        if file is not None:
            file.come_back()

    def _file(self) -> _File:
        key = self._path, process()
        file = _FILES.get(key)
        if file is None:
            # If two threads come here at once, the one that loses leaves it open, too.
            file = _FILES.setdefault(key, _File(self._board, self._name))
        return file


class Claim(NamedTuple):
    """What one process would like to have."""

    #: Since when the first of its checkouts waits, or now if none does.
    since: float
    worker: str
    #: Connections that it could use right now.
    demand: int


def fair_shares(size: int, claims: Iterable[Claim]) -> dict[str, int]:
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
