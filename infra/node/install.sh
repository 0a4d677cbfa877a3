#!/usr/bin/env bash
# Makes this machine a node of a fleet, or brings it to this version of fleetmark. Safe to run again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

usage() {
    cat <<'END'
infra/node/install.sh --node NAME --control-plane URL --store URL [options]
infra/node/install.sh --uninstall [--purge] [options]

  --node NAME            this machine's name in the inventory
  --control-plane URL    where the api-server is, e.g. https://fleet.example.org:8443
  --store URL            the object store, e.g. s3://bench/prod
  --s3-endpoint URL      of an S3 server other than AWS
  --ca FILE              authorities of all that the node speaks TLS with, where they are not the system's
  --scratch DIR          where benchmarks write, on the NVMe that is measured (default: /scratch)
  --prefix DIR           put everything below DIR, for this user: no user is made, no service started
  --uninstall            remove program and service; settings, key and state stay
  --purge                ... and those as well; the scratch directory stays, empty or not
  --dry-run              say what would be done
  -h, --help

Credentials of the object store are taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. /etc/fleetmark/node.env and
the node's key are written once; edit the file, then: sudo systemctl restart fleetmark-worker
END
}

fail() {
    echo "install: $*" >&2
    exit 2
}

node='' control_plane='' store='' s3_endpoint='' ca='' scratch=/scratch prefix='' action=install purge=no dry_run=no
while [ $# -gt 0 ]; do
    case $1 in
    --node | --control-plane | --store | --s3-endpoint | --ca | --scratch | --prefix)
        if [ $# -lt 2 ] || [ -z "$2" ]; then fail "$1 needs a value"; fi
        name=${1#--}
        printf -v "${name//-/_}" %s "$2"
        shift
        ;;
    --uninstall) action=uninstall ;;
    --purge) purge=yes ;;
    --dry-run) dry_run=yes ;;
    -h | --help)
        usage
        exit
        ;;
    *) fail "there is no option $1; see --help" ;;
    esac
    shift
done

program=$prefix/opt/fleetmark
settings=$prefix/etc/fleetmark
state=$prefix/var/lib/fleetmark
units=$prefix/etc/systemd/system
unit=fleetmark-worker.service
user=fleetmark
uv_version=0.13.8
owner=root
if [ -n "$prefix" ]; then user=$(id -un) owner=$user; fi

# run COMMAND...: as this user
run() {
    if [ "$dry_run" = yes ]; then printf 'would run: %s\n' "$*"; else "$@"; fi
}

# as_root COMMAND...: what needs root, where that is not this user
as_root() {
    if [ "$(id -u)" = 0 ] || [ -n "$prefix" ]; then run "$@"; else run sudo "$@"; fi
}

# with_systemd ARGUMENT...: of systemctl, where the service is this machine's own
with_systemd() {
    if [ -z "$prefix" ]; then as_root systemctl "$@"; fi
}

# put FILE MODE OWNER: standard input becomes the file, readable by nobody else before that
put() {
    local new
    if [ "$dry_run" = yes ]; then
        echo "would write: $1 (mode $2, of $3)"
        return
    fi
    new=$(mktemp)
    cat >"$new"
    as_root install -D -m "$2" -o "$3" -g "$3" "$new" "$1"
    rm -f "$new"
}

check_arguments() {
    [[ $node =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || fail "--node is a name of letters, digits, '.', '_' and '-', not '$node'"
    [[ $control_plane =~ ^https?://[^[:space:]/]+$ ]] || fail "--control-plane is a URL such as https://fleet.example.org:8443, not '$control_plane'"
    [[ $store =~ ^[a-z0-9]+://[^[:space:]]+$ ]] || fail "--store is a URL such as s3://bench/prod, not '$store'"
    [[ $scratch =~ ^/[^[:space:]]+$ ]] || fail "--scratch is an absolute path without spaces, not '$scratch'"
    local program_needed
    for program_needed in python3 openssl; do
        command -v "$program_needed" >/dev/null || fail "$program_needed is missing"
    done
    python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "Python 3.11 or later with its venv module is missing: apt-get install python3 python3-venv"
}

make_user() {
    [ -z "$prefix" ] || return 0
    id "$user" >/dev/null 2>&1 ||
        as_root useradd --system --user-group --home-dir "$state" --shell /bin/bash "$user"
}

# Packages are downloaded and unpacked by whoever calls this, never by root; then what they are becomes root's.
make_program() {
    local wanted found=''
    wanted=$({ cat requirements/worker.lock pyproject.toml; find dags infra pipelines plugins -type f -not -name '*.pyc' -print0 |
        sort -z | xargs -0 sha256sum; python3 -VV; } | sha256sum)
    if [ -r "$program/installed" ]; then found=$(cat "$program/installed"); fi
    if [ "$found" = "$wanted" ]; then
        echo "install: $program is up to date"
        return
    fi
    # a benchmark that it is at is killed, and tried again when it is back
    if [ -e "$units/$unit" ]; then with_systemd stop "$unit"; fi
    as_root install -d "$program"
    as_root chown -R "$(id -u):$(id -g)" "$program"
    run rm -rf "$program/dags" "$program/infra" "$program/installed"
    run cp -R dags infra "$program/"
    run python3 -m venv "$program/uv"
    run "$program/uv/bin/pip" install -q "uv==$uv_version"
    run python3 -m venv --clear --without-pip "$program/venv"
    # uv reads no pip.conf; an index that is set there is set for a reason
    local index
    index=${PIP_INDEX_URL:-$(python3 -m pip config get global.index-url 2>/dev/null || true)}
    if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX=$index; fi
    export VIRTUAL_ENV=$program/venv
    run "$program/uv/bin/uv" pip sync -q --require-hashes --compile-bytecode requirements/worker.lock
    run "$program/uv/bin/uv" pip install -q --no-deps --reinstall-package fleetmark --compile-bytecode .
    run rm -rf "$program/uv"
    if [ "$dry_run" = no ]; then echo "$wanted" >"$program/installed"; fi
    if [ -z "$prefix" ]; then as_root chown -R "$owner:$owner" "$program"; fi
    as_root chmod -R go=rX,u=rwX "$program"
}

make_directories() {
    as_root install -d -m 755 "$settings"
    as_root install -d -m 700 -o "$user" -g "$user" "$state"
    # one that is there belongs to somebody: its owner says who may write in it
    [ -e "$scratch" ] || as_root install -d -m 700 -o "$user" -g "$user" "$scratch"
}

make_settings() {
    if [ -e "$settings/node.env" ]; then
        echo "install: $settings/node.env is left as it is"
        return
    fi
    put "$settings/node.env" 600 "$user" <<END
FLEETMARK_NODE=$node
FLEETMARK_HOME=$state
FLEETMARK_NODE_EXECUTOR=edge
# files of the control plane, which has its own; here for the DAG files, which are read before each task
FLEETMARK_INVENTORY=$program/infra/fleet.toml
FLEETMARK_SUITES=$program/infra/suites
FLEETMARK_HOT=$program/infra/hot.toml
FLEETMARK_STORE=$store
${s3_endpoint:+FLEETMARK_S3_ENDPOINT=$s3_endpoint
}${ca:+SSL_CERT_FILE=$ca
AIRFLOW__API__SSL_CERT=$ca
}AWS_ACCESS_KEY_ID=${AWS_ACCESS_KEY_ID:-}
AWS_SECRET_ACCESS_KEY=${AWS_SECRET_ACCESS_KEY:-}
AWS_REGION=${AWS_REGION:-us-east-1}
AIRFLOW_HOME=$state/airflow
AIRFLOW_CONFIG=$program/infra/airflow/fleet.cfg
AIRFLOW__CORE__DAGS_FOLDER=$program/dags
AIRFLOW__CORE__EXECUTION_API_SERVER_URL=$control_plane/execution/
AIRFLOW__EDGE__API_URL=$control_plane/edge_worker/v1/rpcapi
# the node's own key: it signs this node's requests and nobody else's; the control plane's secret is on no node
AIRFLOW__API_AUTH__JWT_PRIVATE_KEY_PATH=$settings/node.pem
AIRFLOW__API_AUTH__JWT_SECRET=
PYTHONPATH=$program/infra/airflow/config
PYTHONUNBUFFERED=1
END
}

make_key() {
    if [ ! -s "$settings/node.pem" ]; then
        if [ "$dry_run" = yes ]; then
            echo "would write: $settings/node.pem (mode 600, of $user)"
            return
        fi
        openssl genpkey -algorithm ed25519 | put "$settings/node.pem" 600 "$user"
    fi
    [ "$dry_run" = yes ] || as_root cat "$settings/node.pem" | openssl pkey -pubout | put "$settings/node.pub" 644 "$user"
}

make_service() {
    put "$units/$unit" 644 "$owner" <infra/node/$unit
    put "$units/$unit.d/scratch.conf" 644 "$owner" <<END
[Service]
ReadWritePaths=$scratch
END
    with_systemd daemon-reload
    with_systemd enable "$unit"
    with_systemd start "$unit"
}

install_node() {
    check_arguments
    scratch=$prefix$scratch
    make_user
    make_program
    make_directories
    make_settings
    make_key
    make_service
    echo "install: on the control plane, trust this key: python -m fleetmark_airflow.credentials add $node --public node.pub"
    [ "$dry_run" = yes ] || cat "$settings/node.pub"
}

uninstall_node() {
    if [ -e "$units/$unit" ]; then
        with_systemd disable --now "$unit"
        as_root rm -rf "$units/$unit" "$units/$unit.d"
        with_systemd daemon-reload
    fi
    as_root rm -rf "$program"
    if [ "$purge" = yes ]; then
        as_root rm -rf "$settings" "$state"
        if [ -z "$prefix" ] && id "$user" >/dev/null 2>&1; then as_root userdel "$user"; fi
    elif [ -e "$state" ]; then
        echo "install: $settings and $state are left; raw outputs that were not sent yet are in $state"
    fi
}

"${action}_node"
