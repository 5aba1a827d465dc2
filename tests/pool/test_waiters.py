from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any
from weakref import ref

import pytest

from flask_mysqlpool.pool.waiters import Waiter, WaiterQueue


class Owner:
    """What somebody waits on behalf of."""


OWNER = Owner()


def came_at(since: float, owner: Owner = OWNER) -> Waiter[str]:
    return Waiter(since, since + 1, ref(owner))


def line(*waiters: Waiter[str]) -> WaiterQueue[str]:
    queue: WaiterQueue[str] = WaiterQueue()
    for waiter in waiters:
        queue.join(waiter)
    return queue


def test_who_came_first_is_served_first() -> None:
    first, second = came_at(1), came_at(2)
    queue = line(first, second)

    held = dict.fromkeys("abc", ref(Owner()))

    assert queue.hand_over("a", held)
    assert queue.hand_over("b", held)

    assert (first.item, second.item) == ("a", "b")
    assert not queue.hand_over("c", held)
    assert [(item, owner()) for item, owner in held.items()] == [
        ("c", None),
        ("a", OWNER),
        ("b", OWNER),
    ]


def test_a_line_that_a_signal_handler_changes_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, third = (came_at(since) for since in (1, 2, 3))
    queue = line(first, second)
    handlers = [lambda: queue.leave(first)]

    def interrupted(line: Iterator[Any], count: int) -> Iterator[Any]:
        while handlers:
            handlers.pop()()
        return islice(line, count)

    monkeypatch.setattr("flask_mysqlpool.pool.waiters.islice", interrupted)

    assert queue.first(2) == (second,)
    handlers.append(lambda: queue.leave(second))
    queue.join(third)
    assert tuple(queue) == (third,)


def test_who_has_left_is_passed_over() -> None:
    first, second = came_at(1), came_at(2)
    queue = line(first, second)

    assert queue.leave(first)
    queue.hand_over("a", {"a": ref(OWNER)})

    assert (first.item, second.item) == (None, "a")


def test_who_was_served_cannot_leave_any_more() -> None:
    waiter = came_at(1)
    queue = line(waiter)
    queue.hand_over("a", {"a": ref(OWNER)})

    assert not queue.leave(waiter)
    assert waiter.served


def test_who_comes_back_stands_where_he_stood() -> None:
    oldest, old, young = came_at(1), came_at(2), came_at(3)
    queue = line(young)

    queue.join(old)
    queue.join(oldest)

    assert list(queue) == [oldest, old, young]


def test_who_has_gone_without_leaving_is_passed_over() -> None:
    owner = Owner()
    ghost, second = came_at(1, owner), came_at(2)
    queue = line(ghost, second)

    del owner

    assert queue.hand_over("a", {"a": ref(OWNER)})
    assert second.item == "a"


def test_a_ring_before_the_wait_is_not_lost() -> None:
    waiter = came_at(1)
    waiter.wake()
    waiter.wake()

    waiter.wait(60)  # would make the test time out
    assert not waiter.served


def test_who_has_no_deadline_can_be_woken() -> None:
    waiter = came_at(1)
    waiter.wake()

    waiter.wait(float("inf"))
    assert not waiter.served
