"""``CONNECT`` opens the socket; login, deadline and TLS are the pool's as ever."""

from __future__ import annotations

import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import liars
import pytest
from certificates import Authority
from conftest import MYSQL, MakePool, execute, local_server, until
from liars import Liar, Talk, greeting, honest
from pymysql.err import OperationalError
from relays import Relay, by_socket

from flask_mysqlpool import Pool, PoolTimeout, ServerUnavailable
from flask_mysqlpool.cli.check import examine
from flask_mysqlpool.testing import FaultProxy, LocalServer

ON_MYSQL = pytest.mark.parametrize("engine", [MYSQL], indirect=True, scope="session")
numbers = itertools.count()


@pytest.fixture(scope="module")
def with_tls(engine: str, authority: Authority) -> Iterator[LocalServer]:
    with local_server(engine) as server:
        authority.certify(server)
        yield server


def to(address: Any, context: ssl.SSLContext | None = None) -> Callable[..., Any]:
    """A CONNECT that leads to this address, by TLS of its own if there is a context."""

    def connect(host: str, port: int, timeout: float) -> socket.socket:
        sock = socket.create_connection(address, timeout)
        if context is None:
            return sock
        return context.wrap_socket(sock, server_hostname=address[0])

    return connect


# A socket without TLS


def test_it_is_called_with_the_place_and_the_time_that_is_left(
    make_pool: MakePool, server: LocalServer
) -> None:
    seen: list[tuple[str, int, float]] = []

    def connect(host: str, port: int, timeout: float) -> socket.socket:
        seen.append((host, port, timeout))
        return socket.create_connection((server.host, server.port), timeout)

    pool = make_pool(
        URL=server.url, HOST="p:r:i", PORT=7, CONNECT=connect, CONNECT_TIMEOUT=4
    )
    with pool.connection() as connection:
        assert execute(connection, "SELECT 1") == ((1,),)
        assert connection._con is not None
        sock = connection._con.raw._sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    [(host, port, timeout)] = seen
    assert (host, port) == ("p:r:i", 7)
    assert 3 < timeout <= 4


def test_a_socket_that_is_not_tcp_will_do(
    make_pool: MakePool, server: LocalServer
) -> None:
    address = server.host, server.port
    with Relay(lambda _: socket.create_connection(address)) as relay:

        def connect(host: str, port: int, timeout: float) -> socket.socket:
            ours, its = socket.socketpair()
            relay.join(its, socket.create_connection(address, timeout))
            return ours

        with make_pool(URL=server.url, CONNECT=connect).connection() as connection:
            assert execute(connection, "SELECT 1") == ((1,),)


def test_tls_is_made_on_top_and_verifies_the_host_of_the_settings(
    make_pool: MakePool, with_tls: LocalServer, authority: Authority
) -> None:
    connect = to((with_tls.host, with_tls.port))
    settings = {"SSL_MODE": "VERIFY_IDENTITY", "SSL_CA": authority.ca, "PORT": 7}
    settings |= {"URL": with_tls.url, "CONNECT": connect}

    with make_pool(**settings).connection() as connection:
        [(_, cipher)] = execute(connection, "SHOW SESSION STATUS LIKE 'Ssl_cipher'")
        assert cipher
    with pytest.raises(OperationalError, match="'localhost'"):
        make_pool(**settings, HOST="localhost").connection()


def test_what_it_finds_out_of_pipelining_is_of_its_server_alone(
    make_pool: MakePool, server: LocalServer
) -> None:
    with FaultProxy(server.host, server.port) as proxy:
        proxy.second_command = "close"
        settings = {"URL": server.url, "SSL_MODE": "DISABLED"}
        one_by_one = make_pool(**settings, CONNECT=to((proxy.host, proxy.port)))
        with one_by_one.connection() as connection:
            assert connection._con is not None and not connection._con.pipelines

        with make_pool(**settings).connection() as connection:
            assert connection._con is not None and connection._con.pipelines


# Errors


def fails_with(error: BaseException) -> Callable[..., Any]:
    def connect(host: str, port: int, timeout: float) -> socket.socket:
        raise error

    return connect


def test_an_oserror_means_that_the_server_is_out_of_reach(make_pool: MakePool) -> None:
    pool = make_pool(
        CONNECT=fails_with(ConnectionRefusedError(111, "the proxy says no"))
    )

    with pytest.raises(ServerUnavailable, match="2003.*the proxy says no") as info:
        pool.connection()

    assert isinstance(info.value.__cause__, ConnectionRefusedError)
    assert pool.stats().size == 0


def test_another_error_is_the_cause(make_pool: MakePool) -> None:
    pool = make_pool(CONNECT=fails_with(LookupError("no such instance")))

    expected = "2000, 'CONNECT raised LookupError: no such instance'"
    with pytest.raises(OperationalError, match=expected) as info:
        pool.connection()

    assert type(info.value) is OperationalError
    assert isinstance(info.value.__cause__, LookupError)
    assert pool.stats().size == 0


def test_an_error_of_pymysql_is_raised_as_it_is(make_pool: MakePool) -> None:
    pool = make_pool(CONNECT=fails_with(OperationalError(1045, "no token")))

    with pytest.raises(OperationalError) as info:
        pool.connection()

    assert info.value.args == (1045, "no token")


def closed_socket() -> socket.socket:
    sock = socket.socket()
    sock.close()
    return sock


async def asynchronous() -> None:
    """What a CONNECT returns that is declared with ``async``."""


class Channel:
    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: None, "NoneType"),
        (lambda: ("db", 3306), "tuple"),
        (closed_socket, "socket"),
        (asynchronous, "coroutine"),
        (Channel, "Channel"),
    ],
)
def test_what_is_no_open_socket_is_said_and_closed(
    make_pool: MakePool, make: Callable[[], Any], kind: str
) -> None:
    made: list[Any] = []

    def connect(host: str, port: int, timeout: float) -> Any:
        made.append(make())
        return made[-1]

    expected = f"CONNECT must return an open socket.socket, and returned {kind}'"
    with pytest.raises(OperationalError, match=expected):
        make_pool(CONNECT=connect).connection()

    assert all(getattr(each, "closed", True) for each in made)


def test_another_host_is_tried(make_pool: MakePool, server: LocalServer) -> None:
    asked: list[str] = []

    def connect(host: str, port: int, timeout: float) -> socket.socket:
        asked.append(f"{host}:{port} {timeout:.0f}")
        if host == "a":
            raise OSError("out of order")
        return socket.create_connection((server.host, server.port), timeout)

    pool = make_pool(URL=server.url, HOST="a:1,b:2", CONNECT=connect, CONNECT_TIMEOUT=8)
    with pool.connection() as connection:
        assert execute(connection, "SELECT 1") == ((1,),)
    assert asked == ["a:1 4", "b:2 8"]


# The deadline


def test_a_connect_that_hangs_delays_no_checkout_and_its_late_socket_is_closed(
    make_pool: MakePool, server: LocalServer
) -> None:
    go_on = threading.Event()
    made: list[socket.socket] = []

    def connect(host: str, port: int, timeout: float) -> socket.socket:
        go_on.wait(30)
        made.append(socket.create_connection((server.host, server.port)))
        return made[-1]

    pool = make_pool(URL=server.url, CONNECT=connect, CONNECT_TIMEOUT=0.1, TIMEOUT=0.2)
    try:
        began = time.monotonic()
        with pytest.raises(PoolTimeout):
            pool.connection()
        assert time.monotonic() - began < 2
    finally:
        go_on.set()

    until(lambda: not pool.stats().size)
    [sock] = made
    assert sock.fileno() == -1


def test_the_login_has_what_is_left_of_the_deadline(make_pool: MakePool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pool = make_pool(CONNECT=to(silent.getsockname()), CONNECT_TIMEOUT=0.3)
        began = time.monotonic()
        with pytest.raises(ServerUnavailable, match="timed out"):
            pool.connection()

    assert 0.3 <= time.monotonic() - began < 2


# A socket that speaks TLS already


@pytest.fixture
def gateway(server: LocalServer, authority: Authority) -> Iterator[Relay]:
    """Speaks TLS, and passes on to the server by its Unix socket."""
    with Relay(by_socket(server), authority.context()) as relay:
        yield relay


def trusting(authority: Authority, *, verifies: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.ca))
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    if not verifies:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize("mode", [None, "DISABLED", "PREFERRED", "REQUIRED"])
def test_tls_of_the_socket_fulfils_the_modes_that_verify_nothing(
    make_pool: MakePool,
    server: LocalServer,
    gateway: Relay,
    authority: Authority,
    mode: str | None,
) -> None:
    settings: dict[str, Any] = {} if mode is None else {"SSL_MODE": mode}
    connect = to(gateway.address, trusting(authority))
    pool = make_pool(URL=server.url, CONNECT=connect, **settings)
    with pool.connection() as connection:
        text = "abcdefg" * 100_000
        assert execute(connection, f"SELECT '{text}'") == ((text,),)
        # TLS ends at the gateway.
        [(_, cipher)] = execute(connection, "SHOW SESSION STATUS LIKE 'Ssl_cipher'")
        assert cipher == ""
    with pool.connection() as connection:
        assert execute(connection, "SELECT 1") == ((1,),)
    assert pool.stats().opened == 1


@pytest.mark.parametrize("setting", ["SSL_MODE", "SSL_CA", "SSL_CERT", "SSL_CONTEXT"])
def test_it_does_not_do_where_settings_say_what_to_verify_or_show(
    make_pool: MakePool, gateway: Relay, authority: Authority, setting: str
) -> None:
    certificate, key = authority.issue("client")
    choices: dict[str, dict[str, Any]] = {
        "SSL_MODE": {"SSL_MODE": "VERIFY_CA"},
        "SSL_CA": {"SSL_CA": authority.ca},
        "SSL_CERT": {"SSL_CERT": certificate, "SSL_KEY": key},
        "SSL_CONTEXT": {"SSL_CONTEXT": trusting(authority)},
    }
    made: list[socket.socket] = []

    def connect(*place: Any) -> socket.socket:
        made.append(to(gateway.address, trusting(authority))(*place))
        return made[-1]

    with pytest.raises(OperationalError, match="2026.*have CONNECT verify the server"):
        make_pool(CONNECT=connect, **choices[setting]).connection()

    assert [sock.fileno() for sock in made] == [-1]


def test_a_close_in_another_thread_does_not_lead_to_plain_text(
    make_pool: MakePool, server: LocalServer, gateway: Relay, authority: Authority
) -> None:
    connect = to(gateway.address, trusting(authority))
    with make_pool(URL=server.url, CONNECT=connect).connection() as connection:
        con = connection._con
        assert con is not None
        con.interrupt()

        assert con.raw._sock._sslobj is not None
        with pytest.raises(OperationalError):
            execute(connection, "SELECT 1")


@ON_MYSQL
def test_a_password_that_the_server_has_not_seen_yet_goes_by_its_tls(
    make_pool: MakePool, server: LocalServer, gateway: Relay, authority: Authority
) -> None:
    user = f"connect{next(numbers)}"
    with closing(server.connect()) as root, root.cursor() as cursor:
        cursor.execute(f"CREATE USER {user}@localhost IDENTIFIED BY 'secret'")
    connect = to(gateway.address, trusting(authority))
    url = f"mysql://{user}:secret@db"

    with make_pool(URL=url, CONNECT=connect).connection() as connection:
        assert execute(connection, "SELECT 1") == ((1,),)


def asks_in_clear(talk: Talk, *, tls: bool = False) -> None:
    talk.say(greeting(tls=tls))
    talk.hear()
    talk.say(liars.switch(b"mysql_clear_password"))
    talk.hear()
    talk.say(liars.OK)
    talk.serve()


@pytest.mark.one_engine
@pytest.mark.parametrize("verifies", [True, False])
def test_a_password_goes_in_clear_text_if_its_tls_verifies(
    authority: Authority, verifies: bool
) -> None:
    context = trusting(authority, verifies=verifies)
    with Liar(asks_in_clear) as liar:
        address = "127.0.0.1", liar.port
        its = authority.context()
        with Relay(lambda _: socket.create_connection(address), its) as relay:
            connect = to(relay.address, context)
            error = liars.connect(liars.config(1, CONNECT=connect))

    assert (error is None) == verifies
    assert (liars.SECRET.encode() in liar.seen) == verifies
    assert verifies or error.args[0] == 2059  # type: ignore[union-attr]


# What check says


def findings(pool: Pool) -> dict[str, tuple[str, str]]:
    found = list(examine(pool.config, None))
    return {each.subject: (each.level, each.text) for each in found}


def test_check_tells_who_encrypts(
    make_pool: MakePool, server: LocalServer, gateway: Relay, authority: Authority
) -> None:
    connect = to(gateway.address, trusting(authority))
    found = findings(make_pool(URL=server.url, CONNECT=connect))
    assert found["settings"][1].endswith(", by CONNECT")
    assert found["TLS"][0] == "ok"
    assert found["TLS"][1].endswith("; certificate and host name are verified")

    plain = to((server.host, server.port))
    pool = make_pool(URL=server.url, CONNECT=plain, SSL_MODE="DISABLED")
    assert findings(pool)["TLS"] == (
        *("ok", "none; whether CONNECT encrypts is not known here"),
    )


# A context of the user's


def test_a_context_of_the_users_is_used_as_it_is(
    make_pool: MakePool, with_tls: LocalServer, authority: Authority
) -> None:
    context = trusting(authority)
    made = context.sslsocket_class
    pool = make_pool(URL=with_tls.url, SSL_CONTEXT=context)
    with pool.connection() as connection:
        [(_, cipher)] = execute(connection, "SHOW SESSION STATUS LIKE 'Ssl_cipher'")
        assert cipher
        assert connection._con is not None
        sock = connection._con.raw._sock
        assert sock.context is context
        assert type(sock).__name__ == "IsolatedSocket"
    assert context.sslsocket_class is made
    assert findings(pool)["TLS"][1].endswith("certificate and host name are verified")

    with pytest.raises(OperationalError, match="'localhost'"):
        make_pool(URL=with_tls.url, HOST="localhost", SSL_CONTEXT=context).connection()
    strange = ssl.create_default_context()
    with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        make_pool(URL=with_tls.url, SSL_CONTEXT=strange).connection()


@pytest.mark.one_engine
def test_a_context_of_the_users_means_tls_or_no_connection(
    authority: Authority,
) -> None:
    with Liar(honest) as liar:
        refused = liars.connect(
            liars.config(liar.port, SSL_CONTEXT=trusting(authority))
        )

    assert refused is not None
    assert refused.args == (2026, "SSL is required but the server doesn't support it")


@pytest.mark.one_engine
@pytest.mark.parametrize("verifies", [True, False])
def test_a_password_goes_in_clear_text_if_the_context_verifies(
    authority: Authority, verifies: bool
) -> None:
    context = trusting(authority, verifies=verifies)
    with Liar(partial(asks_in_clear, tls=True), authority.context()) as liar:
        error = liars.connect(liars.config(liar.port, SSL_CONTEXT=context))

    assert (error is None) == verifies
    assert (liars.SECRET.encode() in liar.seen) == verifies
