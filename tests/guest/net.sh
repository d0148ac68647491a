#!/bin/sh
# In a guest of ring3 run with --net user: a package from the mirror on the host's loopback, which the gateway's address leads to; then a server, until the host has said that it is done.
# usage: net.sh MIRROR_PORT SERVED_PORT FOLDER
set -e
gateway=$(ip route 2>/dev/null | sed -n 's/^default via \([^ ]*\).*/\1/p')
[ -n "$gateway" ] || gateway=$(busybox ip route | sed -n 's/^default via \([^ ]*\).*/\1/p')
folder=$(mktemp -d)
mkdir -p "$folder/lists/partial" "$folder/archives/partial"
echo "deb [trusted=yes] http://$gateway:$1/mirror ./" >"$folder/sources.list"
apt="apt-get -qq -o Dir::Etc::sourcelist=$folder/sources.list -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists=$folder/lists -o Dir::Cache::archives=$folder/archives
    -o APT::Sandbox::User= -o Acquire::http::Proxy=false -o APT::Update::Post-Invoke-Success::= -o DPkg::Post-Invoke::="
$apt update
DEBIAN_FRONTEND=noninteractive $apt install -y ring3-greeting >"$folder/install.log" 2>&1 || { cat "$folder/install.log"; exit 1; }
ring3-greeting
echo "fetched $(curl -sS --noproxy '*' "http://$gateway:$1/large" | md5sum | cut -d' ' -f1)"
echo "sent $(curl -sS --noproxy '*' -T "$3/large" "http://$gateway:$1/large")"
cd "$3"
/usr/bin/python3 "$(dirname "$0")/web.py" 0.0.0.0 "$2" >"$folder/port" &
server=$!
curl -sS --noproxy '*' --retry 100 --retry-connrefused --retry-delay 1 -o /dev/null "http://127.0.0.1:$2/small"
echo serving
cat >/dev/null
kill $server
