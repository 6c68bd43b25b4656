# shellcheck shell=bash disable=SC2034
# What all scripts share. Sourced, never run.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
    bold='' dim='' red='' green='' plain=''
fi

# A step that is about to be taken.
step() {
    printf '%s==> %s%s\n' "$bold" "$*" "$plain"
}

# A finding below a step.
note() {
    printf '    %s\n' "$*"
}

# Ends the script: what went wrong, and, each on a line of its own, what to do about it.
fail() {
    printf '%serror:%s %s\n' "$red" "$plain" "$1" >&2
    shift
    if (($#)); then printf '       %s\n' "$@" >&2; fi
    exit 1
}

have() {
    command -v "$1" >/dev/null 2>&1
}
