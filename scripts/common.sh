# Sourced by the other scripts: where things are, and the few steps that more than one of them takes.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${PALATE_VENV:-$root/.venv}
lock=$root/requirements/cpu.lock
torch_index=https://download.pytorch.org/whl/cpu

say() { printf '%s\n' "$*" >&2; }

fail() { # fail WHAT FIX
    say "palate: $1"
    say "    fix: $2"
    exit 1
}

# A lock file pins the interpreter too: the versions in it were resolved and tested with this one.
find_python() {
    local candidate version=
    for candidate in ${PALATE_PYTHON:-python3.11 python3}; do
        command -v "$candidate" >/dev/null || continue
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        [ "$version" = 3.11 ] && { command -v "$candidate"; return; }
    done
    fail "Python 3.11 is needed, found ${version:-none}" \
        "install it (Debian 12: apt-get install python3 python3-venv) or set PALATE_PYTHON to a python3.11"
}

# pip finds torch's CPU build in its own find-links folder where one is configured, else PyTorch hosts it.
# Torch is installed by itself so that no other package is ever looked up in that index.
pip_install_torch() { # pip_install_torch PIP REQUIREMENT
    local sources=(--index-url "$torch_index")
    if "$1" config list 2>/dev/null | grep -q 'find-links'; then sources=(); fi
    "$1" install --no-deps --no-input "${sources[@]}" "$2"
}

# Debian packages that only tests and benchmarks use. Without root nothing is installed; the line says what that costs.
want_debian_package() { # want_debian_package NAME FILE-IT-BRINGS WHAT-IS-LOST
    compgen -G "$2" >/dev/null && return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "palate: $1 is not installed, so $3 (as root: apt-get install $1)"
        return 0
    fi
    say "palate: installing the Debian package $1"
    if ! { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" ||
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1"; }; } \
        </dev/null >/dev/null 2>&1; then
        say "palate: apt-get install $1 failed, so $3"
    fi
}
