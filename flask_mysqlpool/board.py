"""What worker processes publish and obey: files, in a folder that is nobody else's.

A *sheet* is the file of one pool in one process. Its owner holds an ``flock`` on it for
as long as the process lives, however it ends; so a sheet that can be locked is that of
a dead process, and whoever finds it removes it. Its name is random, for process ids
are used again. The *orders* are one file that commands replace and workers read.

A sheet is overwritten where it is, which is much cheaper than to replace it, and a
reader can meet it half written; a checksum tells, and then the reader looks again. The
space is allocated beforehand, so that a full disk leaves the last state readable.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SHEET = ".worker"
NEW = ".new"
ORDERS = "orders"
BUDGET = "budget-"
LOCK = ".lock"

_MAGIC = b"mysqlpool1"
#: How often a reader looks at a sheet that is not in order, and seconds in between.
_LOOKS, _PAUSE = 5, 0.002
#: Sheets are allocated in pieces of so many bytes, and not read if larger than this.
_PIECE, _MOST = 4096, 1 << 22
#: Seconds that the end of a process waits for a disk that hangs.
_PATIENCE = 1.0
#: Seconds after which something half made is left over from a crash.
_LEFT_OVER = 60.0


class Orders(NamedTuple):
    """What all workers are to do with one pool."""

    #: Connections from before this are to be replaced; None if nobody ever reset.
    generation: int = 0
    paused: bool = False


@dataclass(frozen=True)
class Reading:
    """What was found on the board."""

    sheets: list[dict[str, Any]] = field(default_factory=list)
    #: What could not be read, one sentence each.
    problems: list[str] = field(default_factory=list)


class Board:
    """One folder. Every method raises :exc:`OSError` if it cannot be used."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # A slash at the end would have a symbolic link followed.
        self.path = os.fspath(path).rstrip("/") or "/"
        self._orders: tuple[object, dict[str, Orders]] = (None, {})

    @contextmanager
    def opened(self, create: bool = False) -> Iterator[int]:
        """A descriptor of the folder; whoever could write there is trusted."""
        if fcntl is None:
            raise OSError("not available on Windows")
        if create:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.mkdir(self.path, 0o700)
            except FileExistsError:
                create = False
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = os.open(self.path, flags)
        try:
            if create:
                _belong_to(os.stat(Path(self.path).parent), folder)
            about = os.fstat(folder)
            if about.st_uid != os.geteuid() and os.geteuid() != 0:
                raise PermissionError(f"{self.path} belongs to {_user(about.st_uid)}")
            if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise PermissionError(f"{self.path} can be written to by others")
            yield folder
        finally:
            os.close(folder)

    # Sheets

    def read(self) -> Reading:
        """All sheets of live workers. Those of dead ones are removed."""
        reading = Reading()
        with self.opened() as folder:
            owner = os.fstat(folder).st_uid
            for name in sorted(os.listdir(folder)):
                try:
                    if name.endswith(SHEET):
                        sheet = _read_sheet(folder, name, owner)
                        if sheet is not None:
                            reading.sheets.append({"id": name[: -len(SHEET)], **sheet})
                    elif name.endswith(NEW):
                        _remove_left_over(folder, name)
                    elif not name.startswith((ORDERS, BUDGET)):
                        raise ValueError("not ours")
                except FileNotFoundError:
                    continue  # its worker has ended meanwhile
                except (OSError, ValueError) as error:
                    reason = getattr(error, "strerror", None) or error
                    reading.problems.append(f"{name}: {reason}")
        return reading

    # Orders

    def orders(self, pool: str) -> Orders:
        """What is ordered for this pool."""
        with self.opened() as folder:
            return self._read_orders(folder).get(pool, Orders())

    def _read_orders(self, folder: int) -> dict[str, Orders]:
        """All orders; read again only if somebody has replaced them."""
        owners = {os.fstat(folder).st_uid, 0}
        try:
            about = os.stat(ORDERS, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return {}
        version = about.st_ino, about.st_mtime_ns, about.st_ctime_ns
        if version != self._orders[0]:
            content = _load(folder, ORDERS, owners)
            try:
                known = {
                    pool: Orders(int(orders["generation"]), bool(orders["paused"]))
                    for pool, orders in content.items()
                }
            except (KeyError, TypeError) as error:
                raise ValueError("damaged") from error
            self._orders = version, known
        return self._orders[1]

    def order(self, pool: str, change: Callable[[Orders], Orders]) -> Orders:
        """Change what is ordered for this pool; what it is then."""
        with self.opened(create=True) as folder:
            with _locked(folder):
                self._orders = None, {}
                try:
                    orders = dict(self._read_orders(folder))
                except (OSError, ValueError):
                    orders = {}  # no longer in the way of new ones
                orders[pool] = change(orders.get(pool, Orders()))
                plain = {name: order._asdict() for name, order in orders.items()}
                name = secrets.token_hex(8) + NEW
                fd = _create(folder, name)
                try:
                    _belong_to(os.fstat(folder), fd)
                    _write(fd, plain)
                finally:
                    os.close(fd)
                os.replace(name, ORDERS, src_dir_fd=folder, dst_dir_fd=folder)
        return orders[pool]


class Sheet:
    """What one pool of this process says of itself."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._fd: int | None = None
        self._name = ""
        self._withdrawn = False
        # Another thread that closed the file in the middle of a write could have the
        # number go to a file of its own, and that be written to.
        self._lock = threading.Lock()
        _SHEETS.add(self)

    def write(self, content: Mapping[str, Any]) -> None:
        """Publish this in place of what was published before."""
        with self._lock:
            if self._withdrawn:
                return
            if self._fd is not None and not os.fstat(self._fd).st_nlink:
                self._close()  # somebody has removed it
            if self._fd is None:
                self._create(content)
            else:
                _write(self._fd, content)

    def _create(self, content: Mapping[str, Any]) -> None:
        name = secrets.token_hex(8)
        with self._board.opened(create=True) as folder:
            if os.fstat(folder).st_uid != os.geteuid():
                raise PermissionError(f"{self._board.path} belongs to somebody else")
            # Noted at once, for a fork in another thread, whose child has to close it.
            fd = self._fd = _create(folder, name + NEW)
            try:
                # Locked and filled before anybody can take it for that of a dead one.
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _write(fd, content)
                os.rename(
                    name + NEW, name + SHEET, src_dir_fd=folder, dst_dir_fd=folder
                )
            except BaseException:
                with suppress(OSError):
                    os.unlink(name + NEW, dir_fd=folder)
                self._close()
                raise
        self._name = name + SHEET

    @property
    def id(self) -> str:
        """What a reader knows it by."""
        return self._name.removesuffix(SHEET)

    def withdraw(self) -> None:
        """Remove it, for good."""
        self._withdrawn = True
        if not self._lock.acquire(timeout=_PATIENCE):
            return  # a disk that hangs; with the process, the lock will go
        try:
            if self._fd is not None:
                with suppress(OSError), self._board.opened() as folder:
                    os.unlink(self._name, dir_fd=folder)
                self._close()
        finally:
            self._lock.release()

    def let_go(self) -> None:
        """In a forked child: leave it to the parent."""
        self._lock = threading.Lock()
        self._close()

    def _close(self) -> None:
        """Close it; which leaves the lock to a parent, as unlocking would not."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


_SHEETS: WeakSet[Sheet] = WeakSet()


def _after_fork() -> None:
    for sheet in list(_SHEETS):
        sheet.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _create(folder: int, name: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=folder)


def _write(fd: int, content: Mapping[str, Any]) -> None:
    data = json.dumps(content, separators=(",", ":")).encode()
    data = b"%s %08x %d\n%s" % (_MAGIC, zlib.crc32(data), len(data), data)
    size = -(-len(data) // _PIECE) * _PIECE
    if os.fstat(fd).st_size < size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    os.pwrite(fd, data, 0)


def _read_sheet(folder: int, name: str, owner: int) -> dict[str, Any] | None:
    """What is on a sheet; None, and the sheet gone, if its process is dead."""
    fd = _open(folder, name, {owner})
    try:
        if _is_locked(fd):
            return _parse(fd)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        return None
    finally:
        os.close(fd)


def _load(folder: int, name: str, owners: set[int]) -> dict[str, Any]:
    fd = _open(folder, name, owners)
    try:
        return _parse(fd)
    finally:
        os.close(fd)


def _open(folder: int, name: str, owners: set[int]) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=folder)
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode) or about.st_uid not in owners:
        os.close(fd)
        raise ValueError("not a file of this site's user")
    return fd


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _parse(fd: int) -> dict[str, Any]:
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE)
        head, _, data = os.pread(fd, _MOST, 0).partition(b"\n")
        try:
            magic, checksum, length = head.split()
            data = data[: int(length)]
            if magic == _MAGIC and int(checksum, 16) == zlib.crc32(data):
                content = json.loads(data)
                if isinstance(content, dict):
                    return content
        except ValueError:
            continue
    raise ValueError("damaged")


def _remove_left_over(folder: int, name: str) -> None:
    about = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if time.time() - about.st_mtime > _LEFT_OVER:
        os.unlink(name, dir_fd=folder)


@contextmanager
def _locked(folder: int) -> Iterator[None]:
    """One command at a time."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(ORDERS + LOCK, flags, 0o600, dir_fd=folder)
    try:
        _belong_to(os.fstat(folder), fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _belong_to(folder: os.stat_result, file: int) -> None:
    """What root makes belongs to whoever has to use it."""
    if os.geteuid() == 0 != folder.st_uid:
        os.fchown(file, folder.st_uid, folder.st_gid)


def _user(number: int) -> str:
    try:
        import pwd

        return pwd.getpwuid(number).pw_name
    except (ImportError, KeyError):
        return f"user {number}"
