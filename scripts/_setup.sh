# shellcheck shell=bash
# Sourced by the other scripts: what they need and a fresh clone lacks.
#
# Leaves the shell in the root of the clone, with "$venv_python" ready to use.

say() { printf 'scripts/%s: %s\n' "${0##*/}" "$*"; }
die() { say "$*" >&2; exit 1; }

cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." || exit
[ -t 0 ] || exec </dev/null
venv_python=$PWD/.venv/bin/python

# What is obtained once, for all clones.
cache_folder=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/flask_mysqlpool

# Where scripts/mysql-server puts MySQL, and the tests look for it.
mysql_folder=${FLASK_MYSQLPOOL_MYSQL_ROOT:-$cache_folder/mysql}
has_mysql() { [ -x "$1/usr/sbin/mysqld" ]; }

# What the user has set for an app, or for Python, is not meant for ours.
unset PYTHONHOME PYTHONPATH PYTHONSTARTUP PYTHONWARNINGS PIP_USER

# Nor are settings, of the app or of this package. Only which
# MariaDB and MySQL to test against stay.
forget_settings() {
    local name
    for name in $(compgen -e); do
        case $name in
        FLASK_MYSQLPOOL_MARIADB_ROOT | FLASK_MYSQLPOOL_MYSQL_ROOT) ;;
        FLASK_* | MYSQLPOOL_*) unset "$name" ;;
        esac
    done
}

can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

apt_install() {
    can_apt || return 1
    say "installing $*"
    apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends "$@"
}

# Where this machine gets Debian from; there may be a mirror nearer than Debian's own.
find_mirror() {
    local found format="\$(REPO_URI)"
    mirrors() {
        apt-get indextargets --format "$format" 'Created-By: Packages' 'Label: Debian'
    }
    found=$(mirrors)
    [ "$found" ] || { apt-get update -qq && found=$(mirrors); }
    found=${found%%$'\n'*}
    [ "$found" ] && printf '%s\n' "${found%/}"
}

# What is not here: Debian's packages, and in words. Said, or installed, all at once.
missing_packages=()
missing=

is_missing() {
    missing=${missing:+$missing, and }$1
    shift
    missing_packages+=("$@")
}

has_server() {
    local PATH=$PATH:/usr/sbin
    command -v mariadbd >/dev/null && command -v mariadb-install-db >/dev/null
}

# The programs alone: Debian's package mariadb-server would also start a server.
need_server() {
    has_server || is_missing "MariaDB's programs (mariadbd, mariadb-install-db)" \
        mariadb-server-core mariadb-client-core
}

# Debian keeps what venv needs in a package of its own.
has_venv_module() { "$base_python" -c 'import ensurepip, venv' 2>/dev/null; }
need_venv_module() {
    has_venv_module || is_missing "the module venv of $base_python" python3-venv
}

# What else a user can do who can install nothing; set by the script.
way_out=

install_missing() {
    local brew=
    [ "$missing" ] || return 0
    if can_apt; then
        apt_install "${missing_packages[@]}" || die "apt-get failed, see above"
        return
    fi
    has_server || brew=" (macOS: 'brew install mariadb')"
    die "not found: $missing. Install first: as root" \
        "'apt-get install ${missing_packages[*]}' on Debian or Ubuntu$brew$way_out"
}

# What the tests of clusters need, and scripts/example-cluster: Galera and HAProxy.
haproxy_folder=$cache_folder/haproxy

has_galera() {
    [ -e /usr/lib/galera/libgalera_smm.so ] ||
        [ -e /usr/lib64/galera-4/libgalera_smm.so ]
}

has_haproxy() {
    local PATH=$PATH:/usr/sbin:$haproxy_folder/usr/sbin
    command -v haproxy >/dev/null
}

# The program alone, and what it is linked to: Debian's package would also start it.
unpack_haproxy() {
    can_apt || return 1
    local work done=1
    say "unpacking HAProxy into $haproxy_folder"
    work=$(mktemp -d)
    apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get satisfy -yqq --no-install-recommends \
            "$(apt-cache show --no-all-versions haproxy | sed -n 's/^Depends: //p')" &&
        (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root haproxy &&
            dpkg -x haproxy_*.deb haproxy) &&
        mkdir -p "${haproxy_folder%/*}" && rm -rf "$haproxy_folder" &&
        mv -T "$work/haproxy" "$haproxy_folder" && done=0
    rm -rf "$work"
    return $done
}

ensure_cluster() {
    { has_galera || apt_install galera-4; } && { has_haproxy || unpack_haproxy; }
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

# A stamp is written when what it stands for is complete, so whatever was interrupted
# on its way, or copied here from another place, is made again.
stamped() { [ "$(cat ".venv/$1" 2>/dev/null)" = "$2" ]; }

# Isolated, or everything in the clone would count as installed.
works() {
    "$venv_python" -m pip --version && "$venv_python" -I -c '
import dbutils, flask, importlib.util, pymysql, sys
sys.exit(importlib.util.find_spec("flask_mysqlpool") is None)'
} >/dev/null 2>&1

# Ours to delete is only what bears our mark, the first thing in it, or our stamps.
is_ours() {
    [ ! -L .venv ] &&
        { [ -e .venv/ours ] || [ -e .venv/made ] || compgen -G '.venv/installed-*'; }
} >/dev/null

remove_venv() {
    [ -e .venv ] || [ -L .venv ] || return 0
    if is_ours; then
        rm -rf .venv
    elif [ -e .venv.old ] || [ -L .venv.old ]; then
        die "there is a .venv that this script has not made, and a .venv.old as well;" \
            "move one of them away"
    else
        mv .venv .venv.old
        say ".venv was not made by this script; it is .venv.old now"
    fi
}

create_venv() {
    remove_venv
    say "creating .venv"
    mkdir .venv
    touch .venv/ours
    "$base_python" -m venv .venv
    # Dependency groups need pip 25.1.
    "$venv_python" -m pip install -qq --upgrade 'pip>=25.1'
}

need_writable() {
    [ -w . ] ||
        die "cannot write into $PWD, where .venv has its place; use a clone of your own"
    [ ! -d .venv ] || [ -w .venv ] ||
        die "cannot write into .venv: somebody else has made it, perhaps root; remove it"
}

# ensure_venv NAME [PIP-ARGUMENT...]: .venv, with the project and what NAME needs.
ensure_venv() {
    local name=$1 identity wanted create=
    shift
    find_python
    identity="$PWD $("$base_python" -c 'import sys; print(sys.base_prefix, sys.version)')"
    wanted=$(cksum pyproject.toml)
    # Two scripts may be started at once; where there is no flock, one after the other.
    exec 9<"$PWD"
    ! command -v flock >/dev/null || flock 9
    if ! stamped made "$identity" || ! works; then
        create=yes
        need_venv_module
    fi
    install_missing
    if [ "$create" ]; then
        need_writable
        has_venv_module || die "$base_python has no module venv; set PYTHON to another"
        create_venv
    fi
    if ! stamped "installed-$name" "$wanted"; then
        need_writable
        say "installing into .venv what '$name' needs"
        rm -f .venv/made
        "$venv_python" -m pip install -qq --editable . "$@"
        printf '%s\n' "$wanted" >".venv/installed-$name"
        printf '%s\n' "$identity" >.venv/made
    fi
    exec 9<&-
}

# Other versions of Flask, each in a folder that is put before the one in .venv.
ensure_flasks() {
    local name requirements
    while read -r name requirements; do
        [ -d ".venv/flasks/$name" ] && continue
        say "installing Flask $name for the tests of contexts"
        rm -rf ".venv/flasks/$name.new"
        # shellcheck disable=SC2086
        "$venv_python" -m pip install -qq --target ".venv/flasks/$name.new" $requirements
        mv ".venv/flasks/$name.new" ".venv/flasks/$name"
    done < <("$venv_python" tests/contexts.py --versions)
}

# Options of pytest. More processes than a small machine has cores: tests wait as much as
# they compute.
side_by_side=(--numprocesses=4 --dist=loadfile --no-loadscope-reorder)
