#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Puts pcinuma on this host as a package of its distribution, built of this checkout. From then on the files are the package manager's.
set -eu -o pipefail
umask 022
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
SELF=${0##*/} COMMAND_LINE="$0${*:+ $*}"
SOURCE=$(cd "$(dirname "$0")" && pwd)
SETUP=/usr/share/pcinuma/host-setup

usage() {
    cat <<TEXT
Usage: $SELF [OPTION]...
Build the package of this checkout, and install it or bring an installed one up to date.

  --no-packages   install no other packages; stop if something is missing
  --uninstall     remove the package: placed domains are reverted, the configuration stays
  --purge         the same, and remove the configuration
  --force         with --uninstall or --purge: go on although a domain cannot be reverted
  --demo [ARG]... install nothing but what the demonstration needs, and run it: a virtual
                  two-socket host, a guest in it, and what its kernel sees with and without
                  pcinuma (ARGs go to 'pcinuma demo')
  --help          show this text

Without options it also installs what is missing (libvirt and QEMU only where the host has
none). It can be run again at any time. For Debian, Ubuntu, Fedora and RHEL; elsewhere:
make install && $SETUP installed
TEXT
}

die() {
    printf '%s: %s\n' "$SELF" "$1" >&2
    exit "${2:-1}"
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# quietly COMMAND...: of what it says, the lines of pcinuma's own scripts; all of it if it fails.
quietly() {
    if ! "$@" >"$WORK/said" 2>&1 </dev/null; then
        tail -n 30 "$WORK/said" >&2
        return 1
    fi
    sed -n 's/^pcinuma: /  /p; /: .*reverted/s/^/  /p' "$WORK/said"
}

# A libvirt in a container shows by its socket alone; QEMU is then where libvirt is: elsewhere.
have_libvirt() {
    have libvirtd || have virtqemud || [ -S /run/libvirt/libvirt-sock ] || [ -S /run/libvirt/virtqemud-sock ]
}

have_qemu() {
    local machine
    machine=$(uname -m)
    have "qemu-system-${machine%le}" || have qemu-kvm || have kvm || [ -x /usr/libexec/qemu-kvm ] || { have_libvirt && ! have libvirtd && ! have virtqemud; }
}

# need PACKAGE...: those that are not there are installed, unless --no-packages forbids it; so is a hypervisor where there is none.
need() {
    local package wanted=()
    for package in python3 "${MODULES[@]}" "$@"; do
        is_there "$package" || wanted+=("$package")
    done
    if [ $PACKAGES = no ]; then
        [ ${#wanted[@]} -eq 0 ] || die "missing: ${wanted[*]}"
        return
    fi
    have_libvirt || wanted+=("${LIBVIRT[@]}")
    have_qemu || wanted+=("${QEMU[@]}")
    if [ ${#wanted[@]} -gt 0 ]; then
        printf '  installing packages: %s ...\n' "${wanted[*]}"
        fetch "${wanted[@]}"
    fi
}

install_all() {
    local nodes=(/sys/devices/system/node/node[0-9]*) version
    version=$(sed -n 's/^__version__ *= *"\(.*\)".*/\1/p' "$SOURCE/pcinuma/__init__.py")
    echo "Installing pcinuma $version"
    [ $PACKAGES = no ] || TOOLS+=("${NAMES[@]}") # devices by name; it works without
    need "${TOOLS[@]}"
    build "$WORK/$FILE"
    if is_installed "$WORK/$FILE"; then
        quietly "$SETUP" installed
        echo "Everything is in place already; nothing was changed."
    else
        install_package "$WORK/$FILE"
        echo "pcinuma $version is installed."
    fi
    [ ! -d /run/systemd/system ] || systemctl -q enable --now pcinuma.socket pcinuma.service ||
        die "pcinuma.service does not start; see: systemctl status pcinuma"
    [ ${#nodes[@]} -gt 1 ] || echo "Note: this host has one NUMA node, so guests see no difference; $0 --demo shows one on a virtual host of two."
    have libvirtd || have virtqemud || echo "Note: this host's libvirt runs elsewhere (a container) and has hooks of its own: put \
/usr/share/pcinuma/qemu-hook into its /etc/libvirt/hooks/qemu.d, /run/pcinuma too, and have it reload."
    if [ ! -d /run/systemd/system ] && [ -n "$("$SETUP" commands)" ]; then
        echo "No systemd runs here, so nothing was started. To start it now, or whenever this host starts:"
        "$SETUP" commands | sed 's/^/  /'
    fi
    cat <<TEXT
Next:
  pcinuma check             is this host ready?
  pcinuma status            the domains, and where each one's devices are
  pcinuma enable DOMAIN     take in a domain that was defined before pcinuma came (they are left alone)
TEXT
}

uninstall() {
    if is_there pcinuma || { [ $PURGE = yes ] && leaves_configuration; }; then
        echo "Removing pcinuma"
    elif [ -x /usr/lib/pcinuma/install.sh ]; then
        exec /usr/lib/pcinuma/install.sh "${ARGUMENTS[@]}" # as it was installed before there were packages
    else
        echo "Nothing of pcinuma is installed here."
        return
    fi
    [ $FORCE = no ] || { mkdir -p /run/pcinuma && : >/run/pcinuma/leave-placed; }
    if ! "$([ $PURGE = yes ] && echo purge || echo remove)_package"; then
        rm -f /run/pcinuma/leave-placed
        die "nothing was removed"
    fi
    echo "pcinuma is removed."
    ! leaves_configuration || echo "The configuration in /etc/pcinuma stays; --purge removes it too."
}

demo() {
    [ $PACKAGES = no ] || need make "${DEMO[@]}"
    rm -rf "$WORK"
    cd "$SOURCE"
    exec /usr/bin/python3 -B -m pcinuma demo "$@"
}

ACTION=install_all PACKAGES=yes PURGE=no FORCE=no ARGUMENTS=("$@") MODULES=(python3-libvirt python3-lxml python3-psutil python3-structlog)
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage && exit 0 ;;
        --no-packages) PACKAGES=no ;;
        --uninstall) ACTION=uninstall ;;
        --purge) ACTION=uninstall PURGE=yes ;;
        --force) FORCE=yes ;;
        --demo) ACTION=demo && shift && break ;;
        *) die "unknown option '$1'; see $0 --help" 2 ;;
    esac
    shift
done
[ $FORCE = no ] || [ $ACTION = uninstall ] || die "--force goes with --uninstall or --purge only; see $0 --help" 2
[ "$(id -u)" -eq 0 ] || die "must be run as root, for example: sudo $COMMAND_LINE"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
if have dpkg-deb; then
    . "$SOURCE/packaging/install/debian.sh"
elif have dnf; then
    . "$SOURCE/packaging/install/fedora.sh"
else
    die "knows packages of Debian, Ubuntu, Fedora and RHEL only; elsewhere: make install && $SETUP installed"
fi
$ACTION "$@"
