from __future__ import annotations

from flask_mysqlpool.waiters import Waiter, WaiterQueue


def line(*waiters: Waiter[str]) -> WaiterQueue[str]:
    queue: WaiterQueue[str] = WaiterQueue()
    for waiter in waiters:
        queue.join(waiter)
    return queue


def test_who_came_first_is_served_first() -> None:
    first, second = Waiter[str](0, 1), Waiter[str](0, 1)
    queue = line(first, second)

    assert queue.hand_over("a")
    assert queue.hand_over("b")

    assert (first.item, second.item) == ("a", "b")
    assert not queue.hand_over("c")


def test_who_has_left_is_passed_over() -> None:
    first, second = Waiter[str](0, 1), Waiter[str](0, 1)
    queue = line(first, second)

    queue.leave(first)
    queue.hand_over("a")

    assert (first.item, second.item) == (None, "a")


def test_who_was_served_cannot_be_refused_any_more() -> None:
    waiter = Waiter[str](0, 1)
    queue = line(waiter)
    queue.hand_over("a")

    assert not queue.refuse(waiter, OSError())
    assert waiter.item == "a"
    assert waiter.error is None


def test_who_comes_back_first_is_first_again() -> None:
    old, young = Waiter[str](0, 1), Waiter[str](0, 1)
    queue = line(young)

    queue.join(old, first=True)
    queue.hand_over("a")

    assert old.item == "a"


def test_a_ring_before_the_wait_is_not_lost() -> None:
    waiter = Waiter[str](0, 1)
    waiter.ring()
    waiter.ring()

    waiter.wait(60)  # would make the test time out
    assert not waiter.served
