"""What the scripts do on a machine that lacks something, and what they leave alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = 65534

pytestmark = pytest.mark.skipif(
    not (ROOT / "scripts").is_dir() or shutil.which("bash") is None,
    reason="needs a clone, and bash",
)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "a clone"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def run(
    clone: Path, body: str, user: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run this in a script, after what all of them begin with."""
    begin = "set -euo pipefail; source scripts/_setup.sh\n"
    return subprocess.run(
        ["bash", "-c", begin + body, "scripts/some"],
        cwd=clone,
        user=user,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_virtual_environment_that_is_not_ours_is_moved_and_never_deleted(
    clone: Path,
) -> None:
    kept = clone / ".venv" / "precious"
    kept.parent.mkdir()
    kept.touch()

    done = run(clone, "remove_venv")

    assert done.returncode == 0
    assert "it is .venv.old now" in done.stdout
    assert (clone / ".venv.old" / "precious").exists()

    kept.parent.mkdir()
    kept.touch()
    done = run(clone, "remove_venv")

    assert done.returncode == 1
    assert "move one of them away" in done.stderr
    assert kept.exists() and (clone / ".venv.old" / "precious").exists()


def test_a_link_to_a_virtual_environment_is_not_followed(
    clone: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "ours").touch()
    (clone / ".venv").symlink_to(other)

    assert run(clone, "remove_venv").returncode == 0
    assert (other / "ours").exists()
    assert (clone / ".venv.old").is_symlink()


@pytest.mark.parametrize("mark", ["ours", "made", "installed-test"])
def test_a_virtual_environment_of_the_scripts_is_made_again(
    clone: Path, mark: str
) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / mark).touch()

    assert run(clone, "remove_venv").returncode == 0
    assert not list(clone.glob(".venv*"))


@pytest.mark.skipif(find_spec("pip") is None, reason="this environment has no pip")
@pytest.mark.parametrize(
    ("damage", "works"),
    [("", "yes"), ("-S", "no"), ("/nonexistent", "no")],
)
def test_a_damaged_virtual_environment_is_noticed(
    clone: Path, damage: str, works: str
) -> None:
    """``-S`` stands for one from which packages are missing."""
    done = run(
        clone,
        f"some_python() {{ '{sys.executable}' {damage} \"$@\"; }}\n"
        "venv_python=some_python\n"
        "if works; then echo yes; else echo no; fi",
    )

    assert (done.stdout, done.stderr) == (f"{works}\n", "")


NOTHING_HERE = """
has_server() { false; }
has_venv_module() { false; }
base_python=python3
way_out='; or do something else'
"""


def test_a_user_who_can_install_nothing_is_told_all_at_once(clone: Path) -> None:
    done = run(
        clone,
        NOTHING_HERE + "can_apt() { false; }\n"
        "need_server; need_venv_module; install_missing",
    )

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    packages = "mariadb-server-core mariadb-client-core python3-venv"
    assert f"'apt-get install {packages}'" in done.stderr
    assert done.stderr.endswith("; or do something else\n")


def test_what_is_missing_is_installed_in_one_go(clone: Path) -> None:
    done = run(
        clone,
        NOTHING_HERE + 'can_apt() { true; }; apt-get() { echo "apt-get $*"; }\n'
        "need_server; need_venv_module; install_missing",
    )

    assert done.returncode == 0
    installs = [line for line in done.stdout.splitlines() if " install " in line]
    [line] = installs
    assert line.endswith("mariadb-server-core mariadb-client-core python3-venv")


def test_a_failure_of_apt_get_is_called_that(clone: Path) -> None:
    done = run(
        clone,
        NOTHING_HERE + "can_apt() { true; }\n"
        "apt-get() { echo 'E: no network' >&2; return 100; }\n"
        "need_server; install_missing",
    )

    assert done.returncode == 1
    assert "E: no network\n" in done.stderr
    assert done.stderr.endswith("apt-get failed, see above\n")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that another user can enter; that of pytest's cannot be."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_a_clone_that_cannot_be_written_is_one_clear_line(open_folder: Path) -> None:
    shutil.copytree(ROOT / "scripts", open_folder / "scripts")
    open_folder.chmod(0o555)
    nobody = NOBODY if os.geteuid() == 0 else None
    done = run(open_folder, "need_writable", user=nobody)
    open_folder.chmod(0o755)

    assert done.returncode == 1
    assert done.stderr == (
        f"scripts/some: cannot write into {open_folder.resolve()}, where .venv has its"
        " place; use a clone of your own\n"
    )


@pytest.mark.parametrize("name", ["example", "example-cluster", "release", "test"])
def test_a_script_finds_its_clone_through_a_link(
    clone: Path, tmp_path: Path, name: str
) -> None:
    link = tmp_path / "link"
    link.symlink_to(clone / "scripts" / name)
    done = subprocess.run(
        [link],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 1
    assert "cannot run /nonexistent; set PYTHON" in done.stderr


@pytest.fixture
def matrix(clone: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``scripts/test --matrix`` with a tox that does what ``TOX`` says."""
    with open(clone / "scripts" / "_setup.sh", "a") as file:
        file.write(
            "ensure_venv() { :; }; need_server() { :; }; can_apt() { false; }\n"
            "ensure_flasks() { say obtaining; }; venv_python=./python\n"
        )
    python = clone / "python"
    python.write_text(
        '#!/bin/sh\ncase "$*" in *tox*) eval "$TOX" ;; tests/*)'
        f' exec "{sys.executable}" "$@" ;; *) echo servers ;; esac\n'
    )
    python.chmod(0o755)
    (clone / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "matrix.py", clone / "tests")
    (clone / "docs" / "_static").mkdir(parents=True)

    def run(tox: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["scripts/test", "--matrix", *arguments],
            cwd=clone,
            env={**os.environ, "TOX": tox},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


REPORT = (
    'mkdir -p .tox/py311 && echo \'<x><testsuite tests="3" skipped="1" errors="0"'
    ' failures="0" time="2"/></x>\' >.tox/py311/junit.xml; exit '
)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--notest"]])
def test_a_matrix_that_has_run_no_tests_claims_none(
    clone: Path,
    matrix: Callable[..., subprocess.CompletedProcess[str]],
    arguments: list[str],
) -> None:
    done = matrix("echo usage", *arguments)

    assert done.returncode == 0
    assert "usage" in done.stdout and "passed" not in done.stdout
    assert "matrix.json" not in done.stdout
    assert not (clone / "docs" / "_static" / "matrix.json").exists()
    assert ("obtaining" in done.stdout) == (arguments == ["--notest"])


@pytest.mark.parametrize("code", [0, 1])
def test_a_matrix_tells_which_environments_have_run_and_passed(
    clone: Path, matrix: Callable[..., subprocess.CompletedProcess[str]], code: int
) -> None:
    done = matrix(REPORT + str(code), "-e", "py311")

    assert done.returncode == code
    assert "matrix.json has new rows: py311\n" in done.stdout
    assert ("passed: py311, on servers" in done.stdout) == (code == 0)
    assert ("FAILED: matrix" in done.stdout) == (code == 1)
    assert (clone / "docs" / "_static" / "matrix.json").exists()
