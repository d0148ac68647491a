#!/usr/bin/env bash
# Packs the NuGet package Ring3 and its symbols. Run by ./package in a copy of the sources.
# usage: nuget.sh VERSION OUT
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
version=$1 out=$2 log=$root/artifacts/nuget.log
mkdir -p "$root/artifacts"
# No commit of a repository that the copy may lie in.
export Ring3Package=true EnableSourceControlManagerQueries=false
project=$root/packaging/nuget/Ring3.Package.csproj
if ! { dotnet build "$project" -c Release -v q -nologo && dotnet pack "$project" --no-restore -p:Ring3Packing=true -c Release -v q -nologo -o "$root/artifacts/nuget"; } >"$log" 2>&1; then
    grep -E 'error' "$log" | sort -u | head -5 >&2
    echo "package: the NuGet package cannot be made" >&2
    exit 70
fi
for kind in nupkg snupkg; do mv "$root/artifacts/nuget/Ring3.$version.$kind" "$out/"; done
