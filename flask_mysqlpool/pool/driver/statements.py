"""The side effects of a statement on its session, judged by its text.

A side effect that is overlooked would leak one user's session to the next, or commit
too early. So only a ``SELECT`` or ``SHOW`` of tables, columns, constants and built-in
functions counts as harmless, and each other statement as the worst that it might be.
The text does not show a stored function in a view; of most of what that does, the
server tells (:mod:`.results`).
"""

from __future__ import annotations

import re
from functools import lru_cache

#: Maximum length of a text that is split into tokens; longer ones are unknown.
LONGEST = 200_000

#: The first and the second bytes of two-byte characters, in the character sets whose
#: second byte may be a quote or a backslash: gbk and gb18030, big5, sjis and cp932.
#: Empty for all others.
HALVES = (
    (b"", b""),
    (rb"\x81-\xfe", rb"\x40-\x7e\x80-\xfe"),
    (rb"\xa1-\xf9", rb"\x40-\x7e\xa1-\xfe"),
    (rb"\x81-\x9f\xe0-\xfc", rb"\x40-\x7e\x80-\xfc"),
)
_AMBIGUOUS_LETTER = re.compile(rb"[\x81-\xfe][\\`]")
_VERSIONED = re.compile(rb"/\*m?!\d{0,6}|\*/")
#: Texts with more readings than are tried: a version followed directly by a name, names
#: in hints, and ``--`` that is a comment or not, depending on the character set.
_UNREADABLE = re.compile(rb"/\*m?!\d{6}[\w$\x80-\xff]|--[\x7f-\xff]")
_QUOTE_IN_HINT = re.compile(rb"/\*\+[^*]*['\"`]")


@lru_cache
def _lexer(
    escapes: bool, escapes_in_names: bool, halves: int, versioned: bool
) -> re.Pattern[bytes]:
    """Match tokens that are not code: comments, strings, quoted names, characters."""
    first, second = HALVES[halves]

    def quoted(quote: bytes, escape: bool) -> bytes:
        plain = b"[^" + quote + (rb"\\" if escape else b"") + first + b"]*"
        special = [rb"\\."] if escape else []
        if first:
            special += b"[%s][%s]" % (first, second), b"[%s](?![%s])" % (first, second)
        more = b"(?:(?:%s)%s)*" % (b"|".join(special), plain) if special else b""
        return b"%s%s%s(?:%s|(.*))" % (quote, plain, more, quote)

    # Each begins with one byte, by which the search is several times faster.
    alternatives = [
        quoted(b"'", escapes),
        quoted(b'"', escapes_in_names),
        quoted(b"`", False),
        (rb"/\*(?!m?!)" if versioned else rb"/\*") + rb"(?:.*?\*/|(.*))",
        rb"--(?=[\x01-\x20]|\Z)[^\n]*",
        rb"#[^\n]*",
    ]
    if first:
        alternatives.append(b"[%s][%s]" % (first, second))
    return re.compile(b"|".join(alternatives), re.DOTALL)


def _left_of(token: re.Match[bytes]) -> bytes:
    """Return the replacement of a token that the lexer has matched."""
    if token.lastindex:  # a group matches what comes after an unclosed quote
        return b"\0"
    text = token[0]
    first = text[:1]
    if first in b"'\"`":
        return first * 2
    return b" " if first in b"/-#" else text


def _readings(statement: bytes) -> tuple[set[bytes], bool]:
    """Return the code of a statement in each reading, and whether these are all.

    The code is in lower case; strings and quoted names are reduced to a pair of quotes,
    comments to a space, and everything after an unclosed quote to a zero byte.
    """
    if len(statement) > LONGEST or b"\0" in statement:
        return set(), False
    text = statement.lower()
    codes = set()
    complete = text.count(b"*/") < 2 or not _QUOTE_IN_HINT.search(text)
    for reading in _ways_to_read(text):
        code = _lexer(*reading, True).sub(_left_of, text)
        complete &= not _UNREADABLE.search(code)
        if b"/*" in code:
            codes.add(_lexer(*reading, False).sub(_left_of, text))
            complete &= text.count(b"/*") == 1
            code = _VERSIONED.sub(b" ", code)
        codes.add(code)
    return codes, complete


def _ways_to_read(text: bytes) -> list[tuple[bool, bool, int]]:
    """Return the readings to try: escapes, escapes in names, character sets."""
    if b"\\" not in text:
        quotings = [(True, True)]
    elif b'"' not in text:
        quotings = [(True, True), (False, False)]
    else:
        quotings = [(True, True), (False, False), (True, False)]
    halves = range(len(HALVES)) if _AMBIGUOUS_LETTER.search(text) else (0,)
    return [(*quoting, half) for quoting in quotings for half in halves]


def bare(statement: str | bytes, longest: int = 1000) -> bytes:
    """Return a statement's code in lower case, without comments, with single spaces.

    Empty for a statement of more than ``longest`` bytes, or of more than one reading.
    """
    if isinstance(statement, str):
        statement = statement.encode("utf-8", "replace")
    if len(statement) > longest:
        return b""
    codes, complete = _readings(bytes(statement))
    code = codes.pop() if complete and len(codes) == 1 else b""
    return b"" if b"\0" in code else b" ".join(code.split()).rstrip(b" ;")


#: No side effect.
NONE = 0
#: At most a snapshot: a transaction begun by a read, which only reads.
SNAPSHOT = 1
#: A transaction begun explicitly, or one that may hold locks.
TRANSACTION = 2
#: Variables, temporary tables, locks, prepared statements, LAST_INSERT_ID(), …
SESSION = 4
#: Possibly another current database, which a reset of the session does not restore.
DIRTY_SCHEMA = 8
#: A side effect that nothing is certain to undo.
UNCLEANABLE = 16
#: Possibly changed rows, even if it fails: it is not known to be a mere read.
WRITES = 32
#: Possibly any effect of stored code: functions, triggers, procedures, EXECUTE. The
#: text then does not show all that happens to the transaction. A reset of the session
#: removes neither MariaDB's profiles nor MySQL's optimizer traces.
RUNS_CODE = 64
#: Possibly another role, which a reset of the session does not restore. RUNS_CODE may
#: have this effect, too, if the account has roles.
ROLE = 128
#: Known to end the transaction, or to begin another.
ENDS = 256
#: Not known to leave the transaction open.
MAY_END = 512
#: Loads a file, for which the server may ask the client.
LOADS = 1024

#: Side effects undone by a ROLLBACK, and those that need at least a reset.
TRANSACTIONS = SNAPSHOT | TRANSACTION
BEYOND_ROLLBACK = SESSION | DIRTY_SCHEMA | ROLE | UNCLEANABLE
#: Side effects of a statement that changes rows or calls an unknown function.
CHANGES = TRANSACTION | SESSION | WRITES | RUNS_CODE
#: Side effects of an unknown statement.
ANYTHING = CHANGES | DIRTY_SCHEMA | ROLE | MAY_END

#: Side effects of the methods of PyMySQL that talk to the server.
SIDE_EFFECTS_OF = {
    "select_db": SESSION | DIRTY_SCHEMA,
    "autocommit": SESSION,
    "set_character_set": SESSION,
    "set_charset": SESSION,
}

# Kinds of servers whose functions differ; and a flag for clients that may send several
# statements at once.
ANY, MARIADB, MYSQL, MYSQL_8 = range(4)
SEVERAL = 4

_CHANGES_ROWS = re.compile(
    rb"[\s(]*(?:insert|update|delete|replace)(?![\w$\x80-\xff])", re.IGNORECASE
)
_SELECTS = re.compile(rb"[\s(]*select(?![\w$\x80-\xff])", re.IGNORECASE)
_LEADING_COMMENTS = re.compile(
    rb"(?:/\*(?![!+mM]).*?\*/|(?:--(?=[\x01-\x20])|#)[^\n]*\n|\s+)+", re.DOTALL
)

# What else counts, in the table below: expressions, a subquery, which may lock rows, a
# word that changes rows, names of variables.
_EXPRESSIONS, _SUBQUERY, _CHANGE, _ASSIGNMENT = 2048, 4096, 8192, 16384
_MORE = _EXPRESSIONS | _SUBQUERY | _CHANGE | _ASSIGNMENT
_READS = SNAPSHOT | _EXPRESSIONS
_WORST = ANYTHING | ENDS | UNCLEANABLE
#: What a statement may leave, by its beginning, after comments and with single spaces;
#: the first that matches counts.
_BEGINNINGS = {
    rb"select\b": _READS,
    rb"(?:values|table|show|do)\b": _READS | _SUBQUERY,
    rb"(?:with|explain|describe|desc|analyze (?:select|with|update|delete|insert"
    rb"|replace|format))\b": _READS | _CHANGE,
    rb"(?:insert|update|delete|replace|handler|drop temporary table"
    rb"|create(?: or replace)? temporary table)\b": CHANGES,
    rb"load (?:data|xml)\b": CHANGES | LOADS,
    rb"(?:signal|resignal|get (?:current |stacked )?diagnostics)\b": SNAPSHOT | SESSION,
    rb"(?:xa|backup|binlog|flush|lock instance)\b": _WORST,
    rb"use\b": SNAPSHOT | SESSION | DIRTY_SCHEMA,
    rb"(?:prepare|deallocate prepare|drop prepare)\b": _READS | SESSION,
    rb"(?:savepoint|release savepoint|rollback(?: work)? to(?: savepoint)?)"
    rb" [^ ]+\Z": TRANSACTION,
    rb"(?:begin(?: work)?|start transaction|(?:commit|rollback)(?: work)?)\Z": (
        TRANSACTION | ENDS
    ),
    rb"(?:start transaction|commit|rollback)\b(?! (?:work )?to\b)": (
        TRANSACTION | SESSION | ENDS
    ),
    rb"(?:(?:create(?: or replace)?|drop)\b(?! (?:temporary|prepare|or)\b)|alter"
    rb"|truncate|rename|grant|revoke|optimize|repair|install|uninstall|check|checksum"
    rb"|cache index|load index|lock tables?|reset|set (?:password|default role)"
    rb"|analyze (?:(?:local|no_write_to_binlog) )?tables?)\b": ANYTHING | ENDS,
    rb"set statement ": _READS | SESSION,
    rb"set\b": _READS | SESSION | _SUBQUERY | _ASSIGNMENT,
    rb"": ANYTHING,
}
_BY_BEGINNING = {re.compile(words): effects for words, effects in _BEGINNINGS.items()}

_CHANGING_WORD = re.compile(rb"\b(?:insert|update|delete|replace)\b(?! ?\()")
_QUERY = re.compile(rb"\bselect\b|\( ?(?:table|with|values)\b")
#: What an expression may do, by its text: a part that is found fast, and a pattern.
_BY_EXPRESSION = tuple(
    (part, re.compile(pattern), effects)
    for part, pattern, effects in (
        (b"@", rb"(?<!@)@(?!@)", SESSION),
        (b"into", rb"\binto\b(?!\s*@)", SESSION | WRITES),
        (b"update", rb"\bfor[^\w]+update\b", TRANSACTION),
        (b"share", rb"\b(?:for|in)[^\w]+share\b", TRANSACTION),
        (b"sql_calc", rb"", SESSION),
        (b"val", rb"nextval|value[^\w]+for\b", SESSION | WRITES),
        (b"last_insert_id", rb"last_insert_id\s*\(\s*[^\s)]", SESSION),
        # A qualified name, with a space that separates it from its dot.
        (b".", rb"\.\s+\w+\s*\(", CHANGES),
    )
)
#: What the assignment of a variable may do, by its name, which may be quoted.
_BY_ASSIGNMENT = {
    re.compile(rb"\bautocommit(?: ?:?=|[`\"])"): ENDS,
    re.compile(rb"\brole\b"): ROLE,
    re.compile(rb"\b(?:resource|authorization|profiling)\b"): UNCLEANABLE,
}

# Characters that cannot be part of a name, quoted or qualified, become a comma. Square
# and curly brackets are left: in some character sets they may be half of a character.
_PUNCTUATION = bytes.maketrans(b"!%&')*+-/:;<=>?", b"," * 15)
# Names before a bracket that are not calls: aliases, after a bracket, a string or AS;
# and the columns of a WITH.
_NOT_CALLED = re.compile(
    rb"(?:(?<=[)']) ?|\bas )[\w$`\"]+ ?(?=\()"
    rb"|(?<![\w$`\"])\w[\w$`\"]* ?\([\w$`\", ]*\) ?(?=as ?\()"
)

# Words before a bracket that call no function, or one without side effects. On no
# supported server can they be names of stored functions.
_HARMLESS = b"""
    all and any as between by case cross distinct div do else except exists for
    from having if in inner intersect interval into is join key index left like
    limit match mod natural not on or order outer over partition regexp right rlike
    rows select some straight_join then union using value values when where window
    with xor

    binary char datetime decimal float signed time unsigned varchar year

    abs acos addtime aes_decrypt aes_encrypt ascii asin atan atan2 avg
    benchmark bin bit_count bit_length ceil ceiling
    char_length character_length charset coalesce coercibility collation
    compress concat concat_ws connection_id contains conv convert convert_tz cos cot
    crc32 current_date current_role current_time current_timestamp
    current_user database date date_format datediff
    day dayname dayofmonth dayofweek dayofyear degrees elt exp
    export_set extractvalue field find_in_set floor format found_rows
    from_base64 from_days from_unixtime get_format greatest hex
    hour ifnull inet6_aton inet6_ntoa inet_aton inet_ntoa insert instr
    is_free_lock is_ipv4 is_ipv4_compat is_ipv4_mapped is_ipv6 is_used_lock isnull
    json_array json_array_append json_array_insert json_contains
    json_contains_path json_depth json_extract json_insert json_keys json_length
    json_merge json_merge_patch json_merge_preserve json_object
    json_pretty json_quote json_remove json_replace json_search
    json_set json_type json_unquote json_valid json_value last_day
    last_insert_id last_value lcase least length ln load_file localtime
    localtimestamp locate log log10 log2 lower lpad ltrim make_set makedate
    maketime mbrcontains mbrdisjoint mbrequals mbrintersects mbroverlaps mbrtouches
    mbrwithin microsecond minute month monthname name_const
    nullif oct octet_length ord period_add period_diff pi
    pow power quarter quote radians rand regexp_instr regexp_replace
    regexp_substr repeat replace reverse round row row_count row_number rpad rtrim
    schema sec_to_time second sha2 sign sin sleep soundex space sqrt
    st_area st_asbinary st_asgeojson st_astext st_aswkb st_aswkt st_buffer st_centroid
    st_contains st_convexhull st_crosses st_difference st_dimension st_disjoint
    st_distance st_endpoint st_envelope st_equals st_exteriorring st_geomcollfromtext
    st_geometryfromtext st_geometryn st_geometrytype st_geomfromgeojson st_geomfromtext
    st_geomfromwkb st_interiorringn st_intersection st_intersects st_isclosed
    st_isempty st_issimple st_length st_linefromtext st_linefromwkb st_mlinefromtext
    st_mpointfromtext st_mpolyfromtext st_numgeometries st_numinteriorrings
    st_numpoints st_overlaps st_pointfromtext st_pointfromwkb st_pointn st_polyfromtext
    st_polyfromwkb st_polygonfromtext st_srid st_startpoint st_symdifference st_touches
    st_union st_within st_x st_y
    str_to_date strcmp substring_index subtime tan time_format
    time_to_sec timediff timestamp timestampadd timestampdiff to_base64 to_days
    to_seconds truncate ucase uncompress uncompressed_length unhex unix_timestamp
    updatexml upper user
    utc_date utc_time utc_timestamp uuid uuid_short version week
    weekday weekofyear weight_string yearweek
    """.split()
# The same without a space before the bracket. With one, they may be stored functions,
# unless the SQL mode has IGNORE_SPACE.
_HARMLESS_IF_ADJACENT = b"""
    adddate bit_and bit_or bit_xor cast count cume_dist curdate curtime date_add
    date_sub dense_rank extract first_value group_concat json_arrayagg json_objectagg
    lag lead max mid min now nth_value ntile percent_rank position rank session_user
    std stddev stddev_pop stddev_samp subdate substr substring sum sysdate system_user
    trim var_pop var_samp variance
    """.split()
# Built-in functions of one server that can be names of stored functions on another.
_HARMLESS_ON_MARIADB = b"""
    add_months chr column_check column_create column_exists column_get column_json
    column_list crc32c decode des_decrypt des_encrypt encode encrypt json_compact
    json_detailed json_exists json_loose json_query lastval lengthb
    master_gtid_wait md5 nvl nvl2 old_password sha sha1 st_boundary
    st_isring st_pointonsurface st_relate
    """.split()
_HARMLESS_ON_MYSQL = b"""
    against any_value bin_to_uuid columns format_bytes format_pico_time geomcollection
    geometrycollection grouping gtid_subset gtid_subtract is_uuid json_overlaps
    json_schema_valid json_schema_validation_report json_storage_free json_storage_size
    json_table lateral linestring mbrcoveredby mbrcovers multilinestring multipoint
    multipolygon of point polygon ps_current_thread_id ps_thread_id random_bytes
    regexp_like source_pos_wait st_distance_sphere st_geohash st_isvalid
    st_latfromgeohash st_latitude st_longfromgeohash st_longitude st_makeenvelope
    st_pointfromgeohash st_simplify st_swapxy st_transform st_validate
    statement_digest statement_digest_text uuid_to_bin wait_for_executed_gtid_set
    """.split()
_CALLS = {
    **dict.fromkeys([*_HARMLESS, *_HARMLESS_IF_ADJACENT], NONE),
    **dict.fromkeys([b"get_lock", b"release_lock", b"release_all_locks"], SESSION),
}
_MARIADB_CALLS = {
    **_CALLS,
    **dict.fromkeys(_HARMLESS_ON_MARIADB, NONE),
    **dict.fromkeys([b"nextval", b"setval"], SESSION | WRITES),
}
_MYSQL_CALLS = {**_CALLS, **dict.fromkeys(_HARMLESS_ON_MYSQL, NONE)}
_MYSQL_8_CALLS = {**_MYSQL_CALLS, **dict.fromkeys([b"md5", b"sha", b"sha1"], NONE)}
_CALLS_ON = (_CALLS, _MARIADB_CALLS, _MYSQL_CALLS, _MYSQL_8_CALLS)
_ADJACENT = frozenset(_HARMLESS_IF_ADJACENT)

#: Effects of statements below this length, in bytes, are cached; longer ones are rarely
#: repeated.
MEMORABLE = 500


def server_of(version: str) -> int:
    """Return the kind of server, by its version."""
    if "MariaDB" in version:
        return MARIADB
    return MYSQL_8 if version.startswith("8.") else MYSQL


def find_side_effects(statement: bytes, server: int = ANY | SEVERAL) -> int:
    """Return the possible side effects of a statement: a union of the flags above."""
    if statement.startswith((b"/*", b"--", b"#")):
        if comments := _LEADING_COMMENTS.match(statement):
            statement = statement[comments.end() :]
    calls = _CALLS_ON[server & 3]
    # With MSSQL in MariaDB's SQL mode, [ ] quote a name, in which no string and no
    # comment begins. Otherwise they are a syntax error outside strings.
    has_mssql = server & 3 < MYSQL
    if _CHANGES_ROWS.match(statement):
        if not (server & SEVERAL and b";"[0] in statement.rstrip(b"; \t\r\n")):
            return CHANGES
    elif _SELECTS.match(statement) and _only_reads(statement.lower(), calls, has_mssql):
        return SNAPSHOT
    codes, complete = _readings(statement)
    left = NONE if complete else ANYTHING
    quoted = _judge_names(statement.lower()) if codes else NONE
    for code in codes:
        left |= ANYTHING if has_mssql and b"[" in code else NONE
        # A server may execute the statements before the one with an unclosed quote.
        closed, *unclosed = code.split(b"\0", 1)
        parts = closed.split(b";")
        for part in parts[: len(parts) - len(unclosed)]:
            if words := part.split():
                left |= _judge(b" ".join(words), quoted, calls)
    left = left or ANYTHING
    return left & ~SNAPSHOT if left & TRANSACTION else left


_cached_side_effects = lru_cache(maxsize=1000)(find_side_effects)


def side_effects(statement: bytes, server: int = ANY | SEVERAL) -> int:
    """Do the same as :func:`find_side_effects`, with a cache for short statements."""
    if statement.endswith(b"*/"):
        statement = _without_trailing_comment(statement)
    if len(statement) < MEMORABLE:
        return _cached_side_effects(statement, server)
    return find_side_effects(statement, server)


def _without_trailing_comment(statement: bytes) -> bytes:
    """Remove a comment at the end, as tracing libraries add one to each statement.

    With another trace in each, no two of them would be equal. What could be read in
    another way is left as it is.
    """
    begin = statement.find(b"/*")
    code, kind = statement[:begin], statement[begin + 2 : begin + 3]
    is_certain = (
        statement.find(b"*/", begin + 2) == len(statement) - 2
        and kind not in b"!+mM"
        and not code.count(b"'") & 1
        and not any(mark in code for mark in _MARKS)
    )
    return code.rstrip() if is_certain else statement


#: In code without them, each pair of single quotes is a string.
_MARKS = b"\\", b'"', b"`", b"#", b"--"


def _only_reads(text: bytes, calls: dict[bytes, int], has_mssql: bool) -> bool:
    """Return whether a SELECT only reads, by a quick search of its whole text.

    Strings are removed first, if that needs no lexer.
    """
    text = text.rstrip(b"; \t\r\n")
    if b"'"[0] in text and not (b"\\"[0] in text or b'"'[0] in text or b"`"[0] in text):
        text = b"''".join(text.split(b"'")[::2])
    return not (
        (b"/"[0] in text and b"/*" in text)
        or (b"-"[0] in text and b"--" in text)
        or b"#"[0] in text
        or b";"[0] in text
        or (has_mssql and b"["[0] in text)
        or judge_expressions(text, calls)
    )


def _judge(code: bytes, quoted: int, calls: dict[bytes, int]) -> int:
    """Judge one statement, whose code is given in lower case and with single spaces.

    The names of variables in a SET may be quoted; ``quoted`` is what the assignment of
    all names in the whole text may do.
    """
    code = code.lstrip(b"( ")
    left = next(left for words, left in _BY_BEGINNING.items() if words.match(code))
    if left & _EXPRESSIONS:
        does = judge_expressions(code, calls)
        if does & RUNS_CODE:
            does = judge_expressions(_NOT_CALLED.sub(b"", code), calls)
        left |= does
    if left & _SUBQUERY and _QUERY.search(code):
        left |= TRANSACTION
    if left & _CHANGE and _CHANGING_WORD.search(code):
        left |= CHANGES
    if left & _ASSIGNMENT:
        left |= _judge_names(code) | (quoted if b"`" in code or b'"' in code else NONE)
    if code.startswith(b"set statement "):
        after = _after_set_statement(code)
        left |= _judge(after, quoted, calls) if after else _WORST
    return left & ~_MORE


def _judge_names(text: bytes) -> int:
    """Judge the assignment of the variables whose names are in a text in lower case."""
    left = NONE
    for pattern, effects in _BY_ASSIGNMENT.items():
        left |= effects if pattern.search(text) else NONE
    return left


def _after_set_statement(code: bytes) -> bytes:
    """Return what a SET STATEMENT is for, also if these are nested."""
    parts, depth = code.split(b" for "), 0
    for at in range(1, len(parts)):
        depth += parts[at - 1].count(b"(") - parts[at - 1].count(b")")
        if depth <= 0:  # else it is in brackets
            parts[at], depth = parts[at].lstrip(b"( "), 0
            if not parts[at].startswith(b"set statement "):
                return b" for ".join(parts[at:])
    return b""


def judge_expressions(code: bytes, calls: dict[bytes, int] = _CALLS) -> int:
    """Judge the expressions of a statement, given in lower case."""
    left = NONE
    for part, pattern, effects in _BY_EXPRESSION:
        # Not "in", which takes three times as long.
        if code.find(part) >= 0 and pattern.search(code):
            left |= effects
    for before in code.translate(_PUNCTUATION).split(b"(")[:-1]:
        # The name before each bracket, which may be that of a function.
        text = b"," + before.rstrip()
        name = text.rsplit(None, 1)[-1].rsplit(b",", 1)[-1]
        left |= calls.get(name, CHANGES) if name else NONE
        if name in _ADJACENT and len(text) <= len(before):
            left |= CHANGES
    return left
