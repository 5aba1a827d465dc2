"""docs/ and README.md: what they name is there, what they quote is said, and runs.

:mod:`test_recipes`, :mod:`test_coming_from` and :mod:`test_seeds` have the pages that
they are named after.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from html.parser import HTMLParser
from importlib.metadata import metadata
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
from conftest import local_server, until
from flask import Flask, redirect, request, url_for

import flask_mysqlpool
from flask_mysqlpool import MySQLPool, get_db, signals
from flask_mysqlpool.cli.check import _FIXES
from flask_mysqlpool.cli.commands import group
from flask_mysqlpool.config.settings import AppConfig
from flask_mysqlpool.testing import LocalServer

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGE = Path(flask_mysqlpool.__file__).parent
README = ROOT / "README.md"

#: Where the pages have their database.
PLACES = re.compile(r"mysql://shop:secret@[\w.]+/shop")


class Block(NamedTuple):
    """A piece of code on a page."""

    language: str
    options: dict[str, str]
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    if page.suffix == ".md":
        form = r"^```(?P<language>\w+)\n(?P<options>)(?P<code>.*?)^```$"
        flags = re.MULTILINE | re.DOTALL
    else:
        form = (
            r"^(?P<indent> *)\.\. code-block:: (?P<language>\w+)\n"
            r"(?P<options>(?:(?P=indent)    :.*\n)*)\n"
            r"(?P<code>(?:(?P=indent)    .*\n|\n)+)"
        )
        flags = re.MULTILINE
    return [
        Block(
            found["language"],
            dict(re.findall(r":(\w+): *(.*)", found["options"])),
            textwrap.dedent(found["code"]).strip("\n") + "\n",
            text.count("\n", 0, found.start("code")) + 1,
        )
        for found in re.finditer(form, text, flags)
    ]


PAGES = [*sorted(DOCS.glob("*.rst")), README]
ALL_BLOCKS = {page.name: blocks(page) for page in PAGES}


def python(page: str) -> list[Block]:
    """The code of a page, without what this Python is too old for."""
    left_out = set() if sys.version_info >= (3, 14) else {"python-3-14"}
    return [
        block
        for block in ALL_BLOCKS[page]
        if block.language == "python" and block.options.get("class") not in left_out
    ]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every ``flask mysqlpool …`` of a console, with the page that it is on."""
    for page, found in ALL_BLOCKS.items():
        for block in found:
            for line in re.findall(r"flask mysqlpool ([^#;&|\n]+)", block.code):
                yield page, line.split()


# What there is, is named


@pytest.fixture(scope="module")
def text() -> str:
    return "\n".join(page.read_text("utf-8") for page in PAGES)


@pytest.mark.parametrize("name", flask_mysqlpool.__all__)
def test_every_public_name_is_in_the_docs(name: str, text: str) -> None:
    assert re.search(rf"\b{name}\b", text)


def test_every_public_error_is_in_the_reference_and_among_the_troubles() -> None:
    errors = [n for n in vars(flask_mysqlpool.errors) if n in flask_mysqlpool.__all__]
    reference = (DOCS / "api.rst").read_text("utf-8")
    troubles = (DOCS / "troubleshooting.rst").read_text("utf-8")

    assert len(errors) >= 10
    assert [n for n in errors if f"autoexception:: {n}\n" not in reference] == []
    assert [n for n in errors if n != "PoolError" and n not in troubles] == []


COMMANDS = group.commands


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_each_of_its_options_is_in_the_docs(name: str) -> None:
    page = (DOCS / "commands.rst").read_text("utf-8")
    options = [o for p in COMMANDS[name].params for o in p.opts]

    assert re.search(rf"\b{name}\b[^\n]*\n-+\n", page)
    assert [option for option in options if option not in page] == []


@pytest.mark.parametrize(("page", "words"), list(commands()))
def test_every_command_in_the_docs_is_there(page: str, words: list[str]) -> None:
    if words[0] in ("…", "--help"):
        return
    known = [option for p in COMMANDS[words[0]].params for option in p.opts]

    assert [w for w in words if w.startswith("--") and w not in known] == []


def test_the_readme_is_short_and_shows_what_the_page_of_commands_shows() -> None:
    text = README.read_text("utf-8")
    [status] = [b.code for b in ALL_BLOCKS["README.md"] if "mysqlpool status" in b.code]

    assert text.count("\n") <= 120
    assert any(b.code.startswith(status) for b in ALL_BLOCKS["commands.rst"])


def test_the_readme_names_scripts_and_pages_that_are_there() -> None:
    text = README.read_text("utf-8")
    scripts = set(re.findall(r"\bscripts/\w+", text))
    links = set(re.findall(r"\]\((?!http)([^)]+)\)", text))

    assert scripts and [s for s in scripts if not os.access(ROOT / s, os.X_OK)] == []
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_has_links_that_work_on_the_package_index() -> None:
    pytest.importorskip("hatchling")
    place = importlib.util.spec_from_file_location("hatch", ROOT / "hatch_build.py")
    assert place and place.loader
    build = importlib.util.module_from_spec(place)
    place.loader.exec_module(build)
    urls = {"Documentation": "https://pages.test", "Source": "https://code.test"}
    before = re.findall(r"\]\(([^)]+)\)", README.read_text("utf-8"))

    after = re.findall(
        r"\]\(([^)]+)\)", build.absolute(README.read_text("utf-8"), urls)
    )

    assert [link for link in after if not link.startswith("https://")] == []
    assert dict(zip(before, after, strict=True)).items() >= {
        ("docs/tutorial.rst", "https://pages.test/tutorial.html"),
        ("CHANGES.md", "https://code.test/blob/main/CHANGES.md"),
        (
            "docs/_static/monitor/light.webp",
            "https://code.test/raw/main/docs/_static/monitor/light.webp",
        ),
    }


# What is quoted is said


def messages() -> list[str]:
    """All texts in the package, with … for what is filled in."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(map(_piece, node.values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                # What is filled in later: by %, by str.format().
                found.append(re.sub(r"%[sdr]|%\.\df|\{\w*(?:!r)?\}", "…", node.value))
    return found


def _piece(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else "…"


OURS = [
    pytest.param(line, id=line[:40])
    for block in ALL_BLOCKS["troubleshooting.rst"]
    if block.options.get("class") == "ours"
    for line in block.code.splitlines()
]


@pytest.fixture(scope="module")
def said() -> str:
    return "\n".join(messages())


@pytest.mark.parametrize("message", OURS)
def test_a_message_that_is_quoted_is_one_of_ours(message: str, said: str) -> None:
    pieces = [piece.strip() for piece in message.split("…")]

    assert [piece for piece in pieces if piece not in said] == []
    assert any(len(piece) > 10 for piece in pieces)


def test_every_trouble_has_a_cause_a_reaction_and_a_remedy() -> None:
    page = (DOCS / "troubleshooting.rst").read_text("utf-8")
    sections = re.split(r"^(.+)\n~+\n", page, flags=re.MULTILINE)[1:]
    titles, bodies = sections[::2], sections[1::2]
    fields = ["Cause", "What the pool does", "What you do"]

    assert len(titles) > 30
    for title, body in zip(titles, bodies, strict=True):
        assert re.findall(r"^:([\w ]+):", body, re.MULTILINE) == fields, title


def test_every_error_that_the_doctor_knows_is_among_the_troubles() -> None:
    page = (DOCS / "troubleshooting.rst").read_text("utf-8")

    assert [code for code in _FIXES if str(code) not in page] == []


INDEX = re.compile(r":ref:`(\d{4}|\w+) <(error-[\w-]+)>`")


SECTION = re.compile(
    r"^\.\. _(error-[\w-]+):\n\n(.+?)(?=\n\.\. _|\n[^\n]+\n(?:-{3,}|~{3,})\n|\Z)",
    re.MULTILINE | re.DOTALL,
)


def test_the_index_leads_from_each_number_to_what_is_said_of_it() -> None:
    page = (DOCS / "troubleshooting.rst").read_text("utf-8")
    index, _, rest = page.partition("No connection can be opened\n---")
    leads = INDEX.findall(index)
    there = dict(SECTION.findall(rest + (DOCS / "scaling-out.rst").read_text("utf-8")))
    named = [name for name, _ in leads]
    numbers = [int(name) for name in named if name.isdigit()]

    assert [lead for lead in leads if lead[0] not in there.get(lead[1], "")] == []
    assert numbers == sorted({*numbers})
    # 3600 is a setting's value.
    told = {int(n) for n in re.findall(r"\b[1-9]\d{3}\b", rest)} - {3600}
    assert told | {*_FIXES} <= {*numbers}
    assert {"ed25519", "parsec"} <= {*named}


def test_every_metric_is_in_the_docs() -> None:
    pytest.importorskip("prometheus_client")
    pytest.importorskip("opentelemetry")
    from flask_mysqlpool.metrics import opentelemetry, prometheus

    page = (DOCS / "observability.rst").read_text("utf-8")
    names = [f"mysqlpool_{name}" for _, name, _, _ in prometheus._METRICS]
    names += [f"``{name}``" for name, *_ in opentelemetry._VALUES]
    names += [f"``{name}``" for name in opentelemetry._DURATIONS]

    assert [name for name in names if name not in page] == []


# Code


@pytest.mark.parametrize(
    ("page", "block"),
    [
        pytest.param(page, block, id=f"{page}:{block.line}")
        for page in ALL_BLOCKS
        for block in python(page)
    ],
)
def test_a_block_of_python_compiles(page: str, block: Block) -> None:
    compile(block.code, f"{page}:{block.line}", "exec", dont_inherit=True)


class Page:
    """The blocks of a page, and the names that they share."""

    def __init__(self, name: str, url: str, **names: Any) -> None:
        self.name, self.url = name, url
        self.names = {"__name__": "page", **names}
        self._left = python(name)

    def run(self, count: int = 1) -> None:
        """Execute the next blocks."""
        for _ in range(count):
            block = self._left.pop(0)
            code = PLACES.sub(self.url, block.code)
            file = f"{self.name}:{block.line}"
            exec(compile(code, file, "exec", dont_inherit=True), self.names)

    @property
    def is_done(self) -> bool:
        return not self._left


@pytest.fixture(scope="module")
def database() -> Iterator[LocalServer]:
    """MariaDB alone: it is the pages that are tested here."""
    with local_server("mariadb") as server:
        yield server


@pytest.fixture
def run_sql(database: LocalServer) -> Callable[[str], list[Any]]:
    def run(statement: str) -> list[Any]:
        with database.connect(database="test") as root, root.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    return run


RunSql = Callable[[str], list[Any]]


@pytest.fixture
def people(run_sql: RunSql) -> None:
    run_sql("DROP TABLE IF EXISTS person, basket, account")
    run_sql("CREATE TABLE person (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(80))")
    run_sql("INSERT INTO person (name) VALUES ('Ada')")
    run_sql("CREATE TABLE account (id INT PRIMARY KEY, balance INT)")
    run_sql("INSERT INTO account VALUES (1, 100), (2, 0)")
    run_sql("CREATE TABLE basket (touched DATETIME)")
    run_sql("INSERT INTO basket VALUES ('2001-01-01'), (NOW())")


@pytest.fixture
def pooled_app(
    database: LocalServer, tmp_path: Path
) -> Iterator[tuple[Flask, MySQLPool]]:
    app = Flask("shop", instance_path=str(tmp_path))
    app.config["MYSQLPOOL_URL"] = database.url
    db = MySQLPool(app)
    yield app, db
    with app.app_context():
        db.close_pool()


PooledApp = tuple[Flask, MySQLPool]

ADA = {"id": 1, "name": "Ada"}


def test_the_first_page_runs(database: LocalServer, people: None) -> None:
    page = Page("index.rst", database.url)
    page.run()

    assert page.names["app"].test_client().get("/person/all").json == [ADA]
    assert page.is_done
    with page.names["app"].app_context():
        page.names["db"].close_pool()


def test_the_quickstart_runs(
    database: LocalServer,
    people: None,
    run_sql: RunSql,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threading = importlib.import_module("threading")
    settings = types.SimpleNamespace(config={})
    about = dict(Flask=Flask, MySQLPool=MySQLPool, get_db=get_db, threading=threading)
    names = dict(about, request=request, redirect=redirect, url_for=url_for)
    names["SSCursor"] = importlib.import_module("pymysql.cursors").SSCursor
    page = Page("quickstart.rst", database.url, app=settings, **names)
    page.run(2)
    assert settings.config["MYSQLPOOL_URL"] == database.url
    monkeypatch.setenv("FLASK_MYSQLPOOL_URL", database.url)
    app = page.names["app"] = page.names["create_app"]()
    page.run()
    with app.app_context():
        get_db()  # starts the threads of the pool
    # The thread of a connect may end meanwhile; those of the pool stay.
    lasting = {t for t in threading.enumerate() if t.name.startswith("mysqlpool-")}
    page.run(1)
    until(lambda: len(run_sql("SELECT * FROM basket")) == 1)
    assert lasting and lasting <= set(threading.enumerate())
    page.run()
    client = app.test_client()

    assert client.post("/person", data={"name": "Joan"}).location == "/person/all"
    assert client.get("/person/all").json == [ADA, {"id": 2, "name": "Joan"}]
    assert client.get("/export").text == "1,Ada\n2,Joan\n"

    page.run()
    assert page.names["connection"].returned
    page.names["pool"].close()
    # And the last thing on the page: what to do where there is no database.
    page.names["app"] = broken = Flask("broken")
    page.run()
    assert page.is_done
    broken.config["MYSQLPOOL_URL"] = "mysql://shop:secret@127.0.0.1:1/shop"
    MySQLPool(broken)
    broken.get("/")(lambda: str(get_db()))
    assert broken.test_client().get("/").status_code == 503
    with app.app_context():
        page.names["db"].close_pool()


def test_the_page_about_statements_runs(
    database: LocalServer, people: None, run_sql: RunSql, pooled_app: PooledApp
) -> None:
    run_sql("INSERT INTO person (name) VALUES ('Joan')")
    settings = types.SimpleNamespace(config={})
    page = Page("statements.rst", database.url, app=settings, db=pooled_app[1])
    while not page.is_done:
        page.run()
    does = types.SimpleNamespace(**page.names)
    assert settings.config == {"MYSQLPOOL_CURSORCLASS": "RowCursor"}
    with pooled_app[0].app_context():
        get_db().cursorclass = flask_mysqlpool.RowCursor

        assert does.greet(1) == "Hello Ada"
        assert does.greet(9) == "No person has this number"
        assert does.find("Jo", [1, 2]) == ([("Joan",)], [("Ada",), ("Joan",)])
        assert does.people_by("name")[0]["name"] == "Ada"
        assert does.person(2) == does.Person(2, "Joan")
        assert does.people() == [does.Person(1, "Ada"), does.Person(2, "Joan")]
        assert does.lengths() == [3, 4]
        if "search" in page.names:
            assert does.search("Ada", [1, 2], "id") == [("Joan",)]
        assert does.add(["Eve", "Bob", "Cy"]) == 3
    assert len(run_sql("SELECT * FROM person WHERE name IN ('Eve', 'Bob', 'Cy')")) == 3


def test_the_page_about_transactions_runs(
    database: LocalServer, people: None, run_sql: RunSql, pooled_app: PooledApp
) -> None:
    app, db = pooled_app
    mails: list[int] = []
    run_sql("CREATE TABLE item (number INT)")
    names = {"app": app, "db": db, "send_mail": mails.append}
    page = Page("transactions.rst", database.url, **names)
    page.run(2)

    assert app.test_client().post("/transfer").text == "done"
    assert run_sql("SELECT balance FROM account ORDER BY id") == [(90,), (10,)]
    with app.app_context():
        page.run(3)
    assert run_sql("SELECT balance FROM account ORDER BY id") == [(80,), (20,)]
    assert (mails, run_sql("SELECT number FROM item")) == ([7], [(7,)])
    assert page.is_done


def test_the_page_about_observability_runs(
    database: LocalServer, pooled_app: PooledApp, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("prometheus_client")
    pytest.importorskip("opentelemetry.sdk")
    app, db = pooled_app
    page = Page("observability.rst", database.url, app=app, db=db)
    while not page.is_done:
        page.run()
    client = app.test_client()
    with app.app_context():
        get_db()
        with pytest.raises(flask_mysqlpool.PoolTimeout):
            db.pool().pause()
            db.connection(timeout=0)
    with app.app_context():
        db.pool().resume()

    assert client.get("/ready").json in (
        {"state": "ok", "reasons": []},
        {"state": "unknown", "reasons": ["shop: no connection is open yet"]},
    )
    metrics = client.get("/metrics").text
    named = re.findall(r"``(mysqlpool_\w+)", (DOCS / page.name).read_text("utf-8"))
    assert len(named) > 10
    assert [name for name in named if name not in metrics] == []
    assert "default: shop: no connection within" in caplog.text
    # Its receiver is held by the page, and would be heard of in other tests.
    for receiver in list(signals.pool_timeout.receivers_for(app)):
        signals.pool_timeout.disconnect(receiver)


def test_what_the_page_about_settings_sets_can_be_set() -> None:
    app = types.SimpleNamespace(config={})
    for block in python("settings.rst"):
        app.config.clear()
        exec(compile(block.code, f"settings.rst:{block.line}", "exec"), {"app": app})
        assert len(AppConfig.from_mapping(app.config, name="shop").pools) > 1


SHOP = """
from flask import Flask, request
from flask_mysqlpool import MySQLPool, get_db

db = MySQLPool()

def create_app(config):
    app = Flask(__name__)
    app.config.from_mapping(config)
    db.init_app(app)

    @app.post("/person")
    def add():
        with db.transaction() as connection:
            connection.execute("INSERT INTO person VALUES (%s)", [request.json["name"]])
        return ""

    @app.get("/person/all")
    def everybody():
        return list(get_db().execute("SELECT * FROM person"))

    return app

def create_tables():
    get_db().execute("CREATE TABLE person (name VARCHAR(80))")
"""


def run_pytest(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


def test_the_page_about_testing_has_tests_that_pass(tmp_path: Path) -> None:
    pytest.importorskip("pytest_flask")
    own, count, network = python("testing.rst")
    conftest, tests = own.code.split("# test_shop.py\n")
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_shop.py").write_text(tests)
    (tmp_path / "test_count.py").write_text(count.code)
    (tmp_path / "test_network.py").write_text(network.code)

    assert "4 passed" in run_pytest(tmp_path)


# The tutorial, and the pages as they are built, which takes place meanwhile

Building = tuple[Path, "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def building(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Building | None]:
    """Sphinx, at work; and the folder that it builds the pages in."""
    needed = "sphinx", "myst_parser", "pallets_sphinx_themes"
    if None in map(importlib.util.find_spec, needed):
        yield None
        return
    folder = tmp_path_factory.mktemp("html")
    command = [sys.executable, "-m", "sphinx", "-E", "-n", "-q", "-b", "html"]
    command += ["-d", str(tmp_path_factory.mktemp("doctrees")), str(DOCS), str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        yield folder, process
        process.kill()


class Terminal:
    """A shell that runs what a page says, and whatever it starts beside that."""

    END = "-- end --"

    def __init__(self, folder: Path) -> None:
        bin = Path(sys.executable).parent
        self.folder = folder
        self.replaced: dict[str, str] = {}
        self._shell = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env={**os.environ, "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> str:
        for before, after in self.replaced.items():
            command = command.replace(before, after)
        assert self._shell.stdin and self._shell.stdout
        self._shell.stdin.write(f"{command} </dev/null\necho; echo '{self.END}'\n")
        self._shell.stdin.flush()
        lines = iter(self._shell.stdout.readline, "")
        text = "".join(iter(lambda: next(lines), f"{self.END}\n"))
        return text.removesuffix("\n")

    def start(self, command: str, log: str) -> None:
        """In another terminal."""
        self.run(f"{command} >{log} 2>&1 & last=$!")

    def serve(self, command: str, port: int) -> None:
        """In another terminal, until it answers."""
        self.start(command, "site.log")
        curl = f"curl -s http://127.0.0.1:{port}/ -o /dev/null; echo $?"
        until(lambda: self.run(curl) == "0\n", 30)

    def stop_last(self) -> None:
        self.run("kill $last; wait $last")

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self.run("kill $(jobs -p); wait")
        self._shell.communicate()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


def steps(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a console, and what it prints."""
    for part in block.code.split("$ ")[1:] if block.code.startswith("$ ") else []:
        command, _, output = part.partition("\n")
        yield command, output


def is_like(output: str, shown: str) -> bool:
    """Whether this was printed, where … may stand for anything."""
    form = ".*".join(map(re.escape, shown.strip().split("…")))
    return re.fullmatch(form + ".*", output.strip(), re.DOTALL) is not None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as port:
        number: int = port.getsockname()[1]
        return number


def test_the_readme_runs_as_printed(
    database: LocalServer, terminal: Terminal, run_sql: RunSql
) -> None:
    for program in ("bash", "curl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    run_sql("DROP TABLE IF EXISTS person")
    number = free_port()
    terminal.replaced |= {"8000": str(number), "localhost": "127.0.0.1"}
    terminal.replaced["curl "] = "curl -s "
    [app] = python("README.md")
    (terminal.folder / "app.py").write_text(PLACES.sub(database.url, app.code))
    [console] = [b for b in ALL_BLOCKS["README.md"] if "flask run" in b.code]
    for command, shown in steps(console):
        if command.startswith("flask run"):
            terminal.serve(command, number)
        else:
            output = terminal.run(command)
            assert is_like(output.replace("\n", ""), shown.replace("\n", "")), output

    site = f"http://127.0.0.1:{number}/person"
    assert terminal.run(f"curl -s -o none -w '%{{http_code}}' {site}/7") == "404"


@pytest.mark.usefixtures("building")
def test_the_tutorial_works_step_by_step(terminal: Terminal) -> None:
    for program in ("bash", "curl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    pytest.importorskip("gunicorn")
    number = free_port()
    terminal.replaced["8000"] = str(number)
    config = importlib.import_module("gunicorn.config")
    if hasattr(config, "ControlSocketDisable"):
        terminal.replaced["gunicorn "] = "gunicorn --no-control-socket "
    server_log = terminal.folder / "server.log"
    serving = False
    for block in ALL_BLOCKS["tutorial.rst"]:
        caption = block.options.get("caption", "")
        if block.language == "python":
            with (terminal.folder / caption).open("a") as file:
                file.write(f"\n\n{block.code}")
            continue
        for command, shown in steps(block):
            if command == "python server.py":
                terminal.start(command, server_log.name)
                until(lambda: server_log.exists() and server_log.read_text())
                url = server_log.read_text().strip()
                assert is_like(url, shown)
                terminal.replaced[shown.strip()] = url
            elif caption == "In another terminal":
                if serving:
                    terminal.stop_last()
                terminal.serve(command, number)
                serving = True
            elif not command.startswith("pip "):
                output = terminal.run(command)
                assert is_like(output, shown), f"{command}\n{output}"


class Links(HTMLParser):
    """The links of a page, and what they may point to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.ids: set[str] = {""}
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        self.ids |= {about[key] or "" for key in ("id", "name") if about.get(key)}
        for key in ("href", "src"):
            if about.get(key):
                self.links.add(about[key] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def built(building: Building | None) -> tuple[Path, str]:
    """The folder of the built pages, and what Sphinx has warned of."""
    if building is None:
        pytest.skip("Sphinx, its theme, or myst-parser is not installed")
    folder, process = building
    _, warnings = process.communicate(timeout=100)
    assert process.returncode == 0, warnings
    return folder, warnings


Built = tuple[Path, str]


def test_the_pages_are_built_without_a_warning(built: Built) -> None:
    # Docstrings have types to link that are documented nowhere.
    missing = r"WARNING: py:\w+ reference target not found: "
    of_ours = rf"\S+\.(?:rst|md):\d+: {missing}flask_mysqlpool"
    of_others = rf".*{missing}(?:flask|pymysql\.cursors|collections|contextlib|os)\."
    warnings = [
        line
        for line in built[1].splitlines()
        if not re.search(missing, line) or re.match(f"{of_ours}|{of_others}", line)
    ]

    assert warnings == []


def test_the_pages_link_every_name_of_the_stored_inventories(built: Built) -> None:
    pages = [path.read_text("utf-8") for path in built[0].glob("*.html")]
    for inventory in sorted((DOCS / "_inventories").iterdir()):
        names = re.findall(r"^([\w.]+) \w+ \S+$", inventory.read_text("utf-8"), re.M)
        linked = [n for n in names if any(f'#{n}"' in page for page in pages)]

        assert names and linked == names, inventory.name


def test_a_page_says_where_its_newest_form_is(built: Built) -> None:
    urls = metadata("flask-pymysqlpool").get_all("Project-URL") or []
    [address] = [u.split(", ")[1] for u in urls if u.startswith("Documentation, ")]
    page = (built[0] / "settings.html").read_text("utf-8")

    assert f'<link rel="canonical" href="{address}/settings.html"' in page


def test_every_link_within_the_pages_leads_somewhere(built: Built) -> None:
    folder, _ = built
    pages = {
        path.name: Links(path.read_text("utf-8")) for path in folder.glob("*.html")
    }
    dead = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or parts.path.startswith("/"):
                continue
            target = unquote(parts.path) or name
            known = target not in pages or unquote(parts.fragment) in pages[target].ids
            if not ((folder / target).exists() and known):
                dead.append((name, link))

    assert len(pages) > 15
    assert dead == []


def test_every_setting_is_on_its_page_as_the_package_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(DOCS)
    script = importlib.import_module("settings_page")
    page = script.PAGE.read_text("utf-8")

    assert len(script.settings()) > 40
    assert sorted(script.ROW.findall(page)) == sorted(script.settings())
    assert page == script.written(page), "run: python docs/settings_page.py"


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.rst").read_text("utf-8")
    listed = re.findall(r"^    ([a-z-]+)$", index[index.index("toctree") :], re.M)
    there = {path.stem for path in (*DOCS.glob("*.rst"), *DOCS.glob("*.md"))}

    assert sorted(listed) == sorted(there - {"index"})


def test_the_pages_to_begin_with_are_read_in_half_an_hour() -> None:
    index = (DOCS / "index.rst").read_text("utf-8")
    groups = re.findall(r":caption: (.+)\n    :maxdepth: 1\n\n((?:    .+\n)+)", index)
    pages = " ".join(found for group, found in groups if group in ("Begin", "Use"))
    words = [len((DOCS / f"{p}.rst").read_text("utf-8").split()) for p in pages.split()]

    assert len(words) >= 6
    assert sum(words) <= 6000


# What takes tables and figures from their sources


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(DOCS / "_ext")
    return importlib.import_module


Extension = Callable[[str], Any]


def test_the_drawings_are_well_formed_and_have_titles() -> None:
    for name in ("connection-states.svg", "checkout.svg"):
        drawing = ElementTree.parse(DOCS / "_static" / name).getroot()

        assert drawing[0].tag.endswith("}title") and drawing[0].text


def test_the_table_of_subpackages_is_that_of_test_house(extension: Extension) -> None:
    sources = extension("sources")
    imports = sources.subpackages()
    modules = [path for name in imports for path in sources.modules_of(name)]

    # The package that is tested may be installed elsewhere.
    known = {str(path).rpartition("/flask_mysqlpool/")[2] for path in modules}
    own = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    assert known == own - {"__init__.py"}
    assert [path for path in modules if not sources.sentence(path)] == []


def test_a_figure_is_that_of_the_benchmarks(extension: Extension) -> None:
    results = json.loads((DOCS / "_static/benchmarks/results.json").read_text())
    exact = results["tables"]["statement"]["rows"]["ours"]["idle_us"]

    shown = extension("sources").figure("statement.ours.idle_us")

    assert abs(float(shown) - exact) <= 0.05
