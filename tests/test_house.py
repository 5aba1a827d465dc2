"""Who may import whom, as the design says, read from the imports themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import flask_mysqlpool

PACKAGE = Path(flask_mysqlpool.__file__).parent

MAY_IMPORT: dict[str, set[str]] = {
    "process": set(),
    "errors": set(),
    "stats": set(),
    "foreign": set(),
    "logs": {"foreign"},
    "housekeeper": {"logs", "process"},
    "waiters": {"errors"},
    "convert": set(),
    "hints": set(),
    "hosts": set(),
    "optionfile": {"convert"},
    "reader": {"errors", "convert", "hints", "optionfile"},
    "config": {"convert", "hints", "hosts", "optionfile", "reader"},
    "leaks": {"foreign"},
    "recording": {"config", "leaks", "logs"},
    "lexer": set(),
    "residue": {"lexer"},
    "names": {"process"},
    "wire": {"names"},
    "link": {"process", "wire"},
    "login": set(),
    "connection": {"errors", "config", "leaks", "link", "login", "residue", "stats"},
    "tls": set(),
    "certificates": {"config", "tls"},
    "connector": {
        "foreign",
        "certificates",
        "config",
        "connection",
        "hosts",
        "link",
        "wire",
    },
    "cursors": {"errors", "lexer", "link"},
    "handle": {
        "process",
        "errors",
        "connection",
        "cursors",
        "leaks",
        "link",
        "recording",
        "residue",
    },
    "connects": {"waiters"},
    "inventory": {"errors", "config", "connection", "connects", "stats", "waiters"},
    "reports": {
        "foreign",
        "errors",
        "connection",
        "inventory",
        "leaks",
        "link",
        "stats",
    },
    "liaison": {"errors", "config"},
    "lending": {
        "process",
        "errors",
        "config",
        "connection",
        "connector",
        "connects",
        "handle",
        "housekeeper",
        "inventory",
        "liaison",
        "link",
        "logs",
        "recording",
        "reports",
        "stats",
        "waiters",
    },
    "pool": {
        "process",
        "config",
        "connection",
        "handle",
        "inventory",
        "leaks",
        "lending",
        "link",
        "logs",
        "reports",
        "stats",
    },
    "backends": {"config", "connection", "pool"},
    "signals": {"logs", "stats"},
    "health": {"pool", "stats"},
    "transaction": {"connection", "errors", "handle"},
    "files": set(),
    "past": {"config", "stats"},
    "board": {"files", "past"},
    "budget": {"process", "errors", "board", "files"},
    "presence": {
        "foreign",
        "process",
        "board",
        "budget",
        "housekeeper",
        "logs",
        "past",
        "pool",
        "stats",
    },
    "fleet": {"board", "config", "files", "past"},
    "server": {"config", "connection", "connector", "foreign"},
    "check": {"board", "config", "fleet", "server"},
    "tables": {"board", "check", "foreign"},
    "cli": {"board", "check", "config", "convert", "fleet", "server", "tables"},
    "state": {
        "connection",
        "errors",
        "config",
        "stats",
        "handle",
        "pool",
        "backends",
        "board",
        "presence",
        "signals",
        "logs",
        "recording",
    },
    "extension": {
        "errors",
        "config",
        "stats",
        "handle",
        "pool",
        "cli",
        "health",
        "logs",
        "recording",
        "state",
        "transaction",
    },
}
WITHOUT_FLASK = set(MAY_IMPORT) - {"extension", "state", "cli", "signals"}


def imports(module: str) -> tuple[set[str], set[str]]:
    """The rooms of ours, and the packages of others, that a module imports."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            ours |= {node.module} if node.module else {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            others.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return {name.split(".")[0] for name in ours}, others


def test_every_module_has_its_room_in_the_table() -> None:
    rooms = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}

    assert rooms == set(MAY_IMPORT)


@pytest.mark.parametrize("module", sorted(MAY_IMPORT))
def test_a_module_imports_only_what_its_room_allows(module: str) -> None:
    ours, others = imports(module)

    assert ours <= MAY_IMPORT[module]
    if module in WITHOUT_FLASK:
        assert "flask" not in others


@pytest.mark.parametrize(
    ("package", "modules"),
    [
        ("dbutils", {"errors", "link", "pool"}),
        (
            "pymysql",
            {
                "errors",
                "link",
                "login",
                "connection",
                "certificates",
                "connector",
                "wire",
                "handle",
                "cursors",
                "config",
                "optionfile",
                "reader",
                "convert",
                "server",
                "transaction",
                "recording",
                "check",
                "cli",
            },
        ),
    ],
)
def test_what_knows_the_drivers(package: str, modules: set[str]) -> None:
    knows = {module for module in MAY_IMPORT if package in imports(module)[1]}

    assert knows <= modules


MODULES = sorted(PACKAGE.rglob("*.py"))

#: Lines of a function without its docstring.
LONGEST_FUNCTION = 60


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_function_is_too_long(path: Path) -> None:
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]

    assert [f.name for f in functions if lines_of(f) > LONGEST_FUNCTION] == []


def test_nothing_imports_the_test_tools() -> None:
    assert not any("testing" in imports(module)[0] for module in MAY_IMPORT)


def test_the_monitor_knows_what_is_published_and_no_pool() -> None:
    modules = {path.stem for path in (PACKAGE / "monitor").glob("*.py")}
    ours = {name for module in modules for name in imports(f"monitor/{module}")[0]}

    assert ours - modules <= {
        *("board", "config", "fleet", "foreign", "logs", "past"),
        *("process", "server", "stats"),
    }


def test_nothing_imports_the_monitor() -> None:
    others = [p for p in PACKAGE.rglob("*.py") if "monitor" not in p.parts]
    names = [p.relative_to(PACKAGE).with_suffix("").as_posix() for p in others]

    assert len(names) > len(MAY_IMPORT)
    assert not any("monitor" in imports(name)[0] for name in names)


#: What the standard library may be asked for without its loggers being touched.
LEVELS = {"DEBUG", "INFO", "WARNING", "ERROR"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_nothing_is_logged_but_by_the_one_function_that_cannot_raise(
    path: Path,
) -> None:
    if path.stem == "logs":
        return
    tree = ast.parse(path.read_text("utf-8"))
    given = set[ast.AST]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            given |= set(node.args[:1]) if node.func.id == "log" else set()
        elif isinstance(node, ast.Import):
            assert not any(a.name.startswith("logging") for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "logging":
            assert {alias.name for alias in node.names} <= LEVELS
    loggers = [n for n in ast.walk(tree) if getattr(n, "attr", "") == "logger"]

    assert set(loggers) <= given
