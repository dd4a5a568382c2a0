# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma topology DOMAIN --nccl``: of each device the host's word, under the guest's address, in what NCCL's parser takes."""

from __future__ import annotations

import re
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any, Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from pcinuma.address import PciAddress
from pcinuma.cli import main
from pcinuma.cli.nccl import nccl_topology
from pcinuma.engine import Request, place
from pcinuma.errors import UnusableInput
from pcinuma.guest.nccl import GuestDevice, HostCpu, HostSwitch, Ids, cpu_mask, topology_file
from pcinuma.host.links import Link, best_link
from pcinuma.host.sysfs import Sysfs
from pcinuma.host.topology import read_topology
from pcinuma.settings import GroupBy
from tests.hosts.build import GPU, NIC, Function, Host
from tests.hosts.domains import Domain, two_cells
from tests.hosts.guest import Controller, Guest, guest_slot
from tests.hosts.machines import MACHINES, MDEV
from tests.hosts.memory import MEMORY
from tests.hosts.strategies import Setup, setups

LINKS = [("2.5 GT/s PCIe", "1"), ("8.0 GT/s PCIe", "8"), ("16.0 GT/s PCIe", "16"), ("32.0 GT/s PCIe", "4"), ("32.0 GT/s PCIe", "16")]
UNTOLD: list[Optional[tuple[str, str]]] = [None, ("Unknown", "0"), ("Unknown speed", "255")]
# What NCCL's parser takes (src/graph/xml.cc): elements, quoted attributes of less than 254 characters, no declaration, no entities.
NCCL = re.compile(r'(\s*<(/\w+|\w+( \w+="[^"<>&]{0,253}")*/?)>)+\s*\Z')


def written(xml: bytes, root: Path) -> tuple[etree._Element, list[str]]:
    """The file for a domain, and the remarks; what NCCL's parser would not take fails here."""
    text, remarks = nccl_topology(xml, frozenset(), place(xml, Request(root=root)), read_topology(root), root)
    assert NCCL.match(text), text
    return etree.fromstring(text), remarks


def seen(xml: bytes, host: Host) -> dict[str, tuple[Function, str]]:
    """Source -> host function and guest address of each device that is passed through, by the tests' own model of libvirt and firmware."""
    guest = Guest.of(xml)
    guest.controllers.setdefault(0, Controller(0, "pcie-root"))
    numbers = guest.numbers()
    parents = {uuid: function for function in host.functions.values() for uuid in function.mdevs}
    found = {}
    for element in etree.fromstring(xml).iterfind("devices/*"):
        address, slot = element.find("source/address"), guest_slot(element)
        if element.tag not in ("hostdev", "interface") or address is None or slot is None:
            continue
        source = address.get("uuid")
        if source is None:
            source = "%04x:%02x:%02x.%d" % tuple(int(address.get(n, "0"), 16) for n in ("domain", "bus", "slot", "function"))
        function = parents[source] if source in parents else host.functions[source]
        found[source] = (function, "0000:%02x:%02x.%d" % (numbers[slot.bus], slot.slot, slot.function))
    return found


def best(function: Function) -> tuple[Optional[float], Optional[int]]:
    """The smaller of a device's and its port's figures; of a VF that tells none the PF's."""
    own = figures(function.link)
    if own == (None, None) and function.physfn is not None:
        own = figures(function.physfn.link)
    port = figures(function.parent.link) if isinstance(function.parent, Function) else (None, None)
    speeds, widths = zip(own, port)
    return min((s for s in speeds if s is not None), default=None), min((w for w in widths if w is not None), default=None)


def figures(link: Optional[tuple[str, str]]) -> tuple[Optional[float], Optional[int]]:
    return (float(link[0].split()[0]), int(link[1])) if link in LINKS else (None, None)


def told(element: etree._Element) -> tuple[Optional[float], Optional[int]]:
    speed, width = element.get("link_speed"), element.get("link_width")
    return None if speed is None else float(speed.split()[0]), None if width is None else int(width)


def home(source: str, devices: dict[str, tuple[Function, str]], report: Any) -> tuple[Optional[int], Optional[int]]:
    """Cell, or else host node: the device's own, or of all below its topmost switch what the first that has any says."""
    switch = {other: [up for up, _ in function.host.switches_of(function.address)][:1] for other, (function, _) in devices.items()}
    family = [other for other in devices if switch[source] and switch[other] == switch[source]] or [source]
    family.sort(key=lambda other: devices[other][1])
    cells = [report[other].guest_cell for other in family if report[other].guest_cell is not None]
    nodes = [report[other].host_node for other in family if report[other].host_node is not None]
    return (cells[0], None) if cells else (None, nodes[0] if nodes else None)


def judge(host: Host, xml: bytes, root: Path) -> int:
    """Compare the file with the model; returns the number of devices compared."""
    report = {line.source: line for line in place(xml, Request(root=root)).devices}
    tree, _ = written(xml, root)
    elements = {element.get("busid"): element for element in tree.iter("pci")}
    devices = seen(xml, host)
    switches = {up for function, _ in devices.values() for up, _ in host.switches_of(function.address)}
    assert sum(1 for _ in tree.iter("pci")) == len(elements) == len(devices) + len(switches)
    for function, address in devices.values():
        element = elements[address]
        above = list(element.iterancestors("pci"))[::-1]
        assert [e.get("busid") for e in above] == [f"f{up[1:]}" for up, _ in host.switches_of(function.address)]
        for bridge, (up, _) in zip(above, host.switches_of(function.address)):
            assert told(bridge) == best(host.functions[up]) and bridge.get("class") == "0x060400"
        assert told(element) == best(function)
        kind = function.kind
        assert element.get("class") == f"0x{kind.class_code:06x}"
        assert (element.get("vendor"), element.get("device")) == (f"0x{kind.vendor:04x}", f"0x{kind.device:04x}")
    homes = {source: home(source, devices, report) for source in devices}
    cpus = {source: next(elements[address].iterancestors("cpu")) for source, (_, address) in devices.items()}
    for source, (cell, node) in homes.items():
        if cell is not None:
            assert cpus[source].get("numaid") == str(cell)
        assert (cpus[source].get("numaid") == "-1") == (cell is None and node is None)
    for one, other in combinations(devices, 2):
        assert (cpus[one] is cpus[other]) == (homes[one] == homes[other])
    return len(devices)


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(setups(formatted=True), st.data())
def test_the_file_says_of_every_device_what_the_host_says(setup: Setup, data: Any) -> None:
    for function in setup.host.functions.values():
        function.link = data.draw(st.sampled_from([*LINKS, *LINKS, *UNTOLD]))
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        root = setup.host.write(Path(directory))
        grouping = GroupBy(setup.group_by) if setup.group_by else None
        for xml in (setup.xml(), place(setup.xml(), Request(root=root, group_by=grouping)).xml):
            judge(setup.host, xml, root)


@pytest.mark.parametrize("group_by", [None, *GroupBy])
def test_a_server_looks_the_same_however_it_is_grouped(group_by: Optional[GroupBy], tmp_path: Path) -> None:
    host = MACHINES["eight-gpus"]()
    root = host.write(tmp_path)
    domain = two_cells()
    for address, function in host.functions.items():
        if function.kind in (GPU, NIC):
            domain.hostdev(address)
    xml = domain.formatted()
    if group_by is not None:
        xml = place(xml, Request(root=root, group_by=group_by)).xml
        assert group_by is not GroupBy.SWITCH or b"pcie-switch-upstream-port" in xml
    assert judge(host, xml, root) == 16
    shape = re.sub(r' (busid|affinity)="[^"]*"', "", etree.tostring(written(xml, root)[0]).decode())
    assert shape == re.sub(r' (busid|affinity)="[^"]*"', "", etree.tostring(written(domain.formatted(), root)[0]).decode())


def test_a_guest_without_cells_has_a_cpu_for_each_host_node_with_all_its_vcpus(tmp_path: Path) -> None:
    root = MACHINES["two-sockets"]().write(tmp_path)
    xml = Domain().hostdev("17:00.0").hostdev("18:00.0").hostdev("b3:00.0").formatted().replace(b">1</vcpu>", b">40</vcpu>")
    tree, remarks = written(xml, root)
    assert remarks == []
    assert [(cpu.get("numaid"), cpu.get("affinity"), len(cpu)) for cpu in tree] == [
        ("0", "000000ff,ffffffff", 2),
        ("1", "000000ff,ffffffff", 1),
    ]


def test_a_node_that_no_cell_stands_for_comes_behind_the_cells(tmp_path: Path) -> None:
    root = MACHINES["two-sockets"]().write(tmp_path)
    xml = Domain().cells("0-1", "2-3").memnode(0, "1").memnode(1, "1").hostdev("17:00.0").hostdev("b3:00.0").formatted()
    tree, _ = written(xml, root)  # node 1 has two cells, so neither stands for it
    assert [(cpu.get("numaid"), len(cpu)) for cpu in tree] == [("0", 0), ("1", 0), ("2", 1), ("3", 1)]
    assert [cpu.get("affinity") for cpu in tree] == ["00000003", "0000000c", "0000000f", "0000000f"]


def test_a_switch_of_the_host_is_nothing_to_a_device_that_has_its_address_in_the_guest() -> None:
    address, ids, link = PciAddress(0, 3, 0, 0), Ids(None, None, None, None), Link(None, None)
    below = GuestDevice(PciAddress(0, 4, 0, 0), 0x030200, ids, link, 1, 1, (HostSwitch(address, ids, link),))
    beside = GuestDevice(address, 0x020000, ids, link, 0, 0, ())
    tree = etree.fromstring(topology_file([beside, below], {0: frozenset([0]), 1: frozenset([1])}, 2, "x86_64", HostCpu(None, None, None)))
    assert [[pci.get("busid") for pci in cpu] for cpu in tree] == [["0000:03:00.0"], ["f000:03:00.0"]]


def test_a_device_that_the_host_ties_to_no_node_is_where_nccl_puts_it_without_the_file(tmp_path: Path) -> None:
    root = MACHINES["minus-one"]().write(tmp_path)
    tree, _ = written(two_cells().hostdev("17:00.0").formatted(), root)
    assert [(cpu.get("numaid"), len(cpu)) for cpu in tree] == [("0", 0), ("1", 0), ("-1", 1)]


@pytest.mark.parametrize(
    ("cpuinfo", "arch", "expected"),
    [
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n", "x86_64", ("x86_64", "GenuineIntel", "6", "143")),
        # NCCL writes CPUID's extended family in front (xml.cc), Linux adds it: EPYC 7002 is 143 there and 23 here.
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 23\nmodel\t\t: 49\n", "x86_64", ("x86_64", "AuthenticAMD", "143", "49")),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n", "x86_64", ("x86_64", "AuthenticAMD", "175", "17")),
        ("vendor_id\t: GenuineIntel\ncpu family\t: six\nmodel\t\t: 143\n", "x86_64", ("x86_64", None, None, None)),
        ("vendor_id\t: GenuineIntel\n", "x86_64", ("x86_64", None, None, None)),
        ("CPU implementer\t: 0x41\nmodel name\t: Neoverse\n", "aarch64", ("arm64", None, None, None)),
        (None, "x86_64", ("x86_64", None, None, None)),
    ],
)
def test_the_processor_is_the_hosts(cpuinfo: Optional[str], arch: str, expected: tuple[Optional[str], ...], tmp_path: Path) -> None:
    root = MACHINES["two-sockets"]().write(tmp_path)
    if cpuinfo is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    domain = two_cells().on("virt" if arch == "aarch64" else "q35").hostdev("17:00.0", "01:00.0")
    tree, _ = written(domain.controller(1, "pcie-root-port", address="00:02.0").raw(), root)
    assert [tuple(cpu.get(name) for name in ("arch", "vendor", "familyid", "modelid")) for cpu in tree] == [expected] * 2


def test_an_mdev_has_its_parents_place(tmp_path: Path) -> None:
    root = MACHINES["mediated"]().write(tmp_path)
    tree, _ = written(two_cells().mdev(MDEV, "03:00.0").formatted(), root)
    assert [element.get("class") for element in tree.iter("pci")] == ["0x030200"]


def test_what_qemu_emulates_is_not_in_the_file(tmp_path: Path) -> None:
    root = MACHINES["mediated"]().write(tmp_path)
    tree, _ = written(two_cells().nvme("19:00.0").vdpa(0).hostdev("17:00.0", "unassigned").formatted(), root)
    assert list(tree.iter("pci")) == []


@pytest.mark.parametrize(
    ("cpus", "total", "mask"),
    [({0}, 1, "00000001"), ({0, 1, 31}, 32, "80000003"), ({32}, 33, "00000001,00000000"), (set(), 4, "00000000"), ({5}, 2, "00000020")],
)
def test_masks_are_the_kernels(cpus: set[int], total: int, mask: str) -> None:
    assert cpu_mask(frozenset(cpus), total) == mask


def test_no_mask_is_longer_than_nccl_reads() -> None:
    assert len(cpu_mask(frozenset({0}), 896) or "") == 251
    assert cpu_mask(frozenset({0}), 897) is None


def crowd(count: int, class_code: int) -> list[GuestDevice]:
    ids = Ids(0x10DE, 0x2330, None, None)
    return [GuestDevice(PciAddress(0, bus, 0, 0), class_code, ids, Link(), 0, 0, ()) for bus in range(1, count + 1)]


@pytest.mark.parametrize(("class_code", "most"), [(0x010802, 254), (0x020000, 84), (0x030200, 84)])
def test_a_file_that_nccl_would_fail_over_is_refused(class_code: int, most: int) -> None:
    """256 elements; a GPU brings two of its own (``gpu``, ``nvlink``), and so does a NIC (``nic``, ``net``)."""
    cells, cpu = {0: frozenset({0})}, HostCpu(None, None, None)
    topology_file(crowd(most, class_code), cells, 1, "x86_64", cpu)
    with pytest.raises(UnusableInput, match="256 elements"):
        topology_file(crowd(most + 1, class_code), cells, 1, "x86_64", cpu)


@pytest.mark.parametrize("file", ["max_link_speed", "max_link_width"])
def test_a_link_is_as_good_as_its_worse_end(file: str, tmp_path: Path) -> None:
    host = MACHINES["two-sockets"]()
    device = host.functions["0000:17:00.0"]
    assert isinstance(device.parent, Function)
    device.link, device.parent.link = ("32.0 GT/s PCIe", "16"), ("8.0 GT/s PCIe", "8")
    host.write(tmp_path)
    assert best_link(Sysfs(tmp_path), "0000:17:00.0") == (8.0, 8)
    (tmp_path / "sys" / device.parent.path / file).unlink()
    assert best_link(Sysfs(tmp_path), "0000:17:00.0") == ((32.0, 8) if file == "max_link_speed" else (8.0, 16))


# The command.


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["topology", *arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_command_prints_the_file_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = MACHINES["eight-gpus"]().write(tmp_path)
    (tmp_path / "vm.xml").write_bytes(two_cells().hostdev("24:00.0").hostdev("b4:00.0").formatted())
    code, out, err = run(capsys, str(tmp_path / "vm.xml"), "--root", str(root), "--nccl")
    assert (code, err) == (0, "")
    assert NCCL.match(out) and 'busid="f000:21:00.0"' in out


def test_a_device_that_is_not_there_is_named_beside_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = MACHINES["two-sockets"]().write(tmp_path)
    (tmp_path / "vm.xml").write_bytes(two_cells().hostdev("17:00.0").hostdev("ee:00.0").formatted())
    code, out, err = run(capsys, str(tmp_path / "vm.xml"), "--root", str(root), "--nccl")
    assert code == 0 and NCCL.match(out) and out.count("busid") == 1
    assert err == "pcinuma: 0000:ee:00.0: not on the host at the moment, and not in the file\n"


@pytest.mark.parametrize(
    ("domain", "arguments", "code", "says"),
    [
        (None, ["--nccl"], 2, "--nccl needs a DOMAIN"),
        (two_cells().hostdev("17:00.0"), ["--nccl", "--json"], 2, "--nccl is a format of its own"),
        (two_cells().hostdev("17:00.0"), ["--nccl"], 2, "0000:17:00.0: has no guest address yet"),
        (two_cells().hostdev("17:00.0", "01:00.0", False).controller(1, "pcie-expander-bus"), ["--nccl"], 2, "has no busNr yet"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    domain: Optional[Domain], arguments: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = MACHINES["two-sockets"]().write(tmp_path)
    if domain is not None:
        (tmp_path / "vm.xml").write_bytes(domain.raw())
        arguments = [str(tmp_path / "vm.xml"), *arguments]
    answered, out, err = run(capsys, *arguments, "--root", str(root))
    assert (answered, out) == (code, "")
    assert says in err and err.count("\n") == 1


def test_an_unformatted_domain_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = MACHINES["two-sockets"]().write(tmp_path)
    domain = two_cells().nic().hostdev("17:00.0", "01:00.0").controller(1, "pcie-root-port", address="00:02.0")
    (tmp_path / "vm.xml").write_bytes(domain.raw())
    code, out, err = run(capsys, str(tmp_path / "vm.xml"), "--root", str(root), "--nccl")
    assert code == 0 and 'busid="0000:01:00.0"' in out
    assert err.startswith("pcinuma: libvirt has yet to give devices of this XML their addresses")
