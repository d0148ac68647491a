# shellcheck shell=bash
# The library of whole machines: a sample with a disk, a network and clones, built and run. Sourced by tests/suites/vmm.sh.

if ! dotnet build "$root/samples/LinuxMachine" -c Release -v q -nologo >"$results/vmm-library.build" 2>&1; then
    verdict vmm-library 1 "$(grep -m 1 error "$results/vmm-library.build")"
else
    install passt passt >"$results/vmm-library.install" 2>&1
    timeout -k 5 400 dotnet "$root/artifacts/bin/LinuxMachine/release/LinuxMachine.dll" >"$results/vmm-library.log" 2>"$results/vmm-library.err" </dev/null
    status=$?
    network='has a network'
    [ -e /usr/bin/passt ] || network='passt is not installed'
    expect vmm-library $status "$network" '^the disk: written by a guest' '^the disk is back as again' "end: PowerOff" '^clone 1 has 42' '^clone 2 has 42'
fi
