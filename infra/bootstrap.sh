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

# from_sid FOLDER WHAT INSTEAD PACKAGE...: packages of Debian sid, unpacked in a folder: nothing of them is installed, and no
# root is needed. apt takes them from where this machine's own release comes from, and checks Debian's signature.
from_sid() {
    local folder=$1 what=$2 instead=$3 codename from keyring
    shift 3
    codename=$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME:-}") || true
    keyring=$(ls /usr/share/keyrings/debian-archive-keyring.[gp]* 2>/dev/null | head -n 1) || true
    has apt-get dpkg-deb && [ -n "$keyring" ] || fail "$what is missing, and only on Debian it is fetched: $instead"
    from=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk -v own="^($codename|stable|testing|unstable|sid)$" '$1 ~ own && !found { print $2; found = 1 }')
    [ -n "$from" ] || fail "$what is missing, and apt has no source of $codename from whose mirror to take it: $instead"
    echo "bootstrap: fetching $what of Debian sid" >&2
    rm -rf "$folder"
    mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial"
    : >"$folder/apt/status"
    echo "deb [signed-by=$keyring] $from sid main" >"$folder/apt/sid.list"
    local own_apt=(apt-get -qq -o "Dir::Etc::SourceList=$folder/apt/sid.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State=$folder/apt" -o "Dir::State::status=$folder/apt/status" -o "Dir::Cache=$folder/apt"
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Check-Valid-Until=false -o Acquire::Retries=3)
    "${own_apt[@]}" update && (cd "$folder/apt" && "${own_apt[@]}" download "$@") ||
        fail "$what of Debian sid could not be fetched from $from; $instead"
    local package
    for package in "$folder"/apt/*.deb; do dpkg-deb -x "$package" "$folder"; done
    rm -rf "$folder/apt"
}

# With its own libc, and run from .venv/llama.
unpack_llama() {
    local new=$PWD/.venv/llama.new libraries program
    from_sid "$new" llama.cpp "build llama.cpp (its docs/build.md), and put llama-bench and llama-batched-bench on the PATH" \
        llama.cpp-tools llama.cpp-tools-extra libllama0 libggml0 libc6 libstdc++6 libgcc-s1 libgomp1 libssl3t64 libzstd1 zlib1g
    libraries=$(echo "$new"/usr/lib/*-linux-gnu*)
    # llama.cpp looks for the variants of its code for this processor beside the program, which is the loader here
    (cd "$libraries" && ln -s ggml/backends*/*.so .)
    mkdir "$new/bin"
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

# Debian 12 has one of 2020, which does not know kustomizations as they are written today. It needs nothing but libc.
unpack_kubectl() {
    from_sid "$PWD/.venv/kubectl.new" kubectl "https://kubernetes.io/docs/tasks/tools/" kubectl
    rm -rf .venv/kubectl
    mv .venv/kubectl.new .venv/kubectl
}

exec 9>.venv.lock
flock 9 # two makes at once: the second waits, and then finds it done
make_venv
sync_venv

for program in "$@"; do
    case $program in
    fio | iperf3 | sysbench | stress-ng | numactl | chromium | shellcheck) has "$program" || apt_install "$program" "$program" ;;
    ceph) has radosgw ceph-mon ceph-osd || apt_install "Ceph's S3 gateway" radosgw ceph-mon ceph-osd ceph-common ;;
    postgres) has /usr/lib/postgresql/*/bin/postgres || apt_install PostgreSQL postgresql ;;
    nginx) has /usr/sbin/nginx || apt_install nginx nginx-light ;;
    llama) has llama-bench llama-batched-bench || [ -d .venv/llama ] || unpack_llama ;;
    kubectl) has kubectl || [ -d .venv/kubectl ] || unpack_kubectl ;;
    cc) has cc || apt_install "a C compiler" gcc libc6-dev ;;
    ip) has ip || apt_install iproute2 iproute2 ;;
    redis) has redis-server || apt_install Redis redis-server ;;
    sshd) has /usr/sbin/sshd ssh-keygen || apt_install OpenSSH openssh-server openssh-client ;;
    *) fail "there is no recipe for $program" ;;
    esac
done
