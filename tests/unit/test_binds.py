"""Several databases in one app, and other kinds of pools."""

from __future__ import annotations

import json
import ssl
from contextlib import suppress
from itertools import product
from typing import Any

import pymysql.err
import pytest
from conftest import MakeApp, MakePool
from flask import Flask
from pymysql.cursors import Cursor, DictCursor

from flask_mysqlpool import (
    ConfigError,
    MySQLPool,
    Pool,
    PoolConfig,
    PooledConnection,
    PoolTimeout,
    close_db,
    get_db,
)
from flask_mysqlpool.config.settings import AppConfig
from flask_mysqlpool.pool.pool import NullPool
from flask_mysqlpool.testing import LocalServer

SECRET = "geheim"
CONTEXT = ssl.create_default_context()


def read(**settings: Any) -> dict[str, PoolConfig]:
    given = {f"MYSQLPOOL_{key}": value for key, value in settings.items()}
    return dict(AppConfig.from_mapping(given, name="shop").pools)


def faults(**settings: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as info:
        read(**settings)
    return info.value.faults


def test_a_bind_inherits_what_it_leaves_out() -> None:
    pools = read(
        HOST="db",
        PORT=3307,
        USER="shop",
        PASSWORD=SECRET,
        MAX_SIZE=7,
        AUTOCOMMIT=True,
        BINDS={"reports": {"DATABASE": "reports", "max_size": 2}},
    )

    assert list(pools) == ["default", "reports"]
    reports = pools["reports"]
    assert reports.server == "db:3307/reports"
    assert (reports.user, reports.password) == ("shop", SECRET)
    assert (reports.max_size, reports.autocommit) == (2, True)
    assert [pool.name for pool in pools.values()] == ["shop", "shop/reports"]
    assert pools["default"].max_size == 7


@pytest.mark.parametrize(
    ("settings", "server", "account"),
    [
        ({"URL": "mysql://db2/x"}, "db2:3306/x", ("shop", SECRET)),
        ({"URL": "mysql://other@db2/x"}, "db2:3306/x", ("other", None)),
        ({"HOST": "db2"}, "db2:3307/shop", ("shop", SECRET)),
        ({"PORT": 1}, "db:1/shop", ("shop", SECRET)),
        ({"USER": "other"}, "/s/shop", ("other", None)),
        ({"UNIX_SOCKET": None}, "db:3307/shop", ("shop", SECRET)),
        ({"UNIX_SOCKET": "/t"}, "/t/shop", ("shop", SECRET)),
        ({"DATABASE": "x"}, "/s/x", ("shop", SECRET)),
        ({"URL": "mysql:///x", "UNIX_SOCKET": "/t"}, "/t/x", ("shop", SECRET)),
    ],
)
def test_what_was_meant_for_another_server_or_account_is_not_inherited(
    settings: dict[str, Any], server: str, account: tuple[str, str | None]
) -> None:
    reports = read(
        URL=f"mysql://shop:{SECRET}@db:3307/shop",
        UNIX_SOCKET="/s",
        BINDS={"reports": settings},
    )["reports"]

    assert reports.server == server
    assert (reports.user, reports.password) == account


def test_a_bind_without_tls_inherits_no_files_for_it(tmp_path: Any) -> None:
    ca = tmp_path / "ca.pem"
    ca.touch()

    pools = read(HOST="db", SSL_CA=ca, BINDS={"local": {"SSL_MODE": "disabled"}})

    assert pools["local"].ssl_ca is None
    assert pools["default"].ssl_ca == str(ca)


@pytest.mark.parametrize(
    ("default", "own", "setting", "value"),
    [
        ({"CURSORCLASS": "DictCursor"}, {}, "cursorclass", Cursor),
        ({"CURSORCLASS": "DictCursor", "READERS": "b"}, {}, "cursorclass", DictCursor),
        ({"COLLATION": "utf8mb4_bin"}, {"CHARSET": "latin1"}, "collation", None),
        ({"COLLATION": "utf8mb4_bin"}, {}, "collation", "utf8mb4_bin"),
        ({"HOST": "a,b"}, {"UNIX_SOCKET": "/s"}, "host", "localhost"),
        ({"MAX_LAG": 5, "TARGET": "replica"}, {"TARGET": "primary"}, "max_lag", None),
        (
            {"MAX_LAG": 5, "TARGET": "replica"},
            {"URL": "mysql://db2?target=primary"},
            "max_lag",
            None,
        ),
        ({"MAX_LAG": 5, "TARGET": "replica"}, {}, "max_lag", 5.0),
        ({"CONNECT": print}, {"URL": "mysql://db2"}, "connect", print),
        ({"CONNECT": print}, {"CONNECT": None}, "connect", None),
        ({"CONNECT": print}, {"UNIX_SOCKET": "/s"}, "connect", None),
        ({"UNIX_SOCKET": "/s"}, {"CONNECT": print}, "unix_socket", None),
        ({"SSL_CONTEXT": CONTEXT}, {}, "ssl_context", CONTEXT),
        ({"SSL_CONTEXT": CONTEXT}, {"SSL_MODE": "DISABLED"}, "ssl_context", None),
        ({"SSL_CONTEXT": CONTEXT}, {"SSL_CA": __file__}, "ssl_context", None),
        ({"SSL_CA": __file__}, {"SSL_CONTEXT": CONTEXT}, "ssl_ca", None),
        ({"SSL_CERT": __file__, "SSL_KEY": __file__}, {}, "ssl_key", __file__),
        (
            {"SSL_CERT": __file__, "SSL_KEY": __file__},
            {"SSL_CERT": __file__},
            "ssl_key",
            None,
        ),
    ],
)
def test_no_half_of_a_pair_of_settings_is_inherited(
    default: dict[str, Any], own: dict[str, Any], setting: str, value: object
) -> None:
    pools = read(**({"HOST": "db"} | default), BINDS={"b": own})

    assert getattr(pools["b"], setting) == value


def test_a_url_that_is_none_is_a_fault_of_its_bind() -> None:
    url = f"mysql://shop:{SECRET}@db:3307/shop"

    [fault] = faults(URL=url, BINDS={"reports": {"URL": None}})

    assert fault.startswith('MYSQLPOOL_BINDS["reports"]["URL"] must be a URL')


@pytest.mark.parametrize(
    "key", ["URL", "USER", "SSL_CA", "SSL_CERT", "SSL_KEY", "SSL_CONTEXT"]
)
def test_none_in_a_bind_weakens_nothing_that_it_would_inherit(key: str) -> None:
    default = {"HOST": "db", "USER": "u", "PASSWORD": SECRET, "SSL_CA": __file__}

    [fault] = faults(**default, BINDS={"b": {"HOST": "other", key: None}})

    assert fault.startswith(f'MYSQLPOOL_BINDS["b"]["{key}"] must be a ')


def test_none_for_a_socket_sends_no_bind_to_a_host_that_nothing_names() -> None:
    default = {"UNIX_SOCKET": "/s", "USER": "u", "PASSWORD": SECRET}

    [fault] = faults(**default, BINDS={"b": {"UNIX_SOCKET": None}})

    assert fault.startswith('MYSQLPOOL_BINDS["b"]["UNIX_SOCKET"] must be a path')


@pytest.mark.parametrize(
    "url", ["mysql:///x", "mysql://", "mysql://:@db2/x", "mysql://@/", "mysql://u:p@/x"]
)
def test_a_url_of_empty_variables_sends_no_bind_elsewhere(url: str) -> None:
    default = {"HOST": "db", "USER": "shop", "PASSWORD": SECRET}

    [fault] = faults(**default, BINDS={"b": {"URL": url}})

    assert fault.startswith('MYSQLPOOL_BINDS["b"]["URL"] must name a server')


@pytest.mark.parametrize("mode", ["ssl-mode", "ssl_mode"])
def test_a_mode_in_the_url_of_a_bind_is_not_inherited(mode: str) -> None:
    bind = {"URL": f"mysql://u@x/d?{mode}=REQUIRED"}

    for inherited in {"SSL_MODE": "PREFERRED"}, {"SSL_CA": __file__}, {}:
        pools = read(HOST="db", **inherited, BINDS={"b": bind})
        assert (pools["b"].ssl_mode, pools["b"].ssl_ca) == ("REQUIRED", None)


@pytest.mark.parametrize(
    ("default", "own", "mode"),
    [
        ({"SSL_CA": __file__}, {}, "VERIFY_CA"),
        ({"SSL_CA": __file__}, {"UNIX_SOCKET": "/s"}, "VERIFY_CA"),
        ({"SSL_CERT": __file__}, {"SSL_CA": __file__}, "VERIFY_CA"),
        ({"SSL_CA": __file__}, {"SSL_MODE": "REQUIRED"}, "REQUIRED"),
        ({"SSL_CA": __file__}, {"SSL_MODE": "VERIFY_IDENTITY"}, "VERIFY_IDENTITY"),
        ({}, {"SSL_CA": __file__}, "VERIFY_CA"),
    ],
)
def test_a_bind_verifies_by_the_authority_that_it_has_or_inherits(
    default: dict[str, Any], own: dict[str, Any], mode: str
) -> None:
    pools = read(HOST="db", **default, BINDS={"b": {"HOST": "other"} | own})

    assert pools["b"].ssl_mode == mode


def test_an_authority_in_a_bind_is_a_fault_where_the_inherited_mode_is_lower() -> None:
    bind = {"HOST": "other", "SSL_CA": __file__}

    [fault] = faults(HOST="db", SSL_MODE="REQUIRED", BINDS={"b": bind})

    assert fault.startswith('MYSQLPOOL_BINDS["b"]["SSL_CA"] must be left out where')
    assert "set VERIFY_CA" in fault


#: What a bind may be given, None and the texts of empty variables included.
GIVEN: dict[str, list[Any]] = {
    "URL": [None, "", "mysql://", "mysql:///x", "mysql://db2/x", "mysql://u@/x"],
    "HOST": [None, "", "db2"],
    "UNIX_SOCKET": [None, "", "/s"],
    "USER": [None, "", "u"],
    "PASSWORD": [None, "", "p"],
}
DEFAULTS = [
    {"URL": f"mysql://shop:{SECRET}@db:3307/shop"},
    {"UNIX_SOCKET": "/d", "USER": "shop", "PASSWORD": SECRET},
    {"URL": f"mysql://shop:{SECRET}@db:3307/shop", "UNIX_SOCKET": "/d"},
]


@pytest.mark.parametrize("default", DEFAULTS)
def test_a_bind_goes_nowhere_that_neither_it_nor_the_default_names(
    default: dict[str, Any],
) -> None:
    places, accepted = {"/s", "/d", "db:3307", "db2:3306", "db2:3307"}, 0
    for values in product(*[[..., *values] for values in GIVEN.values()]):
        pairs = zip(GIVEN, values, strict=True)
        bind = {key: value for key, value in pairs if value is not ...}
        with suppress(ConfigError):
            found = read(**default, BINDS={"b": bind})["b"]
            assert found.server.rpartition("/")[0] in places or (
                found.server in places
            ), bind
            assert found.password != SECRET or found.user == "shop", bind
            accepted += 1
    assert accepted > 50


#: How much is asked of a server, from nothing on.
MODES = ["DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"]


def test_each_file_for_tls_that_is_accepted_is_used() -> None:
    needs, accepted = {"SSL_CA": 3, "SSL_CERT": 2}, 0
    either = [{}, *({"SSL_MODE": mode} for mode in MODES)]
    either = [
        mode | dict.fromkeys(files, __file__)
        for mode in either
        for files in ([], ["SSL_CA"], ["SSL_CERT"], [*needs])
    ]
    for default, bind, where in product(
        either, either, [{"HOST": "db2"}, {"UNIX_SOCKET": "/s"}]
    ):
        with suppress(ConfigError):
            pools = read(HOST="db", **default, BINDS={"b": bind | where})
            ranks = {name: MODES.index(pools[name].ssl_mode) for name in pools}
            for name, given in ("default", default), ("b", bind):
                for key, rank in needs.items():
                    assert key not in given or ranks[name] >= rank, (default, bind)
            # Only a mode that was written is less than what the default pool has.
            assert "SSL_MODE" in bind or ranks["b"] >= ranks["default"], (default, bind)
            accepted += bool(default.keys() & needs and bind.keys() & needs)
    assert accepted > 100


def test_binds_alone_are_enough() -> None:
    pools = read(MAX_SIZE=3, BINDS={"a": {"HOST": "x"}, "b": {"URL": "mysql://y"}})

    assert {name: pool.server for name, pool in pools.items()} == {
        "a": "x:3306",
        "b": "y:3306",
    }
    assert pools["a"].max_size == pools["b"].max_size == 3


def test_binds_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    binds = json.dumps({"reports": {"MAX_SIZE": 2}})
    monkeypatch.setenv("FLASK_MYSQLPOOL_BINDS", binds)
    monkeypatch.setenv("FLASK_MYSQLPOOL_HOST", "db")
    monkeypatch.setenv("FLASK_MYSQLPOOL_BINDS__archive__HOST", "old")
    app = Flask("shop")
    app.config.from_prefixed_env()

    pools = AppConfig.from_mapping(app.config, name=app.name).pools

    assert pools["reports"].max_size == 2
    assert pools["archive"].host == "old"


def test_every_fault_of_every_bind_is_named() -> None:
    assert faults(
        HOST="db",
        MIN_SIZE=5,
        TIMEOUT="soon",
        BINDS={
            "reports": {"MAX_SIZE": 2, "maxusage": 3, "PASSWORD": True},
            "jobs": {"MAX_SIZE": "x", "STATUS_DIR": "/x", "URL": SECRET},
        },
    ) == (
        "MYSQLPOOL_TIMEOUT must be seconds, 0 or more, at most 31536000 (got 'soon')",
        'MYSQLPOOL_BINDS["reports"]["maxusage"] is not a setting: write'
        ' MYSQLPOOL_BINDS["reports"]["MAX_USAGE"]',
        'MYSQLPOOL_BINDS["reports"]["PASSWORD"] must be text or a callable, or be left'
        " out for none; in the environment, quote it, as in FLASK_MYSQLPOOL_"
        """BINDS__reports__PASSWORD='"1e10"' (got a value of type bool)""",
        'MYSQLPOOL_MIN_SIZE must be at most MYSQLPOOL_BINDS["reports"]["MAX_SIZE"]'
        " (got 5 and 2)",
        'MYSQLPOOL_BINDS["jobs"]["STATUS_DIR"] is not a setting: write'
        " MYSQLPOOL_STATUS_DIR, which is for the whole app",
        'MYSQLPOOL_BINDS["jobs"]["URL"] must begin with mysql:// or mariadb://, with'
        " no driver's name",
        'MYSQLPOOL_BINDS["jobs"]["MAX_SIZE"] must be a whole number, 1 or more (got'
        " 'x')",
    )


@pytest.mark.parametrize(
    ("binds", "fault"),
    [
        (["reports"], "must be a mapping: {'reports': {'URL': …}, …}"),
        ({"default": {}}, "may not have a bind called 'default'"),
        ({"a/b": {}}, "may not have a bind called 'a/b'"),
        ({1: {}}, "may not have a bind called 1"),
        ({"reports": f"mysql://u:{SECRET}@db"}, "must have a mapping of settings"),
    ],
)
def test_binds_of_another_form_are_refused(binds: Any, fault: str) -> None:
    [text] = faults(HOST="db", BINDS=binds)

    assert text.startswith(f"MYSQLPOOL_BINDS {fault}")
    assert SECRET not in text


def test_readers_that_do_not_exist_are_a_fault_of_the_bind_that_names_them() -> None:
    [fault] = faults(HOST="db", READERS="b", BINDS={"b": {"READERS": "c"}})

    assert fault == (
        'MYSQLPOOL_BINDS["b"]["READERS"] must name one of MYSQLPOOL_BINDS (got \'c\')'
    )


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"URL": "mysql://db", "MAX_HOST_CONNECTIONS": 3}, "MAX_HOST_CONNECTIONS"),
        ({"URL": "mysql://db?max_host_connections=3"}, "URL (max_host_connections)"),
        (
            {"BINDS": {"one": {"URL": "mysql://db", "MAX_HOST_CONNECTIONS": 3}}},
            'BINDS["one"]["MAX_HOST_CONNECTIONS"]',
        ),
        (
            {"BINDS": {"one": {"URL": "mysql://db?max_host_connections=3"}}},
            'BINDS["one"]["URL"] (max_host_connections)',
        ),
        (
            {"MAX_HOST_CONNECTIONS": 3, "BINDS": {"one": {"URL": "mysql://db"}}},
            "MAX_HOST_CONNECTIONS",
        ),
    ],
)
def test_a_limit_of_the_host_needs_the_folder_wherever_it_is_given(
    settings: dict[str, Any], key: str
) -> None:
    fault = f"MYSQLPOOL_{key} needs MYSQLPOOL_STATUS_DIR, which is False"

    assert faults(STATUS_DIR=False, **settings) == (fault,)
    assert read(**settings)


def test_a_bind_that_is_nowhere_is_refused() -> None:
    [fault] = faults(BINDS={"reports": {"MAX_SIZE": 2}})

    assert fault == 'MYSQLPOOL_BINDS["reports"]["URL"] must say where the server is'


# Pools


def connection_id(connection: PooledConnection) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        [[number]] = cursor.fetchall()
        return int(number)


def test_each_bind_has_a_pool_of_its_own(make_app: MakeApp) -> None:
    app = make_app(BINDS={"reports": {"MAX_SIZE": 1}})
    [db] = app.extensions["mysqlpool"]
    assert isinstance(db, MySQLPool)

    with app.app_context():
        one, other = get_db(), get_db("reports")
        assert one is get_db() and other is get_db("reports")
        assert connection_id(one) != connection_id(other)
        assert list(db.pools) == ["default", "reports"]
        with pytest.raises(PoolTimeout, match="^shop/reports: no connection"):
            db.connection("reports", timeout=0.01)
        assert db.stats("reports").timeouts == 1
        assert db.stats().timeouts == 0

        close_db("reports")
        assert other.returned and not one.returned
        db.reset("reports")
        assert db.stats("reports").size == 0

        with pytest.raises(ConfigError, match="no bind is called 'report'; configured"):
            get_db("report")
        with pytest.raises(ConfigError, match="no bind is called 'report'; configured"):
            db.connection("report", readonly=True)
        with db.transaction("reports") as connection:
            assert connection is get_db("reports")
        assert db.run_in_transaction(connection_id, bind="reports")
        reports = db.pool("reports")
    assert reports.stats().in_use == 0


def test_a_bind_can_be_a_database_with_an_account_of_its_own(
    make_app: MakeApp, server: LocalServer
) -> None:
    app = make_app(BINDS={"wrong": {"USER": "nobody", "PASSWORD": "x"}})
    with app.app_context():
        assert connection_id(get_db())
        with pytest.raises(pymysql.err.OperationalError, match="'nobody'@"):
            get_db("wrong")


# Backends


def test_null_connects_for_each_checkout(make_pool: MakePool, sql: Any) -> None:
    pool = NullPool(make_pool(MAX_SIZE=1, TIMEOUT=5).config)
    seen = set()
    for _ in range(3):
        with pool.connection() as connection:
            seen.add(connection_id(connection))
            with pytest.raises(PoolTimeout):
                pool.connection(timeout=0)
        assert pool.stats().size == 0

    assert len(seen) == 3
    assert pool.stats().discarded_by_reason == {"surplus": 3}


class Counting(Pool):
    """A subclass of an app."""

    checkouts = 0

    def connection(self, *args: Any, **kwargs: Any) -> PooledConnection:
        self.checkouts += 1
        return super().connection(*args, **kwargs)


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        ("pooled", Pool),
        ("NULL", NullPool),
        (Counting, Counting),
        (f"{__name__}.Counting", Counting),
        ("flask_mysqlpool.pool.pool.NullPool", NullPool),
    ],
)
def test_the_backend_is_what_the_setting_says(
    make_app: MakeApp, backend: Any, kind: type[Pool]
) -> None:
    app = make_app(BACKEND=backend, BINDS={"plain": {"BACKEND": "pooled"}})
    [db] = app.extensions["mysqlpool"]
    with app.app_context():
        assert type(db.pool()) is kind
        assert type(db.pool("plain")) is Pool
        assert connection_id(get_db())


@pytest.mark.parametrize("backend", ["QueuePool", "no.such.Pool", int, "json.dumps", 7])
def test_another_backend_is_refused(backend: Any) -> None:
    [fault] = faults(HOST="db", BACKEND=backend)

    assert fault.startswith("MYSQLPOOL_BACKEND must be pooled, null, or a subclass of")


def test_null_keeps_nothing_ready() -> None:
    [fault] = faults(HOST="db", BACKEND="null", MIN_SIZE=1)

    assert fault.startswith("MYSQLPOOL_MIN_SIZE must be 0 where MYSQLPOOL_BACKEND is")
