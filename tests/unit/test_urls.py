"""URLs as providers, frameworks and other clients write them."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path

import pytest

from flask_mysqlpool import ConfigError, Pool, PoolConfig
from flask_mysqlpool.config import settings

ACCOUNT = "shop:p%40ss@db.example.com:25060/shop-1.eu"

#: What follows the account, and the mode of TLS that it means.
MODES = {
    "": "PREFERRED",
    # DigitalOcean, Aiven
    "ssl-mode=REQUIRED": "REQUIRED",
    "ssl_mode=VERIFY_CA": "VERIFY_CA",
    # Vercel, Neon's form
    "sslmode=require": "REQUIRED",
    "sslmode=verify-full": "VERIFY_IDENTITY",
    "sslmode=disable": "DISABLED",
    # PlanetScale, TiDB
    "sslaccept=strict": "VERIFY_IDENTITY",
    "sslaccept=accept_invalid_certs": "REQUIRED",
    'ssl={"rejectUnauthorized":true}': "VERIFY_IDENTITY",
    'ssl={"rejectUnauthorized":false}': "REQUIRED",
    # JDBC
    "useSSL=true&requireSSL=true": "REQUIRED",
    "useSSL=true&verifyServerCertificate=false": "REQUIRED",
    "useSSL=true&verifyServerCertificate=true": "VERIFY_CA",
    "verifyServerCertificate=true&useSSL=true": "VERIFY_CA",
    "useSSL=false": "DISABLED",
    # Go
    "tls=true&parseTime=true": "VERIFY_IDENTITY",
    "tls=skip-verify": "REQUIRED",
    "tls=preferred": "PREFERRED",
    # ClearDB
    "reconnect=true": "PREFERRED",
    "autoReconnect=true&useUnicode=true&allowPublicKeyRetrieval=true": "PREFERRED",
}


@pytest.mark.parametrize("query", MODES)
@pytest.mark.parametrize(
    "scheme", ["mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql"]
)
def test_it_is_understood(scheme: str, query: str) -> None:
    config = PoolConfig.from_mapping({"URL": f"{scheme}://{ACCOUNT}?{query}"})
    assert (config.host, config.port, config.database, config.user) == (
        *("db.example.com", 25060, "shop-1.eu", "shop"),
    )
    assert config.password == "p@ss"
    assert config.ssl_mode == MODES[query]


def test_a_setting_of_ours_wins() -> None:
    url = f"mysql://{ACCOUNT}?useSSL=true&requireSSL=true"
    config = PoolConfig.from_mapping({"URL": url, "SSL_MODE": "VERIFY_IDENTITY"})
    assert config.ssl_mode == "VERIFY_IDENTITY"


def test_what_has_no_effect_is_told_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"mysql://{ACCOUNT}?reconnect=true"
    Pool(PoolConfig.from_mapping({"URL": url, "NAME": "shop"})).close()
    [record] = caplog.records
    assert record.getMessage().startswith("shop: URL (reconnect) has no effect")
    assert record.levelno == logging.DEBUG


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        ("sslmode=sometimes", "must be one of DISABLED, PREFERRED"),
        ("useSSL=perhaps", "SSL_MODE"),
        ("connection_limit=5", "MAX_SIZE"),
        ("serverTimezone=UTC", "SETSESSION"),
    ],
)
def test_what_is_not_understood_is_a_fault_that_says_what_to_write(
    query: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        PoolConfig.from_mapping({"URL": f"mysql://{ACCOUNT}?{query}"})
    assert hint in str(raised.value)


def test_a_cloud_sql_socket_is_understood() -> None:
    config = PoolConfig.from_mapping(
        {"URL": "mysql+pymysql://u:p@/shop?unix_socket=/cloudsql/project:region:name"}
    )
    assert config.unix_socket == "/cloudsql/project:region:name"


@pytest.mark.parametrize("variable", ["JAWSDB_URL", "CLEARDB_DATABASE_URL"])
def test_the_variable_of_a_provider_is_named_where_no_server_is_configured(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, f"mysql://{ACCOUNT}")
    with pytest.raises(ConfigError) as raised:
        settings.AppConfig.from_mapping({}, name="shop")
    assert f'os.environ["{variable}"]' in str(raised.value)
    assert "p%40ss" not in str(raised.value)


PAGE = Path(__file__).parents[2] / "docs" / "platforms.rst"

#: The settings of each block of that page: host, port, mode of TLS.
ON_THE_PAGE = {
    "PythonAnywhere": ("ada.mysql.pythonanywhere-services.com", 3306, "PREFERRED"),
    "Amazon RDS and Aurora": (
        "shop.c1abcdefghij.eu-west-1.rds.amazonaws.com",
        3306,
        "VERIFY_IDENTITY",
    ),
    "Google Cloud SQL": ("localhost", 3306, "PREFERRED"),
    "Azure Database for MySQL": (
        "shop.mysql.database.azure.com",
        3306,
        "VERIFY_IDENTITY",
    ),
    "PlanetScale": ("aws.connect.psdb.cloud", 3306, "VERIFY_IDENTITY"),
    "DigitalOcean and Aiven": (
        "shop.db.ondigitalocean.com",
        25060,
        "VERIFY_IDENTITY",
    ),
}


def sections_of_the_page() -> dict[str, dict[str, str]]:
    """The settings that each section of the page shows."""
    title = re.compile(r"^(.+)\n-+\n", re.MULTILINE)
    setting = re.compile(r'^    app\.config\["MYSQLPOOL_(\w+)"\] = (["\'].+)', re.M)
    _, *parts = title.split(PAGE.read_text("utf-8"))
    return {
        name: {key: ast.literal_eval(value) for key, value in setting.findall(text)}
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


def test_every_provider_of_the_page_is_checked_here() -> None:
    sections = sections_of_the_page()
    assert [name for name in sections if "URL" in sections[name]] == list(ON_THE_PAGE)


@pytest.mark.parametrize("provider", ON_THE_PAGE)
def test_the_settings_for_a_provider_mean_what_the_page_says(
    provider: str, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").touch()
    settings = sections_of_the_page()[provider]
    if "SSL_CA" in settings:
        settings["SSL_CA"] = str(tmp_path / "ca.pem")
    config = PoolConfig.from_mapping(settings)
    assert (config.host, config.port, config.ssl_mode) == ON_THE_PAGE[provider]
    assert config.user in ("shop", "ada", "doadmin") and config.password == "secret"
