"""What a setting may be, and what is said about one that is wrong."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pickle
import re
import socket
import ssl
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st
from pymysql.cursors import Cursor, DictCursor, SSCursor

from flask_mysqlpool.config import PoolConfig, validators
from flask_mysqlpool.config.settings import AppConfig
from flask_mysqlpool.errors import ConfigError

SECRET = "hunter2-geheim"


class OwnCursor(DictCursor):
    pass


def pool(**keys: Any) -> PoolConfig:
    return PoolConfig.from_mapping(keys)


def app_config(mapping: dict[str, Any]) -> AppConfig:
    """What an app gets that says, beside this, where its server is."""
    mapping = {"MYSQLPOOL_HOST": "db", **mapping}
    return AppConfig.from_mapping(mapping, name="shop")


def bare_app_config(mapping: dict[str, Any]) -> AppConfig:
    return AppConfig.from_mapping(mapping, name="shop")


def faults(read: Callable[..., object], *args: Any, **kwargs: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(*args, **kwargs)
    return caught.value.faults


def the_fault(**keys: Any) -> str:
    (fault,) = faults(pool, **keys)
    return fault


def app_fault(key: str, value: Any = 1) -> str:
    (fault,) = faults(app_config, {key: value})
    return fault


# Defaults, keys and prefixes


def test_defaults_are_those_of_the_design() -> None:
    assert pool().settings() == {
        "HOST": "localhost",
        "PORT": 3306,
        "MAX_LAG": None,
        "READERS": None,
        "HOST_ORDER": "given",
        "TARGET": "any",
        "UNIX_SOCKET": None,
        "USER": None,
        "PASSWORD": None,
        "DATABASE": None,
        "CHARSET": "utf8mb4",
        "COLLATION": None,
        "SQL_MODE": None,
        "READ_ONLY": False,
        "INIT_COMMAND": None,
        "AUTOCOMMIT": False,
        "CURSORCLASS": "pymysql.cursors.Cursor",
        "CONNECT_TIMEOUT": 10.0,
        "READ_TIMEOUT": None,
        "WRITE_TIMEOUT": None,
        "KEEPALIVE": 60.0,
        "PIPELINING": "auto",
        "KILL_ABANDONED": True,
        "CONNECT": None,
        "SSL_MODE": "PREFERRED",
        "SSL_CA": None,
        "SSL_CERT": None,
        "SSL_KEY": None,
        "SSL_CONTEXT": None,
        "CLEARTEXT_PLUGIN": False,
        "CONNECT_ARGS": {},
        "MIN_SIZE": 0,
        "MAX_SIZE": 10,
        "TIMEOUT": 10.0,
        "MAX_WAITING": 0,
        "MAX_LIFETIME": 1800.0,
        "MAX_IDLE": 600.0,
        "MAX_USAGE": 0,
        "PING_AFTER": 30.0,
        "RESET_SESSION": "auto",
        "SETSESSION": [],
        "MAX_HOST_CONNECTIONS": None,
        "LEAK_THRESHOLD": 0.0,
        "RECORD_QUERIES": False,
        "SLOW_QUERY": 0.0,
        "LOG_PARAMETERS": False,
        "STATEMENT_COMMENTS": False,
        "BACKEND": "pooled",
        "NAME": "mysqlpool",
    }


def test_reading_nothing_is_the_same_as_building_directly() -> None:
    assert pool() == PoolConfig()
    assert PoolConfig().cursorclass is Cursor


@pytest.mark.parametrize("keys", [{"MAX_SIZE": 3}, {"max_size": 3}])
def test_keys_without_prefix_are_upper_or_lower_case(keys: dict[str, Any]) -> None:
    assert PoolConfig.from_mapping(keys).max_size == 3


def test_a_key_in_mixed_case_is_a_fault() -> None:
    assert the_fault(Max_Size=3) == "Max_Size is not a setting: write MAX_SIZE"


def test_a_key_in_both_cases_is_a_fault() -> None:
    assert the_fault(host="a", HOST="b") == "host is given twice, also as HOST"


def test_a_key_that_is_not_text_is_a_fault() -> None:
    assert faults(PoolConfig.from_mapping, {5: 1}) == ("5 is not a setting",)


def test_a_prefix_leaves_other_keys_alone() -> None:
    mapping = {"DB_HOST": "a", "HOST": "b", "max_size": "no"}
    assert PoolConfig.from_mapping(mapping, prefix="DB_").host == "a"


def test_a_key_with_prefix_is_upper_case() -> None:
    (fault,) = faults(PoolConfig.from_mapping, {"DB_host": "a"}, prefix="DB_")
    assert fault == "DB_host is not a setting: write DB_HOST"


def test_the_name_given_is_the_default_for_name() -> None:
    assert PoolConfig.from_mapping({}, name="shop").name == "shop"
    assert PoolConfig.from_mapping({"NAME": "own"}, name="shop").name == "own"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that writes the page about settings."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs")
    return importlib.import_module("settings_page")


def test_every_setting_is_documented(page: ModuleType) -> None:
    fields = dataclasses.fields(PoolConfig) + dataclasses.fields(AppConfig)
    names = {field.name.upper() for field in fields if field.metadata}
    docs = page.docs()
    assert docs.keys() >= names | {"URL", "BINDS"}
    for name in names | {"URL", "BINDS"}:
        assert docs[name].endswith(".")


def test_durations_say_their_unit(page: ModuleType) -> None:
    fields = [f for f in dataclasses.fields(PoolConfig) if f.metadata]
    by_type = {f.name for f in fields if "float" in f.type}
    durations = validators.seconds, validators.positive_seconds
    assert {f.name for f in fields if f.metadata["convert"] in durations} == by_type
    by_unit = {f.name for f in fields if "Seconds." in page.row(f.name.upper())}
    assert by_unit == by_type


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        pool().max_size = 4  # type: ignore[misc]


def test_a_config_built_directly_is_held_to_the_same_rules() -> None:
    first, second = faults(PoolConfig, max_size=0, host=None)
    assert first.startswith("host must be a bare host name")
    assert second == "max_size must be a whole number, 1 or more (got 0)"
    assert PoolConfig(cursorclass="SSCursor").cursorclass is SSCursor  # type: ignore[arg-type]


def test_a_replaced_setting_is_held_to_the_same_rules() -> None:
    (fault,) = faults(dataclasses.replace, pool(MIN_SIZE=5), max_size=4)
    assert fault == "min_size must be at most max_size (got 5 and 4)"


# Numbers, flags and durations


@pytest.mark.parametrize(("value", "result"), [(7, 7), ("7", 7), ("10", 10)])
def test_a_whole_number_is_taken(value: object, result: int) -> None:
    taken = pool(MAX_SIZE=value).max_size
    assert taken == result and type(taken) is int


@pytest.mark.parametrize(
    "value",
    [True, 2.5, 10.0, "2.5", "1e3", "10 ", " 10", "+1", "007", "١", "ten", "", None]
    + [[1], {"a": 1}, b"1", float("nan"), 10**30, "9" * 5000],
)
def test_what_is_not_a_whole_number_is_a_fault(value: object) -> None:
    fault = the_fault(MAX_SIZE=value)
    assert fault.startswith("MAX_SIZE must be a whole number, 1 or more (got ")


@pytest.mark.parametrize(
    ("key", "low", "high"),
    [
        ("PORT", 1, 65535),
        ("MAX_SIZE", 1, None),
        ("MIN_SIZE", 0, None),
        ("MAX_WAITING", 0, None),
        ("MAX_USAGE", 0, None),
    ],
)
def test_whole_numbers_have_bounds(key: str, low: int, high: int | None) -> None:
    pool(**{key: low})
    assert the_fault(**{key: low - 1}).endswith(f"(got {low - 1})")
    if high:
        pool(**{key: high})
        assert the_fault(**{key: high + 1}).endswith(f"(got {high + 1})")


ZERO_IS_FINE = ["TIMEOUT", "MAX_LIFETIME", "MAX_IDLE", "PING_AFTER"]
ZERO_IS_NOT = ["CONNECT_TIMEOUT", "READ_TIMEOUT", "WRITE_TIMEOUT"]


@pytest.mark.parametrize("key", ZERO_IS_FINE + ZERO_IS_NOT)
@pytest.mark.parametrize(
    ("value", "result"),
    [
        (0.5, 0.5),
        ("0.5", 0.5),
        (3, 3.0),
        ("3", 3.0),
        ("1e1", 10.0),
        (31536000, 31536e3),
    ],
)
def test_a_duration_becomes_float_seconds(key: str, value: Any, result: float) -> None:
    taken = getattr(pool(**{key: value}), key.lower())
    assert taken == result and type(taken) is float


@pytest.mark.parametrize("key", ZERO_IS_FINE + ZERO_IS_NOT)
@pytest.mark.parametrize(
    "value",
    [True, -1, -0.1, float("nan"), float("inf"), "nan", "inf", "1e999", "10 s", "1_0"]
    + [31536001, 10**400, "", [1.0]],
)
def test_what_is_not_a_duration_is_a_fault(key: str, value: object) -> None:
    assert the_fault(**{key: value}).startswith(f"{key} must be seconds, ")


@pytest.mark.parametrize("key", ZERO_IS_FINE)
def test_zero_seconds_are_allowed_where_they_mean_something(key: str) -> None:
    assert getattr(pool(**{key: 0}), key.lower()) == 0.0


@pytest.mark.parametrize("key", ZERO_IS_NOT)
def test_a_bound_on_the_network_is_more_than_zero(key: str) -> None:
    assert "more than 0" in the_fault(**{key: 0})


@pytest.mark.parametrize(
    ("value", "result"),
    [(True, True), (False, False), ("true", True), ("False", False), ("TRUE", True)],
)
def test_a_flag_is_taken(value: object, result: bool) -> None:
    assert pool(AUTOCOMMIT=value).autocommit is result


@pytest.mark.parametrize("value", [1, 0, "yes", "1", "", None, "true ", 1.0, [True]])
def test_what_is_not_a_flag_is_a_fault(value: object) -> None:
    assert the_fault(AUTOCOMMIT=value).startswith("AUTOCOMMIT must be True or False")


def test_more_kept_ready_than_allowed_is_a_fault_that_names_both() -> None:
    fault = the_fault(MIN_SIZE=11)
    assert fault == "MIN_SIZE must be at most MAX_SIZE (got 11 and 10)"
    assert pool(MIN_SIZE=10).min_size == 10


def test_sizes_are_not_compared_where_one_of_them_is_wrong() -> None:
    assert the_fault(MIN_SIZE=11, MAX_SIZE="many").startswith("MAX_SIZE ")


# None


OPTIONAL = [
    *("URL", "UNIX_SOCKET", "USER", "DATABASE", "COLLATION", "SQL_MODE"),
    *("INIT_COMMAND", "READ_TIMEOUT", "WRITE_TIMEOUT", "SSL_CA", "SSL_CERT", "SSL_KEY"),
    *("MAX_HOST_CONNECTIONS", "MAX_LAG", "READERS", "CONNECT", "SSL_CONTEXT"),
]


@pytest.mark.parametrize("key", OPTIONAL)
def test_none_leaves_an_optional_setting_unset(key: str) -> None:
    assert pool(**{key: None}) == pool()


NEEDED = sorted({*pool().settings()} - {*OPTIONAL})


@pytest.mark.parametrize("key", NEEDED)
def test_none_is_a_fault_where_there_is_a_default(key: str) -> None:
    assert the_fault(**{key: None}).startswith(f"{key} must be ")


@pytest.mark.parametrize("key", [key.lower() for key in NEEDED if key != "PASSWORD"])
def test_so_it_is_in_a_config_built_directly(key: str) -> None:
    (fault,) = faults(PoolConfig, **{key: None})
    assert fault.startswith(f"{key} must be ")


# Text


@pytest.mark.parametrize("key", ["USER", "DATABASE", "NAME"])
def test_the_environments_number_becomes_text_again(key: str) -> None:
    assert getattr(pool(**{key: 2024}), key.lower()) == "2024"


@pytest.mark.parametrize("key", ["USER", "DATABASE", "NAME", "HOST", "SQL_MODE"])
@pytest.mark.parametrize("value", [True, 1.5, [], b"x"])
def test_text_that_the_environment_changed_is_to_be_quoted(
    key: str, value: Any
) -> None:
    fault = the_fault(**{key: value})
    assert f"""quote it, as in FLASK_MYSQLPOOL_{key}='"1e10"'""" in fault


@pytest.mark.parametrize("key", ["USER", "DATABASE", "NAME", "HOST", "UNIX_SOCKET"])
@pytest.mark.parametrize("value", ["", " ", " a", "a\n", "a\0b"])
def test_text_is_not_empty_and_has_no_blanks_around_it(key: str, value: str) -> None:
    assert the_fault(**{key: value}).startswith(f"{key} must be ")


@pytest.mark.parametrize("host", ["db.example", "10.0.0.1", "::1", "fe80::1%eth0"])
def test_a_host_is_a_name_or_an_address(host: str) -> None:
    assert pool(HOST=host).host == host


@pytest.mark.parametrize("host", ["db:3306", "[::1]", "/run/my.sock", "mysql://h/d"])
def test_a_host_with_anything_beside_it_is_a_fault(host: str) -> None:
    assert "a port goes to PORT" in the_fault(HOST=host)


@pytest.mark.parametrize("name", ["latin1", "utf8mb4", "UTF8MB4"])
def test_a_known_charset_is_taken(name: str) -> None:
    assert pool(CHARSET=name).charset == name


@pytest.mark.parametrize("name", ["utf-8", "klingon", ""])
def test_an_unknown_charset_is_a_fault(name: str) -> None:
    assert the_fault(CHARSET=name).startswith("CHARSET must be ")


def test_the_charset_of_a_web_page_is_answered_with_mysqls() -> None:
    assert "write utf8mb4 (got 'utf-8')" in the_fault(CHARSET="utf-8")


def test_a_collation_is_one_word_as_it_goes_into_a_statement() -> None:
    assert pool(COLLATION="utf8mb4_bin").collation == "utf8mb4_bin"
    assert the_fault(COLLATION="utf8mb4_bin; DROP").startswith("COLLATION must be ")


def test_an_empty_sql_mode_is_a_mode() -> None:
    assert pool(SQL_MODE="").sql_mode == ""


@pytest.mark.parametrize(
    ("key", "value", "result"),
    [
        ("SSL_MODE", "verify_ca", "VERIFY_CA"),
        ("SSL_MODE", "Disabled", "DISABLED"),
        ("RESET_SESSION", "always", "always"),
        ("RESET_SESSION", "transaction", "transaction"),
    ],
)
def test_one_of_a_choice_is_taken(key: str, value: str, result: str) -> None:
    assert getattr(pool(**{key: value}), key.lower()) == result


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("SSL_MODE", "DISABLED, PREFERRED, REQUIRED, VERIFY_CA, VERIFY_IDENTITY"),
        ("RESET_SESSION", "auto, always, transaction"),
    ],
)
@pytest.mark.parametrize("value", ["on", "", True, 1])
def test_another_than_the_choice_is_a_fault(key: str, allowed: str, value: Any) -> None:
    fault = the_fault(**{key: value})
    assert fault == f"{key} must be one of {allowed} (got {value!r})"


# Statements


@pytest.mark.parametrize("value", [["SET a=1", "SET b=2"], ("SET a=1", "SET b=2")])
def test_session_statements_are_a_list(value: object) -> None:
    assert pool(SETSESSION=value).setsession == ("SET a=1", "SET b=2")


def test_a_single_session_statement_is_to_be_put_into_a_list() -> None:
    assert "put a single one into a list" in the_fault(SETSESSION="SET a=1")


@pytest.mark.parametrize("value", [[1], [""], [None], {"a": 1}, 5])
def test_what_is_not_a_list_of_statements_is_a_fault(value: object) -> None:
    assert the_fault(SETSESSION=value).startswith("SETSESSION must be ")


@pytest.mark.parametrize("value", ["", "  ", 1, ["SET a=1"]])
def test_an_initial_command_is_one_statement(value: object) -> None:
    assert the_fault(INIT_COMMAND=value).startswith("INIT_COMMAND must be an SQL")


# Passwords


def test_a_password_may_be_any_text() -> None:
    assert pool(PASSWORD="").password == ""
    assert pool(PASSWORD=" p@ss\n").password == " p@ss\n"


def test_a_password_may_be_a_callable_and_is_not_asked_yet() -> None:
    def token() -> str:
        raise AssertionError("asked")

    assert pool(PASSWORD=token).password is token


def test_a_password_of_digits_survives_the_environment() -> None:
    assert pool(PASSWORD=12345).password == "12345"


@pytest.mark.parametrize("value", [1e10, True, None, float("inf"), ["a"], {}, b"a"])
def test_a_password_that_the_environment_changed_is_to_be_quoted(value: Any) -> None:
    fault = the_fault(PASSWORD=value)
    assert fault.startswith("PASSWORD must be text or a callable")
    assert """quote it, as in FLASK_MYSQLPOOL_PASSWORD='"1e10"'""" in fault


# TLS


@pytest.fixture
def pem(tmp_path: Path) -> str:
    path = tmp_path / "some.pem"
    path.touch()
    return str(path)


@pytest.mark.parametrize("key", ["SSL_CA", "SSL_CERT"])
def test_a_tls_file_is_text_or_a_path(key: str, pem: str) -> None:
    assert getattr(pool(**{key: pem}), key.lower()) == pem
    assert getattr(pool(**{key: Path(pem)}), key.lower()) == pem


@pytest.mark.parametrize("key", ["SSL_CA", "SSL_CERT", "SSL_KEY"])
@pytest.mark.parametrize("path", ["/nowhere/ca.pem", "/"])
def test_a_tls_file_that_does_not_exist_is_a_fault(key: str, path: str) -> None:
    assert the_fault(**{key: path}) == (
        f"{key} must name a file that exists (got {path!r})"
    )


def test_a_key_needs_its_certificate(pem: str) -> None:
    assert the_fault(SSL_KEY=pem) == "SSL_KEY needs SSL_CERT beside it"
    assert pool(SSL_KEY=pem, SSL_CERT=pem).ssl_key == pem


def test_a_key_is_not_blamed_for_a_certificate_that_is_wrong(pem: str) -> None:
    assert the_fault(SSL_KEY=pem, SSL_CERT="/nowhere").startswith("SSL_CERT ")


def test_tls_files_without_tls_are_faults(pem: str) -> None:
    keys = dict.fromkeys(["SSL_CA", "SSL_CERT", "SSL_KEY"], pem)
    found = faults(pool, SSL_MODE="DISABLED", **keys)
    assert found == tuple(
        f"{key} must be left out where SSL_MODE is DISABLED" for key in keys
    )


@pytest.mark.parametrize(
    ("mode", "unused"),
    [
        (None, ()),
        ("PREFERRED", ("SSL_CA", "SSL_CERT", "SSL_KEY")),
        ("REQUIRED", ("SSL_CA",)),
        ("VERIFY_CA", ()),
        ("VERIFY_IDENTITY", ()),
    ],
)
def test_a_file_that_a_mode_would_not_look_at_is_a_fault(
    pem: str, mode: str | None, unused: tuple[str, ...]
) -> None:
    keys = dict.fromkeys(["SSL_CA", "SSL_CERT", "SSL_KEY"], pem)
    settings = keys | ({"SSL_MODE": mode} if mode else {})

    found = faults(pool, **settings) if unused else ()

    assert tuple(fault.split()[0] for fault in found) == unused
    for fault in found:
        stricter = "VERIFY_CA" if fault.startswith("SSL_CA") else "REQUIRED"
        assert fault.endswith(f"may not use it: set {stricter} or a stricter one")
    assert unused or pool(**settings).ssl_mode == mode or mode is None


@pytest.mark.parametrize(
    ("files", "mode"),
    [
        (["SSL_CA"], "VERIFY_CA"),
        (["SSL_CERT"], "REQUIRED"),
        (["SSL_CERT", "SSL_KEY"], "REQUIRED"),
        (["SSL_CA", "SSL_CERT"], "VERIFY_CA"),
        ([], "PREFERRED"),
    ],
)
@pytest.mark.parametrize("place", [{"HOST": "db"}, {"UNIX_SOCKET": "/s"}])
def test_a_file_for_tls_has_it_used(
    pem: str, files: list[str], mode: str, place: dict[str, str]
) -> None:
    config = pool(**dict.fromkeys(files, pem), **place)

    assert config.ssl_mode == mode
    direct: dict[str, Any] = {name.lower(): pem for name in files}
    assert PoolConfig(**direct).ssl_mode == mode
    query = "&".join(f"{name}={pem}" for name in direct)
    assert pool(URL=f"mysql://u@h?{query}").ssl_mode == mode


@pytest.mark.parametrize("mode", [None, "PREFERRED", "REQUIRED", "VERIFY_IDENTITY"])
def test_a_key_of_the_server_is_a_fault_where_tls_would_not_use_it(
    mode: str | None,
) -> None:
    settings: dict[str, Any] = {"CONNECT_ARGS": {"server_public_key": SECRET.encode()}}
    given = settings | ({"SSL_MODE": mode} if mode else {})

    fault = the_fault(**given)
    assert fault.startswith("CONNECT_ARGS may not hold server_public_key")
    assert fault.endswith("set SSL_MODE = 'DISABLED'") and SECRET not in fault
    assert pool(**settings, SSL_MODE="DISABLED").connect_args


@pytest.mark.parametrize("mode", ["VERIFY_CA", "VERIFY_IDENTITY"])
def test_verifying_without_a_file_means_the_systems_authorities(mode: str) -> None:
    assert pool(SSL_MODE=mode).ssl_ca is None


# A context for TLS, and a callable that connects


def context(*, verifies: bool = True, name: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = verifies and name
    context.verify_mode = ssl.CERT_REQUIRED if verifies else ssl.CERT_NONE
    return context


def test_a_context_has_tls_used() -> None:
    mine = context()
    assert pool(SSL_CONTEXT=mine).ssl_context is mine
    assert pool(SSL_CONTEXT=mine).ssl_mode == "REQUIRED"
    assert PoolConfig(ssl_context=mine).ssl_mode == "REQUIRED"


@pytest.mark.parametrize(
    "value", ["ctx", {}, ssl.SSLContext, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)]
)
def test_what_is_no_context_for_clients_is_a_fault(value: object) -> None:
    fault = the_fault(SSL_CONTEXT=value)
    assert fault.startswith("SSL_CONTEXT must be an ssl.SSLContext for clients")


def test_files_beside_a_context_are_faults_that_name_both(pem: str) -> None:
    keys = dict.fromkeys(["SSL_CA", "SSL_CERT", "SSL_KEY"], pem)
    for mode in {}, {"SSL_MODE": "REQUIRED"}, {"SSL_MODE": "VERIFY_CA"}:
        found = faults(pool, SSL_CONTEXT=context(), **keys, **mode)
        assert found == tuple(
            f"{key} must be left out where SSL_CONTEXT is set" for key in keys
        )


@pytest.mark.parametrize("mode", ["DISABLED", "PREFERRED"])
def test_a_context_that_a_mode_may_not_use_is_a_fault(mode: str) -> None:
    fault = the_fault(SSL_CONTEXT=context(), SSL_MODE=mode)
    assert fault.startswith(f"SSL_CONTEXT must be left out where SSL_MODE is {mode}")


@pytest.mark.parametrize(
    ("given", "mode", "fault"),
    [
        (context(verifies=False), "REQUIRED", None),
        (
            context(verifies=False),
            "VERIFY_CA",
            "REQUIRED, as SSL_CONTEXT verifies no c",
        ),
        (context(verifies=False), "VERIFY_IDENTITY", "REQUIRED, as SSL_CONTEXT verif"),
        (context(name=False), "VERIFY_CA", None),
        (
            context(name=False),
            "VERIFY_IDENTITY",
            "VERIFY_CA, as SSL_CONTEXT verifies no",
        ),
        (context(), "VERIFY_CA", None),
        (context(), "VERIFY_IDENTITY", None),
    ],
)
def test_a_mode_that_a_context_does_not_fulfil_is_a_fault(
    given: ssl.SSLContext, mode: str, fault: str | None
) -> None:
    settings = {"SSL_CONTEXT": given, "SSL_MODE": mode}
    if fault is None:
        assert pool(**settings).ssl_mode == mode
    else:
        assert the_fault(**settings).startswith(f"SSL_MODE must be {fault}")


@pytest.mark.parametrize("value", [print, lambda *_: None, "socket:socketpair"])
def test_a_connect_is_a_callable_or_its_path(value: object) -> None:
    expected = socket.socketpair if isinstance(value, str) else value
    assert pool(CONNECT=value).connect is expected


@pytest.mark.parametrize("value", ["no.such:thing", "os.path", "", 5, ("db", 1)])
def test_what_cannot_be_called_is_no_connect(value: object) -> None:
    fault = the_fault(CONNECT=value)
    assert fault.startswith("CONNECT must be a callable (host, port, timeout)")


def test_connect_beside_what_it_replaces_is_a_fault() -> None:
    assert the_fault(CONNECT=print, UNIX_SOCKET="/s") == (
        "CONNECT must be left out where UNIX_SOCKET is set"
    )
    fault = the_fault(CONNECT=print, CONNECT_ARGS={"bind_address": "127.0.0.1"})
    assert (
        fault
        == "CONNECT_ARGS may not hold bind_address where CONNECT opens the sockets"
    )


def test_neither_of_them_is_shown_and_a_config_is_compared_by_them() -> None:
    mine = context()
    settings = {"CONNECT": partial(print, SECRET), "SSL_CONTEXT": mine}
    config = pool(**settings)

    assert "print" not in repr(config) and "SSLContext" not in repr(config)
    shown = config.settings()
    assert (shown["CONNECT"], shown["SSL_CONTEXT"]) == ("***", "***")
    assert json.dumps(shown)
    assert config == pool(**settings)
    assert config != pool(**settings | {"SSL_CONTEXT": context()})
    assert dataclasses.replace(config, max_size=3).ssl_context is mine
    assert pickle.loads(pickle.dumps(pool())) == pool()


# Cursor classes


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ("DictCursor", DictCursor),
        (f"{__name__}.OwnCursor", OwnCursor),
        ("pymysql.cursors.SSCursor", SSCursor),
        (OwnCursor, OwnCursor),
    ],
)
def test_a_cursor_class_is_a_name_a_path_or_a_class(value: Any, result: Any) -> None:
    assert pool(CURSORCLASS=value).cursorclass is result


@pytest.mark.parametrize(
    "value",
    ["DictCurso", "DictCursorMixin", "no.such.Thing", "os.path", "a..b", ".", "", 5]
    + [dict, DictCursor.fetchone],
)
def test_what_is_not_a_cursor_class_is_a_fault(value: object) -> None:
    fault = the_fault(CURSORCLASS=value)
    assert fault.startswith("CURSORCLASS must be a subclass of pymysql.cursors.Cursor")


# Further arguments of pymysql.connect


def test_further_arguments_are_copied() -> None:
    mine = {"local_infile": True, "auth_plugin_map": {}}
    taken = pool(CONNECT_ARGS=mine).connect_args
    assert taken == mine and taken is not mine


@pytest.mark.parametrize(
    "name",
    [
        *("host", "port", "unix_socket", "user", "password", "database", "charset"),
        *("collation", "sql_mode", "init_command", "autocommit", "cursorclass"),
        *("connect_timeout", "read_timeout", "write_timeout"),
        *("ssl_ca", "ssl_cert", "ssl_key"),
    ],
)
def test_an_argument_that_is_a_setting_is_a_fault(name: str) -> None:
    (fault,) = faults(app_config, {"MYSQLPOOL_CONNECT_ARGS": {name: SECRET}})
    assert f"MYSQLPOOL_CONNECT_ARGS may not hold {name}: " in fault
    assert f"write MYSQLPOOL_{name.upper()} " in fault
    assert SECRET not in fault


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("passwd", "write PASSWORD"),
        ("db", "write DATABASE"),
        ("program_name", "write NAME"),
        ("ssl", "write SSL_MODE"),
        ("ssl_disabled", "write SSL_MODE"),
        ("ssl_verify_cert", "write SSL_MODE"),
        ("ssl_verify_identity", "write SSL_MODE"),
        ("ssl_key_password", "leave it out, the key's file may not be encrypted"),
        ("defer_connect", "leave it out, the pool decides when to connect"),
        ("compress", "leave it out, PyMySQL does not support it"),
        ("named_pipe", "leave it out, PyMySQL does not support it"),
        ("max_size", "write MAX_SIZE"),
    ],
)
def test_an_argument_that_fights_the_pool_is_a_fault(name: str, instead: str) -> None:
    assert f"may not hold {name}: {instead} " in the_fault(CONNECT_ARGS={name: 1})


def test_an_argument_that_pymysql_does_not_take_is_a_fault() -> None:
    fault = the_fault(CONNECT_ARGS={"local_infil": True})
    assert "'local_infil', which pymysql.connect does not take" in fault
    assert "the nearest is local_infile" in fault
    assert "nearest" not in the_fault(CONNECT_ARGS={"zzz": True})


def test_self_is_no_argument() -> None:
    assert "does not take" in the_fault(CONNECT_ARGS={"self": 1})


@pytest.mark.parametrize("value", ["a=1", [("a", 1)], 5, {5: 1}])
def test_further_arguments_are_a_mapping_with_names(value: object) -> None:
    assert the_fault(CONNECT_ARGS=value).startswith("CONNECT_ARGS must ")


def test_every_wrong_argument_is_a_fault_of_its_own() -> None:
    assert len(faults(pool, CONNECT_ARGS={"db": 1, "zzz": 2, "ssl": {}})) == 3


# URLs


@pytest.mark.parametrize(
    ("url", "values"),
    [
        (
            "mysql://u:p@db.example:3307/shop?charset=latin1",
            ("u", "p", "db.example", 3307, "shop", "latin1"),
        ),
        ("mysql://u@h/d", ("u", None, "h", 3306, "d", "utf8mb4")),
        ("mysql://u:p@h", ("u", "p", "h", 3306, None, "utf8mb4")),
        ("mysql://u:p@h/", ("u", "p", "h", 3306, None, "utf8mb4")),
        ("mysql://h/d?", (None, None, "h", 3306, "d", "utf8mb4")),
        ("mysql://u:@h", ("u", None, "h", 3306, None, "utf8mb4")),
        ("mysql://", (None, None, "localhost", 3306, None, "utf8mb4")),
        ("mysql://u:p@[::1]:3307/d", ("u", "p", "::1", 3307, "d", "utf8mb4")),
        ("mysql://u:p:q@r@h/d", ("u", "p:q@r", "h", 3306, "d", "utf8mb4")),
        (
            "mysql://u%40x:p%2F%3A%23%C3%A9%25@h/d%20b?charset=utf8%6Db4",
            ("u@x", "p/:#é%", "h", 3306, "d b", "utf8mb4"),
        ),
        ("mysql://u:a+b@h", ("u", "a+b", "h", 3306, None, "utf8mb4")),
    ],
)
def test_a_url_is_taken_apart(url: str, values: tuple[object, ...]) -> None:
    it = pool(URL=url)
    found = (it.user, it.password, it.host, it.port, it.database, it.charset)
    assert found == values


def test_a_urls_parameters_are_settings_in_lower_case() -> None:
    query = "unix_socket=%2Frun%2Fmy.sock&ssl_mode=REQUIRED&max_size=4&timeout=0.5"
    it = pool(URL=f"mysql://u@/shop?{query}")
    assert (it.server, it.ssl_mode) == ("/run/my.sock/shop", "REQUIRED")
    assert (it.max_size, it.timeout) == (4, 0.5)


def test_single_keys_win_over_the_url() -> None:
    it = pool(
        URL="mysql://u:p@h:1/d?charset=latin1",
        PORT=2,
        PASSWORD="q",
        CHARSET="utf8mb4",
        DATABASE=None,
    )
    found = (it.user, it.password, it.host, it.port, it.database, it.charset)
    assert found == ("u", "q", "h", 2, "d", "utf8mb4")


@pytest.mark.parametrize(
    "scheme",
    [
        "postgres",
        "mysql+mysqlconnector",
        "mysql+mysqldb",
        "MySQL",
        "jdbc:mysql",
        "",
    ],
)
def test_another_scheme_is_a_fault(scheme: str) -> None:
    fault = the_fault(URL=f"{scheme}://u:{SECRET}@h/d")
    assert fault.startswith("URL must begin with mysql:// or mariadb://")
    assert SECRET not in fault


@pytest.mark.parametrize("value", [5, True, b"mysql://h", [], ""])
def test_a_url_is_text(value: object) -> None:
    assert the_fault(URL=value).startswith("URL must begin with mysql://")


@pytest.mark.parametrize(
    "rest",
    [
        f"u:{SECRET}/x@h/d",
        f"u:{SECRET}?x@h/d",
        f"u:{SECRET}#x@h/d",
        f"u:{SECRET} @h/d",
        f"u:{SECRET}%@h/d",
        f"u:{SECRET}%zz@h/d",
        f"u:{SECRET}",
        f"u@x:{SECRET}@h",
        f"u:{SECRET}@h:/d",
        f"u:{SECRET}@h:http/d",
        f"u:{SECRET}@h:-1/d",
        f"u:{SECRET}@[::1/d",
        f"u:{SECRET}@::1/d",
        f"u:{SECRET}@h/d\n",
        f"u:{SECRET}@h/d/e",
        f"u:{SECRET}@h/d?charset",
        f"u:{SECRET}@h/d?charset=utf8mb4&",
        f"u:{SECRET}@h/d#x",
    ],
)
def test_a_malformed_url_is_a_fault_that_repeats_nothing(rest: str) -> None:
    fault = the_fault(URL=f"mysql://{rest}")
    assert fault.startswith("URL must have the form mysql://user:password@host:port/")
    assert SECRET not in fault


def test_a_url_that_is_not_utf8_is_a_fault() -> None:
    assert "UTF-8" in the_fault(URL="mysql://u:%FF@h")


@pytest.mark.parametrize("query", ["user=x", "charset=latin1&charset=utf8mb4"])
def test_a_url_that_says_something_twice_is_a_fault(query: str) -> None:
    assert "say one thing twice" in the_fault(URL=f"mysql://u@h?{query}")


@pytest.mark.parametrize("port", ["", "http", "-1", "1.5"])
def test_a_url_whose_port_is_no_number_is_told_so(port: str) -> None:
    fault = the_fault(URL=f"mysql://u:{SECRET}@h:{port}/d")
    assert fault.endswith("; the port is not a number")
    assert "the port" not in the_fault(URL="mysql://u:a/b@h:3306/d")


def test_a_malformed_url_is_told_what_to_encode_and_not_that_it_is_text() -> None:
    fault = the_fault(URL=f"mysql://u:{SECRET}#?@h/d")
    assert fault.endswith("(@ is %40, / is %2F, # is %23, ? is %3F, % is %25)")
    assert the_fault(URL=5).endswith("(got a value of type int)")


def test_beside_a_url_a_fault_names_keys_and_not_parts_of_the_url() -> None:
    url = "mysql://u:p@h:1/d?max_size=3"
    assert "a port goes to PORT, " in the_fault(URL=url, HOST="localhost:3306")
    assert ": write PASSWORD " in the_fault(URL=url, CONNECT_ARGS={"passwd": "x"})
    assert the_fault(URL=url, POOL_SIZE=3).endswith(": write MAX_SIZE")
    assert "must be at most URL (max_size)" in the_fault(URL=url, MIN_SIZE=5)


def test_an_unknown_parameter_of_a_url_is_a_fault() -> None:
    url = "mysql://u@h/d?pool_recycle=3&zzz=1&url=mysql&CHARSET=latin1"
    assert faults(app_config, {"MYSQLPOOL_URL": url}) == (
        "MYSQLPOOL_URL (pool_recycle) is not a setting: write MYSQLPOOL_MAX_LIFETIME",
        "MYSQLPOOL_URL (zzz) is not a setting",
        "MYSQLPOOL_URL (url) is not a setting",
        "MYSQLPOOL_URL (CHARSET) is not a setting: write MYSQLPOOL_CHARSET",
    )


@pytest.mark.parametrize(
    ("query", "instead"),
    [
        ("useSSL=perhaps", "write SSL_MODE"),
        ("sslaccept=x", "write SSL_MODE"),
        ("tls=custom", "write SSL_MODE"),
        ("ssl=%7B%22ca%22:1%7D", "write SSL_MODE"),
        ("sslcert=/x", "write SSL_CERT"),
        ("connectTimeout=5", "write CONNECT_TIMEOUT"),
        ("socketTimeout=5", "write READ_TIMEOUT"),
        ("characterEncoding=utf8", "write CHARSET"),
        ("serverTimezone=UTC", "write SETSESSION"),
        ("connection_limit=5", "write MAX_SIZE"),
        ("local-infile=1", "write CONNECT_ARGS = {'local_infile': …}"),
        ("ssl-cipher=x", "leave it out, PyMySQL does not support it"),
    ],
)
def test_a_parameter_of_another_driver_is_named_with_what_to_write(
    query: str, instead: str
) -> None:
    name = query.partition("=")[0]
    fault = the_fault(URL=f"mysql://u:{SECRET}@h:25060/d?{query}")
    assert fault.startswith(f"URL ({name}) is not a setting: {instead}")


@pytest.mark.parametrize("name", ["zeroDateTimeBehavior", "rewriteBatchedStatements"])
def test_a_parameter_that_is_like_no_setting_gets_no_hint(name: str) -> None:
    assert the_fault(URL=f"mysql://u@h?{name}=x") == f"URL ({name}) is not a setting"


def test_parameters_of_a_url_may_have_hyphens() -> None:
    config = pool(URL=f"mysql://u@h?ssl-mode=VERIFY_CA&ssl-ca={__file__}&max-size=3")
    assert (config.ssl_mode, config.ssl_ca) == ("VERIFY_CA", __file__)
    assert config.max_size == 3
    fault = the_fault(URL="mysql://u@h?ssl-mode=required&ssl_mode=DISABLED")
    assert "say one thing twice" in fault


@pytest.mark.parametrize(
    "url",
    [
        "mysql://:@/",
        "mysql://@/",
        "mysql://:@db/x",
        "mysql://:p@db/x",
        "mysql://u:p@/x",
    ],
)
def test_a_url_of_empty_variables_is_a_fault(url: str) -> None:
    assert "must name a server" in the_fault(URL=url)


def test_a_url_with_an_account_may_leave_its_server_to_a_setting() -> None:
    url = f"mysql://u:{SECRET}@/d"

    assert pool(URL=url, HOST="db").server == "db:3306/d"
    assert pool(URL=f"{url}?unix_socket=/s").server == "/s/d"
    assert pool(URL="mysql:///d").server == "localhost:3306/d"


def test_a_wrong_part_of_a_url_is_a_fault_that_does_not_repeat_it() -> None:
    url = "mysql://u:p@h:65536/d?max_size=-77"
    assert faults(pool, URL=url) == (
        "URL (port) must be a whole number, 1 to 65535",
        "URL (max_size) must be a whole number, 1 or more",
    )


# Names that are no settings


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("MAXCONNECTIONS", "write MYSQLPOOL_MAX_SIZE"),
        ("MINCACHED", "write MYSQLPOOL_MIN_SIZE"),
        ("MAXCACHED", "write MYSQLPOOL_MAX_SIZE and MYSQLPOOL_MAX_IDLE, which bound"),
        ("MAXSHARED", "leave it out"),
        ("MAXUSAGE", "write MYSQLPOOL_MAX_USAGE"),
        ("BLOCKING", "write MYSQLPOOL_TIMEOUT, where 0 means never to wait"),
        ("PING", "write MYSQLPOOL_PING_AFTER"),
        ("RESET", "write MYSQLPOOL_RESET_SESSION"),
        ("FAILURES", "leave it out"),
        ("POOL_SIZE", "write MYSQLPOOL_MAX_SIZE"),
        ("MAX_OVERFLOW", "write MYSQLPOOL_MAX_SIZE, the size and the overflow"),
        ("POOL_TIMEOUT", "write MYSQLPOOL_TIMEOUT"),
        ("POOL_RECYCLE", "write MYSQLPOOL_MAX_LIFETIME"),
        ("RECYCLE", "write MYSQLPOOL_MAX_LIFETIME"),
        ("POOL_PRE_PING", "leave it out, no dead connection is handed out"),
        ("SQLALCHEMY_DATABASE_URI", "write MYSQLPOOL_URL"),
        ("SQLALCHEMY_POOL_SIZE", "write MYSQLPOOL_MAX_SIZE"),
        ("SIZE", "write MYSQLPOOL_MAX_SIZE"),
        ("MAXSIZE", "write MYSQLPOOL_MAX_SIZE"),
        ("PRE_CREATE_NUM", "write MYSQLPOOL_MIN_SIZE"),
        ("CON_LIFETIME", "write MYSQLPOOL_MAX_LIFETIME"),
        ("RETRY_NUM", "write MYSQLPOOL_TIMEOUT"),
        ("RETRY_INTERVAL", "write MYSQLPOOL_TIMEOUT"),
        ("PRE_PING", "leave it out, no dead connection is handed out"),
        ("DATABASE_HOST", "write MYSQLPOOL_HOST"),
        ("DATABASE_PORT", "write MYSQLPOOL_PORT"),
        ("DATABASE_USER", "write MYSQLPOOL_USER"),
        ("DATABASE_PASSWORD", "write MYSQLPOOL_PASSWORD"),
        ("DATABASE_DB", "write MYSQLPOOL_DATABASE"),
        ("DATABASE_CHARSET", "write MYSQLPOOL_CHARSET"),
        ("MYSQL_DATABASE_HOST", "write MYSQLPOOL_HOST"),
        ("MYSQL_HOST", "write MYSQLPOOL_HOST"),
        ("MYSQL_USER", "write MYSQLPOOL_USER"),
        ("MYSQL_PASSWORD", "write MYSQLPOOL_PASSWORD"),
        ("MYSQL_DB", "write MYSQLPOOL_DATABASE"),
        ("MYSQL_CURSORCLASS", "write MYSQLPOOL_CURSORCLASS"),
        ("DB", "write MYSQLPOOL_DATABASE"),
        ("PASSWD", "write MYSQLPOOL_PASSWORD"),
        ("MAXSHARED", "leave it out"),
        ("ARGUMENTS", "write each of them as a setting, such as MYSQLPOOL_MAX_SIZE"),
        ("MAX_SIEZ", "write MYSQLPOOL_MAX_SIZE"),
        ("HANDLE_ERROR", "write MYSQLPOOL_HANDLE_ERRORS"),
        ("PASWORD", "write MYSQLPOOL_PASSWORD"),
        ("MAX_CONNECTIONS", "write MYSQLPOOL_MAX_SIZE"),
        ("CONNECTIONS", "write MYSQLPOOL_MAX_SIZE"),
        ("MAX_CONN", "write MYSQLPOOL_MAX_SIZE"),
        ("MAX_POOL_SIZE", "write MYSQLPOOL_MAX_SIZE"),
        ("MIN_POOL_SIZE", "write MYSQLPOOL_MIN_SIZE"),
        ("WAIT_TIMEOUT", "write MYSQLPOOL_TIMEOUT"),
        ("CHECKOUT_TIMEOUT", "write MYSQLPOOL_TIMEOUT"),
        ("ACQUIRE_TIMEOUT", "write MYSQLPOOL_TIMEOUT"),
        ("IDLE_TIMEOUT", "write MYSQLPOOL_MAX_IDLE"),
        ("MAX_AGE", "write MYSQLPOOL_MAX_LIFETIME"),
        ("CONN_MAX_AGE", "write MYSQLPOOL_MAX_LIFETIME"),
        ("HOSTNAME", "write MYSQLPOOL_HOST"),
        ("SERVER", "write MYSQLPOOL_HOST"),
        ("DB_NAME", "write MYSQLPOOL_DATABASE"),
        ("DBNAME", "write MYSQLPOOL_DATABASE"),
        ("DATABASE_NAME", "write MYSQLPOOL_DATABASE"),
        ("SCHEMA", "write MYSQLPOOL_DATABASE"),
        ("PWD", "write MYSQLPOOL_PASSWORD"),
        ("TIME_ZONE", """write MYSQLPOOL_SETSESSION = ["SET time_zone = '+00:00'"]"""),
        ("TIMEZONE", "write MYSQLPOOL_SETSESSION = ["),
        ("ISOLATION_LEVEL", "write MYSQLPOOL_SETSESSION = ['SET SESSION TRANSACTION "),
        ("LOCAL_INFILE", "write MYSQLPOOL_CONNECT_ARGS = {'local_infile': …}"),
        ("CLIENT_FLAG", "write MYSQLPOOL_CONNECT_ARGS = {'client_flag': …}"),
        ("MYSQL_USE_UNICODE", "write MYSQLPOOL_CONNECT_ARGS = {'use_unicode': …}"),
        ("DICT_CURSOR", "write MYSQLPOOL_CURSORCLASS = 'DictCursor'"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(name: str, instead: str) -> None:
    fault = app_fault(f"MYSQLPOOL_{name}", SECRET)
    assert fault.startswith(f"MYSQLPOOL_{name} is not a setting: {instead}")
    assert SECRET not in fault


@pytest.mark.parametrize("name", ["SHARDS", "QQQ", ""])
def test_any_other_name_is_a_fault_too(name: str) -> None:
    assert app_fault(f"MYSQLPOOL_{name}").startswith(
        f"MYSQLPOOL_{name} is not a setting"
    )


@pytest.mark.parametrize("statement", ["SET time_zone = '+00:00'"])
def test_the_statements_that_are_suggested_are_taken(statement: str) -> None:
    assert f'["{statement}"]' in the_fault(TIMEZONE="UTC")
    assert pool(SETSESSION=[statement]).setsession == (statement,)


@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("MYSQLPOOL", {"URL": SECRET}, "write each key of it as a setting, such as"),
        ("mysqlpool", {"url": SECRET}, "write each key of it as a setting, such as"),
        ("MYSQL_POOL_URL", SECRET, "write MYSQLPOOL_URL"),
        ("MYSQL_POOL_MAX_SIZE", 5, "write MYSQLPOOL_MAX_SIZE"),
        ("mysqlpool_url", SECRET, "write MYSQLPOOL_URL"),
        ("mysqlpool_MAX_SIZE", 5, "write MYSQLPOOL_MAX_SIZE"),
        ("MysqlPool_db", SECRET, "write MYSQLPOOL_DATABASE"),
    ],
)
def test_a_key_that_means_a_setting_without_our_prefix_is_a_fault(
    key: str, value: object, instead: str
) -> None:
    (fault,) = faults(bare_app_config, {key: value})
    assert fault.startswith(f"{key} is not a setting: {instead}")
    assert SECRET not in fault


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("leak_threshold", "; 0: never."),
        ("slow_query", "; 0: never."),
        ("user", "; by default that of the system's user, as in PyMySQL."),
    ],
)
def test_what_a_setting_does_by_default_is_documented(
    page: ModuleType, name: str, said: str
) -> None:
    assert page.docs()[name.upper()].endswith(said)


# The settings of an app


@pytest.mark.parametrize(
    "mapping",
    [{}, {"MYSQLPOOL_MAX_SIZE": 3}, {"MYSQLPOOL_URL": None}, {"MYSQL_CURSORCLASS": ""}],
)
def test_an_app_that_names_no_server_is_told_to(mapping: dict[str, Any]) -> None:
    assert faults(bare_app_config, mapping) == (
        "no server is configured: set MYSQLPOOL_URL (or MYSQLPOOL_HOST, …) before"
        " MySQLPool(app) or init_app(app)",
    )


@pytest.mark.parametrize(
    ("variables", "mapping", "named"),
    [
        (["URL"], {}, "URL"),
        (["BACKEND", "HOST", "USER"], {}, "HOST"),
        (["BINDS__reports__URL"], {}, "BINDS__reports__URL"),
        (["MAX_SIZE"], {"MYSQLPOOL_MAX_SIZE": 3}, None),
    ],
)
def test_a_server_that_is_only_in_the_environment_is_to_be_read_from_there(
    monkeypatch: pytest.MonkeyPatch,
    variables: list[str],
    mapping: dict[str, Any],
    named: str | None,
) -> None:
    for name in variables:
        monkeypatch.setenv(f"FLASK_MYSQLPOOL_{name}", SECRET)

    (fault,) = faults(bare_app_config, mapping)

    text = f"; FLASK_MYSQLPOOL_{named} is in the environment: call"
    end = f"{text} app.config.from_prefixed_env() first" if named else "init_app(app)"
    assert fault.startswith("no server is configured: ") and fault.endswith(end)
    assert SECRET not in fault


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("MYSQL_HOST", "HOST"),
        ("MYSQL_DB", "DATABASE"),
        ("MYSQL_UNIX_SOCKET", "UNIX_SOCKET"),
        ("MYSQL_DATABASE_HOST", "HOST"),
        ("MYSQL_DATABASE_USER", "USER"),
        ("MYSQL_DATABASE_DB", "DATABASE"),
        ("SQLALCHEMY_DATABASE_URI", "URL"),
        ("DATABASE_URL", "URL"),
    ],
)
def test_a_server_that_another_package_is_told_is_named_with_what_to_write(
    key: str, instead: str
) -> None:
    mapping = {"MYSQL_CURSORCLASS": "", "DATABASE": "x.db", "SQLALCHEMY_ECHO": True}
    (fault,) = faults(bare_app_config, {**mapping, key: SECRET, "MYSQL_PASSWORD": "x"})

    end = f"; {key} is another package's: write MYSQLPOOL_{instead}"
    assert fault.startswith("no server is configured: ") and fault.endswith(end)
    assert SECRET not in fault


def test_a_server_without_the_prefix_is_named_with_what_to_write() -> None:
    given = {"DATABASE": "shop", "HOST": "db", "USER": "me", "PASSWORD": SECRET}

    (fault,) = faults(bare_app_config, given)

    assert fault.endswith("; HOST has no prefix: write MYSQLPOOL_HOST")
    assert SECRET not in fault


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("URL", "mysql://"), ("HOST", "db"), ("PORT", 3307), ("USER", "u")),
        *(("UNIX_SOCKET", "/run/my.sock"), ("PASSWORD", ""), ("DATABASE", "d")),
    ],
)
def test_one_setting_about_the_server_is_enough(key: str, value: object) -> None:
    assert bare_app_config({f"MYSQLPOOL_{key}": value})


def test_an_option_file_alone_says_where_the_server_is(tmp_path: Path) -> None:
    file = tmp_path / "my.cnf"
    file.write_text("[client]\nhost = db\n")

    assert bare_app_config({"MYSQLPOOL_CONNECT_ARGS": {"read_default_file": str(file)}})


def test_a_server_under_a_wrong_name_is_one_fault_and_not_two() -> None:
    (fault,) = faults(bare_app_config, {"MYSQLPOOL_HOSTNAME": "db"})
    assert fault.endswith("write MYSQLPOOL_HOST")


def test_an_app_has_one_pool_named_after_it() -> None:
    config = app_config({"MYSQLPOOL_HOST": "db", "MYSQLPOOL_MAX_SIZE": 3})
    assert config == AppConfig(
        pools={"default": PoolConfig(host="db", max_size=3, name="shop")},
        handle_errors=True,
        cli="mysqlpool",
    )


def test_other_extensions_keys_are_never_faults() -> None:
    others = {
        "MYSQL_DATABASE_HOST": 1,
        "MYSQL_HOST": True,
        "SQLALCHEMY_POOL_SIZE": None,
        "HOST": 7,
        "MYSQLPOOL": object(),
        "MYSQLPOOLING": 1,
        "MYSQL_POOL": {"HOST": 7},
        "MYSQL_POOL_OBJECT": 7,
        # Flask-MySQL-Connector's.
        "MYSQL_POOL_SIZE": 5,
    }
    assert app_config(others) == app_config({})


@pytest.mark.parametrize(
    ("value", "result"),
    [(False, None), ("false", None), ("False", None), ("db-pool", "db-pool")],
)
def test_the_command_group_has_a_name_or_is_off(value: object, result: Any) -> None:
    assert app_config({"MYSQLPOOL_CLI": value}).cli == result


@pytest.mark.parametrize("value", [True, "true", "", "two words", 0, None, "-h"])
def test_a_command_group_that_is_neither_is_a_fault(value: object) -> None:
    assert app_fault("MYSQLPOOL_CLI", value).startswith(
        "MYSQLPOOL_CLI must be a command's name, or False for none"
    )


def test_errors_may_be_left_to_the_app() -> None:
    assert app_config({"MYSQLPOOL_HANDLE_ERRORS": False}).handle_errors is False
    assert "must be True or False" in app_fault("MYSQLPOOL_HANDLE_ERRORS", 0)


def test_one_error_lists_every_fault_by_its_full_name() -> None:
    with pytest.raises(ConfigError) as caught:
        app_config(
            {
                "MYSQLPOOL_MAX_SIZE": 0,
                "MYSQLPOOL_HANDLE_ERRORS": "yes",
                "MYSQLPOOL_PORT": "mysql",
                "MYSQLPOOL_PASSWORD": 1.5,
                "MYSQLPOOL_DB": "shop",
                "MYSQLPOOL_URL": "mysql://h?timeout=x",
            }
        )
    named = [re.split(r" (?!\()", fault)[0] for fault in caught.value.faults]
    assert named == [
        "MYSQLPOOL_DB",
        "MYSQLPOOL_HANDLE_ERRORS",
        "MYSQLPOOL_PORT",
        "MYSQLPOOL_PASSWORD",
        "MYSQLPOOL_MAX_SIZE",
        "MYSQLPOOL_URL (timeout)",
    ]
    assert all(fault in str(caught.value) for fault in caught.value.faults)


def test_the_environment_is_read_as_flask_reads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = {
        "URL": "mysql://u@db.example/shop",
        "PASSWORD": '"1e10"',
        "USER": "2024",
        "MAX_SIZE": "4",
        "TIMEOUT": "0.5",
        "AUTOCOMMIT": "True",
        "SETSESSION": '["SET a=1"]',
        "CONNECT_ARGS__local_infile": "true",
        "CLI": "False",
    }
    for key, value in environment.items():
        monkeypatch.setenv(f"FLASK_MYSQLPOOL_{key}", value)
    app = Flask("shop")
    app.config.from_prefixed_env()
    config = AppConfig.from_mapping(app.config, name=app.name)
    it = config.pools["default"]
    assert (it.server, it.user, it.password) == ("db.example:3306/shop", "2024", "1e10")
    assert (it.max_size, it.timeout, it.autocommit) == (4, 0.5, True)
    assert (it.setsession, it.connect_args) == (("SET a=1",), {"local_infile": True})
    assert config.cli is None


@pytest.mark.parametrize("password", ["1e10", "null", "true", "NaN", "[1]"])
def test_a_password_unquoted_in_the_environment_is_refused(
    password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_MYSQLPOOL_PASSWORD", password)
    app = Flask("shop")
    app.config.from_prefixed_env()
    (fault,) = faults(AppConfig.from_mapping, app.config, name=app.name)
    assert "quote it" in fault


# What is shown


@pytest.mark.parametrize(
    ("keys", "server"),
    [
        ({}, "localhost:3306"),
        ({"HOST": "127.0.0.1", "DATABASE": "shop"}, "127.0.0.1:3306/shop"),
        ({"HOST": "::1", "DATABASE": "shop"}, "[::1]:3306/shop"),
        ({"UNIX_SOCKET": "/run/my.sock", "DATABASE": "shop"}, "/run/my.sock/shop"),
    ],
)
def test_the_server_is_named_as_in_status(keys: dict[str, Any], server: str) -> None:
    assert pool(**keys).server == server


@pytest.mark.parametrize("password", [SECRET, "", lambda: SECRET])
def test_no_secret_is_in_what_is_shown(password: Any) -> None:
    it = pool(PASSWORD=password, CONNECT_ARGS={"auth_plugin_map": SECRET})
    assert it.settings()["PASSWORD"] == "***"
    assert it.settings()["CONNECT_ARGS"] == {"auth_plugin_map": "***"}
    assert SECRET not in f"{it!r} {it} {it.settings()}"
    assert "password" not in repr(it) and "<function" not in repr(it)


def test_a_password_in_the_wrong_place_is_not_shown() -> None:
    url = f"mysql://u:{SECRET}@h/d"
    keys = {
        "HOST": url,
        "PORT": url,
        "CHARSET": url,
        "INIT_COMMAND": [SECRET],
        "SETSESSION": f"SET PASSWORD='{SECRET}'",
        "PASSWORD": [SECRET],
        "CONNECT_ARGS": SECRET,
        "MAX_SIZE": {"password": SECRET},
    }
    found = faults(pool, **keys)
    assert len(found) == len(keys)
    assert SECRET not in str(found)


SETTINGS = [
    *pool().settings(),
    *(f.name.upper() for f in dataclasses.fields(AppConfig)),
]


@pytest.mark.parametrize("where", sorted({"BINDS", "BINDS.URL", "URL", *SETTINGS}))
def test_a_url_in_the_place_of_another_setting_is_not_shown(where: str) -> None:
    url = f"mysql://u:{SECRET}@h/d"
    shapes: list[Any] = [url, f"{url},h", f"h,{url}", [url, "h"], [url], {"a": url}]
    for value in [*shapes, {url: {}}, {url: url}, {"b": {url: url}}]:
        mapping: dict[str, Any] = {"MYSQLPOOL_HOST": "h", "MYSQLPOOL_STATUS_DIR": False}
        if where == "BINDS.URL":
            mapping["MYSQLPOOL_BINDS"] = {"b": {"URL": value}}
        else:
            mapping[f"MYSQLPOOL_{where}"] = value
        try:
            found = bare_app_config(mapping)
        except ConfigError as error:
            said = str(error)
        else:
            said = repr(
                [found, [(p.server, p.settings()) for p in found.pools.values()]]
            )
        assert SECRET not in said, (value, said)


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
secret_urls = st.tuples(
    st.sampled_from(["mysql", "mariadb", "mysql+pymysql", "", "x"]),
    st.text("abc:/@?#[]%& =", max_size=6),
    st.text("abc:/@?#[]%& =", max_size=6),
).map(lambda t: f"{t[0]}://u:{t[1]}{SECRET}{t[2]}@h/d")


@settings(derandomize=True, max_examples=400)
@given(
    st.dictionaries(st.sampled_from(sorted(pool().settings())), junk, max_size=4),
    st.one_of(secret_urls, junk),
    st.sampled_from([SECRET, [SECRET], {"a": SECRET}, (SECRET,), SECRET.encode()]),
)
def test_whatever_is_given_is_taken_or_refused_without_a_secret(
    keys: dict[str, Any], url: Any, password: Any
) -> None:
    mapping = {**keys, "URL": url, "PASSWORD": password}
    mapping["CONNECT_ARGS"] = {"server_public_key": SECRET, "zzz": SECRET}
    with pytest.raises(ConfigError) as caught:
        PoolConfig.from_mapping(mapping)
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown + repr(caught.value)
    del mapping["CONNECT_ARGS"]
    try:
        shown = repr(PoolConfig.from_mapping({**mapping, "PASSWORD": SECRET}))
    except ConfigError as error:
        shown = "".join(traceback.format_exception(error))
    assert SECRET not in shown


@settings(derandomize=True, max_examples=200)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_any_password_travels_in_a_url_when_it_is_percent_encoded(text: str) -> None:
    encoded = "".join(f"%{byte:02X}" for byte in text.encode())
    assert pool(URL=f"mysql://u:{encoded}@h/d").password == text
