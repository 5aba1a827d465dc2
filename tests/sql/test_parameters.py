"""Values and names in statements: they arrive as they are, and change no statement."""

from __future__ import annotations

import codecs
import os
import pathlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import product
from typing import Any, NamedTuple

import pytest
from conftest import MakePool, Sql
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from pymysql.charset import charset_by_name
from pymysql.constants import CLIENT
from pymysql.cursors import Cursor, SSCursor
from pymysql.err import MySQLError, ProgrammingError

from flask_mysqlpool import PooledConnection, Row, identifier
from flask_mysqlpool.pool.driver.results import _LOOKALIKES, _UNFAITHFUL, faithful
from flask_mysqlpool.testing import assert_queries

EXAMPLES = int(os.environ.get("PARAMETERS", "60"))
MODES = ["", "ANSI_QUOTES", "NO_BACKSLASH_ESCAPES", "ANSI_QUOTES,NO_BACKSLASH_ESCAPES"]
CHARSETS = ["utf8mb4", "gbk", "sjis", "ujis", "latin1"]


# What Python 3.14 makes of a t-string, for older ones.
class Interpolation(NamedTuple):
    value: object
    expression: str = "value"
    conversion: str | None = None
    format_spec: str = ""


class Template(NamedTuple):
    strings: tuple[str, ...]
    interpolations: tuple[Interpolation, ...]


Template.__module__ = "string.templatelib"


def template(*parts: object) -> Any:
    """Make a t-string, of which every second part is a value."""
    values = [
        p if isinstance(p, Interpolation) else Interpolation(p) for p in parts[1::2]
    ]
    texts: Any = parts[::2]
    return Template(tuple(texts), tuple(values))


def named(*names: str) -> Interpolation:
    return Interpolation(names, format_spec="identifier")


@pytest.fixture(params=product(MODES, CHARSETS), ids=lambda p: "-".join(p))
def connection(
    make_pool: MakePool, request: pytest.FixtureRequest
) -> Iterator[PooledConnection]:
    mode, charset = request.param
    with make_pool(SQL_MODE=mode, CHARSET=charset).connection() as connection:
        yield connection


def fits(text: str, encoding: str) -> bool:
    try:
        return text.encode(faithful(encoding)).decode(encoding) == text
    except UnicodeError:
        return False


#: Half of them of characters that are, or may become, quotes and escapes.
TEXTS = st.text(max_size=20) | st.text(
    "\\'\"`%s\0\n\x1a;-#/* \xa5\u203e\u30bd\u8868\u4e00縗運", max_size=12
)


@settings(max_examples=EXAMPLES)
@given(data=st.data(), blob=st.binary(max_size=20))
def check(connection: PooledConnection, data: st.DataObject, blob: bytes) -> None:
    encoding = charset_by_name(connection.charset).encoding
    text = data.draw(TEXTS.filter(lambda text: fits(text, encoding)))
    # The server strips what is not printed from its ends.
    name = f"n{''.join(c for c in text if 0 < ord(c) < 0xFFFF)}n"
    if b"`" in name.replace("`", "").encode(encoding):
        name = "n"  # after half a letter that is one, MariaDB drops the next letter
    # In its table for sjis, a name's backslash is a wide one.
    shown = name.replace("\\", "\uff3c") if encoding == "sjis" else name
    expected = (text, 1, blob, 2)

    query = "SELECT %s, 1, %s AS %s, 2"
    cursor = connection.execute(query, (text, blob, identifier(name)), into=Row)
    assert cursor.one() == expected
    assert cursor.description[2][0] == shown
    in_template = template("SELECT ", text, ", 1, ", blob, " AS ", named(name), ", 2")
    cursor = connection.execute(in_template, into=Row)
    assert cursor.one() == expected
    assert cursor.description[2][0] == shown


def test_text_bytes_and_names_arrive_as_they_are(connection: PooledConnection) -> None:
    check(connection)


@pytest.mark.parametrize("charset", sorted(_UNFAITHFUL))
@pytest.mark.parametrize("lookalike", "\xa5\u203e")
def test_a_character_that_would_become_another_one_is_refused(
    make_pool: MakePool, charset: str, lookalike: str
) -> None:
    assert lookalike.encode(charset).isascii()  # a backslash, which ends no string
    text = f"{lookalike}', 2 -- "
    with make_pool(CHARSET=charset).connection() as connection:
        for query, args in (
            ("SELECT %s", (text,)),
            ("SELECT 1 AS %s", (identifier(text),)),
            (f"SELECT '{text}'", None),
        ):
            with pytest.raises(
                UnicodeEncodeError, match="read it as another character"
            ):
                connection.execute(query, args)
        with pytest.raises(UnicodeEncodeError):
            connection.cursor().executemany("INSERT INTO t VALUES (%s)", [(text,)])
        assert connection.execute("SELECT 7").fetchone() == (7,)
    with make_pool().connection() as connection:
        connection.set_character_set(charset)
        with pytest.raises(UnicodeEncodeError):
            connection.execute("SELECT %s", (text,))


def is_known(encoding: str) -> bool:
    try:
        return bool(codecs.lookup(encoding))
    except LookupError:
        return False


def test_no_other_encoding_makes_ascii_of_other_characters() -> None:
    """Of all characters, in all encodings that PyMySQL knows."""
    from pymysql.charset import _charsets

    characters = [chr(n) for n in range(128, 0x10000) if not 0xD800 <= n < 0xE000]
    known: Any = _charsets
    encodings = {c.encoding for c in known._by_id.values()}
    found = {
        (encoding, character)
        for encoding in filter(is_known, encodings)
        for made, character in zip(
            "\n".join(characters).encode(encoding, "ignore").split(b"\n"),
            characters,
            strict=True,
        )
        if made[:1].isascii() and made
    }

    assert {encoding for encoding, _ in found} == _UNFAITHFUL
    assert all(map(_LOOKALIKES.match, {character for _, character in found}))


@pytest.mark.parametrize("mode", MODES)
def test_an_object_is_sent_as_its_text(make_pool: MakePool, mode: str) -> None:
    class Sly:
        def __str__(self) -> str:
            return "\\', 2 -- "

    path = pathlib.PurePosixPath("a' OR 1 = 1 -- \\")
    with make_pool(SQL_MODE=mode).connection() as connection:
        query = "SELECT %s, %s, %s, 1"
        row = connection.execute(query, (Sly(), path, Fraction(1, 3)), into=tuple).one()
        assert row == (str(Sly()), str(path), "1/3", 1)
        found = connection.execute("SELECT %s IN %s, 1", (str(path), [path, Sly()]))
        assert found.fetchone() == (1, 1)


@pytest.mark.one_engine
def test_an_encoder_of_text_that_the_caller_has_given_gets_the_object(
    make_pool: MakePool,
) -> None:
    own = {str: lambda value, mapping=None: f"({type(value).__name__})"}
    with make_pool().connection() as connection:
        assert connection.escape(Fraction(1, 3), own) == "(Fraction)"
        assert connection.escape([Fraction(1, 3)], own) == "((Fraction))"


@pytest.mark.one_engine
def test_to_escape_a_value_loses_no_result(make_pool: MakePool, sql: Sql) -> None:
    sql("DROP PROCEDURE IF EXISTS both_of_them")
    sql("CREATE PROCEDURE both_of_them() BEGIN SELECT 1; SELECT 2; END")
    with make_pool().connection() as connection:
        cursor = connection.execute("CALL both_of_them()", into=tuple)
        assert connection.escape("a'") == r"'a\''"
        assert cursor.nextset() and cursor.one() == (2,)


class Hostile(str):
    """A text whose methods do what another language needs, as those of Markup do."""

    def replace(self, *args: Any) -> Any:
        return self

    translate = replace


class Hexed(bytes):
    def hex(self, *args: Any) -> str:
        return "0x" + super().hex(*args)


class Pair(NamedTuple):
    left: object
    right: object


@pytest.mark.parametrize("mode", MODES)
def test_a_subclass_of_text_bytes_or_a_list_is_sent_as_that(
    make_pool: MakePool, mode: str
) -> None:
    text = "a' OR 1 = 1 -- \\"
    with make_pool(SQL_MODE=mode).connection() as connection:
        values = Hostile(text), Markup(text), Hexed(b"a'"), bytearray(b"a'")
        row = connection.execute("SELECT %s, %s, %s, %s, 1", values, into=tuple).one()
        assert row == (text, text, b"a'", b"a'", 1)
        assert connection.literal(Hostile("a'")) == connection.escape("a'")
        rows = connection.execute("SELECT 1 AS l, %s AS r", [text], into=Row).fetchall()
        for pairs in ([Pair(1, Hostile(text))], rows, {Pair(1, Markup(text))}):
            found = connection.execute("SELECT (1, %s) IN %s, 1", (text, pairs))
            assert found.fetchone() == (1, 1)


@pytest.mark.parametrize("cls", [Cursor, SSCursor])
def test_a_mode_in_the_unread_rest_of_an_answer_counts(
    make_pool: MakePool, cls: type[Cursor]
) -> None:
    several = {"client_flag": CLIENT.MULTI_STATEMENTS}
    pool = make_pool(CONNECT_ARGS=several, CURSORCLASS=cls)
    with pool.connection() as connection, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a stream that is left incomplete
        connection.execute("SELECT 1; SET sql_mode = 'NO_BACKSLASH_ESCAPES'")
        text = "\\', 2 -- "
        assert connection.execute("SELECT %s, 1", (text,)).fetchone() == (text, 1)


# Names


def test_a_list_of_names_is_a_list_of_columns(make_pool: MakePool) -> None:
    names = [identifier("b"), identifier("a")]
    with make_pool().connection() as connection:
        connection.execute("CREATE TEMPORARY TABLE named (a INT, b INT)")
        connection.execute("INSERT INTO named %s VALUES %s", (names, [1, 2]))
        assert connection.execute("SELECT a, b FROM named").fetchone() == (2, 1)
        assert connection.literal(names[0]) == "`b`"


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (("",), ValueError, "no table or column can have the name ''"),
        (("a\0b",), ValueError, "can have the name"),
        ((5,), TypeError, "the name of a table or column is text, not int"),
        ((), TypeError, "takes a name"),
        ((("a",),), TypeError, "is text, not tuple"),
    ],
)
def test_what_can_be_no_name_is_refused(
    names: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        identifier(*names)


def test_a_name_in_parts_is_qualified() -> None:
    assert str(identifier("a.b", "c`d")) == "`a.b`.`c``d`"
    assert repr(identifier("a%b")) == "<Identifier `a%b`>"


def test_a_name_with_a_percent_sign_is_not_written_into_text() -> None:
    with pytest.raises(ValueError, match="pass the name `a%b` as a parameter"):
        f"SELECT {identifier('a%b')}"


# t-strings


def test_a_template_nests_and_has_lists(make_pool: MakePool) -> None:
    condition = template("n IN ", [1, 3], " AND t LIKE '%'")
    query = template(
        "SELECT n, '100%s' FROM (SELECT 1 AS n, 'a' AS t UNION SELECT 2, 'b' UNION"
        " SELECT 3, 'c') AS d WHERE ",
        condition,
        " ORDER BY ",
        named("d", "n"),
        " DESC",
    )
    with make_pool().connection() as connection:
        assert connection.execute(query).fetchall() == ((3, "100%s"), (1, "100%s"))
        cursor = connection.cursor()
        cursor.execute(template("SELECT ", Interpolation(5, conversion="r"), ""))
        assert cursor.fetchone() == ("5",)
        assert connection.execute(template("SELECT '%'")).fetchone() == ("%",)


@pytest.mark.one_engine
def test_a_template_is_recorded_as_text(make_pool: MakePool) -> None:
    with make_pool().connection() as connection, assert_queries() as queries:
        connection.cursor().execute(template("SELECT ", 5, ""))

    assert [query.statement for query in queries] == ["SELECT %s"]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (
            Interpolation(1.5, "price", None, ".2f"),
            ValueError,
            r"\{price:.2f\} .* only",
        ),
        (Interpolation([], "ids"), ValueError, r"\{ids\} .* an empty list"),
        (Interpolation("", "name", None, "identifier"), ValueError, "the name ''"),
        (Interpolation(5, "name", None, "identifier"), TypeError, "is text, not int"),
        (Interpolation({"a": 1}), TypeError, "dict can not be used as parameter"),
    ],
)
def test_a_value_that_cannot_be_put_in_is_refused(
    make_pool: MakePool, value: Interpolation, error: type[Exception], message: str
) -> None:
    with make_pool().connection() as connection:
        with pytest.raises(error, match=message):
            connection.execute(template("SELECT ", value, ""))
        with pytest.raises(TypeError, match="leave the parameters out"):
            connection.execute(template("SELECT 1"), (1,))
        assert connection.execute("SELECT 7").fetchone() == (7,)


@pytest.mark.parametrize(
    ("query", "args"),
    [
        ("SELECT ?", [1]),
        ("SELECT %s", [1, 2]),
        ("SELECT %s, %s", [1]),
        ("SELECT 'a' LIKE '%a%', %s", [1]),
        ("SELECT 'a' LIKE 'a%', %s", [1]),
        ("SELECT %d", ["1"]),
    ],
)
def test_places_that_do_not_fit_their_values_are_an_error_that_says_how_to_write_them(
    make_pool: MakePool, query: str, args: list[object]
) -> None:
    with make_pool().connection() as connection:
        with pytest.raises(
            (ProgrammingError, ValueError),
            match=r"write %s or .*, and %% for a percent sign$",
        ):
            connection.execute(query, args)
        with pytest.raises(ProgrammingError, match=r"^nan can not be used with MySQL$"):
            connection.execute("SELECT %s", [float("nan")])
        assert connection.execute("SELECT %s", [7]).fetchone() == (7,)


#: Where stored code sets another SQL mode, servers restore that, but not the status.
@pytest.mark.parametrize("call", ["CALL p()", "SELECT f()", "CALL fails()"])
@pytest.mark.parametrize("mode", ["", "NO_BACKSLASH_ESCAPES"])
def test_values_are_escaped_as_the_server_reads_them_after_stored_code(
    make_pool: MakePool, sql: Sql, mode: str, call: str
) -> None:
    other = "" if mode else "NO_BACKSLASH_ESCAPES"
    sql("SET sql_mode = ''")
    for kind, name in product(["PROCEDURE", "FUNCTION"], ["p", "f", "fails"]):
        sql(f"DROP {kind} IF EXISTS {name}")
    sql(f"CREATE PROCEDURE p() SET SESSION sql_mode = '{other}'")
    sql(
        "CREATE FUNCTION f() RETURNS INT NO SQL"
        f" BEGIN SET SESSION sql_mode = '{other}'; RETURN 1; END"
    )
    sql("CREATE PROCEDURE fails() BEGIN CALL p(); SIGNAL SQLSTATE '45000'; END")
    values = ["\\", "'", "\\' -- ", "' -- ", "\\\\'", "''", "\\'', 2 -- "]
    with make_pool(SQL_MODE=mode).connection() as connection:
        for value, again in product(values, [False, True]):
            with suppress(MySQLError):
                connection.execute(call)
            if again:
                connection.execute("SELECT 1")
            row = connection.execute("SELECT %s, 1", [value]).fetchone()
            assert row == (value, 1)
        assert connection.execute("SELECT @@sql_mode").fetchone() == (mode,)
        connection.execute(f"SET sql_mode = '{other}'")
        for value in values:
            row = connection.execute("SELECT %s, 1", [value]).fetchone()
            assert row == (value, 1)


def test_text_with_braces_is_text(make_pool: MakePool) -> None:
    with make_pool().connection() as connection:
        assert connection.execute("SELECT '{name}'").fetchone() == ("{name}",)
        with pytest.raises(ProgrammingError):
            connection.execute("SELECT {name}")


@pytest.mark.skipif(sys.version_info < (3, 14), reason="t-strings are of Python 3.14")
def test_python_itself_makes_such_templates(make_pool: MakePool) -> None:
    source = """
row = get(t"SELECT {name!s} AS {column:identifier}, {t'{5} + {1}'} AS n, '%'")
"""
    with make_pool().connection() as connection:
        names: dict[str, Any] = {
            "get": lambda query: connection.execute(query, into=dict).one(),
            "name": "O'Neil",
            "column": "na`me",
        }
        exec(source, names)
        assert names["row"] == {"na`me": "O'Neil", "n": 6, "%": "%"}
