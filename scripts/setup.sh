# Brings a machine and a checkout to the point where unifs runs. Sourced by the scripts beside it:
#
#     source "$root/scripts/setup.sh"
#     set_up requirements.lock        # afterwards $python is the interpreter to run
#
# Owns the virtual environment: .venv in the checkout, or a directory in the user's cache where the
# checkout cannot be written. It holds exactly what a lock file names, checked by hash. A copy of the
# lock inside marks the end of a successful set-up; while it matches, set_up costs one `cmp`.
# Never writes to standard output: that belongs to the command that the user asked for.

# root is the checkout; the sourcing script sets it.
: "${root:?}"

# An empty HOME is no home: the password database knows it.
[ -n "${HOME:-}" ] || unset HOME
# Tools of the system administrator (mkfs, losetup) are not on every user's PATH.
PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}:/usr/local/sbin:/usr/sbin:/sbin

say() { printf 'unifs: %s\n' "$*" >&2; }

fail() {
    say "$@"
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# set_up LOCK [COMMAND:PACKAGE…]: the environment holds LOCK, and the machine what it needs to run it
# and, with their Debian packages, the commands named. Sets python, PYTHONPATH.
set_up() {
    local lock=$1
    shift
    venv=$root/.venv
    if ! is_installed "$lock"; then
        if ! can_write_venv; then
            local name
            name=$(printf %s "$root" | sha256sum)
            venv=${XDG_CACHE_HOME:-$(echo ~)/.cache}/unifs/venv-${name:0:16}
            mkdir -p "${venv%/*}" || fail "neither $root nor ${venv%/*} can be written"
        fi
        is_installed "$lock" || install_locked "$lock"
    fi
    require_commands "$@"
    python=$venv/bin/python
    # Only the checkout: what a user's PYTHONPATH holds could shadow a locked package.
    unset PYTHONHOME
    export PYTHONPATH=$root
    # Byte code of a checkout that cannot be written is kept beside its environment.
    [ "$venv" = "$root/.venv" ] || export PYTHONPYCACHEPREFIX=$venv/bytecode
}

is_installed() { [ -x "$venv/bin/python" ] && cmp -s "$root/$1" "$venv/locks/$1"; }

can_write_venv() { if [ -e "$venv" ]; then [ -w "$venv" ]; else [ -w "$root" ]; fi; }

# --- the machine ----------------------------------------------------------------------------------

# Sets base_python to the newest-enough interpreter's own path, and base_version to its "3.x".
find_python() {
    local name found
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        # Run it: a shim on PATH may stand for nothing. Its real path outlives an active virtualenv.
        found=$("$name" -c 'if 1:
            import os, sys
            if sys.version_info >= (3, 11):
                print(os.path.realpath(sys.executable), "%d.%d" % sys.version_info[:2])
            ' 2>/dev/null) || continue
        [ -n "$found" ] || continue
        base_python=${found% *} base_version=${found##* }
        return 0
    done
    return 1
}

# Prints the Debian packages that are missing to build and run what the locks name.
missing_for_build() {
    have fusermount3 || echo fuse3
    have gcc || echo gcc libc6-dev
    have pkg-config || echo pkg-config
    if ! pkg-config --exists fuse3 2>/dev/null; then echo libfuse3-dev; fi
    "$base_python" -c 'import ensurepip, venv' 2>/dev/null || echo "python$base_version-venv"
    "$base_python" -c 'if 1:
        import os.path, sysconfig
        raise SystemExit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))
        ' || echo "python$base_version-dev"
}

# require_commands COMMAND:PACKAGE…: installs the packages of those commands that are not there.
require_commands() {
    local pair packages=()
    for pair in "$@"; do
        have "${pair%%:*}" || packages+=("${pair#*:}")
    done
    [ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}"
}

# install_packages NAME…: with apt-get where we may, else says what to do and ends.
install_packages() {
    local as_root=() log
    if [ "$(id -u)" -ne 0 ]; then
        if have sudo && sudo -n true 2>/dev/null; then as_root=(sudo -n); else as_root=(false); fi
    fi
    if ! have apt-get; then
        fail "this machine lacks what Debian calls: $*. Install it, then run this again."
    elif [ "${as_root[*]:-}" = false ]; then
        fail "this machine lacks: $*. Install it, then run this again:
    sudo apt-get install $*"
    fi
    say "installing $* (apt-get)"
    log=$(mktemp)
    # An update that fails leaves the lists as they were; whether those suffice, install tells.
    "${as_root[@]}" apt-get update >"$log" 2>&1 || true
    if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y \
        --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        fail "apt-get could not install: $* (all of its output: $log)"
    fi
    rm -f "$log"
}

# --- the environment --------------------------------------------------------------------------------

install_locked() {
    local lock=$1 guard started=$SECONDS
    exec {guard}>"$venv.lock"
    if ! flock --nonblock "$guard"; then
        say "waiting for another set-up of $venv"
        flock "$guard"
    fi
    if ! is_installed "$lock"; then
        find_python || { have apt-get && install_packages python3 && find_python; } ||
            fail "Python 3.11 or newer is needed; python3 here is: $(python3 --version 2>&1)"
        local packages
        packages=$(missing_for_build)
        # Unquoted: one package a word.
        [ -z "$packages" ] || install_packages $packages
        make_venv
        fill_venv "$lock"
        say "set up in $((SECONDS - started)) s"
    fi
    # Closed here, so that no daemon started later inherits it.
    exec {guard}>&-
}

# An environment whose interpreter is gone or another one is made anew.
make_venv() {
    if [ "$(readlink -f "$venv/bin/python" 2>/dev/null)" != "$base_python" ]; then
        rm -rf "$venv"
        say "making $venv with Python $base_version"
        "$base_python" -m venv "$venv" >"$venv.log" 2>&1 || fail_with_log "could not make $venv"
    fi
}

# Installs LOCK. Build tools come from a lock too, so that nothing is downloaded without its hash.
fill_venv() {
    local lock=$1 file
    say "installing the packages of $lock"
    rm -rf "$venv/locks"
    for file in requirements-build.lock "$lock"; do
        "$venv/bin/python" -P -m pip install --quiet --disable-pip-version-check --no-input \
            --require-hashes --no-deps --no-build-isolation -r "$root/$file" \
            >"$venv.log" 2>&1 </dev/null || fail_with_log "could not install $file"
    done
    "$venv/bin/python" -P -c 'import apsw, pyfuse3, trio' >"$venv.log" 2>&1 ||
        fail_with_log "what was installed does not run"
    mkdir "$venv/locks"
    # The other locks hold requirements.lock and more, at the same versions.
    cp "$root/requirements.lock" "$venv/locks/"
    cp "$root/$lock" "$venv/locks/"
    rm -f "$venv.log"
}

fail_with_log() {
    tail -n 20 "$venv.log" >&2
    fail "$1 (all of its output: $venv.log)"
}
