"""Errors cross from worker processes to their parents: they survive pickle and copy."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
from pymysql.err import OperationalError

from flask_mysqlpool import ConfigError, PoolError
from flask_mysqlpool.errors import ConnectionLost
from flask_mysqlpool.pool.driver.session import AnotherRole


def kinds(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    yield kind
    for further in kind.__subclasses__():
        yield from kinds(further)


MADE: dict[type[BaseException], BaseException] = {
    ConfigError: ConfigError(["HOST is wrong", "PORT is wrong"]),
    AnotherRole: AnotherRole(2003, "it is read-only"),
    OperationalError: OperationalError(1040, "Too many connections"),
}
KINDS = [*dict.fromkeys(kinds(PoolError)), AnotherRole, OperationalError]
WAYS = {
    **{
        f"pickle {n}": lambda e, n=n: pickle.loads(pickle.dumps(e, n))  # type: ignore[misc]
        for n in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_error_survives(kind: type[BaseException], way: str) -> None:
    error = MADE.get(kind) or kind("what happened")
    error.note = "kept"  # type: ignore[attr-defined]

    again = WAYS[way](error)

    assert type(again) is type(error)
    assert again.args == error.args
    assert str(again) == str(error)
    assert again.__dict__ == error.__dict__


def fail() -> None:
    raise ConnectionLost("the server is gone")


def test_an_error_comes_out_of_a_worker_process() -> None:
    with ProcessPoolExecutor(1) as workers, pytest.raises(ConnectionLost) as info:
        workers.submit(fail).result(timeout=30)
    assert info.value.args == (2006, "the server is gone")
