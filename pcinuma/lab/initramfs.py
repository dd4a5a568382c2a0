# SPDX-License-Identifier: LGPL-2.1-or-later
"""Initramfs images: busybox-static, kernel modules and an init, as an uncompressed ``newc`` cpio archive.

:data:`TREE_INIT` prints what the kernel knows about PCI and NUMA and resets. It loads nothing and forks nearly nothing, since a
guest under TCG pays for forks: everything is a shell builtin (``cd -P`` resolves the chain of bridges). It waits a moment before the
reset, because the last line of a serial console is lost without.
"""

from __future__ import annotations

import lzma
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Optional

from pcinuma.lab import LabError
from pcinuma.lab.kernel import Kernel, decompressed

BEGIN = "=====PCINUMA-TREE-BEGIN====="
END = "=====PCINUMA-TREE-END====="

PRINT_TREE = """
print_tree() {
    echo "%(begin)s"
    for node in /sys/devices/system/node/node[0-9]*; do
        cpus=
        for cpu in "$node"/cpu[0-9]*; do
            [ -e "$cpu" ] && cpus="$cpus${cpus:+,}${cpu##*/cpu}"
        done
        distance=; read -r distances <"$node/distance"
        for value in $distances; do distance="$distance${distance:+,}$value"; done
        memory=; read -r _ _ _ memory _ <"$node/meminfo"
        echo "node id=${node##*/node} cpus=$cpus distance=$distance memory=$memory"
    done
    for device in /sys/bus/pci/devices/*; do
        cd -P "$device" || continue
        read -r class <class; read -r vendor <vendor; read -r id <device
        numa_node=; read -r numa_node <numa_node
        cpus=; read -r cpus <local_cpulist
        behind=; for bus in pci_bus/*; do [ -e "$bus" ] && behind=${bus##*:}; done
        speed=; [ -e max_link_speed ] && read -r speed _ <max_link_speed
        width=; [ -e max_link_width ] && read -r width <max_link_width
        echo "pci path=$PWD class=$class vendor=$vendor device=$id numa_node=$numa_node local_cpulist=$cpus behind=$behind" \
            "speed=$speed width=$width"
    done
    cd /
    echo "%(end)s"
}
""" % {"begin": BEGIN, "end": END}

RESET = """
sleep 0.2
echo b >/proc/sysrq-trigger
"""

MOUNTS = """
mount -t sysfs sysfs /sys
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
"""

TREE_INIT = "#!/bin/sh\n" + MOUNTS + PRINT_TREE + "exec >/dev/ttyS0 2>&1\nprint_tree\n" + RESET

_APPLETS = ("sh", "mount", "sleep", "cat", "echo", "ls", "insmod", "mkdir", "mknod", "ln", "dd", "switch_root", "od", "stty")


def busybox() -> Path:
    """A statically linked busybox of this machine."""
    for candidate in (shutil.which("busybox-static"), shutil.which("busybox"), "/usr/sbin/busybox", "/sbin/busybox"):
        if candidate and Path(candidate).is_file() and _is_static(Path(candidate)):
            return Path(candidate)
    raise LabError("there is no statically linked busybox", hint="install busybox-static (Debian) or busybox (Fedora)")


def _is_static(binary: Path) -> bool:
    return b"/ld-linux" not in binary.read_bytes()[:4096]


def tree_image(init: str = TREE_INIT, extra: Optional[Mapping[str, bytes]] = None, box: Optional[Path] = None) -> bytes:
    """The archive of a guest that needs no modules. ``box``: the busybox of another architecture."""
    return image({"init": init.encode(), **(extra or {})}, box)


def image(files: Mapping[str, bytes], box: Optional[Path] = None) -> bytes:
    """An archive with busybox and ``files`` (path -> content; all of them executable)."""
    archive = _Archive()
    for folder in ("bin", "dev", "proc", "sys", "tmp", "mnt", "lib", "run"):
        archive.folder(folder)
    archive.console()
    archive.file("bin/busybox", (box or busybox()).read_bytes())
    for applet in _APPLETS:
        archive.link("bin/" + applet, "busybox")
    for path in sorted(files):
        archive.file(path, files[path])
    return archive.finish()


def modules(kernel: Kernel, names: Iterable[str]) -> list[tuple[str, bytes]]:
    """``names`` with all that they depend on, in an order that ``insmod`` accepts: (file name, content). Built-in ones are left out."""
    dependencies: dict[str, list[str]] = {}
    paths: dict[str, str] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        paths[_module_name(path)] = path
        dependencies[_module_name(path)] = [_module_name(item) for item in needs.split()]
    builtin = {_module_name(line) for line in (kernel.modules / "modules.builtin").read_text().splitlines()}
    ordered: list[str] = []

    def visit(name: str) -> None:
        if name in builtin or name in ordered:
            return
        if name not in paths:
            raise LabError("the kernel has no such module", subject=name)
        for needed in dependencies[name]:
            visit(needed)
        ordered.append(name)

    for name in names:
        visit(name)
    return [(name + ".ko", _module(kernel.modules / paths[name])) for name in ordered]


def _module_name(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


def _module(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    if path.suffix == ".zst":
        return decompressed("zstd", content)
    return content


class _Archive:
    """The cpio ``newc`` format (Linux' ``Documentation/driver-api/early-userspace/buffer-format.rst``)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 1
        self._folders: set[str] = set()

    def _entry(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        path = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + path
        self._parts.append(header + b"\0" * (-len(header) % 4) + content + b"\0" * (-len(content) % 4))
        self._inode += 1

    def folder(self, name: str) -> None:
        if name and name not in self._folders:
            self.folder(name.rpartition("/")[0])
            self._folders.add(name)
            self._entry(name, 0o040755)

    def file(self, name: str, content: bytes) -> None:
        self.folder(name.rpartition("/")[0])
        self._entry(name, 0o100755, content)

    def link(self, name: str, target: str) -> None:
        self._entry(name, 0o120777, target.encode())

    def console(self) -> None:
        self._entry("dev/console", 0o020600, device=(5, 1))

    def finish(self) -> bytes:
        self._entry("TRAILER!!!", 0)
        return b"".join(self._parts)
