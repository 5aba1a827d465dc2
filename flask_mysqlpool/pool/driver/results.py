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

#: Why a decoder has stopped: there is no whole packet left; the next one is no row; it
#: is one that PyMySQL has to read.
NO_MORE, NO_ROW, ODD_ROW = range(3)

#: Takes a buffer, a position, a packet number and a function that takes rows; returns
#: the position and the number after them, and why it has stopped.
Decoder = Callable[[bytes, int, int, Callable[[Any], None]], tuple[int, int, int]]


class Columns(NamedTuple):
    """What is known of the columns of a result."""

    fields: Sequence[Any]
    converters: Sequence[tuple[str | None, Any]]
    description: tuple[Any, ...]
    decode: Decoder


#: The length of a packet, and in the highest byte its number.
_head = Struct("<I").unpack_from
#: And the command in it, for those that are sent.
_command = Struct("<IB").pack

#: What the packet that ends the rows says: warnings and the status.
_end = Struct("<hh").unpack_from

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
        self._rfile = io.BufferedReader(self._rfile.detach(), BUFFER)
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

    def read(self) -> None:
        con = self.connection
        try:
            if con.conversions is None or not self._read_at_once(con):
                super().read()
        finally:
            self.connection = None

    def _read_at_once(self, con: ReadingConnection) -> bool:
        """Read rows of known columns that begin in the buffer; False if it has others.

        A result whose columns PyMySQL has read once is read here the next time.
        """
        buffer = con.peek()
        if len(buffer) < 5 or buffer[0] != 1 or buffer[3] != con._next_seq_id:
            return False
        count = buffer[4]
        end = _end_of(buffer, count + 2)
        columns = _columns.get(_key(con, buffer[:end]))
        if columns is None:
            return False
        self.field_count = count
        self.fields, self.converters, self.description, decode = columns
        rows: list[Any] = []
        number = buffer[3] + count + 2 & 0xFF
        at, number, why = decode(buffer, end, number, rows.append)
        if (
            why == NO_ROW
            and buffer[at : at + 5 : 4] == b"\5\xfe"
            and at + 9 <= len(buffer)
        ):
            self.warning_count, status = _end(buffer, at + 5)
            self.has_next = status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS
            con.take(at + 9, number + 1 & 0xFF)
            self.affected_rows, self.rows = len(rows), tuple(rows)
        else:
            con.take(at, number)
            self._decode = decode
            self._read_rowdata_packet(rows)
        return True

    def _get_descriptions(self) -> None:
        """Read the definitions of the columns, and remember what they are."""
        con, count = self.connection, self.field_count
        if con.conversions is None or count > MOST_COLUMNS:
            super()._get_descriptions()
            return
        buffer, number = con.peek(), con._next_seq_id
        end = _end_of(buffer, count + 1)
        # As the whole answer begins: with the packet that tells how many columns.
        key = _key(con, bytes((1, 0, 0, number - 1 & 0xFF, count)) + buffer[:end])
        columns = _columns.get(key) if end else None
        if columns is not None:
            self.fields, self.converters, self.description, self._decode = columns
            con.take(end, number + count + 1 & 0xFF)
            return
        super()._get_descriptions()
        self._decode = make_decoder(tuple(self.converters))
        if 0 < end < LONGEST:
            if len(_columns) >= REMEMBERED:
                _columns.clear()
            _columns[key] = Columns(
                self.fields, self.converters, self.description, self._decode
            )

    def _read_rowdata_packet(self, rows: list[Any] | None = None) -> None:
        if self._decode is None:
            super()._read_rowdata_packet()
            return
        if rows is None:
            rows = []
        while self._read_rows(self._decode, rows.append):
            pass
        self.affected_rows = len(rows)
        self.rows = tuple(rows)

    def _read_rows(self, decode: Decoder, add: Callable[[Any], None]) -> bool:
        """Read the rows that are there, or wait for one; False if there was an end."""
        con = self.connection
        at, number, why = decode(con.peek(), 0, con._next_seq_id, add)
        if at:
            con.take(at, number)
            if why == NO_MORE or self.unbuffered_active:
                return True
        packet = con._read_packet()
        if self._check_packet_is_eof(packet):
            self.connection = None
            return False
        add(self._read_row_from_packet(packet))
        return True

    def _read_rowdata_packet_unbuffered(self) -> Any:
        if self._decode is None or not self.unbuffered_active:
            return super()._read_rowdata_packet_unbuffered()
        if self._ahead is None:
            self._ahead = deque()
        if not self._ahead and not self._read_rows(self._decode, self._ahead.append):
            self.unbuffered_active, self.rows = False, None
            return None
        row = self._ahead.popleft()
        self.affected_rows = 1
        self.rows = (row,)
        return row


def _key(con: ReadingConnection, beginning: bytes) -> tuple[Any, ...]:
    """Return what the columns of the result that begins so are known by."""
    return beginning, con.encoding, con.use_unicode, con.conversions


def _end_of(buffer: bytes, packets: int) -> int:
    """Return where so many packets end in the buffer; 0 if they are not all there."""
    at, last = 0, len(buffer) - 4
    for _ in range(packets):
        if at > last:
            return 0
        at += 4 + (_head(buffer, at)[0] & 0xFFFFFF)
    return at if at <= last + 4 else 0


# Decoding rows


def _long_cell(buffer: bytes, p: int, length: int) -> tuple[int, int]:
    """Return where a cell of 251 bytes or more begins and ends."""
    size = {252: 2, 253: 3, 254: 8}[length]
    return p + size, p + size + int.from_bytes(buffer[p : p + size], "little")


# ``fromisoformat()`` takes more than PyMySQL's converters do: weeks, zones, 24:00.


def _datetime(cell: bytes) -> Any:
    text = cell.decode("ascii")
    if 19 <= len(text) <= 26 and text[7] == "-" and text[10] == " ":
        try:
            found = datetime.datetime.fromisoformat(text)
        except ValueError:  # no such date, or a fraction that Python 3.10 refuses
            return converters.convert_datetime(text)
        if found.tzinfo is None and (found.hour or text[11] == "0"):
            return found
    return converters.convert_datetime(text)


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
    names = [f"v{index}" for index in range(len(kinds))]
    known: dict[str, Any] = {"long_cell": _long_cell, "head": _head}
    source = [
        "def decode(buffer, at, number, add):",
        " end = len(buffer)",
        " while True:",
        "  p = at + 4",
        f"  if p >= end: return at, number, {NO_MORE}",
        "  size = head(buffer, at)[0] - (number << 24)",
        "  stop = p + size",
        "  k = buffer[p]",
        f"  if not 0 < size < {MAX_PACKET_LEN}: return at, number, {ODD_ROW}",
        f"  if stop > end: return at, number, {NO_MORE}",
        f"  if k > 253 and (size < 9 or k == 255): return at, number, {NO_ROW}",
        "  try:",
    ]
    for index, (encoding, converter) in enumerate(kinds):
        cell = _expression(index, encoding, converter, known)
        source += [
            "   k = buffer[p]; p += 1",
            "   if k < 251: q = p + k",
            f"   elif k == 251: v{index} = None; q = -1",
            "   else: p, q = long_cell(buffer, p, k)",
            f"   if q > stop: return at, number, {ODD_ROW}",
            f"   if q >= 0: v{index} = {cell}; p = q",
        ]
    source += [
        "  except (IndexError, KeyError):",
        f"   return at, number, {ODD_ROW}",
        f"  if p != stop: return at, number, {ODD_ROW}",
        f"  add(({', '.join(names)},))",
        "  at = stop",
        "  number = number + 1 & 255",
    ]
    # Nothing that a server has sent is in the source: names are numbers.
    exec("\n".join(source), known)
    decode: Decoder = known["decode"]
    return decode


def _expression(
    index: int, encoding: str | None, converter: Any, known: dict[str, Any]
) -> str:
    """Return the source that makes a value of ``buffer[p:q]``."""
    cell = "buffer[p:q]"
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
