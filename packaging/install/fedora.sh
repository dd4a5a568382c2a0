# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034  # install.sh has the variables
# Fedora and RHEL, for install.sh: how packages are looked for, made, installed and removed there.

LIBVIRT=(libvirt-daemon-kvm libvirt-client)
QEMU=(qemu-kvm)
FILE=pcinuma.rpm
TOOLS=(make python3-devel rpm-build systemd-rpm-macros)
NAMES=(hwdata)
DEMO=()

is_there() {
    rpm -q --quiet --whatprovides "$1"
}

fetch() {
    if [[ " $* " == *" python3-structlog "* ]] && ! quietly dnf -q list python3-structlog; then
        die "python3-structlog is in EPEL here, which this host does not use: 'dnf install epel-release' (or your mirror of it), then run it again"
    fi
    quietly dnf -qy install "$@"
}

build() {
    local folder
    folder=$(dirname "$1")/built
    quietly "$SOURCE/packaging/build-rpm" "$folder"
    mv "$folder"/pcinuma-*.rpm "$1"
}

is_installed() { # this very package, and nobody has changed its files
    local query='%{VERSION}-%{RELEASE}[ %{FILENAMES} %{FILEDIGESTS}][ %{POSTIN} %{PREUN} %{POSTUN}]'
    is_there pcinuma && [ "$(rpm -q --qf "$query" pcinuma)" = "$(rpm -qp --qf "$query" "$1")" ] || return 1
    if rpm -V pcinuma | grep -qv ' c /'; then
        return 1
    fi
}

install_package() {
    # What has the same version is installed again by no word of dnf's that also takes another.
    quietly rpm -U --replacepkgs --oldpackage "$1"
}

remove_package() {
    quietly rpm -e pcinuma
}

purge_package() {
    { ! is_there pcinuma || quietly rpm -e pcinuma; } && rm -rf /etc/pcinuma
}

leaves_configuration() {
    [ -d /etc/pcinuma ] && ! is_there pcinuma
}
