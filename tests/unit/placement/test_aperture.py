# SPDX-License-Identifier: LGPL-2.1-or-later
"""What UEFI firmware can map: the model against boots that were measured, and what the engine does with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcinuma.engine import Request, Result, place, revert
from pcinuma.placement.aperture import Aperture
from pcinuma.reason import Outcome, Reason
from pcinuma.settings import GroupBy, Policy
from tests.hosts.build import E810, Host, Kind
from tests.hosts.domains import Domain, address_xml, two_cells
from tests.hosts.edits import with_device
from tests.hosts.judge import without_ours
from tests.hosts.machines import MACHINES

GIB = 1 << 30
BIG, NIC = (64 * GIB,), (16384,)
SIX = {"a0": BIG, "a1": BIG, "an": NIC, "b0": BIG, "b1": BIG, "bn": NIC, "c0": BIG, "c1": BIG, "cn": NIC}
TWO = {"a0": BIG, "a1": BIG}
EIGHT = {f"g{number}": (16 * GIB,) for number in range(8)}

MEASURED = [
    ("six BARs of 64 GiB and three NICs on one root", 512, SIX, [list(SIX)], True),
    ("the same on three root complexes", 512, SIX, [[], ["a0", "a1", "an"], ["b0", "b1", "bn"], ["c0", "c1", "cn"]], False),
    ("the same on two nodes", 512, SIX, [[], ["a0", "a1", "an", "b0", "b1", "bn"], ["c0", "c1", "cn"]], False),
    ("two of 64 GiB in 128", 128, TWO, [["a0", "a1"]], False),
    ("the same on an expander", 128, TWO, [[], ["a0", "a1"]], False),
    ("one of 64 GiB in 128", 128, {"a0": BIG}, [[], ["a0"]], True),
    ("eight of 16 GiB in 128", 128, EIGHT, [list(EIGHT)], False),
    ("the same on four root complexes", 128, EIGHT, [[], *(list(EIGHT)[n : n + 2] for n in (0, 2, 4, 6))], False),
    ("four of 16 GiB on two root complexes", 128, EIGHT, [[], ["g0", "g1"], ["g2", "g3"]], True),
]


@pytest.mark.parametrize(("size", "bars", "roots", "fits"), [case[1:] for case in MEASURED], ids=[case[0] for case in MEASURED])
def test_the_model_foretells_what_ovmf_was_seen_to_map(
    size: int, bars: dict[str, tuple[int, ...]], roots: list[list[str]], fits: bool
) -> None:
    aperture = Aperture(size * GIB, True, bars)
    assert (aperture.misfit(roots) is None) is fits


def _gpus(domain: Domain) -> Domain:
    """Two GPUs of 64 GiB and a NIC on each of three root complexes, two of which are on node 0."""
    for base in (0x20, 0x50, 0x80):
        for offset in (4, 5, 6):
            domain.hostdev(f"{base + offset:02x}:00.0")
    return domain


def _uefi(domain: Domain, told_gib: int = 0) -> bytes:
    if told_gib:
        domain.commandline("-fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={told_gib * 1024}")
    return domain.raw().replace(b"<os>", b"<os firmware='efi'>")


def _place(xml: bytes, folder: Path) -> Result:
    return place(xml, Request(root=MACHINES["eight-gpus"]().write(folder)))


def test_where_the_windows_would_not_be_mapped_the_guest_starts_as_it_is_and_is_told_the_aperture(tmp_path: Path) -> None:
    xml = _uefi(_gpus(two_cells()), told_gib=512)
    result = _place(xml, tmp_path)
    assert (result.outcome, result.reason, result.xml) == (Outcome.FALLBACK, Reason.NO_APERTURE, xml)
    assert result.message is not None and "of the 512 GiB" in result.message
    assert {line.reason for line in result.devices} == {Reason.NO_APERTURE}


def _accelerators() -> tuple[Host, Domain]:
    """Two devices with one BAR of 64 GiB and a NIC on each of three root complexes, two of which are on node 0; a spare NIC 90:00.0."""
    accelerator = Kind(0x120000, 0x1234, 0x1, "accel", ((64 * GIB, "pref64"),))
    host = Host().node(0, "0-3").node(1, "4-7")
    domain = two_cells()
    for number in range(3):
        root = host.rc(f"pci0000:{0x20 + 0x30 * number:02x}", node=number // 2)
        for slot, kind in enumerate((accelerator, accelerator, E810)):
            root.port(f"{0x20 + 0x30 * number:02x}:{slot:02x}.0").device(f"{0x21 + 0x30 * number + slot:02x}:00.0", kind)
            domain.hostdev(f"{0x21 + 0x30 * number + slot:02x}:00.0")
    root.port("80:08.0").device("90:00.0", E810)
    return host, domain


def test_a_coarser_grouping_is_tried_first(tmp_path: Path) -> None:
    host, domain = _accelerators()
    root_directory = host.write(tmp_path)
    outcomes = {}
    for told in (512, 576, 1024):
        domain.tail = ""
        result = place(_uefi(domain, told), Request(root=root_directory))
        outcomes[told] = (result.outcome, result.reason, result.group_by)
    assert outcomes == {
        512: (Outcome.FALLBACK, Reason.NO_APERTURE, None),
        576: (Outcome.PLACED, None, GroupBy.NODE),
        1024: (Outcome.PLACED, None, GroupBy.ROOT_COMPLEX),
    }


def test_enough_is_enough_and_other_firmware_has_no_such_limit(tmp_path: Path) -> None:
    for xml in (_uefi(_gpus(two_cells()), told_gib=1024), _gpus(two_cells()).raw()):
        assert _place(xml, tmp_path / str(len(xml))).group_by is GroupBy.ROOT_COMPLEX


def test_a_guest_that_exceeds_the_estimate_even_unplaced_has_a_larger_aperture_than_estimated(tmp_path: Path) -> None:
    """No CPU model says more than 40 address bits here, of which OVMF takes an eighth: 128 GiB."""
    assert _place(_uefi(_gpus(two_cells())), tmp_path / "many").outcome is Outcome.PLACED
    one = _place(_uefi(two_cells().hostdev("24:00.0").hostdev("26:00.0")), tmp_path / "one")
    assert (one.outcome, one.reason) == (Outcome.FALLBACK, Reason.NO_APERTURE)


@pytest.mark.parametrize(("bits", "outcome"), [("40", Outcome.FALLBACK), ("46", Outcome.PLACED)])
def test_the_cpu_has_the_hosts_address_bits_where_it_is_the_hosts_cpu(bits: str, outcome: Outcome, tmp_path: Path) -> None:
    root = MACHINES["eight-gpus"]().write(tmp_path)
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(f"processor\t: 0\naddress sizes\t: {bits} bits physical, 48 bits virtual\n")
    xml = _uefi(two_cells().hostdev("24:00.0").hostdev("26:00.0"))
    xml = xml.replace(b"<cpu mode='custom' match='exact'>", b"<cpu mode='host-passthrough'>")
    assert place(xml, Request(root=root)).outcome is outcome


def test_a_placed_guest_stays_placed(tmp_path: Path) -> None:
    """It ran that way; only what would change is judged."""
    placed = _place(_uefi(_gpus(two_cells())), tmp_path).xml
    smaller = placed.replace(b"</domain>", b"  <qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
                             b"<qemu:arg value='opt/ovmf/X-PciMmio64Mb,string=32768'/></qemu:commandline>\n</domain>")  # fmt: skip
    assert place(smaller, Request(root=tmp_path)).outcome is Outcome.UNCHANGED


def test_a_placed_guest_that_is_known_not_to_fit_any_more_is_taken_back(tmp_path: Path) -> None:
    """Its range was said to be half of what it was, unplaced it would fit, and nothing moves."""
    host, domain = _accelerators()
    host.write(tmp_path)
    xml = _uefi(domain, told_gib=1024)
    placed = place(xml, Request(root=tmp_path)).xml
    smaller = placed.replace(b"string=1048576", b"string=524288")
    result = place(smaller, Request(root=tmp_path))
    assert (result.outcome, result.reason) == (Outcome.FALLBACK, Reason.NO_APERTURE)
    assert result.xml == revert(smaller).xml and without_ours(result.xml) == without_ours(smaller)
    assert not any(line.placed for line in result.devices) and "of the 512 GiB" in (result.message or "")
    again = place(result.xml, Request(root=tmp_path))
    assert (again.reason, again.xml) == (Reason.NO_APERTURE, result.xml)
    larger = with_device("90:00.0")(smaller)
    taken = place(larger, Request(root=tmp_path))
    assert (taken.outcome, taken.reason) == (Outcome.FALLBACK, Reason.NO_APERTURE)
    required = place(smaller, Request(root=tmp_path, policy=Policy.REQUIRED))
    assert required.refused and required.xml == smaller


def test_a_placed_guest_that_is_only_estimated_not_to_fit_stays_and_is_remarked_upon(tmp_path: Path) -> None:
    """It was placed for SeaBIOS; now it has UEFI and nobody said how much room that has."""
    root = MACHINES["eight-gpus"]().write(tmp_path)
    placed = place(two_cells().hostdev("24:00.0").hostdev("26:00.0").raw(), Request(root=root)).xml
    changed = placed.replace(b"<os>", b"<os firmware='efi'>")
    result = place(changed, Request(root=root))
    assert (result.outcome, result.xml) == (Outcome.UNCHANGED, changed)
    (warning,) = result.warnings
    assert "may leave devices of the standing layout without memory" in warning and "--replan" in warning
    assert not place(placed, Request(root=root)).warnings
    afresh = place(changed, Request(root=root, replan=True))
    assert (afresh.outcome, afresh.reason) == (Outcome.FALLBACK, Reason.NO_APERTURE) and afresh.xml == revert(changed).xml


def test_ports_that_a_placed_guest_got_later_are_remarked_upon(tmp_path: Path) -> None:
    root = MACHINES["multifunction-gpu"]().write(tmp_path)
    placed = place(_with_io(7), Request(root=root)).xml
    ports = "".join(
        f"<controller type='pci' index='{index}' model='pcie-root-port'>{address_xml(f'00:{index + 5:02x}.0')}</controller>\n"
        for index in range(13, 23)
    )
    more = placed.replace(b"  </devices>", ports.encode() + b"  </devices>")
    result = place(more, Request(root=root))
    assert (result.outcome, result.xml) == (Outcome.UNCHANGED, more)
    assert "I/O BARs" in result.warnings[0]


IO_MEASURED = [(8, 7, True), (8, 3, True), (6, 10, True), (4, 9, True), (2, 10, True), (1, 10, True)]
IO_MEASURED += [(1, 11, False), (1, 17, False), (2, 11, False), (4, 13, False), (8, 12, False), (10, 3, False)]


@pytest.mark.parametrize(("devices", "ports", "mapped"), IO_MEASURED)
def test_the_limits_of_io_space_are_those_that_ovmf_was_seen_to_have(devices: int, ports: int, mapped: bool) -> None:
    names = [f"d{number}" for number in range(devices)]
    aperture = Aperture(None, False, {}, frozenset(names))
    assert (aperture.misfit([[], names], ports) is None) is mapped


def _with_io(ports: int, hotplug: str = "") -> bytes:
    """A graphics card (I/O BAR, class VGA) beside root ports as virt-manager makes them."""
    domain = two_cells().hostdev("17:00.0", "01:00.0")
    for index in range(1, ports + 1):
        place = f"00:{1 + (index + 7) // 8:02x}.{(index + 7) % 8}"
        domain.controller(index, "pcie-root-port", f"<target chassis='{index}'{hotplug}/>", place, multifunction=index % 8 == 1)
    return _uefi(domain)


def test_io_bars_and_many_hot_pluggable_ports_leave_a_uefi_guest_as_it_is(tmp_path: Path) -> None:
    root = MACHINES["multifunction-gpu"]().write(tmp_path)
    many = place(_with_io(14), Request(root=root))
    assert (many.outcome, many.reason) == (Outcome.FALLBACK, Reason.NO_APERTURE)
    assert many.message is not None and "hotplug='off'" in many.message
    assert place(_with_io(7), Request(root=root)).outcome is Outcome.PLACED
    assert place(_with_io(14, " hotplug='off'"), Request(root=root)).outcome is Outcome.PLACED
    assert place(_with_io(14).replace(b" firmware='efi'", b""), Request(root=root)).outcome is Outcome.PLACED
