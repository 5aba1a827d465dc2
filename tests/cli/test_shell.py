"""``flask mysqlpool shell``: the clients of both servers, as the pool would log in."""

from __future__ import annotations

import os
import pty
import shutil
import ssl
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import clients
import pytest
from certificates import Authority
from conftest import MakeApp, Sql, local_server, until
from flask import Flask
from flask.testing import FlaskCliRunner

from flask_mysqlpool import MySQLPool, PoolConfig
from flask_mysqlpool.cli.shell import option_file
from flask_mysqlpool.testing import LocalServer
from flask_mysqlpool.workers.mysql_server import Login, connect_to

#: Programs that do something else than to be the client: the shell of a wrapper.
SYSTEM = "/usr/bin:/bin"

#: A login file of MySQL, by its mysql_config_editor: the user "wronguser" at 10.9.9.9.
LOGIN_FILE = (
    "AAAAAAcBHwoCARgJBBYcFAQdHgoIARsYEAAAAMZER6rJL8+xzXF0L2plZekgAAAAmFTDbqnhhA5d1C"
    "UYg8t4ZYY6NnRjFLCVGvV+QvhxM68gAAAAJ8TJ7jjTAzheYnql+fQeuUJNSZn2s45lj+B9tV9pAyY="
)

SITE = """
from flask import Flask
from flask_mysqlpool import MySQLPool

app = Flask("shop")
app.config.update({settings!r})
db = MySQLPool(app)
"""


@pytest.fixture(params=["mariadb", "mysql"])
def client(request: pytest.FixtureRequest, engine: str, tmp_path: Path) -> Path:
    """The folder of a client that can log in to this server."""
    if (engine, request.param) == ("mariadb", "mysql"):
        pytest.skip("MySQL's client has no plugin for the passwords of MariaDB")
    return clients.folder_of(request.param, tmp_path / "client")


@pytest.fixture
def flask_shell(
    server: LocalServer, client: Path, tmp_path: Path
) -> Callable[..., tuple[list[str], dict[str, str]]]:
    """The command line of ``shell`` for an app with these settings; its environment.

    The user's own option and login files, and the environment, name another account.
    """
    home = tmp_path / "home"
    home.mkdir()
    (home / ".my.cnf").write_text("[client]\nuser=somebody\npassword=else\n")
    (home / ".mylogin.cnf").write_bytes(b64decode(LOGIN_FILE))
    (home / ".mylogin.cnf").chmod(0o600)

    def write(**settings: Any) -> tuple[list[str], dict[str, str]]:
        given = {"URL": server.url, "STATUS_DIR": False} | settings
        config = {f"MYSQLPOOL_{name}": value for name, value in given.items()}
        (tmp_path / "shop.py").write_text(SITE.format(settings=config))
        command = [sys.executable, "-m", "flask", "--app", str(tmp_path / "shop.py")]
        own = {"PATH": f"{client}:{SYSTEM}", "HOME": str(home), "MYSQL_PWD": "else"}
        own |= {"TMPDIR": str(tmp_path), "TERM": "dumb"}
        return [*command, "mysqlpool", "shell"], {**os.environ, **own}

    return write


def run(app: Flask, *arguments: str) -> tuple[int, str]:
    result = FlaskCliRunner(app).invoke(args=["mysqlpool", *arguments])
    assert isinstance(result.exception, (SystemExit, type(None)))
    return result.exit_code, result.output


def ask(client: Path, config: PoolConfig, statement: str) -> str:
    """What the client prints that logs in as the pool of this config does."""
    with connect_to(config) as server:
        login = server.login()
    return answer(client, config, login, statement)


def answer(client: Path, config: PoolConfig, login: Login, statement: str) -> str:
    """What the client prints, also as an error, with this option file alone."""
    [program] = client.iterdir()
    file = client.parent / "options"
    file.write_bytes(option_file(config, login, program.name == "mariadb"))
    done = subprocess.run(
        [program, f"--defaults-file={file}", "-N", "-e", statement],
        env={"PATH": SYSTEM, "MYSQL_PWD": "else"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout.strip()


def test_statements_from_a_pipe_are_executed_as_the_app_would(
    flask_shell: Callable[..., Any], server: LocalServer
) -> None:
    places = f"127.0.0.1:1,{server.host}:{server.port}"
    command, environment = flask_shell(HOST=places, CHARSET="latin1")
    asked = "SELECT USER(), DATABASE(), @@character_set_client; SELECT * FROM missing;"

    done = subprocess.run(
        command, input=asked, env=environment, text=True, capture_output=True
    )

    [_, row] = done.stdout.splitlines()
    user, database, charset = row.split("\t")
    assert user.startswith("app@") and (database, charset) == ("test", "latin1")
    assert "ERROR 1146" in done.stderr and done.returncode == 1


def test_no_other_process_can_read_the_password(
    flask_shell: Callable[..., Any], server: LocalServer, tmp_path: Path
) -> None:
    command, environment = flask_shell()
    pipe = subprocess.PIPE
    shell = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe)
    about = Path(f"/proc/{shell.pid}")
    until(lambda: b"--defaults-file=" in about.joinpath("cmdline").read_bytes())
    arguments = about.joinpath("cmdline").read_bytes()
    variables = about.joinpath("environ").read_bytes()
    # The app has the URL, and so has what Python compiles of it.
    files = [path for path in tmp_path.rglob("*") if not path.name.startswith("shop.")]
    kept = [path for path in files if path.is_file() and _has(path, server.password)]
    printed, _ = shell.communicate(b"SELECT 6 * 7;\n")

    assert b"--defaults-file=/dev/fd/" in arguments
    secret = server.password.encode()
    assert secret not in arguments and secret not in variables
    assert kept == []
    assert (printed, shell.returncode) == (b"6 * 7\n42\n", 0)


def _has(path: Path, text: str) -> bool:
    return text.encode() in path.read_bytes()


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """One end of a terminal, and the path of the other."""
    ours, theirs = pty.openpty()
    yield ours, os.ttyname(theirs)
    os.close(ours)
    os.close(theirs)


#: Starts a command with a terminal of its own, where Ctrl-C is a signal.
AT_TERMINAL = """
import os, sys
os.setsid()
terminal = os.open(sys.argv[1], os.O_RDWR)
for number in range(3):
    os.dup2(terminal, number)
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_ctrl_c_at_a_terminal_belongs_to_the_client(
    flask_shell: Callable[..., Any], terminal: tuple[int, str], sql: Sql
) -> None:
    command, environment = flask_shell()
    ours, path = terminal
    started = [sys.executable, "-c", AT_TERMINAL, path, *command]
    shell = subprocess.Popen(started, env=environment)
    sleeping = "SELECT 1 FROM information_schema.processlist WHERE info LIKE %s"

    os.write(ours, b"SELECT SLEEP(100);\n")
    until(lambda: sql(sleeping, "SELECT SLEEP(100)%"))
    os.write(ours, b"\x03")
    until(lambda: not sql(sleeping, "SELECT SLEEP(100)%"))
    os.write(ours, b"SELECT CONCAT('still ', 'here');\nexit\n")
    printed = b""
    while b"still here" not in printed:
        printed += os.read(ours, 1 << 16)

    assert shell.wait(timeout=30) == 0


PASSWORDS = (
    *(
        "#",
        "a # b",
        ";",
        "'",
        '"',
        "\"'",
        "'quoted'",
        '"quoted"',
        "\\",
        "\\s\\n",
        "a\\",
    ),
    *(" begin", "end ", "é€😀", "=", "[client]", "!include x", "$HOME %s", "tab\there"),
    *("line\nline", "x" * 200),
)


def test_every_password_comes_through_the_option_file_unchanged(
    client: Path, server: LocalServer, sql: Sql
) -> None:
    sql("CREATE USER quoted@'127.0.0.1'")
    for password in PASSWORDS:
        sql("ALTER USER quoted@'127.0.0.1' IDENTIFIED BY %s", password)
        given = {"HOST": server.host, "PORT": server.port, "USER": "quoted"}
        config = PoolConfig.from_mapping({**given, "PASSWORD": partial(str, password)})

        assert ask(client, config, "SELECT 42") == "42", password
    sql("DROP USER quoted@'127.0.0.1'")


def test_names_and_places_come_through_the_option_file_unchanged(
    client: Path, server: LocalServer, sql: Sql
) -> None:
    user, database = "o'ne \"#\\ ü", "d#\"\\ é'"
    sql("CREATE USER %s@'localhost' IDENTIFIED BY 'x'", user)
    sql(f"CREATE DATABASE `{database}`")
    sql("GRANT ALL ON *.* TO %s@'localhost'", user)
    own = {"USER": user, "PASSWORD": "x", "DATABASE": database}
    config = PoolConfig.from_mapping({"UNIX_SOCKET": server.unix_socket, **own})

    found = ask(client, config, "SELECT HEX(USER()), HEX(DATABASE())").split("\t")
    sql("DROP USER %s@'localhost'", user)
    sql(f"DROP DATABASE `{database}`")

    assert [bytes.fromhex(name).decode() for name in found] == [
        *(f"{user}@localhost", database)
    ]


@pytest.fixture(scope="module")
def with_tls(engine: str, authority: Authority) -> Iterator[LocalServer]:
    with local_server(engine) as server:
        authority.certify(server)
        yield server


def test_the_client_verifies_what_ssl_mode_says(
    client: Path, with_tls: LocalServer, authority: Authority, tmp_path: Path
) -> None:
    def cipher(**settings: Any) -> str:
        config = PoolConfig.from_mapping({"URL": with_tls.url, **settings})
        return ask(client, config, "SHOW STATUS LIKE 'Ssl_cipher'").partition("\t")[2]

    certificate, key = authority.issue("client")
    theirs = {"SSL_CERT": str(certificate), "SSL_KEY": str(key)}
    ca = str(authority.ca)

    assert cipher()
    assert cipher(SSL_MODE="REQUIRED") and cipher(SSL_MODE="REQUIRED", **theirs)
    assert cipher(SSL_MODE="VERIFY_CA", SSL_CA=ca)
    assert cipher(SSL_MODE="VERIFY_IDENTITY", SSL_CA=ca, **theirs)
    assert cipher(SSL_MODE="DISABLED") == ""

    # The client verifies by itself: it refuses another host name, and authority.
    shutil.copy(ca, tmp_path / "ca.pem")
    own = {"SSL_MODE": "VERIFY_IDENTITY", "SSL_CA": str(tmp_path / "ca.pem")}
    config = PoolConfig.from_mapping({"URL": with_tls.url, **own})
    with connect_to(config) as server:
        login = server.login()
    assert "2026" in answer(
        client, config, login._replace(host="localhost"), "SELECT 1"
    )
    shutil.copy(Authority(tmp_path / "other").ca, tmp_path / "ca.pem")
    assert "2026" in answer(client, config, login, "SELECT 1")


# What is refused, in one sentence


@pytest.mark.one_engine
def test_without_a_client_it_says_what_to_install(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    code, output = run(make_app(), "shell")

    assert code == 1
    assert output.startswith("Error: neither 'mariadb' nor 'mysql' is in the PATH")
    assert "apt install mariadb-client" in output and output.count("\n") == 1


@pytest.mark.one_engine
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"PORT": 1}, "2003: Can't connect to MySQL server on '127.0.0.1'"),
        ({"PASSWORD": "wrong"}, "-> correct USER and PASSWORD"),
        ({"CONNECT": lambda *_: None}, "CONNECT is Python"),
        ({"SSL_CONTEXT": ssl.create_default_context()}, "SSL_CONTEXT is Python"),
        ({"PASSWORD": "x" * 5000}, "1045"),
    ],
)
def test_what_prevents_a_login_is_one_line(
    make_app: MakeApp, settings: dict[str, Any], text: str
) -> None:
    code, output = run(make_app(**settings), "shell")

    assert code == 1
    assert output.startswith("Error: ") and output.count("\n") == 1
    assert text in output


@pytest.mark.one_engine
def test_what_no_option_file_can_hold_is_refused_and_not_shown(
    server: LocalServer,
) -> None:
    config = PoolConfig.from_mapping({"URL": server.url})
    with connect_to(config) as connection:
        login = connection.login()

    for password in b"secret" * 1000, b"sec\0ret":
        with pytest.raises(Exception, match="the password cannot be in") as refused:
            option_file(config, login._replace(password=password), True)
        assert "secret" not in str(refused.value)


@pytest.mark.one_engine
def test_of_several_pools_it_asks_for_one(
    make_app: MakeApp, server: LocalServer
) -> None:
    binds = {name: {"URL": server.url} for name in ("a", "b")}
    app = Flask("shop")
    app.config.update(MYSQLPOOL_BINDS=binds, MYSQLPOOL_STATUS_DIR=False)
    MySQLPool(app)

    code, output = run(app, "shell")

    assert code == 2
    assert "choose a pool by --bind: 'a', 'b'" in output
