# SPDX-License-Identifier: LGPL-2.1-or-later
"""Inactive mediated devices: which PCI device each would be a part of, as libvirt's node devices tell.

An active one is a folder in sysfs, which the engine reads by itself. One that is defined (``mdevctl define``, ``virsh nodedev-define``) but
not started is known to libvirt only, by the files that mdevctl keeps: its node device names the UUID and the parent. Libvirt tells of
them since 7.3, the parent's address by ``<parent_addr>`` since 8.1, which counts where the parent itself is not there either.

What libvirt said is kept, and asked for again after node devices changed; but a hook, which may not ask, is told the last answer: a
guest that was placed by it must not seem to have lost its place when some other device comes. Source: libvirt's
``docs/formatnode.rst`` and ``src/node_device/node_device_driver.c`` (``nodeDeviceParseMdevctlJSON``).
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Iterable, Optional

import libvirt

from pcinuma.address import PciAddress
from pcinuma.log import log
from pcinuma.xml_parser import parse

_PARENT = re.compile(r"pci_([0-9a-f]{4,8})_([0-9a-f]{2})_([0-9a-f]{2})_([0-7])\Z")
_NOT_TOLD = (libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_NO_SUPPORT)
"""What a libvirt says that is older, or has no node device driver."""


class Mdevs:
    """What libvirt said about inactive mediated devices; may be used from several threads."""

    def __init__(self, root: Path) -> None:
        self._devices = root / "sys/bus/mdev/devices"
        self._lock = threading.Lock()
        self._parents: dict[str, Optional[PciAddress]] = {}
        self._fresh: set[str] = set()

    def changed(self) -> None:
        """Node devices came, went or were defined, or this is another connection."""
        with self._lock:
            self._fresh.clear()

    def known(self, xml: bytes) -> dict[str, tuple[PciAddress, ...]]:
        """The parents of those inactive devices of the domain ``xml`` that libvirt told of before; asks nobody."""
        return {uuid: (parent,) for uuid in self._inactive(xml) if (parent := self._parents.get(uuid)) is not None}

    def resolve(self, connection: libvirt.virConnect, xml: bytes) -> dict[str, tuple[PciAddress, ...]]:
        """The parents of the domain's devices that are not active; of those that libvirt does not know, nothing."""
        with self._lock:
            asked = [uuid for uuid in self._inactive(xml) if uuid not in self._fresh]
            self._fresh.update(asked)  # before the answer: an event that comes meanwhile makes it stale
        if asked:
            parents = _ask(connection, asked)
            with self._lock:
                self._parents.update({**dict.fromkeys(asked), **parents})
        return self.known(xml)

    def _inactive(self, xml: bytes) -> list[str]:
        return [uuid for uuid in uuids(xml) if not os.path.lexists(self._devices / uuid)]


def uuids(xml: bytes) -> list[str]:
    """The mediated devices that the domain ``xml`` names, sorted."""
    if b"'mdev'" not in xml and b'"mdev"' not in xml:  # every start comes by here, and few have one
        return []
    root = parse(xml, "domain XML")
    found = {address.get("uuid", "").lower() for address in root.iterfind("devices/hostdev[@type='mdev']/source/address")}
    return sorted(uuid for uuid in found if uuid and "/" not in uuid)


def read_node_device(xml: str) -> Optional[tuple[str, PciAddress]]:
    """The UUID and the parent of a mediated device, from its node device's XML; None where that names no PCI device."""
    root = parse(xml, "node device XML")
    capability = root.find("capability[@type='mdev']")
    if capability is None:
        return None
    uuid = (capability.findtext("uuid") or "").strip().lower()
    parent = PciAddress.parse((capability.findtext("parent_addr") or "").strip())
    if parent is None:
        named = _PARENT.match((root.findtext("parent") or "").strip())
        parent = PciAddress.parse("{}:{}:{}.{}".format(*named.groups())) if named else None
    return (uuid, parent) if uuid and parent is not None else None


def _ask(connection: libvirt.virConnect, wanted: Iterable[str]) -> dict[str, PciAddress]:
    """What libvirt says of the devices ``wanted``; one that is defined for several parents is not told of."""
    inactive = getattr(libvirt, "VIR_CONNECT_LIST_NODE_DEVICES_INACTIVE", None)
    if inactive is None:
        return {}
    names = tuple("mdev_" + uuid.replace("-", "_") for uuid in wanted)
    found: dict[str, set[PciAddress]] = {}
    try:
        for device in connection.listAllDevices(libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV | inactive):
            if device.name().startswith(names):
                told = read_node_device(device.XMLDesc(0))
                if told is not None:
                    found.setdefault(told[0], set()).add(told[1])
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _NOT_TOLD:
            log.warning("libvirt does not tell about mediated devices", error=error.get_error_message())
        return {}
    return {uuid: next(iter(parents)) for uuid, parents in found.items() if len(parents) == 1}
