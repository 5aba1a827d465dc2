"""Read a statement as its server does: take out comments, strings and quoted names.

How a server reads quotes and comments depends on its SQL mode, its version and the
character set, none of which the text shows. So a text has several readings, and what is
not the same in all of them has to be right in each.
"""

from __future__ import annotations

import re
from functools import lru_cache

#: Longer texts are not read: what follows a comment or a quote in them is unknown.
LONGEST = 200_000

#: A byte that half of a letter can begin with, and those that it can end with, in the
#: character sets in which a quote or a backslash may be the second half of a letter:
#: gbk and gb18030, big5, sjis and cp932. In all others, none.
_HALVES = (
    (b"", b""),
    (rb"\x81-\xfe", rb"\x40-\x7e\x80-\xfe"),
    (rb"\xa1-\xf9", rb"\x40-\x7e\xa1-\xfe"),
    (rb"\x81-\x9f\xe0-\xfc", rb"\x40-\x7e\x80-\xfc"),
)
_AMBIGUOUS_LETTER = re.compile(rb"[\x81-\xfe][\\`]")
_VERSIONED = re.compile(rb"/\*m?!\d{0,6}|\*/")
#: What is read differently in more ways than are tried: versions with a name right
#: after them, names in hints, a comment or two signs by the character set.
_UNREADABLE = re.compile(rb"/\*m?!\d{6}[\w$\x80-\xff]|--[\x7f-\xff]")
_QUOTE_IN_HINT = re.compile(rb"/\*\+[^*]*['\"`]")


@lru_cache
def _lexer(
    escapes: bool, escapes_in_names: bool, halves: int, versioned: bool
) -> re.Pattern[bytes]:
    """Match what is not code: comments, strings, names in quotes; and whole letters."""
    first, second = _HALVES[halves]

    def quoted(quote: bytes, escape: bool) -> bytes:
        plain = b"[^" + quote + (rb"\\" if escape else b"") + first + b"]*"
        special = [rb"\\."] if escape else []
        if first:
            special += b"[%s][%s]" % (first, second), b"[%s](?![%s])" % (first, second)
        more = b"(?:(?:%s)%s)*" % (b"|".join(special), plain) if special else b""
        return b"(?<=%s)%s%s%s" % (quote, plain, more, quote)

    comment = rb"(?<=/)\*(?!m?!)" if versioned else rb"(?<=/)\*"
    alternatives = [
        quoted(b"'", escapes),
        quoted(b'"', escapes_in_names),
        quoted(b"`", False),
        comment + rb".*?\*/",
        rb"(?<=-)-(?=[\x01-\x20]|\Z)[^\n]*",
        rb"(?<=#)[^\n]*",
        rb"(?P<open>(?<=['\"`]).*|" + comment + rb".*)",
    ]
    if first:
        alternatives.append(b"(?<=[%s])[%s]" % (first, second))
    # That all begins with one of a few bytes makes it several times as fast.
    start = rb"[-'\"`#/" + first + b"]"
    return re.compile(start + b"(?:" + b"|".join(alternatives) + b")", re.DOTALL)


def _left_of(token: re.Match[bytes]) -> bytes:
    """Return what stands for a token that the lexer has matched."""
    if token.lastgroup is not None:
        return b"\0"
    text = token[0]
    first = text[:1]
    if first in b"'\"`":
        return first * 2
    return b" " if first in b"/-#" else text


def readings(statement: bytes) -> tuple[set[bytes], bool]:
    """Return the code of a statement in each reading, and whether that is all of them.

    It is in lower case; a string or a quoted name is a pair of quotes there, a comment
    is a space. A reading in which a quote is not closed is none, but for the statements
    in front of it.
    """
    codes, complete = _lexed(statement)
    return {_closed(code) for code in codes}, complete


def _lexed(statement: bytes) -> tuple[set[bytes], bool]:
    if len(statement) > LONGEST or b"\0" in statement:
        return set(), False
    text = statement.lower()
    codes = set()
    hints = b"/*+" in text and text.count(b"*/") > 1
    complete = not (hints and _QUOTE_IN_HINT.search(text))
    for reading in _ways_to_read(text):
        code = _lexer(*reading, True).sub(_left_of, text)
        if b"/*" in code:
            codes.add(_lexer(*reading, False).sub(_left_of, text))
            complete &= text.count(b"/*") == 1 and not _UNREADABLE.search(code)
            code = _VERSIONED.sub(b" ", code)
        elif b"--" in code:
            complete &= not _UNREADABLE.search(code)
        codes.add(code)
    return codes, complete


def _ways_to_read(text: bytes) -> list[tuple[bool, bool, int]]:
    """Return what is to be tried of escapes, of those in names, and of letters."""
    if b"\\" not in text:
        quotings = [(True, True)]
    elif b'"' not in text:
        quotings = [(True, True), (False, False)]
    else:
        quotings = [(True, True), (False, False), (True, False)]
    halves = range(len(_HALVES)) if _AMBIGUOUS_LETTER.search(text) else (0,)
    return [(*quoting, half) for quoting in quotings for half in halves]


def _closed(code: bytes) -> bytes:
    """Return what a server may execute before it finds that a quote is not closed."""
    before, is_open, _ = code.partition(b"\0")
    return before.rpartition(b";")[0] if is_open else code


def bare(statement: str | bytes) -> bytes:
    """Return a short statement in lower case, without comments, with single spaces.

    Empty for one that is longer, or that has more than one reading.
    """
    if isinstance(statement, str):
        statement = statement.encode("utf-8", "replace")
    if len(statement) > 1000:
        return b""
    codes, complete = _lexed(bytes(statement))
    code = codes.pop() if complete and len(codes) == 1 else b""
    return b"" if b"\0" in code else b" ".join(code.split()).rstrip(b" ;")
