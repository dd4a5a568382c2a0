#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# The first process of a private host: mounts a libvirt installation of its own over ROOT's and then reaps children until it is killed.
# Run by harness.py as: unshare --mount --pid --net --ipc --uts --fork --kill-child sh harness_namespace.sh BASE ROOT CHECKOUT [SYS]
# BASE is the folder with what is private (etc, run, var, dev, what is written to usr); ROOT is / or a chroot of another distribution; SYS is a tree whose PCI
# devices are to be seen in /sys instead of the machine's.
set -eu
base=$1 root=${2%/} checkout=$3 sys=${4-}
# shellcheck source=tests/libvirt/namespace.sh
. "$(dirname "$0")/namespace.sh"

mount --make-rprivate /
mount -t proc proc "$root/proc"
# A new sysfs shows this network namespace; read-only, and without the machine's cgroups.
mount -t sysfs -o ro sysfs "$root/sys"
if [ -n "$sys" ]; then
    # Devices refer to each other by relative links between these folders; the machine's own CPUs and nodes stay.
    mkdir "$base/system"
    mount --bind "$root/sys/devices/system" "$base/system"
    for folder in devices bus/pci class/net kernel/iommu_groups; do
        mount --bind "$sys/$folder" "$root/sys/$folder"
    done
    mount --move "$base/system" "$root/sys/devices/system"
fi
ip link set lo up

# A /dev with the harmless devices only: with /dev/kvm in sight but unusable, libvirt's probing of QEMU hangs for minutes.
harmless_devices "$base/dev"
ln -s /proc/self/fd/0 "$base/dev/stdin"
ln -s /proc/self/fd/1 "$base/dev/stdout"
ln -s /proc/self/fd/2 "$base/dev/stderr"

mount --bind "$checkout" "$base/checkout"
[ -z "$root" ] || mount --rbind /tmp "$root/tmp"
# The distribution's /usr without what of pcinuma is installed in it (BASE/hidden), and with a layer of its own for what is written.
mount -t tmpfs -o mode=755 tmpfs "$base/usr"
mkdir "$base/usr/hidden" "$base/usr/upper" "$base/usr/work"
hide "$base/hidden" "$base/usr/hidden"
mount -t overlay -o "lowerdir=$base/usr/hidden:$root/usr,upperdir=$base/usr/upper,workdir=$base/usr/work" overlay "$root/usr"
for folder in dev etc var run; do
    mount --rbind "$base/$folder" "$root/$folder"
done
# Wherever it lies, also below one of these.
mkdir -p "$root$checkout"
mount --bind "$base/checkout" "$root$checkout"

: > "$base/ready"
# shellcheck disable=SC2016  # expanded by the inner shell
exec chroot "$root/" /bin/sh -c 'cd /; while :; do sleep 1000000 & wait $!; done'
