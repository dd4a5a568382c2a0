#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Builds virtqemud and virtproxyd from the source package of a chroot's own libvirt. Debian packages libvirtd only; of the modular daemons
# everything but the two programs is in its packages (libvirt's library, and the QEMU driver as a module).
# Run by modular.py as: unshare --mount --pid --fork --kill-child sh modular_build.sh ROOT SCRATCH TARGET
# What is installed and built lies in a layer over ROOT, in SCRATCH; ROOT stays as it is. TARGET gets the programs and their units.
# Exit 3: the mirror does not keep the source.
set -eu
root=$1 scratch=$2 target=$3

mount --make-rprivate /
mkdir "$scratch/upper" "$scratch/work" "$scratch/merged"
mount -t overlay -o "lowerdir=$root,upperdir=$scratch/upper,workdir=$scratch/work" overlay "$scratch/merged"
mount -t proc proc "$scratch/merged/proc"
mount --rbind /dev "$scratch/merged/dev"
cp /etc/resolv.conf "$scratch/merged/etc/resolv.conf"
cat >"$scratch/merged/build" <<'SCRIPT'
set -eu
export DEBIAN_FRONTEND=noninteractive
# A mirror may be older than its own promise to be fresh.
apt="apt-get -q -y -o Acquire::Check-Valid-Until=false"
sed 's/^deb /deb-src /' /etc/apt/sources.list >/etc/apt/sources.list.d/source.list
version=$(dpkg-query -W -f '${source:Version}' libvirt-daemon)
$apt update
$apt --no-install-recommends install patch xz-utils gcc libc6-dev meson ninja-build pkgconf libxml2-utils xsltproc python3-docutils \
    libglib2.0-dev libgnutls28-dev libxml2-dev libjson-c-dev libtirpc-dev libacl1-dev libnl-3-dev libnl-route-3-dev
cd /tmp
# The archives by the signed index alone, which has their digests: not every mirror keeps the .dsc, which names them once more.
$apt source --print-uris "libvirt=$version" | grep "^'.*\.tar\.xz " >archives
tr -d "'" <archives | while read -r uri file _ digest; do
    /usr/lib/apt/apt-helper download-file "$uri" "$file" "$digest" || exit 3
done
tar -xf libvirt_*.orig.tar.xz
cd libvirt-*/
tar -xf ../libvirt_*.debian.tar.xz
grep -v '^#' debian/patches/series | while read -r name; do patch -s -p1 <"debian/patches/$name"; done
meson setup build --prefix=/usr --libdir=lib/x86_64-linux-gnu --sysconfdir=/etc --localstatedir=/var --buildtype=plain \
    -Drunstatedir=/run -Dauto_features=disabled -Dsystem=true -Dlibnl=enabled -Djson_c=enabled \
    -Ddriver_remote=enabled -Ddriver_libvirtd=enabled -Ddriver_qemu=enabled -Dqemu_user=libvirt-qemu \
    -Dqemu_group=libvirt-qemu -Ddocs=disabled -Dtests=disabled -Dinit_script=systemd
ninja -C build src/virtqemud src/virtproxyd
SCRIPT
chroot "$scratch/merged" sh /build
mkdir "$target"
built=$(echo "$scratch/merged"/tmp/libvirt-*/build/src)
cp "$built/virtqemud" "$built/virtproxyd" "$target"
for unit in "$built"/virtqemud*.s* "$built"/virtproxyd*.s*; do
    case $unit in *.socket | *.service) cp "$unit" "$target" ;; esac
done
