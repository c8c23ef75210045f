#!/usr/bin/env bash
# Makes an Android phone in Termux a device of the mesh. See docs/phone.md; every step can be done by hand.
#
#   scripts/termux.sh setup [--small]    packages, build, boot script; --small: without the embedded engine
#   scripts/termux.sh join TOKEN [ARGS]  joins and serves; without a token, resumes as the same device
#   scripts/termux.sh boot               writes the script that resumes after a reboot
#   scripts/termux.sh check              looks whether the phone is fit for it, changes nothing
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
boot_script=${HOME}/.termux/boot/shoal
program=${PREFIX:-/usr/local}/bin/shoal

# Room for sources, build and a small model, in KiB.
room_kib=$((4 * 1024 * 1024))
# Seconds between two starts after the program ended by itself.
pause=5

say() { printf '%s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

need_termux() {
    [[ ${PREFIX:-} == */com.termux/* ]] || fail "this is not Termux; on other systems use cargo and 'shoal service install'"
}

check() {
    local bad=0 arch free
    arch=$(uname -m)
    case $arch in
    aarch64 | x86_64) say "ok    processor: $arch" ;;
    *)
        say "BAD   processor: $arch; Shoal needs a 64-bit one"
        bad=1
        ;;
    esac
    free=$(df -Pk "$HOME" | awk 'NR == 2 { print $4 }')
    if ((free < room_kib)); then
        say "warn  room: $((free / 1024)) MiB free; a build with the embedded engine needs about $((room_kib / 1024)) MiB"
    else
        say "ok    room: $((free / 1024)) MiB free"
    fi
    if command -v termux-wake-lock >/dev/null; then
        say "ok    wake lock: there"
    else
        say "warn  wake lock: not there; the phone will doze. Install it with 'pkg install termux-tools'"
    fi
    if [[ -e $boot_script ]]; then
        say "ok    boot: $boot_script"
    else
        say "warn  boot: nothing starts after a reboot; '$0 boot' writes the script, the app Termux:Boot runs it"
    fi
    if [[ -x $program ]]; then
        say "ok    program: $("$program" --version)"
    else
        say "warn  program: not built yet; '$0 setup' builds it"
    fi
    say "note  Android 12 and later ends busy background processes; docs/phone.md says how to switch that off"
    return "$bad"
}

setup() {
    need_termux
    local features=()
    case ${1:-} in
    '') ;;
    --small) features=(--no-default-features) ;;
    *) fail "setup takes --small or nothing, not '$1'" ;;
    esac
    pkg install -y rust clang git
    # Two jobs: more make Android end Termux for its memory.
    (cd "$here" && CARGO_BUILD_JOBS=${CARGO_BUILD_JOBS:-2} cargo build --release -p shoal "${features[@]}")
    install -m 0755 "$here/target/release/shoal" "$program"
    boot
    check
    say "now: $0 join <token>   (make the token with 'shoal token create' on a node)"
}

boot() {
    need_termux
    mkdir -p "$(dirname "$boot_script")"
    cat >"$boot_script" <<SCRIPT
#!/data/data/com.termux/files/usr/bin/bash
# Written by Shoal's scripts/termux.sh: resumes this phone as the device that it was.
exec '$here/scripts/termux.sh' join >>"\$HOME/shoal.log" 2>&1
SCRIPT
    chmod 0700 "$boot_script"
    say "written: $boot_script; open the app Termux:Boot once, or Android never runs it"
}

# Serves until stopped by a signal. The program itself comes back from naps and changes of network; a new start is for
# the case that Android ended it, with the same words: once there is an identity, the token is not looked at.
join() {
    [[ -x $program ]] || fail "there is no $program; run '$0 setup' first"
    local status child=
    command -v termux-wake-lock >/dev/null && termux-wake-lock
    trap '[[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true; stop=1' INT TERM
    local stop=0
    while ((!stop)); do
        status=0
        "$program" join "$@" &
        child=$!
        wait "$child" || status=$?
        # A signal ends the first wait, not the program: it drains.
        if ((stop)); then wait "$child" 2>/dev/null || true; fi
        # A wrong command line does not become right by itself.
        ((status != 2)) || break
        ((stop)) || sleep "$pause" || true
    done
    command -v termux-wake-unlock >/dev/null && termux-wake-unlock
    ((stop)) || exit "$status"
}

case ${1:-} in
setup | join | boot | check)
    command=$1
    shift
    "$command" "$@"
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac
