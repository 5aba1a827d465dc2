# shellcheck shell=bash
# Sourced by the other scripts: what they need and a fresh clone lacks.
#
# Leaves the shell in the root of the clone, with "$venv_python" ready to use.

say() { printf 'scripts/%s: %s\n' "${0##*/}" "$*"; }
die() { say "$*" >&2; exit 1; }

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
[ -t 0 ] || exec </dev/null
venv_python=$PWD/.venv/bin/python

# What the user has set for an app, or for Python, is not meant for ours.
unset PYTHONHOME PYTHONPATH PYTHONSTARTUP PYTHONWARNINGS PIP_USER

apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "installing $*"
    apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends "$@"
}

# The programs alone: Debian's package mariadb-server would also start a server.
ensure_server() {
    local PATH=$PATH:/usr/sbin
    command -v mariadbd >/dev/null && command -v mariadb-install-db >/dev/null ||
        apt_install mariadb-server-core mariadb-client-core ||
        die "no MariaDB server found (mariadbd, mariadb-install-db). Install it first:" \
            "as root 'apt-get install mariadb-server' on Debian or Ubuntu," \
            "or 'brew install mariadb' on macOS"
}

# The interpreter that PYTHON, by default python3, stands for outside of any virtual
# environment: the one that is active may be the one to be replaced.
find_python() {
    local python=${PYTHON:-python3}
    base_python=$("$python" -c 'import sys; print(sys._base_executable)') ||
        die "cannot run $python; set PYTHON to a Python 3.10 or newer"
    "$base_python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "$base_python is too old; set PYTHON to a Python 3.10 or newer"
}

# Debian keeps what venv needs in a package of its own.
ensure_venv_module() {
    "$base_python" -c 'import ensurepip, venv' 2>/dev/null ||
        apt_install python3-venv && "$base_python" -c 'import ensurepip, venv' ||
        die "$base_python has no venv module. Install it first: as root" \
            "'apt-get install python3-venv' on Debian or Ubuntu"
}

# A stamp is written when what it stands for is complete, so whatever was interrupted
# on its way, or copied here from another place, is made again.
stamped() { [ "$(cat ".venv/$1" 2>/dev/null)" = "$2" ]; }

# ensure_venv NAME [PIP-ARGUMENT...]: .venv, with the project and what NAME needs.
ensure_venv() {
    local name=$1 identity wanted
    shift
    find_python
    identity="$PWD $("$base_python" -c 'import sys; print(sys.base_prefix, sys.version)')"
    wanted=$(cksum pyproject.toml)
    # Two scripts may be started at once; where there is no flock, one after the other.
    exec 9<"$PWD"
    ! command -v flock >/dev/null || flock 9
    if ! stamped made "$identity" || ! "$venv_python" -c '' 2>/dev/null; then
        ensure_venv_module
        say "creating .venv"
        rm -rf .venv
        "$base_python" -m venv .venv
        # Dependency groups need pip 25.1.
        "$venv_python" -m pip install -qq --upgrade 'pip>=25.1'
    fi
    if ! stamped "installed-$name" "$wanted"; then
        say "installing into .venv what '$name' needs"
        rm -f .venv/made
        "$venv_python" -m pip install -qq --editable . "$@"
        printf '%s\n' "$wanted" >".venv/installed-$name"
        printf '%s\n' "$identity" >.venv/made
    fi
    exec 9<&-
}
