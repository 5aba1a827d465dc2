"""What a server lacks costs connections or a clear error, and never a clean session."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import MakePool, Sql, execute, extension, until
from flask import Flask
from flask.testing import FlaskCliRunner
from pymysql.constants import CLIENT
from pymysql.err import MySQLError

from flask_mysqlpool import MySQLPool, Pool, PoolConfig, TransactionError, get_db
from flask_mysqlpool.cli.check import examine
from flask_mysqlpool.monitor.snapshot import Memory, read_site, status
from flask_mysqlpool.pool.driver import session
from flask_mysqlpool.pool.driver.session import COM_RESET_CONNECTION, COM_SET_OPTION
from flask_mysqlpool.pool.driver.transport import packets
from flask_mysqlpool.pool.transaction import transaction
from flask_mysqlpool.testing import FaultProxy, LocalServer
from flask_mysqlpool.testing.fault_proxy import _split
from flask_mysqlpool.workers.mysql_server import connect_to

COM_QUERY = 3

#: A part of a statement, or a command; and the error that answers it, or the statement
#: that is executed in its place.
Lacks = Mapping[bytes | int, int | str]


class Lacking(FaultProxy):
    """A proxy that makes a server one that lacks something.

    The server raises the errors itself, in its order: it executes a SIGNAL instead.
    """

    def __init__(self, server: LocalServer, lacks: Lacks, flags: int = 0) -> None:
        super().__init__(server.host, server.port)
        self.lacks = {key: _instead(value) for key, value in lacks.items()}
        self.flags = flags
        self.pieces: dict[Any, bytes] = {}
        self.replaced = 0

    def _note_request(self, link: Any, data: bytes) -> bytes | None:
        noted = super()._note_request(link, data)
        if not noted:
            return noted
        assert not link.is_encrypted
        piece = self.pieces.pop(link, b"") + noted
        commands = _split(piece)
        if commands is None:
            self.pieces[link] = piece
            return None
        return b"".join(map(self._replaced, commands))

    def _replaced(self, packet: bytes) -> bytes:
        if packet[3] == 0:  # not of the login
            for lacking, instead in self.lacks.items():
                is_command = isinstance(lacking, int)
                if lacking == packet[4] if is_command else lacking in packet:
                    self.replaced += 1
                    return packets([(COM_QUERY, instead)])
        return packet

    def _note_reply(self, link: Any, data: bytes) -> bytes | None:
        is_greeting = not link.replied and link.is_encrypted is None
        noted = super()._note_reply(link, data)
        if noted and is_greeting:
            at = noted.index(b"\0", 5) + 1 + 4 + 8 + 1 + 2 + 1 + 2
            high = int.from_bytes(noted[at : at + 2], "little") & ~(self.flags >> 16)
            noted = noted[:at] + high.to_bytes(2, "little") + noted[at + 2 :]
        return noted


def _instead(value: int | str) -> bytes:
    if isinstance(value, int):
        text = f"SIGNAL SQLSTATE '42000' SET MYSQL_ERRNO = {value}"
        value = text + ", MESSAGE_TEXT = 'it is lacking'"
    return value.encode()


NO_ROLE: Lacks = {b"HEX(CURRENT_ROLE())": 1305}
NO_ROLES: Lacks = {b"APPLICABLE_ROLES": 1109}
NO_RESET: Lacks = {COM_RESET_CONNECTION: 1047}
NO_LIST: Lacks = {b"_variables own": 1146, b"SYSTEM_VARIABLES": 1109}
EMPTY_LIST: Lacks = {
    each: "SELECT 1 AS name, 1 AS value, 1 AS alone FROM DUAL WHERE FALSE"
    for each in NO_LIST
}
NO_OPTION: Lacks = {COM_SET_OPTION: 1047}
NO_TRACKING: Lacks = {b"session_track_state_change": 1193}
NO_TRACES: Lacks = {b"optimizer_trace_offset": 1193}

#: What is lacking, which flags are, and whether a session can be cleaned without it.
LACKS: dict[str, tuple[Lacks, int, bool]] = {
    "nothing": ({}, 0, True),
    "current role": (NO_ROLE, 0, True),
    "roles": ({**NO_ROLE, **NO_ROLES}, 0, True),
    "reset": (NO_RESET, 0, False),
    "list of variables": (NO_LIST, 0, False),
    "rows of that list": (EMPTY_LIST, 0, False),
    "option": (NO_OPTION, 0, True),
    "tracking": (NO_TRACKING, 0, True),
    "flag of tracking": ({}, CLIENT.SESSION_TRACK, True),
    "flag of ends": ({}, CLIENT.DEPRECATE_EOF, True),
    "all": (
        {**NO_ROLE, **NO_ROLES, **NO_RESET, **NO_LIST, **NO_OPTION, **NO_TRACKING},
        *(CLIENT.SESSION_TRACK | CLIENT.DEPRECATE_EOF, False),
    ),
}


def url_of(server: LocalServer, proxy: FaultProxy) -> str:
    # With TLS, the proxy could not see the commands.
    return f"{server.url_at(proxy.port)}?ssl-mode=DISABLED&cleartext-plugin=true"


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What our loggers have said that an operator should see."""
    records = [r for r in caplog.records if r.name.startswith("flask_mysqlpool")]
    assert not [r for r in records if r.levelno >= logging.ERROR]
    return [r.getMessage() for r in records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("pipelining", ["on", "off"])
@pytest.mark.parametrize("name", LACKS)
def test_sessions_are_clean_and_blocks_all_or_nothing(
    make_pool: MakePool,
    server: LocalServer,
    sql: Sql,
    table: str,
    name: str,
    pipelining: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lacks, flags, can_be_cleaned = LACKS[name]
    with Lacking(server, lacks, flags) as proxy:
        pool = make_pool(
            **{"URL": url_of(server, proxy), "MAX_SIZE": 1, "PIPELINING": pipelining},
            **{"AUTOCOMMIT": True, "SETSESSION": ["SET time_zone = '+02:00'"]},
        )
        numbers = set()
        for number in range(3):
            with pool.connection() as connection:
                numbers.add(connection.thread_id())
                con: Any = connection._con
                assert con.raw.is_tracking is not bool(flags)
                found = execute(connection, "SELECT @left, @@time_zone, DATABASE()")
                assert found == ((None, "+02:00", "test"),)
                execute(connection, "SET @left = 1, time_zone = '+03:00'")
                execute(connection, "CREATE TEMPORARY TABLE mine (a INT)")
                execute(connection, "USE mysql")
                with transaction(connection):
                    execute(connection, f"INSERT INTO test.t (a) VALUES ({number})")
                with pytest.raises(ZeroDivisionError), transaction(connection):
                    execute(connection, "INSERT INTO test.t (a) VALUES (9)")
                    _ = 1 / 0
        assert sql("SELECT a FROM t ORDER BY a") == ((0,), (1,), (2,))
        assert len(numbers) == (1 if can_be_cleaned else 3)
        assert len(said(caplog)) <= (0 if can_be_cleaned else 1)


@pytest.mark.parametrize(
    "lacks", [NO_ROLE, {**NO_ROLE, **NO_ROLES}], ids=["one", "both"]
)
def test_a_connection_whose_role_was_changed_is_not_handed_on(
    make_pool: MakePool, server: LocalServer, sql: Sql, lacks: Lacks
) -> None:
    sql("DROP ROLE IF EXISTS lacking")
    sql("CREATE ROLE lacking")
    sql("GRANT lacking TO %s@'%%'", server.user)
    try:
        with Lacking(server, lacks) as proxy:
            pool = make_pool(URL=url_of(server, proxy), MAX_SIZE=1)
            for _ in range(2):
                with pool.connection() as connection:
                    execute(connection, "SET @left = 1")
                    number = connection.thread_id()
                with pool.connection() as connection:
                    assert connection.thread_id() == number
                    assert execute(connection, "SELECT @left") == ((None,),)
                    [(before,)] = execute(connection, "SELECT CURRENT_ROLE()")
                    execute(connection, "SET ROLE lacking")
                    [(role,)] = execute(connection, "SELECT CURRENT_ROLE()")
                    assert "lacking" in role
                assert pool.stats().idle == 0
                with pool.connection() as connection:
                    assert connection.thread_id() != number
                    assert execute(connection, "SELECT CURRENT_ROLE()") == ((before,),)
    finally:
        sql("DROP ROLE lacking")


def test_a_server_without_traces_has_its_sessions_replaced(
    make_pool: MakePool,
    server: LocalServer,
    engine: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Lacking(server, NO_TRACES) as proxy:
        pool = make_pool(URL=url_of(server, proxy), MAX_SIZE=1)
        numbers = set()
        for _ in range(3):
            with pool.connection() as connection:
                numbers.add(connection.thread_id())
                assert execute(connection, "SELECT @left") == ((None,),)
                execute(connection, "SET @left = 1")
    # The variable is MySQL's.
    assert len(numbers) == (1 if engine == "mariadb" else 3)
    assert len(said(caplog)) <= 1


@pytest.mark.parametrize("pipelining", ["on", "off"])
@pytest.mark.parametrize("seconds", [60.0, 0.0])
def test_a_server_that_has_refused_a_reset_is_not_soon_asked_again(
    make_pool: MakePool,
    server: LocalServer,
    monkeypatch: pytest.MonkeyPatch,
    pipelining: str,
    seconds: float,
) -> None:
    monkeypatch.setattr(session, "NO_RESET", seconds)
    proxy = Lacking(server, NO_RESET)
    with proxy:
        pool = make_pool(URL=url_of(server, proxy), MAX_SIZE=1, PIPELINING=pipelining)
        for _ in range(4):
            with pool.connection() as connection:
                assert execute(connection, "SELECT @left") == ((None,),)
                execute(connection, "SET @left = 1")
        # The first return leaves a connection whose clean-up fails; the others, none.
        assert pool.stats().idle == (0 if seconds else 1)
        with pool.connection() as connection:
            number = connection.thread_id()
        with pool.connection() as connection:
            assert connection.thread_id() == number  # a clean one is kept
        assert proxy.replaced == (1 if seconds else 4)


IS_REPLICA = "SELECT 'read_only' AS Variable_name, 'ON' AS Value"
LAG = "SELECT 3 AS Seconds_Behind_Master"


@pytest.mark.parametrize("number", [1064, 1235])
def test_a_lag_is_asked_for_by_the_statement_that_the_server_knows(
    make_pool: MakePool, server: LocalServer, number: int
) -> None:
    lacks: Lacks = {
        b"SHOW GLOBAL VARIABLES WHERE": IS_REPLICA,
        b"SHOW REPLICA STATUS": number,
        b"SHOW SLAVE STATUS": LAG,
    }
    settings = {"TARGET": "replica", "MAX_LAG": 5}
    with Lacking(server, lacks) as proxy:
        pool = make_pool(URL=url_of(server, proxy), **settings)
        with pool.connection() as connection:
            assert execute(connection, "SELECT 1") == ((1,),)
    lacks = {**lacks, b"SHOW SLAVE STATUS": number}
    with Lacking(server, lacks) as proxy:
        pool = make_pool(URL=url_of(server, proxy), **settings)
        with pytest.raises(MySQLError, match="MAX_LAG: ") as caught:
            pool.connection()
        assert caught.value.args[0] == number


def test_check_and_the_report_tell_what_the_server_tells(server: LocalServer) -> None:
    lacks: Lacks = {
        **{b"@@read_only": 1193, b"LIKE 'Ssl_cipher'": 1064, b"PROCESSLIST": 1235},
        b"LIKE 'Threads_connected'": 1064,
    }
    with Lacking(server, lacks) as proxy:
        config = PoolConfig.from_mapping({"URL": url_of(server, proxy)})
        found = {each.subject: each for each in examine(config, 1)}
        with connect_to(config) as asked:
            report = asked.report()
    assert not [each for each in found.values() if each.is_failure]
    assert "does not tell" in found["read_only"].text
    assert found["wait_timeout"].text.startswith("28800 s")
    assert "max_connections 1" in found["capacity"].text
    assert report.max_connections and report.connected is None
    assert report.threads is None


# A server that only speaks the protocol


@pytest.fixture(scope="module")
def mimic() -> Iterator[str]:
    """The URL of a server without tables, transactions, roles and much else.

    It answers COM_RESET_CONNECTION with OK, and does nothing.
    """
    mysql_mimic = pytest.importorskip("mysql_mimic")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Any:
        server = mysql_mimic.MysqlServer()
        await server.start_server(host="127.0.0.1", port=0)
        return server

    async def stop() -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    yield f"mysql://root@127.0.0.1:{server.sockets()[0].getsockname()[1]}"
    asyncio.run_coroutine_threadsafe(stop(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def mimic_app(mimic: str, tmp_path: Path) -> Iterator[Flask]:
    app = Flask("shop")
    settings = {"URL": mimic, "MAX_SIZE": 1, "STATUS_DIR": tmp_path}
    app.config.from_mapping({f"MYSQLPOOL_{k}": v for k, v in settings.items()})
    db = MySQLPool(app)

    @app.get("/")
    def zone() -> str:
        with get_db().cursor() as cursor:
            cursor.execute("SELECT @@time_zone")
            [(zone,)] = cursor.fetchall()
            cursor.execute("SET time_zone = '+03:00'")
        return str(zone)

    yield app
    with app.app_context():
        db.close_pool()


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("reset", ["auto", "always"])
def test_each_holder_finds_a_clean_session(
    mimic: str, reset: str, autocommit: bool, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"URL": mimic, "MAX_SIZE": 1, "RESET_SESSION": reset}
    pool = Pool(PoolConfig.from_mapping({**settings, "AUTOCOMMIT": autocommit}))
    for _ in range(3):
        with pool.connection() as connection:
            assert execute(connection, "SELECT @@time_zone") == (("UTC",),)
            execute(connection, "SET time_zone = '+03:00'")
            connection.begin()
            connection.commit()
    pool.close()
    [text] = said(caplog)
    assert "could not be cleaned: the server does not tell its variables" in text


def test_with_transaction_alone_the_rest_is_the_next_holders(
    mimic: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"URL": mimic, "MAX_SIZE": 1, "RESET_SESSION": "transaction"}
    pool = Pool(PoolConfig.from_mapping(settings))
    for _ in range(3):
        with pool.connection() as connection:
            execute(connection, "SET time_zone = '+03:00'")
            connection.begin()
    pool.close()
    # It refuses the words AND NO CHAIN, so connections are replaced.
    [text] = said(caplog)
    assert "could not be cleaned" in text


@pytest.mark.parametrize("pipelining", ["on", "off"])
def test_a_block_says_what_it_needs(mimic: str, pipelining: str) -> None:
    pool = Pool(PoolConfig.from_mapping({"URL": mimic, "PIPELINING": pipelining}))
    with pool.connection() as connection:
        for _ in range(2):
            with pytest.raises(TransactionError, match="use commit"):
                with transaction(connection):
                    execute(connection, "INSERT INTO t VALUES (1)")
        assert execute(connection, "SELECT 1") == ((1,),)
    pool.close()


def test_requests_are_served(
    mimic_app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        response = mimic_app.test_client().get("/")
        assert (response.status_code, response.text) == (200, "UTC")
    assert len(said(caplog)) == 1


def test_the_monitor_shows_that_it_does_not_tell(mimic_app: Flask) -> None:
    mimic_app.test_client().get("/")  # so that it has parsed our statements once

    def seen() -> Any:
        data = status(read_site(mimic_app), memory, with_server=True, with_line=False)
        return data["pools"]["default"]["seen_by_server"]

    memory = Memory()
    until(lambda: seen() == {"error": "does not tell its connections"})


def test_commands_tell_what_it_does_not_tell(mimic_app: Flask) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = FlaskCliRunner(mimic_app).invoke(args=["mysqlpool", *arguments])
        assert isinstance(result.exception, (SystemExit, type(None)))
        return result.exit_code, result.output

    code, output = run("check")
    assert code == 0
    assert "max_connections is not known: the server does not tell" in output
    with mimic_app.app_context():
        held = extension(mimic_app).connection()
        until(lambda: run("status")[0] == 0)
        code, output = run("status", "--server")
        held.close()
    assert code == 0
    assert "unknown connected of unknown allowed; it does not list them" in output
    code, output = run("status", "--server", "--json")
    assert '"connected": null' in output and '"threads": null' in output
    code, output = run("reset", "--server", "--yes")
    assert code == 1
    assert output.startswith("default: cannot end the idle connections on 127.0.0.1:")
    assert "PROCESSLIST" in output
