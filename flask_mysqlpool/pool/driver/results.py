"""Read the server's packets, as PyMySQL does, in fewer steps.

PyMySQL reads a packet by two calls of its own method, unpacks the header and joins the
parts. For almost all packets, two reads of the buffer are enough.
"""

from __future__ import annotations

from typing import Any

from pymysql.connections import MAX_PACKET_LEN, Connection
from pymysql.constants import CR
from pymysql.err import InternalError, OperationalError
from pymysql.protocol import MysqlPacket


class ReadingConnection(Connection):
    """A PyMySQL connection that reads packets at half the cost.

    Raises the same errors as PyMySQL's, with the same texts.
    """

    _current_timeout: Any
    _force_close: Any
    _next_seq_id: int
    _read_timeout: Any
    _result: Any
    _rfile: Any
    _sock: Any

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
                raise self._lost(IndexError())
            self._next_seq_id = (head[3] + 1) & 0xFF
            data = data + part if data else part
        packet = packet_type(data, self.encoding)
        if data[0] == 0xFF:
            if self._result is not None and self._result.unbuffered_active is True:
                self._result.unbuffered_active = False
            packet.raise_for_error()
        return packet

    def _lost(self, error: BaseException) -> BaseException:
        """Close the connection; return the error to raise for one of its reader."""
        self._force_close()
        said = "Lost connection to MySQL server during query"
        if isinstance(error, IndexError):  # the server has closed the connection
            return OperationalError(CR.CR_SERVER_LOST, said)
        if isinstance(error, OSError):
            return OperationalError(CR.CR_SERVER_LOST, f"{said} ({error})")
        return error

    def _out_of_step(self, number: int) -> Exception:
        """Close the connection; return the error for a wrong sequence number."""
        self._force_close()
        if number == 0:
            # MariaDB gives this number to the error that it sends when it shuts down.
            return OperationalError(
                CR.CR_SERVER_LOST, "Lost connection to MySQL server during query"
            )
        return InternalError(
            f"Packet sequence number wrong - got {number} expected {self._next_seq_id}"
        )
