# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which PCI devices are behind a block device or a network interface of the host.

Both are folders of sysfs: a real one lies somewhere below the PCI device that drives it, and that device, the nearest PCI address of its
real path, is the answer. A virtual one (device mapper, md, bond, VLAN, macvlan) lies below ``devices/virtual`` and names what it stands
on by links (``slaves/…``, ``lower_…``), which are followed to the end. An NVMe namespace with several controllers (native multipath)
lies below its subsystem, which links to the controllers. Where the end is no PCI device (a loop device, a dummy, iSCSI, a bridge
with guests' taps), nothing is said at all: what is partly unknown has no place.

Sources: ``Documentation/ABI/testing/sysfs-class-net`` (``lower_``, in ``net/core/dev.c``), ``sysfs-block`` and ``block/holder.c``
(``slaves``), ``drivers/nvme/host/core.c`` (``nvme_init_subsystem``). A path below ``/dev`` is followed by its links, as udev makes them
(``/dev/disk/by-id/…``, ``/dev/vg/lv``, ``/dev/mapper/…``), to the kernel's name.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
from typing import Optional

from pcinuma.address import PciAddress
from pcinuma.host.sysfs import Sysfs

_BLOCK, _NET = "/sys/class/block", "/sys/class/net"
_CONTROLLER = re.compile(r"nvme\d+\Z")
_DEPTH = 8
"""How many links in a row are followed: udev's have one or two, and stacks of virtual devices rarely four."""


class Backings:
    """Finds PCI devices behind names, below one root."""

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs

    def of_block(self, path: str) -> Optional[frozenset[PciAddress]]:
        """The PCI devices behind the block device at ``path`` (``/dev/…``); None where that cannot be told.

        Raises HostError for what cannot be read.
        """
        name = self._kernel_name(path)
        return None if name is None else self._behind(f"{_BLOCK}/{name}", "slaves", _DEPTH)

    def of_net(self, name: str) -> Optional[frozenset[PciAddress]]:
        """The PCI devices behind the network interface ``name``; None where that cannot be told. Raises HostError likewise."""
        return None if "/" in name else self._behind(f"{_NET}/{name}", None, _DEPTH)

    def _behind(self, path: str, below: Optional[str], depth: int) -> Optional[frozenset[PciAddress]]:
        """``below``: the folder with the links to what a virtual device stands on; None: its own folder, by names ``lower_…``."""
        link = self._sysfs.link(path)
        if link is None or not depth:
            return None
        real = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        nearest = _nearest(real)
        if nearest is not None:
            return frozenset((nearest,))
        if below is None:
            parts = [f"{_NET}/{name[6:]}" for name in self._sysfs.names(real) if name.startswith("lower_")]
        else:
            parts = [f"{_BLOCK}/{name}" for name in self._sysfs.names(f"{real}/{below}")]
            if not parts and "/nvme-subsystem/" in real:
                return self._controllers(self._subsystem(real))
            if not parts and self._sysfs.exists(f"{real}/partition"):  # the disk that it is a part of knows
                return self._behind(f"{_BLOCK}/{posixpath.basename(posixpath.dirname(real))}", below, depth - 1)
        found: set[PciAddress] = set()
        for part in parts:
            addresses = self._behind(part, below, depth - 1)
            if addresses is None:
                return None
            found |= addresses
        return frozenset(found) or None

    @staticmethod
    def _subsystem(real: str) -> str:
        head, _, tail = real.partition("/nvme-subsystem/")
        return f"{head}/nvme-subsystem/{tail.split('/', 1)[0]}"

    def _controllers(self, folder: str) -> Optional[frozenset[PciAddress]]:
        found = set()
        for name in self._sysfs.names(folder):
            if _CONTROLLER.match(name):
                nearest = _nearest(self._sysfs.link(f"{folder}/{name}") or "")
                if nearest is None:
                    return None  # NVMe over Fabrics
                found.add(nearest)
        return frozenset(found) or None

    def _kernel_name(self, path: str) -> Optional[str]:
        """The name by which ``/sys/class/block`` knows the device at ``path``; None if it is none."""
        path = posixpath.normpath(path)
        for _ in range(_DEPTH):
            if not path.startswith("/dev/"):
                return None
            link = self._sysfs.link(path)
            if link is None:
                break
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        name = path[5:].replace("/", "!")
        if self._sysfs.link(f"{_BLOCK}/{name}") is not None:
            return name
        try:  # a node of another name, made by hand or by a device mapper without udev
            node = os.stat(self._sysfs.real(path))
        except OSError:
            return None
        if not stat.S_ISBLK(node.st_mode):
            return None
        link = self._sysfs.link(f"/sys/dev/block/{os.major(node.st_rdev)}:{os.minor(node.st_rdev)}")
        return None if link is None else posixpath.basename(link)


def _nearest(path: str) -> Optional[PciAddress]:
    """The last PCI address in a path."""
    return next((address for address in map(PciAddress.parse, reversed(path.split("/"))) if address is not None), None)
