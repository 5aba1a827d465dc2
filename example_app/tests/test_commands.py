from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import loads
from pathlib import Path

import pytest
from flask import Flask

from example_app import create_app
from example_app.database import all_people, db
from example_app.demo import serve as program
from flask_mysqlpool.testing import LocalServer, ServerNotFound

ROOT = Path(program.__file__).parents[2]
NAMES = ["John Bob", "Jane Bob", "Michael Clark"]


def names(app: Flask) -> list[str]:
    with app.app_context():
        return [person.name for person in all_people()]


def test_init_db_twice_gives_the_same_three(bare_app: Flask) -> None:
    for _ in range(2):
        result = bare_app.test_cli_runner().invoke(args=["init-db"])
        assert result.exit_code == 0
        assert result.output == "The table person holds 3 people.\n"
        assert names(bare_app) == NAMES


def test_init_db_keeps_what_was_entered(app: Flask) -> None:
    client = app.test_client()
    client.post("/person/add", json={"first_name": "Ada", "last_name": "King"})
    client.post("/person/1/delete", json={})
    assert app.test_cli_runner().invoke(args=["init-db"]).exit_code == 0
    assert names(app) == ["Jane Bob", "Michael Clark", "Ada King"]


def test_init_db_without_a_server_is_one_line(mysql_server: LocalServer) -> None:
    app = create_app({"MYSQLPOOL_URL": mysql_server.url, "MYSQLPOOL_PORT": 1})
    result = app.test_cli_runner().invoke(args=["init-db"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: 2003: ")
    assert result.output.count("\n") == 1


def test_the_mapping_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLASK_MYSQLPOOL_URL", "mysql://one@127.0.0.1/people")
    monkeypatch.setenv("FLASK_MYSQLPOOL_MAX_SIZE", "3")
    monkeypatch.setenv("FLASK_SECRET_KEY", "from the environment")
    app = create_app({"MYSQLPOOL_MAX_SIZE": 4})
    with app.app_context():
        assert db.pool().config.user == "one"
        assert db.pool().config.max_size == 4
    assert app.secret_key == "from the environment"


def test_each_app_has_a_secret_of_its_own() -> None:
    place = {"MYSQLPOOL_HOST": "db"}
    assert create_app(place).secret_key != create_app(place).secret_key


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "example_app", *arguments]


def environment(url: str | None = None) -> Mapping[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    place = {} if url is None else {"FLASK_MYSQLPOOL_URL": url}
    return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), **place}


@contextmanager
def running(*arguments: str, url: str | None = None) -> Iterator[tuple[str, str]]:
    """Run the program; yield its output and its URL. SIGTERM ends it."""
    process = subprocess.Popen(
        command(*arguments),
        env=environment(url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            printed = ""
            for line in lines:
                printed += line
                if "Ctrl-C" in line:
                    break
            [address, *_] = re.findall(r"(http://\S+)/\n", printed) or [""]
            assert address, process.stderr and process.stderr.read()
            yield printed, address
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=20)
            assert process.returncode == 0
            assert "Traceback" not in errors
            assert "Warning" not in errors
        finally:
            process.kill()


def get(url: str) -> object:
    with urllib.request.urlopen(url, timeout=10) as response:
        return loads(response.read())


def test_the_program_serves_on_its_own_database_until_sigterm() -> None:
    port = free_port()
    with running("--port", str(port)) as (printed, address):
        assert address == f"http://127.0.0.1:{port}"
        assert f"curl {address}/person/all" in printed
        assert f"curl {address}/person/first" in printed
        people = get(f"{address}/person/all")
        assert isinstance(people, list)
        assert people[0] == get(f"{address}/person/first")
        assert [f"{p['first_name']} {p['last_name']}" for p in people] == NAMES
        [database_port] = re.findall(r"on 127\.0\.0\.1:(\d+), thrown away", printed)
        socket.create_connection(("127.0.0.1", int(database_port))).close()
    for gone in (port, int(database_port)):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", gone))


def test_the_program_serves_on_the_database_that_is_given(
    app: Flask, mysql_server: LocalServer
) -> None:
    ada = {"first_name": "Ada", "last_name": "King"}
    app.test_client().post("/person/add", json=ada)
    with running("--port", "0", url=mysql_server.url) as (printed, address):
        people = get(f"{address}/person/all")
        assert isinstance(people, list)
        assert len(people) == 4
        assert mysql_server.password not in printed


def failure(*arguments: str, url: str | None = None) -> str:
    """Return the error of a program that cannot start."""
    done = subprocess.run(
        command(*arguments),
        env=environment(url),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = failure("--port", str(port))
    assert f"port {port}: Address already in use; choose" in message
    assert message.count(str(port)) == 1
    assert "--port" in message


def test_a_host_that_is_not_here() -> None:
    assert "cannot listen on 192.0.2.1" in failure("--host", "192.0.2.1", "--port", "0")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ((r":\d+/", ":1/"), "2003"),
        ((r":[^:@/]+@", ":wrong@"), "1045"),
        ((r"/people$", "/nothing"), "1049"),
    ],
)
def test_a_database_that_cannot_be_used(
    mysql_server: LocalServer, change: tuple[str, str], code: str
) -> None:
    url = re.sub(*change, mysql_server.url)
    assert url != mysql_server.url
    message = failure("--port", "0", url=url)
    assert f" (FLASK_MYSQLPOOL_URL): {code}: " in message
    assert url.rpartition("@")[2] in message
    assert mysql_server.password not in message


def test_a_setting_that_is_wrong() -> None:
    message = failure("--port", "0", url="postgresql://localhost/")
    assert "MYSQLPOOL_URL must begin with mysql://" in message


@pytest.mark.parametrize("port", ["65536", "-1", "http"])
def test_a_port_that_is_none(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        program.parse(["--port", port])
    assert stopped.value.code == 2
    assert "--port" in capsys.readouterr().err


def test_without_a_mariadb_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(**_: object) -> LocalServer:
        raise ServerNotFound("no MariaDB server: apt-get install mariadb-server")

    monkeypatch.setattr(program, "LocalServer", missing)
    with pytest.raises(SystemExit, match="apt-get install"), program.database():
        pass


def test_a_host_in_the_environment_means_that_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLASK_MYSQLPOOL_HOST", "db.example")
    with program.database() as (config, _):
        assert config == {}


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
    ],
)
def test_the_url_can_be_opened(host: str, url: str) -> None:
    assert program.url_of(host, 80) == url
