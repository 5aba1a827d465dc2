"""A short run of the benchmarks, on servers of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("benchmarks")
    names = ["trips", "blocks", "rows", "dicts", "streams", "request"]
    options = ["--quick", "--rounds", "3", "--pools", "ours", "direct"]
    command = [sys.executable, "-m", "benchmarks", *names, *options]
    command += ["--save", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    results = json.loads((folder / "results.json").read_text("utf-8"))
    found: dict[str, Any] = results["tables"]
    assert list(found) == names
    return found


def test_round_trips_of_bare_pymysql_are_those_of_its_statements(
    tables: dict[str, Any],
) -> None:
    waited = {"query": 1, "transaction": 2, "read": 1}
    blocks = {"one": 2, "three": 4, "nested": 5, "many": 301}
    for name, known in ("trips", waited), ("blocks", blocks):
        figures = tables[name]["rows"]["direct"]
        for key, count in known.items():
            assert figures[f"{key}_wire"] == count
            assert figures[f"{key}_waited"] == count


def test_a_request_waits_for_its_own_statements_only(tables: dict[str, Any]) -> None:
    figures = tables["trips"]["rows"]["ours"]

    assert figures["query_waited"] == figures["query_at_once"] == 1
    assert figures["transaction_waited"] == 2
    # The roll-back of the checkin is sent, and its answer arrives in the pause.
    assert figures["read_wire"] == 2
    assert figures["read_waited"] == 1


def test_a_block_waits_for_its_statements_and_one_commit(
    tables: dict[str, Any],
) -> None:
    figures = tables["blocks"]["rows"]["ours"]

    assert figures["one_waited"] == 2
    assert figures["three_waited"] == 4
    assert figures["nested_waited"] == 3
    assert figures["many_waited"] <= 5


@pytest.mark.parametrize("name", ["rows", "dicts", "streams"])
def test_result_sets_are_timed_by_clock_and_cpu(
    tables: dict[str, Any], name: str
) -> None:
    for row in ("ours", "direct"):
        figures = tables[name]["rows"][row]
        for size in (1, 10, 100, 1000, 10000):
            assert 0 < figures[f"{size}_cpu_us"]
            assert 0 < figures[f"{size}_us"]
        assert figures["10000_us"] > figures["1_us"]


def test_the_floor_costs_as_much_as_itself(tables: dict[str, Any]) -> None:
    assert tables["request"]["rows"]["direct"]["share"] == 1
    assert tables["rows"]["rows"]["direct"]["100_share"] == 1
