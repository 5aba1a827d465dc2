"""Text and errors of others: what may be shown of them, and how."""

from __future__ import annotations

#: Characters of a text that are shown.
MOST = 1000
#: And of a name.
NAME = 200

#: What is no error but the end of a thread, a process or a request's time.
_EXITS = KeyboardInterrupt, SystemExit, GeneratorExit
_ENDING = "greenlet", "gevent", "asyncio"

_name_of = type.__dict__["__name__"].__get__


def plain(text: object, most: int = MOST) -> str:
    """Escape what a terminal, a page or a log would obey, and cut what is too long."""
    try:
        found = str(text)
        cut = found[:most] + "…" * (len(found) > most)
    except BaseException as error:
        if is_exit(error):
            raise
        return kind(error)
    return cut if cut.isprintable() else "".join(map(_escaped, cut))


def quoted(text: str) -> str:
    """Name an endpoint, or a thread, in a sentence."""
    return repr(text if len(text) <= NAME else f"{text[:NAME]}…")


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


def kind(error: object) -> str:
    """Name the class of an error whose text may be secret, or of another value."""
    return plain(_name_of(type(error)), 100)


def is_exit(error: BaseException) -> bool:
    """Whether it has to pass, as it is not about what was tried."""
    classes = type(error).__mro__
    if any(cls in _EXITS for cls in classes):
        return True
    return not issubclass(type(error), Exception) and any(
        str(cls.__module__).partition(".")[0] in _ENDING for cls in classes
    )
