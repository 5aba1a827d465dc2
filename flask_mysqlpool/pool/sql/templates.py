"""Statements with values in them: names as parameters, and Python's t-strings.

Both become a statement with ``%s`` for each value, and the values, which the cursor
puts in as it does with all parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: How the values of a t-string may be converted, by the letter after ``!``.
_CONVERSIONS: dict[str | None, Callable[[Any], Any]] = {
    None: lambda value: value,
    "a": ascii,
    "r": repr,
    "s": str,
}


class Identifier:
    """The name of a table or column, as a parameter; see :func:`identifier`."""

    __slots__ = ("_quoted",)

    def __init__(self, names: tuple[str, ...]) -> None:
        for name in names:
            if not isinstance(name, str):
                what = type(name).__name__
                raise TypeError(f"the name of a table or column is text, not {what}")
            if not name or "\0" in name:
                raise ValueError(f"no table or column can have the name {name!r}")
        if not names:
            raise TypeError("identifier() takes a name, or a qualified one in parts")
        self._quoted = ".".join(f"`{name.replace('`', '``')}`" for name in names)

    def quoted(self) -> str:
        """Return it as it is written in a statement."""
        return self._quoted

    def __str__(self) -> str:
        if "%" in self._quoted:
            raise ValueError(
                f"pass the name {self._quoted} as a parameter, with %s in the"
                " statement: written into the text, its % would be taken for one"
            )
        return self._quoted

    def __repr__(self) -> str:
        return f"<Identifier {self._quoted}>"


def identifier(*names: str) -> Identifier:
    """Return a name of a table or column as a parameter, quoted as such.

    Parameters are values, so ``ORDER BY %s`` with text sorts by a constant. This one is
    put in as a name: ``execute("… ORDER BY %s", [identifier(column)])``. A qualified
    name is given in parts, ``identifier("shop", "person")``.

    Raises :exc:`ValueError` if no table or column can have this name, and
    :exc:`TypeError` if it is not text.
    """
    return Identifier(names)


def is_template(query: object) -> bool:
    """Return whether this is a t-string; Python has them since 3.14."""
    return type(query).__module__ == "string.templatelib"


def plain(query: Any, args: Any) -> tuple[str | bytes, Any]:
    """Return a statement as text or bytes, and its parameters.

    Raises :exc:`TypeError` if it is neither of them, nor a t-string.
    """
    if isinstance(query, str | bytes | bytearray | memoryview):
        return query, args  # type: ignore[return-value]
    if not is_template(query):
        what = type(query).__name__
        raise TypeError(f"a statement is text, bytes or a t-string, not {what}")
    if args is not None:
        raise TypeError("a t-string has its values in it: leave the parameters out")
    values: list[Any] = []
    return _text(query, values), tuple(values)


def _text(template: Any, values: list[Any]) -> str:
    """Return the text of a t-string with ``%s`` for each value, and add the values."""
    parts = [template.strings[0].replace("%", "%%")]
    for part, text in zip(template.interpolations, template.strings[1:], strict=True):
        value, wanted = _CONVERSIONS[part.conversion](part.value), part.format_spec
        if wanted == "identifier":
            names = value if isinstance(value, tuple) else (value,)
            values.append(Identifier(names))
            parts.append("%s")
        elif wanted:
            raise ValueError(
                f"{{{part.expression}:{wanted}}} in a t-string: only :identifier can"
                " be after the colon; format the value before"
            )
        elif is_template(value):
            parts.append(_text(value, values))
        else:
            if isinstance(value, list | tuple | set | frozenset) and not value:
                raise ValueError(
                    f"{{{part.expression}}} in a t-string is an empty list, which SQL"
                    " does not have: leave the condition out"
                )
            values.append(value)
            parts.append("%s")
        parts.append(text.replace("%", "%%"))
    return "".join(parts)
