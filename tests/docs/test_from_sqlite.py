"""docs/from-sqlite.rst: its changes are all that the blog on sqlite3 needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import Sql

from flask_mysqlpool.testing import LocalServer

ROOT = Path(__file__).parents[2]
BLOG = ROOT / "example_blog"
PAGE = ROOT / "docs" / "from-sqlite.rst"
BLOCK = re.compile(
    r"^\.\. code-block:: (\w+)\n(?:    :caption: (\S+)\n)?\n((?:    .*\n|\n)+)", re.M
)
BLOCKS = [
    (language, caption, textwrap.dedent(text).strip("\n"))
    for language, caption, text in BLOCK.findall(PAGE.read_text("utf-8"))
]

#: What the tests of the blog need on sqlite3, before the fixture ``client``.
FIXTURES = """
import pytest
from werkzeug.security import generate_password_hash

from example_blog import create_app
from example_blog.db import get_db

PASSWORD = "a secret"
HASHED = generate_password_hash(PASSWORD, "pbkdf2:sha256:1")

@pytest.fixture
def bare_app(tmp_path):
    return create_app({"TESTING": True, "DATABASE": tmp_path / "blog.sqlite"})

@pytest.fixture
def app(bare_app):
    bare_app.test_cli_runner().invoke(args=["init-db"], catch_exceptions=False)
    return bare_app

@pytest.fixture
def mysql_rollback(app):
    with app.app_context():
        yield

"""


def backwards(text: str, diff: str) -> str:
    """Undo the changes of a diff, each of which has its place but once."""
    for hunk in diff.split("\n@@\n"):
        lines = hunk.splitlines()
        before, after = (
            "\n".join(line[1:] for line in lines if line[:1] in ("", " ", sign))
            for sign in "-+"
        )
        assert text.count(f"\n{after}\n") == 1, after
        text = text.replace(f"\n{after}\n", f"\n{before}\n")
    return text


def run(folder: Path, *command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.stdout + done.stderr


def test_without_these_changes_the_blog_passes_its_tests_on_sqlite3(
    tmp_path: Path,
) -> None:
    blog, tests = tmp_path / "example_blog", tmp_path / "example_blog" / "tests"
    shutil.copytree(BLOG, blog, ignore=shutil.ignore_patterns("__pycache__"))
    for language, name, diff in BLOCKS:
        if language == "diff":
            text = "\n" + (blog / name).read_text("utf-8")
            (blog / name).write_text(backwards(text, diff)[1:], "utf-8")
    # The page shows them in whole.
    for new in blog / "errors.py", tests / "test_errors.py":
        new.unlink()
    conftest = (tests / "conftest.py").read_text("utf-8")
    rest = conftest[conftest.index("@pytest.fixture\ndef client") :]
    annotations = "from flask import Flask\nfrom flask.testing import FlaskClient\n"
    (tests / "conftest.py").write_text(
        annotations + FIXTURES + rest.replace("%s", "?"), "utf-8"
    )
    code = "\n".join(path.read_text("utf-8") for path in blog.rglob("*.py"))
    assert "sqlite3" in code and "pymysql" not in code and "mysqlpool" not in code

    said = run(tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "example_blog")

    assert re.search(r"^\d\d passed", said, re.M), said


@pytest.mark.one_engine
def test_the_command_of_the_page_prints_what_it_shows(
    server: LocalServer, sql: Sql
) -> None:
    sql("DROP DATABASE IF EXISTS blog")
    sql("CREATE DATABASE blog")
    [console] = [text for language, _, text in BLOCKS if language == "console"]
    [(command, shown)] = re.findall(r"^\$ (flask .* init-db)\n(.+)$", console, re.M)
    place = {"FLASK_MYSQLPOOL_URL": server.url, "FLASK_MYSQLPOOL_DATABASE": "blog"}

    said = run(ROOT, *command.split(), **place)

    assert said == f"{shown}\n"
