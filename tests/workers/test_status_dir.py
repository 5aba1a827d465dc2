"""Sheets and orders in a folder, as processes that live, stop and die leave them."""

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
board = StatusDir(sys.argv[1])
sheet = StatusFile(board)
more = lambda desired: desired._replace(generation=desired.generation + 1)
def attempt(**content):
    try:
        sheet.write(content)
    except OSError as error:
        return type(error).__name__
for line in sys.stdin:
    print(eval(line), flush=True)
"""


@pytest.fixture
def board(tmp_path: Path) -> StatusDir:
    return StatusDir(tmp_path / "board")


@pytest.fixture
def start(board: StatusDir) -> Iterator[Callable[[], Worker]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(started(WRITER, board.path))


def numbers(board: StatusDir) -> list[int]:
    """The ``n`` of every sheet; and that all could be read."""
    reading = board.read()
    assert not reading.problems
    return sorted(sheet["n"] for sheet in reading.records)


def names(board: StatusDir) -> list[str]:
    """The files on the board, but for its mark and what the dead have counted."""
    kept = {MARK, EXITED, f"{EXITED}.lock", f"{DESIRED}.lock"}
    return sorted(set(os.listdir(board.path)) - kept)


# Sheets


def test_what_was_written_is_read(board: StatusDir) -> None:
    sheet = published(board, n=1, name="Ä", nested=[{"a": None}])

    [found] = board.read().records

    assert found == {"id": sheet.id, "n": 1, "name": "Ä", "nested": [{"a": None}]}


def test_the_last_state_counts_be_it_longer_or_shorter(board: StatusDir) -> None:
    sheet = published(board, n=1)
    for n, text in (2, "x" * 10_000), (3, ""):
        sheet.write({"n": n, "text": text})

        [found] = board.read().records
        assert (found["n"], found["text"]) == (n, text)


def test_nobody_else_may_look_and_no_name_tells_a_process(board: StatusDir) -> None:
    umask = os.umask(0)
    try:
        sheet = published(board, n=1)
    finally:
        os.umask(umask)

    [name] = names(board)

    assert stat.S_IMODE(os.stat(board.path).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(os.path.join(board.path, name)).st_mode) == 0o600
    assert re.fullmatch(r"[0-9a-f]{16}\.worker", name)
    assert name == sheet.id + STATUS != published(board, n=2).id + STATUS


def test_a_withdrawn_sheet_is_gone(board: StatusDir) -> None:
    sheet = published(board, n=1)
    kept = published(board, n=2)

    sheet.remove()

    assert names(board) == [kept.id + STATUS]


def test_the_sheet_of_a_killed_process_is_removed_by_the_next_reader(
    board: StatusDir, start: Callable[[], Worker]
) -> None:
    alive = published(board, n=1)
    worker = start()
    worker.ask("sheet.write({'n': 2})")
    assert numbers(board) == [1, 2]

    worker.kill()

    assert numbers(board) == [1]
    assert names(board) == [alive.id + STATUS]


def test_who_looks_at_the_sheet_of_a_dead_one_does_not_revive_it(
    board: StatusDir,
) -> None:
    sheet = published(board, n=1)
    path = os.path.join(board.path, sheet.id + STATUS)
    sheet.detach_after_fork()  # as death does

    with open(path) as another_reader:
        fcntl.flock(another_reader, fcntl.LOCK_SH)
        assert numbers(board) == []

    assert names(board) == []


def test_a_stopped_process_is_not_a_dead_one(
    board: StatusDir, start: Callable[[], Worker]
) -> None:
    worker = start()
    worker.ask("sheet.write({'n': 1})")
    worker.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, worker.process.pid, os.WSTOPPED | os.WNOWAIT)

    assert numbers(board) == [1]
    worker.process.send_signal(signal.SIGCONT)
    worker.ask("sheet.write({'n': 2})")
    assert numbers(board) == [2]


def test_readers_at_once_do_not_take_a_live_sheet_for_a_dead_one(
    board: StatusDir,
) -> None:
    sheet = published(board, n=1)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: numbers(StatusDir(board.path)), range(400)))

    assert found == [[1]] * 400
    assert names(board) == [sheet.id + STATUS]


def test_a_child_does_not_keep_the_sheet_of_its_dead_parent_alive(
    board: StatusDir, start: Callable[[], Worker]
) -> None:
    parent = start()
    parent.ask("sheet.write({'n': 1})")
    child = forked(parent)
    try:
        assert numbers(board) == [1]
        parent.kill()
        os.kill(child, 0)  # is alive
        assert numbers(board) == []
    finally:
        os.kill(child, signal.SIGKILL)


def test_nothing_that_a_child_does_takes_the_sheet_from_its_parent(
    board: StatusDir, start: Callable[[], Worker]
) -> None:
    parent = start()
    parent.ask("sheet.write({'n': 1})")
    child = parent.ask(
        "os.fork() or (sheet.remove(), sheet.write({'n': 2}),"
        " sheet.remove(), board.read(), os._exit(0))"
    )
    parent.ask(f"os.waitpid({child}, 0)")

    assert numbers(board) == [1]
    parent.ask("sheet.write({'n': 3})")
    assert numbers(board) == [3]


def test_no_reader_meets_a_sheet_half_written(
    board: StatusDir, start: Callable[[], Worker]
) -> None:
    writer = start()
    content = "{'n': n, 'text': 'x' * (n * 997 % 20000)}"
    writer.ask("sheet.write({'n': 0, 'text': ''})")
    writer.tell(
        f"[(sheet.write({content}), time.sleep(0.0005)) for n in itertools.count()]"
    )
    seen = set()

    def look() -> bool:
        """Until so many different ones were seen, at whatever pace they come."""
        reading = board.read()
        assert not reading.problems
        [sheet] = reading.records
        assert len(sheet["text"]) == sheet["n"] * 997 % 20000
        seen.add(sheet["n"])
        return len(seen) > 500

    until(look, 30)


def test_a_full_disk_leaves_the_last_state_readable(
    board: StatusDir, start: Callable[[], Worker]
) -> None:
    worker = start()
    worker.ask("signal.signal(signal.SIGXFSZ, signal.SIG_IGN)")
    worker.ask("resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))")
    worker.ask("attempt(n=1)")

    assert worker.ask("attempt(n=2, text='x' * 5000)") == "OSError"
    assert numbers(board) == [1]
    assert worker.ask("attempt(n=3)") == "None"
    assert numbers(board) == [3]


def test_a_sheet_for_which_there_is_no_space_leaves_nothing_behind(
    board: StatusDir, start: Callable[[], Worker]
) -> None:
    worker = start()
    worker.ask("resource.setrlimit(resource.RLIMIT_FSIZE, (100, 4096))")

    assert worker.ask("attempt(n=1)") == "OSError"
    assert names(board) == []
    worker.ask("resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))")
    assert worker.ask("attempt(n=1)") == "None"
    assert numbers(board) == [1]


@pytest.mark.parametrize("step", ["rename", "posix_fallocate"])
def test_a_sheet_that_could_not_be_made_is_neither_there_nor_open(
    board: StatusDir, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    sheet = StatusFile(board)
    opened = os.listdir("/dev/fd")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, no_space)
        with pytest.raises(OSError, match="No space left"):
            sheet.write({"n": 1})

    assert names(board) == []
    assert os.listdir("/dev/fd") == opened
    assert not sheet.touch()
    sheet.write({"n": 2})
    assert numbers(board) == [2]


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_withdrawn_sheet_is_written_into_nobody_elses_file(
    board: StatusDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = published(board, n=1)
    writing, withdrawn = threading.Event(), threading.Event()
    write = flask_mysqlpool.workers.records.write_record

    def write_late(fd: int, content: Any) -> None:
        writing.set()
        withdrawn.wait(0.5)
        write(fd, content)

    monkeypatch.setattr(flask_mysqlpool.workers.status_file, "write_record", write_late)
    with ThreadPoolExecutor(1) as threads:
        written = threads.submit(sheet.write, {"n": 2})
        assert writing.wait(5)
        sheet.remove()
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
def test_who_touches_a_sheet_learns_that_it_has_to_be_written_again(
    board: StatusDir, harm: Callable[[Path], None]
) -> None:
    sheet = published(board, n=1)
    assert sheet.touch()
    harm(Path(board.path, sheet.id + STATUS))

    assert not sheet.touch()
    sheet.write({"n": 2})

    assert numbers(board) == [2]
    assert sheet.touch()


def test_a_sheet_that_could_not_be_written_is_not_one_to_touch(
    board: StatusDir, start: Callable[[], Worker]
) -> None:
    worker = start()
    worker.ask("signal.signal(signal.SIGXFSZ, signal.SIG_IGN)")
    worker.ask("resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))")
    worker.ask("attempt(n=1)")
    assert worker.ask("sheet.touch()") == "True"

    worker.ask("attempt(n=2, text='x' * 5000)")

    assert worker.ask("sheet.touch()") == "False"


def test_a_touch_tells_that_the_worker_is_alive(board: StatusDir) -> None:
    sheet = published(board, n=1)
    path = Path(board.path, sheet.id + STATUS)
    os.utime(path, (0, 0))
    assert board.read().heard == {sheet.id: 0}

    sheet.touch()

    assert board.read().heard[sheet.id] == path.stat().st_mtime > 0


def test_a_sheet_with_two_names_counts_once(board: StatusDir) -> None:
    sheet = published(board, n=1)
    os.link(Path(board.path, sheet.id + STATUS), Path(board.path, "f" * 16 + STATUS))

    assert numbers(board) == [1]


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
def test_what_is_no_sheet_is_named_and_the_others_are_read(
    board: StatusDir, make: Callable[[Path], None]
) -> None:
    sheet = published(board, n=1)
    path = Path(board.path, "0" * 16 + STATUS)
    make(path)

    with ExitStack() as stack:
        if path.is_file() and not path.is_symlink():  # or else it is that of a dead one
            fcntl.flock(stack.enter_context(path.open()), fcntl.LOCK_EX)
        reading = board.read()

    assert [found["id"] for found in reading.records] == [sheet.id]
    [problem] = reading.problems
    assert problem.startswith(f"{path.name}: ")
    assert path.is_symlink() or path.exists()


@pytest.mark.parametrize(
    "harm", [truncate, pytest.param(lambda p: os.chown(p, 65534, 65534), marks=AS_ROOT)]
)
def test_a_live_worker_that_cannot_be_read_is_told_from_what_is_no_worker(
    board: StatusDir, harm: Callable[[Path], None]
) -> None:
    sheet = published(board, n=1)
    path = Path(board.path, sheet.id + STATUS)
    harm(path)
    Path(board.path, "notes.txt").touch()

    reading = board.read()

    [hidden] = reading.hidden
    assert hidden.startswith(f"{path.name}: a worker that cannot be read: ")
    assert hidden in reading.problems and len(reading.problems) == 2
    assert path.exists()


def test_what_is_not_ours_is_named_and_left_there(board: StatusDir) -> None:
    published(board, n=1)
    path = Path(board.path, "notes.txt")
    path.touch()

    reading = board.read()

    assert len(reading.records) == 1
    assert reading.problems == ["notes.txt: not ours"]
    assert path.exists()


def test_what_a_crash_left_half_made_is_removed_after_a_while(board: StatusDir) -> None:
    published(board, n=1)
    young, old = (Path(board.path, name * 16 + NEW) for name in "ab")
    for path, age in (young, 0), (old, 3600):
        path.touch()
        os.utime(path, times=(path.stat().st_atime, path.stat().st_mtime - age))

    assert numbers(board) == [1]
    assert (young.exists(), old.exists()) == (True, False)


# The folder


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_refused(
    board: StatusDir, mode: int
) -> None:
    os.mkdir(board.path)
    os.chmod(board.path, mode)

    with pytest.raises(PermissionError, match="by others"):
        board.read()
    with pytest.raises(PermissionError):
        published(board, n=1)
    with pytest.raises(PermissionError):
        board.update_desired("shop/default", raised)
    assert names(board) == []


@AS_ROOT
def test_a_folder_of_somebody_else_is_not_written_to(board: StatusDir) -> None:
    os.mkdir(board.path, 0o700)
    os.chown(board.path, 65534, 65534)

    with pytest.raises(PermissionError, match="belongs to"):
        published(board, n=1)
    assert names(board) == []


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "/",
    ],
)
def test_a_symbolic_link_is_not_followed(tmp_path: Path, ending: str) -> None:
    (tmp_path / "elsewhere").mkdir(0o700)
    (tmp_path / "board").symlink_to("elsewhere")
    board = StatusDir(f"{tmp_path}/board{ending}")

    with pytest.raises(OSError, match="is a symbolic link"):
        published(board, n=1)
    with pytest.raises(OSError):
        board.update_desired("shop/default", raised)
    assert not list((tmp_path / "elsewhere").iterdir())


@AS_ROOT
def test_what_root_makes_belongs_to_the_owner_of_what_was_there(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    board = StatusDir(tmp_path / "instance" / "run" / "board")

    board.update_desired("shop/default", raised)

    made = [path for path in tmp_path.rglob("*")]
    assert len(made) == 6
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {
        (65534, 65534)
    }
    assert board.place() == f"{board.path}, which belongs to nobody"


def test_a_folder_that_was_removed_is_made_anew(board: StatusDir) -> None:
    sheet = published(board, n=1)
    shutil.rmtree(board.path)

    with pytest.raises(FileNotFoundError):
        board.read()
    sheet.write({"n": 2})

    assert numbers(board) == [2]
    assert stat.S_IMODE(os.stat(board.path).st_mode) == 0o700


def test_a_sheet_that_was_removed_is_made_anew(board: StatusDir) -> None:
    sheet = published(board, n=1)
    os.unlink(os.path.join(board.path, sheet.id + STATUS))
    assert numbers(board) == []

    sheet.write({"n": 2})

    assert numbers(board) == [2]


# Desired state


def test_nothing_is_ordered_until_somebody_does(board: StatusDir) -> None:
    os.mkdir(board.path, 0o700)

    assert board.desired("shop/default") == DesiredState(0, paused=False)


def test_every_pool_has_orders_of_its_own(board: StatusDir) -> None:
    reader = StatusDir(board.path)
    assert board.update_desired("shop/default", raised) == DesiredState(1, False)
    assert reader.desired("shop/default") == DesiredState(1, False)

    board.update_desired("shop/reports", lambda desired: desired._replace(paused=True))

    assert reader.desired("shop/default") == DesiredState(1, False)
    assert reader.desired("shop/reports") == DesiredState(0, True)
    assert stat.S_IMODE(os.stat(os.path.join(board.path, DESIRED)).st_mode) == 0o600
    assert board.read().problems == []


def test_orders_given_at_once_are_all_carried_out(
    board: StatusDir, start: Callable[[], Worker]
) -> None:
    workers = [start() for _ in range(3)]
    for worker in workers:
        worker.tell(
            "len([board.update_desired('shop/default', more) for _ in range(200)])"
        )
    for worker in workers:
        assert worker.hear() == "200"

    assert board.desired("shop/default").generation == 600


@pytest.mark.parametrize("damage", [b"damage" * 999, b"{}"])
def test_damaged_orders_are_an_error_until_the_next_are_given(
    board: StatusDir, damage: bytes
) -> None:
    board.update_desired("shop/default", raised)
    Path(board.path, DESIRED).write_bytes(damage)

    with pytest.raises(ValueError, match="damaged"):
        StatusDir(board.path).desired("shop/default")
    board.update_desired("shop/default", raised)

    assert StatusDir(board.path).desired("shop/default").generation == 1


@pytest.mark.parametrize(
    "orders", [5, {}, {"generation": "soon", "paused": False}, {"generation": 1}]
)
def test_orders_that_say_something_else_are_damaged_as_well(
    board: StatusDir, orders: object
) -> None:
    board.update_desired("shop/reports", raised)
    with open(f"{board.path}/{DESIRED}", "r+b") as file:
        write_record(file.fileno(), {"shop/default": orders})

    with pytest.raises(ValueError, match="damaged"):
        board.desired("shop/default")

    assert board.update_desired("shop/default", raised) == DesiredState(1, False)


def test_a_reader_of_damaged_orders_notices_the_next(board: StatusDir) -> None:
    reader = StatusDir(board.path)
    board.update_desired("shop/default", raised)
    reader.desired("shop/default")
    Path(board.path, DESIRED).write_bytes(b"damage")
    with pytest.raises(ValueError):
        reader.desired("shop/default")

    board.update_desired("shop/default", lambda desired: DesiredState(7))

    assert reader.desired("shop/default").generation == 7


@pytest.mark.parametrize("given", [True, False])
def test_a_desired_state_is_read_again_only_after_a_change(
    board: StatusDir, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    if given:
        board.update_desired("shop/default", raised)
    os.makedirs(board.path, mode=0o700, exist_ok=True)
    for path in (*Path(board.path).iterdir(), Path(board.path)):
        os.utime(path, (0, 0))
    assert board.desired("shop/default").generation == given

    with monkeypatch.context() as patch:
        patch.setattr(StatusDir, "opened", None)
        assert board.desired("shop/default").generation == given
    StatusDir(board.path).update_desired("shop/default", lambda _: DesiredState(7))

    assert board.desired("shop/default").generation == 7


@pytest.mark.parametrize(
    ("harm", "fault"),
    [(make_link_of, "a symbolic link"), (make_folder_of, "not a file")],
)
def test_what_is_in_the_way_of_orders_is_named_with_a_mend_and_left_there(
    board: StatusDir, harm: Callable[[Path], None], fault: str
) -> None:
    board.update_desired("shop/default", raised)
    path = Path(board.path, DESIRED)
    harm(path)

    with pytest.raises(ValueError, match=fault):
        board.desired("shop/default")
    with pytest.raises(Unusable, match=f"{fault}.*orders") as refused:
        board.update_desired("shop/default", raised)

    assert refused.value.fix == "remove it"
    assert path.is_symlink() or path.is_dir()
    assert names(board) == [DESIRED]


def test_orders_are_not_given_for_ever_where_the_lock_is_held(
    board: StatusDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flask_mysqlpool.workers.records, "TURN", 0.05)
    board.update_desired("shop/default", raised)
    with open(f"{board.path}/orders.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"keeps it locked.*orders\.lock"):
            board.update_desired("shop/default", raised)

    assert board.update_desired("shop/default", raised).generation == 2


def test_an_order_that_waited_for_a_lock_that_was_removed_locks_the_new_one(
    board: StatusDir,
) -> None:
    board.update_desired("shop/default", raised)
    path = f"{board.path}/orders.lock"

    def change(desired: DesiredState) -> DesiredState:
        with open(path) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return raised(desired)

    with ThreadPoolExecutor(1) as threads, open(path) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ordered = threads.submit(board.update_desired, "shop/default", change)
        time.sleep(0.02)  # it waits, or is about to
        os.unlink(path)
        lock.close()

        assert ordered.result() == board.desired("shop/default") == DesiredState(2)


def test_an_order_for_one_pool_leaves_those_for_others_as_they_are(
    board: StatusDir,
) -> None:
    board.update_desired("shop/default", raised)
    other = {"generation": "of another version", "until": 7}
    with open(f"{board.path}/{DESIRED}", "r+b") as file:
        write_record(file.fileno(), {"blog/default": other, "shop/default": 5})
    with pytest.raises(ValueError, match="damaged"):
        board.desired("shop/default")

    board.update_desired("shop/default", raised)

    with board.opened() as folder:
        content = load_record(folder, DESIRED)
    assert content["blog/default"] == other
    assert board.desired("shop/default") == DesiredState(1)


@AS_ROOT
def test_a_file_that_cannot_be_given_to_the_folders_owner_is_not_left_open(
    board: StatusDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkdir(board.path, 0o700)
    os.chown(board.path, 65534, 65534)
    opened = os.listdir("/dev/fd")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fchown", no_space)
        with pytest.raises(OSError, match="No space left"):
            board.update_desired("shop/default", raised)

    assert os.listdir("/dev/fd") == opened
    assert board.desired("shop/default") == DesiredState()


@AS_ROOT
def test_an_owner_who_has_no_name_is_told_by_number(board: StatusDir) -> None:
    sheet = published(board, n=1)
    os.chown(f"{board.path}/{sheet.id}{STATUS}", 54321, 54321)

    [problem] = board.read().problems

    assert problem.endswith("it belongs to user 54321")


@AS_ROOT
def test_where_root_has_given_orders_the_owner_still_can(board: StatusDir) -> None:
    os.mkdir(board.path, 0o700)
    os.chown(board.path, 65534, 65534)
    board.update_desired("shop/default", raised)

    owners = {path.stat().st_uid for path in Path(board.path).iterdir()}

    assert owners == {65534}
