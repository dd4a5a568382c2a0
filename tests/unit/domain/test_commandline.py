# SPDX-License-Identifier: LGPL-2.1-or-later
"""What goes around libvirt: a domain that hands QEMU a PCI device of its own is left alone in whatever words, and nothing else hinders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcinuma.address import PciAddress
from pcinuma.domain.commandline import read_commandline
from pcinuma.domain.read import read_domain
from pcinuma.domain.xml import Document
from pcinuma.engine import Request, place
from pcinuma.reason import Outcome, Reason
from tests.hosts.domains import Domain, two_cells
from tests.hosts.machines import MACHINES

ON_PCI = ["ivshmem-plain", "virtio-net-pci", "virtio-net", "e1000e", "nvme", "qemu-xhci", "usb-ehci", "vfio-pci", "pxb-pcie", "VGA", "edu"]
ON_PCI += ["pcie-root-port", "x3130-upstream", "amd-iommu", "spapr-pci-host-bridge", "virtio-scsi-pci", "tomorrows-device", "AC97", "ahci"]
ELSEWHERE = ["isa-serial", "usb-tablet", "usb-host", "scsi-hd", "virtserialport", "ramfb", "tpm-tis", "isa-debugcon", "pc-dimm"]
ELSEWHERE += ["hda-duplex", "vmcoreinfo", "intel-iommu", "ide-cd", "nvme-ns", "isa-applesmc", "qemu64-x86_64-cpu"]


def single(value: object) -> str:
    """JSON in single quotes, which QEMU reads too."""
    return json.dumps(value).replace('"', "'")


"""Each way to write a device down for ``-device``; ``more`` are properties."""
SYNTAXES: dict[str, Callable[[str, dict[str, str]], str]] = {
    "short": lambda driver, more: ",".join([driver, *(f"{k}={v}" for k, v in more.items())]),
    "driver": lambda driver, more: ",".join([*(f"{k}={v}" for k, v in more.items()), f"driver={driver}"]),
    "commas": lambda driver, more: ",".join([driver, "id=a,,bus=usb.0", "x", *(f"{k}={v}" for k, v in more.items())]),
    "json": lambda driver, more: json.dumps({"driver": driver, **more}),
    "compact": lambda driver, more: json.dumps({**more, "driver": driver}, separators=(",", ":")),
    "single": lambda driver, more: single({"driver": driver, "multifunction": True, "n": 3, "o": {"driver": "isa-serial"}, **more}),
    "blanks": lambda driver, more: " \n" + json.dumps({"driver": driver, **more}, indent=1),
    "escaped": lambda driver, more: json.dumps({"driver": driver, **more}).replace(driver, "".join(f"\\u{ord(c):04x}" for c in driver)),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MACHINES["two-sockets"]().write(tmp_path_factory.mktemp("root"))


def handed(*arguments: str, on_x86: bool = True, owners: tuple[int, ...] = ()) -> Optional[str]:
    return read_commandline(arguments, on_x86, owners).argument


@pytest.mark.parametrize("option", ["-device", "--device"])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_device_is_known_in_every_syntax(syntax: str, option: str) -> None:
    write = SYNTAXES[syntax]
    for driver in ON_PCI:
        for more in ({}, {"bus": "pcie.0"}, {"bus": "pci.9", "addr": "0x0"}, {"id": "usb", "addr": "3"}):
            found = handed("-name", "x", option, write(driver, more))
            assert found is not None and option in found, (driver, more)
    for driver in ELSEWHERE:
        for more in ({}, {"bus": "usb.0"}, {"id": "vfio-pci"}):
            assert handed("-s", option, write(driver, more)) is None, (driver, more)
    for bus in ("usb.0", "scsi0.0", "virtio-serial0.0", "ide.2", "isa.0"):
        assert handed(option, write("tomorrows-device", {"bus": bus})) is None, bus


HANDS = [
    ("-drive", "if=virtio,file=/x"), ("-drive", "file=/x,if=scsi"), ("--drive", "/x,if=virtio"), ("-drive", "if=none,if=virtio"),
    ("-virtfs", "local,path=/x,mount_tag=x,security_model=none"), ("-net", "nic,model=e1000"), ("-net", "nic"), ("-net", "type=nic"),
    ("-nic", "user"), ("-nic", "user,model=virtio-net-pci"), ("-usb",), ("-usbdevice", "tablet"), ("-vga", "std"), ("--vga", "qxl"),
    ("-soundhw", "ac97"), ("-soundhw", "sb16,hda"), ("-audio", "pa,model=hda"), ("-audio", "driver=none,model=virtio"),
    ("-watchdog", "i6300esb"), ("-readconfig", "/x"), ("-machine", "usb=on"), ("-M", "q35,usb=yes"), ("-balloon", "virtio"),
    ("-set", "device.hostdev0.bus=pci.3"), ("-set", "device.a.b.addr=3"), ("-global", "pcie-root-port.io-reserve=4096"),
    ("-global", "driver=pcie-root-port,property=pref64-reserve,value=1G"), ("-global", "pcie-root-port.bus-reserve=8"),
    ("-device",), ("-device", ""), ("-device", "{"), ("-device", "{'driver':1"), ("-device", "[" * 9999), ("-device", "{" * 99999),
    ("-device", "id=x"), ("-device", "driver=ramfb,driver=nvme"), ("-device", '{"driver":"ramfb","driver":"nvme"}'),
    ("-device", '{"id":"x"}'),
]  # fmt: skip
HARMLESS = [
    ("-drive", "if=none,file=/x"), ("-drive", "if=pflash,file=/x"), ("-drive", "file=/x"), ("-hda", "/x"), ("-cdrom", "/x"), ("-sd", "/x"),
    ("-netdev", "user,id=nic"), ("-net", "user"), ("-net", "none"), ("-nic", "none"), ("-vga", "none"), ("-soundhw", "pcspk"),
    ("-audio", "pa"), ("-audiodev", "pa,id=x"), ("-watchdog", "ib700"), ("-watchdog-action", "reset"), ("-machine", "q35,usb=off"),
    ("-machine", "smm=on"), ("-global", "pcie-root-port.x-speed=16"), ("-global", "driver=nvme,property=x,value=y"),
    ("-global", "ICH9-LPC.disable_s3=1"), ("-global", "vfio-pci.x-igd-opregion=on"), ("-set", "device.a.x-vga=on"),
    ("-set", "drive.a.bus=1"),
    ("-object", '{"qom-type":"memory-backend-file","id":"vfio-pci"}'), ("-fw_cfg", "name=opt/x,string=-device"), ("-cpu", "host"), ("-s",),
    ("-chardev", "null,id=virtio-net-pci"), ("-fsdev", "local,id=x"), ("-serial", "null"), ("-overcommit", "cpu-pm=on"), ("/disk.img",),
]  # fmt: skip


@pytest.mark.parametrize("arguments", HANDS, ids=" ".join)
def test_what_hands_qemu_a_pci_device_leaves_the_domain_alone(root: Path, arguments: tuple[str, ...]) -> None:
    assert handed("-name", "x", *arguments, "-s") is not None
    xml = written(two_cells().hostdev("17:00.0").hostdev("b3:00.0"), *arguments)
    found = place(xml, Request(root))
    assert (found.outcome, found.reason, found.xml) == (Outcome.UNCHANGED, Reason.QEMU_COMMANDLINE, xml)
    assert found.message is not None and arguments[0] in found.message and len(found.message) < 300


@pytest.mark.parametrize("arguments", HARMLESS, ids=" ".join)
def test_what_hands_qemu_none_hinders_nothing(root: Path, arguments: tuple[str, ...]) -> None:
    found = place(written(two_cells().hostdev("17:00.0").hostdev("b3:00.0"), *arguments), Request(root))
    assert found.outcome is Outcome.PLACED, found.message


@pytest.mark.parametrize("arguments", [("-drive", "file=/x"), ("-hda", "/x"), ("-cdrom", "/x"), ("/disk.img",)], ids=" ".join)
def test_a_disk_of_no_kind_is_a_pci_device_where_the_machine_has_no_other(arguments: tuple[str, ...]) -> None:
    assert handed(*arguments, on_x86=False) is not None and handed(*arguments, on_x86=True) is None


def test_a_placed_domain_that_is_handed_one_goes_back(root: Path) -> None:
    domain = two_cells().hostdev("17:00.0").hostdev("b3:00.0")
    placed = place(domain.formatted(), Request(root))
    assert placed.outcome is Outcome.PLACED
    handing = placed.xml.replace(b"</domain>", COMMANDLINE.format("<arg value='-device'/><arg value='edu'/>").encode() + b"</domain>")
    found = place(handing, Request(root))
    assert (found.outcome, found.reason) == (Outcome.FALLBACK, Reason.QEMU_COMMANDLINE)
    assert b"pcie-expander-bus" not in found.xml and b"<arg value='edu'/>" in found.xml
    again = place(found.xml, Request(root))
    assert (again.outcome, again.reason, again.xml) == (Outcome.UNCHANGED, Reason.QEMU_COMMANDLINE, found.xml)


def test_a_device_on_its_owners_port_is_no_hindrance_and_the_port_is_taken(root: Path) -> None:
    domain = two_cells().hostdev("17:00.0").hostdev("b3:00.0")
    domain = domain.controller(1, "pcie-root-port").controller(2, "pcie-pci-bridge", "", "01:00.0")
    for value, slot_function in (("edu,bus=pci.2,addr=0x1f", (2, 31, 0)), ('{"driver":"edu","bus":"pci.2","addr":"4.1"}', (2, 4, 1))):
        xml = written(domain, "-device", value)
        assert PciAddress(0, *slot_function) in read_domain(Document(xml))[0].others
        assert place(xml, Request(root)).outcome is Outcome.PLACED
    for value in ("edu,bus=pci.3", "edu,bus=pci.2,addr=99", "edu,bus=pci.0", "pcie-pci-bridge,bus=pci.2", "vfio-pci,bus=pci.2"):
        assert place(written(domain, "-device", value), Request(root)).reason is Reason.QEMU_COMMANDLINE


@settings(deadline=None)
@given(st.lists(st.text(st.characters(blacklist_categories=("Cs",)), max_size=20), max_size=8), st.booleans())
def test_whatever_the_arguments_are_they_are_read(arguments: list[str], on_x86: bool) -> None:
    read_commandline(arguments, on_x86, ())
    read_commandline([part for argument in arguments for part in ("-device", argument)], on_x86, (1, 2))


COMMANDLINE = "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>{}</commandline>"
OVERRIDE = (
    "<override xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>"
    "<device alias='{alias}'><frontend>{settings}</frontend></device></override>"
)


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("'", "&apos;").replace("\n", "&#10;")


def written(domain: Domain, *arguments: str) -> bytes:
    lines = "".join(f"<arg value='{escaped(argument)}'/>" for argument in arguments)
    return domain.raw().replace(b"</domain>", COMMANDLINE.format(lines).encode() + b"</domain>")


def overridden(domain: bytes, alias: str, **properties: str) -> bytes:
    lines = "".join(f"<property name='{name.replace('_', '-')}' type='string' value='{value}'/>" for name, value in properties.items())
    return domain.replace(b"</domain>", OVERRIDE.format(alias=alias, settings=lines).encode() + b"</domain>")


@pytest.mark.parametrize(
    "properties", [{"bus": "pcie.0"}, {"addr": "2.0"}, {"bus": "pcie.0", "addr": "0x10"}, {"x_vga": "true", "bus": "pci.1"}]
)
@pytest.mark.parametrize("form", ["raw", "formatted"])
def test_a_device_whose_place_is_overridden_stays_and_is_never_placed(root: Path, form: str, properties: dict[str, str]) -> None:
    """By the alias that libvirt numbers: interfaces first."""
    domain = two_cells().hostdev("17:00.0").hostdev("b3:00.0").interface("18:00.0")
    given = domain.raw() if form == "raw" else domain.formatted()
    for alias, source in (("hostdev0", "0000:18:00.0"), ("hostdev1", "0000:17:00.0"), ("hostdev2", "0000:b3:00.0")):
        found = place(overridden(given, alias, **properties), Request(root))
        assert found.outcome is Outcome.PLACED, found.message
        lines = {line.source: (line.placed, line.reason) for line in found.devices}
        assert lines.pop(source) == (False, Reason.QEMU_OVERRIDE)
        assert all(line == (True, None) for line in lines.values())
        before = {d.source: d.original for d in read_domain(Document(given))[0].devices}
        after = {d.source: d.original for d in read_domain(Document(found.xml))[0].devices}
        assert after[source] == before[source]
        assert place(found.xml, Request(root)).outcome is Outcome.UNCHANGED


def test_an_owners_alias_names_the_device(root: Path) -> None:
    alias = b"<alias name='ua-gpu'/></hostdev>"
    given = two_cells().hostdev("17:00.0").raw().replace(b"</hostdev>", alias)
    found = place(overridden(given, "ua-gpu", addr="2.0"), Request(root))
    assert (found.outcome, found.reason) == (Outcome.UNCHANGED, Reason.QEMU_OVERRIDE)
    for other in (overridden(given, "hostdev0", addr="2.0"), overridden(given, "ua-gpu", x_vga="true")):
        assert place(other, Request(root)).outcome is Outcome.PLACED


def test_a_placed_device_that_is_overridden_later_is_not_reported_as_placed(root: Path) -> None:
    placed = place(two_cells().hostdev("17:00.0").hostdev("b3:00.0").formatted(), Request(root)).xml
    found = place(overridden(placed, "hostdev1", bus="pcie.0", addr="0x10"), Request(root))
    lines = {line.source: (line.placed, line.reason) for line in found.devices}
    assert lines == {"0000:17:00.0": (True, None), "0000:b3:00.0": (False, Reason.QEMU_OVERRIDE)}


@pytest.mark.parametrize("slot", range(1, 31))
def test_where_an_override_puts_a_device_nothing_of_ours_goes(root: Path, slot: int) -> None:
    given = two_cells().hostdev("17:00.0").hostdev("b3:00.0").nic().raw()
    found = place(overridden(given, "net0", bus="pcie.0", addr=f"{slot:x}.0"), Request(root))
    assert found.outcome is Outcome.PLACED, found.message
    domain, _ = read_domain(Document(found.xml))
    taken = [c.address for c in domain.controllers.values() if c.address is not None]
    assert taken and all((address.bus, address.slot) != (0, slot) for address in taken)
