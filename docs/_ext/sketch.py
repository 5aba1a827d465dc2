"""``.. sketch:: What it shows``: lines and words drawn in characters, shown as SVG.

``- | +`` are lines and their corners, ``> < ^ v`` the heads of arrows, ``:`` between
two of its kind is a dotted line, and all else is text. Other builders than HTML show
the characters. The colours are those of the page around it, be it light or dark.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

#: A character, in pixels; and the size of the letters.
WIDE, HIGH, LETTERS = 8, 18, 13

_LEFT, _RIGHT, _UP, _DOWN = (0, -1), (0, 1), (-1, 0), (1, 0)
#: What can be seen from a corner in each direction, if there is a line.
_JOINS = {_LEFT: "-+<", _RIGHT: "-+>", _UP: "|+^:", _DOWN: "|+v:"}


class Drawing:
    """Characters on squared paper, and what they stand for."""

    def __init__(self, lines: Iterable[str]) -> None:
        rows = [line.rstrip() for line in lines]
        self.width = max(map(len, rows), default=0)
        self.rows = [row.ljust(self.width) for row in rows]

    def at(self, row: int, column: int) -> str:
        inside = 0 <= row < len(self.rows) and 0 <= column < self.width
        return self.rows[row][column] if inside else " "

    def __iter__(self) -> Iterator[tuple[int, int, str]]:
        for row, text in enumerate(self.rows):
            for column, character in enumerate(text):
                if character != " ":
                    yield row, column, character

    def is_line(self, row: int, column: int) -> bool:
        """Whether a character is part of a line, and not of a word."""
        left, right = self.at(row, column - 1), self.at(row, column + 1)
        above, below = self.at(row - 1, column), self.at(row + 1, column)
        match self.at(row, column):
            case "|" | "+":
                return True
            case "-":
                return left in "-+<|" or right in "-+>|"
            case ">":
                return left == "-"
            case "<":
                return right == "-"
            case "^":
                return below in "|+:"
            case "v":
                return above in "|+:" and left == right == " "
            case ":":
                return above in ":|+^" or below in ":|+v"
        return False

    def is_bar(self, row: int, column: int) -> bool:
        return self.at(row, column) == "-" and self.is_line(row, column)

    def joins(self, row: int, column: int) -> list[tuple[int, int]]:
        """In which directions a line goes on from a corner."""
        return [
            (down, right)
            for (down, right), kinds in _JOINS.items()
            if self.at(row + down, column + right) in kinds
            and self.is_line(row + down, column + right)
        ]

    def boxes(self) -> Iterator[tuple[int, int, int, int]]:
        """Top, left, bottom and right of each box."""
        for row, column, character in self:
            if character == "+" and (found := self._box_at(row, column)):
                yield (row, column, *found)

    def _box_at(self, top: int, left: int) -> tuple[int, int] | None:
        right = left + 1
        while self.at(top, right) == "-":
            right += 1
        bottom = top + 1
        while self.at(bottom, left) in "|<>-" and self.at(bottom, right) in "|<>-":
            bottom += 1
        corners = self.at(top, right), self.at(bottom, left), self.at(bottom, right)
        edge = self.rows[bottom][left + 1 : right] if bottom < len(self.rows) else ""
        is_box = corners == ("+", "+", "+") and set(edge) <= {"-", "+"}
        return (bottom, right) if is_box else None

    def words(self) -> Iterator[tuple[int, int, str]]:
        for row, text in enumerate(self.rows):
            letters = "".join(
                " " if self.is_line(row, column) else character
                for column, character in enumerate(text)
            )
            for found in re.finditer(r"\S+(?: \S+)*", letters):
                yield row, found.start(), found[0]


def svg(lines: Iterable[str], title: str) -> str:
    """The picture, to be put into a page."""
    drawing = Drawing(lines)
    width, height = drawing.width * WIDE, len(drawing.rows) * HIGH
    parts = [
        f'<svg class="sketch" role="img" viewBox="0 0 {width} {height}"'
        f' width="{width}" style="max-width: 100%; height: auto" fill="currentColor"'
        f' font-family="monospace" font-size="{LETTERS}">',
        f"<title>{escape(title)}</title>",
    ]
    for top, left, bottom, right in drawing.boxes():
        x, y = _middle(top, left)
        parts.append(
            f'<rect x="{x}" y="{y}" width="{(right - left) * WIDE}"'
            f' height="{(bottom - top) * HIGH}" rx="{WIDE / 2:g}" fill-opacity="0.07"/>'
        )
    for dash, path in _strokes(drawing):
        style = ' stroke-dasharray="2 3"' if dash else ""
        parts.append(f'<path d="{path}" fill="none" stroke="currentColor"{style}/>')
    for row, column, character in drawing:
        if character in "<>^v" and drawing.is_line(row, column):
            parts.append(f'<path d="{_head(drawing, row, column, character)}"/>')
    for row, column, text in drawing.words():
        x, y = column * WIDE, (row + 0.5) * HIGH + LETTERS * 0.35
        parts.append(
            f'<text x="{x}" y="{y:g}" textLength="{len(text) * WIDE}"'
            f' lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def _middle(row: int, column: int) -> tuple[float, float]:
    return column * WIDE + WIDE / 2, row * HIGH + HIGH / 2


def _strokes(drawing: Drawing) -> Iterator[tuple[bool, str]]:
    """Whether it is dotted, and the path, of each line; all of one kind together."""
    solid, dotted = [], []
    for row, column, character in drawing:
        if not drawing.is_line(row, column):
            continue
        x, y = _middle(row, column)
        if character == ":":
            dotted.append(f"M{x:g} {y - HIGH / 2:g}v{HIGH}")
        elif character == "-":
            left = WIDE if drawing.at(row, column - 1) == "|" else WIDE / 2
            right = WIDE if drawing.at(row, column + 1) == "|" else WIDE / 2
            solid.append(f"M{x - left:g} {y:g}H{x + right:g}")
        elif character == "|":
            up = HIGH if drawing.is_bar(row - 1, column) else HIGH / 2
            down = HIGH if drawing.is_bar(row + 1, column) else HIGH / 2
            solid.append(f"M{x:g} {y - up:g}V{y + down:g}")
        elif character == "+":
            solid.append(_corner(x, y, drawing.joins(row, column)))
    yield False, "".join(solid)
    if dotted:
        yield True, "".join(dotted)


def _corner(x: float, y: float, joins: list[tuple[int, int]]) -> str:
    ends = [(x + right * WIDE / 2, y + down * HIGH / 2) for down, right in joins]
    if len(ends) == 2 and joins[0][0] == 0 != joins[1][0]:
        # A round one, as far as the square of the character goes.
        (start, _), (_, end) = ends
        return f"M{start:g} {y:g}H{(start + x) / 2:g}Q{x:g} {y:g} {x:g} {end:g}"
    return "".join(f"M{x:g} {y:g}L{a:g} {b:g}" for a, b in ends)


def _head(drawing: Drawing, row: int, column: int, character: str) -> str:
    """An arrow's head, up to the edge of the box that it points to."""
    x, y = _middle(row, column)
    half = WIDE / 2
    if character in "<>":
        sign = 1 if character == ">" else -1
        reach = WIDE if drawing.at(row, column + sign) in "|+:" else half
        tip = x + sign * reach
        shaft = f"M{x - sign * half:g} {y - 0.5:g}v1H{tip - sign * half:g}v-1z"
        return f"{shaft}M{tip:g} {y:g}l{-sign * 9} -4v8z"
    sign = 1 if character == "v" else -1
    reach = HIGH if drawing.at(row + sign, column) in "-+" else HIGH / 2
    tip = y + sign * reach
    shaft = f"M{x - 0.5:g} {y - sign * HIGH / 2:g}h1V{tip - sign * half:g}h-1z"
    return f"{shaft}M{x:g} {tip:g}l-4 {-sign * 9}h8z"


class sketch(nodes.literal_block):  # type: ignore[misc,unused-ignore]
    """To all builders but HTML's it is what it was."""


class Sketch(SphinxDirective):
    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        text = "\n".join(self.content)
        node = sketch(text, text, title=" ".join(self.arguments[0].split()))
        node["language"] = "text"
        self.set_source_info(node)
        return [node]


def _visit(translator: Any, node: sketch) -> None:
    picture = svg(node.astext().splitlines(), node["title"])
    translator.body.append(f'<div class="sketch">{picture}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_node(sketch, html=(_visit, None))
    app.add_directive("sketch", Sketch)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
