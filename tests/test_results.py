"""Packets are read as PyMySQL reads them, whatever the server sends."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from typing import Any

import pytest
from conftest import MakePool
from hypothesis import given
from hypothesis import strategies as st
from pymysql.connections import MAX_PACKET_LEN, Connection
from pymysql.err import InternalError, OperationalError, ProgrammingError

from flask_mysqlpool.pool.driver.results import ReadingConnection

ERROR = b"\xff\x28\x04#42000no such thing"


class Source(io.RawIOBase):
    """What a server sends, in pieces, and how that ends."""

    def __init__(self, data: bytes, piece: int, end: BaseException | None) -> None:
        self._data, self._piece, self._end = data, piece, end

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


def reading(cls: type[Any], source: Source, first: int) -> list[Any]:
    """Read to the end; return what came of it, and how the connection is left."""
    con = cls(defer_connect=True)
    ours, theirs = socket.socketpair()
    con._sock, con._rfile = ours, io.BufferedReader(source)
    con._next_seq_id, con._current_timeout, con._read_timeout = first, -1, 3.0
    found: list[Any] = []
    try:
        while len(found) < 50:
            read = con._read_packet()
            found.append((read.get_all_data(), con._next_seq_id))
    except BaseException as error:
        found += [type(error), error.args, con._sock and con._next_seq_id]
    finally:
        found.append(ours.fileno() >= 0 and ours.gettimeout())
        ours.close()
        theirs.close()
    return found


def assert_the_same(make: Callable[[], Source], first: int = 1) -> list[Any]:
    expected = reading(Connection, make(), first)
    assert reading(ReadingConnection, make(), first) == expected
    return expected


payloads = st.one_of(
    st.binary(max_size=40), st.just(ERROR), st.binary(min_size=9000, max_size=9001)
)
ENDS = (
    None,
    TimeoutError("timed out"),
    ConnectionResetError(104, "reset"),
    SystemExit(3),
)


@given(
    st.lists(st.tuples(payloads, st.integers(0, 12)), max_size=6),
    st.integers(0, 20),
    st.sampled_from((1, 3, 4, 5, 100, 1 << 20)),
    st.sampled_from(ENDS),
    st.integers(0, 255),
)
def test_whatever_comes_is_read_as_by_pymysql(
    sent: list[tuple[bytes, int]],
    cut: int,
    piece: int,
    end: BaseException | None,
    first: int,
) -> None:
    """One number in twelve is wrong, and the last packet may be cut."""
    data = b"".join(
        packet(payload, first + index + (off == 12))
        for index, (payload, off) in enumerate(sent)
    )
    assert_the_same(lambda: Source(data[: len(data) - cut], piece, end), first)


@pytest.mark.parametrize("length", range(len(packet(b"abcdef", 1)) + 1))
def test_a_packet_may_be_cut_at_every_byte(length: int) -> None:
    data = packet(b"first", 1) + packet(b"abcdef", 2)[:length]

    found = assert_the_same(lambda: Source(data, 2, None))

    assert found[0] == (b"first", 2)
    assert (b"abcdef", 3) in found or found[1] is OperationalError


def test_the_errors_are_told_apart() -> None:
    cases = {
        InternalError: packet(b"x", 7),
        OperationalError: packet(b"x", 0),
        ProgrammingError: packet(ERROR.replace(b"\x28\x04", b"\x7a\x04"), 1),
    }
    for kind, data in cases.items():
        assert assert_the_same(lambda data=data: Source(data, 99, None))[0] is kind  # type: ignore[misc]


@pytest.mark.parametrize("more", [0, 1, MAX_PACKET_LEN])
def test_what_is_longer_than_a_packet_is_put_together(more: int) -> None:
    payload = bytes(MAX_PACKET_LEN + more)
    parts = [
        payload[i : i + MAX_PACKET_LEN]
        for i in range(0, len(payload) + 1, MAX_PACKET_LEN)
    ]
    data = b"".join(packet(part, 1 + index) for index, part in enumerate(parts))

    found = assert_the_same(lambda: Source(data, 1 << 20, None))

    assert found[0] == (payload, 1 + len(parts))


def test_a_pooled_connection_reads_so(make_pool: MakePool) -> None:
    with make_pool().connection() as con, con.cursor() as cursor:
        assert type(con._con and con._con.raw) is ReadingConnection
        cursor.execute("SELECT REPEAT('x', 200000) AS long_one, 1 AS after")
        assert cursor.fetchall() == (("x" * 200_000, 1),)
