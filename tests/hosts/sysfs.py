# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes a :class:`~tests.hosts.build.Host` as the kernel's sysfs.

Faithful to Linux (Documentation/ABI/testing/sysfs-bus-pci, sysfs-devices-node): real directories below ``sys/devices``, relative
symlinks everywhere else, values with a newline, configuration space with the header type, bus numbers and PCI Express capability
that the kind of port has.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from pathlib import Path
from typing import Optional

from tests.hosts.build import (
    DOWNSTREAM,
    INHERIT,
    ROOT_PORT,
    TO_PCI,
    UPSTREAM,
    Function,
    Host,
    Kind,
    Odd,
    RootComplex,
    cpu_set,
    list_format,
)

SERIAL = b"\x11SERIAL\x88"
_NO_BAR = " ".join(["0x" + "0" * 16] * 3)


def _odd(value: Odd) -> Optional[str]:
    return None if value is None else str(value)


def _relative(target: str, folder: str) -> str:
    """:func:`os.path.relpath` for paths that begin at the same place and hold no ``..``."""
    to, start = target.split("/"), folder.split("/")
    shared = 0
    while shared < len(start) and shared < len(to) and to[shared] == start[shared]:
        shared += 1
    return "/".join([".."] * (len(start) - shared) + to[shared:])


class Writer:
    """Writes a host once; real files below ``devices``, links elsewhere."""

    def __init__(self, host: Host, sys: Path) -> None:
        self.host = host
        self.sys = str(sys)
        self.bar = 0x380000000000
        self.group = 0
        self.made: set[str] = set()
        self.in_slot = Counter(address.rsplit(".", 1)[0] for address in host.functions)

    def write(self) -> None:
        for folder in (
            "bus/pci/devices",
            "bus/mdev/devices",
            "bus/vdpa/devices",
            "class/net",
            "class/block",
            "kernel/iommu_groups",
        ):
            self._dir(folder)
        self._nodes()
        for root in self.host.roots:
            self._root(root)
        self._virtual()

    # A machine is hundreds of files, and the tests write thousands of machines: a file costs the calls of the kernel that it needs.

    def _file(self, path: str, text: str) -> None:
        self._bytes(path, f"{text}\n".encode("ascii"))

    def _bytes(self, path: str, content: bytes) -> None:
        file = os.open(f"{self.sys}/{path}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        os.write(file, content)
        os.close(file)

    def _dir(self, path: str) -> None:
        if path not in self.made:
            self.made.add(path)
            try:
                os.mkdir(f"{self.sys}/{path}")
            except FileExistsError:
                pass
            except FileNotFoundError:
                os.makedirs(f"{self.sys}/{path}")

    def _link(self, path: str, target: str) -> None:
        """A link at ``path`` to ``target`` (both below sys), relative as the kernel makes them."""
        folder = path.rpartition("/")[0]
        self._dir(folder)
        os.symlink(_relative(target, folder), f"{self.sys}/{path}")

    def _nodes(self) -> None:
        numbers = sorted(self.host.nodes)
        self._dir("devices/system/node")
        self._dir("devices/system/cpu")
        online = list_format(set(numbers)) if self.host.online is None else self.host.online
        with_cpus = list_format({n for n in numbers if self.host.nodes[n].cpus})
        for name, text in (
            ("online", online),
            ("possible", list_format(set(numbers))),
            ("has_cpu", with_cpus),
            ("has_memory", list_format({n for n in numbers if self.host.nodes[n].memory_kib} & cpu_set(online))),
        ):
            self._file(f"devices/system/node/{name}", text)
        for name in ("online", "present", "possible"):
            cpus = self.host.cpus() - self.host.offline_cpus if name == "online" else self.host.cpus()
            self._file(f"devices/system/cpu/{name}", list_format(cpus))
        if self.host.hugepage_kib is not None:
            os.makedirs(f"{self.sys}/../proc", exist_ok=True)
            self._file("../proc/meminfo", f"MemTotal:       1 kB\nHugepagesize:   {self.host.hugepage_kib:5} kB\nHugetlb:   0 kB")
        for number in numbers:
            node, folder = self.host.nodes[number], f"devices/system/node/node{number}"
            self._dir(folder)
            distance = node.distance or [10 if other == number else 21 for other in numbers]
            self._file(f"{folder}/cpulist", list_format(cpu_set(node.cpus) - self.host.offline_cpus))
            for size, pages in node.hugepages.items():
                self._dir(f"{folder}/hugepages/hugepages-{size}kB")
                self._file(f"{folder}/hugepages/hugepages-{size}kB/nr_hugepages", str(pages))
            self._file(f"{folder}/distance", " ".join(map(str, distance)))
            self._file(
                f"{folder}/meminfo",
                f"Node {number} MemTotal:       {node.memory_kib} kB\nNode {number} MemFree:        {node.memory_kib // 2} kB",
            )

    def _root(self, root: RootComplex) -> None:
        self._dir(f"{root.path}/pci_bus/{root.name[3:]}")
        for function in root.functions:
            self._function(function)

    def _function(self, function: Function) -> None:
        path, kind = function.path, function.kind
        self._dir(path)
        bridge = function.port_type in (ROOT_PORT, UPSTREAM, DOWNSTREAM, TO_PCI)
        now = function.link if function.now is INHERIT else function.now
        files: dict[str, Optional[str]] = {
            "numa_node": _odd(function.own_node()),
            "local_cpulist": self._cpulist(function),
            "class": f"0x{kind.class_code:06x}",
            "vendor": f"0x{kind.vendor:04x}",
            "device": f"0x{kind.device:04x}",
            "subsystem_vendor": f"0x{kind.vendor:04x}",
            "subsystem_device": "0x0001",
            "revision": "0x01",
            "enable": "1",
            "resource": self._resource(kind),
            "max_link_speed": function.link and function.link[0],
            "max_link_width": function.link and function.link[1],
            "current_link_speed": now and now[0],
            "current_link_width": now and now[1],
            "uevent": f"PCI_CLASS={kind.class_code:X}\nPCI_SLOT_NAME={function.address}",
        }
        if function.total_vfs:
            files["sriov_totalvfs"] = str(function.total_vfs)
            files["sriov_numvfs"] = str(len(function.virtfns))
            files["sriov_drivers_autoprobe"] = "1"
        for name, text in files.items():
            if text is not None:
                self._file(f"{path}/{name}", text)
        self._bytes(f"{path}/config", self._config(function))
        self._link(f"bus/pci/devices/{function.address}", path)
        driver = kind.driver if function.driver is INHERIT else function.driver
        if driver:
            self._dir(f"bus/pci/drivers/{driver}")
            self._link(f"{path}/driver", f"bus/pci/drivers/{driver}")
            self._link(f"bus/pci/drivers/{driver}/{function.address}", path)
        if not bridge:
            self._iommu(function)
        self._belongings(function)
        for number, vf in enumerate(function.virtfns):
            self._link(f"{path}/virtfn{number}", vf.path)
        if function.physfn:
            self._link(f"{path}/physfn", function.physfn.path)
        for nested in function.nested:
            self._root(nested)
        for child in function.children:
            self._function(child)

    def _cpulist(self, function: Function) -> Optional[str]:
        if function.cpulist is not INHERIT:
            return _odd(function.cpulist)
        node = function.own_node()
        known = self.host.nodes.get(node) if isinstance(node, int) else None
        return known.cpus if known else list_format(self.host.cpus())

    def _iommu(self, function: Function) -> None:
        if function.iommu_group is None:
            function.iommu_group = self.group
        self.group = max(self.group, function.iommu_group) + 1
        group = f"kernel/iommu_groups/{function.iommu_group}"
        self._link(f"{group}/devices/{function.address}", function.path)
        self._link(f"{function.path}/iommu_group", group)
        if self.host.iommu_type is not None:
            self._file(f"{group}/type", self.host.iommu_type)

    def _belongings(self, function: Function) -> None:
        path = function.path
        for name in function.nets:
            self._dir(f"{path}/net/{name}")
            self._link(f"{path}/net/{name}/device", path)
            self._link(f"class/net/{name}", f"{path}/net/{name}")
        for name in function.blocks:
            controller, disk = f"{path}/nvme/{name}", f"{name}n1"
            self._dir(f"{controller}/{disk}/{disk}p1")
            self._link(f"{controller}/device", path)
            self._file(f"{controller}/{disk}/{disk}p1/partition", "1")
            self._link(f"class/block/{disk}", f"{controller}/{disk}")
            self._link(f"class/block/{disk}p1", f"{controller}/{disk}/{disk}p1")
        for uuid, kind in function.mdevs.items():
            self._dir(f"{path}/mdev_supported_types/{kind}/devices")
            self._dir(f"{path}/{uuid}")
            self._link(f"{path}/{uuid}/mdev_type", f"{path}/mdev_supported_types/{kind}")
            self._link(f"bus/mdev/devices/{uuid}", f"{path}/{uuid}")
        for number in function.vdpas:
            self._dir(f"{path}/vdpa{number}/vhost-vdpa-{number}")
            self._file(f"{path}/vdpa{number}/vhost-vdpa-{number}/dev", f"511:{number}")
            self._link(f"bus/vdpa/devices/vdpa{number}", f"{path}/vdpa{number}")

    def _virtual(self) -> None:
        """Below ``devices/virtual``: a partition, and links to what each thing stands on (``block/holder.c``, ``net/core/dev.c``)."""
        for disk, controllers in self.host.subsystems.items():
            folder = f"devices/virtual/nvme-subsystem/nvme-subsys{len(disk)}"
            self._block(f"{folder}/{disk}")
            for name in controllers:
                at = next((f.path for f in self.host.functions.values() if name in f.blocks), "devices/virtual/nvme-fabrics/ctl")
                self._dir(f"{at}/nvme/{name}")
                self._link(f"{folder}/{name}", f"{at}/nvme/{name}")
        for disk in self.host.virtual_blocks:
            self._block(f"devices/virtual/block/{disk}")
        for name in self.host.virtual_nets:
            self._dir(f"devices/virtual/net/{name}")
            self._link(f"class/net/{name}", f"devices/virtual/net/{name}")
        for kind, link, stacks in (("block", "slaves/", self.host.virtual_blocks), ("net", "lower_", self.host.virtual_nets)):
            for name, others in stacks.items():
                for other in others:
                    target = os.path.realpath(f"{self.sys}/class/{kind}/{other}")
                    self._link(f"devices/virtual/{kind}/{name}/{link}{other}", os.path.relpath(target, os.path.realpath(self.sys)))
        for path, target in self.host.dev_links.items():
            full = f"{self.sys}/../dev/{path}"
            os.makedirs(os.path.dirname(full), exist_ok=True)
            os.symlink(os.path.relpath(f"/dev/{target}", os.path.dirname(f"/dev/{path}")), full)

    def _block(self, path: str) -> None:
        disk = path.rsplit("/", 1)[-1]
        part = f"{disk}p1"
        self._dir(f"{path}/slaves")
        self._dir(f"{path}/{part}")
        self._file(f"{path}/{part}/partition", "1")
        self._link(f"class/block/{disk}", path)
        self._link(f"class/block/{part}", f"{path}/{part}")

    def _resource(self, kind: Kind) -> str:
        lines: list[str] = []
        for size, sort in kind.bars:
            self.bar = -(-self.bar // size) * size
            flags = {"mem32": 0x40200, "pref64": 0x14220C, "io": 0x40101}[sort]
            lines.append(f"0x{self.bar:016x} 0x{self.bar + size - 1:016x} 0x{flags:016x}")
            if sort == "pref64":
                lines.append(_NO_BAR)
            self.bar += size
        return "\n".join(lines + [_NO_BAR] * (13 - len(lines)))

    def _config(self, function: Function) -> bytes:
        kind, config = function.kind, bytearray(4096)
        struct.pack_into("<HHHH", config, 0, kind.vendor, kind.device, 0x0406, 0x0010)
        struct.pack_into("<I", config, 8, kind.class_code << 8 | 1)
        multifunction = self.in_slot[function.address.rsplit(".", 1)[0]] > 1
        bridge = function.port_type in (ROOT_PORT, UPSTREAM, DOWNSTREAM, TO_PCI)
        config[0x0E] = (1 if bridge else 0) | (0x80 if multifunction else 0)
        if bridge:
            buses = [int(f.address[-7:-5], 16) for child in function.children for f in child.bridges()]
            config[0x18:0x1B] = bytes([int(function.address[-7:-5], 16), min(buses, default=0), max(buses, default=0)])
        config[0x34] = 0x40
        struct.pack_into("<BBH", config, 0x40, 0x10, 0, 2 | function.port_type << 4)
        extended = [(0x0003, SERIAL), (0x0001, bytes(64))]  # Device Serial Number, Advanced Error Reporting
        if function.acs is not None:
            extended.insert(1, (0x000D, struct.pack("<HH", *function.acs)))
        if function.ats is not None:
            extended.append((0x000F, struct.pack("<HH", 0x60, 0x8000 if function.ats else 0)))
        offset = 0x100
        for position, (number, registers) in enumerate(extended):
            following = offset + 4 + len(registers) if position + 1 < len(extended) else 0
            struct.pack_into("<I", config, offset, number | 1 << 16 | following << 20)
            config[offset + 4 : offset + 4 + len(registers)] = registers
            offset = following
        return bytes(config)
