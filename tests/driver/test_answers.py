"""The answers to a clean-up are read without the driver's parser, and just as by it.

Each answer is given by a scripted server, whole and cut in two at every byte.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from liars import END, OK, SALT, Liar, Talk, config, greeting, packet, refusal, result
from pymysql.constants import COMMAND, SERVER_STATUS
from pymysql.err import OperationalError, ProgrammingError

from flask_mysqlpool.pool.driver.connector import Connector

#: What may follow the status of an OK, and flags of the status.
MORE = SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS
IN_TRANSACTION = SERVER_STATUS.SERVER_STATUS_IN_TRANS


def ok(rows: int = 0, id: int = 0, status: int = 2, warnings: int = 0) -> bytes:
    numbers = status.to_bytes(2, "little") + warnings.to_bytes(2, "little")
    return bytes([0, rows, id]) + numbers


def answer(*bodies: bytes, first: int = 1) -> bytes:
    return b"".join(packet(first + n, body) for n, body in enumerate(bodies))


#: What the server sends to two commands.
ANSWERS = {
    "two": answer(ok()) * 2,
    "in a transaction": answer(ok(status=IN_TRANSACTION)) + answer(ok(status=3)),
    "then another status": answer(ok(status=IN_TRANSACTION)) + answer(ok()),
    "with a high bit": answer(ok(status=0x4002)) * 2,
    "of rows": answer(ok(rows=3)) * 2,
    "of an id": answer(ok(id=7)) * 2,
    "of many rows": answer(bytes([0, 0xFC, 1, 1, 0]) + ok()[3:]) * 2,
    "of a large id": answer(bytes([0, 0, 0xFC, 1, 1]) + ok()[3:]) * 2,
    "of a warning": answer(ok(warnings=1)) * 2,
    "with a text": answer(ok() + b"Rows matched: 0") * 2,
    "with a long text": answer(ok() + b"x" * 300) * 2,
    "more": answer(ok(status=2 | MORE), ok()) + answer(ok()),
    "more and rows": answer(ok(status=2 | MORE), *result([b"a"], [b"1"])) + answer(OK),
    "rows": answer(*result([b"a"], [b"1"])) + answer(OK),
    "an error": answer(refusal(1064)) + answer(OK),
    "an error after it": answer(ok()) + answer(refusal(1205)),
    "an error after more": answer(ok(status=2 | MORE), refusal(1064)) + answer(OK),
    "an end of rows": answer(END) + answer(OK),
    "the wrong number": answer(ok(), first=2) + answer(ok()),
    "the number 0": answer(ok(), first=0) + answer(ok()),
    "a number after it": answer(ok()) + answer(ok(), first=2),
    "too short": answer(ok()[:5]) + answer(ok()),
    "empty": answer(b"") + answer(ok()),
    "not zero": answer(b"\1" + ok()[1:]) + answer(ok()),
    "one too many": answer(ok()) * 3,
    "greeting": packet(0, greeting()) + answer(ok()),
    "a shorter length": b"\6" + answer(ok())[1:] + answer(ok()),
    "a longer length": b"\x08" + answer(ok())[1:] + answer(ok()),
    "salt": packet(1, SALT) + answer(ok()),
}


#: Where to cut these, at every byte; others only at what the reader looks at.
CUT_FINELY = {"two", "more"}


def sends(first: bytes, then: bytes, go: threading.Event) -> Callable[[Talk], None]:
    """A script: let in, set up; two commands are answered in pieces, and closed."""

    def script(talk: Talk) -> None:
        talk.let_in()
        talk.serve(until=b"\x0e")
        talk.hear()
        talk.raw(first)
        go.wait(5)
        talk.raw(then)

    return script


def outcome(data: bytes, cut: int, parsed: bool | None = None) -> tuple[Any, ...]:
    """What comes of two answers, all ``parsed`` by the driver, none, or some."""
    go = threading.Event()
    with Liar(sends(data[:cut], data[cut:], go)) as liar:
        settings = config(liar.port, PIPELINING="on")
        con = Connector(settings).connect(time.monotonic() + 30)
        read_ok = con._read_ok

        def noted() -> bool:
            done = not parsed and read_ok()
            go.set()  # what is here was looked at
            return done

        con._read_ok = noted  # type: ignore[method-assign]
        if parsed is False:
            con._read_answer = None  # type: ignore[method-assign, assignment]
        con.write([(COMMAND.COM_PING, b"")] * 2)
        if cut == 0:
            go.set()
        try:
            told: Any = con.read_answers(time.monotonic() + 30)
        except Exception as error:
            told = type(error), error.args
        raw = con.raw
        seen: tuple[Any, ...] = (
            told,
            raw.server_status,
            con.unanswered,
            con.lost is None,
        )
        if con.lost is None:
            seen += raw._next_seq_id, raw._affected_rows, raw._rfile.read()
        con.abandon()
    return seen


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_read_as_by_the_driver_wherever_they_are_cut(name: str) -> None:
    data = ANSWERS[name]
    expected = outcome(data, 0, parsed=True)
    cuts = range(len(data)) if name in CUT_FINELY else {0, 4, 11}
    for cut in cuts:
        assert outcome(data, cut) == expected, cut


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("two", [[], []]),
        ("more", [[], []]),
        ("more and rows", [[{"a": "1"}], []]),
        ("an error after it", (OperationalError, (1205, "no"))),
        ("an error after more", (ProgrammingError, (1064, "no"))),
    ],
)
def test_answers_are_what_the_server_says(name: str, answers: object) -> None:
    assert outcome(ANSWERS[name], 0)[0] == answers


@pytest.mark.parametrize("name", ["two", "with a text", "of a warning"])
def test_a_plain_answer_is_not_parsed(name: str) -> None:
    assert outcome(ANSWERS[name], 0, parsed=False) == outcome(ANSWERS[name], 0)
