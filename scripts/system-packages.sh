#!/bin/sh
# Programs of the distribution that some tests and benchmarks use. None is needed to run kvnode: a test
# whose program is missing is skipped and says so. Root on a Debian-like system gets them installed;
# nobody else is asked for anything. Never fails.
set -u

# command:package
wanted="dnsmasq:dnsmasq-base wrk:wrk strace:strace ip:iproute2 etcd:etcd-server mkfs.ext4:e2fsprogs curl:curl faketime:faketime podman:podman openssl:openssl runc:runc mmdebstrap:mmdebstrap postgres:postgresql setpriv:util-linux node:nodejs"

# Debian keeps PostgreSQL's programs off the path, one folder per version.
postgres=$(echo /usr/lib/postgresql/*/bin | tr ' ' ':')

packages=""
commands=""
for pair in $wanted; do
    command=${pair%%:*}
    if ! PATH="$PATH:/usr/sbin:/sbin:$postgres" command -v "$command" >/dev/null 2>&1; then
        packages="$packages ${pair#*:}"
        commands="$commands $command"
    fi
done
[ -z "$packages" ] && exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing$packages" >&2
    export DEBIAN_FRONTEND=noninteractive
    timeout 120 apt-get -qq update >/dev/null 2>&1
    # One by one: a package that this release does not have must not cost the others.
    missing=""
    for package in $packages; do
        timeout 300 apt-get -qq install --yes --no-install-recommends "$package" >/dev/null 2>&1 ||
            missing="$missing $package"
    done
    [ -z "$missing" ] && exit 0
    echo "could not be installed:$missing; tests that need them are skipped" >&2
else
    echo "not found:$commands; tests that need them are skipped (packages:$packages)" >&2
fi
exit 0
