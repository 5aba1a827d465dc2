"""The alert rules and the dashboard of the docs, held against what is exported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flask_mysqlpool

core = pytest.importorskip("prometheus_client.core")
prometheus = pytest.importorskip("flask_mysqlpool.metrics.prometheus")

STATIC = Path(__file__).parents[2] / "docs" / "_static"

pytestmark = pytest.mark.skipif(not STATIC.exists(), reason="needs a clone")


def exported() -> dict[str, set[str]]:
    """The names of all samples, and the labels of each."""
    found: dict[str, set[str]] = {"mysqlpool_readable": set()}
    for kind, name, what, labels in prometheus._METRICS:
        names = {"pool", *labels}
        if kind is core.HistogramMetricFamily:
            found |= {f"mysqlpool_{name}_{end}": names for end in ("count", "sum")}
            found[f"mysqlpool_{name}_bucket"] = names | {"le"}
        else:
            end = "_total" * (kind(name, what).type == "counter")
            found[f"mysqlpool_{name}{end}"] = names
    return found


def rules() -> dict[str, Any]:
    read = pytest.importorskip("yaml").safe_load
    found: dict[str, Any] = read((STATIC / "alerts.yml").read_text("utf-8"))
    return found


def dashboard() -> dict[str, Any]:
    text = (STATIC / "grafana-dashboard.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def alerts() -> Iterator[tuple[str, str]]:
    for group in rules()["groups"]:
        for rule in group["rules"]:
            yield rule["expr"], " ".join(rule["annotations"].values())


def panels() -> Iterator[tuple[str, str]]:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]


SOURCES = {"alerts": alerts, "dashboard": panels}

#: Labels that Prometheus adds to each sample, and what a text may show beside labels.
ADDED = {"instance", "job"}
VALUE = {"value"}


def grouped(expression: str) -> list[set[str]]:
    """The labels of each ``by`` and ``without``."""
    found = re.findall(r"\b(?:by|without) \((.*?)\)", expression)
    return [{*labels.split(", ")} for labels in found]


@pytest.mark.parametrize("source", SOURCES)
def test_every_name_and_label_is_exported(source: str) -> None:
    known = exported()
    expressions = list(SOURCES[source]())
    assert len(expressions) >= 10
    for expression, text in expressions:
        names = set(re.findall(r"\bmysqlpool_\w+", expression))
        assert names and names <= known.keys()
        for name, selector in re.findall(r"\b(mysqlpool_\w+)\{(.*?)\}", expression):
            assert set(re.findall(r"(\w+)=", selector)) <= known[name], expression

        labels = set.union(*(known[name] for name in names), ADDED)
        shown = set(re.findall(r"\{\{ *(?:\$labels\.|\$)?(\w+)", text))
        assert set.union(shown - VALUE, *grouped(expression)) <= labels, expression
        if " by (" in expression:
            assert shown <= set.union(*grouped(expression)), expression


@pytest.mark.parametrize("source", SOURCES)
def test_every_value_of_a_label_is_one_that_occurs(source: str) -> None:
    package = Path(flask_mysqlpool.__file__).parent / "pool"
    code = "".join(path.read_text("utf-8") for path in package.glob("*.py"))
    text = " ".join(expression for expression, _ in SOURCES[source]())
    states, reasons = (
        {
            v
            for values in re.findall(rf'{label}=~?"(.*?)"', text)
            for v in values.split("|")
        }
        for label in ("state", "reason")
    )

    assert states and states <= {*prometheus._STATES}
    assert [reason for reason in reasons if f'"{reason}"' not in code] == []


PAIRS = {"(": ")", "[": "]", "{": "}"}


@pytest.mark.parametrize("source", SOURCES)
def test_every_bracket_is_closed(source: str) -> None:
    for expression, _ in SOURCES[source]():
        expected = []
        for character in re.sub(r'"[^"]*"', "", expression):
            if character in PAIRS:
                expected.append(PAIRS[character])
            elif character in PAIRS.values():
                assert expected and expected.pop() == character, expression
        assert not expected, expression


def test_every_metric_is_on_the_dashboard() -> None:
    shown = " ".join(expression for expression, _ in panels())
    families = [f"mysqlpool_{name}" for _, name, _, _ in prometheus._METRICS]

    assert [name for name in families if not re.search(rf"\b{name}", shown)] == []


def test_each_alert_has_a_name_and_a_severity_of_its_own() -> None:
    listed = [rule for group in rules()["groups"] for rule in group["rules"]]

    assert len({rule["alert"] for rule in listed}) == len(listed) >= 8
    assert {rule["labels"]["severity"] for rule in listed} == {"critical", "warning"}
    assert all(rule["annotations"]["summary"] for rule in listed)


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        cells = {(a, b) for a in range(x, x + w) for b in range(y, y + h)}

        assert x + w <= 24 and not cells & taken
        taken |= cells
