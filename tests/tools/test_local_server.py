"""The throw-away server and the bad network, against real servers."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pymysql
import pytest
from conftest import MARIADB_ROOT, MYSQL, MYSQL_ROOT, local_server

from flask_mysqlpool.testing import (
    FaultProxy,
    LocalServer,
    ServerFailed,
    ServerNotFound,
)
from flask_mysqlpool.testing import local_server as server_module
from flask_mysqlpool.testing import server_binaries as engines_module
from flask_mysqlpool.testing.fault_proxy import _split

DEADLINE = 20.0

HOLDER = """
import os, signal, sys, time
from flask_mysqlpool.testing import LocalServer

# Whoever runs the tests under nohup, or in the background, has them ignored.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
server = LocalServer(**{options!r})
server.start()
{before}
print(server.pid, server.folder, flush=True)
{after}
"""
HOLD = "time.sleep(60)"


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + DEADLINE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ask(connection: pymysql.Connection[Any], statement: str) -> Any:
    """The first column of the first row."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
    return row[0] if row else None


def ask_root(server: LocalServer, statement: str) -> Any:
    with closing(server.connect()) as connection:
        return ask(connection, statement)


def login(server: LocalServer, port: int, **options: Any) -> pymysql.Connection[Any]:
    return pymysql.connect(
        host=server.host,
        port=port,
        user=server.user,
        password=server.password,
        database=server.database,
        autocommit=True,
        **options,
    )


def socket_of(connection: Any) -> socket.socket:
    found: socket.socket = connection._sock
    return found


def send_in_one_piece(connection: Any, *statements: bytes) -> None:
    packets = [b"\x03" + statement for statement in statements]
    headers = [len(packet).to_bytes(3, "little") + b"\0" for packet in packets]
    pairs = zip(headers, packets, strict=True)
    socket_of(connection).sendall(b"".join(map(b"".join, pairs)))


def read_answer(connection: Any) -> Any:
    """The first column of the answer to one of the statements."""
    connection._next_seq_id = 1
    connection._read_query_result()
    rows = connection._result.rows
    return rows[0][0] if rows else None


def make_table(server: LocalServer) -> None:
    ask_root(server, "DROP TABLE IF EXISTS test.thing")
    ask_root(server, "CREATE TABLE test.thing (n INT)")


def count_things(server: LocalServer) -> Any:
    return ask_root(server, "SELECT COUNT(*) FROM test.thing")


def assert_root_over_tcp(server: LocalServer) -> None:
    with server, closing(server.connect(host=server.host)) as connection:
        assert ask(connection, "SELECT CURRENT_USER()") == "root@127.0.0.1"


def assert_closed_to_others(server: LocalServer) -> None:
    with pytest.raises(ValueError, match=r"root_over_tcp=True"):
        server.connect(port=server.port)
    for user in ("root", "", server.user):
        with pytest.raises(pymysql.err.OperationalError, match="1045"):
            server.connect(host=server.host, user=user, password="")
    with closing(server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT user, host FROM mysql.user WHERE host <> 'localhost'")
        assert cursor.fetchall() == ((server.user, "%"),)
    assert Path(server.unix_socket).parent.stat().st_mode & 0o077 == 0


def assert_confined(server: LocalServer, outside: Path) -> None:
    outside.chmod(0o777)
    with closing(login(server, server.port)) as connection:
        with pytest.raises(pymysql.err.OperationalError, match="secure-file-priv"):
            ask(connection, f"SELECT 1 INTO OUTFILE '{outside}/written'")
        assert ask(connection, "SELECT LOAD_FILE('/etc/passwd')") is None
        with pytest.raises(pymysql.err.MySQLError, match="annot open|an't open"):
            ask(connection, "INSTALL PLUGIN auth_pam SONAME 'auth_pam.so'")
        folder = ask(connection, "SELECT @@secure_file_priv")
        ask(connection, f"SELECT 1 INTO OUTFILE '{folder}written'")


@contextmanager
def holder(
    before: str = "", after: str = HOLD, **options: Any
) -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    """Another Python process with a server in it."""
    script = HOLDER.format(options=options, before=before, after=after)
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        try:
            pid, folder = process.stdout.readline().split()
            yield process, int(pid), Path(folder)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    try:
        server = LocalServer()
    except ServerNotFound as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture(scope="module", params=[MYSQL])
def mysql(request: pytest.FixtureRequest) -> Iterator[LocalServer]:
    with local_server(request.param) as server:
        yield server


@pytest.fixture
def proxy(server: LocalServer) -> Iterator[FaultProxy]:
    with FaultProxy(server.host, server.port) as proxy:
        yield proxy


class TestServer:
    def test_user_and_database_are_there(self, server: LocalServer) -> None:
        with closing(login(server, server.port)) as connection:
            assert ask(connection, "SELECT DATABASE()") == "test"
            assert ask(connection, "SELECT CURRENT_USER()").startswith("app@")

    def test_user_may_kill_the_connection_of_another(self, server: LocalServer) -> None:
        with closing(login(server, server.port)) as connection:
            with closing(server.connect()) as other:
                ask(connection, f"KILL {ask(other, 'SELECT CONNECTION_ID()')}")
                with pytest.raises(pymysql.err.OperationalError):
                    ask(other, "SELECT 1")

    def test_root_needs_no_password_on_the_port_if_that_is_asked_for(
        self, server: LocalServer
    ) -> None:
        assert_root_over_tcp(LocalServer(root_over_tcp=True))

    def test_other_accounts_of_the_machine_stay_outside(
        self, server: LocalServer
    ) -> None:
        assert_closed_to_others(server)

    def test_no_file_and_no_plugin_is_in_reach(
        self, server: LocalServer, tmp_path: Path
    ) -> None:
        assert_confined(server, tmp_path)

    def test_each_server_has_a_password_of_its_own(self, server: LocalServer) -> None:
        other = LocalServer()
        assert len({server.password, other.password, LocalServer().password}) == 3
        assert len(other.password) >= 32
        assert LocalServer(password="").password == ""

    def test_names_and_password_may_be_odd(self, server: LocalServer) -> None:
        with LocalServer(
            options=["--sql-mode=NO_BACKSLASH_ESCAPES"],
            database="x`y;",
            user="o'neil",
            password="a'b\\c; --\n\"%",
        ) as other:
            with closing(login(other, other.port)) as connection:
                assert ask(connection, "SELECT DATABASE()") == "x`y;"

    def test_url_leads_to_the_database(self, server: LocalServer) -> None:
        begin = f"mysql://app:{server.password}@127.0.0.1"
        assert server.url == f"{begin}:{server.port}/test"
        assert server.url_at(7) == f"{begin}:7/test"

    def test_url_is_quoted(self, server: LocalServer) -> None:
        odd = LocalServer(user="a@b", password="p:/ %", database=None)
        assert odd.url_at(7) == "mysql://a%40b:p%3A%2F%20%25@127.0.0.1:7/"

    def test_repr_shows_no_password(self, server: LocalServer) -> None:
        expected = f"<LocalServer mariadb {server.version} 127.0.0.1:{server.port}>"
        assert repr(server) == expected
        assert server.password not in server.log
        assert "not started" in repr(LocalServer())

    def test_version_is_what_the_server_says(self, server: LocalServer) -> None:
        assert ask_root(server, "SELECT VERSION()").startswith(server.version)

    def test_folder_is_private_and_socket_path_short(self, server: LocalServer) -> None:
        assert Path(server.folder).stat().st_mode & 0o777 == 0o700
        assert len(server.unix_socket) < 100

    def test_killed_server_keeps_what_was_committed(self, server: LocalServer) -> None:
        make_table(server)
        pid, port = server.pid, server.port
        with closing(login(server, port)) as connection:
            ask(connection, "INSERT INTO thing VALUES (1)")
            server.kill()
        assert not server.running
        assert not exists(pid)
        server.start()
        assert (server.port, count_things(server)) == (port, 1)
        assert server.pid != pid

    def test_stopped_server_keeps_its_data(self, server: LocalServer) -> None:
        make_table(server)
        port = server.port
        server.stop()
        server.stop()
        with pytest.raises(pymysql.err.OperationalError):
            login(server, port)
        server.start()
        server.start()
        assert (server.port, count_things(server)) == (port, 0)

    def test_restart_takes_other_options(self, server: LocalServer) -> None:
        server.restart(["--max-connections=17"])
        assert ask_root(server, "SELECT @@max_connections") == 17
        server.restart()
        assert ask_root(server, "SELECT @@max_connections") == 17
        server.restart([])
        assert ask_root(server, "SELECT @@max_connections") != 17

    def test_paused_server_hangs_and_then_answers(self, server: LocalServer) -> None:
        with closing(login(server, server.port)) as connection:
            with ThreadPoolExecutor(1) as thread:
                server.pause()
                assert server.running
                answer = thread.submit(ask, connection, "SELECT 5")
                time.sleep(0.2)
                assert not answer.done()
                server.resume()
                assert answer.result(DEADLINE) == 5

    def test_paused_server_can_be_stopped(self, server: LocalServer) -> None:
        server.pause()
        server.stop()
        assert not server.running
        server.start()

    def test_start_takes_little_longer_than_a_restart(
        self, server: LocalServer
    ) -> None:
        def seconds(action: Callable[[], object]) -> float:
            begin = time.perf_counter()
            action()
            return time.perf_counter() - begin

        again = []
        for _ in range(3):
            server.kill()
            again.append(seconds(server.start))
        fresh = []
        for _ in range(3):
            with closing(LocalServer()) as other:
                fresh.append(seconds(other.start))
        assert min(fresh) < 8 * min(again)

    def test_servers_live_side_by_side(self, server: LocalServer) -> None:
        with LocalServer() as one, LocalServer() as other:
            make_table(one)
            make_table(other)
            ask_root(one, "INSERT INTO test.thing VALUES (1)")
            assert (count_things(one), count_things(other)) == (1, 0)
            assert len({server.port, one.port, other.port}) == 3

    def test_closed_server_leaves_nothing_and_can_begin_anew(
        self, server: LocalServer
    ) -> None:
        with LocalServer() as other:
            make_table(other)
            pid, folder = other.pid, other.folder
        other.close()
        assert not exists(pid)
        assert not os.path.exists(folder)
        assert not other.running
        with pytest.raises(RuntimeError, match="not been started"):
            other.pause()
        with other:
            assert ask_root(other, "SHOW TABLES FROM test") is None

    def test_taken_port_is_replaced(
        self, server: LocalServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free_port = server_module._free_port
        ports = iter([server.port, free_port()])
        monkeypatch.setattr(server_module, "_free_port", lambda: next(ports))
        with LocalServer() as other:
            assert other.port != server.port
            assert other.running

    def test_restart_waits_for_its_own_port(self, server: LocalServer) -> None:
        server.stop()
        squatter = socket.create_server((server.host, server.port))
        timer = threading.Timer(0.5, squatter.close)
        timer.start()
        port = server.port
        server.start()
        timer.join()
        assert server.port == port
        assert ask_root(server, "SELECT 1") == 1

    def test_failed_start_shows_the_log_and_leaves_nothing(
        self, server: LocalServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        base = str(tmp_path)[: engines_module.LONGEST_BASE]
        Path(base).mkdir(exist_ok=True)
        monkeypatch.setattr(engines_module, "gettempdir", lambda: base)
        other = LocalServer(options=["--no-such-option"])
        with pytest.raises(ServerFailed, match="no-such-option"):
            other.start()
        assert not list(Path(base).glob("fmp-*"))


class TestCache:
    def test_data_folder_is_made_once(
        self, server: LocalServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        kept = tmp_path / "flask_mysqlpool" / f"mariadb-{server.version}"
        with LocalServer():
            made = kept.stat().st_ino
        with LocalServer() as other:
            assert ask_root(other, "SELECT 1") == 1
        assert kept.stat().st_ino == made

    def test_cache_is_not_needed(
        self, server: LocalServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
        with LocalServer() as other:
            assert ask_root(other, "SELECT 1") == 1

    def test_installation_that_was_killed_does_no_harm(
        self, server: LocalServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        cache = tmp_path / "flask_mysqlpool"
        script = HOLDER.format(options={}, before="", after="")
        with subprocess.Popen([sys.executable, "-c", script]) as process:
            assert until(cache.exists)
            process.kill()
        assert not (cache / f"mariadb-{server.version}").exists()
        with LocalServer() as other:
            assert ask_root(other, "SELECT 1") == 1


class TestEnd:
    """However the process ends, server and folder go with it."""

    @pytest.mark.parametrize("before", ["", "server.pause()"])
    def test_after_kill_9(self, server: LocalServer, before: str) -> None:
        with holder(before) as (process, pid, folder):
            assert exists(pid)
            assert folder.is_dir()
            process.kill()
            assert until(lambda: not exists(pid))
            assert until(lambda: not folder.exists())

    @pytest.mark.parametrize("after", ["", "1 / 0", "os._exit(3)", "sys.exit(3)"])
    def test_after_an_exit_without_close(self, server: LocalServer, after: str) -> None:
        with holder(after=f"sys.stderr.close(); {after}") as (_, pid, folder):
            assert until(lambda: not exists(pid))
            assert until(lambda: not folder.exists())

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_after_a_signal_to_the_group(
        self, server: LocalServer, number: signal.Signals
    ) -> None:
        with holder() as (process, pid, folder):
            os.killpg(process.pid, number)
            assert until(lambda: not exists(pid))
            assert until(lambda: not folder.exists())

    def test_not_by_the_ctrl_c_of_its_user(self, server: LocalServer) -> None:
        # So that it comes where it is waited for, however early it is sent.
        before = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
"""
        after = f"""
try:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.1)
    server.connect().close()
    print(server.running, flush=True)
    {HOLD}
"""
        with holder(before, after) as (process, _, _):
            assert process.stdout is not None
            os.killpg(process.pid, signal.SIGINT)
            assert process.stdout.readline() == "True\n"

    def test_when_a_forked_child_lives_on(self, server: LocalServer) -> None:
        before = """
child = os.fork()
if not child:
    os.close(1)
    time.sleep(60)
"""
        after = f"print(child, flush=True); {HOLD}"
        with holder(before, after) as (process, pid, folder):
            assert process.stdout is not None
            child = int(process.stdout.readline())
            process.kill()
            try:
                assert until(lambda: not exists(pid))
                assert until(lambda: not folder.exists())
                assert exists(child)
            finally:
                os.kill(child, signal.SIGKILL)

    def test_forked_child_does_not_end_it(self, server: LocalServer) -> None:
        before = """
child = os.fork()
if not child:
    server.connect().close()
    try:
        server.stop()
    except RuntimeError as error:
        assert "belongs to process" in str(error)
    server.close()
    sys.exit(7)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
        after = f"print(status, server.running, flush=True); {HOLD}"
        with holder(before, after) as (process, pid, folder):
            assert process.stdout is not None
            assert process.stdout.readline().split() == ["7", "True"]
            assert exists(pid)
            assert folder.exists()


class TestNotFound:
    @pytest.fixture(autouse=True)
    def bare_machine(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(engines_module, "SBIN", str(tmp_path / "sbin"))

    def test_mariadb_names_what_to_install(self) -> None:
        packages = "apt-get install mariadb-server-core mariadb-client-core"
        with pytest.raises(ServerNotFound, match=packages):
            LocalServer()
        with pytest.raises(ServerNotFound, match="brew install mariadb"):
            LocalServer()

    def test_mysql_names_the_script(self) -> None:
        with pytest.raises(ServerNotFound, match="in a clone.*scripts/mysql-server"):
            LocalServer(engine="mysql")

    @pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
    def test_folder_without_mysql(self, tmp_path: Path) -> None:
        with pytest.raises(ServerNotFound, match=str(tmp_path)):
            LocalServer(engine="mysql", root=tmp_path)

    def test_chroot_needs_root(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(ServerNotFound, match="run as root"):
            LocalServer(engine="mysql", root=tmp_path)

    def test_unknown_engine(self) -> None:
        with pytest.raises(ValueError, match="'postgres'"):
            LocalServer(engine="postgres")


def test_server_is_found_beside_path(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("mariadbd", "mariadb-install-db"):
        program = next(engines_module._which(name), None)
        if program is None:
            pytest.skip(f"here {name} has another name")
        (tmp_path / name).symlink_to(program)
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(engines_module, "SBIN", str(tmp_path))
    assert engines_module.find_engine("mariadb").program.startswith(str(tmp_path))


@pytest.mark.skipif(not MARIADB_ROOT, reason="there is no folder with a MariaDB")
def test_mariadb_in_a_folder_uses_that_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert MARIADB_ROOT is not None
    with local_server("mariadb") as server:
        assert_closed_to_others(server)
        assert_confined(server, tmp_path)
        make_table(server)
        server.kill()
        server.start()
        assert count_things(server) == 0
        assert ask_root(server, "SELECT VERSION()").startswith(server.version)
        base = Path(ask_root(server, "SELECT @@basedir"))
        # Under chroot, the server's paths begin in the folder.
        assert base.is_relative_to(MARIADB_ROOT) or server.folder.startswith(
            MARIADB_ROOT
        )
        message = "Table 'test.none' doesn't exist"
        with pytest.raises(pymysql.err.ProgrammingError, match=message):
            ask_root(server, "SELECT * FROM test.none")


class TestMySQL:
    def test_user_and_database_are_there(self, mysql: LocalServer) -> None:
        with closing(login(mysql, mysql.port)) as connection:
            assert ask(connection, "SELECT DATABASE()") == "test"
        plugin = "SELECT plugin FROM mysql.user WHERE user = 'app'"
        assert ask_root(mysql, plugin) == "caching_sha2_password"
        assert ask_root(mysql, "SELECT VERSION()").startswith(mysql.version)

    def test_root_needs_no_password_on_the_port_if_that_is_asked_for(
        self, mysql: LocalServer
    ) -> None:
        assert_root_over_tcp(local_server("mysql", root_over_tcp=True))

    def test_other_accounts_of_the_machine_stay_outside(
        self, mysql: LocalServer
    ) -> None:
        assert_closed_to_others(mysql)

    def test_no_file_and_no_plugin_is_in_reach(
        self, mysql: LocalServer, tmp_path: Path
    ) -> None:
        assert_confined(mysql, tmp_path)

    def test_killed_server_keeps_what_was_committed(self, mysql: LocalServer) -> None:
        make_table(mysql)
        port = mysql.port
        ask_root(mysql, "INSERT INTO test.thing VALUES (1)")
        mysql.kill()
        mysql.restart(["--max-connections=17"])
        assert (mysql.port, count_things(mysql)) == (port, 1)
        assert ask_root(mysql, "SELECT @@max_connections") == 17

    def test_servers_have_different_identities(self, mysql: LocalServer) -> None:
        with local_server("mysql") as other:
            question = "SELECT @@server_uuid"
            assert ask_root(mysql, question) != ask_root(other, question)

    def test_after_kill_9_nothing_is_left(self, mysql: LocalServer) -> None:
        options: dict[str, Any] = {"engine": "mysql", "root": MYSQL_ROOT}
        with holder("server.pause()", **options) as (process, pid, folder):
            process.kill()
            assert until(lambda: not exists(pid))
            assert until(lambda: not folder.exists())


class TestProxy:
    def test_a_query_is_one_round_trip(
        self, server: LocalServer, proxy: FaultProxy
    ) -> None:
        with closing(login(server, proxy.port, ssl_disabled=True)) as connection:
            before = proxy.round_trips, proxy.bytes_up, proxy.bytes_down
            assert ask(connection, "SELECT 1") == 1
            assert proxy.round_trips == before[0] + 1
            assert proxy.bytes_up == before[1] + 4 + len("?SELECT 1")
            assert proxy.bytes_down > before[2]

    def test_connections_are_counted(
        self, server: LocalServer, proxy: FaultProxy
    ) -> None:
        with closing(login(server, proxy.port)), closing(login(server, proxy.port)):
            assert (proxy.connections, proxy.live) == (2, 2)
            assert "live=2" in repr(proxy)
        assert until(lambda: proxy.live == 0)
        assert proxy.connections == 2

    def test_much_comes_through_whole(
        self, server: LocalServer, proxy: FaultProxy
    ) -> None:
        with closing(login(server, proxy.port)) as connection:
            text = ask(connection, "SELECT REPEAT('abcdefg', 1000000)")
            assert text == "abcdefg" * 1000000
            assert ask(connection, f"SELECT LENGTH('{text}')") == 7000000

    def test_delay_is_each_way_and_for_bytes_together(
        self, server: LocalServer, proxy: FaultProxy
    ) -> None:
        with closing(login(server, proxy.port)) as connection:
            proxy.delay = 0.2
            begin = time.perf_counter()
            ask(connection, "SELECT 1")
            little = time.perf_counter() - begin
            ask(connection, "SELECT REPEAT('x', 4000000)")
            much = time.perf_counter() - begin - little
            proxy.delay = 0.0
        assert 0.4 <= little
        assert much < 4 * little

    def test_hung_network_holds_and_then_delivers(
        self, server: LocalServer, proxy: FaultProxy
    ) -> None:
        with closing(login(server, proxy.port)) as connection:
            with ThreadPoolExecutor(2) as threads:
                proxy.hang()
                answer = threads.submit(ask, connection, "SELECT 5")
                other = threads.submit(login, server, proxy.port)
                assert until(lambda: proxy.connections == 2)
                time.sleep(0.1)
                assert not answer.done()
                assert not other.done()
                proxy.resume()
                assert answer.result(DEADLINE) == 5
                other.result(DEADLINE).close()

    def test_refusing_spares_present_connections(
        self, server: LocalServer, proxy: FaultProxy
    ) -> None:
        port = proxy.port
        with closing(login(server, port)) as connection:
            proxy.refuse()
            proxy.refuse()
            with pytest.raises(pymysql.err.OperationalError, match="refused"):
                login(server, port)
            assert ask(connection, "SELECT 1") == 1
            proxy.listen()
            proxy.listen()
            assert proxy.port == port
            login(server, port).close()

    def test_cut_is_a_fin(self, proxy: FaultProxy) -> None:
        with socket.create_connection((proxy.host, proxy.port)) as client:
            assert client.recv(1000)
            # Closing a socket with something unread in it would be a RST.
            proxy.hang()
            client.sendall(b"unread")
            proxy.cut()
            assert client.recv(1000) == b""
            assert proxy.live == 0

    def test_reset_is_a_rst(self, proxy: FaultProxy) -> None:
        with socket.create_connection((proxy.host, proxy.port)) as client:
            assert client.recv(1000)
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                client.recv(1000)

    def test_server_side_is_cut_too(
        self, server: LocalServer, proxy: FaultProxy
    ) -> None:
        with closing(login(server, proxy.port)) as connection:
            number = ask(connection, "SELECT CONNECTION_ID()")
            proxy.cut()
            listed = f"SELECT id FROM information_schema.processlist WHERE id={number}"
            assert until(lambda: ask_root(server, listed) is None)

    def test_half_closed_connection_still_writes(
        self, server: LocalServer, proxy: FaultProxy
    ) -> None:
        make_table(server)
        with closing(login(server, proxy.port)) as connection:
            proxy.half_close()
            with pytest.raises(pymysql.err.OperationalError):
                ask(connection, "INSERT INTO thing VALUES (1)")
        assert until(lambda: count_things(server) == 1)
        assert until(lambda: proxy.live == 0)

    def test_reply_is_lost_but_the_row_is_there(
        self, server: LocalServer, proxy: FaultProxy
    ) -> None:
        make_table(server)
        with closing(login(server, proxy.port)) as spared:
            with closing(login(server, proxy.port)) as connection:
                proxy.cut_after_request()
                with pytest.raises(pymysql.err.OperationalError, match="2013"):
                    ask(connection, "INSERT INTO thing VALUES (1)")
            assert count_things(server) == 1
            assert ask(spared, "SELECT 1") == 1

    def test_dropped_replies(self, server: LocalServer, proxy: FaultProxy) -> None:
        make_table(server)
        with closing(login(server, proxy.port, read_timeout=0.2)) as connection:
            proxy.drop_replies()
            with pytest.raises(pymysql.err.OperationalError):
                ask(connection, "INSERT INTO thing VALUES (1)")
        assert until(lambda: count_things(server) == 1)
        proxy.resume()
        login(server, proxy.port).close()

    def test_dead_server_breaks_the_connection(
        self, server: LocalServer, proxy: FaultProxy
    ) -> None:
        with closing(login(server, proxy.port)) as connection:
            server.kill()
            with pytest.raises(pymysql.err.OperationalError):
                ask(connection, "SELECT 1")
            with pytest.raises(pymysql.err.OperationalError):
                login(server, proxy.port)
            server.start()
        login(server, proxy.port).close()

    def test_commands_in_one_piece_are_answered_in_order(
        self, server: LocalServer, proxy: FaultProxy
    ) -> None:
        with closing(login(server, proxy.port, ssl_disabled=True)) as connection:
            assert proxy.second_command is None
            send_in_one_piece(connection, b"SELECT 1", b"SELECT 2", b"SELECT 3")
            assert [read_answer(connection) for _ in range(3)] == [1, 2, 3]

    def test_second_command_closes_the_connection(
        self, server: LocalServer, proxy: FaultProxy
    ) -> None:
        make_table(server)
        proxy.second_command = "close"
        with closing(login(server, proxy.port, ssl_disabled=True)) as connection:
            insert = b"INSERT INTO thing VALUES (1)"
            send_in_one_piece(connection, insert, insert)
            with pytest.raises(pymysql.err.OperationalError, match="2013"):
                read_answer(connection)
        assert until(lambda: proxy.live == 0)
        assert count_things(server) == 0

    def test_second_command_is_swallowed(
        self, server: LocalServer, proxy: FaultProxy
    ) -> None:
        proxy.second_command = "swallow"
        with closing(login(server, proxy.port, ssl_disabled=True)) as connection:
            send_in_one_piece(connection, b"SELECT 1", b"SELECT 2", b"SELECT 3")
            assert read_answer(connection) == 1
            assert select.select([socket_of(connection)], [], [], 0.2)[0] == []
            send_in_one_piece(connection, b"SELECT 4")
            assert read_answer(connection) == 4

    def test_second_command_is_answered_first(
        self, server: LocalServer, proxy: FaultProxy
    ) -> None:
        proxy.second_command = "reorder"
        with closing(login(server, proxy.port, ssl_disabled=True)) as connection:
            # More than the proxy reads at once.
            long = b"SELECT LENGTH('%s')" % (b"x" * 300_000)
            send_in_one_piece(connection, long, b"SELECT 2", b"SELECT 3")
            assert [read_answer(connection) for _ in range(3)] == [2, 300_000, 3]

    @pytest.mark.parametrize("mode", ["close", "swallow", "reorder"])
    def test_single_commands_are_answered_in_each_mode(
        self, server: LocalServer, proxy: FaultProxy, mode: str
    ) -> None:
        proxy.second_command = mode
        with closing(login(server, proxy.port, ssl_disabled=True)) as connection:
            assert ask(connection, "SELECT 1") == 1
            ask(connection, "SET @a = 1")
            assert ask(connection, f"SELECT @a, '{'x' * 300_000}'") == 1
            proxy.second_command = None
            send_in_one_piece(connection, b"SELECT 1", b"SELECT 2")
            assert [read_answer(connection) for _ in range(2)] == [1, 2]

    def test_packets_of_one_command_stay_together(self) -> None:
        # A command of 16 MB or more is sent in packets with rising numbers.
        long = b"\xff\xff\xff\0" + b"x" * 0xFFFFFF + b"\2\0\0\1xx"
        short = b"\1\0\0\0x"
        assert _split(long + short) == [long, short]
        assert _split(short + long[:-1]) is None
        assert _split(short + b"\1") is None

    def test_other_values_for_the_second_command_are_refused(
        self, proxy: FaultProxy
    ) -> None:
        with pytest.raises(ValueError, match="'close', 'swallow', 'reorder'"):
            proxy.second_command = "drop"
        assert proxy.second_command is None

    def test_second_command_of_tls_is_not_looked_for(self, mysql: LocalServer) -> None:
        with FaultProxy(mysql.host, mysql.port) as proxy:
            proxy.second_command = "close"
            with closing(login(mysql, proxy.port)) as connection:
                assert connection.ssl
                assert ask(connection, "SELECT 1") == 1

    def test_closed_proxy_leaves_no_thread_and_no_descriptor(
        self, server: LocalServer
    ) -> None:
        folders = [name for name in ("/dev/fd", "/proc/self/fd") if os.path.isdir(name)]
        if not folders:
            pytest.skip("this system does not list a process's descriptors")

        def descriptors() -> int:
            return len(os.listdir(folders[0]))

        before = descriptors(), threading.active_count()
        proxy = FaultProxy(server.host, server.port)
        with pytest.raises(RuntimeError, match="not running"):
            proxy.cut()
        with proxy:
            connections = [login(server, proxy.port) for _ in range(5)]
        for connection in connections:
            connection.close()
        proxy.close()
        assert (descriptors(), threading.active_count()) == before
        with pytest.raises(RuntimeError, match="not running"):
            proxy.hang()

    def test_proxy_stops_while_clients_connect_and_begins_anew(
        self, server: LocalServer
    ) -> None:
        proxy = FaultProxy(server.host, server.port)
        ports = set()
        for _ in range(20):
            with ExitStack() as clients:
                with proxy:
                    place = (proxy.host, proxy.port)
                    for _ in range(3):
                        clients.enter_context(socket.create_connection(place))
                assert proxy.live == 0
            assert not any("fault-proxy" in t.name for t in threading.enumerate())
            ports.add(proxy.port)
        assert len(ports) == 1

    def test_forked_child_keeps_no_port_open(
        self, server: LocalServer, proxy: FaultProxy
    ) -> None:
        began, begins = os.pipe()
        with closing(login(server, proxy.port)) as connection:
            with warnings.catch_warnings():
                # Python 3.12 and later warn of threads; this child runs none.
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if not child:
                os.write(begins, b"1")
                time.sleep(60)
                os._exit(0)
            try:
                os.read(began, 1)  # Python has called what is for a new child
                assert ask(connection, "SELECT 1") == 1
                proxy.refuse()
                with pytest.raises(pymysql.err.OperationalError, match="refused"):
                    login(server, proxy.port)
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                os.close(began)
                os.close(begins)


def test_copies_of_the_cache_are_enough_for_a_crowd(server: LocalServer) -> None:
    """Several processes' worth of first starts at once."""
    crowd = [LocalServer() for _ in range(4)]
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(LocalServer.start, crowd))
        assert len({one.port for one in crowd}) == 4
        assert all(ask_root(one, "SELECT 1") == 1 for one in crowd)
    finally:
        for one in crowd:
            one.close()
