# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which devices libvirt has to find a PCI slot for when it formats XML that does not say one.

Only XML that libvirt has not formatted yet has such devices. Counting one too many costs a free root port and a bus number; one too few
may put a device on a port below an expander; so doubtful cases count. Source: libvirt's ``qemuDomainDefAddDefaultDevices`` and
``qemuDomainDeviceCalculatePCIConnectFlags``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Optional

from lxml import etree

_ALWAYS = frozenset(("interface", "sound", "video", "rng", "shmem", "filesystem", "vsock", "crypto"))


def wants_slot(element: etree._Element) -> bool:
    """Whether this device, which has no PCI address, will get one. Passthrough devices and PCI controllers are not asked about."""
    tag = element.tag
    model = element.get("model", "")
    if tag in _ALWAYS:
        inner = element.find("model")
        return not (tag == "video" and inner is not None and inner.get("type") == "none")
    if tag == "disk":
        target = element.find("target")
        if target is None:
            return False
        return target.get("bus") == "virtio" or (target.get("bus") is None and target.get("dev", "").startswith("vd"))
    if tag == "controller":
        kind = element.get("type")
        return kind in ("scsi", "virtio-serial", "nvme") or (kind == "usb" and model != "none") or (
            kind == "sata" and element.get("index", "0") != "0"
        )
    if tag == "memballoon":
        return model != "none"
    if tag == "input":
        return element.get("bus") == "virtio"
    if tag == "hostdev":
        return element.get("type") == "scsi_host"
    if tag in ("memory", "iommu"):
        return model.startswith("virtio")
    if tag == "watchdog":
        return model == "i6300esb"
    if tag == "panic":
        return model == "pvpanic"
    if tag in ("serial", "parallel"):
        target = element.find("target")
        return target is not None and target.get("type") == "pci-serial"
    return False


def implied_devices(devices: Sequence[etree._Element]) -> int:
    """How many PCI devices libvirt will add that the XML does not mention at all.

    ``devices``: the elements of ``<devices>`` that are neither PCI controllers nor hostdevs.
    """
    tags = {element.tag for element in devices}
    controllers = {element.get("type") for element in devices if element.tag == "controller"}
    count = ("usb" not in controllers) + ("memballoon" not in tags) + ("graphics" in tags and "video" not in tags)
    if "virtio-serial" not in controllers:
        count += any(kind in ("virtio", "virtioserial") for kind in _targets(devices, ("channel", "console"), "type"))
    if "scsi" not in controllers:
        count += any(bus == "scsi" for bus in _targets(devices, ("disk",), "bus"))
    return count


def _targets(devices: Sequence[etree._Element], tags: tuple[str, ...], attribute: str) -> Iterator[Optional[str]]:
    """The attribute of the ``<target>`` in each of the elements with one of ``tags``."""
    for element in devices:
        if element.tag in tags:
            for target in element.iterchildren("target"):
                yield target.get(attribute)
