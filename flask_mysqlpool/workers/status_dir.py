"""The directory in which worker processes publish their status and find commands.

It holds a status file for each pool of each worker (see :mod:`.status_file`), and two
files that all processes share: the desired state of the pools, which commands write and
workers apply, and the counters of workers that have exited, which the first process
that notices an exit updates. A marker file tells the directory from one that is used
for something else.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .desired_state import DesiredState
from .exited import ExitedCounters
from .records import (
    FOLDER,
    Unusable,
    check_owner,
    check_searchable,
    is_blank,
    is_locked,
    is_ours,
    is_writable,
    load_record,
    locked,
    make_dir,
    open_file,
    open_shared,
    parse_record,
    reason_of,
    remove_left_over,
    stat_file,
    user_name,
    write_record,
)

#: The ends of the names of status files, and of those that are being created.
STATUS, NEW = ".worker", ".new"
#: The files of the desired state, of exited workers' counters, and of host limits.
DESIRED, EXITED, LIMIT = "orders", "past", "budget-"
#: Tells that the directory is ours.
MARK = ".mysqlpool"

_STATUS_NAME = re.compile(f"[0-9a-f]{{16}}({re.escape(STATUS)}|{re.escape(NEW)})")
_OTHER_NAME = re.compile(rf"({DESIRED}|{EXITED})(\.lock)?|{LIMIT}.+")

#: More seconds than the clock of a file system takes for a tick.
_TICK = 2.0

#: Seconds that a process that exits waits for a disk that hangs.
PATIENCE = 1.0


@dataclass(frozen=True)
class Reading:
    """The content of the directory at one moment."""

    #: The published records of live workers.
    records: list[dict[str, Any]] = field(default_factory=list)
    #: The time of each worker's last heartbeat, by the id of its record.
    heard: dict[str, float] = field(default_factory=dict)
    #: One sentence for each file that could not be read.
    problems: list[str] = field(default_factory=list)
    #: Those of the problems that hide a live worker.
    hidden: list[str] = field(default_factory=list)
    #: Names of status files whose workers have exited.
    exited: list[str] = field(default_factory=list)


class _Hidden(ValueError):
    """The status file of a live worker cannot be read."""


class StatusDir:
    """One directory. Every method raises :exc:`OSError` if it cannot be used."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # A slash at the end would have a symbolic link followed.
        self.path = os.fspath(path).rstrip("/") or "/"
        #: The desired state of all pools, and the stamp that it had when it was read.
        self._desired: tuple[object, dict[str, Any]] = None, {}

    @contextmanager
    def opened(self, create: bool = False) -> Iterator[int]:
        """Open the directory, or refuse it if users other than its owner may write."""
        if os.name == "nt":
            raise OSError("not available on Windows")
        folder = self._open(create)
        try:
            self._check_owner(os.fstat(folder))
            self._check_mark(folder, create)
            yield folder
        except OSError as error:
            # Files were opened relative to the directory: name them with its path.
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
                check_searchable(self.path, os.geteuid())
            if not os.path.islink(self.path):
                raise
            fix = "remove it, or set STATUS_DIR to the folder that it leads to"
            raise Unusable(self.path, "is a symbolic link", fix) from error

    def _check_owner(self, about: os.stat_result) -> None:
        """Refuse a directory of another user, or one that others may write to."""
        open_to_others = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if open_to_others and about.st_mode & stat.S_ISVTX:
            inside = os.path.join(self.path, "<app>")
            fix = f"set STATUS_DIR to a folder inside it, such as {inside}"
            raise Unusable(self.path, "can be written to by others", fix)
        if about.st_uid != os.geteuid() and os.geteuid() != 0:
            owner = user_name(about.st_uid)
            fix = f"run this as {owner}, or chown the folder to the site's user"
            raise Unusable(self.path, f"belongs to {owner}", fix)
        if open_to_others:
            fix = f"chmod go-w {self.path}"
            raise Unusable(self.path, "can be written to by others", fix)

    def _check_mark(self, folder: int, create: bool) -> None:
        """Refuse a directory that holds other things; mark an empty one."""
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
            # Optional while the directory holds nothing else: a disk may be full.
            with suppress(OSError):
                os.close(open_shared(folder, MARK))

    def place(self) -> str:
        """Name the directory and its owner."""
        try:
            owner = user_name(os.stat(self.path, follow_symlinks=False).st_uid)
        except FileNotFoundError:
            return f"{self.path}, which does not exist"
        return f"{self.path}, which belongs to {owner}"

    def check_access(self) -> None:
        """Check that this user may write to the directory, or create it."""
        nearest = Path(self.path)
        while not nearest.exists():
            nearest = nearest.parent
        if not is_writable(nearest):
            raise self._not_writable(nearest)
        if os.path.lexists(self.path):
            check_searchable(self.path, os.stat(self.path).st_uid)

    def _not_writable(self, nearest: Path) -> Unusable:
        user = user_name(os.geteuid())
        if nearest == Path(self.path):
            fault, fix = f"cannot be written to by {user}", f"chmod u+rwx {nearest}"
            return Unusable(self.path, fault, fix)
        owner = user_name(nearest.stat().st_uid)
        fault = (
            f"does not exist, and {user} cannot make it: {nearest} belongs to {owner}"
        )
        fix = f"as root, mkdir -p {self.path} and chown it to the site's user, or set"
        fix += " STATUS_DIR to a folder that the site's user can write to"
        return Unusable(self.path, fault, fix)

    # Status files

    def read(self) -> Reading:
        """Read the records of all live workers; reap the files of exited ones."""
        with self.opened() as folder:
            reading = _read(folder)
            if reading.exited:
                # Optional: another process may be reaping, and what has to be counted
                # is kept until it can be.
                with (
                    suppress(OSError),
                    locked(folder, self.path, EXITED, 0.0) as exited,
                ):
                    _reap(folder, exited, reading)
        return reading

    def read_with_exited(self, *exiting: str) -> tuple[Reading, ExitedCounters]:
        """Read the same, and the counters of exited workers; no worker counts twice.

        ``exiting`` are the names of this process's own status files that it gives up.
        """
        with (
            self.opened() as folder,
            locked(folder, self.path, EXITED, PATIENCE) as exited,
        ):
            reading = _read(folder)
            reading.exited.extend(exiting)
            return reading, _reap(folder, exited, reading)

    # Desired state

    def desired(self, pool: str) -> DesiredState:
        """Read the desired state of this pool; :exc:`ValueError` if it is damaged."""
        stamp = self._desired_stamp()
        if stamp is None or stamp != self._desired[0]:
            with self.opened() as folder:
                content: dict[str, Any] = {}
                with suppress(FileNotFoundError):
                    content = load_record(folder, DESIRED)
                self._desired = stamp, content
        return _desired_in(self._desired[1], pool).now()

    def _desired_stamp(self) -> object:
        """Return what differs after a change; None if that is not certain.

        A file that does not exist is represented by the directory, which changes when
        it is created.
        """
        about = None
        with suppress(OSError):
            about = os.stat(self.path, follow_symlinks=False)
            about = os.stat(os.path.join(self.path, DESIRED), follow_symlinks=False)
        # Two changes within one tick of the file system's clock have the same time.
        if about is None or abs(time.time() - about.st_mtime) < _TICK:
            return None
        identity = about.st_dev, about.st_ino, about.st_size
        return *identity, about.st_mtime_ns, about.st_ctime_ns

    def update_desired(
        self, pool: str, change: Callable[[DesiredState], DesiredState]
    ) -> DesiredState:
        """Change the desired state of this pool, and return the new one."""
        with (
            self.opened(create=True) as folder,
            locked(folder, self.path, DESIRED) as fd,
        ):
            content: dict[str, Any] = {}
            before = DesiredState()
            with suppress(ValueError):  # a damaged state is replaced
                content = {} if is_blank(fd) else parse_record(fd)
                before = _desired_in(content, pool).now()
            after = change(before)
            # Written in place, where space is allocated: a full disk does not matter.
            write_record(fd, {**content, pool: after._asdict()})
        return after


def _desired_in(content: Mapping[str, Any], pool: str) -> DesiredState:
    """Parse the state of this pool only: others may be another version's."""
    return DesiredState.from_json(content[pool]) if pool in content else DesiredState()


def _is_ours(folder: int, name: str) -> bool:
    """Tell whether an earlier version of this package, without mark, has written it."""
    if _OTHER_NAME.fullmatch(name) is None and _STATUS_NAME.fullmatch(name) is None:
        return False
    try:
        if name.startswith(LIMIT):
            # Not opened: to close it would end the locks that this process has.
            stat_file(folder, name)
            return True
        fd = open_file(folder, name)
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    try:
        return is_ours(fd)
    finally:
        os.close(fd)


def _read(folder: int) -> Reading:
    reading = Reading()
    inodes: set[int] = set()
    owner = os.fstat(folder)
    for name in sorted(os.listdir(folder)):
        try:
            if _STATUS_NAME.fullmatch(name) is None:
                # What is wrong with the desired state, its reader tells.
                if not name.startswith(".") and name != DESIRED:
                    _check_shared(folder, name, owner)
            elif name.endswith(STATUS):
                _add_worker(reading, folder, name, owner, inodes)
            else:
                remove_left_over(folder, name)
        except FileNotFoundError:
            continue  # its worker has exited meanwhile
        except (OSError, ValueError) as error:
            reading.problems.append(f"{name}: {reason_of(error)}")
            if isinstance(error, _Hidden):
                reading.hidden.append(reading.problems[-1])
    return reading


def _check_shared(folder: int, name: str, owner: os.stat_result) -> None:
    """Raise :exc:`ValueError` unless it is a file that all processes share."""
    if not _OTHER_NAME.fullmatch(name):
        raise ValueError("not ours")
    check_owner(stat_file(folder, name), owner)


def _add_worker(
    reading: Reading,
    folder: int,
    name: str,
    owner: os.stat_result,
    inodes: set[int],
) -> None:
    """Add the record of a live worker, or the name of an exited one's file."""
    with _hiding("perhaps a worker: ", PermissionError):
        fd = open_file(folder, name)
    try:
        about = os.fstat(fd)
        with _hiding("perhaps a worker: ", OSError):
            is_live = is_locked(fd)
        if not is_live:
            check_owner(about, owner)
            if not is_ours(fd):
                raise ValueError("not ours")
            reading.exited.append(name)
        elif about.st_ino not in inodes:  # one file may have two names
            inodes.add(about.st_ino)
            with _hiding("a worker that cannot be read: ", OSError, ValueError):
                check_owner(about, owner)
                record = parse_record(fd)
            id = name.removesuffix(STATUS)
            reading.records.append({**record, "id": id})
            reading.heard[id] = about.st_mtime
    finally:
        os.close(fd)


@contextmanager
def _hiding(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn these errors into the problem that a live worker may be hidden."""
    try:
        yield
    except errors as error:
        raise _Hidden(f"{what}{reason_of(error)}") from error


def _load_exited(fd: int) -> ExitedCounters:
    try:
        return ExitedCounters({} if is_blank(fd) else parse_record(fd))
    except (ValueError, TypeError, AttributeError):
        return ExitedCounters()


def _reap(folder: int, exited: int, reading: Reading) -> ExitedCounters:
    """Add the counters of exited workers, and only then remove their files."""
    counters = _load_exited(exited)
    if not reading.exited:
        return counters
    for name in reading.exited:
        with suppress(FileNotFoundError, ValueError):  # or damaged
            counters.reap(name.removesuffix(STATUS), load_record(folder, name))
    counters.forget([name.removesuffix(STATUS) for name in os.listdir(folder)])
    # If that fails, the files stay, and the next reader counts them.
    with suppress(OSError):
        write_record(exited, counters.content())
        for name in reading.exited:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
    return counters
