"""What a domain says about the range in which UEFI firmware maps large BARs.

Sources: OVMF's ``PlatformInitLib`` (``PlatformDynamicMmioWindow``: an eighth of the address space, edk2 2022.11 and later;
``opt/ovmf/X-PciMmio64Mb`` overrides), QEMU's ``hw/arm/virt.c`` (``VIRT_HIGH_PCIE_MMIO``, 512 GiB) and ``target/i386`` (40 address bits
unless a CPU model is told otherwise; ``-cpu host`` has the host's).
"""

from __future__ import annotations

import re
from typing import NamedTuple, Optional

from lxml import etree

from pcinuma.domain.xml import Parts

_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_TOLD = re.compile(r"opt/ovmf/X-PciMmio64Mb,string=(\d{1,9})\b")
_GIB = 1 << 30
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30, "bytes": 1}


class Firmware(NamedTuple):
    """UEFI firmware. ``size``: its range in bytes where that is said; ``bits``: else the CPU's address bits, None for the host's."""

    size: Optional[int]
    bits: Optional[int]


def read_firmware(root: etree._Element, system: Optional[etree._Element], parts: Parts) -> Optional[Firmware]:
    """The UEFI firmware of the domain ``root``; None for any other (SeaBIOS, SLOF), whose BARs find room wherever they are.

    ``system``: the domain's ``<os>``; ``parts``: its children.
    """
    if system is None:
        return None
    loader = parts.get("loader")
    if system.get("firmware") != "efi" and (loader is None or loader.get("type") != "pflash"):
        return None
    for argument in root.iterfind(f"{_QEMU}commandline/{_QEMU}arg"):
        told = _TOLD.search(argument.get("value", ""))
        if told:
            return Firmware(int(told.group(1)) << 20, None)
    entry = root.find("sysinfo[@type='fwcfg']/entry[@name='opt/ovmf/X-PciMmio64Mb']")
    if entry is not None and (entry.text or "").strip().isdecimal():
        return Firmware(int((entry.text or "").strip()) << 20, None)
    kind = parts.get("type")
    if kind is not None and kind.get("arch") == "aarch64":
        return Firmware(_hole(root) or 512 * _GIB, None)
    return Firmware(None, _bits(root, kind))


def _hole(root: etree._Element) -> Optional[int]:
    hole = root.find("devices/controller[@model='pcie-root']/pcihole64")
    text = (hole.text or "").strip() if hole is not None else ""
    return int(text) * _UNITS.get(hole.get("unit", "KiB"), 1 << 10) if hole is not None and text.isdecimal() else None


def _bits(root: etree._Element, kind: Optional[etree._Element]) -> Optional[int]:
    machine = kind.get("machine", "") if kind is not None else ""
    if "-rhel" in machine or machine.endswith("-hpb"):
        return None  # Red Hat's machine types, and some of Ubuntu's, give every CPU model the host's address bits
    cpu = root.find("cpu")
    if cpu is None:
        return 40
    said = cpu.find("maxphysaddr")
    if said is not None and said.get("mode") == "emulate" and said.get("bits", "").isdecimal():
        return min(int(said.get("bits", "")), 52)
    if said is not None or cpu.get("mode") in ("host-passthrough", "maximum"):
        return None
    return 40
