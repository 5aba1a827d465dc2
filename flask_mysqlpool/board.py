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

import errno
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
#: Seconds that a command waits until others have given their orders.
_TURN = 3.0
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
    #: When the worker of a sheet last showed that it is alive, by the sheet's id.
    heard: dict[str, float] = field(default_factory=dict)
    #: What could not be read, one sentence each.
    problems: list[str] = field(default_factory=list)
    #: Those of them that hide a live worker.
    hidden: list[str] = field(default_factory=list)


class Unusable(PermissionError):
    """The folder is not used, although it is there; ``mend`` is what would help."""

    def __init__(self, path: str, fault: str, mend: str) -> None:
        super().__init__(errno.EACCES, fault, path)
        self.mend = mend


class _Hidden(ValueError):
    """The sheet of a live worker cannot be read."""


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
            _make_folder(Path(self.path), 0o700)
        folder = self._open()
        try:
            self._distrust(os.fstat(folder))
            yield folder
        finally:
            os.close(folder)

    def _open(self) -> int:
        try:
            return os.open(self.path, _FOLDER)
        except OSError as error:
            if not os.path.islink(self.path):
                raise
            mend = "remove it, or set STATUS_DIR to the folder that it leads to"
            raise Unusable(self.path, "is a symbolic link", mend) from error

    def _distrust(self, about: os.stat_result) -> None:
        """Refuse a folder that is, or may be, somebody else's."""
        if about.st_uid != os.geteuid() and os.geteuid() != 0:
            owner = _user(about.st_uid)
            mend = f"run this as {owner}, or chown the folder to the site's user"
            raise Unusable(self.path, f"belongs to {owner}", mend)
        if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mend = f"chmod go-w {self.path}"
            raise Unusable(self.path, "can be written to by others", mend)

    def place(self) -> str:
        """The folder, and whose it is, in words."""
        try:
            owner = _user(os.stat(self.path, follow_symlinks=False).st_uid)
        except FileNotFoundError:
            return f"{self.path}, which does not exist"
        return f"{self.path}, which belongs to {owner}"

    # Sheets

    def read(self) -> Reading:
        """All sheets of live workers. Those of dead ones are removed."""
        reading = Reading()
        inodes: set[int] = set()
        with self.opened() as folder:
            owner = os.fstat(folder).st_uid
            for name in sorted(os.listdir(folder)):
                try:
                    if name.endswith(SHEET):
                        _add_sheet(reading, folder, name, owner, inodes)
                    elif name.endswith(NEW):
                        _remove_left_over(folder, name)
                    elif not name.startswith((ORDERS, BUDGET)):
                        raise ValueError("not ours")
                except FileNotFoundError:
                    continue  # its worker has ended meanwhile
                except (OSError, ValueError) as error:
                    reason = getattr(error, "strerror", None) or error
                    reading.problems.append(f"{name}: {reason}")
                    if isinstance(error, _Hidden):
                        reading.hidden.append(f"{name}: {reason}")
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
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError("damaged") from error
            self._orders = version, known
        return self._orders[1]

    def order(self, pool: str, change: Callable[[Orders], Orders]) -> Orders:
        """Change what is ordered for this pool; what it is then."""
        with self.opened(create=True) as folder, _locked(folder, self.path):
            self._orders = None, {}
            try:
                orders = dict(self._read_orders(folder))
            except (OSError, ValueError):
                orders = {}  # no longer in the way of new ones
            orders[pool] = change(orders.get(pool, Orders()))
            self._replace_orders(folder, orders)
        return orders[pool]

    def _replace_orders(self, folder: int, orders: Mapping[str, Orders]) -> None:
        name = secrets.token_hex(8) + NEW
        fd = _create(folder, name)
        try:
            _belong_to(os.fstat(folder), fd)
            _write(fd, {pool: order._asdict() for pool, order in orders.items()})
            os.replace(name, ORDERS, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException as error:
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
            if isinstance(error, IsADirectoryError):
                error.filename = os.path.join(self.path, ORDERS)
                error.strerror = "is a folder, and in the way of orders; remove it"
            raise
        finally:
            os.close(fd)


class Sheet:
    """What one pool of this process says of itself."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._fd: int | None = None
        self._name = ""
        #: Bytes that were written; 0 if the last attempt failed.
        self._size = 0
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
            if self._fd is not None and not self._is_there(self._fd):
                self._close()
            self._size = 0
            if self._fd is None:
                self._create(content)
            else:
                self._size = _write(self._fd, content)

    def touch(self) -> bool:
        """Show that the process is alive; False if there is nothing left to show."""
        with self._lock:
            fd = self._fd
            if self._withdrawn or fd is None:
                return self._withdrawn
            if not 0 < self._size <= os.fstat(fd).st_size or not self._is_there(fd):
                return False
            os.utime(fd)
            return True

    def _is_there(self, fd: int) -> bool:
        """Whether nobody has removed it, nor moved the folder away."""
        path = os.path.join(self._board.path, self._name)
        try:
            return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
        except FileNotFoundError:
            return False

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
                size = _write(fd, content)
                os.rename(
                    name + NEW, name + SHEET, src_dir_fd=folder, dst_dir_fd=folder
                )
            except BaseException:
                with suppress(OSError):
                    os.unlink(name + NEW, dir_fd=folder)
                self._close()
                raise
        self._name, self._size = name + SHEET, size

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


_FOLDER = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_FOLDER |= os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)


def _make_folder(path: Path, mode: int) -> None:
    """Make it, and what it lies in; the owner of what was there owns it all."""
    if not path.parent.exists():
        _make_folder(path.parent, 0o777)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    folder = os.open(path, _FOLDER)
    try:
        _belong_to(os.stat(path.parent), folder)
    finally:
        os.close(folder)


def open_shared(folder: int, name: str) -> int:
    """A file that any process of the site may write to, made if need be."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        _belong_to(os.fstat(folder), fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _create(folder: int, name: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=folder)


def _write(fd: int, content: Mapping[str, Any]) -> int:
    """Write it over what there was; how many bytes it has."""
    data = json.dumps(content, separators=(",", ":")).encode()
    data = b"%s %08x %d\n%s" % (_MAGIC, zlib.crc32(data), len(data), data)
    size = -(-len(data) // _PIECE) * _PIECE
    if os.fstat(fd).st_size < size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    return os.pwrite(fd, data, 0)


def _add_sheet(
    reading: Reading, folder: int, name: str, owner: int, inodes: set[int]
) -> None:
    """Read a sheet; or remove it, if its process is dead."""
    fd = _open(folder, name)
    try:
        about = os.fstat(fd)
        if not _is_locked(fd):
            _check_owner(about, {owner})
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
        elif about.st_ino not in inodes:  # or else it has two names
            inodes.add(about.st_ino)
            sheet = _read_sheet(fd, about, owner)
            id = name.removesuffix(SHEET)
            reading.sheets.append({"id": id, **sheet})
            reading.heard[id] = about.st_mtime
    finally:
        os.close(fd)


def _read_sheet(fd: int, about: os.stat_result, owner: int) -> dict[str, Any]:
    try:
        _check_owner(about, {owner})
        return _parse(fd)
    except ValueError as error:
        raise _Hidden(f"a worker that cannot be read: {error}") from error


def _load(folder: int, name: str, owners: set[int]) -> dict[str, Any]:
    fd = _open(folder, name)
    try:
        _check_owner(os.fstat(fd), owners)
        return _parse(fd)
    finally:
        os.close(fd)


def _open(folder: int, name: str) -> int:
    """Open a file, and nothing else, for reading."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("a symbolic link") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError("not a file")
    return fd


def _check_owner(about: os.stat_result, owners: set[int]) -> None:
    if about.st_uid not in owners:
        raise ValueError(f"it belongs to {_user(about.st_uid)}")


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
def _locked(folder: int, path: str) -> Iterator[None]:
    """One command at a time."""
    fd = open_shared(folder, ORDERS + LOCK)
    try:
        _lock(fd, os.path.join(path, ORDERS + LOCK))
        yield
    finally:
        os.close(fd)


def _lock(fd: int, path: str) -> None:
    deadline = time.monotonic() + _TURN
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                text = "another process keeps it locked"
                raise BlockingIOError(error.errno, text, path) from error
        time.sleep(_PAUSE)


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
