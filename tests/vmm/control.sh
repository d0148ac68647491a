# shellcheck shell=bash
# ring3 ctl, of the user's machines. Sourced by tests/suites/vmm.sh.

ctl() { "$root/ring3" ctl "$@" >>"$results/vmm-ctl.out" 2>>"$results/vmm-ctl.out"; }
# guest_of NAME ARGS...: a machine that is not waited for; $machine is its process.
guest_of() {
    local name=$1; shift
    : >"$results/vmm-ctl-$name.log"
    "$root/ring3" boot --name "$name" "$@" </dev/null >"$results/vmm-ctl-$name.log" 2>"$results/vmm-ctl-$name.err" &
    machine=$!
}
lines() { wc -l <"$results/vmm-ctl-${1:-one}.log"; }

: >"$results/vmm-ctl.out"
run_directory=${XDG_RUNTIME_DIR:-}
# Shorter than the names of the results may be: a socket's has 107 bytes.
XDG_RUNTIME_DIR=$(mktemp -d)
export XDG_RUNTIME_DIR
guest_of one --exec 'while :; do echo tick; sleep 0.02; done'
until [ "$(lines)" -gt 10 ] || ! kill -0 $machine 2>/dev/null; do sleep 1; done
status=0
[ "$("$root/ring3" ctl list | cut -f 1-4)" = "one	$machine	running	2" ] || status=1
[ "$(stat -c '%a %F' "$XDG_RUNTIME_DIR/ring3" "$XDG_RUNTIME_DIR/ring3/one" | tr '\n' '|')" = '700 directory|600 socket|' ] || status=2
# A paused machine executes nothing, a resumed one goes on where it was.
ctl pause one || status=3
[ "$("$root/ring3" ctl list --json | grep -c '"name":"one".*"state":"paused"')" = 1 ] || status=4
ctl stats one || status=5
before=$("$root/ring3" ctl stats one | grep '^stat instructions ')
[ "$before" = "$("$root/ring3" ctl stats $machine | grep '^stat instructions ')" ] || status=6
ctl pause one || status=7
ctl resume $machine || status=8
[ "$before" != "$("$root/ring3" ctl stats one | grep '^stat instructions ')" ] || status=9
verdict vmm-ctl $status "step $status; $(tail -n 3 "$results/vmm-ctl.out" | tr '\n' '|')"

# Its name is taken as long as it lives, and free when it was killed.
refused vmm-ctl-taken 66 'is taken' boot --name one --exec true
refused vmm-ctl-name 64 'is no number' boot --name 17 --exec true
refused vmm-ctl-nobody 66 'there is no machine two' ctl pause two
one=$machine
guest_of plain --no-acpi --exec 'while :; do sleep 1; done'
until [ -n "$("$root/ring3" ctl list | grep '^plain')" ] || ! kill -0 $machine 2>/dev/null; do sleep 1; done
refused vmm-ctl-button 66 'has no ACPI' ctl power-button plain
ctl stop plain
wait $machine
kill -KILL $one
wait $one 2>/dev/null
guest_of one --exec 'while :; do echo tick; sleep 0.02; done'
until [ "$(lines)" -gt 1 ] || ! kill -0 $machine 2>/dev/null; do sleep 1; done
# A paused machine can be stopped.
{ ctl pause one && ctl stop one; } || kill $machine
wait $machine
status=$?
[ $status -eq 143 ] && [ -z "$("$root/ring3" ctl list)" ] && [ -z "$(ls "$XDG_RUNTIME_DIR/ring3")" ]
verdict vmm-ctl-stop $? "status $status; left: $(ls "$XDG_RUNTIME_DIR/ring3")"

# A directory that others can use is none.
chmod 755 "$XDG_RUNTIME_DIR/ring3"
refused vmm-ctl-open 66 "is not this user's alone" boot --name one --exec true
rm -rf "$XDG_RUNTIME_DIR"
XDG_RUNTIME_DIR=$run_directory
[ -n "$XDG_RUNTIME_DIR" ] || unset XDG_RUNTIME_DIR
