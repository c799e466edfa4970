# shellcheck shell=bash
# What quickstart, tour and test share: words, steps with their time, set-up of the host. To be sourced.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Administrators' programs (mke2fs, ip) are not in every user's search path.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

if [[ -t 2 && -z ${NO_COLOR:-} && -z ${HOSTEL_CI:-} ]]; then
    bold=$'\e[1m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
    bold='' red='' green='' plain=''
fi

# say TEXT: one line of talk.
say() { printf '%s\n' "$*" >&2; }

# fail TEXT [NEXT STEP]: one clear error, and the end.
fail() {
    printf '%serror:%s %s\n' "$red" "$plain" "$1" >&2
    [[ $# -lt 2 ]] || printf '  next: %s\n' "$2" >&2
    exit 1
}

steps_done=()
steps_failed=0

# step TITLE COMMAND...: runs a command as a step that is told with the time it took. A step that fails ends the script,
# but in CI the others still run. Never call it in a condition: bash would ignore `set -e` inside.
step() {
    local title=$1 status=0 start=$SECONDS
    shift
    printf '%s==> %s%s\n' "$bold" "$title" "$plain" >&2
    set +e
    (
        set -e
        "$@"
    )
    status=$?
    set -e
    local took=$((SECONDS - start)) word="${green}ok${plain}"
    if ((status != 0)); then
        word="${red}FAILED (exit $status)${plain}"
        steps_failed=$((steps_failed + 1))
    fi
    steps_done+=("$(printf '%-42s %5d s  %s' "$title" "$took" "$word")")
    printf '    %s after %d s\n' "$word" "$took" >&2
    if ((status != 0)) && [[ -z ${HOSTEL_CI:-} ]]; then
        summary || exit 1
    fi
}

# summary: all steps with their times; fails when one did.
summary() {
    say ""
    say "${bold}Summary${plain}"
    local line
    for line in "${steps_done[@]}"; do say "  $line"; done
    say "  $(printf '%-42s %5d s' 'in all' "$SECONDS")"
    ((steps_failed == 0))
}

# as_root COMMAND...: runs a command as root, by sudo when that is needed.
as_root() {
    if ((EUID == 0)); then
        "$@"
    elif ! command -v sudo >/dev/null; then
        fail "root is needed for: $*" "run that command as root, then this script again"
    elif [[ -t 0 ]]; then
        sudo "$@"
    else
        sudo -n "$@" || fail "sudo asks for a password, but there is no terminal; needed is: $*" \
            "run that command as root, then this script again"
    fi
}

missing=()

# want PACKAGE WHAT...: notes a package unless one of the named programs, or files by their full path, is there.
want() {
    local package=$1 what
    shift
    for what in "$@"; do
        if [[ $what == /* ]]; then
            [[ ! -e $what ]] || return 0
        elif command -v "$what" >/dev/null; then
            return 0
        fi
    done
    missing+=("$package")
}

# want_for_running: what building and running Hostel takes.
want_for_running() {
    want gcc cc gcc clang
    want libc6-dev /usr/include/stdlib.h
    want qemu-system-x86 qemu-system-x86_64
    want mmdebstrap mmdebstrap
    want debian-archive-keyring /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/debian-archive-keyring.pgp
    want uidmap newuidmap
    # The way out of the rootless network; without it the VM has QEMU's slower one.
    want passt pasta
}

# want_for_tests: what the tests compare with.
want_for_tests() {
    # Debian's other busybox needs libraries.
    if ! command -v busybox >/dev/null || ldd "$(command -v busybox)" >/dev/null 2>&1; then
        missing+=(busybox-static)
    fi
    want bzip2 bzip2
    want e2fsprogs mke2fs
    want acl setfacl
    want attr setfattr
    want libcap2-bin setcap
    want iproute2 ip
    want iptables iptables
    want nftables nft
    want iputils-ping ping
    want procps sysctl
    want python3 python3
    want kmod modprobe
    want util-linux unshare
}

# install_missing: says what will be installed, and installs it.
install_missing() {
    if ((${#missing[@]} == 0)); then
        say "    everything that is needed is installed"
        return 0
    fi
    command -v apt-get >/dev/null ||
        fail "these Debian packages, or what your distribution calls them, are missing: ${missing[*]}" \
            "install them, then run this script again"
    say "    will be installed by apt: ${missing[*]}"
    local package known=1
    for package in "${missing[@]}"; do
        apt-cache show --no-all-versions "$package" >/dev/null 2>&1 || known=0
    done
    # Lists that are missing or old are fetched first or on the second try.
    if ((!known)) || ! apt_install; then
        as_root apt-get update -qq
        apt_install || fail "apt could not install: ${missing[*]}" "sudo apt-get install ${missing[*]}"
    fi
}

apt_install() {
    local out=/dev/null
    # What it writes is progress, and errors go to standard error.
    [[ ! -t 2 ]] || out=/dev/stderr
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
        --option Dpkg::Use-Pty=0 "${missing[@]}" >"$out"
}

# need_rust: fails unless cargo of a new enough toolchain is there.
need_rust() {
    local least=89 version
    [[ ! -f $HOME/.cargo/env ]] || command -v cargo >/dev/null || PATH=$HOME/.cargo/bin:$PATH
    version=$(cd "$root" && cargo --version 2>/dev/null) ||
        fail "there is no Rust toolchain (no working 'cargo')" "install Rust 1.$least or newer, see https://www.rust-lang.org/tools/install"
    if [[ ! $version =~ ^cargo\ ([0-9]+)\.([0-9]+) ]] || ((BASH_REMATCH[1] == 1 && BASH_REMATCH[2] < least)); then
        fail "'$version' is too old, 1.$least or newer is needed" "rustup update stable"
    fi
}

# need_host: fails on hosts that cannot work.
need_host() {
    [[ $(uname -s) == Linux && $(uname -m) == x86_64 ]] ||
        fail "Hostel runs on Linux on x86-64, this is $(uname -s) on $(uname -m)"
}

# The client; build puts it there.
hostel=$root/target/release/hostel

# build: the programs, in target/release.
build() { cargo xtask build --release; }

# install_kernel: fetches and verifies a kernel, once.
install_kernel() {
    if "$hostel" kernel list --json 2>/dev/null | grep -q '"release"'; then
        say "    a kernel is installed already"
    else
        "$hostel" kernel install
    fi
}

# install_distro SOURCE NAME: makes a distribution, once.
install_distro() {
    if "$hostel" list --quiet 2>/dev/null | grep -qx "$2"; then
        say "    $2 is installed already"
    else
        "$hostel" install "$1" --name "$2"
    fi
}

# namespaces NAME: the namespaces of a distribution seen from inside, kind and inode, one a line.
namespaces() {
    # shellcheck disable=SC2016
    "$hostel" -d "$1" -- 'for n in cgroup ipc mnt net pid time user uts; do
        echo "$n $(readlink /proc/self/ns/$n | tr -dc 0-9)"
    done'
}
