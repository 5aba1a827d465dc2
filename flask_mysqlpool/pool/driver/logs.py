"""Logging that cannot raise: an app's handlers and filters are foreign code."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress

#: The loggers: of recorded and slow statements, of workers, and of everything else.
QUERIES = "flask_mysqlpool.queries"
WORKERS = "flask_mysqlpool.workers"
DEFAULT = "flask_mysqlpool"

#: Maximum characters of a text that are shown.
MOST = 1000
#: Maximum characters of a name.
NAME = 200

#: Exceptions that are no errors: they end a thread, a process or a request.
_EXITS = KeyboardInterrupt, SystemExit, GeneratorExit
_ENDING = "greenlet", "gevent", "asyncio"

_name_of = type.__dict__["__name__"].__get__


def plain(text: object, most: int = MOST, show: Callable[[object], str] = str) -> str:
    """Escape control characters of a text, and truncate it."""
    try:
        found = show(text)
        cut = found[:most] + "…" * (len(found) > most)
    except BaseException as error:
        if is_exit(error):
            raise
        return kind(error)
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else _escaped(c) for c in cut)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def quoted(text: str) -> str:
    """Quote the name of an endpoint or a thread for a sentence."""
    return repr(text if len(text) <= NAME else f"{text[:NAME]}…")


def kind(error: object) -> str:
    """Return the name of a value's class, as of an error whose text may be secret."""
    return plain(_name_of(type(error)), 100)


def is_exit(error: BaseException) -> bool:
    """Return whether an exception must propagate, because it ends a thread or task."""
    classes = type(error).__mro__
    if any(cls in _EXITS for cls in classes):
        return True
    return not issubclass(type(error), Exception) and any(
        str(cls.__module__).partition(".")[0] in _ENDING for cls in classes
    )


class _Plain:
    """A foreign text in a log line, which it can neither end nor forge."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return plain(self._value)

    def __repr__(self) -> str:
        return plain(self._value, show=repr)


def _traceback(error: BaseException) -> Iterator[str]:
    for entry in traceback.format_exception(None, error, error.__traceback__):
        # The text of an error may have lines of its own, which are not Python's.
        is_text = not entry.startswith("\n") and "File " != entry.lstrip(" |+-")[:5]
        entry = entry.removesuffix("\n")
        yield from map(plain, [entry] if is_text else entry.split("\n"))


def log(
    level: int,
    text: str,
    *args: object,
    logger: logging.Logger | str = DEFAULT,
    error: BaseException | None = None,
) -> None:
    """Log a line, with the traceback of an error if one is given.

    Control characters in the arguments are escaped, and long arguments truncated; the
    same in the traceback, unless a formatter makes its own.

    An :exc:`Exception` that handlers or filters raise is shown as :mod:`logging` shows
    it, and not raised. Other exceptions, such as an interrupt, propagate: call this
    after all resources have been released.
    """
    try:
        if isinstance(logger, str):
            logger = logging.getLogger(logger)
        if not logger.isEnabledFor(level):
            return
        caller = sys._getframe(1)
        code = caller.f_code
        record = logger.makeRecord(
            *(logger.name, level, code.co_filename, caller.f_lineno, text),
            tuple(a if isinstance(a, (int, float)) else _Plain(a) for a in args),
            None if error is None else (type(error), error, error.__traceback__),
            code.co_name,
        )
        if error is not None:
            # A formatter makes a traceback only if there is none yet.
            record.exc_text = "\n".join(_traceback(error))
        logger.handle(record)
    except Exception:
        with suppress(Exception):  # standard error may be closed
            if logging.raiseExceptions:
                traceback.print_exc()


class Throttle:
    """Lets one line a second pass for each cause, and counts those held back."""

    def __init__(self) -> None:
        #: For each cause: when its last line passed, and how many were held back since.
        self._last: dict[Hashable, tuple[float, int]] = {}

    def passes(self, cause: Hashable) -> int | None:
        """Return how many lines were held back since the last; None to hold this one.

        Threads that call it at once may let two lines pass.
        """
        now = time.monotonic()
        passed, held_back = self._last.get(cause, (now - 1, 0))
        if now < passed + 1:
            self._last[cause] = passed, held_back + 1
            return None
        self._last[cause] = now, 0
        return held_back
