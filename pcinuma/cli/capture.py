# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma capture``: the host's PCI and NUMA tree as a tar file that every ``--root`` understands once it is unpacked.

It makes a user's report into a test (hwloc's ``hwloc-gather-topology`` is the model). What goes in is a list, not a folder: names,
numbers and links that :mod:`pcinuma.host` reads, the CPUs' kind and address bits, the machine's model, and pcinuma's own configuration.
No serial numbers, MAC addresses or host names: of the configuration space only the first 256 bytes of bridges are taken, and the ACS and
ATS registers (:func:`pcinuma.host.pci_config.without_identity`), so no Device Serial Number and no VPD. The same tree gives the same bytes.
"""

from __future__ import annotations

import argparse
import errno
import gzip
import io
import json
import os
import posixpath
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from pcinuma.cli.connect import host_root
from pcinuma.errors import EXIT_DONE, ConfigError, HostError, UnusableInput
from pcinuma.host.capacity import default_hugepage_kib
from pcinuma.host.pci_config import SIZE, without_identity
from pcinuma.host.place import HostReader
from pcinuma.host.sysfs import Sysfs
from pcinuma.host.topology import read_topology, require_sys
from pcinuma.printable import printable
from pcinuma.settings import load_settings
from pcinuma.show.progress import Progress

NAME = "capture"
HELP = "save the host's PCI and NUMA tree as a tar file, for a bug report or a test"
EPILOG = """\
examples:
  pcinuma capture                          writes pcinuma-capture.tar.gz here
  pcinuma capture - | ssh elsewhere 'tar xz -C /tmp/machine'
  mkdir machine && tar xzf pcinuma-capture.tar.gz -C machine
  pcinuma topology --root machine          what that host looks like
  pcinuma place --root machine vm.xml      what pcinuma would have done there

In the file: NUMA nodes, their memory and hugepages, PCI devices (numbers, places, links, drivers, BAR sizes, ACS, ATS), the CPUs' kind and
address bits, the machine's model, /etc/pcinuma; with the setting near-backing also the names of block devices and network interfaces (links
below /dev are not in it: name /dev/nvme0n1, not by-id).
Not in it: serial numbers, MAC addresses, host names, memory contents. Run it as root, or switches are guessed from their shape.
"""

_DEFAULT = "pcinuma-capture.tar.gz"
_NODES = "sys/devices/system/node"
_NODE_FILES = ("cpulist", "distance", "meminfo")
_DEVICE_FILES = (
    "class", "vendor", "device", "subsystem_vendor", "subsystem_device", "revision", "numa_node", "local_cpulist", "resource",
    "sriov_numvfs", "sriov_totalvfs", "current_link_speed", "current_link_width", "max_link_speed", "max_link_width",
)  # fmt: skip
_DEVICE_LINKS = ("driver", "iommu_group", "physfn")
_SINGLE_FILES = (
    f"{_NODES}/online", f"{_NODES}/possible", f"{_NODES}/has_cpu", f"{_NODES}/has_memory",
    "sys/devices/system/cpu/online", "sys/devices/system/cpu/possible",
    "sys/class/dmi/id/sys_vendor", "sys/class/dmi/id/product_name", "sys/class/dmi/id/bios_version",
    "etc/pcinuma/pcinuma.conf",
)  # fmt: skip
_CONFIG_BYTES = 256


@dataclass(frozen=True)
class Entry:
    """A thing of the tree: a link (``target``), a file (``content``), or a folder (neither)."""

    content: Optional[bytes] = None
    target: Optional[str] = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", default=_DEFAULT, metavar="FILE", help=f"where to write; - for stdout (default: {_DEFAULT})")
    parser.add_argument("--root", type=Path, metavar="DIR", help="the directory that holds the host's sys/ (default: /)")
    parser.add_argument("--force", action="store_true", help="overwrite FILE if it exists")
    parser.add_argument("--json", action="store_true", help="say what was written as JSON")


def run(args: argparse.Namespace) -> int:
    root = args.root or host_root()
    require_sys(root)
    if args.json and args.file == "-":
        raise UnusableInput("--json and the capture cannot both go to stdout", hint="name a file")
    with Progress("reading the host's tree"):
        entries, unreadable = collect(root)
        data = archive(entries)
        topology = read_topology(root)
    if args.file == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        _write(Path(args.file), data, force=args.force)
    wrote = {
        "file": None if args.file == "-" else args.file,
        "bytes": len(data),
        "entries": len(entries),
        "nodes": len(topology.nodes),
        "devices": len(topology.devices),
        "unreadable": unreadable,
    }
    if args.json:
        print(json.dumps(wrote, indent=2))
        return EXIT_DONE
    out = sys.stderr if args.file == "-" else sys.stdout
    name = "stdout" if args.file == "-" else args.file
    what = f"{len(topology.nodes)} NUMA nodes and {len(topology.devices)} PCI devices"
    print(printable(f"{name}: {what} in {len(data) // 1024 + 1} KiB"), file=out)
    for path in unreadable:
        print(f"pcinuma: /{printable(path)}: cannot be read, and is not in the capture", file=sys.stderr)
    if os.geteuid() != 0 and root == Path("/"):
        print("pcinuma: not root: PCIe port types are missing, so switches will be guessed from their shape", file=sys.stderr)
    return EXIT_DONE


def collect(root: Path) -> tuple[dict[str, Entry], list[str]]:
    """The entries by their path below the root, and the paths that exist but cannot be read."""
    tree = _Tree(root)
    for path in _SINGLE_FILES:
        tree.file(path)
    tree.cpu()
    tree.hugepage_size()
    for name in tree.names("etc/pcinuma/pcinuma.conf.d"):
        tree.file(f"etc/pcinuma/pcinuma.conf.d/{name}")
    for name in tree.names(_NODES):
        if name.startswith("node") and name[4:].isdecimal():
            for leaf in _NODE_FILES:
                tree.file(f"{_NODES}/{name}/{leaf}")
            for size in tree.names(f"{_NODES}/{name}/hugepages"):
                tree.file(f"{_NODES}/{name}/hugepages/{size}/nr_hugepages")
    for name in tree.names("sys/bus/pci/devices"):
        tree.device(f"sys/bus/pci/devices/{name}")
    for name in tree.names("sys/bus/mdev/devices"):
        tree.folder(tree.follow(f"sys/bus/mdev/devices/{name}"))
    for name in tree.names("sys/bus/vdpa/devices"):
        folder = tree.follow(f"sys/bus/vdpa/devices/{name}")
        tree.folder(folder)
        for child in tree.names(folder):
            if child.startswith("vhost-vdpa-"):
                tree.folder(f"{folder}/{child}")
    if _near_backing(root):
        for kind in ("block", "net"):
            for name in tree.names(f"sys/class/{kind}"):
                tree.backing(f"sys/class/{kind}/{name}")
    return tree.entries, tree.unreadable


def _near_backing(root: Path) -> bool:
    try:
        return load_settings(root).near_backing
    except ConfigError:
        return False  # the file is in the capture, for somebody to see what is wrong with it


class _Tree:
    """Collects entries below a root; paths are relative to it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.entries: dict[str, Entry] = {}
        self.unreadable: list[str] = []

    def names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self._root / path))
        except FileNotFoundError:
            return []
        except OSError:
            self.unreadable.append(path)
            return []

    def folder(self, path: str) -> None:
        self.entries.setdefault(path, Entry())

    def file(self, path: str, size: int = -1) -> None:
        try:
            with open(self._root / path, "rb", buffering=0) as file:
                self.entries[path] = Entry(content=file.read(size) or b"")
        except FileNotFoundError:
            return
        except OSError:
            self.unreadable.append(path)

    def config(self, path: str, keep: int) -> None:
        """A configuration space without what identifies the card."""
        self.file(path, SIZE)
        content = self.entries.pop(path, Entry()).content
        if content is not None and (kept := without_identity(content, keep)):
            self.entries[path] = Entry(content=kept)

    def cpu(self) -> None:
        """Of the CPUs only what decides on a guest's address bits, and what kind they are."""
        vendor, bits, gib_pages, family, model = HostReader(self._root).cpu()
        if vendor is None and bits is None:
            return
        lines = [] if vendor is None else [f"vendor_id\t: {vendor}"]
        lines += [] if family is None else [f"cpu family\t: {family}"]
        lines += [] if model is None else [f"model\t\t: {model}"]
        lines += [f"flags\t\t: {'pdpe1gb' if gib_pages else 'none'}"]
        lines += [] if bits is None else [f"address sizes\t: {bits} bits physical"]
        self.entries["proc/cpuinfo"] = Entry(content="".join(f"{line}\n" for line in lines).encode())

    def hugepage_size(self) -> None:
        """Of the machine's memory only the size of the hugepages that the kernel takes where none is named."""
        size = default_hugepage_kib(Sysfs(self._root))
        if size is not None:
            self.entries["proc/meminfo"] = Entry(content=f"Hugepagesize: {size:7} kB\n".encode())

    def follow(self, path: str) -> str:
        """Keep the link at ``path`` and return the path that it leads to; a folder leads to itself."""
        try:
            target = os.readlink(self._root / path)
        except OSError:
            return path
        if target.startswith("/"):
            # An absolute link would leave the capture; sysfs has none.
            target = posixpath.relpath(target, "/" + posixpath.dirname(path))
        self.entries[path] = Entry(target=target)
        return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))

    def backing(self, path: str) -> None:
        """A block device or network interface, and the links to what a virtual one stands on."""
        folder = self.follow(path)
        self.folder(folder)
        self.file(f"{folder}/partition")
        if "/virtual/" not in folder:
            return
        subsystem = posixpath.dirname(folder) if "/nvme-subsystem/" in folder else folder
        links = [f"{folder}/slaves/{name}" for name in self.names(f"{folder}/slaves")]
        links += [f"{folder}/{name}" for name in self.names(folder) if name.startswith("lower_")]
        links += [f"{subsystem}/{name}" for name in self.names(subsystem) if name.startswith("nvme") and name[4:].isdecimal()]
        for link in links:
            self.folder(self.follow(link))

    def device(self, path: str) -> None:
        folder = self.follow(path)
        self.folder(folder)
        for leaf in _DEVICE_FILES:
            self.file(f"{folder}/{leaf}")
        bridge = self.entries.get(f"{folder}/class", Entry()).content in (b"0x060400\n", b"0x060401\n")
        self.config(f"{folder}/config", _CONFIG_BYTES if bridge else 0)
        virtfns = [name for name in self.names(folder) if name.startswith("virtfn")]
        for leaf in (*_DEVICE_LINKS, *virtfns):
            target = self.follow(f"{folder}/{leaf}")
            if target != f"{folder}/{leaf}":
                self.folder(target)
                if leaf == "iommu_group":
                    self.file(f"{target}/type")


def archive(entries: dict[str, Entry]) -> bytes:
    """The entries as a compressed tar: sorted, without times and owners."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as packed, tarfile.open(
        fileobj=packed, mode="w", format=tarfile.PAX_FORMAT
    ) as tar:
        for path in sorted(entries):
            entry, info = entries[path], tarfile.TarInfo(path)
            if entry.target is not None:
                info.type, info.linkname = tarfile.SYMTYPE, entry.target
            elif entry.content is not None:
                info.size, info.mode = len(entry.content), 0o644
            else:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info, io.BytesIO(entry.content) if entry.content else None)
    return buffer.getvalue()


def _write(path: Path, data: bytes, *, force: bool) -> None:
    # Whoever may write to the folder could have put a link there, and root would write where it points.
    how = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_TRUNC if force else os.O_EXCL)
    try:
        with open(os.open(path, how, 0o666), "wb") as file:
            file.write(data)
    except FileExistsError:
        raise UnusableInput("is already there", subject=str(path), hint="name another file, or add --force") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnusableInput("is a symbolic link, which is not followed", subject=str(path), hint="name the file itself") from None
        raise HostError(f"cannot be written ({error.strerror})", subject=str(path)) from error
