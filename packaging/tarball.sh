#!/usr/bin/env bash
# Packs STAGE as a tarball whose bytes depend on its files only.
# usage: tarball.sh STAGE VERSION OUT
set -euo pipefail
stage=$1 out=$3 name=ring3-$2-linux-x86_64
tar -C "$stage" --sort=name --format=gnu --owner=0 --group=0 --numeric-owner --mode=u+rw,go=u-w --mtime="@$SOURCE_DATE_EPOCH" --transform="s,^\.,$name,S" -c . |
    gzip -n -9 >"$out/$name.tar.gz"
