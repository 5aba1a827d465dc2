"""Scripts of several statements, told apart as the server's own client does it.

The client looks for the delimiter outside strings, quoted names and comments. What
these are depends on the session: on two SQL modes, which the server tells with each
answer, and on the character set. So a statement is not looked for before the one ahead
of it was executed.

One thing differs: the client takes a delimiter inside an executable comment, such as
``/*!50003 BEGIN; END */``, for the end of a statement, which the server then refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from operator import methodcaller
from typing import Any, NamedTuple

from pymysql.constants import SERVER_STATUS
from pymysql.err import MySQLError, ProgrammingError

from ..driver.statements import HALVES

#: MariaDB tells this mode, too.
_ANSI_QUOTES = 1 << 15
_NO_BACKSLASH_ESCAPES = SERVER_STATUS.SERVER_STATUS_NO_BACKSLASH_ESCAPES

#: The character sets, by number in ``HALVES``, with letters that contain a quote.
_DOUBLE_BYTE = {"gbk": 1, "gb18030": 1, "big5": 2, "sjis": 3, "cp932": 3}
_NAMES_ONE = re.compile("|".join(_DOUBLE_BYTE).encode(), re.IGNORECASE)
_SETS_ONE = re.compile(rb"names|char", re.IGNORECASE)
#: Maximum length of a statement that may set it.
_LONGEST_SET = 500

#: What a script that changes the reading of its own text contains, if the text is read
#: as by default, and otherwise.
_CHANGES_DEFAULT = re.compile(
    rb"no_backslash_escapes|ansi_quotes|" + _NAMES_ONE.pattern, re.IGNORECASE
)
_CHANGES = re.compile(rb"sql_mode|\bset\b[^;]{1,80}(?:names|char)", re.IGNORECASE)

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_COMMENT = rb"/\*(?!M?!).*?\*/"
#: What may stand between two statements. Here, a comment needs no blank after ``--``.
_GAP = re.compile(rb"(?:\s+|(?:--|#)[^\n]*|%s){1,999}" % _COMMENT, re.DOTALL)
_COMMENT_OPENS = re.compile(rb"/\*(?!M?!)")
#: The command of the client, with the new delimiter in one of the groups.
_DELIMITER = re.compile(
    rb"delimiter(?:[ \t]+(?:\"([^\"\n]+)\"|'([^'\n]+)'|([^\s]+))|(?![\w$]))[^\n]*",
    re.IGNORECASE,
)
_OPENED = {
    **{"'": "a string in '", '"': 'a text in "', "`": "a name in `"},
    "/": "a comment",
}


class Reading(NamedTuple):
    """How a session reads a text: escapes in strings, in ``"``, the character set."""

    escapes: bool = True
    escapes_in_names: bool = True
    halves: int = 0


class Lexer:
    """Patterns for a text with this delimiter.

    ``executable``: inside an executable comment, which the delimiter does not end.
    ``one_by_one``: match each quoted text alone, which is slower.
    """

    def __init__(
        self, delimiter: bytes, reading: Reading, executable: bool, one_by_one: bool
    ) -> None:
        first, second = HALVES[reading.halves]
        edge = rb"\*/(?P<leave>)" if executable else rb"/\*M?!(?P<enter>)"
        ends = [] if executable else [re.escape(delimiter) + b"(?P<end>)"]
        plain = rb"'\"`#*\-" + re.escape(delimiter[:1]) + first
        if one_by_one:
            plain = rb"\x00-\xff"
        escapes = {b"'": reading.escapes, b'"': reading.escapes_in_names, b"`": False}
        bodies = {q: _body(q, e, plain, first, second) for q, e in escapes.items()}
        # Each begins with one byte, by which the search is several times faster.
        alternatives = [
            *ends,
            *(quote + body for quote, body in bodies.items()),
            edge,
            _COMMENT,
            rb"/\*(?!M?!)(?P<unclosed>)",
            rb"--(?=[\x00-\x20]|\Z)[^\n]*",
            rb"#[^\n]*",
        ]
        if first:
            alternatives.append(b"[%s][%s]" % (first, second))
        #: What ends a statement, or could hide such an end.
        self.token = re.compile(b"|".join(alternatives), re.DOTALL)
        #: The rest of a quoted text, by the quote.
        self.rest = {q[0]: re.compile(b, re.DOTALL) for q, b in bodies.items()}


def _body(
    quote: bytes, escapes: bool, plain: bytes, first: bytes, second: bytes
) -> bytes:
    """Return a pattern of a quoted text after its first quote.

    It goes on with the next text of the same quote if nothing is between them but
    ``plain`` bytes. Each step takes memory, so the number of steps has a limit: a group
    matches if the end was not reached.
    """
    inside = b"[^" + quote + (rb"\\" if escapes else b"") + first + b"]*"
    steps = [b"%s[^%s]*%s" % (quote, plain, quote)]
    if escapes:
        steps.append(rb"\\.")
    if first:
        steps += b"[%s][%s]" % (first, second), b"[%s](?![%s])" % (first, second)
    more = b"(?:(?:%s)%s){0,999}" % (b"|".join(steps), inside)
    return b"%s%s(?:%s|())" % (inside, more, quote)


_lexer = lru_cache(Lexer)


class Script:
    """A script, and how far it was executed."""

    #: The line on which the current statement begins, or an error.
    line = 1
    #: Bytes before the end of the current statement, and statements executed so far.
    position = count = 0

    def __init__(self, handle: Any, text: str | bytes) -> None:
        self._handle = handle
        if not isinstance(text, (str, bytes)):
            raise TypeError(f"a script must be str or bytes, not {type(text).__name__}")
        raw = handle._attached().raw
        if isinstance(text, str):
            text = text.removeprefix("\ufeff").encode(raw.encoding, "surrogateescape")
        self._text = text.removeprefix(_BYTE_ORDER_MARK)
        self._halves = _DOUBLE_BYTE.get(raw.charset, 0)
        #: Whether the server is asked for a character set that a statement sets.
        self._asks = bool(self._halves)

    @property
    def length(self) -> int:
        """Bytes of the whole script."""
        return len(self._text)

    def execute(self) -> None:
        """Execute all statements; see :meth:`run`."""
        for _ in self.run():
            pass

    def run(self) -> Iterator[None]:
        """Execute all statements; yield after each.

        Raise before the first is sent if a quote or a comment is not closed, unless the
        script contains what may change that.
        """
        self._check()
        for statement in self.statements():
            self._execute(statement)
            self.count += 1
            yield

    def statements(self) -> Iterator[bytes]:
        """Yield the statements, each after the one before it was executed."""
        text, delimiter, self.line = self._text, b";", 1
        counted = self.position = 0
        while (start := self._skip(self.position, delimiter)) < len(text):
            if command := _DELIMITER.match(text, start):
                delimiter = self._delimiter(command)
                self.position = command.end()
                continue
            end, self.position = self._find_end(start, delimiter)
            self.line += text.count(b"\n", counted, start)
            counted = start
            yield text[start:end].rstrip()
        self.position = len(text)

    def name_line(self, error: MySQLError) -> None:
        """Add the line to the text of an error."""
        *number, text = error.args or ("",)
        error.args = *number, f"{text} (line {self.line} of the script)"

    def _check(self) -> None:
        try:
            for _ in self.statements():
                pass
        except ProgrammingError:
            is_default = self._reading() == Reading()
            if not (_CHANGES_DEFAULT if is_default else _CHANGES).search(self._text):
                raise

    def _execute(self, statement: bytes) -> None:
        """Execute a statement, drop its results, and note a new character set."""
        handle = self._handle
        handle.query(statement)
        if handle._result.has_next:
            handle._do(methodcaller("read_leftovers"))
        if len(statement) > _LONGEST_SET:
            return
        self._asks = self._asks or bool(_NAMES_ONE.search(statement))
        if self._asks and _SETS_ONE.search(statement):
            handle.query(b"SELECT @@character_set_client")
            [[charset]] = handle._result.rows
            self._halves = _DOUBLE_BYTE.get(charset, 0)

    def _reading(self) -> Reading:
        session = self._handle._attached()
        changed = session.raw.server_status ^ session.known_mode
        if changed & (_NO_BACKSLASH_ESCAPES | _ANSI_QUOTES):
            self._handle._do(methodcaller("settle_mode"))
        status = session.raw.server_status
        escapes = not status & _NO_BACKSLASH_ESCAPES
        in_names = escapes and not status & _ANSI_QUOTES
        return Reading(escapes, in_names, self._halves)

    def _skip(self, position: int, delimiter: bytes) -> int:
        """Return where the next statement begins, after comments and delimiters."""
        text = self._text
        while True:
            if text.startswith(delimiter, position):
                position += len(delimiter)
            elif gap := _GAP.match(text, position):
                position = gap.end()
            elif _COMMENT_OPENS.match(text, position):
                raise self._unclosed(position)
            else:
                return position

    def _delimiter(self, command: re.Match[bytes]) -> bytes:
        if command.lastindex and b"\\" not in (found := command[command.lastindex]):
            return found
        raise self._wrong(
            command.start(), "DELIMITER must be followed by text without a backslash"
        )

    def _find_end(
        self, start: int, delimiter: bytes, one_by_one: bool = False
    ) -> tuple[int, int]:
        """Return where a statement ends, and where its delimiter does."""
        text, reading, position = self._text, self._reading(), start
        lexer = outside = _lexer(delimiter, reading, False, one_by_one)
        entered = None
        while token := lexer.token.search(text, position):
            position = token.end()
            kind = token.lastgroup
            if kind == "end":
                return token.start(), position
            if kind == "enter":
                entered = token.start()
                lexer = _lexer(delimiter, reading, True, one_by_one)
            elif kind == "leave":
                entered, lexer = None, outside
            elif kind == "unclosed":
                raise self._unclosed(token.start())
            elif token.lastindex:
                position = self._end_of_quoted(lexer, token)
                if position < 0 and not one_by_one:
                    # Which of the texts that were matched in one is not closed?
                    return self._find_end(start, delimiter, one_by_one=True)
                if position < 0:
                    raise self._unclosed(token.start())
        if entered is not None:
            raise self._unclosed(entered)
        return len(text), len(text)

    def _end_of_quoted(self, lexer: Lexer, token: re.Match[bytes]) -> int:
        """Return where a long quoted text ends; -1 if it is not closed."""
        text, position = self._text, token.end()
        rest = lexer.rest[text[token.start()]]
        while (found := rest.match(text, position)) and found.end() > position:
            position = found.end()
            if not found.lastindex:
                return position
        return -1

    def _unclosed(self, position: int) -> ProgrammingError:
        what = _OPENED[chr(self._text[position])]
        return self._wrong(position, f"{what} is not closed")

    def _wrong(self, position: int, text: str) -> ProgrammingError:
        self.line = self._text.count(b"\n", 0, position) + 1
        return ProgrammingError(text)
