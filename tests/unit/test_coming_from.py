"""That docs/coming-from.rst is true: its snippets run, its names are advised upon."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Sql, until
from flask import Flask

from flask_mysqlpool import ConfigError, Pool
from flask_mysqlpool.config import PoolConfig
from flask_mysqlpool.config.settings import AppConfig
from flask_mysqlpool.testing import LocalServer

pytestmark = pytest.mark.one_engine

Snippet = dict[str, Any]

PAGE = (Path(__file__).parents[2] / "docs" / "coming-from.rst").read_text("utf-8")

SNIPPETS: dict[str, str] = {
    name: textwrap.dedent(code)
    for name, code in re.findall(
        r"^\.\. code-block:: python\n    :name: (\S+)\n\n((?:    .*\n|\n)+)",
        PAGE,
        re.MULTILINE,
    )
}

#: Where all of them have their database.
PLACE = "mysql://shop:secret@localhost/shop"

SETTINGS = {"URL", "BINDS"} | {name.upper() for name in PoolConfig.__dataclass_fields__}


# The snippets


@pytest.fixture
def people(sql: Sql) -> Iterator[None]:
    sql("DROP TABLE IF EXISTS person")
    sql("CREATE TABLE person (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(50))")
    sql("INSERT INTO person (name) VALUES ('John'), ('Jane')")
    sql("CREATE DATABASE other")
    yield
    sql("DROP DATABASE other")
    sql("DROP TABLE person")


@pytest.fixture
def run(
    server: LocalServer, people: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Snippet]]:
    monkeypatch.chdir(tmp_path)
    made: list[Snippet] = []

    def run(name: str) -> Snippet:
        code = SNIPPETS[name].replace(PLACE, server.url)
        made.append({"__name__": name.replace("-", "_")})
        exec(compile(code, f"<{name}>", "exec"), made[-1])
        return made[-1]

    yield run
    for snippet in made:
        for pool in pools(snippet):
            pool.close()


def pools(snippet: Snippet) -> list[Pool]:
    found = [value for value in snippet.values() if isinstance(value, Pool)]
    if "app" in snippet:
        with snippet["app"].app_context():
            found += snippet["db"].pools.values()
    return found


def got(path: str) -> Callable[[Snippet], Any]:
    return lambda snippet: client(snippet["app"]).get(path).json


def posted(path: str) -> Callable[[Snippet], Any]:
    return lambda snippet: client(snippet["app"]).post(path).json


def called(name: str) -> Callable[[Snippet], Any]:
    """In a thread, which has no application context."""

    def call(snippet: Snippet) -> Any:
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(snippet[name]).result()

    return call


def client(app: Flask) -> Any:
    app.config["TESTING"] = True
    return app.test_client()


JOHN, JANE = {"id": 1, "name": "John"}, {"id": 2, "name": "Jane"}
NAMES = (("John",), ("Jane",))

#: What to do with each snippet, and what comes of it.
RESULTS: dict[str, tuple[Callable[[Snippet], Any], Any]] = {
    "from-pymysql": (posted("/person/Joan"), {"id": 3}),
    "from-flask-mysql": (posted("/person/Joan"), {"id": 3}),
    "from-flask-mysqldb": (got("/person/all"), [JOHN, JANE]),
    "from-flask-mysqlpool": (got("/person/2"), JANE),
    "from-flask-sqlalchemy": (got("/person/2"), {"name": "Jane"}),
    "from-dbutils": (called("people"), NAMES),
    "from-peewee": (got("/person/names"), ["John", "Jane"]),
    "from-pymysql-pool": (called("people"), NAMES),
    "from-django-conn-pool": (got("/databases"), ["test", "other"]),
    "from-django-mysqlpool": (called("clean_up"), 1),
    "from-simplerr-mysql": (got("/person/first"), JOHN),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_snippet_does_what_it_says_and_returns_what_it_took(
    run: Callable[[str], Snippet], name: str
) -> None:
    snippet = run(name)
    use, result = RESULTS[name]

    assert use(snippet) == result

    assert [pool.stats().in_use for pool in pools(snippet)] == [0] * len(pools(snippet))
    assert pools(snippet)[0].stats().checkouts >= 1


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("from-pymysql", [*NAMES, ("Joan",)]),
        ("from-flask-mysql", [*NAMES, ("Joan",)]),
        ("from-django-mysqlpool", [("Jane",)]),
    ],
)
def test_what_a_snippet_changes_is_committed(
    run: Callable[[str], Snippet], sql: Sql, name: str, left: list[tuple[str]]
) -> None:
    use, result = RESULTS[name]

    assert use(run(name)) == result

    assert list(sql("SELECT name FROM person ORDER BY id")) == left


def test_a_snippet_survives_what_it_says_it_does(
    run: Callable[[str], Snippet], sql: Sql
) -> None:
    snippet = run("from-simplerr-mysql")
    use, result = RESULTS["from-simplerr-mysql"]
    threads = "SELECT id FROM information_schema.processlist WHERE user = 'app'"
    assert use(snippet) == result

    for (thread,) in sql(threads):
        sql(f"KILL {thread}")
    until(lambda: not sql(threads))

    assert use(snippet) == result


def test_every_section_has_a_snippet_and_every_snippet_a_test() -> None:
    sections = re.findall(r"^(\S.*)\n-+\n", PAGE, re.MULTILINE)

    assert list(SNIPPETS) == list(RESULTS)
    assert len(sections) == len(SNIPPETS)
    assert all(PLACE in code for code in SNIPPETS.values())


# The names of settings


def names() -> list[Any]:
    """Each name of another project, and which settings of ours the page says."""
    found = []
    rows = re.findall(
        r"^    \* - (.+)\n      - (.+(?:\n        .+)*)", PAGE, re.MULTILINE
    )
    for there, here in rows:
        ours = set(re.findall(r"``([A-Z_]+)``", here))
        for name in re.findall(r"``(\w+)``", there):
            found.append(pytest.param(name, here, ours, id=name))
    return found


@pytest.mark.parametrize(("name", "here", "ours"), names())
def test_the_name_of_another_project_is_answered_by_ours(
    name: str, here: str, ours: set[str]
) -> None:
    bare = re.sub(r"^(MYSQL|MYSQLPOOL|SQLALCHEMY)_", "", name.upper())
    assert ours <= SETTINGS
    if bare in SETTINGS:
        assert ours == {bare}
        return

    with pytest.raises(ConfigError) as caught:
        AppConfig.from_mapping(
            {"MYSQLPOOL_HOST": "db", f"MYSQLPOOL_{bare}": 1}, name="shop"
        )

    [fault] = caught.value.faults
    answer = fault.removeprefix(f"MYSQLPOOL_{bare} is not a setting: ")
    if here.startswith("–"):
        assert answer.startswith("leave it out")
    else:
        assert set(re.findall(r"MYSQLPOOL_([A-Z_]+)", answer)) == ours


def test_the_page_has_names_of_every_project_with_settings() -> None:
    tables = PAGE.count("    * - There\n")

    assert tables == len(SNIPPETS) - 1
    assert len(names()) >= 60
