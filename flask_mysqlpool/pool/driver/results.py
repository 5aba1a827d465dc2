"""Read result sets as PyMySQL does, in a third of its time.

PyMySQL reads each packet by two calls of a method, makes an object of it, and asks that
object for each cell. Here all rows that lie in the socket's buffer are decoded by one
function that is made for the columns of the result, and remembered by the bytes of
their definitions.

PyMySQL's own reader reads everything unusual, of which no byte has been taken out of
the buffer: errors, LOAD DATA, packets of 16 MiB, malformed rows.

With the flag SESSION_TRACK, an OK lists what has changed in the session, also by stored
code, which the text of a statement does not show. With DEPRECATE_EOF, an OK ends the
rows of a result, too. An error lists nothing; the next OK does.
"""

from __future__ import annotations

import codecs
import datetime
import io
import re
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from struct import Struct
from typing import Any

from pymysql import converters
from pymysql.connections import MAX_PACKET_LEN, Connection, MySQLResult
from pymysql.constants import CLIENT, COMMAND, CR, SERVER_STATUS
from pymysql.err import OperationalError
from pymysql.protocol import EOFPacketWrapper, MysqlPacket, OKPacketWrapper

from .statements import CHANGES, DIRTY_SCHEMA, ENDS, NONE, SESSION, TRANSACTION, WRITES

#: Maximum number of bytes of one read from the socket.
BUFFER = 1 << 15

#: A statement of fewer bytes is sent in one packet.
MOST_SENT = MAX_PACKET_LEN - 1

#: Maximum number of results whose columns are remembered, and of bytes that their
#: definitions have.
REMEMBERED, LONGEST = 500, 4000

#: The number of rows of a stream, to PyMySQL.
NOT_KNOWN = (1 << 64) - 1

#: Columns for which a function is made; PyMySQL reads wider results.
MOST_COLUMNS = 200

#: The flags of a client that reads an OK in place of an EOF, and the changes in it.
TRACKING = CLIENT.SESSION_TRACK | CLIENT.DEPRECATE_EOF

#: The status of an OK that lists changes.
STATE_CHANGED = 0x4000

#: The kinds of changes.
_SCHEMA, _STATE, _CHARACTERISTICS, _TRANSACTION = 1, 2, 4, 5

#: What the letters of a transaction's state mean: explicit, has written to tables with
#: and without transactions, has locked tables.
_LETTERS = {
    ord("T"): TRANSACTION,
    ord("w"): TRANSACTION | WRITES,
    ord("W"): TRANSACTION | WRITES,
    ord("L"): TRANSACTION | SESSION,
}

#: The functions that call converters: :func:`make_decoder` makes one, PyMySQL has one.
CONVERTING = {"decode", "_read_row_from_packet"}

#: Takes a buffer, a position, the number of the packet there, and where the rows go;
#: returns the position and the number of the first packet that it could not decode.
Decoder = Callable[[bytes, int, int, list[Any]], tuple[int, int]]

#: The length of a packet, and in the highest byte its number.
_head = Struct("<I").unpack_from
#: Two small numbers: the length of a packet of less than 64 KiB, and its number, in the
#: higher byte; or what an OK says: the status and warnings.
_TWO = Struct("<HH")
_two = _TWO.unpack_from
#: What the packet that ends the rows says: warnings and the status.
_end = Struct("<hh").unpack_from
#: The length of a packet that is sent as the first one, and the command in it.
_command = Struct("<IB").pack

#: How the packet with this number begins, if it ends the definitions or the rows: an
#: EOF, and an OK of less than 64 KiB, from the third byte of its length.
_ends = [bytes((5, 0, 0, number, 0xFE)) for number in range(256)]
_ok_ends = [bytes((0, number, 0xFE, 0, 0)) for number in range(256)]

#: What a status says of the session, rather than of the answer that it comes with.
_OF_THE_SESSION = (
    SERVER_STATUS.SERVER_STATUS_IN_TRANS
    | SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT
    | SERVER_STATUS.SERVER_STATUS_NO_BACKSLASH_ESCAPES
)

#: What a status says of the statement: that the server has read a whole table, or has
#: looked for an index for each row of another table.
_NO_INDEX = (
    SERVER_STATUS.SERVER_QUERY_NO_INDEX_USED
    | SERVER_STATUS.SERVER_QUERY_NO_GOOD_INDEX_USED
)

#: Results whose columns are known: the bytes of the definitions, fields, converters,
#: description and decoder; by the bytes up to the first definition's end, and by what
#: else the conversion depends on.
_columns: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
#: The objects that stand for sets of converters in these keys.
_conversions: dict[tuple[Any, ...], object] = {}


#: Encodings of Python's with two characters, the yen sign and the overline, that become
#: a backslash and a tilde of ASCII. A backslash would end a string too late.
_UNFAITHFUL = {"sjis", "ujis"}
_LOOKALIKES = re.compile("[\xa5\u203e]")


def faithful(encoding: str) -> str:
    """Return an encoding that refuses the characters which the given one changes."""
    return f"faithful_{encoding}" if encoding in _UNFAITHFUL else encoding


def _faithful_codec(name: str) -> codecs.CodecInfo | None:
    encoding = name.removeprefix("faithful_")
    if name == encoding or encoding not in _UNFAITHFUL:
        return None
    codec = codecs.lookup(encoding)

    def encode(text: str, errors: str = "strict") -> tuple[bytes, int]:
        if found := _LOOKALIKES.search(text):
            why = "the server would read it as another character"
            raise UnicodeEncodeError(encoding, text, *found.span(), why)
        return codec.encode(text, errors)

    return codecs.CodecInfo(encode, codec.decode, name=name)


codecs.register(_faithful_codec)

# Much of what these two use is in no stub.
_Connection: Any = Connection
#: PyMySQL's, without ``__init__``, and without the finalizer, which reads on.
_methods = {k: v for k, v in vars(MySQLResult).items() if not k.startswith("__")}
_Result: Any = type("_Result", (), _methods)


_COM_QUERY = COMMAND.COM_QUERY


class ReadingConnection(_Connection):  # type: ignore[misc]
    """A PyMySQL connection that reads faster, and raises what PyMySQL's raises."""

    encoding: str
    encoders: Any
    _current_timeout: Any
    _next_seq_id: int
    _rfile: Any
    _result: Any

    #: The object that stands for its converters; None: PyMySQL reads all results.
    conversions: Any = None
    #: Whether an OK ends rows, and tells what has changed in the session.
    is_tracking = False
    #: The side effects that the server has told of, until the session takes them over.
    told = NONE

    def set_character_set(self, charset: str, collation: str | None = None) -> None:
        super().set_character_set(charset, collation)
        self.encoding = faithful(self.encoding)

    def _request_authentication(self) -> None:
        if self.server_capabilities & TRACKING == TRACKING:
            self.client_flag |= TRACKING
            self.is_tracking = True
        super()._request_authentication()

    def read_faster(self) -> None:
        """Read results faster from now on; called after the login."""
        raw: Any = self._rfile.detach()
        if type(raw) is socket.SocketIO:  # no step between the buffer and the socket
            raw.readinto = self._sock.recv_into  # type: ignore[method-assign]
        self._rfile = io.BufferedReader(raw, BUFFER)
        with suppress(TypeError):  # a converter that has no hash
            self.conversions = _conversions.setdefault(
                tuple(self.decoders.items()), object()
            )

    def query(self, sql: Any, unbuffered: bool = False) -> Any:
        """Send a statement and read its result; one of bytes takes fewer steps."""
        idle = self._result is None and self._sock is not None
        if not (idle and type(sql) is bytes and len(sql) < MOST_SENT):
            return super().query(sql, unbuffered)
        self._write_bytes(_command(len(sql) + 1, _COM_QUERY) + sql)
        self._next_seq_id = 1
        self._affected_rows = self._read_query_result(unbuffered)
        return self._affected_rows

    def _read_ok_packet(self) -> Any:
        ok = super()._read_ok_packet()
        self.hear(ok.server_status, ok.message)
        return ok

    def show_warnings(self) -> Any:
        """Do what PyMySQL's does, with this reader."""
        self._execute_command(_COM_QUERY, "SHOW WARNINGS")
        self._read_query_result()
        result, self._result = self._result, None
        return result.rows

    def _read_query_result(self, unbuffered: bool = False) -> Any:
        self._result, result = None, Result()
        if self.conversions is None or not result.read_at_once(self, unbuffered):
            result.connection = self
            if unbuffered:
                result.init_unbuffered_query()
            else:
                result.read()
        self._result = result
        if result.server_status is not None:
            result.message = self.hear(result.server_status, result.message)
        return result.affected_rows

    def hear(self, status: int, rest: bytes) -> bytes:
        """Note the status in an OK, and the changes in its rest; return the message."""
        self.server_status = status & ~STATE_CHANGED
        if not (rest and self.is_tracking):
            return rest
        message, effects = _told_by(rest, self.db)
        self.told |= effects
        return message

    def peek(self) -> bytes:
        """Return the buffered bytes, or wait for some; none at the end of file."""
        if self._current_timeout != self._read_timeout:
            self._sock.settimeout(self._read_timeout)
            self._current_timeout = self._read_timeout
        try:
            return self._rfile.peek()  # type: ignore[no-any-return]
        except OSError as error:
            self._force_close()
            said = f"Lost connection to MySQL server during query ({error})"
            raise OperationalError(CR.CR_SERVER_LOST, said) from error
        except BaseException:
            self._force_close()
            raise

    def take(self, size: int, number: int) -> None:
        """Drop ``size`` bytes of the buffer; the next packet has this number."""
        self._rfile.read(size)
        self._next_seq_id = number


class Result(_Result):  # type: ignore[misc]
    """A result of PyMySQL's, read faster."""

    #: That of a result which is not read to its end.
    connection: Any = None
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

    #: The status in the packet that ended the rows.
    end_status: int = 0
    #: Rows of a stream that were decoded and not yet fetched.
    ahead: Any = ()
    #: The decoder of its columns; None if PyMySQL reads the rows.
    _decode: Decoder | None = None
    #: Converts decoded rows of a stream to the rows that are fetched.
    _convert: Any = staticmethod(list)

    @property
    def used_no_index(self) -> bool:
        """Whether the server has read a table without a good index, to its end."""
        status: int = self.server_status or self.end_status
        return bool(status & _NO_INDEX)

    def read_at_once(self, con: ReadingConnection, unbuffered: bool) -> bool:
        """Read an OK or rows of known columns; False if the buffer has something else.

        A result whose columns PyMySQL has read once is read here the next time.
        """
        buffer = con.peek()
        if len(buffer) < 11 or buffer[3] != con._next_seq_id:
            return False
        count = buffer[4]
        if not count:
            return self._read_ok(con, buffer)
        for columns in _columns.get(_key(con, buffer), ()):
            if buffer.startswith(columns[0]):
                break
        else:
            return False
        start, self.fields, self.converters, self.description, decode = columns
        after, number = len(start), buffer[3] + count + 1 & 0xFF
        if not con.is_tracking:
            if not buffer.startswith(_ends[number], after) or after > len(buffer) - 9:
                return False
            after, number = after + 9, number + 1 & 0xFF
        self.field_count = count
        if unbuffered:
            con.take(after, number)
            self.connection, self.unbuffered_active = con, True
            self._decode = decode
            self.affected_rows = NOT_KNOWN
            return True
        rows: list[Any] = []
        at, number = decode(buffer, after, number, rows)
        if self._read_end(con, buffer, at, number):
            self.affected_rows, self.rows = len(rows), tuple(rows)
        else:
            con.take(at, number)
            self.connection, self._decode = con, decode
            self._read_rowdata_packet(rows)
        return True

    def _read_end(
        self, con: ReadingConnection, buffer: bytes, at: int, number: int
    ) -> bool:
        """Read the packet that ends the rows; False if another one is next."""
        if not con.is_tracking:
            end = at + 9
            if not buffer.startswith(_ends[number], at) or end > len(buffer):
                return False
            self.warning_count, status = _end(buffer, at + 5)
        else:
            # An OK, of which the rows and the insert id are 0.
            if buffer[at + 2 : at + 7] != _ok_ends[number]:
                return False
            end = at + 4 + _two(buffer, at)[0]
            if not at + 11 <= end <= len(buffer):
                return False
            status, self.warning_count = _two(buffer, at + 7)
            if end > at + 11:
                con.hear(status, buffer[at + 11 : end])
        self.end_status = status
        con.server_status = status & _OF_THE_SESSION
        self.has_next = status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS
        con.take(end, number + 1 & 0xFF)
        self.connection = None
        return True

    def _read_ok(self, con: ReadingConnection, buffer: bytes) -> bool:
        """Read the OK in the buffer; False if it is incomplete."""
        end = 4 + (_head(buffer, 0)[0] & 0xFFFFFF)
        rows, at = _integer(buffer, 5)
        if not at < end <= len(buffer):
            return False
        insert_id, at = _integer(buffer, at)
        if not max(11, at + 4) <= end:
            return False
        self.affected_rows, self.insert_id = rows, insert_id
        self.server_status, self.warning_count = _two(buffer, at)
        self.message = buffer[at + 4 : end]
        self.has_next = self.server_status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS
        con.take(end, buffer[3] + 1 & 0xFF)
        return True

    def _check_packet_is_eof(self, packet: Any) -> bool:
        con = self.connection
        end = _end_in(packet, con.is_tracking)
        if end is None:
            return False
        self.warning_count, self.has_next = end.warning_count, end.has_next
        self.end_status = end.server_status
        con.hear(end.server_status, getattr(end, "message", b""))
        con.server_status &= _OF_THE_SESSION
        return True

    def _get_descriptions(self) -> None:
        """Read the definitions of the columns, and remember their decoder."""
        con, count = self.connection, self.field_count
        if con.conversions is None or count > MOST_COLUMNS:
            self._read_definitions()
            return
        buffer, number = con.peek(), con._next_seq_id
        end = _end_of(buffer, count)
        # The whole answer begins with the packet that has the number of columns.
        start = bytes((1, 0, 0, number - 1 & 0xFF, count)) + buffer[:end]
        self._read_definitions()
        self._decode = make_decoder(tuple(self.converters))
        if 0 < end < LONGEST:
            # A list, as another thread may add columns meanwhile.
            if sum(map(len, list(_columns.values()))) >= REMEMBERED:
                _columns.clear()
            _columns.setdefault(_key(con, start), []).append(
                (start, self.fields, self.converters, self.description, self._decode)
            )

    def _read_definitions(self) -> None:
        con = self.connection
        if con.is_tracking:
            self.connection = _Definitions(con)
        try:
            super()._get_descriptions()
        finally:
            self.connection = con

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

    def _read_rows(self, decode: Decoder, rows: list[Any]) -> bool:
        """Read the buffered rows, or wait for one; False at the end of the rows."""
        con = self.connection
        buffer, number = con.peek(), con._next_seq_id
        try:
            at, after = decode(buffer, 0, number, rows)
        except Exception:
            # The rows of a stream that come before one that cannot be converted.
            at, after = _end_of(buffer, len(rows)), number + len(rows) & 0xFF
            ahead = at and self.unbuffered_active
            if not (ahead and _fails(decode, buffer[at:], after)):
                raise
        if at:
            con.take(at, after)
            return True
        if self._read_end(con, buffer, 0, number):
            return False
        packet = con._read_packet()
        data = packet.get_all_data()
        if len(data) < 1 << 16:  # of which the buffer had only the beginning
            head = _TWO.pack(len(data), number << 8)
            if decode(head + data, 0, number, rows)[0]:
                return True
        if self._check_packet_is_eof(packet):
            self.connection = None
            return False
        rows.append(self._read_row_from_packet(packet))
        return True

    def _read_rowdata_packet_unbuffered(self) -> Any:
        if not self.unbuffered_active:
            return None
        if not self.ahead:
            rows: list[Any] = []
            if self._decode is None:
                rows = [super()._read_rowdata_packet_unbuffered()]
            elif not self._read_rows(self._decode, rows):
                self.unbuffered_active, self.rows = False, None
            if not self.unbuffered_active:
                return None
            self.ahead = deque(self._convert(rows))
        row = self.ahead.popleft()
        self.affected_rows = 1
        self.rows = (row,)
        return row

    def _finish_unbuffered_query(self) -> None:
        self.ahead = ()
        super()._finish_unbuffered_query()

    def keys(self) -> list[str]:
        """Return the names of the columns, as the keys of PyMySQL's DictCursor."""
        keys: list[str] = []
        for field in self.fields:
            name = field.name
            keys.append(f"{field.table_name}.{name}" if name in keys else name)
        return keys

    def make_rows(self, make_maker: Any) -> list[str]:
        """Make the rows what the function does that is made for their keys."""
        keys = self.keys()
        self._convert = make_maker(tuple(keys))
        if self.rows:
            self.rows = self._convert(self.rows)
        return keys


class _Definitions:
    """A connection from which PyMySQL reads definitions that end without an EOF."""

    def __init__(self, con: ReadingConnection) -> None:
        self._con = con
        self.use_unicode, self.encoding = con.use_unicode, con.encoding
        self.decoders = con.decoders

    def _read_packet(self, kind: Any = None) -> Any:
        if kind is None:
            return MysqlPacket(b"\xfe\0\0\0\0", self.encoding)
        return self._con._read_packet(kind)


def read_status(con: Any) -> None:
    """Read a packet that only tells the status: an OK or an EOF."""
    packet = con._read_packet()
    answer = _end_in(packet, con.is_tracking) or OKPacketWrapper(packet)
    con.server_status = answer.server_status
    if con.is_tracking:
        con.hear(answer.server_status, answer.message)


def _end_in(packet: Any, is_tracking: bool) -> Any:
    """Return the EOF, or the OK in its place, that ends rows; None if it is a row."""
    if not is_tracking:
        return EOFPacketWrapper(packet) if packet.is_eof_packet() else None
    data = packet.get_all_data()
    if data[:1] != b"\xfe" or len(data) >= MAX_PACKET_LEN:
        return None
    return OKPacketWrapper(MysqlPacket(b"\0" + data[1:], "ascii"))


def _key(con: ReadingConnection, buffer: bytes) -> tuple[Any, ...]:
    """Return the key of a result that begins with these bytes."""
    first = buffer[: 9 + (_head(buffer, 5)[0] & 0xFFFFFF)]
    return first, con.encoding, con.use_unicode, con.conversions


def _fails(decode: Decoder, buffer: bytes, number: int) -> bool:
    """Return whether the first row cannot be converted."""
    try:
        decode(buffer[: _end_of(buffer, 1)] + bytes(11), 0, number, [])
    except Exception:
        return True
    return False


def _end_of(buffer: bytes, packets: int) -> int:
    """Return where this number of packets ends; 0 if the buffer has only a part."""
    at, last = 0, len(buffer) - 4
    for _ in range(packets):
        if at > last:
            return 0
        at += 4 + (_head(buffer, at)[0] & 0xFFFFFF)
    return at if at <= last + 4 else 0


def _integer(data: bytes, at: int) -> tuple[int | None, int]:
    """Return the integer of variable length that begins at ``at``, and its end."""
    first = data[at] if at < len(data) else 0
    if first < 251:
        return first, at + 1
    size = {252: 2, 253: 3, 254: 8}.get(first, 0)
    end = at + 1 + size
    return int.from_bytes(data[at + 1 : end], "little") if size else None, end


# What the server tells of its session


@lru_cache(maxsize=256)
def _told_by(rest: bytes, database: bytes | None) -> tuple[bytes, int]:
    """Return the message in the rest of an OK, and the effects that it tells of."""
    size, at = _integer(rest, 0)
    end = at + (size or 0)
    changes = rest[_integer(rest, end)[1] :] if end < len(rest) else b""
    return rest[:end] if size else b"", effects_of(changes, database or b"")


def effects_of(changes: bytes, database: bytes) -> int:
    """Return the side effects that a list of changes tells of.

    The ``database`` is the one of the login. ENDS stands for a transaction that has
    begun, or ended, or both. All may have changed if the list cannot be read. Its
    format is that of *OK_Packet* in MySQL's protocol.
    """
    effects, at = NONE, 0
    while at < len(changes):
        kind, size = changes[at], changes[at + 1] if at + 1 < len(changes) else 255
        at += 2 + size
        if size > 250 or at > len(changes):
            return CHANGES | DIRTY_SCHEMA | ENDS
        if kind == _SCHEMA:
            # MariaDB tells it for a view of another database, too.
            other = changes[at - size + 1 : at] != database
            effects |= DIRTY_SCHEMA | SESSION if other else SESSION
        elif kind == _STATE:
            effects |= SESSION
        elif kind == _CHARACTERISTICS:
            effects |= ENDS
        elif kind == _TRANSACTION:
            for letter in changes[at - size : at]:
                effects |= _LETTERS.get(letter, NONE)
    return effects


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
    if cell[4::3] == b"--":
        try:
            return datetime.date.fromisoformat(cell.decode("ascii"))
        except ValueError:
            pass
    return converters.convert_date(cell)


#: Faster converters, from the bytes of a cell, with the results of PyMySQL's own.
_FASTER: dict[Any, Any] = {
    int: int,
    float: float,
    converters.convert_datetime: _datetime,
    converters.convert_date: _date,
}


@lru_cache(maxsize=REMEMBERED)
def make_decoder(kinds: tuple[tuple[str | None, Any], ...]) -> Decoder:
    """Make the function that decodes rows of these (encoding, converter)."""
    known: dict[str, Any] = {"integer": _integer, "head": _two}
    source = [
        "def decode(buffer, at, number, rows):",
        " add, end, number = rows.append, len(buffer), number << 8",
        # Rows are ended by 9 bytes, or by 11 and more. A row shorter than that is
        # decoded once something follows it.
        " while at + 11 < end:",
        "  q = at + 4",
        "  size, high = head(buffer, at)",
        "  stop = q + size",
        "  if high != number or stop > end: break",
        "  try:",
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
        "  except IndexError: break",
        # Before any is converted: a row that is not as it should be is PyMySQL's.
        f"  if {q} != stop: break",
        f"  add(({', '.join(values)},))",
        "  at, number = stop, number + 256 & 65535",
        " return at, number >> 8",
    ]
    # Nothing that a server has sent is in the source: names are numbers.
    exec("\n".join(source), known)
    return known["decode"]  # type: ignore[no-any-return]


def _expression(
    index: int, encoding: str | None, converter: Any, known: dict[str, Any]
) -> str:
    """Return the source that makes the value of a cell."""
    cell = f"buffer[p{index}:q{index}]"
    if encoding == "ascii" and converter in _FASTER:
        converter = _FASTER[converter]
    elif encoding is not None:
        known[f"e{index}"] = encoding
        same = encoding.lower().replace("-", "") in ("utf8", "utf8mb4")
        cell = f"{cell}.decode()" if same else f"{cell}.decode(e{index})"
    if converter is None:
        return cell
    known[f"c{index}"] = converter
    return f"c{index}({cell})"


@lru_cache(maxsize=REMEMBERED)
def make_dict_maker(keys: tuple[str, ...]) -> Any:
    """Make the function that makes rows into dicts with these keys."""
    numbers = range(len(keys))
    pairs = ", ".join(f"k{n}: v{n}" for n in numbers)
    values = "".join(f"v{n}, " for n in numbers)
    source = [
        "lambda rows:",
        f"[{{{pairs}}} for {values}in rows]",
        # A server may leave the last columns out, and PyMySQL allows for that.
        f"if min(map(len, rows)) == {len(keys)} else",
        "[dict(zip(keys, row)) for row in rows]",
    ]
    known = {f"k{n}": key for n, key in enumerate(keys)}
    return eval(" ".join(source), {"keys": keys, **known})
