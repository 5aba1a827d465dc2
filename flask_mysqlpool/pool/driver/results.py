"""Read result sets as PyMySQL does, in a third of its time.

PyMySQL reads each packet by two calls of a method, makes an object of it, and asks that
object for each cell. Here all rows that lie in the socket's buffer are decoded by one
function that is made for the columns of the result, and remembered by the bytes of
their definitions.

Whatever is unusual is left to PyMySQL's own reader, before a byte of it is taken out of
the buffer: errors, LOAD DATA, packets of 16 MiB, rows that are not as they should be.
"""

from __future__ import annotations

import datetime
import io
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

from pymysql import converters
from pymysql.connections import MAX_PACKET_LEN, Connection, MySQLResult
from pymysql.constants import COMMAND, CR, SERVER_STATUS
from pymysql.err import InternalError, OperationalError
from pymysql.protocol import MysqlPacket

#: Bytes that are read from the socket at once, at most.
BUFFER = 1 << 15

#: Bytes of a statement that is sent in one packet.
MOST_SENT = MAX_PACKET_LEN - 1

#: Results whose columns are remembered, and the longest definitions of such, in bytes.
REMEMBERED, LONGEST = 500, 4000

#: Columns for which a function is made; PyMySQL reads wider results.
MOST_COLUMNS = 200

#: What PyMySQL says to be the number of rows that were not read yet.
NOT_COUNTED = (1 << 64) - 1

#: Takes a buffer, a position, the number of the packet there, and where the rows go;
#: returns the position and the number of the first packet that it could not decode.
Decoder = Callable[[bytes, int, int, "list[Any] | deque[Any]"], tuple[int, int]]


class Columns(NamedTuple):
    """What is known of the columns of a result."""

    fields: Sequence[Any]
    converters: Sequence[tuple[str | None, Any]]
    description: tuple[Any, ...]
    decode: Decoder


#: The length of a packet, and in the highest byte its number.
_head = Struct("<I").unpack_from
#: The length of a packet of less than 64 KiB, and its number, in the higher byte.
_SHORT_HEAD = Struct("<HH")
#: The length of a packet that is sent as the first one, and the command in it.
_command = Struct("<IB").pack

#: How the packet with this number begins, if it ends the definitions or the rows.
_ends = [bytes((5, 0, 0, number, 0xFE)) for number in range(256)]
#: What such a packet says: warnings and the status. An OK says the status first.
_end = Struct("<hh").unpack_from
_ok = Struct("<HH").unpack_from

#: By the bytes of the definitions, and by what else the conversion depends on.
_columns: dict[tuple[Any, ...], Columns] = {}
#: What stands for all converters of a connection there.
_conversions: dict[tuple[Any, ...], object] = {}


# Much of what these two use is in no stub.
_Connection: Any = Connection
_Result: Any = MySQLResult


class ReadingConnection(_Connection):  # type: ignore[misc]
    """A PyMySQL connection that reads faster, and raises what PyMySQL's raises."""

    _current_timeout: Any
    _next_seq_id: int
    _rfile: Any

    #: Stands for its converters; None: PyMySQL reads all results.
    conversions: Any = None

    def read_faster(self) -> None:
        """Begin to do so, after the login."""
        raw: Any = self._rfile.detach()
        if type(raw) is socket.SocketIO:  # no step between the buffer and the socket
            raw.readinto = self._sock.recv_into  # type: ignore[method-assign]
        self._rfile = io.BufferedReader(raw, BUFFER)
        with suppress(TypeError):  # a converter that has no hash
            self.conversions = _conversions.setdefault(
                tuple(self.decoders.items()), object()
            )

    def query(self, sql: Any, unbuffered: bool = False) -> Any:
        """Send a statement and read its result; as bytes, with fewer steps."""
        idle = self._result is None and self._sock is not None
        if idle and type(sql) is bytes and len(sql) < MOST_SENT:
            self._write_bytes(_command(len(sql) + 1, COMMAND.COM_QUERY) + sql)
            self._next_seq_id = 1
            self._affected_rows = self._read_query_result(unbuffered)
            return self._affected_rows
        return super().query(sql, unbuffered)

    def _read_query_result(self, unbuffered: bool = False) -> Any:
        self._result = None
        result = Result(self)
        if self.conversions is None or not result.read_at_once(self, unbuffered):
            if unbuffered:
                result.init_unbuffered_query()
            else:
                result.read()
        self._result = result
        if result.server_status is not None:
            self.server_status = result.server_status
        return result.affected_rows

    def _read_packet(self, packet_type: Any = MysqlPacket) -> Any:
        if self._current_timeout != self._read_timeout:
            self._sock.settimeout(self._read_timeout)
            self._current_timeout = self._read_timeout
        read, data, size = self._rfile.read, b"", MAX_PACKET_LEN
        while size == MAX_PACKET_LEN:
            try:
                head = read(4)
                size = head[0] | head[1] << 8 | head[2] << 16
                part = read(size) if head[3] == self._next_seq_id else None
            except BaseException as error:
                raise self._lost(error) from error.__cause__
            if part is None:
                raise self._out_of_step(head[3])
            if len(part) < size:
                raise self._lost()
            self._next_seq_id = (head[3] + 1) & 0xFF
            data = data + part if data else part
        packet = packet_type(data, self.encoding)
        if data[0] == 0xFF:
            if self._result is not None and self._result.unbuffered_active is True:
                self._result.unbuffered_active = False
            packet.raise_for_error()
        return packet

    def peek(self) -> bytes:
        """Return what is in the buffer; wait for something if nothing is."""
        if self._current_timeout != self._read_timeout:
            self._sock.settimeout(self._read_timeout)
            self._current_timeout = self._read_timeout
        try:
            found: bytes = self._rfile.peek()
        except BaseException as error:
            raise self._lost(error) from error.__cause__
        if not found:
            raise self._lost()
        return found

    def take(self, size: int, number: int) -> None:
        """Take so many bytes, which are in the buffer, out of it."""
        self._rfile.read(size)
        self._next_seq_id = number

    def _lost(self, error: BaseException | None = None) -> BaseException:
        """Close the connection; return what to raise for an error of its reader.

        None, and an IndexError, are the end of what the server sends.
        """
        self._force_close()
        said = "Lost connection to MySQL server during query"
        if error is None or isinstance(error, IndexError):
            return OperationalError(CR.CR_SERVER_LOST, said)
        if isinstance(error, OSError):
            return OperationalError(CR.CR_SERVER_LOST, f"{said} ({error})")
        return error

    def _out_of_step(self, number: int) -> BaseException:
        """Close the connection; return what to raise for a packet of another number."""
        lost = self._lost()
        if number == 0:  # of the error that MariaDB sends when it shuts down
            return lost
        return InternalError(
            f"Packet sequence number wrong - got {number} expected {self._next_seq_id}"
        )


class Result(_Result):  # type: ignore[misc]
    """A result of PyMySQL's, read faster."""

    affected_rows: Any = None
    insert_id: Any = None
    server_status: Any = None
    warning_count: Any = 0
    message: Any = None
    field_count: Any = 0
    description: Any = None
    rows: Any = None
    has_next: Any = None
    unbuffered_active: Any = False

    #: Of the columns; None if PyMySQL reads the rows.
    _decode: Decoder | None = None
    #: Rows of a stream that were decoded and not yet fetched.
    _ahead: deque[Any] | None = None

    def __init__(self, connection: ReadingConnection) -> None:
        self.connection: Any = connection

    def read_at_once(self, con: ReadingConnection, unbuffered: bool) -> bool:
        """Read an OK or rows of known columns from the buffer; False if it has others.

        A result whose columns PyMySQL has read once is read here the next time.
        """
        buffer = con.peek()
        if len(buffer) < 11 or buffer[3] != con._next_seq_id:
            return False
        count = buffer[4]
        if not count:
            return self._read_ok(con, buffer)
        number = buffer[3] + count + 1 & 0xFF
        at = buffer.find(_ends[number])
        columns = _columns.get(
            (buffer[:at], con.encoding, con.use_unicode, con.conversions)
        )
        if columns is None or not 0 < at <= len(buffer) - 9:
            return False
        self.field_count = count
        self.fields, self.converters, self.description, decode = columns
        at, number = at + 9, number + 1 & 0xFF
        if unbuffered:
            con.take(at, number)
            self.affected_rows, self.unbuffered_active = NOT_COUNTED, True
            self._decode = decode
            return True
        rows: list[Any] = []
        at, number = decode(buffer, at, number, rows)
        if buffer.startswith(_ends[number], at) and at <= len(buffer) - 9:
            self.warning_count, status = _end(buffer, at + 5)
            self.has_next = status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS
            con.take(at + 9, number + 1 & 0xFF)
            self.connection = None
            self.affected_rows, self.rows = len(rows), tuple(rows)
        else:
            con.take(at, number)
            self._decode = decode
            self._read_rowdata_packet(rows)
        return True

    def _read_ok(self, con: ReadingConnection, buffer: bytes) -> bool:
        """Read the OK in the buffer; False if it is cut."""
        end = 4 + (_head(buffer, 0)[0] & 0xFFFFFF)
        rows, at = _integer(buffer, 5)
        if not at < end <= len(buffer):
            return False
        insert_id, at = _integer(buffer, at)
        if not max(11, at + 4) <= end:
            return False
        self.affected_rows, self.insert_id = rows, insert_id
        self.server_status, self.warning_count = _ok(buffer, at)
        self.message = buffer[at + 4 : end]
        self.has_next = self.server_status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS
        con.take(end, buffer[3] + 1 & 0xFF)
        self.connection = None
        return True

    def _get_descriptions(self) -> None:
        """Read the definitions of the columns, and remember what they are."""
        con, count = self.connection, self.field_count
        if con.conversions is None or count > MOST_COLUMNS:
            super()._get_descriptions()
            return
        buffer, number = con.peek(), con._next_seq_id
        end = _end_of(buffer, count)
        # As the whole answer begins: with the packet that tells how many columns.
        start = bytes((1, 0, 0, number - 1 & 0xFF, count)) + buffer[:end]
        super()._get_descriptions()
        self._decode = make_decoder(tuple(self.converters))
        if 0 < end < LONGEST:
            if len(_columns) >= REMEMBERED:
                _columns.clear()
            key = start, con.encoding, con.use_unicode, con.conversions
            _columns[key] = Columns(
                self.fields, self.converters, self.description, self._decode
            )

    def _read_rowdata_packet(self, rows: list[Any] | None = None) -> None:
        if self._decode is None:
            super()._read_rowdata_packet()
            return
        if rows is None:
            rows = []
        while self._read_rows(self._decode, rows):
            pass
        self.affected_rows = len(rows)
        self.rows = tuple(rows)

    def _read_rows(self, decode: Decoder, rows: list[Any] | deque[Any]) -> bool:
        """Read the rows that are there, or wait for one; False if there was an end."""
        con = self.connection
        buffer, number = con.peek(), con._next_seq_id
        try:
            at, after = decode(buffer, 0, number, rows)
        except Exception:
            at, after = _end_of(buffer, len(rows)), number + len(rows) & 0xFF
            if not (
                at and self.unbuffered_active and _fails(decode, buffer[at:], after)
            ):
                raise
        if at:
            con.take(at, after)
            return True
        packet = con._read_packet()
        data = packet.get_all_data()
        if len(data) < 1 << 16:  # of which the buffer had only the beginning
            head = _SHORT_HEAD.pack(len(data), number << 8)
            if decode(head + data, 0, number, rows)[0]:
                return True
        if self._check_packet_is_eof(packet):
            self.connection = None
            return False
        rows.append(self._read_row_from_packet(packet))
        return True

    def _read_rowdata_packet_unbuffered(self) -> Any:
        if self._decode is None or not self.unbuffered_active:
            return super()._read_rowdata_packet_unbuffered()
        if self._ahead is None:
            self._ahead = deque()
        if not self._ahead and not self._read_rows(self._decode, self._ahead):
            self.unbuffered_active, self.rows = False, None
            return None
        row = self._ahead.popleft()
        self.affected_rows = 1
        self.rows = (row,)
        return row


def _fails(decode: Decoder, buffer: bytes, number: int) -> bool:
    """Return whether the first row cannot be converted."""
    try:
        decode(buffer[: _end_of(buffer, 1)], 0, number, [])
    except Exception:
        return True
    return False


def _end_of(buffer: bytes, packets: int) -> int:
    """Return where so many packets end in the buffer; 0 if they are not all there."""
    at, last = 0, len(buffer) - 4
    for _ in range(packets):
        if at > last:
            return 0
        at += 4 + (_head(buffer, at)[0] & 0xFFFFFF)
    return at if at <= last + 4 else 0


def _integer(data: bytes, at: int) -> tuple[int | None, int]:
    """Return the integer of variable length that begins there, and where it ends."""
    first = data[at]
    if first < 251:
        return first, at + 1
    size = {252: 2, 253: 3, 254: 8}.get(first, 0)
    end = at + 1 + size
    return int.from_bytes(data[at + 1 : end], "little") if size else None, end


# Decoding rows


# ``fromisoformat()`` takes more than PyMySQL's converters do: weeks, zones, 24:00.


def _datetime(cell: bytes) -> Any:
    fraction = cell[20:]
    if cell[4:20:3] == (b"-- ::." if fraction else b"-- ::") and cell[11:13] != b"24":
        if not fraction or len(fraction) <= 6 and fraction.isdigit():
            try:
                return datetime.datetime.fromisoformat(cell.decode("ascii"))
            except ValueError:
                pass
    return converters.convert_datetime(cell)


def _date(cell: bytes) -> Any:
    text = cell.decode("ascii")
    if len(text) == 10 and text[7] == "-":
        try:
            return datetime.date.fromisoformat(text)
        except ValueError:
            pass
    return converters.convert_date(text)


#: Faster ways to what PyMySQL's own converters return, from the bytes of a cell.
_FASTER: dict[Any, Any] = {
    int: int,
    float: float,
    converters.convert_datetime: _datetime,
    converters.convert_date: _date,
}


@lru_cache(maxsize=REMEMBERED)
def make_decoder(kinds: tuple[tuple[str | None, Any], ...]) -> Decoder:
    """Make the function that decodes rows of these (encoding, converter)."""
    known: dict[str, Any] = {"integer": _integer, "head": _SHORT_HEAD.unpack_from}
    source = [
        "def decode(buffer, at, number, rows):",
        " add, end, number = rows.append, len(buffer), number << 8",
        " try:",
        "  while True:",
        "   q = at + 4",
        "   if q >= end: break",
        "   size, high = head(buffer, at)",
        "   stop = q + size",
        "   if high != number or stop > end: break",
    ]
    values, q = [], "q"
    for index, (encoding, converter) in enumerate(kinds):
        p, after = f"p{index}", f"q{index}"
        source += [
            f"   k = buffer[{q}]",
            f"   if k < 251: {p} = {q} + 1; {after} = {p} + k",
            f"   elif k == 251: {p} = 0; {after} = {q} + 1",
            "   elif k > 253: break",
            f"   else: size, {p} = integer(buffer, {q}); {after} = {p} + size",
        ]
        value = _expression(index, encoding, converter, known)
        values.append(f"{value} if {p} else None")
        q = after
    source += [
        # Before any is converted: a row that is not as it should be is PyMySQL's.
        f"   if {q} != stop: break",
        f"   add(({', '.join(values)},))",
        "   at = stop",
        "   number = number + 256 & 65535",
        " except IndexError:",
        "  pass",
        " return at, number >> 8",
    ]
    # Nothing that a server has sent is in the source: names are numbers.
    exec("\n".join(source), known)
    decode: Decoder = known["decode"]
    return decode


def _expression(
    index: int, encoding: str | None, converter: Any, known: dict[str, Any]
) -> str:
    """Return the source that makes the value of a cell."""
    cell = f"buffer[p{index}:q{index}]"
    if encoding == "ascii" and converter in _FASTER:
        known[f"c{index}"] = _FASTER[converter]
        return f"c{index}({cell})"
    if encoding is not None:
        known[f"e{index}"] = encoding
        same = encoding.lower().replace("-", "") in ("utf8", "utf8mb4")
        cell = f"{cell}.decode()" if same else f"{cell}.decode(e{index})"
    if converter is not None:
        known[f"c{index}"] = converter
        return f"c{index}({cell})"
    return cell
