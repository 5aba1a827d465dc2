"""A connect fails with an error of MySQL's, and another host is tried where one may do.

The servers here are scripted: see ``liars.py``, which also searches for longer.
"""

from __future__ import annotations

import base64
import random
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import liars
import pytest
from liars import Liar, Talk, config, connect, greeting, honest, leaks, refusal
from pymysql.err import MySQLError, OperationalError, ProgrammingError

from flask_mysqlpool import Pool

#: The server's numbers for: full, host blocked, host unknown, full for the account,
#: offline, shutting down, killed, timed out, not ready, TLS wanted, and a proxy's own.
ABOUT_THE_HOST = [1040, 1129, 1130, 1203, 1226, 3032, 1053, 1927, 4031, 1047, 3159]
ABOUT_THE_HOST += [2003, 2013, 9001, 9002, 1815, 12345]
ABOUT_THE_ACCOUNT = [1044, 1045, 1049, 1698, 1862, 3118, 3955, 4151]


@pytest.fixture(scope="module")
def other() -> Iterator[Liar]:
    """A server that lets everybody in."""
    with Liar(honest) as server:
        yield server


def says(*data: bytes) -> Callable[[Talk], None]:
    """A script: say this, and close."""
    return lambda talk: talk.raw(b"".join(data))


def refuses_at_once(number: int) -> Callable[[Talk], None]:
    return lambda talk: talk.say(refusal(number))


def refuses_the_account(number: int) -> Callable[[Talk], None]:
    def script(talk: Talk) -> None:
        talk.say(greeting())
        talk.hear()
        talk.say(refusal(number))

    return script


def refuses_the_setup(number: int) -> Callable[[Talk], None]:
    def script(talk: Talk) -> None:
        talk.say(greeting())
        talk.hear()
        talk.say(liars.OK)
        while talk.hear():
            talk.say(refusal(number))

    return script


def asks_for(plugin: bytes, *more: bytes) -> Callable[[Talk], None]:
    def script(talk: Talk) -> None:
        talk.say(greeting(tls=talk.offers_tls))
        talk.hear()
        talk.say(liars.switch(plugin, *more))
        talk.hear()
        talk.say(liars.OK)
        talk.serve()

    return script


def closes_after_the_greeting(talk: Talk) -> None:
    talk.say(greeting())
    talk.hear()


FOREIGN = {
    "closes": says(),
    "http": says(b"HTTP/1.1 503 Service Unavailable\r\n\r\n"),
    "ssh": says(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "smtp": says(b"220 mail ESMTP\r\n"),
    "redis": says(b"-ERR unknown command\r\n"),
    "postgres": says(b"E\0\0\0\x85SFATAL\0"),
    "tls alert": says(b"\x15\x03\x01\0\x02\x02\x46"),
    "random": says(bytes(range(255, 0, -1))),
    "empty packet": says(liars.packet(0, b"")),
    "protocol 9": says(liars.packet(0, greeting(protocol=9)[:20])),
    "truncated": says(liars.packet(0, greeting())[:30]),
    "short greeting": says(liars.packet(0, greeting()[:9])),
    "huge packet": says(b"\xff\xff\xff\0" + greeting()),
    "a short error": says(liars.packet(0, b"\xff")),
    "an error below 1000": says(liars.packet(0, refusal(7))),
    "an error that is not text": says(
        liars.packet(0, b"\xff\x10\x04#\xff\xff\xff\xff\xff")
    ),
    "no version": says(liars.packet(0, b"\x0ax.y\0" + greeting()[8:])),
}


def refused_by(*ports: int, **settings: Any) -> Exception:
    error = connect(config(*ports, **settings))
    assert error is not None
    return error


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_server_is_an_error_of_mysqls(name: str, other: Liar) -> None:
    with Liar(FOREIGN[name]) as liar:
        error = refused_by(liar.port)
        assert type(error) is OperationalError
        number, text = error.args
        assert isinstance(number, int)
        assert text
        assert error.__cause__ is not None or name == "closes"
        assert not leaks(error)

        assert connect(config(liar.port, other.port)) is None


@pytest.mark.parametrize("script", [refuses_at_once, refuses_the_account])
@pytest.mark.parametrize("number", ABOUT_THE_HOST)
def test_a_host_that_refuses_for_itself_is_passed_over(
    script: Any, number: int, other: Liar
) -> None:
    with Liar(script(number)) as liar:
        assert refused_by(liar.port).args == (number, "no")
        assert connect(config(liar.port, other.port)) is None


@pytest.mark.parametrize(
    "number", [n for n in ABOUT_THE_HOST if n not in (3159, 1815, 12345)]
)
def test_a_host_that_fails_in_the_setup_is_passed_over(
    number: int, other: Liar
) -> None:
    with Liar(refuses_the_setup(number)) as liar:
        assert refused_by(liar.port).args[0] == number
        assert connect(config(liar.port, other.port)) is None


@pytest.mark.parametrize("number", ABOUT_THE_ACCOUNT)
def test_an_account_that_is_refused_is_not_tried_elsewhere(
    number: int, other: Liar
) -> None:
    before = other.connections
    with Liar(refuses_the_account(number)) as liar:
        assert refused_by(liar.port, other.port).args == (number, "no")
    assert other.connections == before


@pytest.mark.parametrize("number", [1064, 1193, 1231, 1146, 1290])
def test_a_statement_of_the_setup_that_is_refused_is_not_tried_elsewhere(
    number: int, other: Liar
) -> None:
    before = other.connections
    with Liar(refuses_the_setup(number)) as liar:
        error = refused_by(liar.port, other.port)
    assert isinstance(error, MySQLError)
    assert error.args[0] == number
    assert isinstance(error, ProgrammingError) == (number in (1064, 1146))
    assert other.connections == before


@pytest.mark.parametrize("plugin", ["auth_gssapi_client", "parsec"])
def test_a_plugin_that_this_side_does_not_have_is_not_tried_elsewhere(
    plugin: str, other: Liar
) -> None:
    before = other.connections
    with Liar(asks_for(plugin.encode())) as liar:
        error = refused_by(liar.port, other.port)
    assert error.args[0] == 2059
    assert f"{plugin}'' not configured" in error.args[1]
    assert other.connections == before


def test_a_password_of_ed25519_signs_what_the_server_sends() -> None:
    pytest.importorskip("nacl")
    keys = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    nonce, heard = bytes(range(32)), []

    def script(talk: Talk) -> None:
        talk.say(greeting())
        talk.hear()
        talk.say(liars.switch(b"client_ed25519", nonce))
        heard.append(talk.hear())
        talk.say(liars.OK)
        talk.serve()

    with Liar(script) as liar:
        assert connect(config(liar.port, PASSWORD="secret")) is None

    # What MariaDB keeps of this password: SHOW CREATE USER.
    public = base64.b64decode("ZIgUREUg5PVgQ6LskhXmO+eZLS0nC8be6HPjYWR4YJY=")
    keys.Ed25519PublicKey.from_public_bytes(public).verify(heard[0], nonce)


def test_what_ed25519_needs_is_said_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "nacl", None)
    monkeypatch.setattr("pymysql._auth._nacl_bindings", None)
    with Liar(asks_for(b"client_ed25519", bytes(32))) as liar:
        error = refused_by(liar.port)
    assert error.args[0] == 2059
    assert "'pynacl' package is required" in error.args[1]


def test_a_name_that_does_not_resolve(
    other: Liar, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(host: str, *args: object, **kwargs: object) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = refused_by(other.port, HOST="no-such-host")

    assert type(error) is OperationalError
    assert error.args[0] == 2003
    assert "'no-such-host' ([Errno -2] Name or service not known)" in error.args[1]
    assert isinstance(error.__cause__, socket.gaierror)
    assert connect(config(1, 2, HOST=f"no-such-host,127.0.0.1:{other.port}")) is None


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..b", "\u2025"])
def test_a_name_that_can_be_none(host: str, other: Liar) -> None:
    error = refused_by(other.port, HOST=host)
    assert type(error) is OperationalError
    assert error.args[0] == 2003
    assert connect(config(1, 2, HOST=f"{host},127.0.0.1:{other.port}")) is None


def test_arguments_that_the_driver_refuses() -> None:
    error = refused_by(1, CONNECT_ARGS={"client_flag": "all"})
    assert type(error) is OperationalError
    assert "CONNECT_ARGS" in error.args[1]
    assert isinstance(error.__cause__, TypeError)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("liars")


@pytest.fixture(scope="module")
def tls(folder: Path) -> ssl.SSLContext:
    if shutil.which("openssl") is None:
        pytest.skip("certificates need the openssl command")
    return liars.made_for_tls(folder)


@pytest.fixture(scope="module")
def ca(tls: ssl.SSLContext, folder: Path) -> Path:
    return folder / "liar.pem"


def speaks_tls(talk: Talk) -> None:
    talk.say(greeting(tls=True))
    talk.hear()
    talk.say(liars.OK)
    talk.serve()


def test_a_certificate_that_is_not_trusted(tls: ssl.SSLContext, other: Liar) -> None:
    with Liar(speaks_tls, tls) as liar, Liar(speaks_tls, tls) as second:
        error = refused_by(liar.port, SSL_MODE="VERIFY_CA")
        assert type(error) is OperationalError
        assert "CERTIFICATE_VERIFY_FAILED" in error.args[1]
        assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
        assert not leaks(error)

        refused_by(liar.port, second.port, SSL_MODE="VERIFY_CA")
        assert second.connections == 1


def test_a_host_that_does_not_speak_tls_is_passed_over(tls: ssl.SSLContext) -> None:
    with Liar(honest) as liar, Liar(speaks_tls, tls) as second:
        assert connect(config(liar.port, second.port, SSL_MODE="REQUIRED")) is None


def listens(talk: Talk) -> None:
    talk.hear()


def test_a_host_that_says_nothing_ends_by_the_deadline(other: Liar) -> None:
    with Liar(listens) as liar:
        began = time.monotonic()
        error = refused_by(liar.port, CONNECT_TIMEOUT=0.2)
        assert 0.2 <= time.monotonic() - began < 2
        assert type(error) is OperationalError
        assert isinstance(error.__cause__, TimeoutError)
        assert connect(config(liar.port, other.port, CONNECT_TIMEOUT=1)) is None


# How far a replica is behind


def replica(version: bytes, *lags: bytes | None) -> Callable[[Talk], None]:
    """A read-only server, with what it says of its replication."""
    ours = version.startswith(b"8")
    column = b"Seconds_Behind_Source" if ours else b"Seconds_Behind_Master"
    question = b"SHOW REPLICA STATUS" if ours else b"SHOW ALL SLAVES STATUS"
    rows: dict[bytes, Any] = {question: [(b"x", lag) for lag in lags]}
    rows[b"SHOW GLOBAL VARIABLES"] = [(b"read_only", b"ON"), (b"version", version)]

    def script(talk: Talk) -> None:
        talk.say(greeting())
        talk.hear()
        talk.say(liars.OK)
        talk.serve(
            {**rows, question: [(b"x", lag) for lag in lags]}, {question: column}
        )

    return script


@pytest.mark.parametrize("version", [b"8.0.36", b"10.11.19-MariaDB-log"])
@pytest.mark.parametrize(
    ("lags", "refusal"),
    [
        ([], "stopped"),
        ([b"0"], ""),
        ([b"5"], ""),
        ([b"6"], "6 s behind"),
        ([None], "stopped"),
        ([b"0", b"9", b"5"], "9 s behind"),
        ([b"0", b"10", b"9"], "10 s behind"),
        ([b"0", b"5"], ""),
        ([b"0", None], "stopped"),
        ([None, b"0"], "stopped"),
    ],
)
def test_each_source_of_a_replica_counts(
    lags: list[bytes | None], refusal: str, version: bytes
) -> None:
    with Liar(replica(version, *lags)) as server:
        error = connect(config(server.port, TARGET="replica", MAX_LAG=5))
    assert (error is None) == (refusal == "")
    assert refusal in str(error)


# Passwords


PASSWORDS = {
    "text": "S3cret",
    "half a character": "S3cret\udce9",
    "no character": "S3cret\ud800",
    "a callable": lambda: "S3cret",
    "half a character from a callable": lambda: "S3cret\udce9",
    "no character from a callable": lambda: "S3cret\ud800",
    "bytes from a callable": lambda: b"S3cret",
    "something else from a callable": lambda: ["S3cret"],
}
FAILURES: dict[str, Callable[[Talk], None]] = {
    "http": FOREIGN["http"],
    "refused": refuses_the_account(1045),
    "full": refuses_at_once(1040),
    "set-up": refuses_the_setup(1064),
    "in clear": asks_for(b"mysql_clear_password"),
    "dialog": asks_for(b"dialog", b"\4Password: "),
    "sha2": asks_for(b"caching_sha2_password"),
    "closes": closes_after_the_greeting,
}


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("failure", FAILURES)
def test_no_failure_shows_the_password(failure: str, password: str) -> None:
    with Liar(FAILURES[failure]) as liar:
        for ports in ([liar.port], [liar.port, liar.port + 1]):
            settings = config(*ports, PASSWORD=PASSWORDS[password])
            error = connect(settings)
            assert isinstance(error, MySQLError)
            assert not leaks(error, "S3cret")


@pytest.mark.parametrize("failure", FAILURES)
def test_no_checkout_that_fails_shows_the_password(
    failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Liar(FAILURES[failure]) as liar:
        for ports in ([liar.port], [liar.port, 1]):
            pool = Pool(config(*ports, PASSWORD="S3cret", TIMEOUT=1))
            with pytest.raises(MySQLError) as info:
                pool.connection()
            assert not leaks(info.value, "S3cret")
            assert "S3cret" not in f"{pool!r} {pool.stats()!r} {caplog.text}"
            pool.close()


class Dialog:
    """Answers the questions of ``dialog`` with text, where bytes are wanted."""

    def __init__(self, raw: object) -> None:
        pass

    def prompt(self, echo: bool, prompt: bytes) -> str:
        return "S3cret"


def test_a_plugin_of_the_app_that_answers_wrongly_is_not_quoted() -> None:
    arguments = {"auth_plugin_map": {"dialog": Dialog}}
    with Liar(asks_for(b"dialog", b"\4PIN: ")) as liar:
        error = refused_by(liar.port, CONNECT_ARGS=arguments)
    assert error.args[0] == 2061
    assert not leaks(error, "S3cret")


# In clear text

IN_CLEAR: dict[str, tuple[bytes, ...]] = {
    "mysql_clear_password": (b"mysql_clear_password",),
    "dialog": (b"dialog", b"\5Password: "),
}


@pytest.mark.parametrize("plugin", IN_CLEAR)
def test_a_server_that_is_not_verified_is_not_shown_the_password(
    plugin: str, tls: ssl.SSLContext, other: Liar
) -> None:
    script = asks_for(*IN_CLEAR[plugin])
    before = other.connections
    for mode, context in ("PREFERRED", None), ("REQUIRED", tls), ("DISABLED", None):
        with Liar(script, context) as liar:
            error = refused_by(liar.port, other.port, SSL_MODE=mode)
        assert liars.SECRET.encode() not in liar.seen
        assert error.args[0] == 2059
        assert "CLEARTEXT_PLUGIN" in error.args[1]
    assert other.connections == before


@pytest.mark.parametrize("plugin", IN_CLEAR)
def test_a_server_that_may_see_it_is_shown_the_password(
    plugin: str, tls: ssl.SSLContext, ca: Path, tmp_path: Path
) -> None:
    def shown(context: Any = None, path: str | None = None, **settings: Any) -> bool:
        with Liar(asks_for(*IN_CLEAR[plugin]), context, path) as liar:
            port = 1 if path else liar.port
            assert connect(config(port, UNIX_SOCKET=path, **settings)) is None
        return liars.SECRET.encode() in liar.seen

    assert shown(CLEARTEXT_PLUGIN=True)
    assert shown(path=str(tmp_path / "s"))
    assert shown(tls, SSL_MODE="VERIFY_CA", SSL_CA=str(ca))


# Encrypted, with a key that the server has sent


@pytest.fixture(scope="module")
def key() -> bytes:
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    public = rsa.generate_private_key(65537, 2048).public_key()
    form = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    pem: bytes = public.public_bytes(
        form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def caching_sha2(key: bytes) -> list[bytes | None]:
    first = [greeting(), None, liars.switch(b"caching_sha2_password"), None, b"\1\4"]
    return [*first, None, b"\1" + key, None, liars.OK]


def sha256(key: bytes) -> list[bytes | None]:
    return [greeting(b"sha256_password"), None, b"\1" + key, None, liars.OK]


def sha256_by_a_switch(key: bytes) -> list[bytes | None]:
    first = [greeting(), None, liars.switch(b"sha256_password"), None]
    return [*first, b"\1" + key, None, liars.OK]


KEYS = [caching_sha2, sha256, sha256_by_a_switch]


@pytest.mark.parametrize("login", KEYS)
def test_a_server_without_tls_chooses_no_key_for_the_password(
    login: Callable[[bytes], list[bytes | None]], key: bytes, other: Liar
) -> None:
    before = other.connections
    with Liar(liars.follow(login(key))) as liar:
        error = refused_by(liar.port, other.port)
    assert error.args[0] == 2059
    assert "CLEARTEXT_PLUGIN" in error.args[1]
    assert not leaks(error)
    assert other.connections == before


@pytest.mark.parametrize("login", KEYS)
def test_a_server_may_choose_the_key_where_any_may_see_the_password(
    login: Callable[[bytes], list[bytes | None]], key: bytes
) -> None:
    for setting in {"CLEARTEXT_PLUGIN": True}, {"SSL_MODE": "DISABLED"}:
        with Liar(liars.follow(login(key))) as liar:
            assert connect(config(liar.port, **setting)) is None


def test_a_password_goes_as_it_is_within_tls(tls: ssl.SSLContext) -> None:
    hello = greeting(b"caching_sha2_password", tls=True)
    with Liar(liars.follow([hello, None, b"\1\4", None, liars.OK]), tls) as liar:
        assert connect(config(liar.port, SSL_MODE="REQUIRED")) is None
    assert liars.SECRET.encode() in liar.seen


def test_an_old_password_is_not_supported() -> None:
    with Liar(asks_for(b"mysql_old_password")) as liar:
        assert refused_by(liar.port, CLEARTEXT_PLUGIN=True).args[0] == 2059


# At random


SEARCHED = 40


@pytest.mark.parametrize("encrypted", [False, True])
def test_liars_are_found_out(encrypted: bool, tls: ssl.SSLContext, other: Liar) -> None:
    context = tls if encrypted else None
    faults = []
    for seed in range(SEARCHED):
        fault, _ = liars.search(random.Random(seed), context, other.port)
        if fault is not None:
            faults.append(f"seed {seed}: {fault}")
    assert not faults


@pytest.mark.parametrize("may_send_files", [False, True])
def test_no_file_is_sent_in_the_set_up(tmp_path: Path, may_send_files: bool) -> None:
    file = tmp_path / "private"
    file.write_text("not asked for")

    def script(talk: Talk) -> None:
        talk.say(greeting())
        talk.hear()
        talk.say(liars.OK)
        while talk.hear():
            talk.say(b"\xfb" + str(file).encode())

    with Liar(script) as liar:
        arguments = {"local_infile": may_send_files}
        error = refused_by(liar.port, CONNECT_ARGS=arguments)

    assert error.args[0] == 2027
    assert b"not asked for" not in liar.seen
