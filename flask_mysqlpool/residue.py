"""What a statement leaves behind in its session, judged by a cheap look at its text.

A false alarm costs one command that nobody waits for; a miss would show one user's
session to the next. So only what is known to be harmless counts as such: a ``SELECT``
or ``SHOW`` with nothing in it but tables, columns, constants and well-known functions.
Everything else is taken for the worst that it might be. The one thing that a text
does not show is a stored function inside of a view; ``RESET_SESSION = "always"`` is for
those.
"""

from __future__ import annotations

import re
from functools import lru_cache

#: Nothing.
NONE = 0
#: At most a snapshot: a transaction that was opened by reading, and only read.
SNAPSHOT = 1
#: A transaction that was begun by a statement of its own, or that may hold locks.
TRANSACTION = 2
#: Variables, temporary tables, locks, prepared statements, LAST_INSERT_ID(), …
SESSION = 4
#: Perhaps another current database or role, which resetting the session leaves.
ELSEWHERE = 8
#: Something that is not certain to be undone by anything.
INDELIBLE = 16
#: Perhaps changed rows: not known to be a mere read, whether or not it succeeds.
WRITES = 32
#: Perhaps anything that stored code can do: functions, triggers, procedures, EXECUTE.
#: What the text shows of a transaction is then not all that happened to it.
RUNS_CODE = 64

#: What a ROLLBACK ends, and what only a reset of the session does away with.
TRANSACTIONS = SNAPSHOT | TRANSACTION
BEYOND_ROLLBACK = SESSION | ELSEWHERE | INDELIBLE

#: What the methods of PyMySQL that talk to the server leave behind.
RESIDUE_OF = {
    "begin": TRANSACTION,
    "select_db": SESSION | ELSEWHERE,
    "autocommit": SESSION,
    "set_character_set": SESSION,
    "set_charset": SESSION,
}

_COMMENTS = re.compile(rb"/\*(?![!+m]).*?\*/|(?:--[\s]|#)[^\n]*(?:\n|$)", re.DOTALL)
_LEADING_COMMENTS = re.compile(rb"(?:\s|\(|%s)+" % _COMMENTS.pattern, re.DOTALL)
_EXECUTABLE_COMMENT = re.compile(rb"/\*m?!\d*|\*/")
_READS = re.compile(rb"(?:select|show)\b")
# What reads, or changes nothing but the session; whatever else it may be.
_CHANGES_NO_ROWS = re.compile(
    rb"(?:select|show|explain|describe|desc|table|values|use|do|help"
    rb"|set(?!\s+statement)|with(?!.*\b(?:insert|update|delete|replace)\b))\b",
    re.DOTALL,
)
_TRANSACTION = re.compile(
    rb"(?:begin|start\s+transaction|commit|rollback|savepoint\s+\w+"
    rb"|rollback\s+to\s+savepoint\s+\w+|release\s+savepoint\s+\w+)\s*;?\s*"
)
# LAST_INSERT_ID() changes, and triggers may do whatever a stored function may.
_WRITES = re.compile(rb"(?:insert|update|delete|replace|set)\b")
_INDELIBLE = re.compile(
    rb"(?:xa|backup|binlog|flush|lock\b.*\binstance"
    rb"|set\b.*\b(?:resource|authorization|profiling))\b",
    re.DOTALL,
)
_LOCKING = re.compile(rb"\bfor\s+(?:update|share)\b|\block\s+in\s+share\b")
_DDL = (
    rb"(?:create(?:\s+or\s+replace)?|drop)(?!\s+(?:temporary|prepare|or)\b)|alter"
    rb"|truncate|rename|grant|revoke|optimize|repair|flush|install|uninstall"
    rb"|check|checksum|cache\s+index|load\s+index|lock\s+tables?"
    rb"|analyze(?!\s+(?:select|with|update|insert|delete|replace|format)\b)"
)
_ENDS = re.compile(
    rb"(?:begin(?!\s+not)|start\s+transaction|commit|xa"
    rb"|rollback(?!\s+(?:work\s+)?to)|" + _DDL + rb")\b"
    rb"|set\b[^;]*\bautocommit\b[`\s]*:?=|set\s+statement\b.*\bfor\s+(?:"
    + _DDL
    + rb")\b",
    re.DOTALL,
)
# Within these, nothing can end a transaction: neither in functions nor in triggers.
_ENDS_NOTHING = re.compile(
    rb"(?:select|insert|update|delete|replace|with|values|table|show|explain|describe"
    rb"|desc|set(?!\s+statement)|use|do|savepoint|release|rollback|drop|create|analyze|fetch)\b"
)
_USER_VARIABLE = re.compile(rb"(?<!@)@(?!@)")
_KEPT_BY_KEYWORD = re.compile(rb"\bsql_calc_found_rows\b|\bvalue\s+for\b")
_SETS_INSERT_ID = re.compile(rb"\blast_insert_id\s*\(\s*[^\s)]")
# What cannot be part of a name, quoted or qualified, becomes a comma. Not all of it:
# in some character sets, what looks like a bracket may be half of a letter.
_PUNCTUATION = bytes.maketrans(b"!%&')*+-/:;<=>?", b"," * 15)

# Words before a parenthesis that call nothing, or nothing that leaves a trace: none of
# them can be the name of a stored function, on any server that is supported.
_HARMLESS = frozenset(
    b"""
    all and any as between by case cross distinct div else except exists for
    from having if in inner intersect interval into is join key index left like
    limit match mod natural not on or order outer over partition regexp right rlike
    select some straight_join then union using values when where window xor

    binary char datetime decimal float signed time unsigned varchar year

    abs acos adddate addtime aes_decrypt aes_encrypt ascii asin atan atan2 avg
    bin bit_and bit_count bit_length bit_or bit_xor cast ceil ceiling
    char_length character_length charset coalesce coercibility collation
    compress concat concat_ws connection_id conv convert convert_tz cos cot
    count crc32 cume_dist curdate current_date current_time current_timestamp
    current_user curtime database date date_add date_format date_sub datediff
    day dayname dayofmonth dayofweek dayofyear degrees dense_rank elt exp
    export_set extract field find_in_set first_value floor format found_rows
    from_base64 from_days from_unixtime get_format greatest group_concat hex
    hour ifnull inet6_aton inet6_ntoa inet_aton inet_ntoa insert instr isnull
    json_array json_array_append json_array_insert json_arrayagg json_contains
    json_contains_path json_depth json_extract json_insert json_keys json_length
    json_merge_patch json_merge_preserve json_object json_objectagg
    json_overlaps json_pretty json_quote json_remove json_replace json_search
    json_set json_type json_unquote json_valid json_value lag last_day
    last_insert_id last_value lcase lead least length ln localtime
    localtimestamp locate log log10 log2 lower lpad ltrim make_set makedate
    maketime max microsecond mid min minute month monthname now nth_value ntile
    nullif oct octet_length ord percent_rank period_add period_diff pi position
    pow power quarter quote radians rand rank regexp_instr regexp_replace
    regexp_substr repeat reverse round row row_count row_number rpad rtrim
    schema sec_to_time second session_user sha2 sign sin sleep soundex space
    sqrt std stddev stddev_pop stddev_samp str_to_date strcmp subdate substr
    substring substring_index subtime sum sysdate system_user tan time_format
    time_to_sec timediff timestamp timestampadd timestampdiff to_base64 to_days
    to_seconds trim truncate ucase uncompress unhex unix_timestamp upper user
    utc_date utc_time utc_timestamp uuid var_pop var_samp variance version week
    weekday weekofyear yearweek
    """.split()
)


#: The same statement comes again and again, but one of so many bytes hardly ever does.
MEMORABLE = 500


def judge(statement: bytes) -> int:
    """What may be left in the session after this statement, as a sum of the above."""
    statement = _normalize(statement)
    locks = _LOCKING.search(statement) or not _CHANGES_NO_ROWS.match(statement)
    left = TRANSACTION if locks else SNAPSHOT
    if b";" in statement.rstrip(b"; \t\r\n"):
        return TRANSACTION | SESSION | ELSEWHERE | WRITES | RUNS_CODE
    if _READS.match(statement) and _only_reads(statement):
        return left
    if _TRANSACTION.fullmatch(statement):
        return TRANSACTION
    left |= WRITES | RUNS_CODE
    if _READS.match(statement):
        return left | SESSION
    if _INDELIBLE.match(statement):
        return left | SESSION | INDELIBLE
    if _WRITES.match(statement) and b"role" not in statement:
        return left | SESSION
    return left | SESSION | ELSEWHERE


#: What a statement may do to the transaction that a block is.
REFUSED, DOUBTFUL, HARMLESS = "refused", "doubtful", "harmless"

#: So much of a statement, after comments at its front, tells.
_HEAD = 200


def within_block(statement: bytes) -> str:
    """Whether it is known to end a transaction, may do so, or cannot."""
    return _within_block(_normalize(statement[: 10 * _HEAD])[:_HEAD])


@lru_cache(maxsize=1000)
def _within_block(head: bytes) -> str:
    head = _EXECUTABLE_COMMENT.sub(b" ", _COMMENTS.sub(b" ", head)).lstrip()
    if _ENDS.match(head):
        return REFUSED
    return HARMLESS if _ENDS_NOTHING.match(head) else DOUBTFUL


def _normalize(statement: bytes) -> bytes:
    statement = statement.lower()
    if comments := _LEADING_COMMENTS.match(statement):
        return statement[comments.end() :]
    return statement


#: :func:`judge`, remembering what it said; for statements that are not too long.
residue = lru_cache(maxsize=1000)(judge)


def _only_reads(statement: bytes) -> bool:
    """Whether a SELECT does nothing else. The statement is in lower case."""
    if b"/*" in statement or b"--" in statement or b"#" in statement:
        # A comment may be code, or part two words that would then look like one.
        return False
    if b"@" in statement and _USER_VARIABLE.search(statement):
        return False
    if b"sql_calc" in statement or b"value" in statement:
        if _KEPT_BY_KEYWORD.search(statement):
            return False
    if b"(" not in statement:
        return True
    if b"last_insert_id" in statement and _SETS_INSERT_ID.search(statement):
        return False
    before_parentheses = statement.translate(_PUNCTUATION).split(b"(")[:-1]
    return all(map(_calls_nothing_unknown, before_parentheses))


def _calls_nothing_unknown(text: bytes) -> bool:
    """Whether the text in front of a parenthesis ends in no unknown name."""
    text = text.rstrip()
    if not text or text.endswith(b","):
        return True
    name = text.rsplit(None, 1)[-1].rsplit(b",", 1)[-1]
    qualified = text[: -len(name)].rstrip().endswith(b".")
    return name in _HARMLESS and not qualified
