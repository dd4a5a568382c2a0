"""Which devices libvirt has to find a PCI slot for when it formats XML that does not say one.

Only XML that libvirt has not formatted yet has such devices. Counting one too many costs a free root port and a bus number; one too few
may put a device on a port below an expander; so doubtful cases count. Source: libvirt's ``qemuDomainDefAddDefaultDevices`` and
``qemuDomainDeviceCalculatePCIConnectFlags``.
"""

from __future__ import annotations

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


def implied_devices(devices: etree._Element) -> int:
    """How many PCI devices libvirt will add that the XML does not mention at all."""
    controllers = {element.get("type") for element in devices.iterchildren("controller")}
    count = 0
    if "usb" not in controllers:
        count += 1
    if next(devices.iterchildren("memballoon"), None) is None:
        count += 1
    if "virtio-serial" not in controllers and any(
        target is not None and target.get("type") in ("virtio", "virtioserial")
        for element in devices.iterchildren("channel", "console")
        for target in (element.find("target"),)
    ):
        count += 1
    if "scsi" not in controllers and any(
        target.get("bus") == "scsi" for disk in devices.iterchildren("disk") for target in disk.iterchildren("target")
    ):
        count += 1
    if next(devices.iterchildren("graphics"), None) is not None and next(devices.iterchildren("video"), None) is None:
        count += 1
    return count
