#!/bin/sh
# A real Kubernetes to test the chart on, for machines without one: its API server, controllers, scheduler,
# kubelet and proxy, built from the distribution's own source package (Debian 12 has 1.20.2 whole; later
# releases have only kubectl). Needs root (for the compiler and containerd), 2 GB of disk and some five
# minutes of two cores, once: the programs stay in ${XDG_CACHE_HOME:-~/.cache}/kvnode/kubernetes. Used by
# tests/k8s/one_node.py.
set -eu

target=${XDG_CACHE_HOME:-$HOME/.cache}/kvnode/kubernetes
programs="kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy"
[ -e "$target/complete" ] && exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "needs root and apt-get" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update || true
apt-get -qq install --yes --no-install-recommends \
    golang-go dpkg-dev containerd containernetworking-plugins runc etcd-server conntrack iptables socat >/dev/null

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The machine's own package sources, for source packages, without a change to the machine.
mkdir -p "$work/sources" "$work/lists/partial" "$work/cache/archives/partial"
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
    [ -f "$file" ] && sed -E 's/^Types: deb$/Types: deb-src/; s/^deb /deb-src /' "$file" >"$work/sources/$(basename "$file")"
done
set -- -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$work/sources" \
    -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache"
apt-get -qq "$@" update >/dev/null 2>&1 || true
(cd "$work" && apt-get -qq "$@" source --download-only kubernetes=1.20.* >/dev/null 2>&1) ||
    (cd "$work" && apt-get -qq "$@" source --download-only kubernetes >/dev/null)
mkdir -p "$work/go/src/k8s.io"
tree=$work/go/src/k8s.io/kubernetes
dpkg-source --no-check -x "$work"/kubernetes_*.dsc "$tree" >/dev/null 2>&1
cd "$tree"
for program in $programs; do
    [ -d "cmd/$program" ] || { echo "this release's source package has no $program" >&2; exit 1; }
done

export GO111MODULE=off CGO_ENABLED=0 GOPATH="$work/go" GOCACHE="$work/build" GOFLAGS=
version=v1.20.2
flags="-s -w"
for package in component-base/version client-go/pkg/version; do
    name=k8s.io/kubernetes/vendor/k8s.io/$package
    flags="$flags -X $name.gitVersion=$version -X $name.gitMajor=1 -X $name.gitMinor=20"
done

# The API server's own description of its types is generated, and not in the package.
go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
types=$(grep -rlE '^// \+k8s:openapi-gen=' --include='*.go' staging/src/k8s.io pkg/apis |
    grep -vE '_test|sample-|code-generator|examples|testdata' | xargs -n 1 dirname | sort -u |
    sed 's#^staging/src/##; t; s#^#k8s.io/kubernetes/#' | paste -sd, -)
"$work/openapi-gen" -i "$types" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
    -h hack/boilerplate/boilerplate.generatego.txt -r "$work/violations" --output-base "$work/go/src" 2>/dev/null

mkdir -p "$target"
for program in $programs; do
    echo "building $program" >&2
    go build -ldflags "$flags" -o "$target/$program" "./cmd/$program"
done

# What holds a pod's namespaces open. As first process it also takes in those that lost their parent.
mkdir "$work/pause"
cat >"$work/pause/main.go" <<'END'
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for got := range signals {
		if got != syscall.SIGCHLD {
			os.Exit(0)
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
END
go build -ldflags "-s -w" -o "$target/pause" "$work/pause/main.go"
touch "$target/complete"
ls -l "$target" >&2
