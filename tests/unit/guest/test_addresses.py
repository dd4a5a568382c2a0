# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bus addresses that a guest will give its devices, against the tests' own model of firmware (booted guests: ``tests/guest``)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Optional

import pytest
from hypothesis import HealthCheck, given, settings
from lxml import etree

from pcinuma.domain.read import read_domain
from pcinuma.domain.xml import Document
from pcinuma.engine import Request, place
from pcinuma.errors import UnusableInput
from pcinuma.guest.addresses import address_in_guest, bus_numbers
from pcinuma.model import Domain
from pcinuma.settings import GroupBy
from tests.hosts.domains import Domain as Written
from tests.hosts.domains import two_cells
from tests.hosts.guest import Controller, Guest
from tests.hosts.memory import MEMORY
from tests.hosts.strategies import Setup, setups

GOLDEN = Path(__file__).parents[2] / "golden"


def domain_of(xml: bytes) -> Domain:
    return read_domain(Document(xml))[0]


def expected(xml: bytes) -> dict[int, int]:
    guest = Guest.of(xml)
    guest.controllers.setdefault(0, Controller(0, "pcie-root"))  # which need not be written down
    return guest.numbers()


def computed(xml: bytes) -> dict[int, int]:
    return {index: bus.number for index, bus in bus_numbers(domain_of(xml)).items()}


def whole(xml: bytes) -> bool:
    """Whether every PCI controller has an address, as libvirt writes it."""
    return all(c.at is not None or c.model in ("pcie-root", "pci-root") for c in Guest.of(xml).controllers.values())


PLACED = [path for path in sorted(GOLDEN.glob("*-out.xml")) if b"-expander-bus" in path.read_bytes() and whole(path.read_bytes())]


def test_there_are_goldens_to_try() -> None:
    assert len(PLACED) > 40
    assert any(b"pci-expander-bus" in path.read_bytes() for path in PLACED)


@pytest.mark.parametrize("path", PLACED, ids=lambda path: path.name)
def test_bus_numbers_of_placed_domains_are_those_of_firmware(path: Path) -> None:
    xml = path.read_bytes()
    assert computed(xml) == expected(xml)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(setups(formatted=True))
def test_bus_numbers_of_any_domain_are_those_of_firmware(setup: Setup) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        root = setup.host.write(Path(directory))
        grouping = GroupBy(setup.group_by) if setup.group_by else None
        for xml in (setup.xml(), place(setup.xml(), Request(root=root, group_by=grouping)).xml):
            assert computed(xml) == expected(xml)


def test_every_phb_of_pseries_is_a_pci_domain_of_its_own() -> None:
    xml = (GOLDEN / "pseries-out.xml").read_bytes()
    domain = domain_of(xml)
    buses = bus_numbers(domain)
    for element in etree.fromstring(xml).iterfind("devices/controller[@model='pci-root']"):
        target = element.find("target")
        assert buses[int(element.get("index", "0"))] == (int(target.get("index", "0")) if target is not None else 0, 0)
    assert {address_in_guest(buses, device).domain for device in domain.devices} == {1, 2}


def test_an_address_is_that_of_the_controllers_bus() -> None:
    xml = two_cells().hostdev("17:00.0", "02:00.1").controller(1, "pcie-root-port", address="00:02.0")
    domain = domain_of(xml.controller(2, "pcie-root-port", address="00:01.0").raw())  # the later index comes first on the bus
    assert str(address_in_guest(bus_numbers(domain), domain.devices[0])) == "0000:01:00.1"


LATER = "libvirt chooses it"


@pytest.mark.parametrize(
    ("written", "subject", "hint"),
    [
        (two_cells().hostdev("17:00.0"), "0000:17:00.0: has no guest address", LATER),
        (two_cells().hostdev("17:00.0", "01:00.0").controller(1, "pcie-root-port"), "PCI controller 1: has no address", LATER),
        (
            two_cells().hostdev("17:00.0", "02:00.0").controller(1, "pcie-expander-bus", "<target/>", "00:02.0"),
            "PCI controller 1: has no busNr",
            LATER,
        ),
        (two_cells().hostdev("17:00.0", "07:00.0"), "0000:17:00.0: is on PCI controller 7", None),
        (Written("s390-ccw-virtio").hostdev("17:00.0", "00:01.0"), "machine type s390-ccw-virtio", None),
        (two_cells().on("virt").without_acpi().hostdev("17:00.0", "00:01.0"), "guest: without ACPI", None),
    ],
    ids=["device", "controller", "expander", "nowhere", "machine", "device tree"],
)
def test_what_is_not_decided_yet_is_said(written: Written, subject: str, hint: Optional[str]) -> None:
    domain = domain_of(written.raw())
    with pytest.raises(UnusableInput) as caught:
        address_in_guest(bus_numbers(domain), domain.devices[0])
    assert caught.value.sentence().startswith(subject)
    assert (caught.value.hint or "").startswith(hint or "")


@pytest.mark.parametrize(
    ("bus_nr", "below", "message"),
    [
        (3, 1, None),  # 0 to 2 are the main root's: itself, and a root port on each of two slots
        (2, 1, "PCI controller 3: bus 02 belongs to controller 0, too"),
        (9, 2, "PCI controller 4: bus 0b belongs to controller 3, too"),
        (8, 2, None),
    ],
)
def test_buses_that_overlap_are_said(bus_nr: int, below: int, message: Optional[str]) -> None:
    xml = two_cells().hostdev("17:00.0", "01:00.0")
    xml.controller(1, "pcie-root-port", address="00:02.0").controller(2, "pcie-root-port", address="00:03.0")
    for index, number, slot in ((3, bus_nr, 4), (4, 11, 5)):
        xml.controller(index, "pcie-expander-bus", f"<target busNr='{number}'/>", f"00:{slot:02x}.0")
    for index in range(below):
        xml.controller(5 + index, "pcie-root-port", address=f"03:{index:02x}.0")
    domain = domain_of(xml.raw())
    if message is None:
        assert {index: bus.number for index, bus in bus_numbers(domain).items()} == expected(xml.raw())
        return
    with pytest.raises(UnusableInput, match=message):
        bus_numbers(domain)


def test_controllers_that_hang_on_each_other_end() -> None:
    xml = two_cells().hostdev("17:00.0", "01:00.0")
    xml.controller(1, "pcie-root-port", address="02:00.0").controller(2, "pcie-root-port", address="01:01.0")
    domain = domain_of(xml.raw())
    with pytest.raises(UnusableInput, match="hangs on none"):
        address_in_guest(bus_numbers(domain), domain.devices[0])


@pytest.mark.parametrize("depth", [255, 256, 3000])
def test_more_bridges_than_bus_numbers_are_said(depth: int) -> None:
    xml = two_cells().hostdev("17:00.0", "01:00.0").controller(1, "pcie-root-port", address="00:02.0")
    for index in range(2, depth + 1):
        xml.controller(index, "pci-bridge", address=f"{index - 1:02x}:01.0")
    domain = domain_of(xml.raw())
    if depth == 255:
        assert bus_numbers(domain)[255].number == 255
        return
    with pytest.raises(UnusableInput, match="PCI controller 256: would get no bus number"):
        bus_numbers(domain)
