"""A process is known by more than its number, which may be that of its parent."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from conftest import MakePool

import flask_mysqlpool.pool.driver.process
from flask_mysqlpool import ConnectionShared
from flask_mysqlpool.pool.driver.process import _ById, _page, process
from flask_mysqlpool.testing.fake_driver import FakePool

pytestmark = [
    pytest.mark.one_engine,
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]


@pytest.fixture
def same_number(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have each process take itself for number 1, as in containers."""
    patch = partial(
        monkeypatch.setattr, flask_mysqlpool.pool.driver.process, "getpid", lambda: 1
    )
    return patch


def in_a_child(check: Callable[[], bool], fork: Callable[[], int] = os.fork) -> bool:
    child = fork()
    if child == 0:
        code = 2
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_is_none_of_its_ancestors(same_number: Callable[[], None]) -> None:
    same_number()
    first = process()

    def child() -> bool:
        second = process()
        return second != first and in_a_child(lambda: process() not in (first, second))

    assert in_a_child(child)
    assert process() == first


@pytest.mark.parametrize("page", [_page, _ById()])
def test_a_fork_that_python_did_not_see_is_noticed(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flask_mysqlpool.pool.driver.process, "_page", page)
    before = process()
    library = getattr(ctypes, "PyDLL", ctypes.CDLL)(None)  # PyPy lacks the first

    assert in_a_child(lambda: process() != before, fork=library.fork)
    assert process() == before


def test_a_child_with_the_number_of_its_parent_has_a_pool_of_its_own(
    same_number: Callable[[], None],
) -> None:
    same_number()
    pool = FakePool(MAX_SIZE=2)
    held = pool.connection()
    pool.connection().close()

    def child() -> bool:
        empty = pool.stats().size == 0
        with pool.connection():
            return empty and pool.stats().in_use == 1

    assert in_a_child(child)
    assert pool.stats().size == 2
    held.close()


def test_a_child_with_the_number_of_its_parent_leaves_its_sockets_alone(
    make_pool: MakePool, same_number: Callable[[], None]
) -> None:
    pool = make_pool()
    same_number()
    with pool.connection() as held, held.cursor() as cursor:
        number = held.thread_id()

        def child() -> bool:
            try:
                cursor.execute("SELECT 2")
            except ConnectionShared:
                pass
            else:
                return False
            held.close()
            with pool.connection() as own:
                return own.thread_id() != number

        assert in_a_child(child)
        cursor.execute("SELECT CONNECTION_ID()")
        assert cursor.fetchall() == ((number,),)
