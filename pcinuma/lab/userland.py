# SPDX-License-Identifier: LGPL-2.1-or-later
"""The virtual host's userland: this machine's own programs and libraries over 9p, and nothing else of it.

Exported read-only, each by itself: ``/usr/bin sbin lib lib64 libexec share``, the checkout, the modules of the kernel. Homes,
``/usr/local``, ``/var`` and ``/etc`` are not: the virtual host's ``/etc`` is made here, of what programs need to run (the linker's cache,
the alternatives' links, D-Bus' and Python's configuration, the names of system accounts), and holds no secret. A pcinuma
that is installed here, of whatever version, is hidden (:func:`installed`): what runs there is the checkout's. On top of all lies a
tmpfs, so the virtual host can install into ``/usr`` and this machine never sees it. One more export is writable: the folder of the job,
by which work goes in and results come out.

Another distribution's userland than this machine's is a matter of its root directory in ``PCINUMA_LAB_USERLAND``; the kernel stays.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pcinuma.lab import initramfs
from pcinuma.lab.kernel import Kernel

_PROGRAMS = ("bin", "sbin", "lib", "lib64", "libexec", "share")
_ETC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "dbus-1", "debian_version", "services", "protocols", "mime.types")
_ACCOUNTS = ("root", "daemon", "nobody", "messagebus", "dbus", "libvirt-qemu", "qemu", "libvirtdbus", "tss", "polkitd", "_apt")
_GROUPS = ("nogroup", "kvm", "libvirt", "render", "tty", "disk", "tape", "cdrom", "input", "sgx", "utmp", "adm", "utempter")
_FIELDS = ("Package: ", "Status: ", "Version: ", "Architecture: ", "Multi-Arch: ")
_OTHER_FIELDS = "Maintainer: nobody\nDescription: of the machine below\n\n"
PACKAGES = ("make", "python3", "python3-libvirt", "python3-lxml", "python3-psutil", "python3-structlog")
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "vfio_pci", "vfio_iommu_type1", "nvme", "e1000e")

_LIBVIRTD = 'auth_unix_ro = "none"\nauth_unix_rw = "none"\nlog_outputs = "3:file:/var/log/libvirt/libvirtd.log"\n'
_QEMU = 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\nnamespaces = []\ndynamic_ownership = 0\nremember_owner = 0\n'

INIT = """#!/bin/sh
mount -t sysfs sysfs /sys
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
exec >/dev/ttyS0 2>&1
for module in /modules/*.ko; do
    insmod "$module" || echo "@@ cannot load $module"
done
mount -t tmpfs -o mode=755 tmpfs /mnt
new=/new
mkdir -p $new /mnt/lower /mnt/upper
mount -t tmpfs -o mode=755 tmpfs $new
cd $new
mkdir -p usr etc run tmp dev proc sys root checkout job mnt layers var/tmp var/lib/dbus
mkdir -p var/lib/libvirt/qemu var/log/libvirt/qemu var/cache/libvirt/qemu
export_of() { # TAG TARGET OPTIONS
    mkdir -p "$2"
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2" || echo "@@ cannot mount $1"
}
for part in @PARTS@; do
    export_of "usr-$part" "/mnt/lower/$part" ro,cache=loose
    mkdir -p "/mnt/hidden/$part" "/mnt/upper/$part" "/mnt/work/$part" "usr/$part"
    layers="lowerdir=/mnt/hidden/$part:/mnt/lower/$part,upperdir=/mnt/upper/$part,workdir=/mnt/work/$part"
    mount -t overlay -o "$layers" overlay "usr/$part" || echo "@@ cannot lay a tmpfs over $part"
    [ -e "$part" ] || ln -s "usr/$part" "$part"
done
export_of checkout checkout ro,cache=loose
export_of job job cache=none
export_of modules usr/lib/modules/@RELEASE@ ro,cache=loose
mkdir -p /mnt/upper/etc /mnt/work/etc
mount -t overlay -o lowerdir=job/etc,upperdir=/mnt/upper/etc,workdir=/mnt/work/etc overlay etc
ln -s /run var/run
mount --move /proc proc; mount --move /sys sys; mount --move /dev dev
mkdir -p dev/pts dev/shm
mount -t devpts devpts dev/pts; mount -t tmpfs tmpfs dev/shm; mount -t tmpfs -o mode=755 tmpfs run; mount -t tmpfs tmpfs tmp
ln -sf /proc/self/fd dev/fd
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --move /mnt layers
exec switch_root $new /bin/sh /job/start
"""


def root() -> Path:
    """The root directory of the distribution whose userland the virtual host gets."""
    return Path(os.environ.get("PCINUMA_LAB_USERLAND", "/"))


def parts() -> list[str]:
    """The folders of /usr that the distribution has and that are worth exporting."""
    return [part for part in _PROGRAMS if (root() / "usr" / part).is_dir() and not (root() / "usr" / part).is_symlink()]


@cache
def installed(root: Path) -> tuple[str, ...]:
    """The files and folders of a pcinuma that is installed in ``root``, of whatever version and by whatever means, relative to its /usr."""
    # By name, since another version may have put other files there; deeper than this no distribution puts a program, unit, page or module.
    argv = ["find", str(root / "usr"), "-xdev", "-mindepth", "2", "-maxdepth", "5", "-name", "*pcinuma*", "-prune", "-printf", "%P\\n"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)  # a folder may be unreadable
    return tuple(sorted(done.stdout.splitlines()))


def image(kernel: Kernel) -> bytes:
    """The virtual host's initramfs."""
    init = INIT.replace("@PARTS@", " ".join(parts())).replace("@RELEASE@", kernel.release)
    files = {"init": init.encode(), "hidden": "".join(f"{file}\n" for file in installed(root())).encode()}
    for number, (name, content) in enumerate(initramfs.modules(kernel, MODULES)):
        files[f"modules/{number:02}-{name}"] = content
    return initramfs.image(files)


def exports(kernel: Kernel, checkout: Path, job: Path) -> list[str]:
    """QEMU's arguments for the exports."""
    folders = [(f"usr-{part}", root() / "usr" / part, True) for part in parts()]
    folders += [("checkout", checkout, True), ("modules", kernel.modules, True), ("job", job, False)]
    argv: list[str] = []
    for number, (tag, path, read_only) in enumerate(folders):
        mode = "readonly=on" if read_only else "readonly=off"
        argv += ["-fsdev", f"local,id=fs{number},path={path},security_model=none,{mode},multidevs=remap"]
        argv += [
            "-device",
            f"virtio-9p-pci,fsdev=fs{number},mount_tag={tag},bus=pcie.0,addr=0x{2 + number // 8:x}.{number % 8:x},multifunction=on",
        ]
    return argv


def write_etc(etc: Path, root: Path) -> None:
    """The /etc of a host that runs the programs of ``root``, and has nothing that an administrator or another package configured there."""
    etc.mkdir(parents=True)
    for name in (*_ETC, *(item.name for item in (root / "etc").glob("python3*"))):
        source = root / "etc" / name
        if source.is_dir():
            shutil.copytree(source, etc / name, symlinks=True, ignore=_unreadable)
        elif source.is_file():
            shutil.copy(source, etc / name)
    (etc / "passwd").write_text("".join(f"{name}:x:{uid}:{gid}::/:/bin/sh\n" for name, uid, gid in _entries(root, "passwd", _ACCOUNTS)))
    (etc / "group").write_text("".join(f"{name}:x:{gid}:\n" for name, gid, _ in _entries(root, "group", (*_ACCOUNTS, *_GROUPS))))
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    (etc / "hosts").write_text("127.0.0.1 localhost virtual-host\n")
    (etc / "hostname").write_text("virtual-host\n")
    (etc / "machine-id").write_text("5c1d2f0a7e904c7e8f4d6b1a20c93e17\n")
    if (root / "usr/lib/os-release").is_file():
        (etc / "os-release").symlink_to("../usr/lib/os-release")
    (etc / "libvirt" / "qemu").mkdir(parents=True)
    (etc / "libvirt" / "libvirtd.conf").write_text(_LIBVIRTD)
    (etc / "libvirt" / "qemu.conf").write_text(_QEMU)
    (etc / "libvirt" / "virtlogd.conf").write_text("")


def write_packages(dpkg: Path, root: Path) -> None:
    """The books of a package manager that knows what pcinuma needs of ``root``, as installed, and nothing else; of Debian's only."""
    if not (root / "var/lib/dpkg/status").is_file():
        return
    for folder in ("info", "updates", "triggers"):
        (dpkg / folder).mkdir(parents=True)
    (dpkg / "info/format").write_text("1\n")
    kept = []
    for entry in (root / "var/lib/dpkg/status").read_text(errors="replace").split("\n\n"):
        name = entry.partition("\n")[0][len("Package: ") :]
        if name in PACKAGES:
            fields = dict(line.split(": ", 1) for line in entry.splitlines() if line.startswith(_FIELDS))
            kept.append("".join(f"{field}: {value}\n" for field, value in fields.items()) + _OTHER_FIELDS)
            architecture = f":{fields['Architecture']}" if fields.get("Multi-Arch") == "same" else ""
            (dpkg / f"info/{name}{architecture}.list").write_text("")
    (dpkg / "status").write_text("".join(kept))
    (dpkg / "available").write_text("")


def _unreadable(folder: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if not (Path(folder, name).is_symlink() or Path(folder, name).is_dir() or Path(folder, name).is_file())]


def _entries(root: Path, file: str, names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Name and the two fields after the password of each account or group of ``names`` that the distribution has."""
    found: dict[str, tuple[str, str, str]] = {}
    for line in (root / "etc" / file).read_text().splitlines():
        name, _, rest = line.partition(":")
        fields = rest.split(":")
        if len(fields) >= 3:
            found[name] = (name, fields[1], fields[2])
    return [found[name] for name in dict.fromkeys(names) if name in found]
