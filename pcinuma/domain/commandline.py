# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``<qemu:commandline>`` and ``<qemu:override>`` do to the guest's PCI devices, which libvirt knows nothing of.

A ``-device`` without a bus goes to the newest PCI bus that QEMU made, which is an expander where there is one, and QEMU refuses to start
(measured, 7.2: "Only PCI/PCIe bridges can be plugged into pxb-pcie"). So a domain that hands QEMU a PCI device of its own is left alone,
whatever the syntax. Harmless are models that QEMU lists on another bus, and devices that name a bus of another kind, or a PCI controller
that its owner wrote: what they sit on there is occupied. Unknown models are PCI devices; so is what cannot be read.

Every argument that looks like an option counts as one, whatever stands before it, and what follows it as its value: QEMU's options are
known by their whole names, with one dash or two, and the value is always the next argument (``lookup_opt`` in QEMU's ``system/vl.c``).
Sources: ``qemu-options.hx`` and ``system/vl.c`` of QEMU; the models without a PCI bus from ``-device help`` of the x86_64, aarch64 and
ppc64 emulators of 7.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Callable, NamedTuple, Optional

from lxml import etree

from pcinuma.address import PciAddress
from pcinuma.domain.address import shortened
from pcinuma.domain.xml import child

NAMESPACE = "{http://libvirt.org/schemas/domain/qemu/1.0}"

NOT_PCI = frozenset(
    """
    adlib ccid-card-emulated ccid-card-passthru cs4231a floppy guest-loader gus hda-duplex hda-micro hda-output hv-syndbg
    hyperv-testdev i2c-ddc i8042 ib700 ide-cd ide-hd intel-iommu ipmi-bmc-extern ipmi-bmc-sim isa-applesmc isa-cirrus-vga
    isa-debug-exit isa-debugcon isa-fdc isa-ide isa-ipmi-bt isa-ipmi-kcs isa-parallel isa-serial isa-vga loader mc146818rtc ne2k_isa
    nvdimm nvme-ns nvme-subsys pc-dimm pc-testdev pvpanic ramfb sb16 scsi-block scsi-cd scsi-generic scsi-hd sd-card sga smbus-ipmi
    spapr-nvdimm spapr-rng spapr-tpm-proxy spapr-vlan spapr-vscsi spapr-vty tpm-crb tpm-spapr tpm-tis tpm-tis-device u2f-passthru
    usb-audio usb-bot usb-braille usb-ccid usb-host usb-hub usb-kbd usb-mouse usb-mtp usb-net usb-redir usb-serial usb-storage
    usb-tablet usb-uas usb-wacom-tablet vfio-amd-xgbe vfio-calxeda-xgmac vfio-platform vhost-scsi vhost-user-blk
    vhost-user-fs-device vhost-user-gpio-device vhost-user-gpu vhost-user-i2c-device vhost-user-input vhost-user-rng
    vhost-user-scsi vhost-user-vsock-device vhost-vsock-device virtconsole virtio-9p-device virtio-balloon-device
    virtio-blk-device virtio-crypto-device virtio-gpu-device virtio-input-host-device virtio-iommu-device
    virtio-keyboard-device virtio-mem virtio-mouse-device virtio-net-device virtio-pmem virtio-rng-device virtio-scsi-device
    virtio-serial-device virtio-tablet-device virtserialport vmbus-bridge vmcoreinfo vmgenid vmmouse
    """.split()  # noqa: SIM905
)
"""Without ``amd-iommu`` and the host bridges, which QEMU lists on no PCI bus, but which bring PCI devices or buses."""
_OTHER_BUSES = ("usb", "scsi", "ide", "isa", "virtio-serial", "sata", "i2c", "ccid", "hda", "sound", "fdc", "smbus", "spapr-vio", "vmbus")
"""As libvirt names the buses of its controllers and QEMU those of its machines, before a number."""
_BRIDGES = ("bridge", "root-port", "stream", "pxb", "ioh3420")
"""Words in the names of models that bring PCI buses, whose numbers nobody has counted; ``vfio-pci`` is a host device besides."""
_NOT_PCI_DRIVES = frozenset(("none", "ide", "floppy", "pflash", "sd", "mtd"))
_ISA_CARDS = frozenset(("adlib", "cs4231a", "gus", "pcspk", "sb16"))
_OFF = ("off", "no", "false", "n")
_RESERVE = ("io-reserve", "mem-reserve", "pref32-reserve", "pref64-reserve", "bus-reserve")
_Pairs = list[tuple[str, str]]


class CommandlineDevices(NamedTuple):
    """``argument``: the first by which QEMU is handed a PCI device or a bus, None if there is none. ``occupied``: where devices of
    ``<qemu:commandline>`` sit on PCI controllers that the domain has."""

    argument: Optional[str]
    occupied: tuple[PciAddress, ...]


NOTHING = CommandlineDevices(None, ())


class OverriddenAddress(NamedTuple):
    """What ``<qemu:override>`` says of a device: the index of a PCI controller, and slot and function; None where it does not."""

    bus: Optional[int]
    slot_function: Optional[tuple[int, int]]


def read_commandline(arguments: Sequence[str], on_x86: bool, owners: Iterable[int]) -> CommandlineDevices:
    """What ``arguments`` hand to QEMU. ``owners``: the indexes of PCI controllers that are there and not pcinuma's."""
    reader = _Reader(on_x86, frozenset(owners))
    option = ""
    for argument, value in zip(arguments, (*arguments[1:], "")):
        name = argument[1:] if argument[:1] == "-" else ""
        name = name[1:] if name[:1] == "-" else name
        if not argument.startswith("-"):
            if not option and argument and not on_x86:
                return CommandlineDevices(shortened_argument(argument), ())  # a disk image, on the machine's own kind of bus
            option = ""
            continue
        option = name
        if reader.adds_pci(name, value):
            return CommandlineDevices(shortened_argument(f"{argument} {value}" if name not in _WITHOUT_VALUE else argument), ())
    return CommandlineDevices(None, tuple(reader.occupied))


def shortened_argument(text: str) -> str:
    """An argument as a sentence names it."""
    return text if len(text) <= 120 else shortened(text)


def overridden_addresses(override: etree._Element) -> dict[str, OverriddenAddress]:
    """By alias, the devices whose bus or address ``<qemu:override>`` sets, and where to (libvirt, ``docs/drvqemu.rst``)."""
    found: dict[str, OverriddenAddress] = {}
    for device in override.iterchildren(f"{NAMESPACE}device"):
        bus: Optional[int] = None
        slot_function: Optional[tuple[int, int]] = None
        sets = False
        for part in device.iterchildren(f"{NAMESPACE}frontend"):
            for setting in part.iterchildren(f"{NAMESPACE}property"):
                name, value = setting.get("name"), setting.get("value", "")
                sets |= name in ("bus", "addr")
                if name == "bus":
                    bus = _index(value)
                elif name == "addr":
                    numeric = setting.get("type") in ("signed", "unsigned") and value.isdecimal() and len(value) < 4
                    slot_function = divmod(int(value), 8) if numeric else _slot_function(value)
        if sets:
            found[device.get("alias", "")] = OverriddenAddress(bus, slot_function)
    return found


def aliases_of(devices: Iterable[etree._Element], pools: frozenset[str]) -> Iterator[tuple[etree._Element, str]]:
    """Hostdevs, interfaces and disks with the alias that each will have: the owner's ``ua-…``, else the one that libvirt numbers.

    ``pools`` names hostdev networks. Source: ``qemuAssignDeviceAliases`` in libvirt's ``src/qemu/qemu_alias.c``: interfaces first, and
    what is a hostdev in the end is numbered as one.
    """
    elements = [element for element in devices if element.tag in ("interface", "hostdev", "disk")]
    elements.sort(key=lambda element: element.tag != "interface")
    numbers = {"hostdev": 0, "net": 0}
    for element in elements:
        alias = child(element, "alias")
        name = alias.get("name", "") if alias is not None else ""
        if name.startswith("ua-"):
            yield element, name
            continue
        if element.tag == "disk":
            target = child(element, "target")
            yield element, f"virtio-disk{_disk_number(target.get('dev', '') if target is not None else '')}"
            continue
        source = child(element, "source")
        pooled = source is not None and source.get("network") in pools
        name = "hostdev" if element.tag == "hostdev" or element.get("type") == "hostdev" or pooled else "net"
        yield element, f"{name}{numbers[name]}"
        numbers[name] += 1


def _disk_number(dev: str) -> int:
    """``vda`` is 0, ``vdaa`` 26 (``virDiskNameParse``)."""
    number = 0
    for letter in dev[2:6]:
        if "a" <= letter <= "z":
            number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1


class _Reader:
    def __init__(self, on_x86: bool, owners: frozenset[int]) -> None:
        self.on_x86 = on_x86
        self.owners = owners
        self.occupied: list[PciAddress] = []

    def adds_pci(self, name: str, value: str) -> bool:
        if name == "device":
            return self._device(value)
        test = _OPTIONS.get(name)
        if test is not None:
            return test(value)
        if name == "drive":
            return not _all_in(_of(_pairs(value, "file"), "if"), _NOT_PCI_DRIVES, empty=self.on_x86)
        return name in _DISKS and not self.on_x86

    def _device(self, value: str) -> bool:
        pairs = _json_pairs(value) if value.lstrip()[:1] == "{" else _pairs(value, "driver")
        drivers, buses, addresses = (_of(pairs, key) for key in ("driver", "bus", "addr"))
        if not drivers or len(drivers) > 1 or len(buses) > 1 or len(addresses) > 1:
            return True
        (driver,) = drivers
        if driver in NOT_PCI or driver.endswith(("-cpu", "-cpu-core")):
            return False
        if not buses or driver.startswith("vfio-") or any(word in driver for word in _BRIDGES):
            return True
        (bus,) = buses
        if bus.rstrip("0123456789").rstrip(".").rstrip("0123456789") in _OTHER_BUSES:
            return False
        index, slot_function = _index(bus), _slot_function(addresses[0] if addresses else "0")
        if not index or index not in self.owners or slot_function is None:
            return True
        self.occupied.append(PciAddress(0, index, *slot_function))
        return False


def _index(bus: str) -> Optional[int]:
    """The index of the PCI controller that libvirt makes a bus of this name for."""
    kind, _, number = bus.rpartition(".")
    return int(number) if kind in ("pci", "pcie") and number.isascii() and number.isdecimal() and len(number) < 4 else None


def _slot_function(text: str) -> Optional[tuple[int, int]]:
    """Slot and function of an ``addr`` property, which QEMU reads as hexadecimal (``set_pci_devfn``)."""
    slot, _, function = text.partition(".")
    try:
        found = int(slot, 16), int(function or "0", 16)
    except ValueError:
        return None
    return found if 0 <= found[0] <= 31 and 0 <= found[1] <= 7 else None


def _pairs(text: str, implied: str) -> _Pairs:
    """QemuOpts: ``first,key=value,key``, where ``,,`` is a comma in a value (``qemu_opts_parse``)."""
    pairs: _Pairs = []
    for number, part in enumerate(text.replace(",,", "\0").split(",")):
        key, equals, value = part.replace("\0", ",").partition("=")
        if equals:
            pairs.append((key, value))
        elif number == 0:
            pairs.append((implied, key))
        else:
            pairs.append((key, "on"))
    return pairs


def _json_pairs(text: str) -> _Pairs:
    """The members of a JSON object, as QEMU's own parser reads it, which takes single quotes too; nothing for what is none."""
    import json  # not for those who do without

    for candidate in (text, _double_quoted(text)):
        try:
            found = json.loads(candidate, object_pairs_hook=list)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, list):
            return [(str(key), value if isinstance(value, str) else json.dumps(value)) for key, value in found]
    return []


def _double_quoted(text: str) -> str:
    """JSON with its strings in double quotes, whichever they were in."""
    pieces: list[str] = []
    quote, escaped = "", False
    for letter in text:
        if not quote:
            quote = letter if letter in "'\"" else ""
            pieces.append('"' if quote else letter)
        elif escaped:
            pieces.append(letter if letter == "'" else "\\" + letter)
            escaped = False
        elif letter == "\\":
            escaped = True
        elif letter == quote:
            quote = ""
            pieces.append('"')
        else:
            pieces.append('\\"' if letter == '"' else letter)
    return "".join(pieces)


def _of(pairs: _Pairs, key: str) -> list[str]:
    return [value for name, value in pairs if name == key]


def _all_in(values: list[str], harmless: frozenset[str], empty: bool) -> bool:
    return all(value in harmless for value in values) if values else empty


def _always(_: str) -> bool:
    return True


def _turns_usb_on(value: str) -> bool:
    return any(usb.lower() not in _OFF for usb in _of(_pairs(value, "type"), "usb"))


def _plays_on_pci(value: str) -> bool:
    return not _all_in(_of(_pairs(value, "driver"), "model"), _ISA_CARDS, empty=True)


def _sets_a_place(value: str) -> bool:
    group, _, rest = value.partition(".")
    return group == "device" and rest.partition("=")[0].rpartition(".")[2] in ("bus", "addr", "driver", "multifunction")


def _resizes_windows(value: str) -> bool:
    pairs = _pairs(value, "driver")
    return value.partition("=")[0].endswith(_RESERVE) or any(name in _RESERVE for name in _of(pairs, "property"))


_OPTIONS: dict[str, Callable[[str], bool]] = {
    "virtfs": _always,  # a virtio-9p-pci
    "virtfs_synth": _always,
    "usb": _always,  # a USB controller on the main root
    "usbdevice": _always,
    "balloon": lambda value: value != "none",
    "watchdog": lambda value: value != "ib700",
    "virtioconsole": _always,
    "readconfig": _always,  # a file that may say anything
    "nic": lambda value: value.partition(",")[0] != "none",
    "net": lambda value: value.partition(",")[0] == "nic" or "nic" in _of(_pairs(value, "type"), "type"),
    "vga": lambda value: value != "none",
    "soundhw": lambda value: not _ISA_CARDS.issuperset(value.split(",")),
    "audio": _plays_on_pci,
    "machine": _turns_usb_on,
    "M": _turns_usb_on,
    "set": _sets_a_place,
    "global": _resizes_windows,
}
_DISKS = frozenset(("hda", "hdb", "hdc", "hdd", "cdrom"))
_WITHOUT_VALUE = frozenset(("usb", "virtfs_synth"))
