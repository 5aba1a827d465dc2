"""Files that processes share, and whose contents none of them trusts.

A *record* is a dictionary in a file: a line with a checksum, then JSON. It is written
in place, which is much cheaper than an atomic rename; a reader that meets a torn write
sees that the checksum is wrong, and reads again. The space is allocated beforehand: on
a full disk the last record stays readable and can still be overwritten.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

with suppress(ImportError):  # Windows
    import fcntl

_MAGIC = b"mysqlpool1"
#: Error numbers of file systems that cannot allocate space.
_NO_ALLOCATION = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}
#: How often a damaged record is read, and seconds between two attempts.
_ATTEMPTS, _PAUSE = 5, 0.002
#: Bytes by which files are allocated, and up to which they are read.
_BLOCK, _MOST = 4096, 1 << 22
#: Seconds to wait for a lock that another process holds.
TURN = 3.0
#: Seconds after which a file that is still being created is left over from a crash.
_LEFT_OVER = 60.0

FOLDER = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
FOLDER |= os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)


class Unusable(PermissionError):
    """A file or directory exists and is not used; ``fix`` tells what would help."""

    def __init__(self, path: str, fault: str, fix: str) -> None:
        super().__init__(errno.EACCES, fault, path)
        self.fix = fix


def make_dir(path: Path, mode: int) -> None:
    """Create a directory and its parents, with the owner of the first that exists."""
    if not path.parent.exists():
        make_dir(path.parent, 0o777)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    folder = os.open(path, FOLDER)
    try:
        if not os.listdir(folder):  # otherwise another process has created it
            chown_like(os.stat(path.parent), folder)
    finally:
        os.close(folder)


def is_writable(folder: Path) -> bool:
    """Guess, without creating a file, whether this user may create one there."""
    return _may(folder, os.W_OK | os.X_OK)


def _may(folder: Path, do: int) -> bool:
    effective = os.access in os.supports_effective_ids
    return os.access(folder, do, effective_ids=effective)


def check_searchable(path: str, user: int) -> None:
    """Refuse a path with a parent directory that this user cannot search.

    If it is not this process's user, a directory that its group or others may search
    counts as searchable: groups and access lists are not looked up.
    """
    for folder in reversed(Path(os.path.realpath(path)).parents):
        if not folder.exists():
            return
        about, own = folder.stat(), user == os.geteuid()
        open_to_some = about.st_uid == user or about.st_mode & 0o011
        if _may(folder, os.X_OK) if own else open_to_some:
            continue
        name, owner = user_name(user), user_name(about.st_uid)
        fault = f"cannot be reached: {name} may not search {folder}, which belongs to"
        fix = f"chmod o+x {folder}, or set STATUS_DIR to a folder that it can reach"
        if own:
            fix = f"run this as the site's user; if that is {name}, {fix}"
        raise Unusable(path, f"{fault} {owner}", fix)


def open_shared(folder: int, name: str) -> int:
    """Open, or create, a file that every process of the site may write to.

    Its owner is that of the directory; a file of another owner is refused.
    """
    while True:
        try:
            return _open_shared(folder, name)
        except FileNotFoundError:
            with suppress(FileExistsError):
                return _create_shared(folder, name)


def _open_shared(folder: int, name: str) -> int:
    try:
        fd = open_file(folder, name, os.O_RDWR)
        try:
            check_owner(os.fstat(fd), os.fstat(folder))
        except BaseException:
            os.close(fd)
            raise
    except ValueError as error:
        raise Unusable(name, str(error), "remove it") from error
    return fd


def _create_shared(folder: int, name: str) -> int:
    fd = create_file(folder, name)
    try:
        chown_like(os.fstat(folder), fd)
    except BaseException:
        os.close(fd)
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)
        raise
    return fd


def is_at(path: str, fd: int, folder: int | None = None) -> bool:
    """Tell whether the path still leads to this open file: not removed, not renamed."""
    try:
        there = os.stat(path, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def create_file(folder: int, name: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=folder)


def write_record(fd: int, content: Mapping[str, Any]) -> int:
    """Overwrite the record in place, and return its number of bytes."""
    data = json.dumps(content, separators=(",", ":")).encode()
    data = b"%s %08x %d\n%s" % (_MAGIC, zlib.crc32(data), len(data), data)
    size = -(-len(data) // _BLOCK) * _BLOCK
    if os.fstat(fd).st_size < size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in _NO_ALLOCATION:
                raise
    if os.pwrite(fd, data, 0) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return len(data)


def is_ours(fd: int) -> bool:
    """Tell whether the file begins as a record does; it may be blank, or end early."""
    return _MAGIC.startswith(os.pread(fd, len(_MAGIC), 0).rstrip(b"\0"))


def is_blank(fd: int) -> bool:
    """Tell whether nothing was written to the file; space may be allocated."""
    return not os.pread(fd, len(_MAGIC), 0).strip(b"\0")


def load_record(folder: int, name: str) -> dict[str, Any]:
    """Read a record, which has to belong to the owner of the directory."""
    fd = open_file(folder, name)
    try:
        check_owner(os.fstat(fd), os.fstat(folder))
        return {} if is_blank(fd) else parse_record(fd)
    finally:
        os.close(fd)


def open_file(folder: int, name: str, mode: int = os.O_RDONLY) -> int:
    """Open a regular file, by default for reading; refuse anything else."""
    flags = mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("a symbolic link") from error
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise ValueError("not a file") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError("not a file")
    return fd


def stat_file(folder: int, name: str) -> os.stat_result:
    """Return the status of a regular file, without opening it; refuse anything else."""
    about = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("not a file")
    return about


def check_owner(about: os.stat_result, folder: os.stat_result) -> None:
    if about.st_uid != folder.st_uid:
        raise ValueError(f"it belongs to {user_name(about.st_uid)}")


def lock_file(fd: int) -> None:
    """Lock a new file for as long as it is open."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def lock_byte(fd: int, number: int) -> None:
    """Lock a byte of a file for this process."""
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)


def unlock_byte(fd: int, number: int) -> None:
    fcntl.lockf(fd, fcntl.LOCK_UN, 1, number)


def reason_of(error: Exception) -> str:
    """Describe an error without the name of its file."""
    return str(getattr(error, "strerror", None) or error)


def parse_record(fd: int) -> dict[str, Any]:
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE)
        size = min(os.fstat(fd).st_size, _MOST)
        head, _, data = os.pread(fd, size, 0).partition(b"\n")
        try:
            magic, checksum, length = head.split()
            data = data[: int(length)]
            if magic == _MAGIC and int(checksum, 16) == zlib.crc32(data):
                content = json.loads(data)
                if isinstance(content, dict):
                    return content
        except (ValueError, RecursionError):
            continue
    raise ValueError("damaged")


def remove_left_over(folder: int, name: str) -> None:
    """Remove a file of ours whose creation a crash has interrupted."""
    fd = open_file(folder, name)
    try:
        if not is_ours(fd):
            raise ValueError("not ours")
        if time.time() - os.fstat(fd).st_mtime > _LEFT_OVER:
            os.unlink(name, dir_fd=folder)
    finally:
        os.close(fd)


@contextmanager
def locked(
    folder: int, path: str, name: str, patience: float | None = None
) -> Iterator[int]:
    """Open a shared file of the directory, while holding the lock file beside it.

    Raises :exc:`BlockingIOError` if another process holds the lock for ``patience``
    seconds, by default :data:`TURN`.
    """
    deadline = time.monotonic() + (TURN if patience is None else patience)
    lock_name = f"{name}.lock"
    while True:
        lock = open_shared(folder, lock_name)
        try:
            _lock(lock, os.path.join(path, lock_name), deadline)
            if is_at(lock_name, lock, folder):  # otherwise it was removed meanwhile
                with open(open_shared(folder, name), "rb+", buffering=0) as file:
                    yield file.fileno()
                return
        finally:
            os.close(lock)


def _lock(fd: int, path: str, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                text = "another process keeps it locked"
                raise BlockingIOError(error.errno, text, path) from error
        time.sleep(_PAUSE)


def chown_like(folder: os.stat_result, file: int) -> None:
    """Give a file that root has created to the owner of its directory."""
    if os.geteuid() == 0 != folder.st_uid:
        os.fchown(file, folder.st_uid, folder.st_gid)


def user_name(number: int) -> str:
    try:
        import pwd

        return pwd.getpwuid(number).pw_name
    except (ImportError, KeyError):
        return f"user {number}"
