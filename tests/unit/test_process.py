"""A process is known by more than its number, which may be that of its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial

import pytest
from conftest import MakePool

import flask_mysqlpool.pool.driver.process
from flask_mysqlpool import ConnectionShared
from flask_mysqlpool.pool.driver.process import process
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


def in_a_child(check: Callable[[], bool]) -> bool:
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = 0 if check() else 1
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
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


#: In a process of its own: Python, which does not see this fork, may wait in the child
#: for a thread that only the parent has.
FORK_IN_C = """
import ctypes, os, sys
from flask_mysqlpool.pool.driver import process as module
if sys.argv[1] == "_ById":
    module._page = module._ById()
before = module.process()
library = getattr(ctypes, "PyDLL", ctypes.CDLL)(None)  # PyPy lacks the first
child = library.fork()
if child == 0:
    os._exit(module.process() != before)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(code == 1 and module.process() == before)
"""


@pytest.mark.parametrize("page", ["_page", "_ById"])
def test_a_fork_that_python_did_not_see_is_noticed(page: str) -> None:
    command = [sys.executable, "-c", FORK_IN_C, page]
    assert subprocess.check_output(command, timeout=60) == b"True\n"


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
