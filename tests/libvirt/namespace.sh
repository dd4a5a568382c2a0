# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=sh
# What both kinds of namespaces of these tests are made of; for harness_namespace.sh and booted.sh.

# harmless_devices DEV: a /dev without anything that belongs to the machine.
harmless_devices() {
    mount -t tmpfs -o mode=755 tmpfs "$1"
    for node in null zero full random urandom tty; do
        : >"$1/$node"
        mount --bind "/dev/$node" "$1/$node"
    done
    mkdir "$1/pts" "$1/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$1/pts"
    mount -t tmpfs tmpfs "$1/shm"
    ln -s pts/ptmx "$1/ptmx"
    ln -s /proc/self/fd "$1/fd"
}

# hide LIST LAYER: a layer for overlayfs without the files that LIST names: such a device says that there is no file below it.
hide() {
    while read -r file; do
        mkdir -p "$2/${file%/*}"
        mknod "$2/$file" c 0 0
    done <"$1"
}
