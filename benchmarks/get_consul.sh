#!/bin/sh
# Put a real Consul (1.8.7, from Debian bullseye) into a cache folder, installing nothing.
#
#   benchmarks/get_consul.sh [FOLDER]      default: .cache/consul beside this repository's README
#
# Prints the path of the executable on stdout, everything else on stderr. Does nothing when the folder
# holds it already. bullseye is the last Debian release with a `consul` package (bookworm has none), and
# the last one under a free licence is what a comparison needs. apt gets its own source file, lists and
# cache, so the machine's package state is neither read nor changed; signatures are checked as always.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
folder=${1:-$root/.cache/consul}
binary=$folder/root/usr/bin/consul

if [ -x "$binary" ]; then
    echo "$binary"
    exit 0
fi
for tool in apt-get dpkg; do
    command -v "$tool" >/dev/null || { echo "get_consul: no $tool here; set CONSUL_BIN instead" >&2; exit 1; }
done

# The mirror this machine already uses, so that a local mirror stays the only server asked.
mirror=${DEBIAN_MIRROR:-$(
    sed -n -e 's/^URIs:[[:space:]]*\([^[:space:]]*\).*/\1/p' \
        -e 's/^deb \(\[[^]]*\] \)\{0,1\}\([^[:space:]]*\).*/\2/p' \
        /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1
)}
mirror=${mirror:-http://deb.debian.org/debian}

mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial" "$folder/root"
echo "deb $mirror bullseye main" >"$folder/sources.list"

own_apt() {
    apt-get -q \
        -o Dir::Etc::sourcelist="$folder/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::State::lists="$folder/lists" -o Dir::Cache="$folder/cache" \
        -o Dir::State::status=/dev/null -o APT::Sandbox::User="$(id -un)" \
        -o Acquire::Languages=none "$@"
}

cd "$folder"
own_apt update >&2
own_apt download consul >&2
dpkg -x "$(ls -t consul_*.deb | head -n 1)" "$folder/root"
rm -rf "$folder/lists" "$folder/cache" # tens of megabytes that nobody needs again
"$binary" version >&2
echo "$binary"
