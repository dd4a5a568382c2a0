# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034  # install.sh has the variables
# Debian and Ubuntu, for install.sh: how packages are looked for, made, installed and removed there.

LIBVIRT=(libvirt-daemon-system libvirt-clients dnsmasq-base)
case $(uname -m) in
    x86_64) QEMU=(qemu-system-x86 qemu-utils ovmf) ;;
    aarch64) QEMU=(qemu-system-arm qemu-utils qemu-efi-aarch64) ;;
    *) QEMU=(qemu-system-ppc qemu-utils) ;;
esac
FILE=pcinuma.deb
TOOLS=(make)
NAMES=(pci.ids)
DEMO=(busybox-static dbus iproute2 kmod xz-utils zstd)
OPTIONS=(-qy -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold --no-install-recommends)
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l APT_LISTCHANGES_FRONTEND=none

is_there() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

fetch() {
    quietly apt-get -q update || echo "Note: apt-get update failed (above); going on with the package lists as they were."
    quietly apt-get "${OPTIONS[@]}" install "$@"
    # What only pcinuma is the reason for goes when pcinuma has gone, by apt autoremove.
    printf '%s\n' "$@" | grep -e '^python3' -e '^make$' -e '^pci\.ids$' | xargs -r apt-mark auto >/dev/null 2>&1 || true
}

build() {
    "$SOURCE/packaging/plain-deb" "$1"
}

is_installed() { # this very package, and nobody has changed its files
    local file
    is_there pcinuma && [ "$(dpkg-query -W -f '${Version}' pcinuma)" = "$(dpkg-deb -f "$1" Version)" ] && dpkg-deb -e "$1" "$1.control" || return 1
    for file in md5sums postinst prerm postrm; do
        cmp -s "$1.control/$file" "$(dpkg-query --control-path pcinuma $file)" || return 1
    done
    if dpkg -V pcinuma | grep -qv ' c /'; then
        return 1
    fi
}

install_package() {
    if [ "$PACKAGES" = yes ]; then
        quietly apt-get "${OPTIONS[@]}" --reinstall --allow-downgrades install "$1"
    else
        quietly dpkg --force-confdef --force-confold -i "$1"
    fi
}

remove_package() {
    quietly dpkg --remove pcinuma
}

purge_package() {
    quietly dpkg --purge pcinuma
}

leaves_configuration() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' pcinuma 2>/dev/null)" = config-files ]
}
