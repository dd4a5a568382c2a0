# SPDX-License-Identifier: LGPL-2.1-or-later
"""Emulated devices with one device of the host behind them: a virtio disk on a block device, a virtio NIC on a network interface.

They are read only where the setting ``near-backing`` asks for it, and where pcinuma's metadata says that it moved them: whoever turns the
setting off keeps a layout that can be undone. What counts is what gets a PCIe slot of its own below a root port: virtio disks and NICs, but
not the transitional models, which libvirt puts behind a PCIe-to-PCI bridge. Source: libvirt, ``docs/formatdomain.rst``, "Hard drives,
floppy disks, CDROMs" (``type='block'``) and "Direct attachment to physical interface", and ``qemuDomainDeviceCalculatePCIConnectFlags``.

``source`` is what the guest has and what is behind it: ``vda@/dev/nvme0n1p2``, ``52:54:00:6b:3c:58@eth0``. libvirt allows one backing to
serve several devices of a domain, but a target or a MAC address names one only.
"""

from __future__ import annotations

from typing import Optional

from lxml import etree

from pcinuma.domain.passthrough import Named
from pcinuma.domain.xml import Parts
from pcinuma.model import AttachedAs, Form

_MODELS = ("virtio", "virtio-non-transitional")


def read_backed(element: etree._Element, parts: Parts) -> Optional[Named]:
    """The device in a ``<disk>`` or ``<interface>``; None if it is another kind of device, or none that sits in a PCI slot."""
    kind = element.get("type")
    if (kind, element.tag) not in (("block", "disk"), ("direct", "interface")):
        return None
    source, address = parts.get("source"), parts.get("address")
    behind = source.get("dev", "") if source is not None else ""
    if not behind or (address is not None and address.get("type", "pci") != "pci"):
        return None
    if kind == "block":
        target = parts.get("target")
        name = target.get("dev", "") if target is not None else ""
        bus = target.get("bus", "virtio" if name.startswith("vd") else "") if target is not None else ""
        if bus != "virtio" or element.get("device", "disk") not in ("disk", "lun") or element.get("model", "virtio") not in _MODELS:
            return None
        return Named(f"{name}@{behind}", Form.BLOCK_DISK, None, behind, AttachedAs.PCI, None)
    model, mac = parts.get("model"), parts.get("mac")
    if model is None or model.get("type") not in _MODELS:
        return None
    name = mac.get("address", "").lower() if mac is not None else ""
    return Named(f"{name}@{behind}", Form.DIRECT_INTERFACE, None, behind, AttachedAs.PCI, None)
