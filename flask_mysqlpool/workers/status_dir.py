"""What worker processes publish and obey: files, in a folder that is nobody else's.

A *sheet* is the file of one pool in one process. Its owner holds an ``flock`` on it for
as long as the process lives, however it ends; so a sheet that can be locked is that of
a dead process, and whoever finds it buries it: what it has counted goes into the file
*past*. Its name is random, and is what its worker is known by: process ids are used
again, and are the same in several containers. The *orders* are one file that commands
write and workers read. A folder bears our *mark*, or it is empty and gets it.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

from .exited import ExitedCounters
from .records import (
    FOLDER,
    Unusable,
    check_owner,
    create_file,
    is_at,
    is_blank,
    is_locked,
    is_record,
    is_writable,
    load_record,
    locked,
    look_on_the_way,
    make_dir,
    open_file,
    open_shared,
    parse_record,
    remove_left_over,
    user_name,
    write_record,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SHEET = ".worker"
NEW = ".new"
ORDERS = "orders"
PAST = "past"
BUDGET = "budget-"
MARK = ".mysqlpool"

#: The names of our files: sheets and those that become one; and all others.
_SHEET_NAME = re.compile(f"[0-9a-f]{{16}}({re.escape(SHEET)}|{re.escape(NEW)})")
_OTHER_NAME = re.compile(rf"({ORDERS}|{PAST})(\.lock)?|{BUDGET}.+")

#: Seconds that the end of a process waits for a disk that hangs.
_PATIENCE = 1.0


class DesiredState(NamedTuple):
    """What all workers are to do with one pool."""

    #: Connections from before this are to be replaced; 0 if nobody ever reset.
    generation: int = 0
    paused: bool = False
    #: Of a pause: who ordered it, since when it holds, and until when, if it ends.
    by: str = ""
    since: float = 0.0
    until: float | None = None

    def now(self) -> DesiredState:
        """What is left of them: a pause may have come to its end."""
        ended = self.until is not None and self.until <= time.time()
        return DesiredState(self.generation) if ended else self

    def pause(self, by: str, seconds: float | None) -> DesiredState:
        """The same with a pause, of so many seconds if it is to end by itself."""
        now = time.time()
        since = self.since if self.paused else now
        return DesiredState(self.generation, True, by, since, seconds and now + seconds)

    def about(self) -> dict[str, Any]:
        """Who ordered the pause, since when it holds, and until when."""
        return {"by": self.by, "since": self.since, "until": self.until}

    def in_words(self) -> str:
        """Tell of the pause."""
        by = f" by {self.by}" * bool(self.by)
        since = f" since {_moment(self.since)}" * bool(self.since)
        until = f", until {_moment(self.until)}" if self.until is not None else ""
        return f"paused{by}{since}{until}"


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
    #: Sheets whose workers are dead.
    dead: list[str] = field(default_factory=list)


class _Hidden(ValueError):
    """The sheet of a live worker cannot be read."""


class StatusDir:
    """One folder. Every method raises :exc:`OSError` if it cannot be used."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # A slash at the end would have a symbolic link followed.
        self.path = os.fspath(path).rstrip("/") or "/"

    @contextmanager
    def opened(self, create: bool = False) -> Iterator[int]:
        """A descriptor of the folder; whoever could write there is trusted."""
        if fcntl is None:
            raise OSError("not available on Windows")
        folder = self._open(create)
        try:
            self._distrust(os.fstat(folder))
            self._look_for_mark(folder, create)
            yield folder
        except OSError as error:
            # What was opened from here is named with the folder; and so is the folder,
            # where it is all that is known.
            name = error.filename if isinstance(error.filename, str) else ""
            error.filename = os.path.join(self.path, name).rstrip("/")
            raise
        finally:
            os.close(folder)

    def _open(self, create: bool) -> int:
        try:
            if create:
                make_dir(Path(self.path), 0o700)
            return os.open(self.path, FOLDER)
        except OSError as error:
            if isinstance(error, PermissionError):
                look_on_the_way(self.path, os.geteuid())
            if not os.path.islink(self.path):
                raise
            mend = "remove it, or set STATUS_DIR to the folder that it leads to"
            raise Unusable(self.path, "is a symbolic link", mend) from error

    def _distrust(self, about: os.stat_result) -> None:
        """Refuse a folder that is, or may be, somebody else's."""
        open_to_others = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if open_to_others and about.st_mode & stat.S_ISVTX:
            inside = os.path.join(self.path, "<app>")
            mend = f"set STATUS_DIR to a folder inside of it, such as {inside}"
            raise Unusable(self.path, "can be written to by others", mend)
        if about.st_uid != os.geteuid() and os.geteuid() != 0:
            owner = user_name(about.st_uid)
            mend = f"run this as {owner}, or chown the folder to the site's user"
            raise Unusable(self.path, f"belongs to {owner}", mend)
        if open_to_others:
            mend = f"chmod go-w {self.path}"
            raise Unusable(self.path, "can be written to by others", mend)

    def _look_for_mark(self, folder: int, create: bool) -> None:
        """Refuse a folder that is for something else; mark one that is ours."""
        with suppress(FileNotFoundError):
            os.stat(MARK, dir_fd=folder, follow_symlinks=False)
            return
        for name in sorted(os.listdir(folder)):
            hidden = name.startswith(".") or name == "lost+found"
            if not hidden and not _is_ours(folder, name):
                raise Unusable(
                    self.path,
                    f"holds other things, such as {name!r}",
                    f"set STATUS_DIR to a folder of its own, such as {self.path}/pool",
                )
        if create:
            # On a full disk it does without, as long as there is nothing else in it.
            with suppress(OSError):
                os.close(open_shared(folder, MARK))

    def place(self) -> str:
        """The folder, and whose it is, in words."""
        try:
            owner = user_name(os.stat(self.path, follow_symlinks=False).st_uid)
        except FileNotFoundError:
            return f"{self.path}, which does not exist"
        return f"{self.path}, which belongs to {owner}"

    def try_out(self) -> None:
        """Do what workers do with a file, as far as that leaves nothing behind."""
        self._look_for_room()
        if os.path.lexists(self.path):
            look_on_the_way(self.path, os.stat(self.path).st_uid)
            StatusFile(self).try_out()

    def _look_for_room(self) -> None:
        """Whether this user could make the folder, and write to it; makes nothing."""
        nearest = Path(self.path)
        while not nearest.exists():
            nearest = nearest.parent
        if is_writable(nearest):
            return
        user = user_name(os.geteuid())
        if nearest == Path(self.path):
            raise Unusable(
                self.path, f"cannot be written to by {user}", f"chmod u+rwx {nearest}"
            )
        owner = user_name(nearest.stat().st_uid)
        fault = (
            f"does not exist, and {user} cannot make it: {nearest} belongs to {owner}"
        )
        mend = f"as root, mkdir -p {self.path} and chown it to the site's user, or set"
        mend += " STATUS_DIR to a folder that the site's user can write to"
        raise Unusable(self.path, fault, mend)

    # Sheets

    def read(self) -> Reading:
        """All sheets of live workers. Dead ones are buried."""
        with self.opened() as folder:
            reading = _read(folder)
            if reading.dead:
                # If another process is at it, it may as well do this; and what has
                # counted is kept until it can be done.
                with suppress(OSError), self._past_locked(folder, patience=0.0) as past:
                    _reap(folder, past, reading)
        return reading

    def read_with_past(self) -> tuple[Reading, ExitedCounters]:
        """The same, and what the dead have counted; nobody is counted twice."""
        with (
            self.opened() as folder,
            self._past_locked(folder, patience=_PATIENCE) as past,
        ):
            reading = _read(folder)
            return reading, _reap(folder, past, reading)

    def reap(self, name: str) -> None:
        """Bury a sheet of this process, which is locked; the pool is closed."""
        with (
            self.opened() as folder,
            self._past_locked(folder, patience=_PATIENCE) as past,
        ):
            reading = _read(folder)
            reading.dead.append(name)
            _reap(folder, past, reading)

    def _past_locked(
        self, folder: int, patience: float | None = None
    ) -> AbstractContextManager[int]:
        return locked(folder, self.path, PAST, patience)

    # Desired state

    def orders(self, pool: str) -> DesiredState:
        """What is ordered for this pool."""
        with self.opened() as folder:
            try:
                content = load_record(folder, ORDERS)
            except FileNotFoundError:
                return DesiredState()
            return _orders_of(content, pool).now()

    def update_desired(
        self, pool: str, change: Callable[[DesiredState], DesiredState]
    ) -> DesiredState:
        """Change what is ordered for this pool; what it is then."""
        with (
            self.opened(create=True) as folder,
            locked(folder, self.path, ORDERS) as fd,
        ):
            content: dict[str, Any] = {}
            before = DesiredState()
            with suppress(ValueError):  # what is damaged is not in the way of new ones
                content = {} if is_blank(fd) else parse_record(fd)
                before = _orders_of(content, pool).now()
            after = change(before)
            # Over what was there, whose space is there on a full disk, too.
            write_record(fd, {**content, pool: after._asdict()})
        return after


def _orders_of(content: Mapping[str, Any], pool: str) -> DesiredState:
    """Those for this pool; what is ordered for others may be another version's."""
    if pool not in content:
        return DesiredState()
    try:
        orders = content[pool]
        generation, paused = int(orders["generation"]), bool(orders["paused"])
        if not paused:
            return DesiredState(generation)
        by, since, until = map(orders.get, ("by", "since", "until"))
        until = None if until is None else float(until)
        found = DesiredState(generation, True, str(by or ""), float(since or 0), until)
        found.in_words()
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError("damaged") from error
    return found


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"


class StatusFile:
    """What one pool of this process says of itself."""

    def __init__(self, board: StatusDir) -> None:
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
            if self._fd is not None and not is_at(self._path, self._fd):
                self._close()
            self._size = 0
            if self._fd is None:
                self._create(content)
            else:
                self._size = write_record(self._fd, content)

    def touch(self) -> bool:
        """Show that the process is alive; False if there is nothing left to show."""
        with self._lock:
            fd = self._fd
            if self._withdrawn or fd is None:
                return self._withdrawn
            if not 0 < self._size <= os.fstat(fd).st_size or not is_at(self._path, fd):
                return False
            os.utime(fd)
            return True

    @property
    def _path(self) -> str:
        return os.path.join(self._board.path, self._name)

    def try_out(self) -> None:
        """Do what workers do: make a file, lock it, write and rename it; remove it."""
        with self._lock:
            fd = self._create({}, NEW)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.utime(fd)
            finally:
                self._close()
                os.unlink(self._path)

    def _create(self, content: Mapping[str, Any], suffix: str = SHEET) -> int:
        name = secrets.token_hex(8)
        with self._board.opened(create=True) as folder:
            owner = os.fstat(folder).st_uid
            if suffix == SHEET and owner != os.geteuid():
                fault = f"belongs to {user_name(owner)}, as whom this does not run"
                mend = f"chown it to {user_name(os.geteuid())}, or run the site as its"
                raise Unusable(self._board.path, fault, mend + " owner")
            # Noted at once, for a fork in another thread, whose child has to close it.
            fd = self._fd = create_file(folder, name + NEW)
            try:
                # Locked and filled before anybody can take it for that of a dead one.
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                size = write_record(fd, content)
                os.rename(
                    name + NEW, name + suffix, src_dir_fd=folder, dst_dir_fd=folder
                )
            except BaseException:
                with suppress(OSError):
                    os.unlink(name + NEW, dir_fd=folder)
                self._close()
                raise
        self._name, self._size = name + suffix, size
        return fd

    @property
    def id(self) -> str:
        """What a reader knows it by."""
        return self._name.removesuffix(SHEET)

    def remove(self) -> None:
        """Remove it, for good."""
        self._withdrawn = True
        if not self._lock.acquire(timeout=_PATIENCE):
            return  # a disk that hangs; with the process, the lock will go
        try:
            if self._fd is not None:
                # If that fails, whoever finds the sheet unlocked does it.
                with suppress(OSError):
                    self._board.reap(self._name)
                self._close()
        finally:
            self._lock.release()

    def detach_after_fork(self) -> None:
        """In a forked child: leave it to the parent."""
        self._lock = threading.Lock()
        self._close()

    def _close(self) -> None:
        """Close it; which leaves the lock to a parent, as unlocking would not."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


_SHEETS: WeakSet[StatusFile] = WeakSet()


def _after_fork() -> None:
    for sheet in list(_SHEETS):
        sheet.detach_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _is_ours(folder: int, name: str) -> bool:
    """Whether it is what a version of this package left in a folder without mark."""
    if _OTHER_NAME.fullmatch(name) is None and _SHEET_NAME.fullmatch(name) is None:
        return False
    try:
        fd = open_file(folder, name)
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    try:
        return name.startswith(BUDGET) or (is_record(fd) or is_blank(fd))
    finally:
        os.close(fd)


def _read(folder: int) -> Reading:
    reading = Reading()
    inodes: set[int] = set()
    owner = os.fstat(folder)
    for name in sorted(os.listdir(folder)):
        try:
            if _SHEET_NAME.fullmatch(name) is None:
                if not name.startswith(".") and not _OTHER_NAME.fullmatch(name):
                    raise ValueError("not ours")
            elif name.endswith(SHEET):
                _add_sheet(reading, folder, name, owner, inodes)
            else:
                remove_left_over(folder, name)
        except FileNotFoundError:
            continue  # its worker has ended meanwhile
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            reading.problems.append(f"{name}: {reason}")
            if isinstance(error, _Hidden):
                reading.hidden.append(reading.problems[-1])
    return reading


def _add_sheet(
    reading: Reading,
    folder: int,
    name: str,
    owner: os.stat_result,
    inodes: set[int],
) -> None:
    """Read a sheet, unless its process is dead."""
    try:
        fd = open_file(folder, name)
    except PermissionError as error:
        raise _Hidden(f"perhaps a worker: {error.strerror}") from error
    try:
        about = os.fstat(fd)
        if not _is_locked(fd):
            check_owner(about, owner)
            if not is_record(fd) and not is_blank(fd):
                raise ValueError("not ours")
            reading.dead.append(name)
        elif about.st_ino not in inodes:  # or else it has two names
            inodes.add(about.st_ino)
            sheet = _read_sheet(fd, about, owner)
            id = name.removesuffix(SHEET)
            reading.sheets.append({**sheet, "id": id})
            reading.heard[id] = about.st_mtime
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    try:
        return is_locked(fd)
    except OSError as error:
        raise _Hidden(f"perhaps a worker: {error.strerror}") from error


def _read_sheet(
    fd: int, about: os.stat_result, owner: os.stat_result
) -> dict[str, Any]:
    try:
        check_owner(about, owner)
        return parse_record(fd)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _Hidden(f"a worker that cannot be read: {reason}") from error


def _load_past(past: int) -> ExitedCounters:
    try:
        return ExitedCounters({} if is_blank(past) else parse_record(past))
    except (ValueError, TypeError, AttributeError):
        return ExitedCounters()


def _reap(folder: int, past: int, reading: Reading) -> ExitedCounters:
    """Count in what the dead have counted, and only then remove their sheets."""
    counted = _load_past(past)
    if not reading.dead:
        return counted
    live = {str(sheet.get("site", "")) for sheet in reading.sheets}
    for name in reading.dead:
        with suppress(FileNotFoundError, ValueError):  # or damaged
            sheet = load_record(folder, name)
            counted.reap(name.removesuffix(SHEET), sheet)
            live.add(str(sheet.get("site", "")))
    counted.forget(live, [name.removesuffix(SHEET) for name in os.listdir(folder)])
    # If that fails, they stay, and are counted in again at the next look.
    with suppress(OSError):
        write_record(past, counted.content())
        for name in reading.dead:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
    return counted
