"""What ``SSL_MODE`` means, and that everything else is the same over TLS."""

from __future__ import annotations

import _ssl
import ctypes
import errno
import itertools
import os
import select
import shutil
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pymysql
import pytest
from certificates import Authority, openssl
from conftest import MYSQL, MakePool, execute, local_server, until
from pymysql.err import OperationalError

from flask_mysqlpool import Pool
from flask_mysqlpool.pool.driver.tls import Certificates, isolate
from flask_mysqlpool.testing import FaultProxy, LocalServer

VERIFYING = ["VERIFY_CA", "VERIFY_IDENTITY"]
#: OpenSSL's number for errors of the system.
ERR_LIB_SYS = 2
numbers = itertools.count()
ON_MYSQL = pytest.mark.parametrize("engine", [MYSQL], indirect=True, scope="session")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Path:
    """What an authority is to be trusted by that vouched for nobody here."""
    return Authority(tmp_path_factory.mktemp("tls") / "other").ca


@pytest.fixture(scope="module")
def with_tls(engine: str, authority: Authority) -> Iterator[LocalServer]:
    with local_server(engine) as server:
        authority.certify(server)
        yield server


@pytest.fixture(scope="module")
def without_tls(engine: str) -> Iterator[LocalServer]:
    options = {"mariadb": ["--skip-ssl"], "mysql": ["--tls-version="]}
    # MySQL is shown no password without TLS, unless it is encrypted in another way.
    with local_server(engine, options=options[engine], password="") as server:
        yield server


def cipher(pool: Pool) -> str:
    """Empty if the connection is not encrypted."""
    with pool.connection() as connection:
        [(_, value)] = execute(connection, "SHOW SESSION STATUS LIKE 'Ssl_cipher'")
        return str(value)


# The five modes


def test_disabled_never_speaks_tls(make_pool: MakePool, with_tls: LocalServer) -> None:
    assert cipher(make_pool(URL=with_tls.url))

    assert cipher(make_pool(URL=with_tls.url, SSL_MODE="DISABLED")) == ""


def test_preferred_speaks_tls_where_it_is_offered(
    make_pool: MakePool, with_tls: LocalServer
) -> None:
    assert cipher(make_pool(URL=with_tls.url))


def test_preferred_goes_on_where_tls_is_not_offered(
    make_pool: MakePool, without_tls: LocalServer
) -> None:
    assert cipher(make_pool(URL=without_tls.url)) == ""


def test_preferred_does_not_go_on_without_when_tls_fails(
    make_pool: MakePool, with_tls: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ssl.SSLError("no cipher in common")

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", fail)
    pool = make_pool(URL=with_tls.url)

    with pytest.raises(OperationalError, match="no cipher in common"):
        pool.connection()


@pytest.mark.parametrize("mode", ["REQUIRED", *VERIFYING])
def test_where_tls_is_not_offered_the_stricter_modes_do_not_even_log_in(
    make_pool: MakePool, without_tls: LocalServer, mode: str
) -> None:
    with FaultProxy(without_tls.host, without_tls.port) as proxy:
        pool = make_pool(URL=without_tls.url_at(proxy.port), SSL_MODE=mode)

        with pytest.raises(OperationalError, match="2026.*SSL is required"):
            pool.connection()

        assert proxy.bytes_up == 0


def test_required_takes_any_certificate(
    make_pool: MakePool, with_tls: LocalServer, stranger: Path
) -> None:
    assert cipher(make_pool(URL=with_tls.url, SSL_MODE="REQUIRED"))


@pytest.mark.parametrize("mode", VERIFYING)
@pytest.mark.parametrize("trust", ["the system's", "a stranger"])
def test_the_verifying_modes_refuse_an_authority_that_is_not_trusted(
    make_pool: MakePool, with_tls: LocalServer, stranger: Path, mode: str, trust: str
) -> None:
    settings = {"SSL_CA": stranger} if trust == "a stranger" else {}
    pool = make_pool(URL=with_tls.url, SSL_MODE=mode, **settings)

    with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        pool.connection()

    assert pool.stats().size == 0


def test_an_authority_alone_is_what_the_server_is_verified_by(
    make_pool: MakePool, with_tls: LocalServer, authority: Authority, stranger: Path
) -> None:
    assert cipher(make_pool(URL=with_tls.url, HOST="localhost", SSL_CA=authority.ca))

    with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        make_pool(URL=with_tls.url, SSL_CA=stranger).connection()


def test_a_file_for_tls_alone_takes_no_server_without_it(
    make_pool: MakePool, without_tls: LocalServer, authority: Authority
) -> None:
    certificate, key = authority.issue("client")
    for files in {"SSL_CA": authority.ca}, {"SSL_CERT": certificate, "SSL_KEY": key}:
        with pytest.raises(OperationalError, match="2026.*SSL is required"):
            make_pool(URL=without_tls.url, **files).connection()


def test_verify_ca_does_not_look_at_the_name(
    make_pool: MakePool, with_tls: LocalServer, authority: Authority
) -> None:
    url, ca = with_tls.url, authority.ca
    pool = make_pool(URL=url, HOST="localhost", SSL_MODE="VERIFY_CA", SSL_CA=ca)

    assert cipher(pool)


def test_verify_identity_refuses_another_name(
    make_pool: MakePool, with_tls: LocalServer, authority: Authority
) -> None:
    url, ca = with_tls.url, authority.ca
    pool = make_pool(URL=url, HOST="localhost", SSL_MODE="VERIFY_IDENTITY", SSL_CA=ca)

    with pytest.raises(OperationalError, match="'localhost'"):
        pool.connection()


def test_verify_identity_takes_the_right_name_from_the_right_authority(
    make_pool: MakePool, with_tls: LocalServer, authority: Authority
) -> None:
    settings = {"SSL_MODE": "VERIFY_IDENTITY", "SSL_CA": authority.ca}

    assert cipher(make_pool(URL=with_tls.url, **settings))


@ON_MYSQL
def test_the_certificate_that_mysql_makes_for_itself_will_do(
    make_pool: MakePool, server: LocalServer
) -> None:
    ca = f"{server.folder}/data/ca.pem"

    assert cipher(make_pool(SSL_MODE="REQUIRED"))
    assert cipher(make_pool(SSL_MODE="VERIFY_CA", SSL_CA=ca))
    with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        make_pool(SSL_MODE="VERIFY_IDENTITY", SSL_CA=ca).connection()


def test_the_clients_certificate_is_shown(
    make_pool: MakePool, with_tls: LocalServer, authority: Authority
) -> None:
    with closing(with_tls.connect()) as root, root.cursor() as cursor:
        cursor.execute("CREATE USER IF NOT EXISTS known REQUIRE X509")
    certificate, key = authority.issue("client")
    url = f"mysql://known@127.0.0.1:{with_tls.port}"

    with pytest.raises(OperationalError, match="1045"):
        make_pool(URL=url).connection()

    assert cipher(make_pool(URL=url, SSL_CERT=certificate, SSL_KEY=key))


@ON_MYSQL
def test_what_other_tests_try_on_mysql_they_try_over_tls(make_pool: MakePool) -> None:
    assert cipher(make_pool())


# Its price


def test_a_pool_makes_one_context_for_all_its_connections(
    make_pool: MakePool, with_tls: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Certificates._make
    made = []

    def counted(certificates: Certificates) -> ssl.SSLContext:
        made.append(make(certificates))
        return made[-1]

    monkeypatch.setattr(Certificates, "_make", counted)
    pool = make_pool(URL=with_tls.url, MAX_SIZE=5)

    held = [pool.connection() for _ in range(5)]

    assert pool.stats().opened == 5
    assert len(made) == 1
    for connection in held:
        connection.close()


# Files that are renewed


class Trust:
    """What a pool trusts: a file in a folder, as it is renewed in several ways."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "ca.pem"

    def write(self, source: Path) -> None:
        """In place."""
        self.file.write_bytes(source.read_bytes())

    def rename(self, source: Path) -> None:
        """Another file, renamed to the same name."""
        shutil.copy(source, self.folder / "new")
        (self.folder / "new").replace(self.file)

    def swap(self, source: Path) -> None:
        """A link to a folder that is exchanged, as Kubernetes does."""
        version = self.folder / f"..{next(numbers)}"
        version.mkdir()
        shutil.copy(source, version / "ca.pem")
        # Neither size nor time tells them apart.
        os.utime(version / "ca.pem", (0, 0))
        link = self.folder / "..new"
        link.symlink_to(version.name)
        link.replace(self.folder / "..data")
        if not self.file.is_symlink():
            self.file.unlink(missing_ok=True)
            self.file.symlink_to("..data/ca.pem")


@pytest.mark.parametrize("way", ["write", "rename", "swap"])
def test_an_authority_that_is_renewed_is_trusted_by_the_next_connect(
    make_pool: MakePool,
    with_tls: LocalServer,
    authority: Authority,
    stranger: Path,
    tmp_path: Path,
    way: str,
) -> None:
    trust = Trust(tmp_path)
    renew = getattr(trust, way)
    renew(stranger)
    pool = make_pool(URL=with_tls.url, SSL_MODE="VERIFY_CA", SSL_CA=str(trust.file))
    with pytest.raises(pymysql.err.OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        pool.connection()

    renew(authority.ca)
    assert cipher(pool)

    renew(stranger)
    assert cipher(pool)  # what is open stays
    pool.reset()
    with pytest.raises(pymysql.err.OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        pool.connection()


def test_a_renewal_that_is_half_done_is_waited_for(
    make_pool: MakePool, with_tls: LocalServer, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("client")
    files = tmp_path / "cert", tmp_path / "key"
    for source, file in zip((certificate, key), files, strict=True):
        shutil.copy(source, file)
    settings = {"SSL_CERT": str(files[0]), "SSL_KEY": str(files[1])}
    pool = make_pool(URL=with_tls.url, SSL_MODE="REQUIRED", **settings)
    assert cipher(pool)
    pool.reset()

    certificate, key = authority.issue("client")
    shutil.copy(certificate, files[0])
    with ThreadPoolExecutor(1) as thread:
        outcome = thread.submit(cipher, pool)
        until(lambda: pool.stats().connecting)
        shutil.copy(key, files[1])
        assert outcome.result()


def test_a_renewal_that_is_no_good_is_an_error_with_its_cause(
    make_pool: MakePool,
    with_tls: LocalServer,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flask_mysqlpool.pool.driver.tls.RENEWAL", 0.05)
    ca = tmp_path / "ca.pem"
    shutil.copy(authority.ca, ca)
    pool = make_pool(URL=with_tls.url, SSL_MODE="VERIFY_CA", SSL_CA=str(ca))
    assert cipher(pool)
    for spoil in (lambda: ca.write_text("-----BEGIN CERT"), ca.unlink):
        spoil()
        pool.reset()
        with pytest.raises(
            pymysql.err.OperationalError, match="SSL_CA.*cannot be"
        ) as e:
            pool.connection()
        assert e.value.args[0] == 2026
        assert isinstance(e.value.__cause__, OSError)
    shutil.copy(authority.ca, ca)
    assert cipher(pool)


def test_a_key_that_is_encrypted_asks_nobody_for_its_password(
    make_pool: MakePool, with_tls: LocalServer, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("client")
    encrypted = tmp_path / "key"
    output = ["-out", str(encrypted), "-aes128", "-passout", "pass:secret"]
    openssl("pkey", "-in", str(key), *output)
    settings = {"SSL_CERT": str(certificate), "SSL_KEY": str(encrypted)}
    pool = make_pool(URL=with_tls.url, SSL_MODE="REQUIRED", **settings)

    with pytest.raises(pymysql.err.OperationalError, match="2026.*SSL_KEY cannot be"):
        pool.connection()


def test_a_server_that_falls_silent_in_the_handshake_costs_no_more_than_the_deadline(
    make_pool: MakePool, with_tls: LocalServer
) -> None:
    with socket.create_connection((with_tls.host, with_tls.port)) as client:
        greeting = client.recv(4096)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = with_tls.url_at(silent.getsockname()[1])
        pool = make_pool(URL=url, CONNECT_TIMEOUT=0.4)
        with ThreadPoolExecutor(1) as thread:
            started = time.monotonic()
            outcome = thread.submit(pool.connection)
            client, _ = silent.accept()
            with client:
                client.sendall(greeting)
                error = outcome.exception()

    assert 0.4 <= time.monotonic() - started < 2
    assert isinstance(error, OperationalError)
    assert "timed out" in str(error)


# Everything else is the same


def test_a_session_is_cleaned_over_tls(
    make_pool: MakePool, with_tls: LocalServer
) -> None:
    pool = make_pool(URL=with_tls.url, SSL_MODE="REQUIRED", SQL_MODE="ANSI", MAX_SIZE=1)
    for _ in range(3):
        with pool.connection() as connection:
            execute(connection, "SET @a = 1, sql_mode = '', sort_buffer_size = 65536")
            execute(connection, "CREATE TEMPORARY TABLE x (a INT)")

        with pool.connection() as connection:
            [(variable, mode)] = execute(connection, "SELECT @a, @@sql_mode")
            assert variable is None
            assert "ANSI" in mode
            with pytest.raises(pymysql.err.ProgrammingError, match="1146"):
                execute(connection, "SELECT * FROM x")

    assert pool.stats().opened == 1


def test_a_large_answer_comes_whole_over_tls(
    make_pool: MakePool, with_tls: LocalServer
) -> None:
    with make_pool(URL=with_tls.url, SSL_MODE="REQUIRED").connection() as connection:
        [[text]] = execute(connection, "SELECT REPEAT('abcdefg', 1000000)")
        assert text == "abcdefg" * 1000000
        assert execute(connection, f"SELECT LENGTH('{text}')") == ((7000000,),)


def test_a_connection_that_was_killed_is_not_handed_out_over_tls(
    make_pool: MakePool, with_tls: LocalServer
) -> None:
    pool = make_pool(URL=with_tls.url, SSL_MODE="REQUIRED", MAX_SIZE=1)
    with pool.connection() as connection:
        killed = connection.thread_id()
    [idle] = pool._state.idle
    assert idle.is_alive()
    with closing(with_tls.connect()) as root, root.cursor() as cursor:
        cursor.execute(f"KILL {killed}")
    until(lambda: not idle.is_alive())

    with pool.connection() as connection:
        assert connection.thread_id() != killed
        assert execute(connection, "SELECT 1") == ((1,),)


# OpenSSL's queue of errors, which all connections of a thread share


class ErrorQueue:
    """The queue of this thread, in the library that Python's sockets use."""

    def __init__(self) -> None:
        self._library = ctypes.PyDLL(_ssl.__file__)
        self._library.ERR_peek_error.restype = ctypes.c_ulong

    def put_reset(self) -> None:
        """Leave in it what the reset of a socket leaves."""
        self._library.ERR_new()
        self._library.ERR_set_error(ERR_LIB_SYS, errno.ECONNRESET, None)

    def is_empty(self) -> bool:
        return not self._library.ERR_peek_error()


@pytest.fixture
def queue() -> Iterator[ErrorQueue]:
    try:
        queue = ErrorQueue()
        assert queue.is_empty()
        queue.put_reset()
    except (AttributeError, OSError):
        pytest.skip("OpenSSL 3 is not a library of its own here")
    assert not queue.is_empty()
    queue._library.ERR_clear_error()
    yield queue
    queue._library.ERR_clear_error()


def test_an_error_of_another_socket_does_not_end_a_read(
    make_pool: MakePool, with_tls: LocalServer, queue: ErrorQueue
) -> None:
    pool = make_pool(URL=with_tls.url, SSL_MODE="REQUIRED", READ_TIMEOUT=5)
    for statement in "SELECT SLEEP(0.002)", "SELECT SLEEP(0.002), REPEAT('x', 100000)":
        with pool.connection() as connection:
            queue.put_reset()
            assert execute(connection, statement)
            queue.put_reset()
            connection.ping()
            # Its answers are read by a deadline, at the next checkout.
            execute(connection, "SET @a = 1")
            queue.put_reset()

    assert pool.stats().opened == 1


def test_an_error_of_another_socket_does_not_end_a_write(
    make_pool: MakePool, with_tls: LocalServer, queue: ErrorQueue
) -> None:
    text = "abcdefgh" * 1_000_000
    with FaultProxy(with_tls.host, with_tls.port) as proxy:
        url = with_tls.url_at(proxy.port)
        pool = make_pool(URL=url, SSL_MODE="REQUIRED", WRITE_TIMEOUT=20)
        with pool.connection() as connection:
            proxy.hang()
            soon = threading.Timer(0.05, proxy.resume)
            soon.start()
            queue.put_reset()
            [[checksum]] = execute(connection, f"SELECT CRC32('{text}')")
            soon.join()

    assert checksum == zlib.crc32(text.encode())
    assert pool.stats().opened == 1


def test_an_error_of_another_socket_does_not_end_a_login(
    make_pool: MakePool,
    with_tls: LocalServer,
    queue: ErrorQueue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = make_pool(URL=with_tls.url, SSL_MODE="REQUIRED")
    shake_hands = ssl.SSLSocket.do_handshake

    def then_another_is_reset(sock: ssl.SSLSocket, **options: Any) -> None:
        shake_hands(sock, **options)
        queue.put_reset()

    monkeypatch.setattr(ssl.SSLSocket, "do_handshake", then_another_is_reset)
    connection = pool._connector.connect(time.monotonic() + 5)
    connection.close()


@pytest.mark.parametrize("end", ["reset", "cut", "half_close"])
def test_a_connection_that_ends_leaves_no_error_behind(
    make_pool: MakePool, with_tls: LocalServer, queue: ErrorQueue, end: str
) -> None:
    with FaultProxy(with_tls.host, with_tls.port) as proxy:
        url = with_tls.url_at(proxy.port)
        pool = make_pool(URL=url, SSL_MODE="REQUIRED", READ_TIMEOUT=5, MAX_SIZE=8)
        taken = [pool.connection() for _ in range(4)]
        execute(taken[0], "SET @a = 1")
        getattr(proxy, end)()
        read, write, commit, roll_back = taken
        for call in (
            read.close,
            lambda: execute(write, "SELECT 1"),
            lambda: execute(write, "SELECT 1"),
            commit.commit,
            roll_back.rollback,
            *(connection.close for connection in taken),
        ):
            with suppress(pymysql.err.MySQLError):
                call()
            assert queue.is_empty()


def test_a_handshake_that_is_reset_leaves_no_error_behind(
    make_pool: MakePool,
    with_tls: LocalServer,
    queue: ErrorQueue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenSSL 3.5 leaves it in the queue, if it hits a write of more than 4096 bytes.

    With TLS 1.2 those are the client's own certificates, if they are many. After other
    logins that fail, on a certificate or on a read, the queue is empty anyway.
    """

    def is_reset(sock: ssl.SSLSocket, **options: Any) -> None:
        queue.put_reset()
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    monkeypatch.setattr(ssl.SSLSocket, "do_handshake", is_reset)
    pool = make_pool(URL=with_tls.url, SSL_MODE="REQUIRED")
    with pytest.raises(OperationalError, match="reset"):
        pool._connector.connect(time.monotonic() + 5)

    assert queue.is_empty()


def test_a_close_in_another_thread_does_not_lead_to_plain_text(
    make_pool: MakePool, with_tls: LocalServer
) -> None:
    pool = make_pool(URL=with_tls.url, SSL_MODE="REQUIRED")
    with pool.connection() as connection:
        con = connection._con
        assert con is not None
        con.interrupt()

        assert con.raw._sock._sslobj is not None
        con.raw._sock._sslobj = None  # as its close() begins
        with pytest.raises(OperationalError, match="2006.*has closed this socket"):
            execute(connection, "SELECT 'secret'")


@pytest.mark.parametrize("size", [10, 9000, 100_000])
def test_what_tls_has_decrypted_counts_as_unread(
    make_pool: MakePool, with_tls: LocalServer, size: int
) -> None:
    pool = make_pool(URL=with_tls.url, SSL_MODE="REQUIRED", AUTOCOMMIT=True)
    with pool.connection() as connection:
        con: Any = connection._con
        assert con.is_alive()
        con._send([(3, b"SELECT REPEAT('a', %d)" % size)])
        con._readable(time.monotonic() + 5)
        con.raw._sock.recv(9)  # the rest of the record is not in the socket any more

        assert not con.is_alive()
        con.discard_reason = "invalidated"


# The password that MySQL wants to see once


@pytest.fixture
def newcomer(with_tls: LocalServer) -> str:
    """The URL of a user who has not logged in yet."""
    user = f"user{next(numbers)}"
    with closing(with_tls.connect()) as root, root.cursor() as cursor:
        cursor.execute(f"CREATE USER {user} IDENTIFIED BY 'secret'")
    return f"mysql://{user}:secret@{with_tls.host}:{with_tls.port}"


@ON_MYSQL
@pytest.mark.parametrize("mode", ["PREFERRED", "REQUIRED"])
def test_a_password_that_the_server_has_not_seen_yet_goes_by_tls(
    make_pool: MakePool, newcomer: str, mode: str
) -> None:
    assert cipher(make_pool(URL=newcomer, SSL_MODE=mode))


@ON_MYSQL
def test_a_password_that_the_server_has_seen_needs_no_tls(
    make_pool: MakePool, newcomer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pymysql._auth._have_cryptography", False)
    assert cipher(make_pool(URL=newcomer))

    assert cipher(make_pool(URL=newcomer, SSL_MODE="DISABLED")) == ""


@ON_MYSQL
def test_a_password_goes_encrypted_by_rsa_where_there_is_no_tls(
    make_pool: MakePool, newcomer: str
) -> None:
    pytest.importorskip("cryptography")
    assert cipher(make_pool(URL=newcomer, SSL_MODE="DISABLED")) == ""


@ON_MYSQL
def test_what_rsa_needs_is_said_where_it_is_missing(
    make_pool: MakePool, newcomer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pymysql._auth._have_cryptography", False)
    pool = make_pool(URL=newcomer, SSL_MODE="DISABLED")

    expected = "2059.*'cryptography' package is required"
    with pytest.raises(pymysql.err.OperationalError, match=expected):
        pool.connection()

    assert pool.stats().size == 0


def test_a_socket_that_is_reset_before_its_handshake_is_closed() -> None:
    context = ssl.create_default_context()
    isolate(context)
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        accepted.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        accepted.close()
        select.select([client], [], [])  # until the reset is here

        number = client.fileno()
        with pytest.raises(OSError) as caught:
            context.wrap_socket(client, server_hostname="localhost")

    assert caught.value.errno in (errno.ENOTCONN, errno.EBADF)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
