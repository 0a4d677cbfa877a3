#!/usr/bin/env bash
# Makes .venv from a lock and sees to the programs that are named. Instant when there is nothing to do.
#
#   infra/bootstrap.sh control|fleet|worker|dev [PROGRAM ...]
#
# `control` runs the demo; `fleet` is a fleet's control plane and `worker` a node of it; `dev` has the tests' packages, too,
# and serves as each of them. Programs come from apt when this is root, else one line says what to install.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

set_name=$1
shift
uv_version=0.13.8

fail() {
    echo "bootstrap: $*" >&2
    exit 1
}

has() {
    local program
    for program in "$@"; do command -v "$program" >/dev/null || return 1; done
}

# apt_install WHAT PACKAGE...: from apt when root, else say how
apt_install() {
    local what=$1
    shift
    local install="apt-get install -y --no-install-recommends $*"
    [ "$(id -u)" = 0 ] && has apt-get || fail "$what is missing; install it with: sudo $install"
    echo "bootstrap: installing $what from apt" >&2
    export DEBIAN_FRONTEND=noninteractive
    local log
    log=$(mktemp)
    if ! $install >"$log" 2>&1; then # a fresh machine has no package lists yet
        apt-get update >"$log" 2>&1 && $install >"$log" 2>&1 || { cat "$log" >&2; fail "$install failed"; }
    fi
    rm -f "$log"
}

find_python() {
    local candidate
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

make_venv() {
    .venv/bin/python -c 'import pip' 2>/dev/null && return
    local python
    python=$(find_python) || fail "Python 3.11 or later is missing; install it with: sudo apt-get install python3 python3-venv"
    "$python" -c 'import ensurepip' 2>/dev/null || apt_install "Python's venv module" python3-venv
    echo "bootstrap: making .venv" >&2
    "$python" -m venv --clear .venv
}

# What the environment is made from: the lock, the project's own metadata, the interpreter.
fingerprint() {
    { cat "requirements/$1.lock" pyproject.toml && .venv/bin/python -VV; } | sha256sum
}

is_synced() {
    [ "$(cat ".venv/synced-$1" 2>/dev/null)" = "$(fingerprint "$1" 2>/dev/null)" ]
}

sync_venv() {
    if [ -e .venv/synced-dev ]; then set_name=dev; fi # whoever works on the project keeps what that takes
    if is_synced "$set_name"; then return; fi
    echo "bootstrap: installing the packages of requirements/$set_name.lock" >&2
    rm -f .venv/synced-*
    .venv/bin/uv --version 2>/dev/null | grep -q "^uv $uv_version\b" || .venv/bin/pip install -q "uv==$uv_version"
    # uv reads no pip.conf; an index that is set there is set for a reason
    local index
    index=${PIP_INDEX_URL:-$(.venv/bin/pip config get global.index-url 2>/dev/null || true)}
    if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX=$index; fi
    export VIRTUAL_ENV=$PWD/.venv
    # compiled now, or Airflow's first start compiles it all while a newcomer waits
    .venv/bin/uv pip sync -q --require-hashes --compile-bytecode "requirements/$set_name.lock"
    .venv/bin/uv pip install -q --no-deps --editable .
    fingerprint "$set_name" >".venv/synced-$set_name"
}

# Debian sid's llama.cpp with its own libc, unpacked in .venv/llama and run from there: nothing of it is installed, and no
# root is needed. apt takes it from where this machine's own release comes from, and checks Debian's signature.
unpack_llama() {
    local build="build llama.cpp (its docs/build.md), and put llama-bench and llama-batched-bench on the PATH"
    local codename from keyring
    codename=$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME:-}") || true
    keyring=$(ls /usr/share/keyrings/debian-archive-keyring.[gp]* 2>/dev/null | head -n 1) || true
    has apt-get dpkg-deb && [ -n "$keyring" ] || fail "llama-bench is missing, and only on Debian it is fetched: $build"
    from=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk -v own="^($codename|stable|testing|unstable|sid)$" '$1 ~ own && !found { print $2; found = 1 }')
    [ -n "$from" ] || fail "llama-bench is missing, and apt has no source of $codename from whose mirror to take it: $build"
    echo "bootstrap: fetching llama.cpp of Debian sid" >&2
    local new=$PWD/.venv/llama.new libraries package program
    rm -rf "$new"
    mkdir -p "$new/bin" "$new/apt/lists/partial" "$new/apt/archives/partial"
    : >"$new/apt/status"
    echo "deb [signed-by=$keyring] $from sid main" >"$new/apt/sid.list"
    local own_apt=(apt-get -qq -o "Dir::Etc::SourceList=$new/apt/sid.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State=$new/apt" -o "Dir::State::status=$new/apt/status" -o "Dir::Cache=$new/apt"
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Check-Valid-Until=false -o Acquire::Retries=3)
    "${own_apt[@]}" update && (cd "$new/apt" && "${own_apt[@]}" download llama.cpp-tools llama.cpp-tools-extra libllama0 \
        libggml0 libc6 libstdc++6 libgcc-s1 libgomp1 libssl3t64 libzstd1 zlib1g) ||
        fail "llama.cpp of Debian sid could not be fetched from $from; $build"
    for package in "$new"/apt/*.deb; do dpkg-deb -x "$package" "$new"; done
    rm -rf "$new/apt"
    libraries=$(echo "$new"/usr/lib/*-linux-gnu*)
    # llama.cpp looks for the variants of its code for this processor beside the program, which is the loader here
    (cd "$libraries" && ln -s ggml/backends*/*.so .)
    for program in llama-bench llama-batched-bench; do
        cat >"$new/bin/$program" <<EOF
#!/bin/sh
usr=\${0%/*}/../usr
lib=\$usr/lib/${libraries##*/}
exec "\$lib"/ld-linux*.so.* --library-path "\$lib:\$lib/llama" "\$usr/bin/$program" "\$@"
EOF
        chmod +x "$new/bin/$program"
    done
    rm -rf .venv/llama
    mv "$new" .venv/llama
}

exec 9>.venv.lock
flock 9 # two makes at once: the second waits, and then finds it done
make_venv
sync_venv

for program in "$@"; do
    case $program in
    fio | iperf3 | sysbench | stress-ng | numactl | chromium) has "$program" || apt_install "$program" "$program" ;;
    ceph) has radosgw ceph-mon ceph-osd || apt_install "Ceph's S3 gateway" radosgw ceph-mon ceph-osd ceph-common ;;
    postgres) has /usr/lib/postgresql/*/bin/postgres || apt_install PostgreSQL postgresql ;;
    nginx) has /usr/sbin/nginx || apt_install nginx nginx-light ;;
    llama) has llama-bench llama-batched-bench || [ -d .venv/llama ] || unpack_llama ;;
    ip) has ip || apt_install iproute2 iproute2 ;;
    redis) has redis-server || apt_install Redis redis-server ;;
    sshd) has /usr/sbin/sshd ssh-keygen || apt_install OpenSSH openssh-server openssh-client ;;
    *) fail "there is no recipe for $program" ;;
    esac
done
