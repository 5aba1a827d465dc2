"""The results of a run: tables of figures, as text and as one JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: By how much the floor may differ between parts of a run.
DRIFT = 1 / 3


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
    #: A row without any figure is of a pool that is not installed.
    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    #: What the figures were made of.
    raw: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Table:
        columns = tuple(Column(**column) for column in content.pop("columns"))
        return cls(columns=columns, **content)

    def add(self, figures: Mapping[str, Mapping[str, float]]) -> None:
        for row, values in figures.items():
            self.rows.setdefault(row, {}).update(values)

    def get(self, row: str, key: str) -> float | None:
        return self.rows.get(row, {}).get(key)

    def check_floor(self, *series: Sequence[float]) -> None:
        """Note that times of the floor, in order, differ by more than a third."""
        growth = max(map(drift, series))
        if growth > DRIFT:
            self.notes.append(
                f"The floor itself moved by {growth:.0%} during this run:"
                " repeat it on a quieter machine."
            )

    def __str__(self) -> str:
        lines = [["", *(column.heading for column in self.columns)]]
        for row, figures in self.rows.items():
            shown = [column.show(figures.get(column.key)) for column in self.columns]
            if not figures:
                shown = ["not installed", *[""] * (len(shown) - 1)]
            lines.append([self.labels.get(row, row), *shown])
        notes = "".join(f"\n\n{note}" for note in self.notes)
        return f"{self.title}\n\n{_aligned(lines)}{notes}"


def drift(times: Sequence[float]) -> float:
    """Compare the quietest times of the three thirds of a run; 0 if they are equal."""
    count = len(times)
    parts = [times[count * i // 3 : count * (i + 1) // 3] for i in range(3)]
    best = [min(part) for part in parts if part]
    return max(best) / min(best) - 1


@dataclass(frozen=True)
class Verdict:
    """Whether an aim is met, and by which figures; ``met`` is None without them."""

    aim: str
    met: bool | None
    figures: str = ""

    def __str__(self) -> str:
        word = {True: "met", False: "MISSED", None: "not measured"}[self.met]
        first = f"{word:12}  {self.aim}"
        return f"{first}\n{'':15}  {self.figures}" if self.figures else first


@dataclass(frozen=True)
class Results:
    about: dict[str, str]
    tables: dict[str, Table]
    aims: list[Verdict]

    @classmethod
    def load(cls, path: Path) -> Results:
        content = json.loads(path.read_text("utf-8"))
        tables = {n: Table.from_json(table) for n, table in content["tables"].items()}
        aims = [Verdict(**verdict) for verdict in content["aims"]]
        return cls(content["about"], tables, aims)

    def save(self, path: Path) -> None:
        content = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        path.write_text(f"{content}\n", "utf-8")

    @property
    def first_line(self) -> str:
        return " · ".join(f"{key} {value}" for key, value in self.about.items())

    @property
    def last_lines(self) -> str:
        return "\n".join(["The aims", *map(str, self.aims)])

    def __str__(self) -> str:
        tables = map(str, self.tables.values())
        return "\n\n".join([self.first_line, *tables, self.last_lines])


def _aligned(lines: list[list[str]]) -> str:
    """Align columns of text, the first to the left; headings may have several lines."""
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
