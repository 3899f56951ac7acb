#!/usr/bin/env bash
# Installs what a target of the Makefile needs on a bare Debian machine, and says what it installs. Nothing that is there already is touched.
#   scripts/bootstrap.sh run     build the gateway and try it
#   scripts/bootstrap.sh cluster the same, and what a Kubernetes on this machine is made of
#   scripts/bootstrap.sh test    all of that, and real engines and peers for the tests
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:?say run, cluster or test}

packages=(build-essential cmake pkg-config ca-certificates curl git)
if [ "$what" != run ]; then
    # containerd, runc and the CNI plugins run the pods; iptables and conntrack are kube-proxy's; gcc of build-essential makes the pause image.
    # clamd and rspamd are packed into images; swaks sends mail by hand; libfaketime sets an operator's clock apart.
    packages+=(containerd runc containernetworking-plugins iptables conntrack iproute2 procps clamav-daemon rspamd swaks libfaketime)
fi
if [ "$what" = test ]; then
    # clamd and rspamd are the real engines, too, swaks and postfix the real peers, 7z and zip make odd archives.
    packages+=(clamav clamav-testfiles libnet-ssleay-perl postfix zip p7zip-full bsdutils)
fi
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing Debian packages: ${missing[*]}"
    # Services that a package would start are not wanted: tests start their own, in their own directories.
    policy=/usr/sbin/policy-rc.d
    made=
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null
        $sudo chmod 755 $policy
        made=yes
    fi
    $sudo apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    [ -z "$made" ] || $sudo rm -f $policy
fi

export PATH="$HOME/.cargo/bin:$PATH"
if ! command -v rustup >/dev/null; then
    if apt-cache show rustup >/dev/null 2>&1; then
        echo "installing Debian package: rustup"
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rustup >/dev/null
    else
        echo "installing rustup (https://rustup.rs) for this user"
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none
    fi
fi
toolchain=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
if ! rustup toolchain list | grep -q "^$toolchain-"; then
    echo "installing Rust $toolchain"
    rustup toolchain install "$toolchain" --profile minimal --component clippy --component rustfmt
fi
# Kubernetes and its company are built with Go. From 1.21 on a go command fetches the version that a module wants; Debian 12's is 1.19, which still can fetch
# a newer Go as a module (checked by the checksum database), that then serves.
go_of() { "$1" version 2>/dev/null | sed -n 's/^go version go1\.\([0-9]*\).*/\1/p'; }
recent_go() {
    for go in go /usr/local/go/bin/go "$HOME/.cache/sekimori/go/bin/go"; do
        [ "$(go_of "$go")" -ge 21 ] 2>/dev/null && return 0
    done
    return 1
}
if [ "$what" != run ] && ! recent_go; then
    if ! command -v go >/dev/null; then
        echo "installing Debian package: golang-go"
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends golang-go >/dev/null
    fi
    if ! recent_go; then
        version=v0.0.1-go1.26.8.linux-$(dpkg --print-architecture)
        echo "fetching Go ($version) with Debian's go"
        fetched=$(cd / && go mod download -json "golang.org/toolchain@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
        mkdir -p "$HOME/.cache/sekimori"
        rm -rf "$HOME/.cache/sekimori/go.new"
        cp -r "$fetched" "$HOME/.cache/sekimori/go.new"
        chmod -R u+w "$HOME/.cache/sekimori/go.new"
        # A module carries no modes: what runs is in these two places.
        chmod -R a+x "$HOME/.cache/sekimori/go.new/bin" "$HOME/.cache/sekimori/go.new/pkg/tool"
        rm -rf "$HOME/.cache/sekimori/go"
        mv "$HOME/.cache/sekimori/go.new" "$HOME/.cache/sekimori/go"
    fi
    recent_go || { echo "no Go from 1.21 on could be had; install one (https://go.dev/doc/install) and try again" >&2; exit 1; }
fi
if [ "$what" = test ] && ! cargo deny --version >/dev/null 2>&1; then
    echo "installing cargo-deny (takes a few minutes, once)"
    cargo install --locked --quiet cargo-deny@0.20.2
fi
