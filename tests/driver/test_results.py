"""Packets are read as PyMySQL reads them, whatever the server sends."""

from __future__ import annotations

import functools
import io
import socket
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pymysql
import pytest
from conftest import MakePool
from hypothesis import given, settings
from hypothesis import strategies as st
from pymysql import converters
from pymysql.connections import MAX_PACKET_LEN, Connection
from pymysql.constants import CLIENT, FIELD_TYPE
from pymysql.cursors import (
    Cursor,
    DictCursor,
    DictCursorMixin,
    SSCursor,
    SSDictCursor,
)
from pymysql.err import (
    InternalError,
    MySQLError,
    OperationalError,
    ProgrammingError,
)

from flask_mysqlpool.pool.driver.results import (
    BUFFER,
    LONGEST,
    REMEMBERED,
    ReadingConnection,
    _columns,
    make_dict_maker,
)
from flask_mysqlpool.testing import LocalServer

THREADS = 4
ERROR = b"\xff\x28\x04#42000no such thing"


class Source(io.RawIOBase):
    """What a server sends, in pieces, and how that ends."""

    def __init__(self, data: bytes, piece: int, end: BaseException | None) -> None:
        # A view, because parts of it are not copied.
        self._data, self._piece, self._end = memoryview(data), piece, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._data and self._end is not None:
            raise self._end
        chunk = self._data[: min(self._piece, len(buffer))]
        self._data = self._data[len(chunk) :]
        buffer[: len(chunk)] = chunk
        return len(chunk)


def packet(payload: bytes, number: int) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number % 256]) + payload


# Long ones repeat themselves: to draw so many bytes takes a hundredth of a second.
payloads = st.one_of(
    st.binary(max_size=40),
    st.just(ERROR),
    st.tuples(st.binary(min_size=1, max_size=40), st.integers(9000, 9001)).map(
        lambda drawn: (drawn[0] * drawn[1])[: drawn[1]]
    ),
)
ENDS = (
    None,
    TimeoutError("timed out"),
    ConnectionResetError(104, "reset"),
    SystemExit(3),
)


def test_a_pooled_connection_reads_so(make_pool: MakePool) -> None:
    with make_pool().connection() as con, con.cursor() as cursor:
        assert type(con._con and con._con.raw) is ReadingConnection
        cursor.execute("SELECT REPEAT('x', 200000) AS long_one, 1 AS after")
        assert cursor.fetchall() == (("x" * 200_000, 1),)


# Result sets

EOF_PACKET = b"\xfe\x02\x00\x22\x00"
MORE_RESULTS = b"\xfe\x00\x00\x0a\x00"
#: The same from a server that tells of changes: as an OK, with and without a change.
AS_OK = {
    EOF_PACKET: b"\xfe\x00\x00\x22\x00\x02\x00",
    MORE_RESULTS: b"\xfe\x00\x00\x0a\x40\x00\x00\x00\x0b\x05\x09\x08T_R_W_S_",
    ERROR: ERROR,
}
#: Type, number of the character set, and cells as a server sends them.
KINDS: dict[int, tuple[int, list[bytes]]] = {
    FIELD_TYPE.LONG: (63, [b"0", b"-12", b"0042"]),
    FIELD_TYPE.DOUBLE: (63, [b"1.5", b"-1e300"]),
    FIELD_TYPE.NEWDECIMAL: (63, [b"12.30", b"0"]),
    FIELD_TYPE.DATETIME: (
        63,
        [
            *(b"2026-01-02 03:04:05", b"2026-01-02 03:04:05.5", b"0000-00-00 00:00:00"),
            *(b"2026-02-31 00:00:00", b"2026-01-02 03:04:05.123456", b"1-1-1 1:1:1"),
            *(
                b"2026-01-02 03:04:05+01:00",
                b"2026-01-02 24:00:00",
                b"2026-W01-1 03:04",
            ),
        ],
    ),
    FIELD_TYPE.DATE: (63, [b"2026-01-02", b"0000-00-00", b"2026-02-30", b"2026-W01-1"]),
    FIELD_TYPE.TIME: (63, [b"-838:59:59", b"12:00:00.25"]),
    FIELD_TYPE.BIT: (63, [b"\x00\xff"]),
    FIELD_TYPE.BLOB: (63, [b"\xff\x00", b""]),
    FIELD_TYPE.VAR_STRING: (45, ["naïve".encode(), b"", b"x" * 300]),
    FIELD_TYPE.JSON: (63, [b'{"a": 1}']),
    FIELD_TYPE.NULL: (63, []),
}
CELLS = {kind: st.sampled_from([None, *cells]) for kind, (_, cells) in KINDS.items()}


def coded(text: bytes | None) -> bytes:
    """A cell, or another text with its length before it."""
    if text is None:
        return b"\xfb"
    if len(text) < 251:
        return bytes([len(text)]) + text
    return b"\xfc" + len(text).to_bytes(2, "little") + text


def definition(kind: int, name: str) -> bytes:
    names = b"".join(map(coded, (b"def", b"d", b"t", b"t", name.encode(), b"a")))
    about = struct.pack("<HIBHBxx", KINDS[kind][0], 40, kind, 0, 0)
    return names + b"\x0c" + about


def response(
    kinds: list[int],
    rows: list[list[bytes | None]],
    end: bytes,
    names: int = 1000,
    tracked: bool = False,
) -> bytes:
    """What a server sends; with fewer names than columns, some have the same."""
    parts = [bytes([len(kinds)])]
    parts += [definition(kind, f"c{i % names}") for i, kind in enumerate(kinds)]
    parts += [] if tracked else [EOF_PACKET]
    parts += [b"".join(map(coded, row)) for row in rows]
    parts.append(AS_OK[end] if tracked else end)
    return b"".join(packet(part, 1 + index) for index, part in enumerate(parts))


@st.composite
def two_forms(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A result with an EOF after its definitions and rows, and as a tracked one."""
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=5))
    row = st.tuples(*map(CELLS.__getitem__, kinds)).map(list)
    rows: list[list[bytes | None]] = draw(st.lists(row, max_size=12))
    if rows and draw(st.integers(0, 9)) == 9:  # a row without the last column
        rows[-1].pop()
    end = draw(st.sampled_from((EOF_PACKET, MORE_RESULTS, ERROR)))
    names = draw(st.integers(1, 5))
    plain, tracked = (response(kinds, rows, end, names, how) for how in (False, True))
    return plain, tracked


def responses() -> st.SearchStrategy[bytes]:
    return two_forms().map(lambda forms: forms[0])


def integer(value: int) -> bytes:
    """A length, or another number that has as many bytes as it needs."""
    for first, size in ((252, 2), (253, 3), (254, 8)):
        if value < 251:
            return bytes([value])
        if value < 1 << 8 * size:
            return bytes([first]) + value.to_bytes(size, "little")
    raise ValueError(value)


integers = st.integers(0, 7).flatmap(lambda n: st.integers(0, (1 << 8 * n) - 1))


@st.composite
def oks(draw: st.DrawFn) -> bytes:
    numbers = integer(draw(integers)) + integer(draw(integers))
    about = struct.pack("<HH", draw(st.integers(0, 65535)), draw(st.integers(0, 3)))
    return packet(b"\0" + numbers + about + draw(st.binary(max_size=60)), 1)


def results(
    cls: type[Any],
    data: list[bytes],
    piece: int,
    unbuffered: bool,
    end: BaseException | None = None,
    in_dicts: bool = False,
    tracked: bool = False,
    **how: Any,
) -> list[Any]:
    """Read results one after another; return what came of each."""
    con = cls(defer_connect=True, ssl_disabled=True, **how)
    ours, theirs = socket.socketpair()
    con._sock, con._rfile = ours, io.BufferedReader(Source(b"".join(data), piece, end))
    con._current_timeout, con._read_timeout = -1, 3.0
    if cls is ReadingConnection:
        con.is_tracking = tracked
        con.read_faster()
    found: list[Any] = []
    try:
        for _ in data:
            con._result, con._next_seq_id = None, 1
            con._read_query_result(unbuffered)
            found += outcome_of(con, unbuffered, in_dicts)
    except BaseException as error:
        told = isinstance(error, MySQLError) and con._sock and con._next_seq_id
        found += getattr(con._result, "seen", [])
        found += [type(error), error.args, (told, con._sock is None)]
    finally:
        if con._result is not None:
            con._result.unbuffered_active = False
        found.append(ours.fileno() >= 0 and ours.gettimeout())
        ours.close()
        theirs.close()
    return found


class OfResult:
    """What a cursor takes over from a result."""

    def __init__(self, result: Any) -> None:
        self._result, self._rows = result, result.rows
        self.description = result.description

    def _do_get_result(self) -> None:
        """Nothing more."""


class Dicts(DictCursorMixin, OfResult):
    """As PyMySQL makes them of rows."""


def outcome_of(con: Any, unbuffered: bool, in_dicts: bool) -> list[Any]:
    """All that can be known of a result; of a broken stream, the rows before that."""
    result = con._result
    fields = getattr(result, "fields", ())
    names: Any = [(field.name, field.table_name) for field in fields]
    convert = None
    if in_dicts and result.field_count:
        if type(con) is ReadingConnection:
            names = result.make_rows(make_dict_maker)
        else:
            cursor: Any = Dicts(result)
            cursor._do_get_result()
            names, result.rows, convert = cursor._fields, cursor._rows, cursor._conv_row
    rows: Any = [] if unbuffered and result.field_count else result.rows
    result.seen = [rows]
    while (row := result._read_rowdata_packet_unbuffered()) is not None:
        rows.append(convert(row) if convert else row)
    return [
        rows,
        (result.description, names, result.affected_rows),
        (result.warning_count, result.has_next, con._next_seq_id),
        (result.unbuffered_active, result.field_count),
        (result.insert_id, result.message, result.server_status),
    ]


class Unhashable:
    """A converter of which nothing can be remembered."""

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, text: str) -> float:
        return float(text)


HOW: list[dict[str, Any]] = [
    {},
    {"use_unicode": False},
    {"conv": {FIELD_TYPE.LONG: float, FIELD_TYPE.DATETIME: str}},
    {"conv": {FIELD_TYPE.LONG: functools.partial(int, base=10)}},
]


@settings(max_examples=600)
@given(
    st.lists(st.one_of(responses(), oks()), min_size=1, max_size=3),
    st.sampled_from((1, 7, 100, 1 << 20)),
    st.booleans(),
    st.booleans(),
    st.sampled_from(HOW),
    st.integers(0, 30),
    st.sampled_from(ENDS),
)
def test_results_are_those_of_pymysql(
    sent: list[bytes],
    piece: int,
    unbuffered: bool,
    in_dicts: bool,
    how: dict[str, Any],
    cut: int,
    end: BaseException | None,
) -> None:
    """Of results that come twice, and of which the last one may be cut."""
    data = [each for each in sent for _ in range(2)]
    if cut > 15:
        data[-1] = data[-1][: cut - 30]
    given = data, piece, unbuffered, end, in_dicts

    expected = results(Connection, *given, **how)

    assert results(ReadingConnection, *given, **how) == expected


def without_numbers(found: list[Any]) -> list[Any]:
    """Leave out the packets' numbers: a tracked result has one packet less."""
    return [
        (each[0], each[1], type(each[2]))
        if isinstance(each, tuple) and len(each) == 3 and isinstance(each[2], int)
        else (bool(each[0]), each[1])
        if isinstance(each, tuple) and len(each) == 2 and isinstance(each[1], bool)
        else each
        for each in found
    ]


@settings(max_examples=400)
@given(
    st.lists(two_forms(), min_size=1, max_size=3),
    st.sampled_from((1, 7, 100, 1 << 20)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([*HOW, {"conv": {FIELD_TYPE.LONG: Unhashable()}}]),
)
def test_a_tracked_result_has_the_same_rows(
    sent: list[tuple[bytes, bytes]],
    piece: int,
    unbuffered: bool,
    in_dicts: bool,
    how: dict[str, Any],
) -> None:
    """No EOF comes after the definitions, and an OK in its place after the rows."""
    plain, tracked = ([forms[n] for forms in sent for _ in range(2)] for n in (0, 1))
    given = piece, unbuffered, None, in_dicts

    expected = results(Connection, plain, *given, **how)
    found = results(ReadingConnection, tracked, *given, True, **how)

    assert without_numbers(found) == without_numbers(expected)


def test_a_tracked_result_may_be_cut_at_every_byte() -> None:
    """Either it is read to its end, or the connection is lost; rows are never made."""
    rows: list[list[bytes | None]] = [[b"1", b"a"], [None, b"x" * 260], [b"3", b""]]
    for end in EOF_PACKET, MORE_RESULTS:
        kinds = [FIELD_TYPE.LONG, FIELD_TYPE.VAR_STRING]
        whole = response(kinds, rows, end, tracked=True)
        for unbuffered in (False, True):
            given: Any = 1 << 20, unbuffered, None, False, True
            complete = results(ReadingConnection, [whole, whole], *given)
            for length in range(len(whole)):
                data = [whole, whole[:length]]
                found = results(ReadingConnection, data, *given)
                assert found[:5] == complete[:5]
                assert found[-4] is OperationalError, length
                before: Any = found[5] if isinstance(found[5], list) else []
                assert before == list(complete[5])[: len(before)]


@settings(max_examples=600)
@given(two_forms(), st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_a_byte_that_is_wrong_in_a_tracked_result_is_read_in_one_way(
    forms: tuple[bytes, bytes], at: int, byte: int, unbuffered: bool
) -> None:
    """At once, and packet by packet: the same rows, or an error."""
    _, whole = forms
    at %= len(whole)
    bad = whole[:at] + bytes([byte]) + whole[at + 1 :]
    given: Any = unbuffered, None, False, True
    fast = results(ReadingConnection, [whole, bad], 1 << 20, *given)
    slow = results(ReadingConnection, [whole, bad], 1, *given)

    if isinstance(fast[-4], type) or isinstance(slow[-4], type):
        assert isinstance(fast[-4], type) == isinstance(slow[-4], type)
    else:
        assert fast == slow


@given(
    st.lists(st.tuples(payloads, st.integers(0, 12)), max_size=6),
    st.integers(0, 20),
    st.sampled_from((1, 3, 4, 5, 100, 1 << 20)),
    st.sampled_from(ENDS),
    st.booleans(),
)
def test_whatever_comes_is_read_as_by_pymysql(
    sent: list[tuple[bytes, int]],
    cut: int,
    piece: int,
    end: BaseException | None,
    unbuffered: bool,
) -> None:
    """In place of rows. One number in twelve is wrong, and the last may be cut."""
    data = [
        packet(payload, 5 + index + (off == 12))
        for index, (payload, off) in enumerate(sent)
    ]
    bare = response([FIELD_TYPE.VAR_STRING, FIELD_TYPE.LONG], [], EOF_PACKET)
    given = [bare, bare[:-9] + b"".join(data)[: -cut or None]], piece, unbuffered, end

    expected = results(Connection, *given)
    found = results(ReadingConnection, *given)

    if expected[-4] in (AssertionError, ValueError, UnicodeDecodeError):
        assert found[:-4] == expected[:-4]
        assert issubclass(found[-4], expected[-4])
    else:
        assert found == expected


def test_the_errors_are_told_apart() -> None:
    bare = response([FIELD_TYPE.LONG], [], EOF_PACKET)
    cases = {
        InternalError: packet(b"x", 7),
        OperationalError: packet(b"x", 0),
        ProgrammingError: packet(ERROR.replace(b"\x28\x04", b"\x7a\x04"), 4),
    }
    for unbuffered in (False, True):
        for kind, data in cases.items():
            given = [bare, bare[:-9] + data], 99, unbuffered
            found = results(ReadingConnection, *given)
            assert found == results(Connection, *given)
            assert found[-4] is kind


@pytest.mark.parametrize("more", [0, 1, MAX_PACKET_LEN])
def test_what_is_longer_than_a_packet_is_put_together(more: int) -> None:
    cell = b"\xfe" + (MAX_PACKET_LEN - 9 + more).to_bytes(8, "little")
    payload = cell + bytes(MAX_PACKET_LEN - 9 + more)
    parts = [
        payload[i : i + MAX_PACKET_LEN]
        for i in range(0, len(payload) + 1, MAX_PACKET_LEN)
    ]
    bare = response([FIELD_TYPE.BLOB], [], EOF_PACKET)[:-9]
    packets = [packet(part, 4 + index) for index, part in enumerate(parts)]
    data = bare + b"".join(packets) + packet(EOF_PACKET, 4 + len(parts))
    for unbuffered in (False, True):
        found = results(ReadingConnection, [data, data], 1 << 20, unbuffered)
        rows = [(bytes(MAX_PACKET_LEN - 9 + more),)]
        assert [list(found[0]), list(found[5])] == [rows, rows]


def test_a_result_may_be_cut_at_every_byte() -> None:
    rows: list[list[bytes | None]] = [[b"1", b"a"], [None, b"x" * 260], [b"3", b""]]
    whole = response([FIELD_TYPE.LONG, FIELD_TYPE.VAR_STRING], rows, EOF_PACKET)
    for length in range(len(whole) + 1):
        data = [whole, whole[:length]]
        for unbuffered in (False, True):
            expected = results(Connection, data, 1 << 20, unbuffered)
            found = results(ReadingConnection, data, 1 << 20, unbuffered)
            assert found == expected


@pytest.mark.parametrize("rows, insert_id", [(0, 0), (1, 300), (1 << 20, 1 << 40)])
def test_an_ok_may_be_cut_at_every_byte(rows: int, insert_id: int) -> None:
    numbers = integer(rows) + integer(insert_id)
    whole = packet(b"\0" + numbers + b"\2\0\1\0Rows matched: 1", 1)
    for length in range(len(whole) + 1):
        expected = results(Connection, [whole, whole[:length]], 1 << 20, False)
        assert expected[0:2] == [None, (None, [], rows)]
        assert results(ReadingConnection, [whole, whole[:length]], 1 << 20, False) == (
            expected
        )


def test_a_row_of_a_stream_is_there_once_its_last_byte_has_come() -> None:
    """And those before a row that cannot be converted come before the error."""
    kinds = [FIELD_TYPE.LONG, FIELD_TYPE.VAR_STRING]
    rows: list[list[bytes | None]] = [[b"%d" % n, b"a"] for n in range(6)]
    whole = response(kinds, rows, EOF_PACKET)
    told = [(n, "a") for n in range(6)]
    begin = len(response(kinds, [], b"")) - 4
    size = (len(whole) - begin - 9) // 6
    for length in range(begin, len(whole)):
        found = results(ReadingConnection, [whole, whole[:length]], 1 << 20, True)
        assert found[5:7] == [told[: (length - begin) // size], OperationalError]
    for bad in range(6):
        data = [whole, whole.replace(b"\1%d\1a" % bad, b"\1%d\1\xff" % bad)]
        found = results(ReadingConnection, data, 1 << 20, True)
        assert found == results(Connection, data, 1 << 20, True)
        assert found[5:7] == [told[:bad], UnicodeDecodeError]


@pytest.mark.parametrize("unbuffered", [False, True])
def test_an_interrupt_while_rows_are_converted_is_not_lost(unbuffered: bool) -> None:
    class Interrupt(Exception):
        """As the handler of a signal raises it, at any moment."""

    calls = []

    def convert(text: str) -> str:
        calls.append(text)
        if len(calls) == 10:
            raise Interrupt
        return text

    rows: list[list[bytes | None]] = [[b"%d" % n] for n in range(6)]
    whole = response([FIELD_TYPE.LONG], rows, EOF_PACKET)
    given: Any = [whole, whole], 1 << 20, unbuffered
    found = results(ReadingConnection, *given, conv={FIELD_TYPE.LONG: convert})
    assert Interrupt in found


def test_what_is_remembered_is_bounded() -> None:
    wide = response([FIELD_TYPE.LONG] * 150, [], EOF_PACKET)
    one = response([FIELD_TYPE.LONG], [], EOF_PACKET)
    for n in range(2 * REMEMBERED):
        name = bytes((33 + n % 90, 33 + n // 90))
        data = [one.replace(b"c0", name), wide]
        assert results(ReadingConnection, data, 1 << 20, False)[0] == ()
        assert sum(map(len, _columns.values())) <= REMEMBERED
    remembered = [known for results in _columns.values() for known in results]
    assert remembered
    assert all(len(beginning) < LONGEST + 5 for beginning, *_ in remembered)


def test_threads_may_read_new_columns_at_once() -> None:
    interval = sys.getswitchinterval()
    one = response([FIELD_TYPE.LONG], [], EOF_PACKET)

    def read(thread: int) -> list[Any]:
        names = [bytes((33 + thread, 33 + n)) for n in range(90)]
        data = [one.replace(b"c0", name) for name in names] * 12
        return results(ReadingConnection, data, 1 << 20, False)

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(THREADS) as threads:
            found = list(threads.map(read, range(THREADS)))
    finally:
        sys.setswitchinterval(interval)

    assert found == [read(thread) for thread in range(THREADS)]


@pytest.mark.parametrize("byte", [0, 1, 5, 251, 252, 254, 255])
def test_any_byte_may_be_another_one(byte: int) -> None:
    """A length, the kind of a packet, or what it says."""
    rows: list[list[bytes | None]] = [[b"1", b"a"], [None, b""]]
    whole = response([FIELD_TYPE.LONG, FIELD_TYPE.VAR_STRING], rows, EOF_PACKET)
    for at in range(len(whole)):
        assert_no_other_rows(whole, at, byte)


@settings(max_examples=1000)
@given(st.one_of(responses(), oks()), st.integers(0, 10_000), st.integers(0, 255))
def test_a_byte_that_is_wrong_never_makes_other_rows(
    whole: bytes, at: int, byte: int
) -> None:
    assert_no_other_rows(whole, at % len(whole), byte)


def assert_no_other_rows(whole: bytes, at: int, byte: int) -> None:
    """Any error will do, for the connection is lost by it; rows must be PyMySQL's."""
    data = [whole, whole[:at] + bytes([byte]) + whole[at + 1 :]]
    for unbuffered in (False, True):
        expected = results(Connection, data, 1 << 20, unbuffered)
        found = results(ReadingConnection, data, 1 << 20, unbuffered)
        if isinstance(expected[-4], type):
            assert found[:-4] == expected[:-4]
            assert isinstance(found[-4], type)
        else:
            assert found == expected


def test_many_rows_are_read_across_the_buffer() -> None:
    rows: list[list[bytes | None]] = [[b"%d" % i, b"y" * (i % 400)] for i in range(900)]
    rows[70][1] = b"z" * 40_000
    whole = response([FIELD_TYPE.LONG, FIELD_TYPE.VAR_STRING], rows, EOF_PACKET)
    for piece in (1000, BUFFER - 1, BUFFER, 1 << 20):
        for unbuffered in (False, True):
            data = [whole, whole]
            expected = results(Connection, data, piece, unbuffered)
            assert results(ReadingConnection, data, piece, unbuffered) == expected


# On real servers

TABLE = """
CREATE OR REPLACE TABLE kinds (
  a TINYINT, b SMALLINT UNSIGNED, c MEDIUMINT, d INT(8) ZEROFILL, e BIGINT UNSIGNED,
  f FLOAT, g DOUBLE, h DECIMAL(30, 10), i BIT(12), j DATE, k TIME(3), l DATETIME(6),
  m TIMESTAMP NULL, n YEAR, o CHAR(5), p VARCHAR(300), q TINYTEXT, r LONGTEXT,
  s BINARY(4), t VARBINARY(300), u BLOB, v JSON, w ENUM('x', 'ü'), y SET('p', 'q'),
  z DATETIME, latin VARCHAR(9) CHARACTER SET latin1, place POINT)
"""
ROWS = [
    "NULL, " * 26 + "NULL",
    "-128, 65535, -8388608, 42, 18446744073709551615, 1.5, -1e300,"
    " 12345678901234567890.5, b'101010101010', '2026-02-28', '-838:59:59',"
    " '2026-01-02 03:04:05.000001',"
    " '2026-01-02 03:04:05', 2026, 'naïve', REPEAT('ü', 300), '', REPEAT('y', 70000),"
    " 'a', UNHEX('00ff'), REPEAT('z', 300), '{\"ü\": [1]}', 'ü', 'p,q',"
    " '2026-01-02', 'naïve', POINT(1, 2)",
    "0, 0, 0, 0, 0, 0, 0, 0, 0, '0000-00-00', '00:00:00', '0000-00-00', NULL, 0, '',"
    " '', '', '', '', '', '', '[]', 'x', '', '0000-00-00 00:00:00', '', NULL",
]
STATEMENTS = [
    "SELECT * FROM kinds",
    "SELECT a, a, kinds.a FROM kinds",
    "SELECT 1 AS one, 'two' AS `t'wo`, NULL AS three, 1.5, NOW() > 0, _latin1'\xe9'",
    "SELECT a FROM kinds WHERE FALSE",
    "SELECT REPEAT('x', 100000), a FROM kinds",
    "SELECT a, (SELECT b FROM kinds) FROM kinds",
    "SELECT 1 FROM nothing_of_the_kind",
    "SELECT 1; SELECT 'a', 2; DO 1; SELECT a FROM kinds",
    "UPDATE kinds SET a = a WHERE a = 0",
    "SHOW COLUMNS FROM kinds",
    "SELECT " + ", ".join(f"{n} AS c{n}" for n in range(300)),
]


class Own(DictCursor):
    """As users make them: rows are what they want."""

    def _conv_row(self, row: Any) -> Any:
        return None if row is None else tuple(zip(self._fields, row, strict=True))  # type: ignore[attr-defined]


def fetched(connection: Any, cls: Any, statement: str) -> list[Any]:
    """All that can be known of the results of a statement."""
    found: list[Any] = []
    with connection.cursor(cls) as cursor:
        try:
            found.append(cursor.execute(statement))
            while True:
                found += [cursor.fetchone(), cursor.fetchmany(1), cursor.fetchall()]
                found += [cursor.rowcount, cursor.lastrowid, cursor.description]
                if not cursor.nextset():
                    break
        except MySQLError as error:
            found += [type(error), error.args]
    return found


@pytest.mark.parametrize("cls", [Cursor, DictCursor, SSCursor, SSDictCursor, Own])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"use_unicode": False, "conv": {}},
        {"charset": "latin1"},
        {"conv": {**converters.conversions, FIELD_TYPE.DATETIME: str}},
        {"conv": {}},
    ],
    ids=["plain", "bytes", "latin1", "conv", "no conv"],
)
def test_every_type_is_read_as_by_pymysql(
    server: LocalServer,
    make_pool: MakePool,
    sql: Callable[..., Any],
    cls: Any,
    arguments: dict[str, Any],
) -> None:
    sql("SET sql_mode = ''")
    sql("DROP TABLE IF EXISTS kinds")
    sql(TABLE.replace("CREATE OR REPLACE", "CREATE"))
    for row in ROWS:
        sql(f"INSERT INTO kinds VALUES ({row})")
    flag = CLIENT.MULTI_STATEMENTS
    given = {"CHARSET": arguments.get("charset", "utf8mb4"), "AUTOCOMMIT": True}
    others = {k: v for k, v in arguments.items() if k != "charset"}
    pool = make_pool(**given, CONNECT_ARGS={"client_flag": flag, **others})
    connect: Any = pymysql.connect
    bare = connect(
        **{"charset": "utf8mb4", **arguments},
        **{"host": server.host, "port": server.port, "user": server.user},
        **{"password": server.password, "database": server.database},
        **{"autocommit": True, "client_flag": flag},
    )
    with closing(bare), pool.connection() as con:
        for statement in STATEMENTS * 2:
            expected = fetched(bare, cls, statement)
            assert fetched(con, cls, statement) == expected, statement


@pytest.mark.parametrize("cls", [SSCursor, SSDictCursor])
def test_a_stream_ends_with_the_next_statement_as_in_pymysql(
    server: LocalServer, make_pool: MakePool, cls: Any
) -> None:
    """Also the rows that were read with those that were fetched."""
    numbers = " UNION ALL ".join(f"SELECT {n} AS n" for n in range(50))
    connect: Any = pymysql.connect
    bare = connect(
        **{"host": server.host, "port": server.port, "user": server.user},
        password=server.password,
    )
    found = []
    with closing(bare), make_pool().connection() as con:
        for one in bare, con:
            stream = one.cursor(cls)
            stream.execute(numbers)
            seen = [stream.fetchone(), stream.fetchmany(2)]
            with pytest.warns(UserWarning, match="incomplete"):
                one.cursor().execute("SELECT 1")
            found.append([*seen, stream.fetchone(), stream.fetchall()])
    assert found[1] == found[0]
    assert found[1][-2:] == [None, []]
