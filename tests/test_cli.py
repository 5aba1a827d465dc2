"""``flask mysqlpool …``, as typed; the worker is this process itself."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeApp, MakeServer, until
from flask import Flask
from flask.testing import FlaskCliRunner

from flask_mysqlpool import MySQLPool, PooledConnection, PoolTimeout
from flask_mysqlpool.board import Board
from flask_mysqlpool.testing import LocalServer

Sql = Callable[..., tuple[tuple[Any, ...], ...]]

#: Of one worker, and of one connection, as the design has it.
FIELDS = (
    *("pid", "generation", "size", "idle", "in_use", "connecting", "waiting"),
    *("checkouts", "timeouts", "opened", "discarded", "updated", "connections"),
)
CONNECTION_FIELDS = {"thread_id", "state", "for", "endpoint", "age"}


def extension(app: Flask) -> MySQLPool:
    [db] = app.extensions["mysqlpool"]
    assert isinstance(db, MySQLPool)
    return db


def connected(app: Flask) -> PooledConnection:
    with app.app_context():
        return extension(app).connection()


def run(app: Flask, *arguments: str) -> tuple[int, str]:
    result = FlaskCliRunner(app).invoke(args=["mysqlpool", *arguments])
    assert "Traceback" not in result.output
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

    assert code == 2
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
    assert run(app, "status")[0] == 1


def test_a_bind_that_is_not_configured_lists_those_that_are(make_app: MakeApp) -> None:
    for command in ("status", "reset", "pause", "resume", "check"):
        code, output = run(make_app(), command, "--bind", "reports")

        assert code == 2
        assert "no bind is called 'reports'; configured: 'default'" in output


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
    assert "claimed by no worker here" in output
    assert connection.returned


def connection_id(pool: dict[str, Any]) -> int:
    [worker] = pool["workers"]
    return int(worker["connections"][0]["thread_id"])


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
    assert code in (0, 1)


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


def test_a_folder_that_others_can_write_to_is_refused_and_requests_go_on(
    make_app: MakeApp, tmp_path: Path
) -> None:
    app = make_app()
    (tmp_path / "board").mkdir()
    (tmp_path / "board").chmod(0o777)

    connected(app).close()
    code, output = run(app, "status")

    assert code == 2
    assert "the workers cannot be seen" in output
    assert "can be written to by others" in output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_status_as_another_user_says_why_it_sees_nothing(
    make_app: MakeApp, tmp_path: Path
) -> None:
    app = make_app()
    connected(app).close()
    until(lambda: Board(tmp_path / "board").read().sheets)
    os.chmod(tmp_path, 0o755)
    os.chown(tmp_path / "board", 12345, 12345)
    os.seteuid(54321)
    try:
        code, output = run(app, "status")
    finally:
        os.seteuid(0)

    assert code == 2
    assert "Permission denied" in output or "belongs to" in output


def test_without_a_folder_status_says_why_it_sees_nothing(make_app: MakeApp) -> None:
    app = make_app(STATUS_DIR=False)
    connected(app).close()

    code, output = run(app, "status")
    assert code == 2
    assert "STATUS_DIR is False" in output
    code, output = run(app, "reset", "--yes")
    assert code == 2
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
    assert "1 of 1 worker will follow" in output
    connection.ping()

    threading.Timer(0.3, connection.close).start()
    code, output = run(app, "reset", "--yes", "--wait", "10")
    assert code == 0
    assert output.endswith("default: replaced (1 worker)\n")
    with connected(app) as connection:
        assert connection.thread_id() != before


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


def test_reset_at_a_server_that_is_down_gives_its_reason(make_app: MakeApp) -> None:
    code, output = run(make_app(PORT=1), "reset", "--yes", "--server")

    assert code == 1
    assert "cannot connect to 127.0.0.1:1/test: 2003" in output


def test_reset_with_no_worker_says_so(make_app: MakeApp) -> None:
    code, output = run(make_app(), "reset", "--yes")

    assert code == 2
    assert "No worker of 'shop' is running" in output


# pause and resume


def test_paused_checkouts_wait_until_resume(make_app: MakeApp) -> None:
    app = make_app(TIMEOUT=20)
    connected(app).close()
    until(lambda: totals(app)["idle"] == 1)

    code, output = run(app, "pause", "--wait", "10")
    assert code == 0
    assert output.endswith("default: paused (1 worker)\n")
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

    app = make_app(TIMEOUT=0.3)
    with pytest.raises(PoolTimeout, match="paused"):
        connected(app)
    assert run(app, "resume")[0] == 0
    connected(app).close()


# check


def lines_of(output: str, subject: str) -> str:
    [line] = [line for line in output.splitlines() if f" {subject}: " in line]
    return line


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


def test_check_of_a_server_that_is_down(make_app: MakeApp) -> None:
    code, output = run(make_app(PORT=1), "check")

    assert code == 1
    line = lines_of(output, "connection")
    assert line.startswith("failure") and "2003" in line and "start the server" in line


def test_check_of_a_wrong_password(make_app: MakeApp) -> None:
    code, output = run(make_app(PASSWORD="wrong"), "check")

    assert code == 1
    assert "1045" in lines_of(output, "connection")
    assert "correct USER and PASSWORD" in output


def test_check_finds_limits_that_do_not_fit(
    make_app: MakeApp, make_server: MakeServer
) -> None:
    server = make_server(
        database="test", options=["--wait-timeout=5", "--max-connections=12"]
    )
    code, output = run(make_app(URL=server.url, MAX_SIZE=50), "check")

    assert code == 1
    assert lines_of(output, "wait_timeout").startswith("warning")
    assert "set MAX_IDLE to less than 5" in output
    assert lines_of(output, "capacity").startswith("failure")
    assert "1 worker × MAX_SIZE 50 = 50; max_connections 12" in output


def test_check_of_a_server_that_is_read_only(
    make_app: MakeApp, make_server: MakeServer
) -> None:
    server = make_server(database="test", options=["--read-only=1"])
    code, output = run(make_app(URL=server.url), "check")

    assert code == 0
    assert lines_of(output, "read_only").startswith("warning")


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
