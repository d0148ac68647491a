# shellcheck shell=bash
# shellcheck disable=SC2154 # set by tests/package/whole.sh
# The samples as somebody else's projects: outside the repository, with the package from a local feed. Sourced by tests/package/whole.sh.
samples=$(mktemp -d)
cp -r "$root/samples/." "$samples"
cat >"$samples/nuget.config" <<CONFIG
<configuration>
  <config><add key="globalPackagesFolder" value="packages" /></config>
  <fallbackPackageFolders><add key="user" value="${NUGET_PACKAGES:-$HOME/.nuget/packages}" /></fallbackPackageFolders>
  <packageSources><add key="ring3" value="$packages" /></packageSources>
</configuration>
CONFIG
(cd "$samples" && Ring3Version=$package_version dotnet run --project HelloGuest) >"$package/hello.log" 2>&1 && grep -q '^Hello from ring 0' "$package/hello.log" && [ -e "$samples/packages/ring3/$package_version/lib/net10.0/Ring3.xml" ]
verdict package-sample-hello $? "$(tail -n 1 "$package/hello.log")"
(cd "$samples" && Ring3Version=$package_version timeout -k 5 400 dotnet run --project LinuxMachine) >"$package/machine.log" 2>&1 </dev/null && grep -q '^clone 2 has 42' "$package/machine.log"
verdict package-sample-machine $? "$(tail -n 1 "$package/machine.log")"
(cd "$samples" && Ring3Version=$package_version dotnet test BootSectorTest) >"$package/bootsector.log" 2>&1 && grep -qE 'Passed: +2' "$package/bootsector.log"
verdict package-sample-bootsector $? "$(tail -n 1 "$package/bootsector.log")"
# With a test that opens /dev/kvm; the machine's own, where there is one, is not there for it.
cp "$root/tests/package/KvmTests.cs" "$samples/BootSectorTest"
hidden=(env)
[ ! -e /dev/kvm ] || ! unshare --mount true 2>/dev/null || hidden=(unshare --mount sh -c 'mount --bind /dev/null /dev/kvm && exec "$@"' sh env)
(cd "$samples/BootSectorTest" && "${hidden[@]}" PATH="$package/tree/bin:$PATH" Ring3Version="$package_version" bash -euc "$(recipe dotnet)") >"$package/ci-dotnet.log" 2>&1 && grep -qE 'Passed: +3' "$package/ci-dotnet.log"
verdict package-ci-dotnet $? "$(tail -n 1 "$package/ci-dotnet.log")"
(cd "$samples" && dotnet build PInvokeClient -c Release -o "$samples/client") >"$package/pinvoke.log" 2>&1 && "$package/tree/bin/ring3" exec -- "$samples/client/PInvokeClient" >"$package/pinvoke.log" 2>&1 && grep -qx hello "$package/pinvoke.log"
verdict package-sample-pinvoke $? "$(tail -n 1 "$package/pinvoke.log")"
rm -rf "$samples"
