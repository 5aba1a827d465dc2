"""``flask mysqlpool …``, as typed; the worker is this process itself."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import pwd
import re
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pymysql.connections
import pytest
import records
from conftest import MakeApp, MakePool, MakeServer, Sql, extension, until
from flask import Flask
from flask.cli import ScriptInfo
from flask.testing import FlaskCliRunner
from pymysql.err import MySQLError, OperationalError
from records import config_of, folder_of, heard_from, identity_of

import flask_mysqlpool.cli.check
import flask_mysqlpool.cli.commands
import flask_mysqlpool.cli.render
import flask_mysqlpool.config.settings
import flask_mysqlpool.workers.status
from flask_mysqlpool import MySQLPool, Pool, PoolConfig, PooledConnection, PoolTimeout
from flask_mysqlpool.cli.check import examine
from flask_mysqlpool.pool.driver.connector import Connector
from flask_mysqlpool.pool.driver.session import Session
from flask_mysqlpool.testing import FaultProxy, LocalServer
from flask_mysqlpool.workers.fleet import Fleet
from flask_mysqlpool.workers.mysql_server import Facts, Server, Unanswered, connect_to
from flask_mysqlpool.workers.status import identity, key_of
from flask_mysqlpool.workers.status_dir import DESIRED, STATUS, StatusDir
from flask_mysqlpool.workers.status_file import StatusFile

pytestmark = pytest.mark.one_engine


#: Of one worker, and of one connection, as the design has it.
FIELDS = (
    *("pid", "generation", "size", "idle", "in_use", "connecting", "waiting"),
    *("checkouts", "timeouts", "opened", "discarded", "updated", "connections"),
)
CONNECTION_FIELDS = {"thread_id", "state", "for", "endpoint", "age"}


def connected(app: Flask) -> PooledConnection:
    with app.app_context():
        return extension(app).connection()


def run(app: Flask, *arguments: str) -> tuple[int, str]:
    result = FlaskCliRunner(app).invoke(args=["mysqlpool", *arguments])
    assert "Traceback" not in result.output
    assert isinstance(result.exception, (SystemExit, type(None)))
    return result.exit_code, result.output


def report(app: Flask, *arguments: str) -> dict[str, Any]:
    pool: dict[str, Any] = json.loads(run(app, "status", "--json", *arguments)[1])
    return pool


def totals(app: Flask) -> dict[str, int]:
    counts: dict[str, int] = report(app)["pools"]["default"]["totals"]
    return counts


# status


def test_status_shows_what_each_worker_holds_and_the_sum(make_app: MakeApp) -> None:
    app = make_app(MAX_SIZE=7)
    with connected(app) as connection:
        thread = connection.thread_id()
        until(lambda: totals(app)["in_use"] == 1)
        code, output = run(app, "status")

    lines = output.splitlines()
    assert code == 0
    assert lines[0].startswith("shop on ")
    assert "at most 7 for each worker" in output
    header = next(i for i, line in enumerate(lines) if line.split()[:1] == ["worker"])
    row, total = (line.split() for line in lines[header + 1 : header + 3])
    assert row[:3] == [str(os.getpid()), "1", "1"] and total[:3] == ["total", "1", "1"]
    assert str(thread) in output and threading.current_thread().name in output


def test_status_as_json_has_the_fields_of_the_design(
    make_app: MakeApp, server: LocalServer
) -> None:
    app = make_app(MAX_SIZE=7)
    with connected(app) as connection:
        until(lambda: totals(app)["in_use"] == 1)
        seen = report(app)
        thread = connection.thread_id()

    [pool] = seen["pools"].values()
    [worker] = pool["workers"]
    [held] = worker["connections"]
    assert seen["app"] == "shop" and seen["host"]
    assert pool["max_size"] == 7 and pool["server"].endswith("/test")
    assert (pool["paused"], pool["generation"]) == (False, 0)
    assert set(FIELDS) <= set(worker) and worker["pid"] == os.getpid()
    assert set(held) == CONNECTION_FIELDS
    assert (held["thread_id"], held["state"]) == (thread, "in_use")
    assert server.password not in json.dumps(seen)


@pytest.mark.parametrize("pipelining", ["on", "off"])
def test_status_says_if_commands_are_sent_one_at_a_time(
    make_app: MakeApp, pipelining: str
) -> None:
    app = make_app(PIPELINING=pipelining)
    with connected(app):
        until(lambda: totals(app)["in_use"] == 1)
        code, output = run(app, "status")
        [worker] = report(app)["pools"]["default"]["workers"]

    assert code == 0
    assert worker["pipelining"] is (pipelining == "on")
    assert ("one command at a time" in output) is (pipelining == "off")


def fields_of(value: Any) -> set[str]:
    """The names of all fields of a report, at any depth."""
    if isinstance(value, list):
        return set().union(*map(fields_of, value))
    if not isinstance(value, dict):
        return set()
    below = (fields_of(v) for k, v in value.items() if k != "discarded_by_reason")
    return (value.keys() - {"default"}).union(*below)


def test_the_docs_name_every_field_of_the_report_and_no_other(
    make_app: MakeApp,
) -> None:
    app, other = make_app(MAX_SIZE=1), make_app(PORT=1)
    with pytest.raises(OperationalError):
        connected(other)
    with connected(app):
        with app.app_context(), pytest.raises(PoolTimeout):
            extension(app).connection(timeout=0)
        run(app, "pause")
        until(lambda: report(app)["pools"]["default"]["holders"])
        until(lambda: report(app)["pools"]["default"]["checkout_timeout"])
        until(lambda: report(other)["pools"]["default"]["connect_failure"])
        fields = fields_of([report(each, "--server") for each in (app, other)])

    page = (Path(__file__).parents[2] / "docs" / "commands.rst").read_text("utf-8")
    section = page[page.index(".. _json:") : page.index("reset\n-----")]
    told = set(re.findall("``([a-z_]+)``", section))
    assert told == fields


def test_the_totals_are_the_sums_over_the_workers(make_app: MakeApp) -> None:
    app = make_app()
    connected(app).close()
    until(lambda: totals(app)["idle"] == 1)
    pool = report(app)["pools"]["default"]

    counts = dict(pool["totals"])
    assert counts.pop("workers") == len(pool["workers"]) == 1
    for name, count in counts.items():
        assert count == sum(worker[name] for worker in pool["workers"])
    assert counts["checkouts"] == counts["opened"] == 1


def test_a_request_is_shown_by_its_endpoint(make_app: MakeApp) -> None:
    app = make_app()
    seen = []

    @app.get("/person/all")
    def person_all() -> str:
        extension(app).get_db()
        until(lambda: totals(app)["in_use"] == 1)
        seen.extend(report(app)["pools"]["default"]["holders"])
        return ""

    app.test_client().get("/person/all")

    assert [holder["endpoint"] for holder in seen] == ["person_all"]


def test_status_with_no_worker_says_so(make_app: MakeApp) -> None:
    code, output = run(make_app(), "status")

    assert code == 3
    assert "No worker of 'shop' is running" in output
    assert "own pool is empty" in output


def test_status_is_degraded_while_somebody_waits_and_after_a_timeout(
    make_app: MakeApp,
) -> None:
    app = make_app(MAX_SIZE=1)
    with connected(app), app.app_context():
        waiter = threading.Thread(target=lambda: connected(app).close())
        waiter.start()
        until(lambda: totals(app)["waiting"] == 1)
        assert run(app, "status")[0] == 1
    waiter.join()
    until(lambda: totals(app)["waiting"] == 0)
    assert run(app, "status")[0] == 0

    with connected(app), app.app_context():
        with pytest.raises(PoolTimeout):
            extension(app).connection(timeout=0)
        until(lambda: totals(app)["timeouts"] == 1)
    code, output = run(app, "status")
    assert code == 1
    assert re.search(
        rf"a checkout timed out \d+ s ago in worker {os.getpid()}\n", output
    )
    timeout = report(app)["pools"]["default"]["checkout_timeout"]
    assert timeout["pid"] == os.getpid() and 0 <= timeout["ago"] < 60


def test_a_bind_that_is_not_configured_lists_those_that_are(make_app: MakeApp) -> None:
    for command in ("status", "reset", "pause", "resume", "check"):
        code, output = run(make_app(), command, "--bind", "reports")

        assert code == 2
        assert "no bind is called 'reports'; configured: 'default'" in output


@pytest.mark.one_engine(False)
def test_status_with_the_server_tells_orphans_from_workers(
    make_app: MakeApp, server: LocalServer
) -> None:
    app = make_app()
    orphan = server.connect(
        host=server.host, user=server.user, password=server.password, database="test"
    )
    with connected(app) as connection:
        until(lambda: totals(app)["in_use"] == 1)
        pool = report(app, "--server")["pools"]["default"]
        _, output = run(app, "status", "--server")
    claimed = {t["thread_id"]: t["pid"] for t in pool["seen_by_server"]["threads"]}
    orphan_id = orphan.thread_id()
    orphan.close()

    assert claimed[connection_id(pool)] == os.getpid()
    assert claimed[orphan_id] is None
    assert pool["seen_by_server"]["orphans"] >= 1
    assert "claimed by no worker here" in " ".join(output.split())
    assert connection.returned


def connection_id(pool: dict[str, Any]) -> int:
    [worker] = pool["workers"]
    return int(worker["connections"][0]["thread_id"])


@pytest.mark.one_engine(False)
@pytest.mark.parametrize("keeps", [True, False])
def test_connections_of_other_hosts_are_named_where_the_server_keeps_that(
    make_app: MakeApp,
    make_server: MakeServer,
    monkeypatch: pytest.MonkeyPatch,
    keeps: bool,
) -> None:
    server = make_server(options=[f"--performance-schema={'ON' if keeps else 'OFF'}"])
    elsewhere = Pool(PoolConfig.from_mapping({"URL": server.url, "NAME": "shop"}))
    monkeypatch.setattr(socket, "gethostname", lambda: "web-2")
    there = elsewhere.connection()
    monkeypatch.undo()
    app = make_app(URL=server.url)
    with connected(app):
        until(lambda: totals(app)["in_use"] == 1)
        _, output = run(app, "status", "--server")
        _, checked = run(app, "check")
    there.close()
    elsewhere.close()

    assert (f"shop web-2 {os.getpid()}" in output) is keeps
    assert ("its performance_schema is off" in output) is not keeps
    assert ("this site on other hosts 1" in checked) is keeps


@pytest.mark.one_engine(False)
def test_with_the_server_down_status_shows_the_workers_all_the_same(
    make_app: MakeApp, make_server: MakeServer
) -> None:
    server = make_server(database="test")
    app = make_app(URL=server.url)
    with connected(app):
        until(lambda: totals(app)["in_use"] == 1)
        server.stop()
        code, output = run(app, "status", "--server")

    assert str(os.getpid()) in output
    assert "cannot connect: 2003" in output
    assert code == 1


def test_a_connect_that_failed_lately_is_shown_and_degraded(make_app: MakeApp) -> None:
    app = make_app(PORT=1)
    with pytest.raises(OperationalError):
        connected(app)
    until(lambda: report(app)["pools"]["default"]["workers"])
    until(lambda: report(app)["pools"]["default"]["totals"]["waiting"] == 0)
    until(lambda: report(app)["pools"]["default"]["connect_failure"])

    code, output = run(app, "status")

    assert code == 1
    assert re.search(rf"failed \d+ s ago in worker {os.getpid()}: 2003: Can't", output)


def test_all_threads_of_a_worker_are_claimed_however_many_it_describes(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flask_mysqlpool.workers.status, "LISTED", 2)
    app = make_app(MAX_SIZE=12)
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(connected(app))
        until(lambda: totals(app)["in_use"] == 12)
        pool = report(app, "--server")["pools"]["default"]
        threads = {t["thread_id"]: t["pid"] for t in pool["seen_by_server"]["threads"]}
        output = run(app, "status", "--server")[1]

    [worker] = pool["workers"]
    assert len(worker["thread_ids"]) == 12 and len(worker["connections"]) == 2
    assert {threads[number] for number in worker["thread_ids"]} == {os.getpid()}
    lines = output.splitlines()
    first = next(n for n, line in enumerate(lines) if line.split()[:1] == ["thread"])
    assert len(lines) == first + 1 + 10 + 1
    assert re.fullmatch(r"  and \d+ more", lines[-1])


@pytest.mark.one_engine(False)
@pytest.mark.parametrize(
    "command", [("check",), ("status", "--server"), ("reset", "--server", "--yes")]
)
def test_no_command_waits_for_ever_for_a_server_that_stopped_answering(
    make_app: MakeApp,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
) -> None:
    connect = Connector.connect

    def connect_and_hold(connector: Connector, deadline: float) -> Session:
        connection = connect(connector, deadline)
        proxy.hang()
        return connection

    monkeypatch.setattr(Connector, "connect", connect_and_hold)
    app = make_app(HOST=proxy.host, PORT=proxy.port, CONNECT_TIMEOUT=0.5)

    code, output = run(app, *command)

    assert code == 1
    assert "2013" in output


@pytest.mark.parametrize(
    "command",
    [
        *(["check"], ["status", "--server"], ["reset", "--server", "--yes"]),
        *(["wait", "--timeout", "0.1"], ["run", "-"], ["shell"]),
    ],
    ids=lambda command: command[0],
)
def test_a_file_for_tls_that_is_gone_is_said_by_every_command(
    make_app: MakeApp,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    file = tmp_path / "ca.pem"
    file.touch()
    app = make_app(SSL_CA=str(file))
    file.unlink()

    code, output = run(app, *command)

    assert code == 1
    assert "2026: SSL_CA, SSL_CERT or SSL_KEY cannot be used ([Errno 2]" in output


def test_a_worker_that_is_not_heard_of_is_said_to_be_silent(make_app: MakeApp) -> None:
    app = make_app()
    sheets = [
        heard_from(app, 12, pid=4011, size=1, in_use=1),
        heard_from(app, 12, pid=4012),
        heard_from(app, 0, pid=4013, size=1),
    ]

    output = run(app, "status")[1]

    assert "worker 4011: last heard of 12 s ago" in output
    assert output.count("last heard of") == 1
    for sheet in sheets:
        sheet.remove()


def test_ctrl_c_ends_watching_without_a_word(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        flask_mysqlpool.cli.commands, "time", SimpleNamespace(sleep=press)
    )
    app = make_app()

    code, output = run(app, "status", "--watch", "1")

    assert code == 3
    assert output == run(app, "status")[1]


class Terminal:
    """What a command is typed at, and where it prints."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._master, slave = pty.openpty()
        attributes = termios.tcgetattr(slave)
        attributes[1] &= ~termios.OPOST
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        self._files = open(slave), open(os.dup(slave), "w")
        self._monkeypatch = monkeypatch

    def run(self, app: Flask, *arguments: str, typed: str = "") -> tuple[Any, str]:
        """The exit code, and all that was printed."""
        os.write(self._master, typed.encode())
        script = ScriptInfo(create_app=lambda: app)
        with self._monkeypatch.context() as patch:
            for name, file in zip(("stdin", "stdout"), self._files, strict=True):
                patch.setattr(sys, name, file)
            with pytest.raises(SystemExit) as ended:
                app.cli.main(["mysqlpool", *arguments], "flask", obj=script)
        self._files[1].write("\0")
        self._files[1].flush()
        output = b""
        while not output.endswith(b"\0"):
            output += os.read(self._master, 1 << 16)
        return ended.value.code, output[:-1].decode()

    def close(self) -> None:
        for file in self._files:
            file.close()
        os.close(self._master)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    terminal = Terminal(monkeypatch)
    yield terminal
    terminal.close()


def test_at_a_terminal_watching_shows_nothing_but_the_newest(
    make_app: MakeApp, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    _, once = terminal.run(app, "status")
    rounds = iter([None, None])

    def sleep(seconds: float) -> None:
        assert seconds == 7.0
        if next(rounds, KeyboardInterrupt) is KeyboardInterrupt:
            raise KeyboardInterrupt

    monkeypatch.setattr(
        flask_mysqlpool.cli.commands, "time", SimpleNamespace(sleep=sleep)
    )
    code, output = terminal.run(app, "status", "--watch", "7")

    assert code == 3
    assert output == ("\x1b[2J\x1b[1;1H" + once) * 3


def test_at_a_terminal_reset_asks_first(make_app: MakeApp, terminal: Terminal) -> None:
    app = make_app()
    with connected(app) as connection:
        before = connection.thread_id()
    until(lambda: totals(app)["idle"] == 1)

    code, output = terminal.run(app, "reset", "--server", typed="n\n")
    assert code == 1
    assert "Replace the connections of 'shop'? [y/N]" in output
    with connected(app) as connection:
        assert connection.thread_id() == before

    code, output = terminal.run(app, "reset", "--server", typed="y\n")
    assert code == 0
    with connected(app) as connection:
        assert connection.thread_id() != before

    assert "[y/N]" not in terminal.run(app, "reset", "--yes", "--server")[1]


def test_many_holders_are_counted_and_not_all_listed(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flask_mysqlpool.workers.status, "LISTED", 11)
    app = make_app(MAX_SIZE=14, MAX_HOST_CONNECTIONS=20)
    with ExitStack() as stack:
        for _ in range(14):
            stack.enter_context(connected(app))
        until(lambda: totals(app)["in_use"] == 14)
        lines = run(app, "status")[1].splitlines()

    # It describes eleven of fourteen.
    first = next(n for n, line in enumerate(lines) if line.split()[:1] == ["seconds"])
    assert lines[first + 11 :] == ["  and 4 more"]
    assert "at most 14 for each worker, 20 for this host" in lines[2]


def test_in_a_narrow_terminal_what_is_dearest_is_shown_and_other_columns_are_not(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    sheet = heard_from(app, 0, pid=4011, size=3, in_use=3, waiting=2)
    shown = report(app)
    sheet.remove()

    def columns(width: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        found = flask_mysqlpool.cli.render.status(shown, terminal=True)
        lines = [*map(flask_mysqlpool.cli.render.printable, found)]
        [head] = [line for line in lines if line.split()[:1] == ["worker"]]
        assert len(head) <= width
        return head.split("  ")[1:]

    everything = columns(200)
    assert {"opened", "discarded"} <= set(everything)
    assert "opened" not in columns(len("  " + "  ".join(everything)) - 1)
    assert [name for name in columns(30) if name.strip()] == [
        "worker",
        "in use",
        "waiting",
    ]


# Commands as processes

SITE = """
import sys
from flask import Flask
from flask_mysqlpool import MySQLPool

app = Flask("shop")
app.config.update(MYSQLPOOL_URL={url!r}, MYSQLPOOL_STATUS_DIR={board!r})
app.config.update(MYSQLPOOL_TIMEOUT=5)
db = MySQLPool(app)
with app.app_context(), db.connection() as connection:
    connection.ping()
"""


@pytest.fixture
def flask_program(server: LocalServer, tmp_path: Path) -> list[str]:
    """``flask`` for an app that uses its pool as it is imported."""
    board = str(tmp_path / "board")
    (tmp_path / "shop.py").write_text(SITE.format(url=server.url, board=board))
    return [sys.executable, "-m", "flask", "--app", str(tmp_path / "shop.py")]


@pytest.fixture
def flask_command(flask_program: list[str]) -> Callable[..., Any]:
    """Run that with arguments."""

    def flask(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.run(
            [*flask_program, *arguments], text=True, timeout=60, **{**pipe, **how}
        )

    return flask


def test_a_command_is_no_worker_and_no_pause_is_in_its_way(
    flask_command: Callable[..., Any], tmp_path: Path, server: LocalServer
) -> None:
    key = key_of(identity("shop", "default", config_of(server)))
    board = StatusDir(tmp_path / "board")
    assert flask_command("mysqlpool", "pause").returncode == 0
    assert board.desired(key).paused

    status = flask_command("mysqlpool", "status")
    resume = flask_command("mysqlpool", "resume")

    assert status.returncode == 1 and "No worker of 'shop' is running" in status.stdout
    assert resume.returncode == 3 and "no running worker" in resume.stdout
    assert not board.desired(key).paused


def test_output_that_cannot_be_written_is_one_line_and_no_traceback(
    flask_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What stays in the buffer is written once more at the end.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with open("/dev/full", "w") as full:
        ended = flask_command("mysqlpool", "status", stdout=full)

    assert ended.returncode == 1
    assert ended.stderr == "The output cannot be written: No space left on device\n"


# What cannot be read


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(
    make_app: MakeApp, tmp_path: Path
) -> None:
    app = make_app()
    with connected(app):
        until(lambda: totals(app)["in_use"] == 1)
        (tmp_path / "board" / "notes.txt").write_text("hello")
        (tmp_path / "board" / "link.worker").symlink_to("/etc/passwd")
        code, output = run(app, "status")

    assert code == 0
    assert "notes.txt: not ours" in output and "link.worker: " in output
    assert str(os.getpid()) in output


def test_what_a_file_is_called_does_nothing_to_a_terminal(
    make_app: MakeApp, tmp_path: Path
) -> None:
    board = StatusDir(tmp_path / "board")
    board.update_desired("shop/default", lambda orders: orders)
    (tmp_path / "board" / "a\x1b[31m\nb").touch()

    for command in ("status", "check"):
        output = run(make_app(), command)[1]
        assert "a\\x1b[31m\\nb: not ours" in output


def test_orders_that_cannot_be_read_are_a_problem_and_the_pause_is_seen(
    make_app: MakeApp,
) -> None:
    app = make_app()
    heard_from(app, 0, pid=4011, paused=True)
    run(app, "pause")
    Path(folder_of(app).path, "orders").write_bytes(b"damage")

    assert "orders: damaged" in run(app, "status")[1]
    assert report(app)["pools"]["default"]["paused"] is True
    output = run(app, "check")[1]
    assert "warning  workers: orders: damaged -> remove it, and repeat" in output
    assert "default is paused" in output
    assert run(app, "resume")[0] == 0
    assert "orders" not in run(app, "status")[1]


def test_a_live_worker_that_cannot_be_read_is_not_to_be_removed(
    make_app: MakeApp,
) -> None:
    app = make_app()
    sheet = StatusFile(folder_of(app))
    sheet.write({"n": 1})

    code, output = run(app, "status")
    assert code == 3
    assert "No worker of 'shop' can be read" in output and "another version" in output
    code, output = run(app, "pause", "--wait", "0")
    assert code == 3
    assert f"{sheet.id}.worker: a worker of another version" in output

    heard_from(app, 0, pid=4011, paused=True)
    assert run(app, "pause", "--wait", "0")[0] == 1
    output = run(app, "check")[1]
    assert "restart the site's workers" in output and "remove it" not in output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_that_was_given_to_root_is_to_be_given_back(make_app: MakeApp) -> None:
    app = make_app()
    sheet = heard_from(app, 0, pid=4011)
    path = folder_of(app).path
    os.chown(f"{path}/{sheet.id}{STATUS}", 65534, 65534)

    code, output = run(app, "pause", "--wait", "0")
    assert code == 3
    assert f"No worker of 'shop' can be read in {path}, which belongs to root" in output
    output = run(app, "check")[1]
    assert f"it belongs to nobody -> chown {path}, and what is in it, to" in output


def test_a_folder_that_others_can_write_to_is_refused_and_requests_go_on(
    make_app: MakeApp, tmp_path: Path
) -> None:
    app = make_app()
    (tmp_path / "board").mkdir()
    (tmp_path / "board").chmod(0o777)

    connected(app).close()
    code, output = run(app, "status")

    assert code == 3
    assert "the workers cannot be seen" in output
    assert "can be written to by others" in output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_status_as_another_user_says_why_it_sees_nothing(
    make_app: MakeApp, tmp_path: Path
) -> None:
    app = make_app()
    connected(app).close()
    until(lambda: StatusDir(tmp_path / "board").read().records)
    os.chmod(tmp_path, 0o755)
    os.chown(tmp_path / "board", 12345, 12345)
    os.seteuid(54321)
    try:
        code, output = run(app, "status")
    finally:
        os.seteuid(0)

    assert code == 3
    assert "Permission denied" in output or "belongs to" in output


def test_without_a_folder_status_says_why_it_sees_nothing(make_app: MakeApp) -> None:
    app = make_app(STATUS_DIR=False)
    connected(app).close()

    code, output = run(app, "status")
    assert code == 3
    assert "STATUS_DIR is False" in output
    code, output = run(app, "reset", "--yes")
    assert code == 3
    assert "STATUS_DIR is False" in output


# reset


def test_reset_replaces_idle_connections_although_no_request_comes(
    make_app: MakeApp, sql: Sql
) -> None:
    app = make_app()
    with connected(app) as connection:
        before = connection.thread_id()
    until(lambda: totals(app)["idle"] == 1)

    code, output = run(app, "reset", "--yes")

    assert code == 0
    assert output == "default: replaced (1 worker)\n"
    until(lambda: before not in [row[0] for row in sql("SHOW PROCESSLIST")], 2)


def test_reset_waits_for_busy_connections_and_shows_who_is_to_follow(
    make_app: MakeApp,
) -> None:
    app = make_app()
    connection = connected(app)
    until(lambda: totals(app)["in_use"] == 1)
    before = connection.thread_id()

    code, output = run(app, "reset", "--yes", "--wait", "1.2")
    assert code == 1
    assert f"worker {os.getpid()}: 1 connection to go, 1 in use" in output
    assert "1 of 1 worker pending" in output
    connection.ping()

    threading.Timer(0.3, connection.close).start()
    code, output = run(app, "reset", "--yes", "--wait", "10")
    assert code == 0
    assert output.endswith("default: replaced (1 worker)\n")
    with connected(app) as connection:
        assert connection.thread_id() != before


@pytest.mark.one_engine(False)
def test_reset_at_the_server_ends_idle_connections_and_workers_survive(
    make_app: MakeApp,
) -> None:
    app = make_app()
    with connected(app) as connection:
        before = connection.thread_id()

    code, output = run(app, "reset", "--yes", "--server")

    assert code == 0
    assert "idle connection" in output
    with connected(app) as connection:
        assert connection.thread_id() != before
        connection.ping()


@pytest.mark.one_engine(False)
def test_reset_at_a_server_that_is_down_gives_its_reason(make_app: MakeApp) -> None:
    code, output = run(make_app(PORT=1), "reset", "--yes", "--server")

    assert code == 1
    assert "cannot end the idle connections on 127.0.0.1:1/test: 2003" in output


@pytest.mark.one_engine(False)
def test_reset_at_the_server_has_nothing_to_wait_for(make_app: MakeApp) -> None:
    code, output = run(make_app(), "reset", "--server", "--wait", "3")

    assert code == 2
    assert "there is no --wait" in output


@pytest.mark.one_engine(False)
def test_a_connection_that_has_ended_by_itself_is_not_counted_as_ended(
    make_pool: MakePool, server: LocalServer
) -> None:
    config = PoolConfig.from_mapping({"URL": server.url})
    with make_pool().connection() as connection, connect_to(config) as asked:
        threads = asked.threads()
        [own] = [t for t in threads if t.thread_id == connection.thread_id()]
        gone = dataclasses.replace(own, thread_id=own.thread_id + 1_000_000)

        assert asked.kill([gone, own]) == 1


@pytest.mark.parametrize("number", [1142, 1044, 1146])
def test_who_may_not_see_what_clients_call_themselves_sees_the_rest(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    rows = Server._rows

    def refuse(server: Server, statement: str) -> tuple[tuple[Any, ...], ...]:
        if "performance_schema" in statement:
            raise OperationalError(number, "denied")
        return rows(server, statement)

    monkeypatch.setattr(Server, "_rows", refuse)
    app = make_app()
    with connected(app) as connection:
        until(lambda: totals(app)["in_use"] == 1)
        pool = report(app, "--server")["pools"]["default"]
        programs = {
            t["thread_id"]: t["program"] for t in pool["seen_by_server"]["threads"]
        }
        assert programs[connection.thread_id()] is None
        assert run(app, "check")[0] == 0


def test_another_error_about_what_clients_call_themselves_is_told(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(server: Server) -> None:
        raise OperationalError(1205, "Lock wait timeout exceeded")

    monkeypatch.setattr(Server, "_programs", fail)

    code, output = run(make_app(), "status", "--server")

    assert code == 1
    assert "1205: Lock wait timeout exceeded" in output


def test_orders_that_cannot_be_given_are_an_error_with_its_mend(
    make_app: MakeApp,
) -> None:
    app = make_app()
    connected(app).close()
    until(lambda: totals(app)["idle"] == 1)
    path = folder_of(app).path
    os.mkdir(os.path.join(path, DESIRED))

    code, output = run(app, "pause")

    assert code == 3
    assert output == (
        f"The workers cannot be reached: {path}/orders: not a file -> remove it\n"
    )


def test_workers_that_cannot_be_seen_any_more_are_an_error_with_its_mend(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    connected(app).close()
    until(lambda: totals(app)["idle"] == 1)
    path = folder_of(app).path
    order = Fleet.pause

    def order_and_open_to_others(fleet: Fleet, bind: str, **how: Any) -> Any:
        test = order(fleet, bind, **how)
        os.chmod(path, 0o770)
        return test

    monkeypatch.setattr(Fleet, "pause", order_and_open_to_others)

    code, output = run(app, "pause")

    assert code == 3
    assert output.splitlines()[0] == (
        f"The workers cannot be seen: {path}: can be written to by others"
        f" -> chmod go-w {path}"
    )
    assert output.endswith("To end that: flask mysqlpool resume\n")


def test_what_is_shown_of_those_who_follow_is_not_repeated(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    heard_from(app, 0, pid=4011)
    states = [records.worker(pid=4011, size=n, in_use=1) for n in (2, 2, 1)]
    monkeypatch.setattr(Fleet, "wait", lambda *_: iter([[s] for s in states] + [[]]))

    assert run(app, "pause", "--wait", "9")[1].splitlines()[:-2] == [
        "default: worker 4011: 2 connections to go, 1 in use",
        "default: worker 4011: 1 connection to go, 1 in use",
        "default: paused (1 worker)",
    ]


def test_reset_with_no_worker_says_so(make_app: MakeApp) -> None:
    code, output = run(make_app(), "reset", "--yes")

    assert code == 3
    assert "No worker of 'shop' is running" in output


# pause and resume


@pytest.mark.one_engine(False)
def test_paused_checkouts_wait_until_resume(make_app: MakeApp) -> None:
    app = make_app(TIMEOUT=20)
    connected(app).close()
    until(lambda: totals(app)["idle"] == 1)

    code, output = run(app, "pause", "--wait", "10")
    assert code == 0
    assert "default: paused (1 worker)\n" in output
    assert totals(app)["size"] == 0

    served = []
    waiter = threading.Thread(target=lambda: served.append(connected(app)))
    waiter.start()
    until(lambda: totals(app)["waiting"] == 1)
    assert "paused" in run(app, "status")[1]
    assert report(app)["pools"]["default"]["paused"] is True

    assert run(app, "resume") == (0, "default: resumed (1 worker)\n")
    waiter.join(10)
    served.pop().close()


def test_pause_says_who_has_still_a_connection(make_app: MakeApp) -> None:
    app = make_app()
    with connected(app):
        until(lambda: totals(app)["in_use"] == 1)
        code, output = run(app, "pause", "--wait", "0.5")
    run(app, "resume")

    assert code == 1
    assert f"worker {os.getpid()}: 1 connection to go, 1 in use" in output


def test_a_pause_holds_for_a_worker_that_starts_later(make_app: MakeApp) -> None:
    assert run(make_app(), "pause")[0] == 0

    app = make_app()
    with app.app_context(), pytest.raises(PoolTimeout, match="paused"):
        extension(app).connection(timeout=0.3)
    assert run(app, "resume")[0] == 0
    connected(app).close()


@pytest.mark.parametrize("command", ["pause", "resume", "reset"])
def test_orders_that_nobody_confirms_are_given_and_said_to_be_unconfirmed(
    make_app: MakeApp, command: str
) -> None:
    app = make_app()
    arguments = {"pause": ["--wait", "0"], "reset": ["--yes"]}.get(command, [])
    run(app, "pause" if command == "resume" else "resume")

    code, output = run(app, command, *arguments)

    assert code == 3
    assert "default: requested; no running worker to confirm it\n" in output
    assert f"none publishes in {folder_of(app).path}, which belongs to " in output
    orders = folder_of(app).desired(key_of(identity_of(app)))
    assert orders[:2] == (int(command == "reset"), command == "pause")


def test_who_waits_for_all_does_not_miss_one_whose_sheet_was_removed(
    make_app: MakeApp,
) -> None:
    app = make_app()
    with connected(app):
        until(lambda: totals(app)["in_use"] == 1)
        [path] = Path(folder_of(app).path).glob("*" + STATUS)
        path.unlink()
        code, output = run(app, "pause", "--wait", "0")
    run(app, "resume")

    assert code == 1
    assert "1 of 1 worker pending" in output


def test_resume_does_not_take_for_done_what_has_not_been_seen(
    make_app: MakeApp,
) -> None:
    app = make_app()
    heard_from(app, 0, pid=4011, paused=True, waiting=2)

    code, output = run(app, "resume")

    assert code == 1
    assert output.splitlines() == [
        "default: 1 of 1 worker pending",
        "default: worker 4011: 2 checkouts still waiting, 0 in use",
    ]


@pytest.fixture
def worker(make_app: MakeApp) -> Flask:
    """An app with an idle connection, which is published."""
    app = make_app(TIMEOUT=10)
    connected(app).close()
    until(lambda: totals(app)["idle"] == 1)
    return app


def test_every_command_tells_who_has_paused_since_when_until_when_and_the_way_out(
    worker: Flask,
) -> None:
    before = time.time()
    paused = run(worker, "pause", "--for", "10m")[1]
    pause = report(worker)["pools"]["default"]["pause"]
    others = [run(worker, *a)[1] for a in (["status"], ["check"], ["reset", "--yes"])]
    code = run(worker, "status")[0]
    resumed = run(worker, "resume")

    user = pwd.getpwuid(os.geteuid()).pw_name
    assert pause["by"] == f"{user} on {socket.gethostname()}"
    assert before <= pause["since"] <= time.time()
    assert pause["until"] == pytest.approx(pause["since"] + 600, abs=0.1)
    since, until = (datetime.fromtimestamp(pause[key]) for key in ("since", "until"))
    told = f"paused by {pause['by']} since {since:%F %T}, until {until:%F %T}"
    for output in paused, *others:
        assert told in output
    assert "To end that: flask mysqlpool resume\n" in paused
    assert code == 1
    assert resumed == (0, "default: resumed (1 worker)\n")
    assert report(worker)["pools"]["default"]["pause"] is None


def test_check_names_the_command_group_as_it_is_configured(make_app: MakeApp) -> None:
    app = make_app(CLI="pools", BINDS={"reports": {}})

    def run(*arguments: str) -> str:
        result = FlaskCliRunner(app).invoke(args=["pools", *arguments])
        assert result.exit_code in (0, 1)
        return result.output

    paused = run("pause")
    alone = run("check", "--bind", "default")
    Path(folder_of(app).path, DESIRED).write_text("damaged")

    assert "To end that: flask pools resume\n" in paused
    assert alone.count("checkouts wait -> flask pools resume --bind default\n") == 1
    repeat = "repeat flask pools pause or flask pools resume\n"
    assert repeat in run("check")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_pause_as_ctrl_c_does(
    flask_program: list[str], make_app: MakeApp, name: str
) -> None:
    app, number = make_app(), signal.Signals[name]
    command = [*flask_program, "mysqlpool", "pause", "--wait", "30"]
    with connected(app):
        until(lambda: totals(app)["in_use"] == 1)
        # Under nohup the tests, and what they start, would ignore SIGHUP.
        before = signal.signal(number, signal.SIG_DFL)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pause:
            signal.signal(number, before)
            assert pause.stdout
            output = pause.stdout.readline()
            pause.send_signal(number)
            output += pause.stdout.read()
            code = pause.wait(30)

    assert code == 128 + number
    first, second, third, last = output.splitlines()
    assert first.endswith("1 connection to go, 1 in use")
    assert second == "Interrupted: the request stands."
    assert third.startswith("default: paused by ")
    assert last == "To end that: flask mysqlpool resume"
    assert report(app)["pools"]["default"]["paused"]


def test_after_its_time_a_pause_ends_by_itself_and_workers_log_it(
    worker: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    run(worker, "pause", "--wait", "5", "--for", "0.7s")
    assert totals(worker)["size"] == 0
    with connected(worker):  # waits, and is served
        until(lambda: run(worker, "status")[0] == 0)
        pause = report(worker)["pools"]["default"]["pause"]

    assert pause is None
    [paused, resumed] = [r.getMessage() for r in caplog.records]
    assert paused.startswith("shop: paused by ") and resumed == "shop: resumed"


def test_a_pause_ends_in_its_time_where_orders_cannot_be_read_any_more(
    worker: Flask,
) -> None:
    run(worker, "pause", "--for", "0.7s")
    path = Path(folder_of(worker).path, DESIRED)
    path.write_text("damaged")

    connected(worker).close()


def test_a_second_pause_keeps_its_beginning_and_has_the_end_that_it_names(
    worker: Flask,
) -> None:
    def ordered(*arguments: str) -> dict[str, Any]:
        run(worker, "pause", *arguments)
        pause: dict[str, Any] = report(worker)["pools"]["default"]["pause"]
        return pause

    first, second = ordered("--for", "1h"), ordered()

    assert second["since"] == first["since"]
    assert first["until"] and second["until"] is None


@pytest.mark.parametrize("busy", [True, False])
def test_an_interrupted_pause_says_that_it_holds(
    worker: Flask, busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Fleet, "wait" if busy else "pause", interrupt)

    code, output = run(worker, "pause", "--wait", "5", "--bind", "default")

    assert code == 1
    if busy:
        assert output.startswith("Interrupted: the request stands.\n")
        assert output.endswith("To end that: flask mysqlpool resume --bind default\n")
    else:
        assert output == "Interrupted: nothing was requested.\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90.0), ("90s", 90.0), ("10m", 600.0), ("2h", 7200.0), ("0.5d", 43200.0)],
)
def test_durations_have_units(worker: Flask, text: str, seconds: float) -> None:
    run(worker, "pause", "--for", text)

    pause = report(worker)["pools"]["default"]["pause"]
    assert pause["until"] - pause["since"] == pytest.approx(seconds, abs=0.1)


@pytest.mark.parametrize("text", ["0", "-1m", "nan", "nanm", "10x", "m", "", "1e5 m m"])
def test_what_is_no_duration_is_refused(make_app: MakeApp, text: str) -> None:
    code, output = run(make_app(), "pause", "--for", text)

    assert code == 2 and "Invalid value for '--for'" in output


# check


def lines_of(output: str, subject: str) -> str:
    [line] = [line for line in output.splitlines() if f" {subject}: " in line]
    return line


@pytest.mark.one_engine(False)
def test_check_of_a_healthy_server(make_app: MakeApp, server: LocalServer) -> None:
    app = make_app()
    connected(app).close()
    code, output = run(app, "check")

    assert code == 0
    assert "failure" not in output
    subjects = [
        *("workers", "settings", "connection", "latency", "version", "TLS"),
        *("authentication", "read_only", "wait_timeout", "capacity"),
    ]
    for subject in subjects:
        assert lines_of(output, subject)
    assert server.version in lines_of(output, "version")
    assert server.password not in output


@pytest.mark.one_engine(False)
def test_check_of_a_server_that_is_down(make_app: MakeApp) -> None:
    code, output = run(make_app(PORT=1), "check")

    assert code == 1
    line = lines_of(output, "connection")
    assert line.startswith("failure") and "2003" in line and "start the server" in line


@pytest.mark.one_engine(False)
def test_check_of_a_wrong_password(make_app: MakeApp) -> None:
    code, output = run(make_app(PASSWORD="wrong"), "check")

    assert code == 1
    assert "1045" in lines_of(output, "connection")
    assert "correct USER and PASSWORD" in output


@pytest.mark.one_engine(False)
def test_check_finds_limits_that_do_not_fit(
    make_app: MakeApp, make_server: MakeServer
) -> None:
    server = make_server(
        database="test", options=["--wait-timeout=5", "--max-connections=12"]
    )
    code, output = run(make_app(URL=server.url, MAX_SIZE=50), "check")

    assert code == 1
    assert lines_of(output, "wait_timeout").startswith("warning")
    assert "set MAX_IDLE to less than 5 (1 to 4), or raise wait_timeout" in output
    assert lines_of(output, "capacity").startswith("failure")
    assert "1 worker × MAX_SIZE 50 = 50; max_connections 12" in output


@pytest.mark.one_engine(False)
def test_check_of_a_server_that_is_read_only(
    make_app: MakeApp, make_server: MakeServer
) -> None:
    server = make_server(database="test", options=["--read-only=1"])
    code, output = run(make_app(URL=server.url), "check")

    assert code == 0
    assert lines_of(output, "read_only").startswith("warning")


@pytest.mark.one_engine(False)
def test_check_tells_of_a_pause_and_of_a_folder_of_no_use(
    make_app: MakeApp, tmp_path: Path
) -> None:
    app = make_app()
    connected(app).close()
    until(lambda: totals(app)["idle"] == 1)
    run(app, "pause")
    assert "default is paused" in run(app, "check")[1]
    run(app, "resume")

    app = make_app(STATUS_DIR=tmp_path / "file")
    (tmp_path / "file").write_text("")
    code, output = run(app, "check")
    assert code == 0
    assert "warning  workers: " in output and "set STATUS_DIR" in output


def test_check_and_status_make_nothing(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app(STATUS_DIR=tmp_path / "a" / "b")

    line = lines_of(run(app, "check")[1], "workers")
    output = run(app, "status", "--server")[1]

    assert line.endswith(f"0 publish in {tmp_path}/a/b, which does not exist")
    assert f"none publishes in {tmp_path}/a/b, which does not exist" in output
    assert not (tmp_path / "a").exists()


@pytest.mark.one_engine(False)
def test_check_tells_of_a_pause_although_nobody_publishes(make_app: MakeApp) -> None:
    run(make_app(), "pause")

    assert "default is paused" in run(make_app(), "check")[1]


def open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def like_tmp(path: Path) -> None:
    path.mkdir()
    path.chmod(0o1777)


@pytest.mark.one_engine(False)
@pytest.mark.parametrize(
    ("spoil", "said", "mend"),
    [
        (open_to_all, "can be written to by others", "chmod go-w {}"),
        (
            like_tmp,
            "can be written to by others",
            "set STATUS_DIR to a folder inside it, such as {}/<app>",
        ),
        (lambda path: path.symlink_to("."), "is a symbolic link", "remove it, or set"),
        (Path.touch, "Not a directory", "set STATUS_DIR to a folder"),
    ],
)
def test_check_has_the_mend_for_a_folder_that_cannot_be_used(
    make_app: MakeApp,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    said: str,
    mend: str,
) -> None:
    path = tmp_path / "board"
    spoil(path)

    line = lines_of(run(make_app(), "check")[1], "workers")

    assert line.startswith(f"warning  workers: {path}: {said} -> {mend.format(path)}")
    assert f"cannot be seen: {path}: {said}" in run(make_app(), "status")[1]


@pytest.mark.one_engine(False)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_check_as_another_user_says_whose_the_folder_is(
    make_app: MakeApp, tmp_path: Path
) -> None:
    (tmp_path / "board").mkdir(0o755)
    app = make_app()
    with as_nobody(tmp_path):
        line = lines_of(run(app, "check")[1], "workers")

    assert "board: belongs to root -> run this as root, or chown the folder" in line


@contextmanager
def as_nobody(tmp_path: Path) -> Iterator[None]:
    """As another user, who gets at the folder of the test."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_mode & 0o077 == 0:
            path.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


only_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can be another user"
)


@only_root
@pytest.mark.parametrize(
    ("settings", "level"),
    [({}, "warning"), ({"MAX_HOST_CONNECTIONS": 20}, "failure")],
)
def test_check_says_if_this_user_could_not_make_the_folder(
    make_app: MakeApp, tmp_path: Path, settings: dict[str, Any], level: str
) -> None:
    instance = tmp_path / "site" / "instance"
    app = make_app(STATUS_DIR=instance / "board", **settings)
    with as_nobody(tmp_path):
        code, output = run(app, "check")

    line = lines_of(output, "workers")
    assert line.startswith(
        f"{level:<8} workers: {instance}/board: does not exist, and "
    )
    assert f"nobody cannot make it: {tmp_path} belongs to root" in line
    assert f" -> as root, mkdir -p {instance}/board and chown it to the site's" in line
    assert "or set STATUS_DIR to" in line
    assert ("MAX_HOST_CONNECTIONS cannot be kept" in line) is bool(settings)
    assert code == int(level == "failure")
    assert not (tmp_path / "site").exists()

    # Who can make it is told nothing of that; root always can.
    assert lines_of(run(app, "check")[1], "workers").startswith("ok ")
    (tmp_path / "site").mkdir()
    os.chown(tmp_path / "site", 65534, 65534)
    with as_nobody(tmp_path):
        assert lines_of(run(app, "check")[1], "workers").startswith("ok ")
    assert not instance.exists()


@only_root
def test_check_says_if_this_user_cannot_write_to_the_folder(
    make_app: MakeApp, tmp_path: Path
) -> None:
    app = make_app(MAX_HOST_CONNECTIONS=20)
    (tmp_path / "board").mkdir(0o500)
    os.chown(tmp_path / "board", 65534, 65534)
    with as_nobody(tmp_path):
        line = lines_of(run(app, "check")[1], "workers")

    assert line.startswith("failure  ") and "cannot be written to by nobody" in line
    assert line.endswith(f" -> chmod u+rwx {tmp_path}/board")


@only_root
def test_nobody_is_told_to_chown_a_folder_that_all_share(
    make_app: MakeApp, tmp_path: Path
) -> None:
    like_tmp(tmp_path / "board")
    app = make_app()
    with as_nobody(tmp_path):
        line = lines_of(run(app, "check")[1], "workers")

    assert line.endswith(
        f" -> set STATUS_DIR to a folder inside it, such as {tmp_path}/board/<app>"
    )


@only_root
@pytest.mark.parametrize("command", ["status", "pause", "resume", "reset"])
def test_who_may_not_look_into_the_folder_is_told_who_may(
    make_app: MakeApp, tmp_path: Path, command: str
) -> None:
    app = make_app(STATUS_DIR=tmp_path / "site" / "board")
    (tmp_path / "site").mkdir(0o700)
    with as_nobody(tmp_path):
        code, output = run(app, command, *["--yes"] * (command == "reset"))

    assert code == 3
    site = tmp_path / "site"
    hint = f"{site}/board: cannot be reached: nobody may not search {site}, which"
    mend = " belongs to root -> run this as the site's user; if that is nobody, chmod"
    assert output.startswith("The workers cannot be reached") or command == "status"
    assert hint + mend in output


@only_root
def test_check_says_if_workers_may_not_search_what_the_folder_lies_in(
    make_app: MakeApp, tmp_path: Path
) -> None:
    parent = tmp_path / "site"
    board = parent / "board"
    app = make_app(STATUS_DIR=board)
    board.mkdir(0o700, parents=True)
    os.chown(board, 65534, 65534)

    def lines() -> tuple[str, str]:
        with as_nobody(tmp_path):
            own = lines_of(run(app, "check")[1], "workers")
        return own, lines_of(run(app, "check")[1], "workers")

    parent.chmod(0o711)
    assert [line[:3] for line in lines()] == ["ok ", "ok "]
    parent.chmod(0o700)
    own, of_root = lines()

    fault = (
        f"warning  workers: {board}: cannot be reached: nobody may not search {parent}"
    )
    mend = f"chmod o+x {parent}, or set STATUS_DIR to a folder that it can reach"
    hint = "run this as the site's user; if that is nobody, "
    assert own == f"{fault}, which belongs to root -> {hint}{mend}"
    assert of_root == f"{fault}, which belongs to root -> {mend}"


@pytest.mark.one_engine(False)
def test_check_of_a_host_that_has_no_address(make_app: MakeApp) -> None:
    code, output = run(make_app(HOST="nowhere.invalid"), "check")

    assert code == 1
    assert "correct HOST: its name cannot be resolved" in lines_of(output, "connection")


@pytest.mark.parametrize("user", ["app", None])
def test_without_a_user_check_says_whom_pymysql_takes(
    make_app: MakeApp,
    server: LocalServer,
    monkeypatch: pytest.MonkeyPatch,
    user: str | None,
) -> None:
    for module in (pymysql.connections, flask_mysqlpool.config.settings):
        monkeypatch.setattr(module, "DEFAULT_USER", user and server.user)
    place = {"URL": None, "HOST": server.host, "PORT": server.port}
    app = make_app(**place, PASSWORD=server.password, DATABASE="test")

    code, output = run(app, "check")

    line = lines_of(output, "settings")
    if user is None:
        assert code == 1
        assert line.startswith("failure") and line.endswith(" -> set USER")
        return
    assert code == 0
    assert line.endswith(f" as {server.user} (USER is not set)")
    with connected(app) as connection:
        seen = report(app, "--server")["pools"]["default"]["seen_by_server"]
        threads = [thread["thread_id"] for thread in seen["threads"]]
        assert connection.thread_id() in threads


def test_check_of_a_server_with_another_role(
    make_app: MakeApp, make_server: MakeServer
) -> None:
    output = run(make_app(TARGET="replica"), "check")[1]
    text = "2003: it is writable, not a replica -> correct TARGET or HOST"
    assert lines_of(output, "connection").endswith(text)

    replica = make_server(database="test", options=["--read-only=1"])
    output = run(make_app(URL=replica.url, TARGET="primary"), "check")[1]
    text = "2003: it is read-only, not a primary -> correct TARGET or HOST"
    assert lines_of(output, "connection").endswith(text)

    # Of several, one that is down may be the one that is wanted.
    host = f"{replica.host}:{replica.port},{replica.host}:1"
    output = run(make_app(URL=replica.url, HOST=host, TARGET="primary"), "check")[1]
    assert " -> start the server, or correct HOST" in lines_of(output, "connection")


def test_check_of_a_server_without_tls(
    make_app: MakeApp, make_server: MakeServer
) -> None:
    server = make_server(database="test", options=["--skip-ssl"])
    code, output = run(make_app(URL=server.url, SSL_MODE="REQUIRED"), "check")

    assert code == 1
    line = lines_of(output, "connection")
    assert "2026: SSL is required but the server doesn't support it" in line
    assert line.endswith(" -> enable TLS at the server, or lower SSL_MODE")


def test_check_of_an_account_that_comes_by_the_unix_socket(
    make_app: MakeApp, sql: Sql
) -> None:
    sql("CREATE USER IF NOT EXISTS socketeer IDENTIFIED VIA unix_socket")
    try:
        code, output = run(make_app(USER="socketeer", PASSWORD="x"), "check")
    finally:
        sql("DROP USER socketeer")

    assert code == 1
    line = lines_of(output, "connection")
    assert "1698: Access denied" in line
    assert "one that logs in by the unix socket: set UNIX_SOCKET (/run/" in line


@pytest.mark.parametrize(
    ("settings", "number", "setting"),
    [
        ({"INIT_COMMAND": "NONSENSE"}, 1064, "INIT_COMMAND"),
        ({"SETSESSION": ["SET @a = 1", "SET nonsense = 1"]}, 1193, "SETSESSION"),
        (
            {"INIT_COMMAND": "SET @a = 1", "SETSESSION": ["SET sql_mode = 'NONSENSE'"]},
            1231,
            "SETSESSION",
        ),
        ({"SQL_MODE": "NONSENSE"}, 1231, "CHARSET, COLLATION or SQL_MODE"),
        ({"COLLATION": "nonsense"}, 1273, "CHARSET, COLLATION or SQL_MODE"),
    ],
)
def test_the_error_names_the_setting_whose_statement_is_refused(
    make_app: MakeApp, settings: dict[str, Any], number: int, setting: str
) -> None:
    app = make_app(**settings)
    with pytest.raises(MySQLError) as caught:
        connected(app)
    assert caught.value.args[0] == number
    assert caught.value.args[1].startswith(f"{setting}: ")

    code, output = run(app, "check")

    assert code == 1
    line = lines_of(output, "connection")
    assert f"connection: {number}: {setting}: " in line
    assert line.endswith(f" -> correct {setting}")


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        ("it is a replica that is stopped", "start its replication (START REPLICA)"),
        ("it is 20 s behind its primary", "let it catch up, or raise MAX_LAG"),
        ("Can't connect to MySQL server on 'db' (refused)", "start the server, or"),
        ("db: it is read-only, not a primary", "correct TARGET or HOST"),
    ],
)
def test_what_an_error_says_tells_more_than_its_number(
    monkeypatch: pytest.MonkeyPatch, error: str, mend: str
) -> None:
    @contextmanager
    def connect_to(config: PoolConfig) -> Iterator[Any]:
        raise Unanswered(OperationalError(2003, error))
        yield

    monkeypatch.setattr(flask_mysqlpool.cli.check, "connect_to", connect_to)
    config = PoolConfig.from_mapping({"HOST": "localhost", "USER": "shop"})

    *_, connection = examine(config, None)

    assert connection.level == "failure" and connection.fix.startswith(mend)


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        (OperationalError(1129, "Host is blocked"), "run FLUSH HOSTS"),
        (OperationalError(1203, "Too many"), "raise the account's max_user_conn"),
        (OperationalError(1226, "exceeded"), "raise the account's max_user_conn"),
        (
            RuntimeError("'cryptography' package is required for sha256_password"),
            "pip install cryptography, or use TLS",
        ),
        (
            OperationalError(2059, "'pynacl' package is required for ed25519_password"),
            "pip install PyNaCl",
        ),
        (
            OperationalError(2059, "Authentication plugin 'b'parsec'' not configured"),
            "ALTER USER … IDENTIFIED by a plug-in that PyMySQL has",
        ),
        (OperationalError(1815, "Internal error"), ""),
    ],
)
def test_a_connect_that_failed_is_told_with_its_mend(
    monkeypatch: pytest.MonkeyPatch, error: Exception, mend: str
) -> None:
    @contextmanager
    def connect_to(config: PoolConfig) -> Iterator[Any]:
        raise Unanswered(error)
        yield

    monkeypatch.setattr(flask_mysqlpool.cli.check, "connect_to", connect_to)
    config = PoolConfig.from_mapping({"HOST": "localhost", "USER": "shop"})

    *_, connection = examine(config, None)

    assert connection.level == "failure"
    assert connection.text == ": ".join(map(str, error.args))
    assert mend in connection.fix and bool(mend) == bool(connection.fix)


FACTS = Facts(
    version="10.11.6-MariaDB",
    connect=0.001,
    round_trip=0.001,
    cipher=None,
    account="shop@%",
    plugin="ed25519",
    read_only=False,
    wait_timeout=28800,
    max_connections=151,
    max_user_connections=0,
    connected=10,
    of_this_user=4,
)


NATIVE = {"version": "8.0.36", "plugin": "mysql_native_password"}


@pytest.mark.parametrize(
    ("subject", "about", "settings", "text", "mend"),
    [
        ("latency", {"round_trip": 0.0199}, {}, "19.90 ms for a round trip", ""),
        ("latency", {"round_trip": 0.02}, {}, "20.00 ms", "bring the app nearer"),
        ("version", {"version": "5.5.5-10.6.1-MariaDB"}, {}, "MariaDB 5.5.5-10.6", ""),
        (
            *("version", {"version": "10.5.29-MariaDB"}, {}, "MariaDB 10.5.29"),
            "upgrade to MariaDB 10.6 or newer",
        ),
        ("version", {"version": "9.1.0"}, {}, "MySQL 9.1.0", ""),
        (
            *("version", {"version": "5.7.44-log"}, {}, "MySQL 5.7.44-log"),
            "upgrade to MySQL 8.0 or newer",
        ),
        ("TLS", {}, {}, "none: a man in the middle can read", "enable TLS at the"),
        ("TLS", {}, {"HOST": "::1"}, "none; nothing leaves this host", ""),
        ("TLS", {}, {"UNIX_SOCKET": "/run/s"}, "none; nothing leaves this host", ""),
        ("TLS", {}, {"HOST": "127.0.0.1,db"}, "none: a man in the middle", "enable"),
        (
            *("TLS", {"cipher": "AES"}, {"SSL_MODE": "VERIFY_CA"}),
            *("AES; the certificate is verified, the host's name is not", ""),
        ),
        (
            *("TLS", {"cipher": "AES"}, {"SSL_MODE": "VERIFY_IDENTITY"}),
            *("AES; certificate and host name are verified", ""),
        ),
        (
            *("TLS", {"cipher": "AES"}, {"SSL_MODE": "REQUIRED"}),
            *("AES; the server is not verified (SSL_MODE REQUIRED)", "set SSL_MODE ="),
        ),
        (
            *("TLS", {"cipher": "AES"}, {"HOST": "localhost"}),
            *("AES; the server is not verified (SSL_MODE PREFERRED)", ""),
        ),
        ("TLS", {}, {"HOST": "::1", "CONNECT": print}, "none; whether CONNECT", ""),
        (
            *("TLS", {"cipher": "AES", "verified": ("VERIFY_IDENTITY", "CONNECT")}),
            *({"CONNECT": print}, "AES; certificate and host name are verified", ""),
        ),
        (
            *("TLS", {"cipher": "AES", "verified": ("REQUIRED", "CONNECT")}),
            *({"CONNECT": print}, "AES; the server is not verified (CONNECT)"),
            "have CONNECT verify it",
        ),
        (
            *("settings", {}, {"CONNECT": print, "DATABASE": "shop"}),
            *("db.example:3306/shop as shop, by CONNECT", ""),
        ),
        (
            *("settings", {}, {}),
            *("db.example:3306 (DATABASE is not set) as shop", "set DATABASE"),
        ),
        ("authentication", NATIVE, {}, "shop@% by mysql_native", "caching_sha2"),
        ("authentication", NATIVE | {"version": "11-MariaDB"}, {}, "by mysql_n", ""),
        ("read_only", {"read_only": True}, {}, "on: every write fails", "primary, or"),
        ("read_only", {"read_only": False}, {}, "off", ""),
        (
            *("wait_timeout", {"wait_timeout": 1}, {}, "1 s; MAX_IDLE"),
            "raise wait_timeout",
        ),
    ],
)
def test_what_is_not_well_at_the_server_is_a_warning_with_its_mend(
    monkeypatch: pytest.MonkeyPatch,
    subject: str,
    about: dict[str, Any],
    settings: dict[str, Any],
    text: str,
    mend: str,
) -> None:
    @contextmanager
    def connect_to(config: PoolConfig) -> Iterator[Any]:
        yield SimpleNamespace(facts=lambda: dataclasses.replace(FACTS, **about))

    monkeypatch.setattr(flask_mysqlpool.cli.check, "connect_to", connect_to)
    place = {} if "UNIX_SOCKET" in settings else {"HOST": "db.example"}
    config = PoolConfig.from_mapping({**place, "USER": "shop", **settings})

    [finding] = [f for f in examine(config, 1) if f.subject == subject]

    assert finding.text.startswith(text) or text in finding.text
    assert mend in finding.fix and bool(mend) == bool(finding.fix)
    assert finding.level == ("warning" if mend else "ok")


@pytest.mark.parametrize(
    ("about", "workers", "text", "mend"),
    [
        (
            {},
            2,
            "2 workers seen × MAX_SIZE 10 = 20; max_connections 151, of which others"
            " use 6",
            "",
        ),
        (
            {"max_user_connections": 20, "connected": 100},
            2,
            "max_connections 151, of which others use 96, max_user_connections 20",
            "",
        ),
        (
            {"max_user_connections": 20, "connected": 100},
            3,
            "3 workers seen",
            "raise max_user_connections to 30 or more, lower MAX_SIZE, or set"
            " MAX_HOST_CONNECTIONS to 20",
        ),
        (
            {"max_user_connections": 20, "connected": 135},
            3,
            "others use 131",
            "raise max_connections to 161 or more and max_user_connections to 30 or"
            " more, lower MAX_SIZE, or set MAX_HOST_CONNECTIONS to 20",
        ),
        (
            {"of_other_hosts": 3, "connected": 140},
            2,
            "others use 136, and this site on other hosts 3",
            "raise max_connections to 159 or more, lower MAX_SIZE, or set"
            " MAX_HOST_CONNECTIONS to 12",
        ),
        (
            {"connected": 145},
            None,
            "1 worker × MAX_SIZE 10 = 10; max_connections 151, of which others use 141;"
            " the number of workers is not known",
            "",
        ),
    ],
)
def test_what_all_workers_may_open_is_held_against_each_limit(
    monkeypatch: pytest.MonkeyPatch,
    about: dict[str, Any],
    workers: int | None,
    text: str,
    mend: str,
) -> None:
    @contextmanager
    def connect_to(config: PoolConfig) -> Iterator[Any]:
        yield SimpleNamespace(facts=lambda: dataclasses.replace(FACTS, **about))

    monkeypatch.setattr(flask_mysqlpool.cli.check, "connect_to", connect_to)
    config = PoolConfig.from_mapping({"HOST": "localhost", "USER": "shop"})

    *_, capacity = examine(config, workers)

    assert text in capacity.text
    assert capacity.fix == mend
    assert capacity.level == ("failure" if mend else "ok")


# The group


def test_the_group_can_have_another_name_or_none(make_app: MakeApp) -> None:
    assert "db" in make_app(CLI="db").cli.commands
    assert "mysqlpool" not in make_app(CLI=False).cli.commands


def test_the_second_extension_object_adds_its_pools_but_no_second_group(
    make_app: MakeApp,
) -> None:
    app = make_app()
    second = MySQLPool(app)
    with app.app_context():
        second.connection().close()
    until(lambda: "default-2" in report(app)["pools"])
    until(lambda: report(app)["pools"]["default-2"]["totals"]["idle"] == 1)

    assert report(app)["pools"]["default"]["totals"]["workers"] == 0
    with app.app_context():
        second.close_pool()
