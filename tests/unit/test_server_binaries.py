"""Where the programs of a server are looked for, and how they are started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flask_mysqlpool.testing import ServerNotFound
from flask_mysqlpool.testing.server_binaries import find_engine

VERSION = "mariadbd  Ver 10.5.29-MariaDB-0+deb11u1 for debian-linux-gnu"
#: Runs a program in a folder, without the rights that the real one needs.
CHROOT = 'root=$1; shift; exec "$root$@"'


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Packages of MariaDB, unpacked: its server needs the library that is there."""
    folder = tmp_path / "root"
    library = folder / "usr/lib/x86_64-linux-gnu"
    library.mkdir(parents=True)
    needs = f'case "$LD_LIBRARY_PATH" in *{library}*) ;; *) exit 127; esac'
    program(folder / "usr/sbin/mariadbd", f"{needs}\necho {VERSION!r}")
    program(folder / "usr/bin/mariadb-install-db", "")
    return folder


def test_unpacked_packages_are_used_with_their_own_files_and_libraries(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (folder / "lib/x86_64-linux-gnu").mkdir(parents=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/theirs")

    engine = find_engine("mariadb", folder)

    libraries = f"{folder}/usr/lib/x86_64-linux-gnu:{folder}/lib/x86_64-linux-gnu"
    begin = ["env", f"LD_LIBRARY_PATH={libraries}:/theirs"]
    serve = engine.serve("/tmp/f", 1, [])
    install = engine.install("/tmp/f")
    assert engine.version == "10.5.29"
    assert serve[:3] == [*begin, f"{folder}/usr/sbin/mariadbd"]
    assert install[:3] == [*begin, f"{folder}/usr/bin/mariadb-install-db"]
    # Without it, the host's name would have to be known.
    assert "--force" in install
    for command in (serve, install):
        assert command[3] == "--no-defaults"
        assert f"--basedir={folder}/usr" in command
        assert "--datadir=/tmp/f/data" in command


def test_the_current_folder_is_not_searched_for_libraries(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)

    _, libraries, *_ = find_engine("mariadb", folder).serve("/tmp/f", 1, [])

    assert "" not in libraries.partition("=")[2].split(":")


def test_a_folder_may_have_the_older_names(folder: Path) -> None:
    (folder / "usr/sbin/mariadbd").rename(folder / "usr/sbin/mysqld")
    (folder / "usr/bin/mariadb-install-db").rename(folder / "usr/bin/mysql_install_db")

    engine = find_engine("mariadb", folder)

    assert engine.program == f"{folder}/usr/sbin/mysqld"
    assert engine.installer == f"{folder}/usr/bin/mysql_install_db"


def test_a_whole_system_is_used_under_chroot(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    chroot = program(tmp_path / "bin/chroot", CHROOT)
    monkeypatch.setenv("PATH", f"{chroot.parent}:/usr/bin:/bin")
    program(folder / "bin/sh", "")
    program(folder / "usr/sbin/mariadbd", f"echo {VERSION!r}")

    engine = find_engine("mariadb", folder)

    begin = [str(chroot), str(folder)]
    serve = engine.serve(f"{folder}/tmp/f", 1, [])
    install = engine.install(f"{folder}/tmp/f")
    assert serve[:3] == [*begin, "/usr/sbin/mariadbd"]
    assert install[:3] == [*begin, "/usr/bin/mariadb-install-db"]
    assert engine.base() == f"{folder}/tmp"
    for command in (serve, install):
        assert "--datadir=/tmp/f/data" in command
        assert not any(argument.startswith("--basedir") for argument in command)


def test_a_whole_system_needs_the_rights_for_chroot(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    program(folder / "bin/sh", "")

    with pytest.raises(ServerNotFound, match="needs chroot: run as root"):
        find_engine("mariadb", folder)


def test_nothing_beside_the_folder_is_used(tmp_path: Path) -> None:
    places = f"{tmp_path}/usr/sbin and {tmp_path}/usr/bin"

    with pytest.raises(ServerNotFound, match=places):
        find_engine("mariadb", tmp_path)


def test_a_program_that_does_not_run_says_why(folder: Path) -> None:
    program(folder / "usr/sbin/mariadbd", "echo 'no liburing.so.2' >&2; exit 127")

    with pytest.raises(ServerNotFound) as raised:
        find_engine("mariadb", folder)

    server = f"{folder}/usr/sbin/mariadbd"
    assert str(raised.value).endswith(f". {server} does not run: no liburing.so.2")
