"""Comments that tell the server, or a tracing library, where a statement comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import MakeApp, MakePool, Sql
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flask_mysqlpool import get_db
from flask_mysqlpool.pool.driver.statements import (
    ANY,
    MARIADB,
    SEVERAL,
    SNAPSHOT,
    find_side_effects,
    side_effects,
)
from flask_mysqlpool.pool.transaction import transaction

ITSELF: Any = (
    "SELECT info FROM information_schema.processlist WHERE id = CONNECTION_ID()"
)


def test_a_statement_names_the_pool_and_the_endpoint(make_app: MakeApp) -> None:
    app = make_app(STATEMENT_COMMENTS=True, NAME="shop")

    @app.get("/<name>", endpoint="people.show")
    def show(name: str) -> str:
        [text] = get_db().execute(ITSELF + " AND 'x' = %s", ["x"], into=tuple).one()
        return str(text)

    @app.get("/")
    def judged() -> str:
        con: Any = get_db().execute("SELECT 1") and get_db()._con
        return str(con.side_effects)  # by the bare text

    text = app.test_client().get("/ada").text

    assert text == f"/* shop people.show */ {ITSELF} AND 'x' = 'x'"
    assert app.test_client().get("/").text == str(SNAPSHOT)
    with app.app_context():
        [text] = get_db().execute(ITSELF, into=tuple).one()
        assert text == f"/* shop */ {ITSELF}"


def test_by_default_a_statement_is_sent_as_it_is(make_pool: MakePool) -> None:
    with make_pool().connection() as connection:
        assert connection.execute(ITSELF, into=tuple).one() == (ITSELF,)


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("*/ DROP TABLE t; --", "_/ DROP TABLE t_ --"),
        ("! 50000 SELECT", "! 50000 SELECT"),
        ("naïve\n%s '\"`\\ ?", "na_ve__s ____ _"),
        ("x" * 999, "x" * 195),
    ],
)
def test_no_endpoint_ends_the_comment(
    make_pool: MakePool, endpoint: str, shown: str
) -> None:
    pool = make_pool(STATEMENT_COMMENTS=True, NAME="shop")
    with pool.connection(endpoint=endpoint) as connection:
        [text] = connection.execute(ITSELF, into=tuple).one()

    assert text == f"/* shop {shown} */ {ITSELF}"


@pytest.fixture
def logged(sql: Sql) -> Iterator[Any]:
    """The statements that the server has executed, from its general log."""
    sql("SET GLOBAL log_output = 'TABLE'")
    sql("SET GLOBAL general_log = 1")
    sql("TRUNCATE TABLE mysql.general_log")
    yield lambda: [
        text if isinstance(text, str) else text.decode()
        for (text,) in sql(
            "SELECT argument FROM mysql.general_log WHERE command_type = 'Query'"
            " AND argument LIKE '%INTO t %' AND argument NOT LIKE '%general_log%'"
        )
    ]
    sql("SET GLOBAL general_log = 0")


@pytest.mark.parametrize("pipelining", ["on", "off"])
def test_statements_of_blocks_and_executemany_have_it(
    make_pool: MakePool, logged: Any, table: str, pipelining: str
) -> None:
    pool = make_pool(STATEMENT_COMMENTS=True, NAME="shop", PIPELINING=pipelining)
    with pool.connection(endpoint="e") as connection:
        with transaction(connection):
            connection.execute("INSERT INTO t (a) VALUES (0)")
            with connection.cursor() as cursor:
                many = "INSERT INTO t SET a = %s"
                cursor.executemany(many, [[n] for n in range(3)])
                cursor.executemany("INSERT INTO t (a) VALUES (%s)", [[4], [5]])

    texts = logged()
    assert len(texts) == 5
    assert {text[:17] for text in texts} == {"/* shop e */ INSE"}


# Comments at the end

BARE = [
    b"SELECT id FROM t WHERE a = 'it''s' AND b = 5 - 1",
    b"INSERT INTO t VALUES (1)",
    b"SELECT f(1)",
    b"SET @a = 1",
    b"DROP TABLE t",
]
COMMENTS = [
    b"/*traceparent='00-5bd66ef5095369c7b0d1f8f4bd33716a-c532cb4098ac3dd2-01'*/",
    b' /* it\'s "odd" `and` \\ # -- ; */',
]


@pytest.mark.parametrize("comment", COMMENTS)
@pytest.mark.parametrize("statement", BARE)
def test_a_comment_at_the_end_changes_no_judgement(
    statement: bytes, comment: bytes
) -> None:
    expected = side_effects(statement, MARIADB)

    assert side_effects(statement + comment, MARIADB) == expected


def test_statements_with_other_traces_are_judged_once() -> None:
    from flask_mysqlpool.pool.driver.statements import _cached_side_effects

    _cached_side_effects.cache_clear()
    for number in range(50):
        side_effects(b"SELECT id FROM person /*traceparent='%d'*/" % number)

    assert _cached_side_effects.cache_info().misses == 1


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            [b"select 1", b"f(", b")", b"'", b'"', b"`", b"\\", b"/*", b"*/", b"/*!"]
            + [b"/*M!", b"--", b" ", b"\n", b"#", b";", b"drop table t", b"/", b"*"]
        )
    )
)
# What hides the beginning of the comment from the server: a string, a name, a comment.
@example([b";", b"'", b"/*", b"'", b";", b"drop table t", b";"])
@example([b"'", b"\\", b"'", b"/*", b"'", b";", b"drop table t", b";"])
@example([b";", b'"', b"/*", b'"', b";", b"drop table t", b";"])
@example([b";", b"`", b"/*", b"`", b";", b"drop table t", b";"])
@example([b"#", b"/*", b"\n", b";", b"drop table t", b"#"])
@example([b"--", b" ", b"/*", b"\n", b";", b"drop table t", b"--", b" "])
def test_a_comment_at_the_end_hides_nothing(parts: list[bytes]) -> None:
    statement = b"".join([b"select a ", *parts, b"*/"])
    missed = find_side_effects(statement, ANY | SEVERAL) & ~side_effects(statement)

    assert missed == 0
