# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a device is, in words: from ``pci.ids`` where the system has the file, else from the class code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

from pcinuma.host.names import PciNames
from pcinuma.host.topology import HostDevice
from pcinuma.printable import printable

# Source: PCI Code and ID Assignment Specification, section 1; the spelling is that of pci.ids.
_SUBCLASSES = {
    0x0100: "SCSI storage controller", 0x0101: "IDE interface", 0x0104: "RAID bus controller", 0x0106: "SATA controller",
    0x0107: "Serial Attached SCSI controller", 0x0108: "NVMe controller", 0x0180: "Mass storage controller",
    0x0200: "Ethernet controller", 0x0207: "InfiniBand controller", 0x0280: "Network controller",
    0x0300: "VGA compatible controller", 0x0302: "3D controller", 0x0380: "Display controller",
    0x0401: "Multimedia audio controller", 0x0403: "Audio device",
    0x0600: "Host bridge", 0x0601: "ISA bridge", 0x0604: "PCI bridge", 0x0C03: "USB controller", 0x0C05: "SMBus",
    0x0B40: "Co-processor", 0x1180: "Signal processing controller", 0x1200: "Processing accelerator",
}  # fmt: skip
_CLASSES = {
    0x01: "Storage controller", 0x02: "Network controller", 0x03: "Display controller", 0x04: "Multimedia controller",
    0x05: "Memory controller", 0x06: "Bridge", 0x07: "Communication controller", 0x08: "System peripheral",
    0x09: "Input device controller", 0x0B: "Processor", 0x0C: "Serial bus controller", 0x0D: "Wireless controller",
    0x10: "Encryption controller", 0x11: "Signal processing controller", 0x12: "Processing accelerator",
    0x13: "Non-essential instrumentation", 0xFF: "device without a class",
}  # fmt: skip
_BRIDGES = (0x0604, 0x0607, 0x0609)
_CHIPSET = (0x05, 0x06, 0x08, 0x0B, 0x11, 0x13)
_CHIPSET_SUBCLASSES = (0x0C05,)
_PASSABLE = (0x0B40,)


_BRACKETS = re.compile(r"\[([^][]+)\]\s*\Z")
_LEGAL = re.compile(
    r",?\s+(?:Corporation|Corp|Incorporated|Inc|Company|Co|Ltd|Limited|LLC|GmbH|AG|Technologies|Technology|Electronics|Semiconductor)\b\.?"
)


class Describer:
    """Words for the devices of one host."""

    def __init__(self, root: Path = Path("/")) -> None:
        # A captured machine brings no pci.ids; this machine's own is as good.
        self._names = [PciNames(root)] if root == Path("/") else [PciNames(root), PciNames()]

    def kind(self, device: HostDevice) -> str:
        """The kind of device, such as ``Ethernet controller``."""
        if device.class_code is None:
            return "unknown device"
        subclass = device.class_code >> 8
        from_file = next((printable(text) for names in self._names if (text := names.device_class(device.class_code))), None)
        own = _SUBCLASSES.get(subclass)
        if subclass == 0x0108 and own:
            return own  # pci.ids says "Non-Volatile memory controller", which nobody calls an NVMe
        return from_file or own or _CLASSES.get(subclass >> 8) or f"device of class {subclass:04x}"

    def short(self, device: HostDevice) -> str:
        """Vendor and product as people say them; nothing where no ``pci.ids`` has the product."""
        parts = next((found for names in self._names if (found := names.parts(device.vendor, device.product))[1]), (None, None))
        return "" if parts[1] is None else printable(short_name(*parts))

    def product(self, device: HostDevice) -> str:
        """Vendor and product in words, else their numbers as lspci has them."""
        name = next((text for names in self._names if (text := names.device(device.vendor, device.product))), None)
        if name:
            return printable(name)
        if device.vendor is None or device.product is None:
            return ""
        return f"[{device.vendor:04x}:{device.product:04x}]"


def short_name(vendor: Optional[str], product: Optional[str]) -> str:
    """A device as people call it, from the two names of ``pci.ids``: without the company's legal form, and of a product that has a model's
    name in brackets behind the chip's, that name (``NVIDIA H100 SXM5 80GB``)."""
    model = _BRACKETS.search(product or "")
    maker = _BRACKETS.search(vendor or "")
    name = maker.group(1) if maker else _LEGAL.sub("", vendor or "").strip(" ,.")
    return " ".join(part for part in (name, model.group(1) if model else product) if part)


def is_endpoint(device: HostDevice) -> bool:
    """Whether the function has a header of type 0, which is what vfio-pci takes: all but the bridges to another bus (PCI-to-PCI,
    CardBus, semi-transparent). "Bridge, other" (0680) is such an endpoint: an NVSwitch, for one."""
    return device.class_code is None or device.class_code >> 8 not in _BRIDGES


def is_chipset(device: HostDevice) -> bool:
    """Whether the function is part of the machine rather than something that somebody passes through: by its class, unless it sits in
    a slot (a bridge is above it) or was given to vfio-pci already. What only stands in for a missing function (class 13) is, anywhere."""
    if device.class_code is None or device.driver == "vfio-pci":
        return False
    subclass = device.class_code >> 8
    base = subclass >> 8
    if base != 0x13 and device.path:
        return False
    return (base in _CHIPSET and subclass not in _PASSABLE) or subclass in _CHIPSET_SUBCLASSES


def size(count: int) -> str:
    """A number of bytes as people say it: ``16 GiB``."""
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << power:
            return f"{count / (1 << power):.4g} {unit}"
    return f"{count} B"


def count(number: int, noun: str) -> str:
    """``1 device``, ``2 devices``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
