"""The modules of the package that a checkout runs through, in order; -s prints them."""

from __future__ import annotations

import _thread
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import MakePool

import flask_mysqlpool

PACKAGE = Path(flask_mysqlpool.__file__).parent


@pytest.fixture
def visited(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[], Any]], list[str]]:
    """Call a function; return the modules that it visits, and threads it starts do."""
    found: dict[str, None] = {}

    def note(frame: FrameType, event: str, arg: object) -> None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            found[str(path.relative_to(PACKAGE))] = None

    def start(function: Callable[..., object], args: tuple[Any, ...]) -> int:
        def run() -> None:
            sys.setprofile(note)
            function(*args)

        return _start(run, ())

    _start = _thread.start_new_thread
    monkeypatch.setattr(_thread, "start_new_thread", start)

    def visit(function: Callable[[], Any]) -> list[str]:
        found.clear()
        sys.setprofile(note)
        try:
            function()
        finally:
            sys.setprofile(None)
        print(f"\n{len(found)}: {', '.join(found)}")
        return [*found]

    return visit


@pytest.mark.skipif(
    sys.implementation.name != "cpython",
    reason="PyPy polls in another way",
)
@pytest.mark.one_engine
def test_a_checkout_visits_few_modules(make_pool: MakePool, visited: Any) -> None:
    pool = make_pool(SSL_MODE="DISABLED")
    first = visited(lambda: pool.connection().close())
    taken = []
    idle = visited(lambda: taken.append(pool.connection()))
    taken.pop().close()

    assert idle == [
        *("pool/pool.py", "pool/connection.py", "pool/driver/process.py"),
        *("pool/state.py", "pool/driver/transport.py"),
    ]
    assert set(idle) < set(first)
    assert len(first) <= 17
