#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Boots systemd in namespaces, on a copy-on-write view of this machine's own root, or of ROOT with all that is in it. Run by booted.py, in
# a mount namespace of its own: booted.sh BASE CHECKOUT GIVEN [ROOT], with an empty folder, the checkout, and a folder with the /etc to use
# and the list of what is hidden in /usr.
set -eu
base=$1 checkout=$2 given=$3 of=${4-} functions=$(dirname "$0")/namespace.sh
# shellcheck source=tests/libvirt/namespace.sh
. "$functions"
[ "$(readlink /proc/self/ns/mnt)" != "$(readlink /proc/$PPID/ns/mnt)" ] # the mounts below are never to be seen outside

mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$base"
mkdir "$base/upper" "$base/work" "$base/root" "$base/cgroup"

# A cgroup of its own, which becomes the root of the hierarchy inside.
mount -t cgroup2 cgroup2 "$base/cgroup"
group=$base/cgroup/pcinuma-booted-$$
mkdir "$group"
echo $$ >"$group/cgroup.procs"

if [ -n "$of" ]; then
    mount -t overlay -o "lowerdir=$of,upperdir=$base/upper,workdir=$base/work" overlay "$base/root"
else
    # Of this machine there are its programs: not what is configured on it, nor its state, nor a pcinuma that is installed on it.
    mkdir -p "$base/hidden/usr"
    for folder in etc var root home srv opt; do
        mknod "$base/hidden/$folder" c 0 0
        mkdir "$base/upper/$folder"
    done
    hide "$given/hidden" "$base/hidden/usr"
    cp -R "$given/etc/." "$base/upper/etc"
    ln -s /run "$base/upper/var/run"
    mkdir -p "$base/upper/var/log/libvirt/qemu" "$base/upper/var/lib/libvirt/qemu" "$base/upper/var/cache/libvirt/qemu"
    [ ! -d "$given/dpkg" ] || cp -R "$given/dpkg" "$base/upper/var/lib"
    mount -t overlay -o "lowerdir=$base/hidden:/,upperdir=$base/upper,workdir=$base/work" overlay "$base/root"
fi
root=$base/root
rm -f "$root/usr/sbin/policy-rc.d" # what a container or a test's chroot has against services that start

# shellcheck disable=SC2016  # expanded by the inner shell
unshare --mount --pid --uts --ipc --net --cgroup --fork --kill-child sh -eu -c '
    root=$1 checkout=$2
    . "$3"
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    harmless_devices "$root/dev"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    if [ ! -d "$root$checkout" ]; then # it lies below one of the folders that are new inside
        mkdir -p "$root$checkout"
        mount --bind "$checkout" "$root$checkout"
        mount -o remount,bind,ro "$root$checkout"
    fi
    ip link set lo up
    cd "$root"
    exec chroot "$root" env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=basic.target --log-target=console
' sh "$root" "$checkout" "$functions" || true

echo $$ >"$base/cgroup/cgroup.procs"
find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
