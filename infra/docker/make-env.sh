#!/usr/bin/env bash
# Writes .env: infra/env.example with a random value for each name that has none. One that is there is left alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
umask 077
set -o noclobber

filled() {
    local line bytes
    while IFS= read -r line; do
        case $line in
        FERNET_KEY=) bytes=32 ;; # Fernet's keys have 32, with the padding
        JWT_SECRET=) bytes=48 ;; # 64 letters: no fewer than SHA-512, which it is used with, has bytes
        *=) bytes=30 ;;
        *) bytes=0 ;;
        esac
        if [ "$bytes" -gt 0 ]; then line+=$(head -c "$bytes" /dev/urandom | base64 | tr +/ -_); fi
        printf '%s\n' "$line"
    done
}

filled <infra/env.example >"${1:-.env}"
