# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a domain says about the range in which UEFI firmware maps large BARs: firmware, what it is told, memory, CPU, and who wrote it.

* UEFI is whatever is given as pflash, or chosen by ``firmware='efi'``, or started by a confidential guest (SEV, TDX), or given as ROM, or
  without a type, under a name that is not that of a BIOS. Taking an unknown ROM for UEFI may leave a guest unplaced; taking UEFI for
  SeaBIOS may leave its GPUs without memory.
* ``opt/ovmf/X-PciMmio64Mb`` (edk2, ``PlatformGetFirstNonAddress``): decimal MiB, at most 16 TiB; anything else is ignored.
* The guest's CPU (QEMU, ``target/i386/cpu.c`` and ``host-cpu.c``): under KVM a named model has the host's vendor unless ``vendor_id`` says
  otherwise, and 40 address bits unless ``<maxphysaddr>`` or the machine type say otherwise; ``host-passthrough`` and ``maximum`` have
  the host's, at most ``limit``. libvirt from 9.3 on reports the host's for ``host-model`` too; that guests get them was not seen.
* aarch64: QEMU's ``hw/arm/virt.c``, ``VIRT_HIGH_PCIE_MMIO``, 512 GiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from lxml import etree

from pcinuma.domain.xml import Parts, child
from pcinuma.model import Cpu, Firmware, Manager

_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_TOLD = "opt/ovmf/X-PciMmio64Mb"
_TOLD_MAXIMUM = 1 << 24
_MIB, _GIB = 1 << 20, 1 << 30
_UNITS = {"b": 1, "bytes": 1, "k": 1 << 10, "kib": 1 << 10, "m": _MIB, "mib": _MIB, "g": _GIB, "gib": _GIB, "t": 1 << 40, "tib": 1 << 40}
_UNITS.update({"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "p": 1 << 50, "pib": 1 << 50, "pb": 10**15})
_CONFIDENTIAL = ("sev", "sev-snp", "tdx")
_IN_UEFI_PATHS = ("ovmf", "aavmf", "edk2", "uefi", "qemu_efi", "qemu-efi")
_IN_BIOS_NAMES = ("bios", "slof", "qboot", "coreboot", "hvmloader", "u-boot", "uboot", "skiboot", "opensbi")
_WITH_GIB_PAGES = (
    "EPYC", "Dhyana", "Opteron_G4", "Opteron_G5", "Skylake-Server", "Cascadelake-Server", "Cooperlake", "Icelake-Server", "Snowridge",
    "SapphireRapids", "GraniteRapids", "DiamondRapids", "SierraForest", "ClearwaterForest", "Denverton", "KnightsMill", "YongFeng",
)  # fmt: skip
"""libvirt's ``cpu_map``, models with the feature pdpe1gb."""
_MANAGERS = (("http://openstack.org/xmlns/libvirt/nova/", "NOVA"), ("http://ovirt.org/vm/", "OVIRT"))


_HOST_CPU = Cpu(None, None, None, None, False)


def read_firmware(root: etree._Element, system: Optional[etree._Element], parts: Parts) -> Optional[Firmware]:
    """The UEFI firmware of the domain ``root``; None for any other (SeaBIOS, SLOF), whose BARs find room wherever they are.

    ``system``: the domain's ``<os>``; ``parts``: its children.
    """
    kind = parts.get("type")
    arch = kind.get("arch", "x86_64") if kind is not None else "x86_64"
    machine = kind.get("machine", "") if kind is not None else ""
    if system is None or arch not in ("x86_64", "i686", "aarch64") or machine.startswith("pseries"):
        return None
    commandline = child(root, f"{_QEMU}commandline")
    arguments = [] if commandline is None else [argument.get("value", "") for argument in commandline.iterchildren(f"{_QEMU}arg")]
    if not _is_uefi(root, system, parts, arguments):
        return None
    if arch == "aarch64":
        return Firmware(_hole(root) or 512 * _GIB, None, 0, _HOST_CPU, manager_of(root))
    return Firmware(None, _told(root, arguments), _memory(root), _cpu(root, machine), manager_of(root))


def _is_uefi(root: etree._Element, system: etree._Element, parts: Parts, arguments: list[str]) -> bool:
    security = child(root, "launchSecurity")
    if system.get("firmware") == "efi" or (security is not None and security.get("type") in _CONFIDENTIAL):
        return True
    loader = parts.get("loader")
    if loader is not None and system.get("firmware") != "bios":
        path = (loader.text or "").strip()
        if loader.get("type") == "pflash" or (path and _names_uefi(path)):
            return True
    for position, argument in enumerate(arguments):
        if "if=pflash" in argument or "pflash0=" in argument:
            return True
        if argument == "-bios" and position + 1 < len(arguments) and _names_uefi(arguments[position + 1]):
            return True
    return False


def _names_uefi(path: str) -> bool:
    """Whether the ROM image ``path`` is taken for UEFI firmware."""
    path = path.lower()
    name = path.rpartition("/")[2]
    if name.endswith(".fd") or any(word in path for word in _IN_UEFI_PATHS):
        return True
    return not any(word in name for word in _IN_BIOS_NAMES)


def _told(root: etree._Element, arguments: list[str]) -> Optional[int]:
    for argument in arguments:
        if _TOLD in argument:
            options = dict(option.partition("=")[::2] for option in argument.split(","))
            if _TOLD in (options.get("name"), options.get("file")) or _TOLD in options:
                size = _told_size(options.get("string", ""))
                if size is not None:
                    return size
    for entry in root.iterfind("sysinfo[@type='fwcfg']/entry"):
        if entry.get("name") == _TOLD:
            return _told_size((entry.text or "").strip())
    return None


def _told_size(text: str) -> Optional[int]:
    """Bytes. edk2 rounds to whole GiB."""
    mib = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else _TOLD_MAXIMUM + 1
    return -(-mib * _MIB // _GIB) * _GIB if mib <= _TOLD_MAXIMUM else None


def _memory(root: etree._Element) -> int:
    now, ceiling = root.find("memory"), root.find("maxMemory")
    slots = ceiling.get("slots", "") if ceiling is not None else ""
    spread = min(int(slots), 1 << 10) * _GIB if slots.isascii() and slots.isdigit() else 0  # each slot may begin at a multiple of 1 GiB
    return max(_bytes(now), _bytes(ceiling) + spread)


def _bytes(element: Optional[etree._Element]) -> int:
    text = (element.text or "").strip() if element is not None else ""
    if element is None or not (text.isascii() and text.isdigit() and len(text) < 20):
        return 0
    return int(text) * _UNITS.get(element.get("unit", "KiB").lower(), 1 << 10)


def _hole(root: etree._Element) -> int:
    return _bytes(root.find("devices/controller[@model='pcie-root']/pcihole64"))


def _cpu(root: etree._Element, machine: str) -> Cpu:
    of_host = "-rhel" in machine or machine.endswith("-hpb")  # these machine types give every CPU model the host's address bits
    cpu = root.find("cpu")
    if cpu is None:
        return Cpu(None, None if of_host else 40, None, False, False)
    mode, model, said = cpu.get("mode", "custom"), cpu.find("model"), cpu.find("maxphysaddr")
    is_host = mode in ("host-passthrough", "maximum")
    bits = None if of_host or is_host else 40
    limit = None
    if said is not None:
        bits = min(_number(said.get("bits")) or 40, 52) if said.get("mode") == "emulate" else None
        limit = _number(said.get("limit")) if said.get("mode") == "passthrough" else None
    pages = None if is_host or mode == "host-model" else model is not None and (model.text or "").strip().startswith(_WITH_GIB_PAGES)
    for feature in cpu.iterfind("feature[@name='pdpe1gb']"):
        pages = feature.get("policy", "require") in ("require", "force")
    vendor = model.get("vendor_id") if model is not None else None
    return Cpu(vendor, bits, limit, pages, mode == "host-model" and said is None)


def _number(text: Optional[str]) -> Optional[int]:
    return int(text) if text and text.isascii() and text.isdigit() and 0 < len(text) < 4 else None


def manager_of(root: etree._Element) -> Manager:
    """By the namespaces that OpenStack Nova and oVirt use for their metadata."""
    for name in _namespaces(root):
        for beginning, manager in _MANAGERS:
            if name.startswith(beginning):
                return Manager[manager]
    return Manager.LIBVIRT


def _namespaces(root: etree._Element) -> Iterator[str]:
    metadata = root.find("metadata")
    for element in metadata if metadata is not None else ():
        if isinstance(element.tag, str) and element.tag.startswith("{"):
            yield element.tag[1:].partition("}")[0]
