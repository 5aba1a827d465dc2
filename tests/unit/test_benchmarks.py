"""The benchmarks: how they count and judge, and that pages show their results."""

from __future__ import annotations

import importlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SHOWN = DOCS / "_static" / "benchmarks"

Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


# What the documentation shows


def test_the_text_in_the_documentation_is_that_of_the_results(load: Load) -> None:
    results = load("results").Results.load(SHOWN / "results.json")

    assert (SHOWN / "results.txt").read_text("utf-8") == f"{results}\n"


def test_the_plots_in_the_documentation_are_those_of_the_results(load: Load) -> None:
    plots = load("plots")
    tables = load("results").Results.load(SHOWN / "results.json").tables
    drawn = [name for name in plots.PLOTS if plots.bars(tables, name)]

    assert sorted(path.stem for path in SHOWN.glob("*.svg")) == sorted(drawn)
    for name in drawn:
        picture = (SHOWN / f"{name}.svg").read_text("utf-8")
        texts = re.findall(r">([^<>\n]+)</text>", picture)
        for label, figure in plots.bars(tables, name):
            assert {label, figure} <= set(texts), name


def test_pages_show_no_figure_that_is_not_from_the_results() -> None:
    figure = re.compile(r"\d\s?µs|\d (?:queries|requests|cycles)/s|\d × (?:bare|the)")
    pages = [ROOT / "README.md", *DOCS.glob("*.rst")]
    written = [
        f"{page.name}: {line}"
        for page in pages
        for line in page.read_text("utf-8").splitlines()
        if figure.search(line)
    ]

    assert written == []


def test_results_are_the_same_after_they_were_saved(load: Load, tmp_path: Path) -> None:
    results = load("results")
    before = results.Results.load(SHOWN / "results.json")
    before.save(tmp_path / "results.json")

    assert results.Results.load(tmp_path / "results.json") == before


# The command


def test_help_tells_of_every_table_and_every_pool(load: Load) -> None:
    done = run("benchmarks", "--help")

    for name in (*load("__main__").TABLES, *load("adapters").ADAPTERS):
        assert re.search(rf"^  {name} ", done.stdout, re.MULTILINE), name


def test_an_unknown_table_is_refused() -> None:
    done = run("benchmarks", "rows", "nonsense")

    assert done.returncode == 2
    assert "no such table: nonsense" in done.stderr


def test_results_can_be_shown_again() -> None:
    done = run("benchmarks", "--from", SHOWN / "results.json")

    assert done.stdout == (SHOWN / "results.txt").read_text("utf-8")


def test_a_tree_is_timed_and_not_what_is_installed(tmp_path: Path) -> None:
    (tmp_path / "flask_mysqlpool").mkdir()
    text = "raise SystemExit('this is the tree')"
    (tmp_path / "flask_mysqlpool" / "__init__.py").write_text(text)
    done = run("benchmarks.trees", "--serve", "after", tmp_path, "mysql://a@b/c")

    assert done.stderr.strip() == "this is the tree"


# Tables


@pytest.fixture
def table(load: Load) -> Any:
    results = load("results")
    column = results.Column("us", "µs", 1)
    labels = {"ours": "flask_mysqlpool", "other": "another pool"}
    return results.Table("cost", "The cost", (column,), labels, {"ours": {}})


def test_a_pool_without_figures_is_not_installed(table: Any) -> None:
    table.add({"ours": {"us": 1.25}, "other": {}})

    assert str(table).splitlines()[-2:] == [
        "flask_mysqlpool            1.2",
        "another pool     not installed",
    ]


def test_pools_that_are_not_installed_are_left_out(load: Load) -> None:
    direct = load("adapters").Direct
    missing = type("Missing", (direct,), {"label": "-", "needs": "no_such_module"})
    kinds = {"direct": direct, "missing": missing}
    bench = load("bench").Bench(None, kinds, {}, load("bench").QUICK)

    assert list(bench.adapters) == ["direct"]
    assert list(bench.table("cost", "The cost", bench.kinds).rows) == list(kinds)


@pytest.mark.parametrize(
    ("times", "notes"),
    [
        ([1.0, 1.3, 1.2], 0),
        ([1.0, 1.4, 1.0], 1),
        # A single slow round tells nothing; a third of the run does.
        ([1.0, 9.0, 1.0, 9.0, 1.0, 9.0], 0),
        ([1.0, 1.0, 1.0, 1.0, 1.5, 1.6], 1),
    ],
)
def test_a_run_in_which_the_floor_moved_says_so(
    table: Any, times: list[float], notes: int
) -> None:
    table.check_floor([2.0, 2.0, 2.0], times)

    assert len(table.notes) == notes
    assert str(table).count("The floor itself moved") == notes


def test_an_aim_is_met_missed_or_not_measured(load: Load) -> None:
    results, aims = load("results"), load("aims")
    column = results.Column("ratio", "of the floor", 2)

    def verdict(ratio: float | None) -> str:
        figures = {} if ratio is None else {"ratio": ratio}
        table = results.Table("statement", "", (column,), {}, {"ours": figures})
        return str(aims.verdicts({"statement": table})[0])

    assert verdict(0.85).startswith("met           1. ")
    assert verdict(0.86).startswith("MISSED        1. ")
    assert verdict(None).startswith("not measured  1. ")


# Times, and round trips


def test_what_is_timed_and_what_it_starts_is_on_one_cpu(load: Load) -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system pins nothing to a CPU")
    before = os.sched_getaffinity(0)
    seen: list[set[int]] = []
    with load("tables.clock").one_cpu():
        thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join()
        code = "import os; print(len(os.sched_getaffinity(0)))"
        count = run_code(code)

    assert [len(cpus) for cpus in seen] == [1]
    assert count == "1"
    assert os.sched_getaffinity(0) == before


def run_code(code: str) -> str:
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


def test_turns_are_taken_in_rounds_and_the_quietest_tenth_counts(load: Load) -> None:
    clock = load("tables.clock")
    order: list[str] = []

    def turn(name: str) -> Any:
        order.append(name)
        return clock.Turn(len(order), 1 / len(order))

    taken = clock.alternate({n: lambda n=n: turn(n) for n in "ab"}, 10)

    assert all({*order[i : i + 2]} == {"a", "b"} for i in range(0, 20, 2))
    walls = sorted(turn.wall for turn in taken["a"])
    assert clock.quiet(taken["a"]).wall == walls[1]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    client, server = socket.socketpair()
    with closing(client), closing(server):
        yield client, server


Pair = tuple[socket.socket, socket.socket]


def answered(server: socket.socket, size: int) -> None:
    """Answer from another thread, as a server is in another process."""
    thread = threading.Thread(target=lambda: server.sendall(server.recv(size)))
    thread.start()
    thread.join()


def test_only_what_a_caller_waits_for_is_counted(load: Load, pair: Pair) -> None:
    client, server = pair
    with load("tables.waits").Waits() as waits:
        client.sendall(b"one")
        answered(server, 3)
        assert waits.trips == 0
        file = client.makefile("rb")
        assert file.read(3) == b"one"
        assert waits.trips == 1

        # Two commands at once: one round trip.
        client.send(b"two")
        client.sendall(b"three")
        answered(server, 8)
        assert client.recv(3) + client.recv(5) == b"twothree"
        assert waits.trips == 2

        # Its answer arrives in a pause.
        client.sendall(b"four")
        waits.let_arrive()
        answered(server, 4)
        assert client.recv_into(bytearray(4)) == 4
        assert waits.trips == 2

        # Here there is no pause, so its answer comes before the next one is sent.
        client.sendall(b"five")
        answered(server, 4)
        client.recv(4)
        client.sendall(b"six")
        answered(server, 3)
        client.recv(3)
        assert waits.trips == 4
        file.close()


class Sealed(socket.socket):
    """As that of TLS: it neither sends nor receives by the methods it derives."""

    def send(self, *args: Any) -> int:
        return 0

    def recv_into(self, *args: Any) -> int:
        return 0


def test_sockets_of_derived_classes_are_counted(load: Load) -> None:
    with load("tables.waits").Waits() as waits, Sealed() as client:
        client.send(b"one")
        client.send(b"two")
        client.recv_into(bytearray(3))

    assert waits.trips == 1


def test_nothing_is_counted_afterwards(load: Load) -> None:
    before = dict(vars(socket.socket))
    with load("tables.waits").Waits():
        assert dict(vars(socket.socket)) != before

    assert dict(vars(socket.socket)) == before
