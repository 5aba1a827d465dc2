"""CONNECT_ARGS with an option file connect to where PyMySQL alone does."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pymysql
import pytest
from conftest import MakeApp

from flask_mysqlpool import ConfigError, Pool, PoolConfig, get_db
from flask_mysqlpool.config import option_file
from flask_mysqlpool.config.settings import AppConfig
from flask_mysqlpool.testing import LocalServer

SECRET = "geheim"

File = Callable[..., str]


@pytest.fixture
def file(tmp_path: Path) -> File:
    def write(text: str, name: str = "my.cnf") -> str:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(stat.S_IRUSR)
        return str(path)

    return write


def config(**settings: Any) -> PoolConfig:
    return PoolConfig.from_mapping(settings)


def options(path: str, group: str | None = None) -> dict[str, Any]:
    arguments = {"read_default_file": path}
    return arguments if group is None else arguments | {"read_default_group": group}


#: Options, and what of a connection they become.
LINES = {
    "host=db.example": "host",
    "port=3310": "port",
    "user=ann": "user",
    "password=geheim": "password",
    "password='ge heim'": "password",
    'password="#x"': "password",
    "database=shop": "db",
    "socket=/run/my.sock": "unix_socket",
    "bind-address=127.0.0.2": "bind_address",
    "bind_address=127.0.0.2": "bind_address",
    "default-character-set=latin1": "charset",
    "default_character_set = utf8": "charset",
    "HOST = db.example": "host",
    "host": "host",
    "host=": "host",
    "quick": "host",
    "# host=x": "host",
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("group", [None, "shop"])
def test_each_option_is_what_it_is_to_pymysql(
    file: File, line: str, group: str | None
) -> None:
    path = file(f"[mysqld]\nport=1\n[{group or 'client'}]\n{line}\n[other]\nuser=x\n")
    arguments = options(path, group)
    bare: Any = pymysql.connect(**arguments, defer_connect=True, ssl_disabled=True)
    direct = PoolConfig(connect_args=arguments)
    read = config(CONNECT_ARGS=arguments)

    assert direct == read
    ours = Pool(read)._connector._arguments(read.places[0])
    mine: Any = pymysql.connections.Connection(**ours)
    assert str(read.password or "").encode() == bare.password
    for name in {*LINES.values()} - {"password"}:
        assert getattr(mine, name) == getattr(bare, name), name


def test_the_pool_connects_to_where_the_file_says(
    file: File, server: LocalServer, make_app: MakeApp
) -> None:
    text = f"[client]\nhost={server.host}\nport={server.port}\nuser={server.user}\n"
    path = file(text + f"password={server.password}\ndatabase=test\n")
    app = make_app(URL=None, CONNECT_ARGS=options(path))
    with app.app_context(), get_db() as connection:
        assert (connection.host, connection.port) == (server.host, server.port)
        with connection.cursor() as cursor:
            cursor.execute("SELECT DATABASE()")
            assert cursor.fetchone() == ("test",)
    for command in ("status", "check"):
        output = app.test_cli_runner().invoke(args=["mysqlpool", command]).output
        assert f"{server.host}:{server.port}/test" in output
        assert server.password not in output


def test_a_file_is_found_in_the_home_folder(
    file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file("[client]\nhost=db\n")
    for variable in "HOME", "USERPROFILE":
        monkeypatch.setenv(variable, str(tmp_path))

    assert config(CONNECT_ARGS=options("~/my.cnf")).host == "db"


def test_a_group_alone_is_of_the_file_of_the_system(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file("[client]\nhost=wrong\n[shop]\nhost=db\n")
    files = {"c:\\my.ini": path, "/etc/my.cnf": path}
    monkeypatch.setattr(option_file, "open", lambda p: open(files[p]), raising=False)
    got = config(CONNECT_ARGS={"read_default_group": "shop"})

    assert got.host == "db"
    assert not got.connect_args


EVERYTHING = (
    "[client]\nhost=file\nport=1\nuser=f\npassword=p\ndatabase=d\nsocket=/f\n"
    "default-character-set=latin1\n"
)


@pytest.mark.parametrize(
    ("settings", "server", "account"),
    [
        ({}, "/f/d", ("f", "p", "latin1")),
        ({"HOST": "db"}, "db:1/d", ("f", "p", "latin1")),
        ({"HOST": "localhost"}, "localhost:1/d", ("f", "p", "latin1")),
        ({"HOST": "db", "PORT": 3306}, "db:3306/d", ("f", "p", "latin1")),
        ({"UNIX_SOCKET": "/s"}, "/s/d", ("f", "p", "latin1")),
        ({"URL": "mysql://db"}, "db:3306/d", ("f", "p", "latin1")),
        ({"URL": "mysql://u:q@db/x?charset=ascii"}, "db:3306/x", ("u", "q", "ascii")),
        ({"USER": "u", "PASSWORD": "q"}, "/f/d", ("u", "q", "latin1")),
        ({"DATABASE": "x", "CHARSET": "utf8mb4"}, "/f/x", ("f", "p", "utf8mb4")),
    ],
)
def test_a_setting_wins_over_the_file(
    file: File, settings: dict[str, Any], server: str, account: tuple[str, str, str]
) -> None:
    got = config(**settings, CONNECT_ARGS=options(file(EVERYTHING)))

    assert got.server == server
    assert (got.user, got.password, got.charset) == account
    assert not got.connect_args


@pytest.mark.parametrize(
    ("settings", "server", "account"),
    [
        ({}, "/f/d", ("f", "p")),
        ({"URL": "mysql://u@db/x"}, "db:3306/x", ("u", None)),
        ({"HOST": "db"}, "db:1/d", ("f", "p")),
        ({"USER": "u"}, "/f/d", ("u", None)),
        ({"CONNECT_ARGS": {"local_infile": True}}, "/f/d", ("f", "p")),
    ],
)
def test_a_bind_inherits_of_the_file_what_it_would_inherit_of_settings(
    file: File, settings: dict[str, Any], server: str, account: tuple[str, str | None]
) -> None:
    given = {
        "MYSQLPOOL_CONNECT_ARGS": options(file(EVERYTHING)),
        "MYSQLPOOL_BINDS": {"b": settings},
    }
    bind = AppConfig.from_mapping(given, name="shop").pools["b"]

    assert bind.server == server
    assert (bind.user, bind.password) == account


def test_the_file_of_a_bind_wins_over_what_it_would_inherit(file: File) -> None:
    path = file("[client]\nhost=file\nuser=f\npassword=p\n")
    given = {
        "MYSQLPOOL_URL": f"mysql://shop:{SECRET}@db:3307/shop",
        "MYSQLPOOL_BINDS": {"b": {"CONNECT_ARGS": options(path)}},
    }
    pools = AppConfig.from_mapping(given, name="shop").pools

    assert pools["default"].server == "db:3307/shop"
    assert pools["b"].host == "file"
    assert (pools["b"].user, pools["b"].password) == ("f", "p")


@pytest.mark.parametrize(
    ("lines", "settings", "mode"),
    [
        ("ssl-ca={}", {}, "VERIFY_IDENTITY"),
        ("ssl-cert={}\nssl-key={}", {}, "REQUIRED"),
        ("ssl-ca={}", {"SSL_MODE": "VERIFY_CA"}, "VERIFY_CA"),
        ("ssl-ca={}", {"SSL_MODE": "DISABLED"}, "DISABLED"),
        ("ssl-ca={}", {"SSL_MODE": "REQUIRED"}, "REQUIRED"),
        ("ssl-ca={}\nssl-mode=VERIFY_CA", {}, "VERIFY_CA"),
        ("ssl_mode=verify_identity", {}, "VERIFY_IDENTITY"),
        ("ssl-mode=REQUIRED", {"SSL_MODE": "PREFERRED"}, "PREFERRED"),
        ("ssl-verify-server-cert", {}, "VERIFY_IDENTITY"),
        ("ssl_verify_server_cert=on\nssl", {}, "VERIFY_IDENTITY"),
        ("ssl-verify-server-cert=0", {}, "PREFERRED"),
        ("ssl-verify-server-cert\nssl-mode=REQUIRED", {}, "REQUIRED"),
        ("ssl", {}, "REQUIRED"),
        ("ssl=off", {}, "PREFERRED"),
        ("ssl\nssl-ca={}", {}, "VERIFY_IDENTITY"),
        ("", {}, "PREFERRED"),
    ],
)
def test_tls_in_the_file_is_as_strict_as_to_pymysql(
    file: File, lines: str, settings: dict[str, Any], mode: str
) -> None:
    ca = file("", "ca.pem")
    got = config(
        **settings,
        CONNECT_ARGS=options(file(f"[client]\nhost=db\n{lines.replace('{}', ca)}\n")),
    )

    assert got.ssl_mode == mode
    unused = mode in ("DISABLED", "REQUIRED")
    assert got.ssl_ca == (ca if "ssl-ca" in lines and not unused else None)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f"password={SECRET}\n", "malformed: MissingSectionHeaderError"),
        (f"[client]\npassword={SECRET}\npassword={SECRET}\n", "malformed: Dupl"),
        (
            f"[client]\nport={SECRET}\n",
            "(read_default_file: port) must be a whole number",
        ),
        ("[client]\nssl-ca=/none\n", "(read_default_file: ssl-ca) must name a file"),
        (
            f"[client]\nssl-ca={__file__}\nssl-mode=REQUIRED\n",
            "(read_default_file: ssl-ca) must be left out where",
        ),
        *(
            (f"[client]\n{name}=x\n", f"read_default_file with {name}: leave it out")
            for name in ("ssl-cipher", "ssl-crl", "tls-version", "ssl-fp")
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_a_fault_without_its_content(
    file: File, text: str, what: str
) -> None:
    with pytest.raises(ConfigError) as info:
        config(CONNECT_ARGS=options(file(text)))

    [fault] = info.value.faults
    assert what in fault
    assert SECRET not in fault


def test_a_file_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    for path in (str(tmp_path / "none"), 5):
        with pytest.raises(ConfigError, match="CONNECT_ARGS .*read_default_file"):
            config(CONNECT_ARGS={"read_default_file": path})
