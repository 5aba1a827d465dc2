"""Which room may import which, as the design says, read from the imports themselves."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

import flask_mysqlpool

PACKAGE = Path(flask_mysqlpool.__file__).parent

#: Imports go one way. A room is a folder of the package, or a module at its top.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "pool.driver": {"errors", "config"},
    "pool.sql": {"errors", "pool.driver"},
    "pool": {"errors", "config", "pool.driver", "pool.sql"},
    "workers": {"errors", "config", "pool.driver", "pool"},
    "signals": {"pool.driver", "pool"},
    "cli": {"config", "pool.driver", "pool.sql", "pool", "workers"},
    "extension": {
        "errors",
        "config",
        "pool.driver",
        "pool",
        "workers",
        "signals",
        "cli",
    },
    "monitor": {"config", "pool.driver", "pool", "workers"},
    "metrics": {"pool.driver", "pool", "workers"},
    "contrib": {"pool", "extension"},
    "testing": {"config", "pool.driver", "pool", "extension"},
}
WITHOUT_FLASK = {"errors", "config", "pool.driver", "pool.sql", "pool", "workers"}

#: The rooms, or modules, that know the packages below this one.
KNOW: dict[str, set[str]] = {
    "pymysql": {
        *("errors", "config", "pool.driver", "pool.sql", "pool"),
        *("workers.mysql_server", "cli.scripts", "contrib", "testing"),
    },
    "dbutils": {"errors", "pool.driver.transport", "pool.pool"},
}

MODULES = sorted(PACKAGE.rglob("*.py"))
#: Entries of a folder, beside ``__init__.py`` and ``py.typed``.
MOST_ENTRIES = 11


def name_of(path: Path) -> str:
    """Return the dotted name of a module in the package; "" for the package itself."""
    names = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def room_of(module: str) -> str:
    """Return the room that a module is in."""
    head, _, rest = module.partition(".")
    inner = rest.partition(".")[0]
    return f"pool.{inner}" if inner in ("driver", "sql") and head == "pool" else head


NAMES = {name_of(path): path for path in MODULES}


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Return the modules of ours, and the packages of others, that a module imports."""
    ours, others = set[str](), set[str]()
    package = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1]]
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                full = ".".join([*base, alias.name])
                ours.add(full if full in NAMES else ".".join(base))
        elif isinstance(node, ast.ImportFrom):
            others.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return ours, others


def test_every_folder_and_module_is_a_room_of_the_table() -> None:
    assert {room_of(name) for name in NAMES} - {""} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_its_room_allows(path: Path) -> None:
    name = name_of(path)
    if not name:
        return
    room, (ours, others) = room_of(name), imports(path)

    assert {room_of(other) for other in ours} <= {room, *MAY_IMPORT[room]}
    if room in WITHOUT_FLASK:
        assert "flask" not in others


@pytest.mark.parametrize("package", KNOW)
def test_what_knows_the_drivers(package: str) -> None:
    knows = {name for name, path in NAMES.items() if package in imports(path)[1]}

    assert {n for n in knows if not {n, room_of(n)} & KNOW[package]} == set()


def test_a_folder_is_taken_in_at_a_glance() -> None:
    for folder in {path.parent for path in MODULES}:
        entries = {path.name for path in folder.iterdir()}

        assert len(entries - {"__init__.py", "__pycache__", "py.typed"}) <= MOST_ENTRIES


#: Lines of a function without its docstring.
LONGEST_FUNCTION = 60


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_function_is_too_long(path: Path) -> None:
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]

    assert [f.name for f in functions if lines_of(f) > LONGEST_FUNCTION] == []


#: What the standard library may be asked for without its loggers being touched.
LEVELS = {"DEBUG", "INFO", "WARNING", "ERROR"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_logged_but_by_the_one_function_that_cannot_raise(
    path: Path,
) -> None:
    if path.stem == "logs":
        return
    tree = ast.parse(path.read_text("utf-8"))
    given = set[ast.AST]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            given |= (
                {k.value for k in node.keywords} if node.func.id == "log" else set()
            )
        elif isinstance(node, ast.Import):
            assert not any(a.name.startswith("logging") for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "logging":
            assert {alias.name for alias in node.names} <= LEVELS
    loggers = [n for n in ast.walk(tree) if getattr(n, "attr", "") == "logger"]

    assert set(loggers) <= given


#: What applications import; only these paths, of all modules, stay where they are.
PUBLIC = {
    "flask_mysqlpool": """CommitUnknown ConfigError ConnectionLost ConnectionReturned
        ConnectionShared Health MySQLPool NotOneRow NullPool Observer Pool PoolClosed
        PoolConfig PoolError PoolFull PoolStats PoolTimeout PooledConnection
        PooledCursor RecordedQuery Row RowCursor SSRowCursor ServerUnavailable
        TransactionError TypedCursor close_db get_db get_recorded_queries identifier""",
    "flask_mysqlpool.errors": """CommitUnknown ConfigError ConnectionLost
        ConnectionReturned ConnectionShared NotOneRow PoolClosed PoolError PoolFull
        PoolTimeout ServerUnavailable TransactionError""",
    "flask_mysqlpool.pool": "Pool",
    "flask_mysqlpool.signals": """connect_failed connection_checked_in
        connection_checked_out connection_created connection_discarded leak_detected
        pool_reset pool_timeout""",
    "flask_mysqlpool.monitor": "create_monitor is_local",
    "flask_mysqlpool.metrics.prometheus": "PoolCollector",
    "flask_mysqlpool.metrics.opentelemetry": "instrument",
    "flask_mysqlpool.contrib.peewee": "PooledDatabase",
    "flask_mysqlpool.testing": """FaultProxy LocalServer ServerFailed ServerNotFound
        assert_queries rolled_back""",
    "flask_mysqlpool.testing.fixtures": "mysql_rollback mysql_server",
}


@pytest.mark.parametrize("path", PUBLIC)
def test_public_paths_stay(path: str) -> None:
    module = import_module(path)

    names = PUBLIC[path].split()
    assert [name for name in names if not hasattr(module, name)] == []
    assert set(names) == set(getattr(module, "__all__", names))
