"""What the rows of a result can be: rows with names, or objects of the caller's class.

The reader decodes rows as tuples. What is wanted instead is made of many tuples at
once, by a function that is compiled for the columns and the class, and remembered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import repeat
from types import FunctionType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    NoReturn,
    SupportsIndex,
    TypeVar,
    get_origin,
    is_typeddict,
    overload,
)

from pymysql.cursors import Cursor, DictCursorMixin, SSCursor

from ...errors import NotOneRow
from ..driver.results import NOT_KNOWN, REMEMBERED, make_dict_maker

T = TypeVar("T")

#: Makes rows of tuples.
Maker = Callable[[Sequence[Any]], list[Any]]


if TYPE_CHECKING:
    _DictCursorMixin = object
else:
    _DictCursorMixin = DictCursorMixin


class _Hidden:
    """Hides a method of tuples: in a template, ``row.count`` is the column."""

    def __get__(self, row: object, cls: type) -> NoReturn:
        raise AttributeError("a Row has its columns as items only")


class Row(tuple[Any, ...]):
    """A row that is a tuple, whose cells also have the names of their columns.

    ``row[0]`` and ``row["name"]`` are the same cell, ``row.keys()`` lists the names,
    and ``dict(row)`` makes a dict. It cannot be changed. Of two columns with one name,
    the second is ``row["table.name"]``, as in PyMySQL's ``DictCursor``. An unknown name
    raises :exc:`KeyError`.
    """

    __slots__ = ()
    # Of a subclass for each result. A name that three columns have is there twice.
    _columns: tuple[str, ...] = ()
    _positions: dict[str, int] = {}  # noqa: RUF012

    if not TYPE_CHECKING:
        count = index = _Hidden()

    @overload
    def __getitem__(self, key: str | SupportsIndex) -> Any: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Any, ...]: ...

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            try:
                key = self._positions[key]
            except KeyError:
                known = ", ".join(self._positions)
                raise KeyError(f"no column {key!r}; there are: {known}") from None
        return super().__getitem__(key)

    def keys(self) -> list[str]:
        """Return the names of the columns."""
        return list(self._positions)

    def __repr__(self) -> str:
        cells = [f"{name}={cell!r}" for name, cell in zip(self._columns, self)]  # noqa: B905
        return f"Row({', '.join(cells)})"

    def __reduce__(self) -> Any:
        return _copy, (self._columns, tuple(self))


def _copy(columns: tuple[str, ...], cells: tuple[Any, ...]) -> Row:
    row: Row = make_row_maker(columns)([cells])[0]
    return row


@lru_cache(maxsize=REMEMBERED)
def make_row_maker(columns: tuple[str, ...]) -> Maker:
    """Make the function that makes tuples into rows with these names."""
    positions: dict[str, int] = {}
    for at, name in enumerate(columns):
        positions.setdefault(name, at)
    names = {"__slots__": (), "_columns": columns, "_positions": positions}
    cls = type("Row", (Row,), names)
    new = tuple.__new__
    return lambda rows: list(map(new, repeat(cls), rows))


class _RowMixin(_DictCursorMixin):
    """Makes rows of the type :class:`Row`, where PyMySQL makes dicts."""

    _fields: list[str]

    def _conv_row(self, row: Any) -> Any:
        return None if row is None else make_row_maker(tuple(self._fields))([row])[0]

    if TYPE_CHECKING:

        def fetchone(self) -> Row | None: ...
        def fetchmany(self, size: int | None = None) -> tuple[Row, ...]: ...
        def fetchall(self) -> tuple[Row, ...]: ...
        def __iter__(self) -> Iterator[Row]: ...


class RowCursor(_RowMixin, Cursor):
    """A cursor whose rows are of the type :class:`Row`."""


class SSRowCursor(_RowMixin, SSCursor):  # type: ignore[misc]
    """The same for rows that are streamed, as by PyMySQL's ``SSCursor``."""


class TypedCursor(Generic[T]):
    """A cursor whose rows are objects of the class that ``execute(into=…)`` was given.

    Rows are made when they are fetched. ``close()`` is only needed to leave out rows of
    a stream.
    """

    def __init__(
        self, cursor: Cursor, into: Callable[..., T], query: Any, args: Any
    ) -> None:
        self._cursor, self._into = cursor, into
        cursor.execute(query, args)
        self._make = _maker_for(cursor, into)

    def fetchone(self) -> T | None:
        """Return the next row; None after the last."""
        row: Any = self._cursor.fetchone()
        return None if row is None else self._make([row])[0]

    def fetchmany(self, size: int = 1) -> list[T]:
        """Return the next rows, at most ``size``."""
        rows = self._cursor.fetchmany(size)
        return self._make(rows) if rows else []

    def fetchall(self) -> list[T]:
        """Return all rows that were not fetched yet."""
        rows = self._cursor.fetchall()
        return self._make(rows) if rows else []

    def __iter__(self) -> Iterator[T]:
        while (row := self._cursor.fetchone()) is not None:
            yield self._make([row])[0]

    def one(self) -> T:
        """Return the only row.

        Raises :exc:`~flask_mysqlpool.NotOneRow`, which says how many there are, if
        there is not exactly one.
        """
        rows = self._cursor.fetchmany(2) or ()
        if len(rows) == 1:
            return self._make(rows)[0]  # type: ignore[no-any-return]
        raise NotOneRow(len(rows) + sum(1 for _ in iter(self._cursor.fetchone, None)))

    def nextset(self) -> bool:
        """Go to the next result of a procedure; False after the last."""
        if not self._cursor.nextset():
            return False
        self._make = _maker_for(self._cursor, self._into)
        return True

    def close(self) -> None:
        """End it; rows that were not read are left out."""
        self._cursor.close()

    def __enter__(self) -> TypedCursor[T]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def rowcount(self) -> int:
        """The number of rows found or changed; -1 for a stream, as in PEP 249."""
        found = self._cursor.rowcount
        return found if found < NOT_KNOWN else -1

    @property
    def lastrowid(self) -> int:
        """The AUTO_INCREMENT value that the statement has made, or 0."""
        return self._cursor.lastrowid or 0

    @property
    def description(self) -> Any:
        """The columns, as PEP 249 describes them; None if there are none."""
        return self._cursor.description


def _maker_for(cursor: Any, into: Callable[..., Any]) -> Maker:
    """Return the function that makes the rows of a cursor's result."""
    if cursor.description is None:
        return list
    keys = tuple(cursor._result.keys())
    into = get_origin(into) or into  # of an alias, such as dict[str, int]
    make = maker if _is_lasting(into) else maker.__wrapped__
    try:
        return make(into, keys)
    except TypeError:
        cursor.close()
        raise


def _is_lasting(into: Any) -> bool:
    """Return whether a class or a function lives as long as its module.

    What is made inside a function is made anew by each call, and may refer to objects
    that must not be kept, such as the connection.
    """
    if not isinstance(into, type | FunctionType) or type(into).__hash__ is None:
        return False
    return "<locals>" not in into.__qualname__


@lru_cache(maxsize=REMEMBERED)
def maker(into: Callable[..., Any], columns: tuple[str, ...]) -> Maker:
    """Compile the function that makes objects of rows with these columns.

    Raises :exc:`TypeError` if the class, or callable, cannot take the columns.
    """
    if into is tuple:
        return list
    if into is Row:
        return make_row_maker(columns)
    if into is dict or is_typeddict(into):
        if into is not dict:
            required = into.__required_keys__  # type: ignore[attr-defined]
            allowed = required | into.__optional_keys__  # type: ignore[attr-defined]
            _compare(into, columns, sorted(allowed), required, takes_more=False)
        return make_dict_maker(columns)  # type: ignore[no-any-return]
    return _compiled(_call(into, columns), len(columns))(into, *columns)


@lru_cache(maxsize=REMEMBERED)
def _compiled(call: str, count: int) -> Callable[..., Maker]:
    """Compile what makes the maker for a callable and the names of the columns.

    Nothing that a server has sent is in the source: names of columns are numbers, and
    those of parameters are identifiers.
    """
    names = "".join(f", k{at}" for at in range(count))
    values = "".join(f"v{at}, " for at in range(count))
    source = f"lambda into{names}: lambda rows: [into({call}) for {values}in rows]"
    return eval(source)  # type: ignore[no-any-return]


def _call(into: Callable[..., Any], columns: tuple[str, ...]) -> str:
    """Return the source of the arguments, of which ``v0`` is the first column."""
    kinds = inspect.Parameter
    try:
        parameters = inspect.signature(into).parameters.values()
    except (TypeError, ValueError):
        raise TypeError(
            f"{_name(into)} cannot be asked which columns it takes; pass a dataclass,"
            " a NamedTuple, dict, Row, or a function with these parameters:"
            f" {', '.join(columns)}"
        ) from None
    by_name = [
        parameter
        for parameter in parameters
        if parameter.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    ]
    required = {
        parameter.name
        for parameter in parameters
        if parameter.default is kinds.empty
        and parameter.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    }
    takes_more = any(p.kind == kinds.VAR_KEYWORD for p in parameters)
    _compare(into, columns, [p.name for p in by_name], required, takes_more)
    numbers = {name: at for at, name in enumerate(columns)}
    arguments, by_position = [], True
    for parameter in by_name:
        at = numbers.pop(parameter.name, None)
        by_position &= at is not None and parameter.kind != kinds.KEYWORD_ONLY
        if at is not None:
            arguments.append(f"v{at}" if by_position else f"{parameter.name}=v{at}")
    if numbers:
        more = ", ".join(f"k{at}: v{at}" for at in numbers.values())
        arguments.append(f"**{{{more}}}")
    return ", ".join(arguments)


def _compare(
    into: Callable[..., Any],
    columns: tuple[str, ...],
    names: Sequence[str],
    required: set[str] | frozenset[str],
    takes_more: bool,
) -> None:
    """Raise if columns are missing, or too many."""
    missing = sorted(required.difference(columns))
    more = [] if takes_more else [c for c in columns if c not in names]
    if not (missing or more):
        return
    what = [f"it needs {', '.join(missing)}"] if missing else []
    what += [f"it does not take {', '.join(more)}"] if more else []
    raise TypeError(
        f"{_name(into)} takes {', '.join(names) or 'no names'}, and the columns are"
        f" {', '.join(columns)}: {' and '.join(what)}; name the columns as it does"
    )


def _name(into: Any) -> str:
    return getattr(into, "__name__", None) or repr(into)
