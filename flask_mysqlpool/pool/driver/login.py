"""The session variables that a login sets, and how to restore them after a reset.

``COM_RESET_CONNECTION`` sets each session variable to its global value. A login does
more: it runs ``init_connect``, applies limits of the account, and applies flags of the
client. So each new connection is asked, before its set-up, which variables differ from
the global ones; after a reset these are set again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from pymysql.err import MySQLError

from .statements import LONGEST, bare, judge_expressions

#: The rows of an answer.
Rows = Sequence[Mapping[str, str | None]]

#: The active role, in hexadecimal, because its name may be in another character set.
_ROLE = b"SELECT HEX(CURRENT_ROLE()) AS role"
#: Whether the account has roles. MySQL may refuse this query.
_ROLES = (
    b"SELECT EXISTS (SELECT 1 FROM information_schema.APPLICABLE_ROLES) AS any_role"
)

# Values longer than 2,048 characters, in MySQL longer than 1,024, are truncated.
_MARIADB = """
    SELECT VARIABLE_NAME AS name, HEX(IF(VARIABLE_NAME = 'init_connect',
        @@global.init_connect, SESSION_VALUE)) AS value,
        VARIABLE_SCOPE = 'SESSION ONLY' AS alone
    FROM information_schema.SYSTEM_VARIABLES
    WHERE (VARIABLE_SCOPE <> 'GLOBAL' AND NOT SESSION_VALUE <=> GLOBAL_VALUE
        OR VARIABLE_NAME = 'init_connect')"""
_MYSQL = """
    SELECT own.VARIABLE_NAME AS name, HEX(IF(own.VARIABLE_NAME = 'init_connect',
        @@global.init_connect, own.VARIABLE_VALUE)) AS value,
        shared.VARIABLE_NAME IS NULL AS alone
    FROM performance_schema.session_variables own
    LEFT JOIN performance_schema.global_variables shared USING (VARIABLE_NAME)
    WHERE (NOT own.VARIABLE_VALUE <=> shared.VARIABLE_VALUE
        OR own.VARIABLE_NAME = 'init_connect')"""

#: Variables that a login may set without ``init_connect``: by a flag of the client, a
#: limit of the account, or the database. To ask for these alone takes a fifth as long.
_USUAL = frozenset(
    {"sql_mode", "wait_timeout", "max_statement_time", "collation_database"}
)
_ONLY_USUAL = f" AND VARIABLE_NAME IN {('init_connect', *sorted(_USUAL))}"

#: Variables that are restored by selecting the database again.
_OF_THE_DATABASE = frozenset({"character_set_database", "collation_database"})
#: Variables not to set again: set by the set-up, read-only, or changing at any time.
_NOT_SET = _OF_THE_DATABASE | {
    *("autocommit", "character_set_client", "character_set_connection"),
    *("character_set_results", "collation_connection", "max_user_connections"),
    *("gtid_executed", "gtid_purged", "gtid_owned"),
}

#: Empties MariaDB's list of profiles, which survives a reset: the list is cut when a
#: profiled statement ends, here to the size 0.
NO_PROFILES = (
    b"BEGIN NOT ATOMIC SET profiling_history_size = 0, profiling = 1; DO 1;"
    b" SET profiling = 0, profiling_history_size = DEFAULT; END"
)

#: Empties MariaDB's list of warnings, as each statement with a table does.
NO_WARNINGS = b"SELECT 1 FROM (SELECT 1) AS nothing WHERE FALSE"

_MORE_THAN_VARIABLES = re.compile(rb"\bselect\b|@@ ?(?:``|(?:transaction|tx)_)")
_SETS = re.compile(rb" ?set (?!(?:statement|password|default|resource|transaction)\b)")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
#: Length from which on a value may be truncated.
_CUT = 1024
_PLAIN = re.compile(r"[\w ,.:;=+*/%@$<>()-]*", re.ASCII)


def questions(is_mariadb: bool, thorough: bool) -> list[bytes]:
    """Return the queries for a new connection; ``thorough`` asks for all variables."""
    text = (_MARIADB if is_mariadb else _MYSQL) + _ONLY_USUAL * (not thorough)
    return [_ROLE, text.encode(), _ROLES]


class Login:
    """What one login has set in its session."""

    def __init__(
        self,
        role: Rows | MySQLError = (),
        differences: Rows | MySQLError | None = None,
        roles: Rows | MySQLError | None = None,
        *,
        thorough: bool = False,
    ) -> None:
        """Evaluate the answers to :func:`questions`."""
        #: Why a reset session cannot be restored; empty if it can.
        self.obstacle = ""
        if isinstance(differences, MySQLError):
            self.obstacle = f"what the login has set is not known: {differences}"
            differences = None
        #: Whether the server tells the role.
        self.knows_role = not isinstance(role, MySQLError)
        if isinstance(role, MySQLError):
            role = ()
            if isinstance(roles, MySQLError):
                roles = [{"any_role": "0"}]  # the server has no roles
        self._role = _text(role[0]["role"]) if role else None
        #: Whether stored code may have another role active when it ends.
        self.has_roles = roles is not None and roles != [{"any_role": "0"}]
        found = {str(row["name"]).lower(): row for row in differences or ()}
        if differences is not None and "init_connect" not in found:
            # Such a server may answer a reset with OK, and do nothing.
            self.obstacle = "the server does not tell its variables"
        values = {name: _text(row["value"]) for name, row in found.items()}
        alone = {name for name, row in found.items() if row["alone"] == "1"}
        init_connect = values.pop("init_connect", None) or ""
        if init_connect and not (
            thorough and _only_sets_variables(init_connect, alone)
        ):
            self.obstacle = "init_connect may do more than set variables"
        elif any(len(value or "") >= _CUT for value in values.values()):
            self.obstacle = "a variable is too long to be read"
        #: Whether the current database must be selected again.
        self.is_of_database = not _OF_THE_DATABASE.isdisjoint(values)
        #: The variables to set again.
        self.variables = {
            name: value
            for name, value in values.items()
            if name not in _NOT_SET and name not in alone
        }
        only_usual = self.variables.keys() <= _USUAL
        #: Whether setting them may cause a warning, as for a deprecated variable.
        self.may_warn = not only_usual
        #: Whether the next login at this host need not be asked for all variables.
        self.is_usual = only_usual and not (init_connect or self.obstacle)

    def assignments(self) -> bytes:
        """Return the part of a SET statement that restores the variables."""
        return "".join(
            f", {name} = {_literal(value)}" for name, value in self.variables.items()
        ).encode()

    def no_traces(self) -> bytes:
        """Return the assignment that drops MySQL's traces, which survive a reset."""
        offset = self.variables.get("optimizer_trace_offset", "DEFAULT")
        return f", optimizer_trace_offset = {offset}".encode()

    def role(self, is_mariadb: bool) -> bytes:
        """Return the active role as an argument of SET ROLE."""
        if self._role is None:
            return b"NONE"
        if is_mariadb:
            return b"`%s`" % self._role.replace("`", "``").encode()
        return self._role.encode()


def _only_sets_variables(init_connect: str, alone: Collection[str]) -> bool:
    """Return whether these statements only set variables that can be restored.

    Variables without a global value cannot: their value after a reset is unknown.
    """
    code = bare(init_connect, LONGEST)
    names = re.findall(r"\w+", init_connect.lower())
    return (
        not (judge_expressions(code) or _MORE_THAN_VARIABLES.search(code))
        and all(map(_SETS.match, code.split(b";")))
        and {*alone, *_OF_THE_DATABASE}.isdisjoint(names)
    )


def _text(value: str | None) -> str | None:
    return None if value is None else bytes.fromhex(value).decode("utf-8", "replace")


def _literal(value: str | None) -> str:
    if value is None:
        return "NULL"
    if _NUMBER.fullmatch(value):
        return value
    if _PLAIN.fullmatch(value):
        return f"'{value}'"
    return f"CONVERT(0x{value.encode().hex()} USING utf8mb4)"
