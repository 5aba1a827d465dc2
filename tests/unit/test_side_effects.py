"""What is taken for harmless, and what is not."""

from __future__ import annotations

import time
from random import Random

import pytest
from pymysql.converters import escape_string

from flask_mysqlpool.pool.driver.statements import (
    ANY,
    ANYTHING,
    DIRTY_SCHEMA,
    ENDS,
    MARIADB,
    MAY_END,
    MYSQL,
    MYSQL_8,
    NONE,
    ROLE,
    RUNS_CODE,
    SESSION,
    SEVERAL,
    SNAPSHOT,
    TRANSACTION,
    UNCLEANABLE,
    WRITES,
    find_side_effects,
    side_effects,
)

ONLY_READS = [
    "SELECT 1",
    "select 1;",
    "  SELECT * FROM t WHERE a IN (1, 2) AND (b OR c)",
    "SELECT COUNT(*), MAX(a) FROM t GROUP BY b HAVING SUM(c) > 1",
    "SELECT @@sql_mode",
    "SELECT LAST_INSERT_ID()",
    "SELECT DATE_FORMAT(NOW(), 'x'), CAST(a AS DECIMAL(5, 2))",
    "SHOW TABLES",
    "/* traced */ SELECT 1",
    "SELECT a - (b), a * (b), 'a' IN ('b')",
    "--\n-- a (1)\nSELECT 1 # b (2)\n",
    "SELECT 1 /* a (1) */, 'b (2)', \"c (3)\", `d (4)`",
    "SELECT 'a@b.c; SELECT d(1)'",
    "SELECT 'it\\'s', f FROM t",
    "SELECT * FROM (SELECT 1) AS d (a)",
    "WITH a AS (SELECT 1) SELECT * FROM a",
    "WITH RECURSIVE a (b, c) AS (SELECT 1, 2) SELECT * FROM a",
    "SELECT a FROM t WHERE updated_at > 1 AND points_into = 2 AND share = 3",
    "SELECT MATCH(a) AGAINST('b' IN BOOLEAN MODE) FROM t",
    "EXPLAIN SELECT a FROM t",
    "SHOW VARIABLES WHERE variable_name IN ('a', 'b')",
    "DO SLEEP(0)",
    "(SELECT 1) UNION (SELECT 2)",
    "TABLE t",
    "VALUES ROW(1), ROW(2)",
    "SELECT /*+ MAX_EXECUTION_TIME(1) */ 1",
]
IS_NO_MORE_THAN_A_TRANSACTION = [
    "SAVEPOINT a",
    "/* a */ SAVEPOINT a",
    "ROLLBACK WORK TO a",
    "ROLLBACK TO SAVEPOINT a",
    "RELEASE SAVEPOINT a",
    "SELECT a FROM t FOR UPDATE",
    "SELECT a FROM t for  share",
    "SELECT a FROM t LOCK IN\nSHARE MODE",
    "SELECT a FROM t FOR UPDATE NOWAIT",
    "SELECT a FROM t FOR/**/UPDATE",
    "DO (SELECT a FROM t)",
    "SHOW TABLES WHERE (SELECT a FROM t)",
]
BOUNDS_A_TRANSACTION = [
    "BEGIN",
    "START TRANSACTION",
    "COMMIT",
    "rollback ;",
    "commit work",
]
CHANGES_THE_SESSION = [
    "SELECT @a := 1",
    "SELECT 1 OR@a:=2",
    "SELECT a INTO @b FROM t",
    "SELECT GET_LOCK('a', 1)",
    "SELECT LAST_INSERT_ID(5)",
    "SELECT last_insert_id ( 5 )",
    "SELECT SQL_CALC_FOUND_ROWS * FROM t",
    "SELECT /*! @a := */ 1",
    "SET @a = 1",
    "SET SESSION sql_mode = ''",
    "SET STATEMENT max_statement_time = 1 FOR SELECT a FROM t",
    "PREPARE s FROM 'SELECT 1'",
]
MAY_WRITE = [
    "SELECT stored_function(1)",
    "SELECT stored_function (1)",
    "SELECT max (1)",
    "SELECT `max`(1)",
    'SELECT "max"(1)',
    "SELECT other.max(1)",
    "SELECT other . max (1)",
    "SELECT other. max (1)",
    "SELECT `other`. `max`(1)",
    "SELECT émax(1)",
    "SELECT $max(1)",
    "SELECT stored_function/**/(1)",
    "SELECT stored_function-- \n(1)",
    "SELECT stored_function#\n(1)",
    "SELECT '\\', stored_function(1), '\\'",
    'SELECT "\\", stored_function(1), "\\"',
    "SELECT g('x) as ('), stored_function(1)",
    'SELECT g("x) as (")',
    "SHOW TABLES WHERE stored_function(1)",
    "EXPLAIN ANALYZE SELECT stored_function(1)",
    "EXPLAIN DELETE FROM t",
    "SET @a = stored_function(1)",
    "DO stored_function(1)",
    "WITH a AS (SELECT stored_function(1)) SELECT * FROM a",
    "WITH a AS (SELECT 1) DELETE FROM t",
    "SET STATEMENT max_statement_time = 1 FOR DELETE FROM t",
    "--\nINSERT INTO t SELECT 1",
    "--\n--\nINSERT INTO t SELECT 1",
    "#\nINSERT INTO t SELECT 1",
    "INSERT INTO t VALUES (1)",
    "UPDATE t SET a = 1",
    "DELETE FROM t",
    "REPLACE INTO t VALUES (1)",
    "LOCK TABLES t WRITE",
    "CREATE TEMPORARY TABLE x (a INT)",
    "HANDLER t OPEN",
    "LOAD DATA INFILE 'a' INTO TABLE t",
    "CALL p()",
    "EXECUTE s",
    "/*!999999 CALL p() */",
    "/*!50000 SELECT */ 1 /*! FROM a */",
    "nonsense",
    "",
]
MAY_LEAD_ELSEWHERE = [
    "USE other",
    "SET DEFAULT ROLE admin TO u",
    "--\nUSE other",
    "SELECT 1; USE other",
    "SET @a = 1; USE other",
    "/* x */ USE other",
    "CALL procedure()",
    "DROP DATABASE test",
    "EXECUTE IMMEDIATE 'USE other'",
    "SET STATEMENT sort_buffer_size = (1) FOR USE other",
    "SET STATEMENT sort_buffer_size = 1 FOR EXECUTE s",
    "SET STATEMENT sort_buffer_size = 1 FOR SET STATEMENT a = ((2)) FOR USE other",
    "SET STATEMENT a = (SELECT b FROM t FOR UPDATE) FOR USE other",
    "SELECT '; USE other; SELECT ' /*! */ ; USE other",
    "USE other; SELECT 'x",
    "BEGIN NOT ATOMIC USE other; END",
]
MAY_CHANGE_THE_ROLE = [
    "SET ROLE admin",
    "SET `role` = admin",
    "SELECT stored_function(1)",
    "INSERT INTO t VALUES (1)",
    "CALL p()",
]
CANNOT_BE_UNDONE = [
    "XA START 'a'",
    "/* x */ XA START 'a'",
    "SET profiling = 1",
    "SET @a = 1, SESSION profiling = 1",
    "SET RESOURCE GROUP g",
    "LOCK INSTANCE FOR BACKUP",
    "BACKUP STAGE START",
    "FLUSH TABLES WITH READ LOCK",
    "SET `profiling` = 1",
    "SET/**/profiling = 1",
]


@pytest.mark.parametrize("statement", ONLY_READS)
def test_what_only_reads_leaves_at_most_a_snapshot(statement: str) -> None:
    assert side_effects(statement.encode()) == SNAPSHOT


@pytest.mark.parametrize("statement", IS_NO_MORE_THAN_A_TRANSACTION)
def test_what_is_undone_by_a_rollback_is_known(statement: str) -> None:
    assert side_effects(statement.encode()) == TRANSACTION


@pytest.mark.parametrize("statement", BOUNDS_A_TRANSACTION)
def test_what_begins_or_ends_a_transaction_is_known(statement: str) -> None:
    assert side_effects(statement.encode()) == TRANSACTION | ENDS


@pytest.mark.parametrize("statement", CHANGES_THE_SESSION)
def test_what_changes_the_session_alone_is_said_to(statement: str) -> None:
    left = side_effects(statement.encode(), MARIADB)

    assert left & SESSION
    assert not left & (TRANSACTION | WRITES | RUNS_CODE | ENDS | MAY_END)


@pytest.mark.parametrize("statement", MAY_WRITE)
def test_what_may_write_is_said_to_and_all_that_goes_with_it(statement: str) -> None:
    everything = SESSION | TRANSACTION | WRITES | RUNS_CODE

    assert side_effects(statement.encode()) & everything == everything


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT [Order #], GET_LOCK('job', 0) FROM t",
        "SELECT [it's], GET_LOCK('job', 0), [it's] FROM t",
        "SELECT [a\"], `b`, GET_LOCK('job', 0), [\"] FROM t",
        "SELECT [a]]#b], GET_LOCK('job', 0) FROM t",
        "SELECT [a--\tb], GET_LOCK('job', 0) FROM t",
        "SELECT [a/*], GET_LOCK('job', 0), [*/] FROM t",
        "SELECT [a/*], GET_LOCK('job', 0) /**/",
        "SET [autocommit] = 1",
        "SAVEPOINT [a#]; COMMIT",
        "INSERT INTO [a#] VALUES (1); COMMIT",
    ],
)
@pytest.mark.parametrize("server", [MARIADB, ANY])
def test_what_a_name_in_square_brackets_may_hide_is_anything(
    server: int, statement: str
) -> None:
    """MariaDB has these names with ``MSSQL`` in its SQL mode."""
    assert side_effects(statement.encode(), server | SEVERAL) & ANYTHING == ANYTHING


@pytest.mark.parametrize("server", [MARIADB, MYSQL])
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT JSON_EXTRACT(a, '$[0]') FROM t",
        "SELECT JSON_EXTRACT(`a`, '$[0]') FROM `t`",
        'SELECT a FROM t WHERE b = \'[\\"it\\", \\"is\\"]\'',
        "SELECT '[a#', \"[b#\"",
    ],
)
def test_square_brackets_in_a_string_hide_nothing(statement: str, server: int) -> None:
    assert side_effects(statement.encode(), server) == SNAPSHOT


@pytest.mark.parametrize("statement", MAY_CHANGE_THE_ROLE)
def test_what_may_change_the_role_is_said_to(statement: str) -> None:
    assert side_effects(statement.encode()) & (ROLE | RUNS_CODE)


@pytest.mark.parametrize("statement", MAY_LEAD_ELSEWHERE)
def test_what_may_change_the_database_or_the_role_is_said_to(statement: str) -> None:
    assert side_effects(statement.encode()) & DIRTY_SCHEMA


@pytest.mark.parametrize("statement", CANNOT_BE_UNDONE)
def test_what_a_reset_may_not_undo_is_said_so(statement: str) -> None:
    assert side_effects(statement.encode()) & UNCLEANABLE


@pytest.mark.parametrize("statement", ["SELECT NEXTVAL(s)", "SELECT NEXT VALUE FOR s"])
def test_a_sequence_is_advanced_without_a_transaction(statement: str) -> None:
    assert side_effects(statement.encode(), MARIADB) == SNAPSHOT | SESSION | WRITES


def test_a_sequence_of_oracle_and_one_after_a_space_of_latin1_are_seen() -> None:
    assert side_effects(b"SELECT s.NEXTVAL") & SESSION
    assert side_effects(b"SELECT NEXT VALUE\xa0FOR s") & SESSION


@pytest.mark.parametrize(
    ("call", "own"),
    [
        ("UUID_TO_BIN(a)", {MYSQL, MYSQL_8}),
        ("NVL(a, 1)", {MARIADB}),
        ("MD5(a)", {MARIADB, MYSQL_8}),
    ],
)
def test_a_function_is_known_on_the_server_that_has_it(
    call: str, own: set[int]
) -> None:
    for server in (MARIADB, MYSQL, MYSQL_8):
        known = side_effects(f"SELECT {call} FROM t".encode(), server) == SNAPSHOT
        assert known == (server in own)


@pytest.mark.parametrize(
    "charset", ["gbk", "big5", "sjis", "cp932", "gb18030", "latin1"]
)
def test_a_quote_after_half_a_letter_is_read_both_ways(charset: str) -> None:
    letter = b"\xe9\\"  # in latin1 it is two, and the second one escapes

    assert (
        side_effects(b"SELECT '" + letter + b"', stored_function(1), '\\'") & RUNS_CODE
    )
    assert (
        side_effects(b"SELECT '" + letter + b"' + stored_function(1) -- '") & RUNS_CODE
    )


ENDS_A_BLOCK = [
    "COMMIT",
    "/* a */ COMMIT",
    "--\nCOMMIT",
    "/*!50000 COMMIT */",
    "/*!999999 COMMIT */",
    "SELECT 1; COMMIT",
    "SET autocommit = 1",
    "SET @a = 1, `autocommit` = 1",
    "SET @@session.autocommit := 1",
    "SET STATEMENT sort_buffer_size = 1 FOR COMMIT",
    "SET PASSWORD = 'a'",
    "SET DEFAULT ROLE a TO b",
    "CREATE TABLE x (a INT)",
    "CREATE OR REPLACE TABLE x (a INT)",
    "DROP TABLE x",
    "ALTER TABLE x ADD b INT",
    "ANALYZE TABLE t",
    "ANALYZE LOCAL TABLE t",
    "LOCK TABLES t WRITE",
    "XA START 'a'",
    "START TRANSACTION READ ONLY",
    "ROLLBACK AND CHAIN",
]
MAY_END_A_BLOCK = [
    "CALL p()",
    "EXECUTE s",
    "BEGIN NOT ATOMIC COMMIT; END",
    "UNLOCK TABLES",
    "CREATE TEMPORARY SEQUENCE s",
    "nonsense",
    "/*!50000 SELECT */ 1 /*! FROM a */",
]
ENDS_NO_BLOCK = [
    *ONLY_READS,
    *CHANGES_THE_SESSION,
    "INSERT INTO t VALUES ('; COMMIT')",
    "LOAD DATA INFILE 'a' INTO TABLE t",
    "SELECT stored_function(1)",
    "ROLLBACK TO a",
    "ROLLBACK TO SAVEPOINT a",
    "CREATE TEMPORARY TABLE x (a INT)",
    "DROP TEMPORARY TABLE x",
    "ANALYZE SELECT 1",
    "SELECT 'COMMIT' /* COMMIT */",
    "SET @a = 'autocommit'",
]


@pytest.mark.parametrize(
    ("effect", "statement"),
    [
        *((ENDS, each) for each in ENDS_A_BLOCK),
        *((MAY_END, each) for each in MAY_END_A_BLOCK),
        *((NONE, each) for each in ENDS_NO_BLOCK),
    ],
)
def test_what_a_statement_does_to_a_block_is_known(effect: int, statement: str) -> None:
    left = side_effects(statement.encode(), MARIADB)

    assert (left & ENDS or left & MAY_END) == effect


def test_a_long_statement_is_judged_like_a_short_one() -> None:
    statement = "SELECT '" + "x" * 10_000 + "'"

    assert find_side_effects(statement.encode()) == SNAPSHOT
    assert find_side_effects((statement + ", @a := 1").encode()) & SESSION


#: Values of a visitor, by what is before, in and after two pieces that are repeated.
REPEATED = [
    ("/*+", "`", "", ""),
    ("/*+'*/", "/*+'", "*/", ""),
    ("' x(", "$a", "", ";"),
    ("' with x(", "$a", "", ") as ("),
    ("';set statement ", "(", ")", ";"),
    ("';set statement a = ", "(", ")", " for use x;"),
    ("'", ";set``", "", ";"),
    ("';", "set statement a for ", "", ";"),
    ("';", "set statement a for (", "", "use x"),
    ("';set ", "x(", ")", ";"),
]
TOKENS = """
' '' " ` \\ /* */ /*! /*+ /*M! /*!50000 -- # ( ) () [ { ; , . = 1 a $a $ call with x(
set set`` for as @a:= into max last_insert_id( update select share val analyze role
autocommit sql_calc xa begin é \xe9\\ \x81`
""".split()
PARAMETERS = [
    "SELECT id FROM t WHERE a = '%s'",
    r"SELECT `a` FROM t WHERE a = '%s' OR b = '\\'",
    "INSERT INTO t VALUES ('%s')",
    "UPDATE t SET a = '%s'",
    "DELETE FROM t WHERE a = '%s'",
    "CALL p('%s')",
    "SET @a = '%s'",
    'SELECT "%s"',
]


def cost(statement: str) -> float:
    text = statement.encode("latin-1", "replace")
    begun = time.thread_time()
    find_side_effects(text, MARIADB | SEVERAL)
    return time.thread_time() - begun


def check_cost(template: str, value: tuple[str, str, str, str], escaped: bool) -> None:
    """Check that four times the length takes no more than about four times as long."""
    begin, first, second, end = value

    def make(size: int) -> str:
        count = size // len(first + second)
        made = begin + first * count + second * count + end
        # With NO_BACKSLASH_ESCAPES, only quotes are doubled.
        return template % (escape_string(made) if escaped else made.replace("'", "''"))

    for _ in range(3):  # a machine may be busy
        short, long = cost(make(4_000)), cost(make(16_000))
        if long <= 8 * short or long < 0.005:
            return
    raise AssertionError(f"{short:.3f} s, then {long:.3f} s: {template} {value}")


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("value", REPEATED)
def test_a_long_parameter_is_judged_in_time(
    value: tuple[str, str, str, str], escaped: bool
) -> None:
    for template in PARAMETERS:
        check_cost(template, value, escaped)


def test_no_parameter_takes_more_time_than_its_length() -> None:
    chance = Random(5)
    blank = ["", "", " "]
    for _ in range(400):
        parts = [
            "".join(
                chance.choice(TOKENS) + chance.choice(blank)
                for _ in range(chance.randint(least, 3))
            )
            for least in (0, 1, 0, 0)
        ]
        begin, first, second, end = parts
        value = begin, first, chance.choice(["", second]), end
        check_cost(chance.choice(PARAMETERS), value, chance.random() < 0.5)
