"""What is taken for harmless, and what is not."""

from __future__ import annotations

import pytest

from flask_mysqlpool.residue import (
    ELSEWHERE,
    INDELIBLE,
    RUNS_CODE,
    SESSION,
    SNAPSHOT,
    TRANSACTION,
    WRITES,
    judge,
    residue,
)

ONLY_READS = [
    "SELECT 1",
    "select 1;",
    "  SELECT * FROM t WHERE a IN (1, 2) AND (b OR c)",
    "SELECT COUNT(*), MAX (a) FROM t GROUP BY b HAVING SUM(c) > 1",
    "SELECT @@sql_mode",
    "SELECT LAST_INSERT_ID()",
    "SELECT DATE_FORMAT(NOW(), 'x'), CAST(a AS DECIMAL(5, 2))",
    "SHOW TABLES",
    "/* traced */ SELECT 1",
    "SELECT a - (b), a * (b), 'a' IN ('b')",
]
IS_NO_MORE_THAN_A_TRANSACTION = [
    "BEGIN",
    "START TRANSACTION",
    "COMMIT",
    "rollback ;",
    "SAVEPOINT a",
    "ROLLBACK TO SAVEPOINT a",
    "RELEASE SAVEPOINT a",
    "SELECT a FROM t FOR UPDATE",
    "SELECT a FROM t for  share",
    "SELECT a FROM t LOCK IN\nSHARE MODE",
    "SELECT a FROM t FOR UPDATE NOWAIT",
]
LEAVES_SOMETHING = [
    "SELECT @a := 1",
    "SELECT 1 OR@a:=2",
    "SELECT a INTO @b FROM t",
    "SELECT GET_LOCK('a', 1)",
    "SELECT stored_function(1)",
    "SELECT stored_function (1)",
    "SELECT `max`(1)",
    'SELECT "max"(1)',
    "SELECT other.max(1)",
    "SELECT other . max (1)",
    "SELECT other. max (1)",
    "/*! @a := */ SELECT 1",
    "SELECT `other`. `max`(1)",
    "SELECT émax(1)",
    "SELECT $max(1)",
    "SELECT stored_function/**/(1)",
    "SELECT stored_function-- \n(1)",
    "SELECT stored_function#\n(1)",
    "SELECT /*! @a := */ 1",
    "SELECT LAST_INSERT_ID(5)",
    "SELECT last_insert_id ( 5 )",
    "SELECT SQL_CALC_FOUND_ROWS * FROM t",
    "SELECT NEXT VALUE FOR s",
    "SELECT NEXTVAL(s)",
    "SHOW TABLES WHERE stored_function(1)",
    "INSERT INTO t VALUES (1)",
    "UPDATE t SET a = 1",
    "DELETE FROM t",
    "REPLACE INTO t VALUES (1)",
    "SET @a = 1",
    "SET SESSION sql_mode = ''",
    "LOCK TABLES t WRITE",
    "CREATE TEMPORARY TABLE x (a INT)",
    "PREPARE s FROM 'SELECT 1'",
    "HANDLER t OPEN",
    "WITH a AS (SELECT 1) SELECT * FROM a",
    "COMMIT AND CHAIN",
    "DO stored_function(1)",
    "nonsense",
    "",
]
MAY_LEAD_ELSEWHERE = [
    "USE other",
    "SET ROLE admin",
    "set default role admin to u",
    "SELECT 1; USE other",
    "SET @a = 1; USE other",
    "/* x */ USE other",
    "CALL procedure()",
    "DROP DATABASE test",
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
]


@pytest.mark.parametrize("statement", ONLY_READS)
def test_what_only_reads_leaves_at_most_a_snapshot(statement: str) -> None:
    assert residue(statement.encode()) == SNAPSHOT


@pytest.mark.parametrize("statement", IS_NO_MORE_THAN_A_TRANSACTION)
def test_what_is_undone_by_a_rollback_is_known(statement: str) -> None:
    assert residue(statement.encode()) == TRANSACTION


@pytest.mark.parametrize("statement", LEAVES_SOMETHING)
def test_what_may_change_the_session_is_said_to(statement: str) -> None:
    assert residue(statement.encode()) & SESSION


@pytest.mark.parametrize("statement", MAY_LEAD_ELSEWHERE)
def test_what_may_change_the_database_or_the_role_is_said_to(statement: str) -> None:
    assert residue(statement.encode()) & ELSEWHERE


@pytest.mark.parametrize("statement", CANNOT_BE_UNDONE)
def test_what_a_reset_may_not_undo_is_said_so(statement: str) -> None:
    assert residue(statement.encode()) & INDELIBLE


@pytest.mark.parametrize(
    "statement", [*LEAVES_SOMETHING, *MAY_LEAD_ELSEWHERE, *CANNOT_BE_UNDONE]
)
def test_what_is_not_known_to_be_a_mere_read_counts_as_a_write(statement: str) -> None:
    assert residue(statement.encode()) & WRITES
    assert residue(statement.encode()) & RUNS_CODE


def test_a_long_statement_is_judged_like_a_short_one() -> None:
    statement = "SELECT '" + "x" * 10_000 + "'"

    assert judge(statement.encode()) == SNAPSHOT
    assert judge((statement + ", @a := 1").encode()) & SESSION
