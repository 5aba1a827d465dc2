"""``.. tested-by::`` lists the tests of a promise, as lines ``module: name of a test``.

A missing test fails the build.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

TESTS = Path(__file__).parents[2] / "tests"


def path_of(module: str) -> Path:
    [path] = TESTS.glob(f"*/{module}.py")
    return path


@cache
def tests(module: str) -> frozenset[str]:
    text = path_of(module).read_text("utf-8")
    return frozenset(re.findall(r"^ *def test_(\w+)", text, re.MULTILINE))


class TestedBy(SphinxDirective):
    has_content = True

    def run(self) -> list[nodes.Node]:
        items = nodes.bullet_list()
        for line in self.content:
            module, _, sentence = line.partition(": ")
            if "_".join(sentence.split()) not in tests(module):
                raise self.error(f"{module}.py has no test called {sentence!r}")
            self.env.note_dependency(str(path_of(module)))
            text = nodes.paragraph("", f"{sentence} ")
            text += nodes.literal("", f"{module}.py")
            items += nodes.list_item("", text)
        return [nodes.paragraph("", "Tested by, among others:"), items]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("tested-by", TestedBy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
