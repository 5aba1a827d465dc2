"""Status files and orders, as processes that live, stop and die leave them."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from workers import AS_ROOT, Worker, forked, published, raised, started

import flask_mysqlpool.workers.records
import flask_mysqlpool.workers.status_file
from flask_mysqlpool.workers.desired_state import DesiredState
from flask_mysqlpool.workers.records import Unusable, load_record, write_record
from flask_mysqlpool.workers.status_dir import (
    DESIRED,
    EXITED,
    MARK,
    NEW,
    STATUS,
    StatusDir,
)
from flask_mysqlpool.workers.status_file import StatusFile

WRITER = """
import itertools, os, resource, signal, sys, time
from flask_mysqlpool.workers.status_dir import StatusDir
from flask_mysqlpool.workers.status_file import StatusFile
folder = StatusDir(sys.argv[1])
file = StatusFile(folder)
more = lambda desired: desired._replace(generation=desired.generation + 1)
def attempt(**content):
    try:
        file.write(content)
    except OSError as error:
        return type(error).__name__
for line in sys.stdin:
    print(eval(line), flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> StatusDir:
    return StatusDir(tmp_path / "status")


@pytest.fixture
def start(folder: StatusDir) -> Iterator[Callable[[], Worker]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(started(WRITER, folder.path))


def numbers(folder: StatusDir) -> list[int]:
    """The ``n`` of every status file; and that all could be read."""
    reading = folder.read()
    assert not reading.problems
    return sorted(record["n"] for record in reading.records)


def names(folder: StatusDir) -> list[str]:
    """The files in the folder, but for its mark and what the dead have counted."""
    kept = {MARK, EXITED, f"{EXITED}.lock", f"{DESIRED}.lock"}
    return sorted(set(os.listdir(folder.path)) - kept)


# Status files


def test_what_was_written_is_read(folder: StatusDir) -> None:
    file = published(folder, n=1, name="Ä", nested=[{"a": None}])

    [found] = folder.read().records

    assert found == {"id": file.id, "n": 1, "name": "Ä", "nested": [{"a": None}]}


def test_the_last_state_counts_be_it_longer_or_shorter(folder: StatusDir) -> None:
    file = published(folder, n=1)
    for n, text in (2, "x" * 10_000), (3, ""):
        file.write({"n": n, "text": text})

        [found] = folder.read().records
        assert (found["n"], found["text"]) == (n, text)


def test_nobody_else_may_look_and_no_name_tells_a_process(folder: StatusDir) -> None:
    umask = os.umask(0)
    try:
        file = published(folder, n=1)
    finally:
        os.umask(umask)

    [name] = names(folder)

    assert stat.S_IMODE(os.stat(folder.path).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(os.path.join(folder.path, name)).st_mode) == 0o600
    assert re.fullmatch(r"[0-9a-f]{16}\.worker", name)
    assert name == file.id + STATUS != published(folder, n=2).id + STATUS


def test_a_removed_status_file_is_gone(folder: StatusDir) -> None:
    file = published(folder, n=1)
    kept = published(folder, n=2)

    file.remove()

    assert names(folder) == [kept.id + STATUS]


def test_the_status_file_of_a_killed_process_is_removed_by_the_next_reader(
    folder: StatusDir, start: Callable[[], Worker]
) -> None:
    alive = published(folder, n=1)
    worker = start()
    worker.ask("file.write({'n': 2})")
    assert numbers(folder) == [1, 2]

    worker.kill()

    assert numbers(folder) == [1]
    assert names(folder) == [alive.id + STATUS]


def test_who_looks_at_the_status_file_of_a_dead_one_does_not_revive_it(
    folder: StatusDir,
) -> None:
    file = published(folder, n=1)
    path = os.path.join(folder.path, file.id + STATUS)
    file.detach_after_fork()  # as death does

    with open(path) as another_reader:
        fcntl.flock(another_reader, fcntl.LOCK_SH)
        assert numbers(folder) == []

    assert names(folder) == []


def test_a_stopped_process_is_not_a_dead_one(
    folder: StatusDir, start: Callable[[], Worker]
) -> None:
    worker = start()
    worker.ask("file.write({'n': 1})")
    worker.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, worker.process.pid, os.WSTOPPED | os.WNOWAIT)

    assert numbers(folder) == [1]
    worker.process.send_signal(signal.SIGCONT)
    worker.ask("file.write({'n': 2})")
    assert numbers(folder) == [2]


def test_readers_at_once_do_not_take_a_live_status_file_for_a_dead_one(
    folder: StatusDir,
) -> None:
    file = published(folder, n=1)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: numbers(StatusDir(folder.path)), range(400)))

    assert found == [[1]] * 400
    assert names(folder) == [file.id + STATUS]


def test_a_child_does_not_keep_the_status_file_of_its_dead_parent_alive(
    folder: StatusDir, start: Callable[[], Worker]
) -> None:
    parent = start()
    parent.ask("file.write({'n': 1})")
    child = forked(parent)
    try:
        assert numbers(folder) == [1]
        parent.kill()
        os.kill(child, 0)  # is alive
        assert numbers(folder) == []
    finally:
        os.kill(child, signal.SIGKILL)


def test_nothing_that_a_child_does_takes_the_status_file_from_its_parent(
    folder: StatusDir, start: Callable[[], Worker]
) -> None:
    parent = start()
    parent.ask("file.write({'n': 1})")
    child = parent.ask(
        "os.fork() or (file.remove(), file.write({'n': 2}),"
        " file.remove(), folder.read(), os._exit(0))"
    )
    parent.ask(f"os.waitpid({child}, 0)")

    assert numbers(folder) == [1]
    parent.ask("file.write({'n': 3})")
    assert numbers(folder) == [3]


def test_no_reader_meets_a_status_file_half_written(
    folder: StatusDir, start: Callable[[], Worker]
) -> None:
    writer = start()
    content = "{'n': n, 'text': 'x' * (n * 997 % 20000)}"
    writer.ask("file.write({'n': 0, 'text': ''})")
    writer.tell(
        f"[(file.write({content}), time.sleep(0.0005)) for n in itertools.count()]"
    )
    seen = set()

    def look() -> bool:
        """Until so many different ones were seen, at whatever pace they come."""
        reading = folder.read()
        assert not reading.problems
        [record] = reading.records
        assert len(record["text"]) == record["n"] * 997 % 20000
        seen.add(record["n"])
        return len(seen) > 500

    until(look, 30)


def test_a_full_disk_leaves_the_last_state_readable(
    folder: StatusDir, start: Callable[[], Worker]
) -> None:
    worker = start()
    worker.ask("signal.signal(signal.SIGXFSZ, signal.SIG_IGN)")
    worker.ask("resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))")
    worker.ask("attempt(n=1)")

    assert worker.ask("attempt(n=2, text='x' * 5000)") == "OSError"
    assert numbers(folder) == [1]
    assert worker.ask("attempt(n=3)") == "None"
    assert numbers(folder) == [3]


def test_a_status_file_for_which_there_is_no_space_leaves_nothing_behind(
    folder: StatusDir, start: Callable[[], Worker]
) -> None:
    worker = start()
    worker.ask("resource.setrlimit(resource.RLIMIT_FSIZE, (100, 4096))")

    assert worker.ask("attempt(n=1)") == "OSError"
    assert names(folder) == []
    worker.ask("resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))")
    assert worker.ask("attempt(n=1)") == "None"
    assert numbers(folder) == [1]


@pytest.mark.parametrize("step", ["rename", "posix_fallocate"])
def test_a_status_file_that_could_not_be_made_is_neither_there_nor_open(
    folder: StatusDir, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    file = StatusFile(folder)
    opened = os.listdir("/dev/fd")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, no_space)
        with pytest.raises(OSError, match="No space left"):
            file.write({"n": 1})

    assert names(folder) == []
    assert os.listdir("/dev/fd") == opened
    assert not file.touch()
    file.write({"n": 2})
    assert numbers(folder) == [2]


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_removed_status_file_is_written_into_nobody_elses_file(
    folder: StatusDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = published(folder, n=1)
    writing, withdrawn = threading.Event(), threading.Event()
    write = flask_mysqlpool.workers.records.write_record

    def write_late(fd: int, content: Any) -> None:
        writing.set()
        withdrawn.wait(0.5)
        write(fd, content)

    monkeypatch.setattr(flask_mysqlpool.workers.status_file, "write_record", write_late)
    with ThreadPoolExecutor(1) as threads:
        written = threads.submit(file.write, {"n": 2})
        assert writing.wait(5)
        file.remove()
        with ExitStack() as stack:
            for name in "abc":  # one of them takes the number of what was closed
                stack.enter_context((tmp_path / name).open("wb"))
            withdrawn.set()
            written.exception()

    assert [(tmp_path / name).read_bytes() for name in "abc"] == [b"", b"", b""]


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, 10)


def move_the_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("old"))


@pytest.mark.parametrize("harm", [remove, truncate, move_the_folder])
def test_who_touches_a_status_file_learns_that_it_has_to_be_written_again(
    folder: StatusDir, harm: Callable[[Path], None]
) -> None:
    file = published(folder, n=1)
    assert file.touch()
    harm(Path(folder.path, file.id + STATUS))

    assert not file.touch()
    file.write({"n": 2})

    assert numbers(folder) == [2]
    assert file.touch()


def test_a_status_file_that_could_not_be_written_is_not_one_to_touch(
    folder: StatusDir, start: Callable[[], Worker]
) -> None:
    worker = start()
    worker.ask("signal.signal(signal.SIGXFSZ, signal.SIG_IGN)")
    worker.ask("resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))")
    worker.ask("attempt(n=1)")
    assert worker.ask("file.touch()") == "True"

    worker.ask("attempt(n=2, text='x' * 5000)")

    assert worker.ask("file.touch()") == "False"


def test_a_touch_tells_that_the_worker_is_alive(folder: StatusDir) -> None:
    file = published(folder, n=1)
    path = Path(folder.path, file.id + STATUS)
    os.utime(path, (0, 0))
    assert folder.read().heard == {file.id: 0}

    file.touch()

    assert folder.read().heard[file.id] == path.stat().st_mtime > 0


def test_a_status_file_with_two_names_counts_once(folder: StatusDir) -> None:
    file = published(folder, n=1)
    os.link(Path(folder.path, file.id + STATUS), Path(folder.path, "f" * 16 + STATUS))

    assert numbers(folder) == [1]


# What is not in order


def make_garbage(path: Path) -> None:
    path.write_bytes(b"\0garbage" * 100)


def make_truncated(path: Path) -> None:
    [whole] = path.parent.glob("*" + STATUS)
    path.write_bytes(whole.read_bytes()[:25])


def make_flipped(path: Path) -> None:
    [whole] = path.parent.glob("*" + STATUS)
    path.write_bytes(whole.read_bytes().replace(b'"n":1', b'"n":9'))


def make_foreign(path: Path) -> None:
    path.touch()
    os.chown(path, 65534, 65534)


def make_link(path: Path) -> None:
    [whole] = path.parent.glob("*" + STATUS)
    path.symlink_to(whole)


def make_link_of(path: Path) -> None:
    path.rename(path.parent.with_name("elsewhere"))
    path.symlink_to(path.parent.with_name("elsewhere"))


def make_folder_of(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "make",
    [
        make_garbage,
        make_truncated,
        make_flipped,
        pytest.param(make_foreign, marks=AS_ROOT),
        make_link,
        os.mkfifo,
        Path.mkdir,
        Path.touch,
    ],
)
def test_what_is_no_status_file_is_named_and_the_others_are_read(
    folder: StatusDir, make: Callable[[Path], None]
) -> None:
    file = published(folder, n=1)
    path = Path(folder.path, "0" * 16 + STATUS)
    make(path)

    with ExitStack() as stack:
        if path.is_file() and not path.is_symlink():  # or else it is that of a dead one
            fcntl.flock(stack.enter_context(path.open()), fcntl.LOCK_EX)
        reading = folder.read()

    assert [found["id"] for found in reading.records] == [file.id]
    [problem] = reading.problems
    assert problem.startswith(f"{path.name}: ")
    assert path.is_symlink() or path.exists()


@pytest.mark.parametrize(
    "harm", [truncate, pytest.param(lambda p: os.chown(p, 65534, 65534), marks=AS_ROOT)]
)
def test_a_live_worker_that_cannot_be_read_is_told_from_what_is_no_worker(
    folder: StatusDir, harm: Callable[[Path], None]
) -> None:
    file = published(folder, n=1)
    path = Path(folder.path, file.id + STATUS)
    harm(path)
    Path(folder.path, "notes.txt").touch()

    reading = folder.read()

    [hidden] = reading.hidden
    assert hidden.startswith(f"{path.name}: a worker that cannot be read: ")
    assert hidden in reading.problems and len(reading.problems) == 2
    assert path.exists()


def test_what_is_not_ours_is_named_and_left_there(folder: StatusDir) -> None:
    published(folder, n=1)
    path = Path(folder.path, "notes.txt")
    path.touch()

    reading = folder.read()

    assert len(reading.records) == 1
    assert reading.problems == ["notes.txt: not ours"]
    assert path.exists()


def test_what_a_crash_left_half_made_is_removed_after_a_while(
    folder: StatusDir,
) -> None:
    published(folder, n=1)
    young, old = (Path(folder.path, name * 16 + NEW) for name in "ab")
    for path, age in (young, 0), (old, 3600):
        path.touch()
        os.utime(path, times=(path.stat().st_atime, path.stat().st_mtime - age))

    assert numbers(folder) == [1]
    assert (young.exists(), old.exists()) == (True, False)


# The folder


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_refused(
    folder: StatusDir, mode: int
) -> None:
    os.mkdir(folder.path)
    os.chmod(folder.path, mode)

    with pytest.raises(PermissionError, match="by others"):
        folder.read()
    with pytest.raises(PermissionError):
        published(folder, n=1)
    with pytest.raises(PermissionError):
        folder.update_desired("shop/default", raised)
    assert names(folder) == []


@AS_ROOT
def test_a_folder_of_somebody_else_is_not_written_to(folder: StatusDir) -> None:
    os.mkdir(folder.path, 0o700)
    os.chown(folder.path, 65534, 65534)

    with pytest.raises(PermissionError, match="belongs to"):
        published(folder, n=1)
    assert names(folder) == []


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "/",
    ],
)
def test_a_symbolic_link_is_not_followed(tmp_path: Path, ending: str) -> None:
    (tmp_path / "elsewhere").mkdir(0o700)
    (tmp_path / "status").symlink_to("elsewhere")
    folder = StatusDir(f"{tmp_path}/status{ending}")

    with pytest.raises(OSError, match="is a symbolic link"):
        published(folder, n=1)
    with pytest.raises(OSError):
        folder.update_desired("shop/default", raised)
    assert not list((tmp_path / "elsewhere").iterdir())


@AS_ROOT
def test_what_root_makes_belongs_to_the_owner_of_what_was_there(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    folder = StatusDir(tmp_path / "instance" / "run" / "status")

    folder.update_desired("shop/default", raised)

    made = [path for path in tmp_path.rglob("*")]
    assert len(made) == 6
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {
        (65534, 65534)
    }
    assert folder.place() == f"{folder.path}, which belongs to nobody"


def test_a_folder_that_was_removed_is_made_anew(folder: StatusDir) -> None:
    file = published(folder, n=1)
    shutil.rmtree(folder.path)

    with pytest.raises(FileNotFoundError):
        folder.read()
    file.write({"n": 2})

    assert numbers(folder) == [2]
    assert stat.S_IMODE(os.stat(folder.path).st_mode) == 0o700


def test_a_status_file_that_was_removed_is_made_anew(folder: StatusDir) -> None:
    file = published(folder, n=1)
    os.unlink(os.path.join(folder.path, file.id + STATUS))
    assert numbers(folder) == []

    file.write({"n": 2})

    assert numbers(folder) == [2]


# Desired state


def test_nothing_is_ordered_until_somebody_does(folder: StatusDir) -> None:
    os.mkdir(folder.path, 0o700)

    assert folder.desired("shop/default") == DesiredState(0, paused=False)


def test_every_pool_has_orders_of_its_own(folder: StatusDir) -> None:
    reader = StatusDir(folder.path)
    assert folder.update_desired("shop/default", raised) == DesiredState(1, False)
    assert reader.desired("shop/default") == DesiredState(1, False)

    folder.update_desired("shop/reports", lambda desired: desired._replace(paused=True))

    assert reader.desired("shop/default") == DesiredState(1, False)
    assert reader.desired("shop/reports") == DesiredState(0, True)
    assert stat.S_IMODE(os.stat(os.path.join(folder.path, DESIRED)).st_mode) == 0o600
    assert folder.read().problems == []


def test_orders_given_at_once_are_all_carried_out(
    folder: StatusDir, start: Callable[[], Worker]
) -> None:
    workers = [start() for _ in range(3)]
    for worker in workers:
        worker.tell(
            "len([folder.update_desired('shop/default', more) for _ in range(200)])"
        )
    for worker in workers:
        assert worker.hear() == "200"

    assert folder.desired("shop/default").generation == 600


@pytest.mark.parametrize("damage", [b"damage" * 999, b"{}"])
def test_damaged_orders_are_an_error_until_the_next_are_given(
    folder: StatusDir, damage: bytes
) -> None:
    folder.update_desired("shop/default", raised)
    Path(folder.path, DESIRED).write_bytes(damage)

    with pytest.raises(ValueError, match="damaged"):
        StatusDir(folder.path).desired("shop/default")
    folder.update_desired("shop/default", raised)

    assert StatusDir(folder.path).desired("shop/default").generation == 1


@pytest.mark.parametrize(
    "orders",
    [
        *(5, {}, {"generation": "soon", "paused": False}, {"generation": 1}),
        *(
            {"generation": -1, "paused": False},
            {"generation": 1 << 64, "paused": False},
        ),
        *({"generation": 1, "paused": True, "since": at} for at in (1e17, -1e18, 1e19)),
        {"generation": 1, "paused": True, "since": 0, "until": 1e17},
    ],
)
def test_orders_that_say_something_else_are_damaged_as_well(
    folder: StatusDir, orders: object
) -> None:
    folder.update_desired("shop/reports", raised)
    with open(f"{folder.path}/{DESIRED}", "r+b") as file:
        write_record(file.fileno(), {"shop/default": orders})

    with pytest.raises(ValueError, match="damaged"):
        folder.desired("shop/default")

    assert folder.update_desired("shop/default", raised) == DesiredState(1, False)


def test_a_reader_of_damaged_orders_notices_the_next(folder: StatusDir) -> None:
    reader = StatusDir(folder.path)
    folder.update_desired("shop/default", raised)
    reader.desired("shop/default")
    Path(folder.path, DESIRED).write_bytes(b"damage")
    with pytest.raises(ValueError):
        reader.desired("shop/default")

    folder.update_desired("shop/default", lambda desired: DesiredState(7))

    assert reader.desired("shop/default").generation == 7


@pytest.mark.parametrize("given", [True, False])
def test_a_desired_state_is_read_again_only_after_a_change(
    folder: StatusDir, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    if given:
        folder.update_desired("shop/default", raised)
    os.makedirs(folder.path, mode=0o700, exist_ok=True)
    for path in (*Path(folder.path).iterdir(), Path(folder.path)):
        os.utime(path, (0, 0))
    assert folder.desired("shop/default").generation == given

    with monkeypatch.context() as patch:
        patch.setattr(StatusDir, "opened", None)
        assert folder.desired("shop/default").generation == given
    StatusDir(folder.path).update_desired("shop/default", lambda _: DesiredState(7))

    assert folder.desired("shop/default").generation == 7


@pytest.mark.parametrize(
    ("harm", "fault"),
    [(make_link_of, "a symbolic link"), (make_folder_of, "not a file")],
)
def test_what_is_in_the_way_of_orders_is_named_with_a_mend_and_left_there(
    folder: StatusDir, harm: Callable[[Path], None], fault: str
) -> None:
    folder.update_desired("shop/default", raised)
    path = Path(folder.path, DESIRED)
    harm(path)

    with pytest.raises(ValueError, match=fault):
        folder.desired("shop/default")
    with pytest.raises(Unusable, match=f"{fault}.*orders") as refused:
        folder.update_desired("shop/default", raised)

    assert refused.value.fix == "remove it"
    assert path.is_symlink() or path.is_dir()
    assert names(folder) == [DESIRED]


def test_orders_are_not_given_for_ever_where_the_lock_is_held(
    folder: StatusDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flask_mysqlpool.workers.records, "TURN", 0.05)
    folder.update_desired("shop/default", raised)
    with open(f"{folder.path}/orders.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"keeps it locked.*orders\.lock"):
            folder.update_desired("shop/default", raised)

    assert folder.update_desired("shop/default", raised).generation == 2


def test_an_order_that_waited_for_a_lock_that_was_removed_locks_the_new_one(
    folder: StatusDir,
) -> None:
    folder.update_desired("shop/default", raised)
    path = f"{folder.path}/orders.lock"

    def change(desired: DesiredState) -> DesiredState:
        with open(path) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return raised(desired)

    with ThreadPoolExecutor(1) as threads, open(path) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ordered = threads.submit(folder.update_desired, "shop/default", change)
        time.sleep(0.02)  # it waits, or is about to
        os.unlink(path)
        lock.close()

        assert ordered.result() == folder.desired("shop/default") == DesiredState(2)


def test_an_order_for_one_pool_leaves_those_for_others_as_they_are(
    folder: StatusDir,
) -> None:
    folder.update_desired("shop/default", raised)
    other = {"generation": "of another version", "until": 7}
    with open(f"{folder.path}/{DESIRED}", "r+b") as file:
        write_record(file.fileno(), {"blog/default": other, "shop/default": 5})
    with pytest.raises(ValueError, match="damaged"):
        folder.desired("shop/default")

    folder.update_desired("shop/default", raised)

    with folder.opened() as fd:
        content = load_record(fd, DESIRED)
    assert content["blog/default"] == other
    assert folder.desired("shop/default") == DesiredState(1)


@AS_ROOT
def test_a_file_that_cannot_be_given_to_the_folders_owner_is_not_left_open(
    folder: StatusDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkdir(folder.path, 0o700)
    os.chown(folder.path, 65534, 65534)
    opened = os.listdir("/dev/fd")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fchown", no_space)
        with pytest.raises(OSError, match="No space left"):
            folder.update_desired("shop/default", raised)

    assert os.listdir("/dev/fd") == opened
    assert folder.desired("shop/default") == DesiredState()


@AS_ROOT
def test_an_owner_who_has_no_name_is_told_by_number(folder: StatusDir) -> None:
    file = published(folder, n=1)
    os.chown(f"{folder.path}/{file.id}{STATUS}", 54321, 54321)

    [problem] = folder.read().problems

    assert problem.endswith("it belongs to user 54321")


@AS_ROOT
def test_where_root_has_given_orders_the_owner_still_can(folder: StatusDir) -> None:
    os.mkdir(folder.path, 0o700)
    os.chown(folder.path, 65534, 65534)
    folder.update_desired("shop/default", raised)

    owners = {path.stat().st_uid for path in Path(folder.path).iterdir()}

    assert owners == {65534}
