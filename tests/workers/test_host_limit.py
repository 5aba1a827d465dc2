"""One budget of connections over processes that live, fork and die."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workers import Worker, forked, started

from flask_mysqlpool import PoolError
from flask_mysqlpool.workers.host_limit import Demand, HostLimit, fair_shares
from flask_mysqlpool.workers.status_dir import MARK, StatusDir

NAME = "budget-shop"

TAKER = """
import os, signal, sys, time
from flask_mysqlpool.workers.status_dir import StatusDir
from flask_mysqlpool.workers.host_limit import HostLimit
budget = HostLimit(StatusDir(sys.argv[1]), "budget-shop", int(sys.argv[2]))
held = []
def take():
    slot = budget.take()
    if slot is not None:
        held.append(slot)
    return slot is not None
def take_turns(seconds):
    turns = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        slot = budget.take()
        if slot is not None:
            begun = time.monotonic()
            time.sleep(0.001)
            turns.append([begun, time.monotonic()])
            del slot
        time.sleep(0.0005)
    return turns
for line in sys.stdin:
    print(eval(line), flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> StatusDir:
    return StatusDir(tmp_path / "status")


@pytest.fixture
def start(folder: StatusDir) -> Iterator[Callable[[int], Worker]]:
    with ExitStack() as stack:
        yield lambda size: stack.enter_context(started(TAKER, folder.path, size))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_is_for_the_owner_of_the_folder_to_use(
    folder: StatusDir,
) -> None:
    os.mkdir(folder.path, 0o700)
    os.chown(folder.path, 65534, 65534)

    slot = HostLimit(folder, NAME, 1).take()

    assert slot is not None
    assert os.stat(os.path.join(folder.path, NAME)).st_uid == 65534


def test_slots_stay_taken_when_the_mark_of_the_folder_is_removed(
    folder: StatusDir, start: Callable[[int], Worker]
) -> None:
    holder, other = start(1), start(1)
    assert holder.ask("take()") == "True"
    os.unlink(os.path.join(folder.path, MARK))

    assert holder.ask("budget._status_dir.read() and None") == "None"

    assert other.ask("take()") == "False"


def test_a_huge_file_is_read_in_part(folder: StatusDir) -> None:
    limit = HostLimit(folder, NAME, 2)
    assert limit.share(0.0, 1, short=True) is None
    os.truncate(os.path.join(folder.path, NAME), 1 << 36)

    assert len(limit._file().demands()) <= 1 << 15
    assert limit.share(0.0, 1, short=True) is None


# Shares

CLAIMS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 8)), min_size=1, max_size=6
).map(
    lambda pairs: [
        Demand(float(since), n, demand) for n, (since, demand) in enumerate(pairs)
    ]
)
SIZES = st.integers(0, 20)


@given(SIZES, CLAIMS)
def test_nothing_is_given_twice_withheld_or_unasked_for(
    size: int, claims: list[Demand]
) -> None:
    shares = fair_shares(size, claims)

    assert set(shares) == {claim.worker for claim in claims}
    assert all(0 <= shares[claim.worker] <= claim.demand for claim in claims)
    assert sum(shares.values()) == min(size, sum(claim.demand for claim in claims))


@given(SIZES, CLAIMS)
def test_nobody_has_two_more_than_who_wants_more(
    size: int, claims: list[Demand]
) -> None:
    shares = fair_shares(size, claims)
    unmet = [shares[c.worker] for c in claims if shares[c.worker] < c.demand]

    assert max(shares.values()) <= min(unmet, default=99) + 1


@given(SIZES, CLAIMS)
def test_who_has_waited_longer_has_not_less(size: int, claims: list[Demand]) -> None:
    shares = fair_shares(size, claims)

    for one in claims:
        for other in claims:
            if one.since < other.since and shares[one.worker] < one.demand:
                assert shares[one.worker] >= shares[other.worker]


@given(SIZES, CLAIMS, st.randoms())
def test_all_workers_come_to_the_same_shares(
    size: int, claims: list[Demand], random: Random
) -> None:
    shuffled = sorted(claims, key=lambda _: random.random())

    assert fair_shares(size, shuffled) == fair_shares(size, claims)


def test_of_three_who_want_one_of_two_those_get_it_who_waited_longest() -> None:
    claims = [Demand(3.0, 1, 5), Demand(1.0, 2, 5), Demand(2.0, 3, 5)]

    assert fair_shares(2, claims) == {1: 0, 2: 1, 3: 1}


# Within one process


def test_there_are_so_many_slots_and_no_more(folder: StatusDir) -> None:
    budget = HostLimit(folder, NAME, 2)

    slots = [budget.take() for _ in range(3)]

    assert [slot is not None for slot in slots] == [True, True, False]


def test_a_slot_that_nobody_refers_to_is_free(folder: StatusDir) -> None:
    budget = HostLimit(folder, NAME, 1)
    cycle: list[object] = [budget.take()]
    cycle.append(cycle)
    assert budget.take() is None

    del cycle
    gc.collect()

    assert budget.take() is not None


def test_two_budgets_of_one_path_are_one(folder: StatusDir) -> None:
    first = HostLimit(folder, NAME, 1)
    second = HostLimit(StatusDir(os.path.join(folder.path, "..", "status")), NAME, 1)

    slot = first.take()
    assert slot is not None
    assert second.take() is None
    del slot
    assert second.take() is not None


def test_budgets_of_two_names_do_not_share(folder: StatusDir) -> None:
    slot = HostLimit(folder, NAME, 1).take()

    assert slot is not None
    assert HostLimit(folder, "budget-blog", 1).take() is not None


def test_a_limit_that_cannot_be_kept_is_an_error(folder: StatusDir) -> None:
    Path(folder.path).touch()

    with pytest.raises(PoolError, match="MAX_HOST_CONNECTIONS cannot be kept"):
        HostLimit(folder, NAME, 1).take()


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_a_lock_that_cannot_be_had_is_an_error_and_costs_no_slot(
    folder: StatusDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = HostLimit(folder, NAME, 1)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "lockf", no_locks)
        with pytest.raises(PoolError, match="cannot be kept: .*No locks available"):
            budget.take()

    slot = budget.take()

    assert slot is not None
    assert budget.take() is None


# Over processes


def test_no_two_processes_have_one_slot(
    folder: StatusDir, start: Callable[[int], Worker]
) -> None:
    workers = [start(2) for _ in range(3)]
    for worker in workers:
        assert worker.ask("budget.take() and None") == "None"  # has started
    for worker in workers:
        worker.tell("take_turns(0.5)")
    turns = [json.loads(worker.hear()) for worker in workers]

    assert all(turns)
    moments = [(turn[i], (1, -1)[i]) for turn in sum(turns, []) for i in (0, 1)]
    at_once = list(accumulate(change for _, change in sorted(moments)))
    assert max(at_once) == 2


def test_what_a_killed_process_held_is_free_at_once(
    folder: StatusDir, start: Callable[[int], Worker]
) -> None:
    budget = HostLimit(folder, NAME, 2)
    worker = start(2)
    assert [worker.ask("take()") for _ in range(3)] == ["True", "True", "False"]
    assert budget.take() is None

    worker.kill()

    slots = [budget.take() for _ in range(3)]
    assert [slot is not None for slot in slots] == [True, True, False]


def test_a_child_holds_nothing_and_frees_nothing(
    folder: StatusDir, start: Callable[[int], Worker]
) -> None:
    budget = HostLimit(folder, NAME, 2)
    parent = start(2)
    parent.ask("take()")
    child = parent.ask("os.fork() or (held.clear(), take(), os._exit(len(held)))")
    status = parent.ask(f"os.WEXITSTATUS(os.waitpid({child}, 0)[1])")

    slot = budget.take()

    assert status == "1"  # the child could take the other, which its death freed
    assert slot is not None
    assert budget.take() is None
    assert parent.ask("take()") == "False"


def test_a_child_does_not_hold_what_its_dead_parent_held(
    folder: StatusDir, start: Callable[[int], Worker]
) -> None:
    budget = HostLimit(folder, NAME, 1)
    parent = start(1)
    parent.ask("take()")
    child = forked(parent)
    try:
        assert budget.take() is None
        parent.kill()
        os.kill(child, 0)  # is alive
        assert budget.take() is not None
    finally:
        os.kill(child, 9)


def test_who_finds_the_file_removed_keeps_what_it_has(
    folder: StatusDir, start: Callable[[int], Worker]
) -> None:
    holder, other = start(2), start(2)
    holder.ask("take()")
    os.unlink(os.path.join(folder.path, NAME))

    assert holder.ask("take()") == "True"
    assert holder.ask("take()") == "False"
    assert other.ask("take()") == "False"


def test_a_removed_file_does_not_make_the_budget_larger(
    folder: StatusDir, start: Callable[[int], Worker]
) -> None:
    holder, other = start(2), start(2)
    assert [worker.ask("take()") for worker in (holder, other)] == ["True", "True"]
    os.unlink(os.path.join(folder.path, NAME))

    assert other.ask("take()") == "False"
    assert holder.ask("take()") == "False"


def test_who_cannot_lock_the_new_file_at_first_does_so_later(
    folder: StatusDir, start: Callable[[int], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    budget, other = HostLimit(folder, NAME, 1), start(1)
    slot = budget.take()
    assert slot is not None
    os.unlink(os.path.join(folder.path, NAME))
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "lockf", no_locks)
        with pytest.raises(OSError, match="No locks available"):
            budget.share(0.0, 1, False)

    budget.share(0.0, 1, False)

    assert other.ask("take()") == "False"
