"""Servers that lie: scripted, without a database, and a search for what they can break.

``python tests/liars.py SECONDS [SEED]`` searches; the suite runs a shortened form.
"""

from __future__ import annotations

import random
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from pymysql.err import MySQLError, OperationalError

from flask_mysqlpool import PoolConfig
from flask_mysqlpool.pool.driver.connector import Connector
from flask_mysqlpool.pool.driver.error_codes import SAME_ON_ALL_HOSTS

SECRET = "S3cret of the test"
SALT = bytes(range(65, 85))
TLS, PLUGIN_AUTH = 0x0800, 0x80000
#: All that a server may offer but TLS, CLIENT_DEPRECATE_EOF and compression.
CAPABILITIES = 0x00FFFFFF & ~TLS & ~0x20
OK = b"\0\0\0\2\0\0\0"
END = b"\xfe\0\0\2\0"


def packet(number: int, body: bytes) -> bytes:
    return struct.pack("<I", len(body))[:3] + bytes([number & 255]) + body


def refusal(number: int, text: bytes = b"no") -> bytes:
    return b"\xff" + struct.pack("<H", number) + b"#HY000" + text


def greeting(
    plugin: bytes = b"mysql_native_password", tls: bool = False, protocol: int = 10
) -> bytes:
    flags = CAPABILITIES | (TLS if tls else 0)
    head = bytes([protocol]) + b"8.0.36\0" + struct.pack("<I", 7) + SALT[:8] + b"\0"
    rest = struct.pack("<HBHHB", flags & 0xFFFF, 45, 2, flags >> 16, 21)
    return head + rest + bytes(10) + SALT[8:] + b"\0" + plugin + b"\0"


def switch(plugin: bytes, data: bytes = SALT + b"\0") -> bytes:
    return b"\xfe" + plugin + b"\0" + data


def result(names: Sequence[bytes], *rows: Sequence[bytes | None]) -> list[bytes]:
    """The packets of a result set of texts."""

    def text(value: bytes | None) -> bytes:
        return b"\xfb" if value is None else bytes([len(value)]) + value

    about = b"\x0c" + struct.pack("<HIBHB", 45, 1024, 0xFD, 0, 0) + b"\0\0"
    columns = [
        text(b"def") + text(b"") * 3 + text(name) + text(name) + about for name in names
    ]
    lines = [b"".join(map(text, row)) for row in rows]
    return [bytes([len(names)]), *columns, END, *lines, END]


class Liar:
    """Answers each connection by a script: a function of the connection.

    What came in over all connections is in :attr:`seen`.
    """

    def __init__(
        self, script: Callable[[Talk], None], tls: Any = None, path: str | None = None
    ) -> None:
        self.seen = b""
        self.connections = 0
        self._script, self._tls = script, tls
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.port = self._listener.getsockname()[1]
        else:
            self._listener = socket.create_server(path, family=socket.AF_UNIX)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Liar:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            talk = Talk(client, self._tls)
            with suppress(OSError, EOFError, ValueError):
                self._script(talk)
            talk.end()
            self.seen += talk.seen


class Talk:
    """One connection, as the server has it."""

    def __init__(self, client: socket.socket, tls: Any) -> None:
        self._sock, self._tls = client, tls
        self.offers_tls = tls is not None
        client.settimeout(10)
        if client.family == socket.AF_INET:
            # As servers do: a small packet does not wait for the answer to the last.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.seen = b""
        #: Packets sent and received since the last command.
        self.number = 0
        #: What becomes of a packet on its way, by how many were sent before.
        self.change: Callable[[int, bytes], bytes] = lambda _, data: data
        self._sent = 0

    def wait(self, seconds: float) -> None:
        """Give up a client that says nothing for so long."""
        self._sock.settimeout(seconds)

    def say(self, *bodies: bytes) -> None:
        for body in bodies:
            data = self.change(self._sent, packet(self.number, body))
            self._sent += 1
            self.number += 1
            self._sock.sendall(data)

    def raw(self, data: bytes) -> None:
        self._sock.sendall(data)

    def let_in(self) -> None:
        """Greet the client, and accept whatever it logs in with."""
        self.say(greeting())
        self.hear()
        self.say(OK)

    def hear(self) -> bytes:
        """The next packet of the client's; TLS begins with one that asks for it."""
        header = self._take(4)
        length = int.from_bytes(header[:3], "little")
        self.number = header[3] + 1
        body = self._take(length)
        if self._tls is not None and length == 32:
            self._sock = self._tls.wrap_socket(self._sock, server_side=True)
            self._tls = None
            return self.hear()
        return body

    def _take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self._sock.recv(size - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        self.seen += data
        return data

    def serve(
        self,
        rows: Mapping[bytes, Sequence[Sequence[bytes | None]]] | None = None,
        names: Mapping[bytes, bytes] | None = None,
        until: bytes = b"\xff",
    ) -> None:
        """Answer commands as a server with nothing in it would, but for these rows.

        By how questions begin: the rows, and the name of the second column.
        The first packet that begins with ``until`` ends it, and is not answered.
        """
        while not (packet := self.hear()).startswith(until):
            text = packet[1:]
            said = [(q, r) for q, r in (rows or {}).items() if text.startswith(q)]
            if text.startswith(b"SELECT HEX(CURRENT_ROLE())"):
                self.say(*result([b"role"], [None]))
            elif text.lstrip().startswith(b"SELECT"):
                self.say(*result([b"name"]))
            elif text.startswith(b"SHOW"):
                [(question, values)] = said or [(b"", [])]
                name = (names or {}).get(question, b"Value")
                self.say(*result([b"Variable_name", name], *values))
            else:
                self.say(OK)

    def end(self) -> None:
        """Close, and keep what the client had still said."""
        with suppress(OSError):
            self._sock.settimeout(0)
            self.seen += self._sock.recv(65536)
        with suppress(OSError):
            self._sock.close()


def honest(talk: Talk) -> None:
    talk.let_in()
    talk.serve()


def logins(tls: bool) -> list[list[Any]]:
    """Ways to log in: what the server says; None where it listens."""
    hello = greeting(tls=tls)
    sha2 = b"caching_sha2_password"
    return [
        [hello, None, OK],
        [hello, None, switch(b"mysql_native_password"), None, OK],
        [hello, None, switch(sha2), None, b"\1\3", OK],
        [hello, None, switch(sha2), None, b"\1\4", None, OK],
        [greeting(sha2, tls), None, b"\1\3", OK],
        [greeting(b"sha256_password", tls), None, b"\1no key", None, OK],
        [hello, None, switch(b"mysql_clear_password"), None, OK],
        [hello, None, switch(b"dialog", b"\4Password: "), None, b"\2More: ", None, OK],
        [hello, None, switch(b"mysql_old_password"), None, OK],
        [hello, None, b"\xfe", None, OK],
        [hello, None, refusal(1040)],
    ]


def follow(login: list[Any]) -> Callable[[Talk], None]:
    def script(talk: Talk) -> None:
        for step in login:
            if step is None:
                talk.hear()
            else:
                talk.say(step)
        talk.serve()

    return script


def mutation(dice: random.Random) -> Callable[[bytes], bytes]:
    """A way to spoil a packet."""

    def flipped(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(dice.choice([1, 1, 2, 8])):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        return bytes(changed)

    def spliced(data: bytes) -> bytes:
        at = dice.randrange(4, len(data) + 1)
        body = data[4:at] + dice.randbytes(dice.randrange(20)) + data[at:]
        return packet(data[3], body)

    return dice.choice(
        [
            flipped,
            flipped,
            flipped,
            spliced,
            lambda data: data[: dice.randrange(len(data))],
            lambda data: packet(data[3], data[4 : dice.randrange(4, len(data) + 1)]),
            lambda data: packet(data[3], dice.randbytes(dice.randrange(40))),
            lambda data: dice.randbytes(dice.randrange(200)),
            lambda data: packet(data[3], b""),
            lambda data: data + data,
            lambda data: b"\xff\xff\xff" + data[3:],
            lambda data: packet(data[3], refusal(dice.randrange(65536))),
            lambda data: packet(data[3], data[4:5] + dice.randbytes(3)),
            lambda data: packet(dice.randrange(256), data[4:]),
        ]
    )


def spoiled(
    login: list[Any], at: int, spoil: Callable[[bytes], bytes]
) -> Callable[[Talk], None]:
    """The script of a login in which one packet is spoiled."""
    follows = follow(login)

    def script(talk: Talk) -> None:
        # The client may wait, too.
        talk.wait(0.03)
        talk.change = lambda sent, data: spoil(data) if sent == at else data
        follows(talk)

    return script


def config(*ports: int, **settings: Any) -> PoolConfig:
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    where = (
        {"HOST": hosts} if len(ports) > 1 else {"HOST": "127.0.0.1", "PORT": ports[0]}
    )
    given = {**where, "USER": "app", "PASSWORD": SECRET, "CONNECT_TIMEOUT": 5}
    return PoolConfig.from_mapping(given | settings)


def connect(settings: PoolConfig) -> Exception | None:
    """Connect, and close; the error if that was none of the connection's."""
    try:
        Connector(settings).connect(time.monotonic() + settings.connect_timeout).close()
    except Exception as error:
        return error
    return None


def leaks(error: BaseException, secret: str = SECRET) -> list[str]:
    """Where the secret is shown in an error: texts, chain, variables of its frames."""
    found, seen, todo = [], set(), [error]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        shown = {"error": f"{one!r} {one} {one.args!r} {one.__dict__!r}"}
        for frame in _frames(one.__traceback__):
            code = frame.f_code
            for name, value in frame.f_locals.items():
                with suppress(Exception):
                    shown[f"{code.co_filename}:{code.co_name}:{name}"] = repr(value)
        found += [where for where, text in shown.items() if secret in text]
        todo += [e for e in (one.__cause__, one.__context__) if e is not None]
    return found


def _frames(traceback: TracebackType | None) -> Iterator[Any]:
    while traceback is not None:
        if (
            Path(__file__).parent
            not in Path(traceback.tb_frame.f_code.co_filename).parents
        ):
            yield traceback.tb_frame
        traceback = traceback.tb_next


def search(dice: random.Random, tls: Any, honest_port: int) -> tuple[str | None, str]:
    """Try one liar, alone and before an honest server: the fault, and what happened."""
    login = dice.choice(logins(tls is not None))
    packets = sum(step is not None for step in login)
    at = dice.randrange(packets + 6)
    mode = "PREFERRED" if tls is None else "REQUIRED"
    with Liar(spoiled(login, at, mutation(dice)), tls) as liar:
        began = time.monotonic()
        alone = connect(config(liar.port, SSL_MODE=mode))
        took = time.monotonic() - began
        listed = connect(config(liar.port, honest_port, SSL_MODE="PREFERRED"))
    if alone is None:
        return None, "connected"
    outcome = f"{type(alone).__name__} {alone.args[0]}"
    if not isinstance(alone, MySQLError) or not isinstance(alone.args[0], int):
        return f"not an error of MySQL's: {alone!r}", outcome
    if took > 4 or at < packets and not isinstance(alone, OperationalError):
        return f"{alone!r} after {took:.1f} s", outcome
    if found := [*leaks(alone), *(leaks(listed) if listed else [])]:
        return f"the password is in {found}", outcome
    if tls is None and SECRET.encode() in liar.seen:
        return "the password went out in clear", outcome
    if at < packets and listed is not None and listed.args[0] not in SAME_ON_ALL_HOSTS:
        return f"the next host was not tried after {listed!r}", outcome
    return None, outcome


def main(seconds: float, seed: int, tls: Any = None) -> int:
    """Search for so long; print what happened how often, and each fault."""
    outcomes: Counter[str] = Counter()
    faults = 0
    until = time.monotonic() + seconds
    with Liar(honest) as other:
        while time.monotonic() < until:
            fault, outcome = search(random.Random(seed), tls, other.port)
            outcomes[outcome] += 1
            if fault:
                faults += 1
                print(f"seed {seed}: {fault}")
            seed += 1
    print(
        f"{sum(outcomes.values())} liars, {faults} faults", dict(outcomes.most_common())
    )
    return faults


def made_for_tls(folder: Path) -> ssl.SSLContext:
    """The context of a server whose certificate no authority has signed."""
    key, certificate = folder / "liar.key", folder / "liar.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        [*command, *files, "-subj", "/CN=liar"], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


if __name__ == "__main__":
    begin = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    half = float(sys.argv[1]) / 2
    with tempfile.TemporaryDirectory() as made:
        over_tls = made_for_tls(Path(made))
        sys.exit(bool(main(half, begin) + main(half, begin, over_tls)))
