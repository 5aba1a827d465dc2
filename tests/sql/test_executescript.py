"""``executescript()``: statements told apart as by the mysql client, and executed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partialmethod
from types import SimpleNamespace
from typing import Any

import pytest
from clients import client
from conftest import MakePool, Sql
from hypothesis import given, settings
from hypothesis import strategies as st
from pymysql.constants import SERVER_STATUS
from pymysql.err import MySQLError, OperationalError, ProgrammingError

from flask_mysqlpool import PooledConnection, TransactionError
from flask_mysqlpool.pool.sql.scripts import Script
from flask_mysqlpool.pool.transaction import transaction
from flask_mysqlpool.testing import LocalServer


def split(
    text: str | bytes, status: int = 0, charset: str = "utf8mb4"
) -> list[tuple[int, bytes]]:
    """The statements of a script, each with its line, for a session in this state."""
    raw = SimpleNamespace(server_status=status, charset=charset, encoding="utf-8")
    script = Script(
        SimpleNamespace(
            _attached=lambda: SimpleNamespace(raw=raw, known_mode=raw.server_status)
        ),
        text,
    )
    found = [(script.line, statement) for statement in script.statements()]
    assert script.position == script.length
    return found


# Statements

NO_ESCAPES = SERVER_STATUS.SERVER_STATUS_NO_BACKSLASH_ESCAPES
#: MariaDB alone tells it.
ANSI = 1 << 15
SPLIT: dict[str, list[tuple[int, str]]] = {
    "": [],
    " \n;; ; \t;": [],
    "-- a\n# b\n/* c; */ /*+ d */\n--e": [],
    "a": [(1, "a")],
    "a;b": [(1, "a"), (1, "b")],
    "\n\na\n;\nb\n\n": [(3, "a"), (5, "b")],
    "\ufeffa;": [(1, "a")],
    "a\r\n;\r\nb;\r\n": [(1, "a"), (3, "b")],
    # Quotes
    "a ';' \";\" `;`;b": [(1, "a ';' \";\" `;`"), (1, "b")],
    "a ';'';' ;b": [(1, "a ';'';'"), (1, "b")],
    "a ';\\';' ;b": [(1, "a ';\\';'"), (1, "b")],
    'a ";\\";" ;b': [(1, 'a ";\\";"'), (1, "b")],
    "a ';\\\\';b": [(1, "a ';\\\\'"), (1, "b")],
    "a `;\\`;b": [(1, "a `;\\`"), (1, "b")],
    "a `;``;`;b": [(1, "a `;``;`"), (1, "b")],
    "a 'it''s; -- /* # `' ;\nb": [(1, "a 'it''s; -- /* # `'"), (2, "b")],
    "a '\n', '\n';b": [(1, "a '\n', '\n'"), (3, "b")],
    # Comments
    "a -- it's;\n;b": [(1, "a -- it's;"), (2, "b")],
    "a --\n;b": [(1, "a --"), (2, "b")],
    "a --": [(1, "a --")],
    "a--1;b": [(1, "a--1"), (1, "b")],
    "--1;\na": [(2, "a")],
    "a # it's;\n;b": [(1, "a # it's;"), (2, "b")],
    "a /* it's; */ ;b": [(1, "a /* it's; */"), (1, "b")],
    "a /*+ it's; */ ;b": [(1, "a /*+ it's; */"), (1, "b")],
    "a 2*/*'*/3;b": [(1, "a 2*/*'*/3"), (1, "b")],
    "a /**/;b": [(1, "a /**/"), (1, "b")],
    "a */ ;b": [(1, "a */"), (1, "b")],
    "/* a\n*/\n-- b\n\nc": [(5, "c")],
    # Quotes that are none, after a string
    "a 'b' -- '';\n;c": [(1, "a 'b' -- '';"), (2, "c")],
    "a 'b' # '';\n;c": [(1, "a 'b' # '';"), (2, "c")],
    "a 'b' /* ''; */;c": [(1, "a 'b' /* ''; */"), (1, "c")],
    "a 'b' \"'';\";c": [(1, "a 'b' \"'';\""), (1, "c")],
    "a 'b' `'';`;c": [(1, "a 'b' `'';`"), (1, "c")],
    "/*! a 'b' */ '';c": [(1, "/*! a 'b' */ ''"), (1, "c")],
    # Comments that are executed
    "/*!40101 SET a */;b": [(1, "/*!40101 SET a */"), (1, "b")],
    "/*M!100100 a; ';*/' */;b": [(1, "/*M!100100 a; ';*/' */"), (1, "b")],
    "/*! a /* '; */ b; */;c": [(1, "/*! a /* '; */ b; */"), (1, "c")],
    "/*! a /*! b */ ;c */;d": [(1, "/*! a /*! b */"), (1, "c */"), (1, "d")],
    "/*! a -- */ it's\n; */;b": [(1, "/*! a -- */ it's\n; */"), (2, "b")],
    "/*M!999999\\- enable the sandbox mode */ \n-- it's\na;": [
        (1, "/*M!999999\\- enable the sandbox mode */ \n-- it's\na")
    ],
    # Delimiters
    "DELIMITER //\na;b//\nc;//\ndelimiter ;\nd;e": [
        *[(2, "a;b"), (3, "c;"), (5, "d"), (5, "e")]
    ],
    "  Delimiter\t$$ -- it's\na$b$$c": [(2, "a$b"), (2, "c")],
    "delimiter ;;\na;b;;\ndelimiter ;\nc;": [(2, "a;b"), (4, "c")],
    "delimiter '//' x\r\na//b": [(2, "a"), (2, "b")],
    "delimiter |\r\na|b": [(2, "a"), (2, "b")],
    "-- x\ndelimiter //\na//": [(3, "a")],
    "a\ndelimiter //\n;b": [(1, "a\ndelimiter //"), (3, "b")],
    "a ';\ndelimiter //\n';b": [(1, "a ';\ndelimiter //\n'"), (3, "b")],
    "a /*\ndelimiter //\n*/;b": [(1, "a /*\ndelimiter //\n*/"), (3, "b")],
    "delimiters a;b": [(1, "delimiters a"), (1, "b")],
    "delimiter go\na category go\nb": [(2, "a cate"), (2, "ry"), (3, "b")],
}


@pytest.mark.parametrize("text", SPLIT)
def test_a_script_has_these_statements_on_these_lines(text: str) -> None:
    expected = [(line, statement.encode()) for line, statement in SPLIT[text]]

    assert split(text) == expected
    assert split(text.encode()) == expected


#: What is not closed, with its line.
UNCLOSED = {
    "a;\nb 'c;\n\n": (2, "a string in '"),
    "a 'b' , 'c',\n'd', 'e\n": (2, "a string in '"),
    "a '" + "b\\\n" * 3000: (1, "a string in '"),
    "a 'b\\": (1, "a string in '"),
    'a;\n\n"b;': (3, 'a text in "'),
    "a\n`b": (2, "a name in `"),
    "a;\n/* b": (2, "a comment"),
    "a /*/": (1, "a comment"),
    "a;\nb /* c": (2, "a comment"),
    "a;\n/*!40000 b;\nc;": (2, "a comment"),
    "a;\n/*!40000 b /* c */;\nc;": (2, "a comment"),
}


@pytest.mark.parametrize("text", UNCLOSED)
def test_what_is_not_closed_is_named_with_its_line(text: str) -> None:
    raw = SimpleNamespace(server_status=0, charset="utf8mb4", encoding="utf-8")
    script = Script(
        SimpleNamespace(
            _attached=lambda: SimpleNamespace(raw=raw, known_mode=raw.server_status)
        ),
        text,
    )
    with pytest.raises(ProgrammingError) as raised:
        script.execute()

    line, what = UNCLOSED[text]
    assert (script.line, str(raised.value)) == (line, f"{what} is not closed")
    assert script.count == 0


@pytest.mark.parametrize("text", ["DELIMITER\na", "delimiter;\na", "DELIMITER \\\na"])
def test_a_delimiter_that_is_missing_is_named(text: str) -> None:
    with pytest.raises(ProgrammingError, match="must be followed by"):
        split(text)


def test_what_a_backslash_and_a_quote_mean_depends_on_the_sql_mode() -> None:
    text = b"a '\\', ';'\\''"
    ansi = text.replace(b"'", b'"')

    assert split(text, NO_ESCAPES) == split(text, NO_ESCAPES | ANSI) == [(1, text)]
    assert split(text) == split(text, ANSI) == [(1, b"a '\\', '"), (1, b"'\\''")]
    assert split(ansi, NO_ESCAPES) == split(ansi, ANSI) == [(1, ansi)]
    assert split(ansi) == [(1, b'a "\\", "'), (1, b'"\\""')]


#: A letter of two bytes, the second of which is a backslash; and of another byte set.
LETTERS = {
    **dict.fromkeys(("gbk", "gb18030"), b"\xd5\x5c"),
    **dict.fromkeys(("sjis", "cp932"), b"\x83\x5c"),
    "big5": b"\xa5\x5c",
}


@pytest.mark.parametrize("charset", LETTERS)
def test_half_of_a_letter_is_no_backslash(charset: str) -> None:
    letter = LETTERS[charset]
    text = b"a '%s';%s'b';c '\xff%s" % (letter, letter, b"\\';'")

    assert split(text, charset=charset) == [
        *[(1, b"a '%s'" % letter), (1, b"%s'b'" % letter), (1, b"c '\xff\\';'")]
    ]


WORDS = ["SELECT", "a", "1", ",", "(", ")", "=", "@x", "b.c", "- 1", "/ 2", "*"]
QUOTED = st.builds(
    lambda quote, text: quote + text.replace(quote, quote * 2) + quote,
    st.sampled_from("'\"`"),
    st.text("ab;'\"`/*#-$! \n", max_size=8),
)
ESCAPED = st.builds(
    lambda quote, text: quote + text.replace(quote, "\\" + quote) + quote,
    st.sampled_from("'\""),
    st.text("ab;'\"`/*#-$ \n", max_size=8),
)
COMMENTS = st.builds(
    lambda begin, text: begin + text.replace("*/", "") + " */",
    st.sampled_from(["/* ", "/*+ "]),
    st.text("ab;'\"`/#-$! \n", max_size=8),
)
LINES = st.builds(
    lambda begin, text: f"{begin}{text}\n",
    st.sampled_from(["-- ", "#"]),
    st.text("ab;'\"`/*#-$! ", max_size=8),
)
EXECUTED = st.builds(
    lambda begin, tokens: f"{begin} {' '.join(tokens)} */",
    st.sampled_from(["/*!", "/*!40101", "/*M!100100"]),
    st.lists(st.sampled_from([*WORDS, ";", "//"]) | QUOTED, max_size=4),
)
TOKENS = st.sampled_from(WORDS) | QUOTED | ESCAPED | COMMENTS | LINES | EXECUTED
STATEMENTS = st.builds(
    lambda first, rest: " ".join([first, *rest]),
    st.sampled_from(["SELECT", "SET", "x"]) | EXECUTED,
    st.lists(TOKENS, max_size=6),
)
DELIMITERS = ";", ";;", "//", "$$", "|"


@given(st.lists(st.tuples(STATEMENTS, st.sampled_from(DELIMITERS), LINES)))
@settings(max_examples=100)
def test_statements_come_back_as_they_were_joined(
    statements: list[tuple[str, str, str]],
) -> None:
    text, expected, delimiter = "", [], ";"
    for statement, wanted, between in statements:
        if wanted != delimiter:
            text += f"\nDELIMITER {wanted} -- it's\n"
            delimiter = wanted
        expected.append((text.count("\n") + 1, statement.rstrip().encode()))
        text += f"{statement}{delimiter} {between}"

    assert split(text) == expected


PIECES = """' ' ' " ` ; ; \\ /* */ /*! /*M! - -- # a , // \n""".split(" ")


def test_texts_that_are_read_in_one_step_end_as_if_read_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = random.Random(18).choices
    texts = [
        "".join(chosen([*PIECES, " ", "\ndelimiter //\n"], k=15)) for _ in range(3000)
    ]

    def ends(text: str) -> object:
        try:
            return split(text)
        except ProgrammingError as error:
            return str(error)

    found = [ends(text) for text in texts]
    one_by_one = partialmethod(Script._find_end, one_by_one=True)
    monkeypatch.setattr(Script, "_find_end", one_by_one)

    assert found == [ends(text) for text in texts]


def test_a_large_script_is_split_in_seconds() -> None:
    """In time that grows as the text does: a hundred times the time would not pass."""
    rows = b"INSERT INTO t VALUES " + b",".join([b"(1,'a\\'b',-2.5)"] * 1000)
    long = b"SELECT '%s'" % (b"\\'" * 500_000)

    assert len(split((rows + b";\n") * 100 + long + b";" + b"-- x\n" * 100_000)) == 101


# Execution


@pytest.fixture
def connection(make_pool: MakePool) -> Iterator[PooledConnection]:
    with make_pool().connection() as connection:
        yield connection


def test_statements_are_executed_and_counted(
    connection: PooledConnection, sql: Sql, table: str
) -> None:
    count = connection.executescript(
        """
        -- It's the schema; of "t".
        INSERT INTO t (a) VALUES (1), (2);
        SELECT * FROM t;  /* dropped; */
        COMMIT;
        INSERT INTO t (a) VALUES (3)
        """
    )

    assert count == 4
    assert sql("SELECT a FROM t") == ((1,), (2,))
    connection.rollback()
    assert connection.executescript("-- nothing; at all\n/* */;") == 0


def test_all_results_of_a_call_are_dropped(
    connection: PooledConnection, sql: Sql
) -> None:
    sql("DROP PROCEDURE IF EXISTS several")
    script = """DELIMITER //
        CREATE PROCEDURE several() BEGIN SELECT 1; SELECT 2; SELECT 3; END //
        CALL several() //
        CALL several()"""

    assert connection.executescript(script) == 3
    with connection.cursor() as cursor:
        cursor.execute("SELECT 4")
        assert cursor.fetchall() == ((4,),)


def test_an_error_names_the_line_and_ends_the_script(
    connection: PooledConnection, sql: Sql, table: str
) -> None:
    connection.autocommit(True)
    script = """INSERT INTO t (a) VALUES (1);

        -- This one is wrong.
        INSERT INTO nowhere
        VALUES (2);
        INSERT INTO t (a) VALUES (3)"""

    with pytest.raises(ProgrammingError) as raised:
        connection.executescript(script)

    number, text = raised.value.args
    assert number == 1146
    assert "doesn't exist" in text and text.endswith(" (line 4 of the script)")
    assert sql("SELECT a FROM t") == ((1,),)


def test_an_error_in_a_later_result_has_the_line_of_its_call(
    connection: PooledConnection, sql: Sql
) -> None:
    sql("DROP PROCEDURE IF EXISTS fails_late")
    sql("CREATE PROCEDURE fails_late() BEGIN SELECT 1; SELECT * FROM nowhere; END")

    with pytest.raises(ProgrammingError, match=r"line 2 of the script\)"):
        connection.executescript("SELECT 1;\nCALL fails_late();\n\nSELECT 1")


def test_nothing_is_sent_of_a_script_that_is_not_closed(
    connection: PooledConnection, sql: Sql, table: str
) -> None:
    connection.autocommit(True)
    with pytest.raises(ProgrammingError) as raised:
        connection.executescript("INSERT INTO t (a) VALUES (1);\nSELECT 'a;\n")

    assert raised.value.args == ("a string in ' is not closed (line 2 of the script)",)
    assert sql("SELECT a FROM t") == ()


@pytest.mark.parametrize("text", [5, None, ["SELECT 1"]])
def test_what_is_no_text_is_refused(connection: PooledConnection, text: Any) -> None:
    with pytest.raises(TypeError, match=r"^a script must be str or bytes, not \w+$"):
        connection.executescript(text)


def test_a_block_refuses_what_would_end_it(
    connection: PooledConnection, sql: Sql, table: str
) -> None:
    with pytest.raises(TransactionError, match=r"refused .* \(line 2 of the script\)$"):
        with transaction(connection):
            connection.executescript("INSERT INTO t (a) VALUES (1);\nDROP TABLE t;")
    with transaction(connection):
        connection.executescript("INSERT INTO t (a) VALUES (2); SELECT * FROM t;")

    assert sql("SELECT a FROM t") == ((2,),)


def test_a_lost_connection_names_the_line(
    connection: PooledConnection, sql: Sql
) -> None:
    with pytest.raises(OperationalError, match=r"line 2 of the script"):
        connection.executescript("SELECT 1;\nKILL CONNECTION_ID();\nSELECT 1;")


def test_the_next_statement_is_read_as_the_one_before_has_set_it(
    connection: PooledConnection, sql: Sql, table: str
) -> None:
    script = r"""
        CREATE TEMPORARY TABLE read_as (a VARBINARY(20));
        SET sql_mode = 'NO_BACKSLASH_ESCAPES'; INSERT INTO read_as VALUES ('\');
        SET sql_mode = DEFAULT; INSERT INTO read_as VALUES ('\';');
        SET NAMES gbk; INSERT INTO read_as VALUES ('%s'); SET NAMES utf8mb4;
        INSERT INTO read_as VALUES ('%s');'), ('é')
    """
    letter = LETTERS["gbk"]
    connection.executescript(script.encode().replace(b"%s", letter))

    with connection.cursor() as cursor:
        cursor.execute("SELECT a FROM read_as")
        expected = [b"\\", b"';", letter, b"\xd5');", "é".encode()]
        assert [a for (a,) in cursor.fetchall()] == expected


@pytest.mark.parametrize("charset", ["gbk", "sjis", "big5", "utf8mb4"])
def test_text_and_bytes_arrive_unchanged(make_pool: MakePool, charset: str) -> None:
    letter = LETTERS.get(charset, b"\xe2\x82\xac")
    encoding = "utf-8" if charset == "utf8mb4" else charset
    anything = bytes(range(256))
    with make_pool(CHARSET=charset).connection() as connection:
        literal = anything.replace(b"\\", b"\\\\").replace(b"'", b"''")
        if charset != "utf8mb4":
            # As the server reads it, half a letter takes the next byte with it.
            literal = anything[:0x80].replace(b"\\", b"\\\\").replace(b"'", b"''")
        script = b"CREATE TEMPORARY TABLE u (a BLOB, b INT); INSERT INTO u VALUES"
        connection.executescript(
            script
            + b"(_binary '%s', 1); INSERT INTO u VALUES ('%s;', 2)" % (literal, letter)
        )
        connection.executescript(
            f"\ufeffINSERT INTO u VALUES ('{letter.decode(encoding)};', 3)"
        )
        with connection.cursor() as cursor:
            cursor.execute("SELECT a FROM u ORDER BY b")
            [[first], [second], [third]] = cursor.fetchall()

    assert first == (anything if charset == "utf8mb4" else anything[:0x80])
    assert second == third == letter + b";"


# What the client does

#: Scripts that write into ``log``, to be executed by both.
TRICKY = r"""
INSERT INTO log VALUES (';'); INSERT INTO log VALUES ("a;'b")
===
INSERT INTO log VALUES ('it''s; ok'); INSERT INTO log VALUES ('it\'s; ok');
===
INSERT INTO log VALUES ('a\\'); INSERT INTO log VALUES ('b');
===
-- it's
INSERT INTO log VALUES ('a'); # it's
/* it's; */ INSERT INTO log VALUES ('b');
===
INSERT INTO log SELECT 5--1; INSERT INTO log SELECT 5 -- 1;
;
===
INSERT INTO log SELECT 2*/*'*/3; INSERT INTO log VALUES ('b');
===
/*!50000 INSERT INTO log VALUES ('a;*/') */; INSERT INTO log VALUES ('b');
===
/*!999999 its */ INSERT INTO log VALUES ('a');
===
/*M!999999\- enable the sandbox mode */
INSERT INTO log VALUES ('a');
===
INSERT /*+ NO_MERGE(t) */ INTO log VALUES ('a'); INSERT INTO log VALUES ('b');
===
DELIMITER //
INSERT INTO log VALUES ('a;//')//
delimiter ;
INSERT INTO log VALUES ('b');
===
  delimiter $$ x
INSERT INTO log VALUES ('a')$$
INSERT INTO log VALUES ('b')$$
===
DELIMITER ;;
CREATE OR REPLACE VIEW v AS SELECT 1;;
CREATE TRIGGER tr BEFORE INSERT ON log FOR EACH ROW
BEGIN SET @a = ';'; SET @b = 1; END;;
INSERT INTO log VALUES ('a');;
===
DELIMITER ';;'
INSERT INTO log VALUES ('a');;INSERT INTO log VALUES ('b');;
===
INSERT INTO log VALUES ('a
delimiter //
;'); INSERT INTO log VALUES ('b');
===
INSERT INTO log SELECT 1 AS
delimiter
; INSERT INTO log VALUES ('b');
===
SET sql_mode = 'NO_BACKSLASH_ESCAPES'; INSERT INTO log VALUES ('\'), (';');
INSERT INTO log VALUES (';');
===
SET sql_mode = ''; INSERT INTO log VALUES ("\";"); INSERT INTO log VALUES ('b');
===
SELECT 1; ; ;;INSERT INTO log VALUES ('a')
===
INSERT INTO log VALUES ('a'); SELECT `;` FROM nowhere; INSERT INTO log VALUES ('b');
===
INSERT INTO log VALUES ('中\';'), ('é');
===
INSERT INTO log VALUES ('a') -- '
, ('b') # '
, /* ' */ ('c');INSERT INTO log VALUES ('d')
===
INSERT INTO log VALUES ('a');
CREATE TABLE log (a INT);
INSERT INTO log VALUES ('b');
""".split("===")


def test_the_client_of_the_server_does_the_same(
    connection: PooledConnection, server: LocalServer, sql: Sql
) -> None:
    connection.autocommit(True)
    rows = differences = 0
    for number, text in enumerate(TRICKY):
        script = text.replace("\n", "\r\n") if number % 3 == 0 else text
        found = []
        for execute in by_client, by_us:
            sql("DROP TABLE IF EXISTS log")
            sql("CREATE TABLE log (a VARCHAR(50) CHARACTER SET utf8mb4)")
            failed = execute(script, connection, server)
            log = [text.replace("\r", "") for (text,) in sql("SELECT a FROM log")]
            found.append((failed, log))
        assert found[0] == found[1], script
        rows += len(found[0][1])
        differences += found[0][0]

    assert (rows, differences) == (43, 2)


def by_client(script: str, _: PooledConnection, server: LocalServer) -> bool:
    """Whether the client has ended at an error."""
    arguments = "--default-character-set=utf8mb4", "test"
    return client(server, "mysql", *arguments, given=script.encode()) is None


def by_us(script: str, connection: PooledConnection, _: LocalServer) -> bool:
    connection.query(b"SET sql_mode = DEFAULT")
    try:
        connection.executescript(script)
    except MySQLError:
        return True
    return False


# Dumps

ORIGINAL = r"""
DELIMITER //
CREATE TABLE `we``ird 'na"me;` (
    id INT AUTO_INCREMENT PRIMARY KEY,
    data LONGBLOB,
    words TEXT CHARACTER SET utf8mb4 COMMENT 'it''s; "quoted" -- \\ /* no comment',
    doc JSON,
    amount DECIMAL(10, 2),
    twice DECIMAL(12, 2) AS (amount * 2) STORED
)//
CREATE TABLE log (note VARCHAR(100) CHARACTER SET utf8mb4)//
CREATE TRIGGER noted AFTER INSERT ON `we``ird 'na"me;` FOR EACH ROW
BEGIN
    -- It's noted; "really".
    INSERT INTO log VALUES (CONCAT('row; ', NEW.id, '''s "words"'));
    /* No; more. */
END//
CREATE FUNCTION half(n INT) RETURNS INT DETERMINISTIC
BEGIN
    DECLARE x VARCHAR(10) DEFAULT ';//\\';  # It's a comment.
    RETURN n / 2;
END//
CREATE PROCEDURE `pro``c;`(OUT n INT)
BEGIN
    SELECT COUNT(*) INTO n FROM log;
    SELECT half(10) AS `a;b`;
END//
CREATE VIEW seen AS SELECT note, '中;' AS `it's` FROM log//
CREATE VIEW seen_again AS SELECT * FROM seen//
CREATE EVENT yearly ON SCHEDULE EVERY 1 YEAR STARTS '2037-01-01' DISABLE
DO BEGIN DELETE FROM log; SET @a = ';'; END//
SET sql_mode = CONCAT(@@sql_mode, ',NO_BACKSLASH_ESCAPES,ANSI_QUOTES')//
CREATE TRIGGER other_mode BEFORE INSERT ON log FOR EACH ROW
BEGIN SET @"it's" = '\'; SET @b = ';'; END//
SET sql_mode = DEFAULT//
"""
OBJECTS = """SELECT 1, routine_name FROM information_schema.routines
        WHERE routine_schema = DATABASE()
    UNION SELECT 2, trigger_name FROM information_schema.triggers
        WHERE trigger_schema = DATABASE()
    UNION SELECT 3, event_name FROM information_schema.events
        WHERE event_schema = DATABASE()
    UNION SELECT 4, table_name FROM information_schema.tables
        WHERE table_schema = DATABASE()"""
EVERY_BYTE = bytes(range(256))


@pytest.fixture
def original(make_pool: MakePool, sql: Sql) -> None:
    """A database with one of everything, and an empty one for the copy."""
    for name in "original", "copy":
        sql(f"DROP DATABASE IF EXISTS {name}")
        sql(f"CREATE DATABASE {name}")
    with make_pool(DATABASE="original", AUTOCOMMIT=True).connection() as connection:
        connection.executescript(ORIGINAL)
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO `we``ird 'na\"me;` (data, words, doc, amount)"
                " VALUES (%s, %s, %s, %s)",
                [
                    (EVERY_BYTE, "it's; \"\\\n", '{"a;\'": "\\\\"}', 1.5),
                    (EVERY_BYTE[::-1] * 40, "中\\'é", None, None),
                    (b"", "\\", "[]", -1),
                    (b"\xbf\x5c\x27;" * 9, "\0\x1a\r\n", "[1]", 0),
                ],
            )


def contents(server: LocalServer, name: str) -> tuple[Any, ...]:
    """What is in a database: all rows, the names of all objects, and their dump."""
    with server.connect(database=name) as root, root.cursor() as cursor:
        cursor.execute("SELECT * FROM `we``ird 'na\"me;` ORDER BY id")
        rows = cursor.fetchall()
        cursor.execute("SELECT * FROM seen_again ORDER BY 1")
        rows += cursor.fetchall()
        cursor.execute(OBJECTS)
        objects = sorted(cursor.fetchall())
    return rows, objects, dump(server, name, "--skip-comments")


def dump(server: LocalServer, name: str, *options: str) -> bytes:
    all_objects = "--routines", "--triggers", "--events"
    dumped = client(server, "mysqldump", *all_objects, *options, name)
    assert dumped is not None
    return dumped


@pytest.mark.usefixtures("original")
def test_the_copy_from_a_dump_equals_the_original(
    server: LocalServer, make_pool: MakePool, sql: Sql
) -> None:
    expected = contents(server, "original")
    rows, objects, _ = expected
    assert (len(rows), len(objects)) == (8, 2 + 2 + 1 + 4)
    assert EVERY_BYTE in rows[0]

    for charset, options in {
        "utf8mb4": ["--skip-hex-blob"],
        "gbk": ["--hex-blob", "--skip-extended-insert"],
        "sjis": ["--skip-hex-blob", "--skip-quick"],
    }.items():
        sql("DROP DATABASE copy")
        sql("CREATE DATABASE copy")
        script = dump(server, "original", *options)
        with make_pool(DATABASE="copy", CHARSET=charset).connection() as connection:
            connection.executescript(script)

        assert contents(server, "copy") == expected, charset
