"""What a measurement hands over, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Column:
    key: str
    heading: str
    digits: int = 0

    def show(self, value: float | None) -> str:
        return "–" if value is None else f"{value:,.{self.digits}f}"


@dataclass
class Table:
    """One row for each pool; a figure that makes no sense there is missing."""

    name: str
    title: str
    columns: tuple[Column, ...]
    labels: dict[str, str]
    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    #: What the figures were made of.
    raw: dict[str, Any] = field(default_factory=dict)

    def add(self, figures: Mapping[str, Mapping[str, float]]) -> None:
        for row, values in figures.items():
            self.rows.setdefault(row, {}).update(values)

    def get(self, row: str, key: str) -> float | None:
        return self.rows.get(row, {}).get(key)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [["", *(column.heading for column in self.columns)]]
        for row, figures in self.rows.items():
            shown = [column.show(figures.get(column.key)) for column in self.columns]
            lines.append([self.labels.get(row, row), *shown])
        return f"{self.title}\n\n{_aligned(lines)}"


def _aligned(lines: list[list[str]]) -> str:
    """Text columns, the first to the left; headings may have several lines."""
    head = [heading.split("\n") for heading in lines[0]]
    height = max(map(len, head))
    heads = [[""] * (height - len(parts)) + parts for parts in head]
    rows = [*map(list, zip(*heads, strict=True)), *lines[1:]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(cells: list[str], widths: list[int]) -> str:
    first, *others = (
        cell.rjust(width) if index else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()
