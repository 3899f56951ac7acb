#!/usr/bin/env bash
# Installs what a target of the Makefile needs on a bare Debian machine, and says what it installs. Nothing that is there already is touched.
#   scripts/bootstrap.sh run     build the gateway and try it
#   scripts/bootstrap.sh test    the same, and real engines and peers for the tests
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:?say run or test}

packages=(build-essential cmake pkg-config ca-certificates curl git)
if [ "$what" = test ]; then
    # clamd and rspamd are the real engines, swaks and postfix the real peers, 7z and zip make odd archives.
    packages+=(clamav-daemon clamav clamav-testfiles rspamd swaks libnet-ssleay-perl postfix zip p7zip-full procps bsdutils)
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
if [ "$what" = test ] && ! cargo deny --version >/dev/null 2>&1; then
    echo "installing cargo-deny (takes a few minutes, once)"
    cargo install --locked --quiet cargo-deny@0.20.2
fi
