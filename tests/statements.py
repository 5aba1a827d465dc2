"""Execute generated statements, and compare what they leave with what is judged.

Each is executed on new sessions: one to look at what it leaves, and one in which a
transaction has a change, to see whether the statement ends that. ``python
tests/statements.py --engine mysql --count 5000 --seed 2`` samples the product of
statements, wrappers and ways to write them; without ``--count`` it takes 4,000. The
server tells of effects, too, unless ``--silent`` is given.
``--names`` instead makes a stored function of each name that is known to be harmless,
and calls it in each way in which the server may take one for the other.
"""

from __future__ import annotations

import argparse
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from pymysql.constants import CLIENT, ER, SERVER_STATUS
from pymysql.err import MySQLError

from flask_mysqlpool.pool.driver import statements
from flask_mysqlpool.pool.driver.results import ReadingConnection
from flask_mysqlpool.pool.driver.session import ASSIGNMENTS
from flask_mysqlpool.pool.driver.statements import find_side_effects, server_of
from flask_mysqlpool.testing import LocalServer

#: What a call, a variable or a subquery in a statement may do; %s is for the wrapper.
EXPRESSIONS = (
    """
1
'a'
'@x := 1'
"f_var(1)"
'; COMMIT'
@x := 1
@x:=@x+1
@`x` := 1
@'x' := 1
@/**/x := 1
@x
@@sort_buffer_size
GET_LOCK('l', 2)
get_lock ('l', 2)
`GET_LOCK`('l', 5)
GET_LOCK/**/('l', 5)
RELEASE_LOCK('l')
LAST_INSERT_ID()
LAST_INSERT_ID(7)
LAST_INSERT_ID (7)
LAST_INSERT_ID(/**/7)
LAST_INSERT_ID( -- x)
 7)
f_var(1)
f_var (1)
`f_var`(1)
f_var/*)*/(1)
statements.f_var(1)
statements . f_var(1)
`statements`.`f_var`(1)
f_write(1)
f_write(f_var(1))
f_lock(1)
f_temp(1)
f_role(1)
f_id(1)
f_session(1)
ABS(f_var(1))
COALESCE(NULL, f_write(1))
IF(f_var(1), 1, 2)
BENCHMARK(1, f_var(1))
BENCHMARK(1, @x := 1)
EXISTS (SELECT f_write(1))
1 IN (SELECT f_var(1))
1 IN (f_var(1))
1 = ANY (SELECT @x := 1)
1 = ANY (TABLE one)
NEXTVAL(s)
NEXT VALUE FOR s
NEXT/**/VALUE/**/FOR s
SETVAL(s, 50)
s.NEXTVAL
s.nextval + 1
LASTVAL(s)
(SELECT a FROM t LIMIT 1)
(SELECT a FROM t LIMIT 1 FOR UPDATE)
(SELECT a FROM t LIMIT 1 LOCK IN SHARE MODE)
(SELECT f_var(1) FROM t LIMIT 1)
(SELECT (SELECT f_write(1)))
(WITH c AS (SELECT f_write(1) AS b) SELECT b FROM c)
COUNT(*)
count (1)
MAX(f_var(1))
SUBSTRING('abc', f_var(1))
EXTRACT(YEAR FROM NOW())
CAST(f_var(1) AS CHAR)
CONVERT('a' USING utf8mb4)
CASE f_var(1) WHEN 1 THEN 2 END
JSON_EXTRACT('[1]', '$[0]')
CONCAT('it''s', f_var(1))
CONCAT('\\', f_var(1), '\\')
CONCAT("a'", f_var(1), "'b")
""".strip()
    .replace("x)\n 7", "x)\r 7")
    .split("\n")
)
EXPRESSIONS = [each.replace("\r", "\n") for each in EXPRESSIONS]

#: What an expression may stand in.
WRAPPERS = r"""
SELECT %s
(SELECT %s)
((SELECT %s))
SELECT DISTINCT %s
SELECT (%s), a FROM t
SELECT a FROM t WHERE %s
SELECT a FROM t GROUP BY a HAVING %s
SELECT a FROM t ORDER BY %s
SELECT a FROM t LIMIT 1 OFFSET 0; SELECT %s
SELECT b.a FROM t AS b JOIN t AS c ON %s
SELECT * FROM (SELECT %s AS a) AS d
SELECT * FROM (SELECT %s) AS d (a)
SELECT 1 UNION SELECT %s
(SELECT 1) UNION ALL (SELECT %s)
SELECT 1 EXCEPT SELECT %s
SELECT (SELECT %s)
SELECT IF(%s, 1, 2)
SELECT CASE WHEN %s THEN 1 ELSE 2 END
SELECT CONCAT('a', %s)
SELECT ABS((%s))
SELECT SUM(%s) OVER () FROM t
SELECT -%s
SELECT 1-(%s)
SELECT NOT%s
SELECT 1 AS `a`, %s
SELECT 1 AS "a", %s
SELECT 'it''s', %s
SELECT 'it\'s', %s
SELECT "it's", %s
SELECT '\\', %s, '\\'
SELECT ';', %s
SELECT '-- ', %s
SELECT '#', %s
SELECT '/*', %s, '*/'
SELECT 1--1, %s
SELECT 1 AS [a #], %s
SELECT 1 AS [it's], %s, 2 AS [it's]
SET @y = (SELECT MAX([a #]) + %s FROM (SELECT 1 AS [a #]) AS d)
SELECT /*+ NO_INDEX_MERGE(t) */ %s FROM t
SELECT SQL_CALC_FOUND_ROWS %s FROM t
SELECT SQL_NO_CACHE %s
SELECT %s INTO @y
SELECT %s INTO @y FROM t LIMIT 1
SELECT 1 INTO @y FROM t WHERE %s LIMIT 1
SELECT %s FROM t FOR UPDATE
SELECT %s FROM t LIMIT 1 FOR SHARE
SELECT %s FROM v
TABLE t ORDER BY %s
VALUES (%s)
VALUES ROW(%s)
DO %s
DO 1, %s
SET @y = %s
SET @y := %s, @z = 1
SET SESSION sort_buffer_size = 65536 + 0 * %s
SET @@lock_wait_timeout = 10 + 0 * (%s)
WITH c AS (SELECT %s AS b) SELECT * FROM c
WITH c (b) AS (SELECT %s) SELECT b FROM c
WITH RECURSIVE c AS (SELECT %s AS b UNION SELECT 1 FROM c) SELECT * FROM c
WITH c AS (SELECT %s AS b) DELETE FROM t WHERE a IN (SELECT b FROM c)
SHOW TABLES WHERE %s
SHOW VARIABLES WHERE variable_name = 'a' OR %s
SHOW STATUS WHERE (%s)
SHOW WARNINGS
INSERT INTO t (a) VALUES (%s)
INSERT INTO t (a) SELECT %s
INSERT INTO t SET a = %s
INSERT INTO t (id, a) VALUES (1, 1) ON DUPLICATE KEY UPDATE a = %s
REPLACE INTO t VALUES (1, %s)
UPDATE t SET a = %s
UPDATE t SET a = 1 WHERE %s
DELETE FROM t WHERE %s
DELETE FROM t ORDER BY %s LIMIT 1
CALL p_arg(%s)
CALL p_arg((SELECT %s))
EXECUTE IMMEDIATE CONCAT('SELECT ', %s)
EXECUTE IMMEDIATE 'SELECT ?' USING %s
PREPARE ps FROM CONCAT('SELECT ', %s)
HANDLER t READ FIRST WHERE %s
KILL QUERY 99999999 + 0 * %s
SIGNAL SQLSTATE '01000' SET MYSQL_ERRNO = %s
CREATE TEMPORARY TABLE tmp AS SELECT %s AS a
CREATE TABLE made AS SELECT %s AS a
CREATE TABLE made (a INT DEFAULT (%s))
CREATE VIEW made_view AS SELECT %s AS a
ALTER TABLE t ALTER a SET DEFAULT (%s)
PURGE BINARY LOGS BEFORE %s
EXPLAIN SELECT %s
BEGIN NOT ATOMIC SELECT %s; END
IF %s THEN SELECT 1; END IF
""".strip().split("\n")

#: Whole statements.
STATEMENTS = r"""
SELECT 1
SELECT a FROM t
SELECT a FROM t FOR UPDATE
SELECT a FROM t LOCK IN SHARE MODE
SELECT a FROM t FOR UPDATE SKIP LOCKED
SELECT a FROM t FOR SHARE OF t
SELECT a, id INTO @x, @y FROM t LIMIT 1
SELECT a INTO @x FROM t LIMIT 1
SELECT a FROM t LIMIT 1 INTO @x
SELECT a FROM t INTO OUTFILE '/nowhere/a'
SELECT a FROM v_func
SELECT a FROM v_write
SELECT * FROM t PROCEDURE ANALYSE()
SELECT f_var(1); COMMIT
SELECT 1; COMMIT
SELECT 1; USE elsewhere
SELECT '; COMMIT'
SELECT 1;
INSERT INTO t (a) VALUES (5)
INSERT IGNORE INTO t VALUES (1, 1)
INSERT INTO t VALUES (1, 1)
INSERT INTO trig VALUES (1)
INSERT INTO trig VALUES (1) RETURNING a
INSERT INTO t VALUES (NULL, 5), (NULL, 6)
INSERT INTO t (a) SELECT a FROM one
INSERT INTO t (a) TABLE one
INSERT INTO t (a) VALUES ('; COMMIT')
INSERT INTO simple VALUES (1)
REPLACE INTO t VALUES (1, 9)
UPDATE t SET a = a + 1
UPDATE t, one SET t.a = 4
UPDATE trig SET a = a + 1
DELETE FROM t
DELETE FROM trig
DELETE t FROM t JOIN one
TRUNCATE t
TRUNCATE TABLE t
USE elsewhere
USE statements
use`elsewhere`
USE/**/elsewhere
SET @x = 1
SET @x := 1, @y = 2
SET @`x y` = 1
SET @x = (SELECT a FROM t LIMIT 1)
SET @x = '; COMMIT'
SET autocommit = 1
SET autocommit = 0
SET autocommit := ON
SET @x = 1, autocommit = 1
SET SESSION autocommit = 1
SET @@autocommit = 1
SET @@session.autocommit = 1
SET LOCAL autocommit = 1
SET `autocommit` = 1
SET @@`autocommit` = 1
SET sort_buffer_size = 65536
SET SESSION sql_mode = ''
SET sql_mode = 'ANSI_QUOTES'
SET NAMES latin1
SET CHARACTER SET latin1
SET CHARSET latin1
SET TRANSACTION ISOLATION LEVEL READ COMMITTED
SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED
SET SESSION TRANSACTION READ ONLY
SET TRANSACTION READ ONLY
SET time_zone = '+01:00'
SET last_insert_id = 9
SET insert_id = 9
SET identity = 9
SET timestamp = 1
SET rand_seed1 = 1
SET sql_log_bin = 0
SET foreign_key_checks = 0
SET completion_type = 1
SET ROLE r
SET ROLE NONE
SET ROLE 'r'
SET ROLE `r`
SET/**/ROLE r
SET ROLE ALL
SET ROLE DEFAULT
SET `role` = r
SET DEFAULT ROLE NONE
SET DEFAULT ROLE NONE FOR root@localhost
SET DEFAULT ROLE NONE TO root@localhost
SET PASSWORD FOR nobody@localhost = 'a'
SET STATEMENT max_statement_time = 5 FOR SELECT 1
SET STATEMENT max_statement_time = 5 FOR COMMIT
SET STATEMENT max_statement_time = 5 FOR USE elsewhere
SET STATEMENT sort_buffer_size = (SELECT 65536) FOR INSERT INTO t (a) VALUES (4)
SET STATEMENT lock_wait_timeout = f_var(5) FOR SELECT 1
SET STATEMENT lock_wait_timeout = 5 FOR SET ROLE r
SET STATEMENT lock_wait_timeout = 5 FOR SET @x = 1
SET STATEMENT lock_wait_timeout = 5 FOR CALL p_commit()
SET STATEMENT lock_wait_timeout = 5 FOR CREATE TABLE made (a INT)
BEGIN
BEGIN WORK
START TRANSACTION
START TRANSACTION READ ONLY
START TRANSACTION READ WRITE
START TRANSACTION WITH CONSISTENT SNAPSHOT
COMMIT
COMMIT WORK
COMMIT AND CHAIN
COMMIT AND NO CHAIN
COMMIT NO RELEASE
COMMIT WORK AND NO CHAIN NO RELEASE
ROLLBACK
ROLLBACK WORK
ROLLBACK AND CHAIN
ROLLBACK NO RELEASE
ROLLBACK TO sp
ROLLBACK TO SAVEPOINT sp
ROLLBACK WORK TO sp
ROLLBACK WORK TO SAVEPOINT `sp`
ROLLBACK TO COMMIT
ROLLBACK TO/**/sp
SAVEPOINT sp
SAVEPOINT `sp`
SAVEPOINT COMMIT
SAVEPOINT chain
RELEASE SAVEPOINT sp
XA START 'a'
XA BEGIN 'a'
XA RECOVER
XA END 'a'
LOCK TABLES t WRITE
LOCK TABLES t READ
LOCK TABLE t WRITE, one READ
LOCK TABLES t AS b READ LOCAL
UNLOCK TABLES
UNLOCK TABLE
FLUSH TABLES
FLUSH STATUS
FLUSH TABLES t
FLUSH TABLES t WITH READ LOCK
FLUSH TABLES t FOR EXPORT
FLUSH LOGS
FLUSH PRIVILEGES
FLUSH LOCAL STATUS
FLUSH NO_WRITE_TO_BINLOG TABLES
HANDLER t OPEN
HANDLER t OPEN AS h
HANDLER t CLOSE
PREPARE ps FROM 'SELECT 1'
PREPARE ps FROM "INSERT INTO t (a) VALUES (5)"
PREPARE ps FROM @x
DEALLOCATE PREPARE ps
DROP PREPARE ps
EXECUTE ps
EXECUTE ready
EXECUTE ready_commit
EXECUTE IMMEDIATE 'SELECT 1'
EXECUTE IMMEDIATE 'COMMIT'
EXECUTE IMMEDIATE 'USE elsewhere'
EXECUTE IMMEDIATE 'SET ROLE r'
EXECUTE IMMEDIATE 'SET @x = 1'
EXECUTE IMMEDIATE 'INSERT INTO t (a) VALUES (5)'
EXECUTE IMMEDIATE 'CREATE TABLE made (a INT)'
CALL p_var()
CALL p_var
CALL p_commit()
CALL statements.p_commit()
CALL `p_commit`
CALL p_rollback()
CALL p_use()
CALL p_role()
CALL p_temp()
CALL p_write()
CALL p_prepare()
CALL p_lock()
CALL p_autocommit()
CALL p_begin()
CALL p_ddl()
CALL p_rows()
CALL p_session()
CALL p_handler()
BEGIN NOT ATOMIC COMMIT; END
BEGIN NOT ATOMIC SET @x = 1; END
BEGIN NOT ATOMIC SELECT 1; END
IF 1 THEN COMMIT; END IF
CASE WHEN 1 THEN COMMIT; END CASE
l: LOOP COMMIT; LEAVE l; END LOOP
WHILE 0 DO COMMIT; END WHILE
FOR i IN 1..1 DO COMMIT; END FOR
CREATE TABLE made (a INT)
CREATE TABLE IF NOT EXISTS t (a INT)
CREATE OR REPLACE TABLE made (a INT)
CREATE TABLE made SELECT 1 AS a
CREATE TABLE made LIKE t
CREATE TEMPORARY TABLE tmp (a INT)
CREATE TEMPORARY TABLE IF NOT EXISTS tmp (a INT)
CREATE OR REPLACE TEMPORARY TABLE tmp (a INT)
CREATE TEMPORARY TABLE tmp SELECT a FROM t
CREATE TEMPORARY TABLE tmp LIKE t
CREATE TEMPORARY SEQUENCE tmp
CREATE/**/TEMPORARY/**/TABLE tmp (a INT)
DROP TEMPORARY TABLE IF EXISTS tmp
DROP TEMPORARY TABLE tmp
DROP TEMPORARY TABLE own
DROP TABLE own
DROP TABLE IF EXISTS made
DROP TABLES IF EXISTS made
ALTER TABLE own ADD c INT
ALTER TABLE t COMMENT = 'a'
RENAME TABLE t TO t2, t2 TO t
TRUNCATE TABLE own
CREATE INDEX made_index ON own (a)
DROP INDEX made_index ON own
INSERT INTO own VALUES (1)
CREATE VIEW made_view AS SELECT 1 AS a
CREATE OR REPLACE VIEW made_view AS SELECT 1 AS a
DROP VIEW IF EXISTS made_view
CREATE SEQUENCE made_sequence
DROP SEQUENCE IF EXISTS made_sequence
CREATE DATABASE IF NOT EXISTS statements
ALTER DATABASE statements COMMENT = ''
DROP DATABASE IF EXISTS nothing
CREATE FUNCTION made_function() RETURNS INT DETERMINISTIC NO SQL RETURN 1
DROP FUNCTION IF EXISTS made_function
DROP PROCEDURE IF EXISTS made_function
CREATE PROCEDURE made_function() SELECT 1
DROP TRIGGER IF EXISTS made_trigger
CREATE USER IF NOT EXISTS r2
DROP USER IF EXISTS r2
CREATE ROLE IF NOT EXISTS r
GRANT r TO root@localhost
REVOKE IF EXISTS r FROM nobody
GRANT SELECT ON statements.* TO r
ANALYZE TABLE t
ANALYZE LOCAL TABLE t
ANALYZE NO_WRITE_TO_BINLOG TABLE t
ANALYZE SELECT a FROM t
ANALYZE FORMAT=JSON SELECT f_var(1)
ANALYZE UPDATE t SET a = 3
OPTIMIZE TABLE t
REPAIR TABLE t
CHECK TABLE t
CHECKSUM TABLE t
CACHE INDEX t IN nothing
LOAD INDEX INTO CACHE t
LOAD DATA INFILE '/nowhere/a' INTO TABLE t
EXPLAIN SELECT a FROM t
EXPLAIN FORMAT=JSON SELECT f_var(1)
EXPLAIN FORMAT=JSON INTO @x SELECT a FROM t
EXPLAIN ANALYZE SELECT f_write(1) FROM t
EXPLAIN SELECT * FROM (SELECT f_write(1) AS a) AS d
EXPLAIN UPDATE t SET a = 3
EXPLAIN DELETE FROM t
EXPLAIN t
DESCRIBE t
DESC t a
SHOW TABLES
SHOW CREATE TABLE t
SHOW WARNINGS
SHOW ERRORS
SHOW COUNT(*) WARNINGS
SHOW PROCESSLIST
SHOW MASTER STATUS
SHOW TABLE STATUS
SHOW CREATE FUNCTION f_var
SHOW BINARY LOGS
SHOW GRANTS
SHOW EXPLAIN FOR 1
HELP 'SELECT'
GET DIAGNOSTICS @x = NUMBER
GET CURRENT DIAGNOSTICS @x = ROW_COUNT
SIGNAL SQLSTATE '45000'
RESIGNAL
RESET QUERY CACHE
INSTALL SONAME 'nothing'
UNINSTALL PLUGIN nothing
DO f_write(1)
DO RELEASE_ALL_LOCKS()
VALUES (1)
VALUES ROW(1, f_var(1))
TABLE t
TABLE t INTO OUTFILE '/nowhere/a'
TABLE one INTO @x
VALUES ROW(1) INTO @x
(SELECT 1) UNION (SELECT 2)
(SELECT a FROM t LIMIT 1) INTO @x
(SELECT a FROM t LIMIT 1) FOR UPDATE
SELECT 1 UNION SELECT 2 INTO @x
WITH c AS (SELECT 1 AS a) SELECT a INTO @x FROM c
WITH c AS (SELECT 1 AS a) UPDATE t SET a = 4
SELECT * FROM t, LATERAL (SELECT f_var(1)) AS d
SELECT * FROM JSON_TABLE('[1]', '$[*]' COLUMNS (a INT PATH '$')) AS d
SELECT a FROM t PARTITION (p0)
SELECT `a``b(1)` FROM t
SELECT f_var
SELECT MATCH (a) AGAINST ('b')
""".strip().split("\n")

#: How a statement may be written; %s is it.
SPELLINGS = [
    "%s", "%s", "%s", " %s", "\n\t%s", "%s ;", "%s;", "%s -- x", "%s # x", "%s /* x */",
    "/* x */ %s", "/**/%s", "/*x*/ /*y*/%s", "-- x\n%s", "--\n%s", "--\t\n %s", "#\n%s",
    "# it's\n%s", "-- it's\n%s", "/* it's */%s", "/*! */%s", "/*!50000 %s */",
    "/*!50000*/ %s", "/*!%s*/", "/*!999999 x */ %s", "/*!999999 %s */ ",
    "/*M! %s */", "/*M!100100 %s */", "/*M!999999 x */ %s", "/*!080000 %s */",
    "/*! %s */ /* x */", "/* /*! */ %s", "/*!50000 /* x */ */ %s", "(%s)",
    "EXPLAIN %s", "EXPLAIN ANALYZE %s", "EXPLAIN FORMAT=JSON %s", "ANALYZE %s",
    "DESCRIBE %s", "EXPLAIN EXTENDED %s", "EXPLAIN FORMAT=TREE %s",
    "SET STATEMENT max_statement_time = 10 FOR %s",
    "SET STATEMENT sort_buffer_size = (65536), lock_wait_timeout = 5 FOR %s",
    "SET/**/STATEMENT max_statement_time=10 FOR/**/%s",
    "BEGIN NOT ATOMIC %s; END", "SELECT 1; %s", "SELECT ';'; %s", "%s; SELECT 1",
    "SET @z = ';'; %s", "INSERT INTO t (a) VALUES (5); %s", "%s; SELECT 'x",
    "-- \\'\n%s", "/* ' */%s/* ' */", "/*!50000 */ /*!999999 ' */ %s", "\x0b%s",
    "\x0c%s", "\xa0%s",
]  # fmt: skip
#: What may stand for each of its spaces, that is: for those outside of strings.
SPACES = [" ", " ", " ", " ", "  ", "\n", "\t", "/**/", "/* ' */", " -- x\n", "#\n"]
MODES = [*[""] * 3, "ANSI_QUOTES", "NO_BACKSLASH_ESCAPES", "IGNORE_SPACE"]
MODES += ["ORACLE", "MSSQL"]
ONLY_ON_MARIADB = "ORACLE", "MSSQL"

_SETUP = """
CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, a INT)
CREATE TABLE one (a INT)
CREATE TABLE trig (a INT)
CREATE TABLE log (a INT)
CREATE TABLE marks (a INT PRIMARY KEY)
CREATE TABLE simple (a INT) ENGINE = MyISAM
CREATE SEQUENCE s NOCACHE
CREATE FUNCTION f_var(n INT) RETURNS INT DETERMINISTIC BEGIN SET @x = n; RETURN n; END
CREATE FUNCTION f_id(n INT) RETURNS INT DETERMINISTIC RETURN LAST_INSERT_ID(77)
CREATE FUNCTION f_lock(n INT) RETURNS INT DETERMINISTIC RETURN GET_LOCK('l', 2)
CREATE FUNCTION f_write(n INT) RETURNS INT DETERMINISTIC MODIFIES SQL DATA
 BEGIN INSERT INTO log VALUES (n); RETURN n; END
CREATE FUNCTION f_temp(n INT) RETURNS INT DETERMINISTIC MODIFIES SQL DATA
 BEGIN CREATE TEMPORARY TABLE tmp (a INT); RETURN n; END
CREATE FUNCTION f_role(n INT) RETURNS INT DETERMINISTIC BEGIN SET ROLE r; RETURN n; END
CREATE FUNCTION f_session(n INT) RETURNS INT DETERMINISTIC
 BEGIN SET SESSION sort_buffer_size = 66560; RETURN n; END
CREATE PROCEDURE p_arg(n INT) SELECT n
CREATE PROCEDURE p_var() SET @x = 1
CREATE PROCEDURE p_commit() COMMIT
CREATE PROCEDURE p_rollback() ROLLBACK
CREATE PROCEDURE p_use() EXECUTE IMMEDIATE 'USE elsewhere'
CREATE PROCEDURE p_role() SET ROLE r
CREATE PROCEDURE p_temp() CREATE TEMPORARY TABLE tmp (a INT)
CREATE PROCEDURE p_write() INSERT INTO log VALUES (1)
CREATE PROCEDURE p_prepare() PREPARE ps FROM 'SELECT 1'
CREATE PROCEDURE p_lock() SELECT GET_LOCK('l', 2)
CREATE PROCEDURE p_autocommit() SET autocommit = 1
CREATE PROCEDURE p_begin() BEGIN START TRANSACTION; INSERT INTO log VALUES (1); END
CREATE PROCEDURE p_ddl() CREATE TABLE made (a INT)
CREATE PROCEDURE p_rows() BEGIN SELECT 1; COMMIT; SELECT 2; END
CREATE PROCEDURE p_session() SET SESSION sql_mode = ''
CREATE PROCEDURE p_handler() EXECUTE IMMEDIATE 'HANDLER t OPEN'
CREATE TRIGGER trig_i BEFORE INSERT ON trig FOR EACH ROW SET @x = 1
CREATE TRIGGER trig_u BEFORE UPDATE ON trig FOR EACH ROW INSERT INTO log VALUES (1)
CREATE TRIGGER trig_d BEFORE DELETE ON trig FOR EACH ROW SET @x = GET_LOCK('l', 2)
CREATE VIEW v AS SELECT a FROM t
CREATE VIEW v_func AS SELECT f_var(1) AS a
CREATE VIEW v_write AS SELECT f_write(1) AS a
INSERT INTO one VALUES (1)
"""

_STATE = (
    "SELECT (SELECT GROUP_CONCAT(id, ':', IFNULL(a, '-') ORDER BY id) FROM t),"
    " (SELECT COUNT(*) FROM log), (SELECT SUM(a) FROM trig),"
    " (SELECT COUNT(*) FROM simple)"
)
_ABOUT_SESSION = (
    "SELECT DATABASE(), CURRENT_ROLE(), LAST_INSERT_ID(),"
    " IS_USED_LOCK('l') = CONNECTION_ID()"
)
_TIDY_OBJECTS = """
DROP TABLE IF EXISTS made
DROP VIEW IF EXISTS made_view
DROP FUNCTION IF EXISTS made_function
DROP PROCEDURE IF EXISTS made_function
DROP SEQUENCE IF EXISTS made_sequence
ALTER TABLE t ALTER a SET DEFAULT NULL
"""
_TIDY = """
DELETE FROM t
DELETE FROM log
DELETE FROM trig
DELETE FROM simple
INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)
INSERT INTO trig VALUES (1), (2)
DO RELEASE_ALL_LOCKS()
"""
_CHANGES_OBJECTS = re.compile(r"made|alter|p_ddl", re.IGNORECASE)
#: What differs from session to session, or follows from what was looked at before.
_VOLATILE = re.compile(
    r"timestamp|pseudo_\w+|identity|last_insert_id|rand_seed\d|\w+_count|in_transaction"
    r"|gtid_\w+|last_gtid|insert_id|\w+_time|innodb_\w+|statement_id|transaction_\w+_id"
)
#: Flags of which each says an effect, where these are several.
SAID_BY = {
    "ENDS": statements.ENDS | statements.MAY_END,
    "SNAPSHOT": statements.TRANSACTIONS,
    "ROLE": statements.ROLE | statements.RUNS_CODE,
}
#: Views whose functions have effects, which only the server tells of.
_VIEW = re.compile("v_func|v_write")
#: The errors with which a server refuses what it cannot read.
_UNREADABLE = {ER.PARSE_ERROR, ER.SYNTAX_ERROR, ER.EMPTY_QUERY, ER.NOT_SUPPORTED_YET}


def sample(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield statements, and the SQL mode in which to execute each."""
    chance = random.Random(seed)
    for _ in range(count):
        if chance.random() < 0.4:
            statement = chance.choice(STATEMENTS)
        else:
            wrapper = chance.choice(WRAPPERS)
            statement = wrapper.replace("%s", chance.choice(EXPRESSIONS))
        if chance.random() < 0.3:
            statement = _respaced(statement, chance)
        if chance.random() < 0.2:
            statement = chance.choice([str.lower, str.upper, str.swapcase])(statement)
            # Names of tables, which may depend on case, stay as they are.
            statement = re.sub(_NAMES, lambda found: found[0].lower(), statement)
        if chance.random() < 0.7:
            statement = chance.choice(SPELLINGS).replace("%s", statement)
        yield statement, chance.choice(MODES)


_NAMES = re.compile(
    r"(?i)\b(?:statements|elsewhere|made\w*|tmp|own|trig\w*|log|one|simple|[tvsrxyz])\b"
)


def _respaced(statement: str, chance: random.Random) -> str:
    parts = re.split(r"('[^']*'|\"[^\"]*\"|`[^`]*`)", statement)
    for at in range(0, len(parts), 2):
        parts[at] = re.sub(" ", lambda _: chance.choice(SPACES), parts[at])
    return "".join(parts)


#: Ways to call what has the name of a function of the server.
CALLS = """
SELECT %s(1)
SELECT %s (1)
SELECT %s/**/(1)
SELECT %s\t(1)
SELECT statements.%s(1)
SELECT statements . %s (1)
SELECT `%s`(1)
SELECT 1 FROM dual WHERE %s(1)
SELECT 1 AND %s (1)
SELECT 1 IN (%s (1))
SELECT -%s(1)
SELECT 1 %s (1)
SELECT (1) %s (1)
SELECT 'a' %s (1)
SELECT (1) %s(1)
SELECT 1 AS %s, %s(1)
SELECT * FROM (SELECT %s(1) AS %s_) AS d
SELECT CASE %s(1) WHEN 1 THEN 1 END
WITH %s (a) AS (SELECT 1) SELECT %s(1)
DO %s(1)
""".strip().split("\n")


def call_names(server: LocalServer) -> Findings:
    """Give stored functions the names that are known, and see what calls them."""
    laboratory = Laboratory(server, tells=False)
    found, connection = laboratory.findings, server.connect(autocommit=True)
    tables = statements._CALLS_ON
    names = sorted({name.decode() for table in tables for name in table})
    body = "(n INT) RETURNS INT DETERMINISTIC BEGIN SET @x = n; RETURN n; END"
    laboratory.attempt(connection, "USE statements")
    for name in names:
        laboratory.attempt(connection, f"CREATE FUNCTION `{name}`{body}")
    for mode in ("", "IGNORE_SPACE"):
        laboratory.attempt(connection, f"SET sql_mode = '{mode}'")
        for statement in [c.replace("%s", name) for name in names for c in CALLS]:
            laboratory.attempt(connection, "SET @x = NULL")
            if error := laboratory.attempt(connection, statement):
                found.unreadable += error in _UNREADABLE
                found.failed += error not in _UNREADABLE
            found.executed += 1
            if laboratory.ask(connection, "SELECT @x") != (None,):
                laboratory.compare(statement, mode, {"SESSION", "RUNS_CODE"}, told=0)
                found.effects["RUNS_CODE"] += 1
    connection.close()
    laboratory.close()
    return found


@dataclass
class Findings:
    """What was found; a miss is an effect and the statement that was not said to."""

    executed: int = 0
    excepted: int = 0
    failed: int = 0
    unreadable: int = 0
    misses: list[tuple[str, str, str]] = field(default_factory=list)
    #: Effects that only the server tells of, and those that only the text shows.
    only_told: Counter[str] = field(default_factory=Counter)
    only_in_text: Counter[str] = field(default_factory=Counter)
    effects: Counter[str] = field(default_factory=Counter)
    false_alarms: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"MISS {miss}: {text!r} {mode}" for miss, text, mode in self.misses]
        for title, counts in (
            ("effects", self.effects),
            ("false alarms", self.false_alarms),
            ("only told by the server", self.only_told),
            ("only in the text", self.only_in_text),
        ):
            counted = ", ".join(f"{n} {name}" for name, n in counts.most_common())
            lines.append(f"{title}: {counted}")
        lines.append(
            f"{self.executed} executed, {self.failed} failed, {self.unreadable} more"
            f" were no statements here, {self.excepted} by functions in views,"
            f" {len(self.misses)} misses"
        )
        return "\n".join(lines)


class Laboratory:
    """Databases with stored code in which statements are tried."""

    def __init__(self, server: LocalServer, tells: bool) -> None:
        self.server, self.tells = server, tells
        self.observer = server.connect(autocommit=True)
        self.kind = server_of(self.observer.get_server_info())
        self.is_mariadb = self.kind == statements.MARIADB
        self.findings = Findings()
        self.usual: dict[str, Any] = {}
        self.about_variables = ""
        self.about_state = _STATE
        if self.is_mariadb:
            self.about_state += ", (SELECT next_not_cached_value FROM s)"
        self.number = 0
        for statement in (
            "DROP DATABASE IF EXISTS statements",
            "CREATE DATABASE statements",
            "CREATE DATABASE IF NOT EXISTS elsewhere",
            "CREATE ROLE IF NOT EXISTS r",
            "GRANT r TO root@localhost",
            "USE statements",
            *re.split(r"\n(?! )", _SETUP.strip()),
        ):
            self.attempt(self.observer, statement)
        self.tidy()

    def close(self) -> None:
        for statement in (
            "DROP DATABASE statements",
            "DROP DATABASE elsewhere",
            "DROP ROLE r",
        ):
            self.attempt(self.observer, statement)
        self.observer.close()

    def tidy(self, statements: str = "") -> None:
        for statement in (statements + _TIDY).strip().split("\n"):
            self.attempt(self.observer, statement)
        self.state = self.ask(self.observer, self.about_state)

    def attempt(self, connection: Any, statement: str) -> int:
        """Execute, and read all that is answered; return the error's number, or 0."""
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                while cursor.nextset():
                    pass
        except MySQLError as error:
            return int(error.args[0] or -1)
        return 0

    def ask(self, connection: Any, question: str) -> Any:
        """Return the first row of the answer, or the error's number."""
        try:
            with connection.cursor() as cursor:
                cursor.execute(question)
                return cursor.fetchone()
        except MySQLError as error:
            return error.args[0]

    @contextmanager
    def session(self, mode: str, statement: str) -> Iterator[Any]:
        flag = CLIENT.MULTI_STATEMENTS if ";" in statement.rstrip("; ") else 0
        connection: Any = self.server.connect(
            **{"read_timeout": 20, "database": "statements", "client_flag": flag},
            **{"autocommit": False, "defer_connect": True},
        )
        if self.tells:
            connection.__class__ = ReadingConnection
        connection.connect()
        try:
            if self.tells:
                connection.read_faster()
                assert not self.attempt(connection, f"SET {ASSIGNMENTS}")
            if mode and (mode not in ONLY_ON_MARIADB or self.is_mariadb):
                self.attempt(connection, f"SET SESSION sql_mode = '{mode}'")
            self.attempt(connection, "CREATE TEMPORARY TABLE own (a INT)")
            self.attempt(connection, "PREPARE ready FROM 'SELECT 1'")
            self.attempt(connection, "PREPARE ready_commit FROM 'COMMIT'")
            self.attempt(connection, "ROLLBACK")
            yield connection
        finally:
            with suppress(MySQLError):
                connection.close()

    def examine(self, statement: str, mode: str) -> None:
        """Execute a statement on two sessions, and compare."""
        with self.session(mode, statement) as connection:
            if mode not in self.usual:
                self.usual[mode] = self.variables(connection)
            connection.told = statements.NONE
            error = self.attempt(connection, statement)
            told = connection.told & ~statements.ENDS
            effects = self.left_in(connection, mode)
        with self.session(mode, statement) as connection:
            if self.ends_block(connection, statement):
                effects.add("ENDS")
            told |= connection.told & statements.ENDS
        if self.ask(self.observer, self.about_state) != self.state:
            effects.add("WRITES")
            self.tidy()
        if _CHANGES_OBJECTS.search(statement):
            self.tidy(_TIDY_OBJECTS)
        found = self.findings
        if error in _UNREADABLE and not effects:
            found.unreadable += 1
            return
        found.executed += 1
        found.failed += bool(error)
        found.effects.update(effects)
        self.compare(statement, mode, effects, told)

    def compare(self, statement: str, mode: str, effects: set[str], told: int) -> None:
        several = ";" in statement.rstrip("; ")
        server = self.kind | (statements.SEVERAL if several else 0)
        text = statement.encode("latin-1")
        said = find_side_effects(text, server)
        found = self.findings
        for effect in sorted(effects):
            flags = SAID_BY.get(effect, getattr(statements, effect))
            found.only_told[effect] += bool(told & flags and not said & flags)
            found.only_in_text[effect] += bool(said & flags and not told & flags)
            missed = not (said | told) & flags
            if missed and not self.tells and _VIEW.search(statement.lower()):
                found.excepted += 1  # no text shows it
            elif missed:
                found.misses.append((effect, statement, mode))
        for flag in ("SESSION", "DIRTY_SCHEMA", "ROLE", "WRITES", "ENDS"):
            if said & getattr(statements, flag) and flag not in effects:
                found.false_alarms[flag] += 1
        if said & statements.MAY_END and "ENDS" not in effects:
            found.false_alarms["MAY_END"] += 1
        if said & statements.TRANSACTION and "SNAPSHOT" not in effects:
            found.false_alarms["TRANSACTION"] += 1

    def variables(self, connection: Any) -> Any:
        if not self.about_variables:
            with connection.cursor() as cursor:
                cursor.execute("SHOW SESSION VARIABLES")
                names = [name for name, _ in cursor.fetchall()]
            values = [
                f"@@session.{name}"
                for name in names
                if not _VOLATILE.fullmatch(name)
                and not self.attempt(connection, f"SELECT @@session.{name}")
            ]
            self.about_variables = "SELECT " + ", ".join(values)
        return self.ask(connection, self.about_variables)

    def left_in(self, connection: Any, mode: str) -> set[str]:
        """Look at all that a statement may have left in its session."""
        with suppress(MySQLError):
            connection.ping(reconnect=False)
        left = set()
        if connection.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS:
            left.add("SNAPSHOT")
        row = self.ask(connection, _ABOUT_SESSION)
        if not isinstance(row, tuple):
            return left  # the session is over, or can do no more
        database, role, *others = row
        if database != "statements":
            left.add("DIRTY_SCHEMA")
        if role not in (None, "NONE"):
            left.add("ROLE")
        if any(others) or self.has_variables(connection, mode):
            left.add("SESSION")
        number = self.attempt(connection, "SELECT a FROM statements.marks LIMIT 0")
        if number == ER.TABLE_NOT_LOCKED:
            left.add("SESSION")
            return left
        if self.holds_locks():
            left.add("TRANSACTION")
        state = self.ask(connection, self.about_state)
        if state != self.state and isinstance(state, tuple):
            left.add("WRITES")
        if self.has_objects(connection):  # this executes what is prepared
            left.add("SESSION")
        return left

    def has_variables(self, connection: Any, mode: str) -> bool:
        question = (
            "SELECT COUNT(*) FROM information_schema.user_variables"
            if self.is_mariadb
            else "SELECT COUNT(*) FROM performance_schema.user_variables_by_thread"
            " WHERE thread_id = PS_CURRENT_THREAD_ID()"
        )
        if self.ask(connection, question) not in ((0,), ER.TABLE_NOT_LOCKED):
            return True
        return bool(self.variables(connection) != self.usual[mode])

    def has_objects(self, connection: Any) -> bool:
        """Look for a temporary table, a prepared statement, an open handler, …"""
        attempts = {
            number: self.attempt(connection, question)
            for number, question in enumerate(
                (
                    "SELECT 1 FROM statements.own LIMIT 0",
                    "EXECUTE ready",
                    "SELECT 1 FROM statements.tmp LIMIT 0",
                    "EXECUTE ps",
                    "HANDLER t READ FIRST",
                    "HANDLER h READ FIRST",
                )
            )
        }
        usual = (0, 0, ER.NO_SUCH_TABLE, ER.UNKNOWN_STMT_HANDLER, ER.UNKNOWN_TABLE)
        used = self.is_mariadb and self.ask(connection, "SELECT LASTVAL(statements.s)")
        return tuple(attempts.values()) != (*usual, usual[-1]) or bool(used and used[0])

    def holds_locks(self) -> bool:
        return any(
            self.attempt(self.observer, f"SELECT 1 FROM {table} FOR UPDATE NOWAIT")
            for table in ("t", "one", "trig", "log")
        )

    def ends_block(self, connection: Any, statement: str) -> bool:
        """Execute it in a transaction, and look whether that is over."""
        self.number += 1
        question = f"SELECT COUNT(*) FROM statements.marks WHERE a = {self.number}"
        self.attempt(connection, "START TRANSACTION")
        self.attempt(connection, f"INSERT INTO marks VALUES ({self.number})")
        self.attempt(connection, "SAVEPOINT sp")
        connection.told = statements.NONE
        self.attempt(connection, statement)
        is_lost = self.ask(connection, question) == (0,)  # tells, after an error
        return bool(is_lost or self.ask(self.observer, question) != (0,))


def explore(server: LocalServer, count: int, seed: int, tells: bool = True) -> Findings:
    """Try as many statements, and return what was found."""
    laboratory = Laboratory(server, tells)
    try:
        for statement, mode in sample(count, seed):
            laboratory.examine(statement, mode)
    finally:
        laboratory.close()
    return laboratory.findings


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=("mariadb", "mysql"), default="mariadb")
    parser.add_argument("--count", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--names", action="store_true")
    parser.add_argument("--silent", action="store_true")
    options = parser.parse_args()
    root = os.environ.get("FLASK_MYSQLPOOL_MYSQL_ROOT")
    root = root if options.engine == "mysql" else None
    with LocalServer(engine=options.engine, root=root) as server:
        if options.names:
            findings = call_names(server)
        else:
            tells = not options.silent
            findings = explore(server, options.count, options.seed, tells)
    print(findings)
    raise SystemExit(1 if findings.misses else 0)


if __name__ == "__main__":
    main()
