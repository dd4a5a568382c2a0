# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's parts that need neither a socket nor a libvirt: who may be touched, backing off, pools, what stands, spare ports."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcinuma import engine
from pcinuma.address import PciAddress
from pcinuma.daemon import contention, hotplug
from pcinuma.daemon.contention import Contention
from pcinuma.daemon.current_layout import foreign_devices
from pcinuma.daemon.permission import allowed
from pcinuma.daemon.pools import networks, read_network, virtual_functions
from pcinuma.daemon.start_check import StartCheck, check_start
from pcinuma.daemon.state import State
from pcinuma.domain.read import parse_domain
from pcinuma.domain.summary import summarise
from pcinuma.engine import Request
from pcinuma.errors import UnusableInput
from pcinuma.reason import Outcome, Reason
from pcinuma.settings import Adopt, Policy, Settings
from tests.hosts.domains import Domain, two_cells
from tests.hosts.small import small_host

OLD = State(existing=frozenset({"vm"}))
NEW = State(existing=frozenset())


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_host(tmp_path_factory.mktemp("host"))


# Permission.


@pytest.mark.parametrize(
    ("state", "adopt", "owner", "expected"),
    [
        (NEW, Adopt.NEW, None, True),
        (NEW, Adopt.NONE, None, False),
        (OLD, Adopt.NEW, None, False),
        (State(), Adopt.NEW, None, False),
        (replace(OLD, enabled={"vm"}), Adopt.NEW, None, True),
        (replace(NEW, enabled={"vm"}), Adopt.NONE, None, True),
        (replace(NEW, disabled={"vm"}), Adopt.NEW, None, False),
        (replace(NEW, disabled={"vm"}), Adopt.NEW, Policy.REQUIRED, False),
        (OLD, Adopt.NEW, Policy.PREFERRED, True),
        (OLD, Adopt.NONE, Policy.REQUIRED, True),
        (OLD, Adopt.NEW, Policy.OFF, False),
    ],
)
def test_who_may_be_touched(state: State, adopt: Adopt, owner: Policy, expected: bool) -> None:
    assert allowed(state, adopt, "vm", owner) is expected


# Who a domain is.

ELEMENT = "<p:pcinuma xmlns:p='urn:pcinuma:domain:1' policy='required'/>"
STRANGER = ELEMENT.replace("domain:1", "domain:2")


@pytest.mark.parametrize(
    ("xml", "expected"),
    [
        (f"<domain><name> vm </name><uuid>u</uuid><metadata>{ELEMENT}</metadata><broken", ("vm", "u", Policy.REQUIRED)),
        ("<domain><name>vm</name><uuid>u</uuid><broken", ("vm", "u", None)),
        (f"<domain><metadata>{STRANGER}{ELEMENT}</metadata><uuid>u</uuid><name>v&amp;m</name></domain>", ("v&m", "u", Policy.REQUIRED)),
        (f"<domain><devices><name>no</name>{ELEMENT}</devices><name>é漢</name><name>no</name></domain>", ("é漢", None, None)),
        (f"<domain><metadata/><metadata>{ELEMENT}</metadata></domain>", ("", None, None)),
        (f"<domain><name>vm</name><metadata><x>{ELEMENT}</x></metadata></domain>", ("vm", None, None)),
        (f"<domain><metadata>{ELEMENT.replace('required', 'odd')}</metadata></domain>", ("", None, None)),
        ("<domain><name>v<!-- --><b>no</b>no</name></domain>", ("v", None, None)),
    ],
)
def test_who_a_domain_is(xml: str, expected: tuple[str, Optional[str], Optional[Policy]]) -> None:
    padding = "<!-- " + "é" * 5000 + " -->"
    assert tuple(summarise(xml.encode())) == expected
    assert tuple(summarise(xml.replace("<domain>", f"<domain>{padding}").encode())) == expected


def test_who_a_domain_is_in_another_encoding() -> None:
    for encoding in ("utf-16", "iso-8859-15"):
        xml = f"<?xml version='1.0' encoding='{encoding}'?><domain><name>é€</name><metadata>{ELEMENT}</metadata></domain>"
        assert summarise(xml.encode(encoding)).name == "é€"


@pytest.mark.parametrize("xml", [b"", b"no XML", b"<network/>", b"<domain><name>vm</name>"])
def test_what_is_no_domain_is_nobody(xml: bytes) -> None:
    with pytest.raises(UnusableInput):
        summarise(xml)


# Contention.


class Clock:
    """A clock that a test turns."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


PLACED_AT: contention.Addresses = {"0000:17:00.0": "0000:06:00.0"}
UNDONE: contention.Addresses = {"0000:17:00.0": "0000:01:00.0"}


def fight(history: Contention, clock: Clock) -> int:
    """Define as often as it may be done, a second apart, each time undone; how often that was."""
    for count in itertools.count():
        if not history.may_define(lambda: UNDONE):
            return count
        history.defined(PLACED_AT)
        clock.now += 1
    raise AssertionError


def test_somebody_who_redefines_all_the_time_is_given_way_to_for_ever_longer() -> None:
    clock = Clock()
    history = Contention(clock)
    assert fight(history, clock) == contention.OFTEN
    pauses = []
    for _ in range(9):
        pauses.append(round(history.remaining()))
        assert not history.may_define(lambda: UNDONE)
        clock.now += history.remaining()
        assert fight(history, clock) == 1, "one try after each pause"
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]


def test_who_redefines_now_and_then_is_followed_each_time() -> None:
    clock = Clock()
    history = Contention(clock)
    for _ in range(100):
        assert history.may_define(lambda: UNDONE)
        history.defined(PLACED_AT)
        clock.now += contention.WINDOW / contention.OFTEN + 0.1


@given(steps=st.lists(st.tuples(st.sets(st.integers(0, 30)), st.floats(0, 5)), max_size=60))
def test_whoever_changes_other_things_is_followed_for_ever_and_at_once(steps: list[tuple[set[int], float]]) -> None:
    """Devices come and go in any order and at any pace; those that we placed and that are still there are where we put them."""
    clock = Clock()
    history = Contention(clock)
    ours: dict[str, Optional[str]] = {}
    for devices, pause in steps:
        standing = {str(device): ours.get(str(device)) for device in devices}  # a new one: where libvirt put it
        assert history.may_define(lambda standing=standing: standing)
        assert history.remaining() == 0
        ours = {source: address or f"0000:{len(source):02x}:{int(source):02x}.0" for source, address in standing.items()}
        history.defined(ours)
        clock.now += pause


def test_an_undoing_that_was_counted_is_not_counted_again() -> None:
    history = Contention(Clock())
    history.defined(PLACED_AT)
    assert all(history.may_define(lambda: UNDONE) for _ in range(3 * contention.OFTEN)), "the same definition, looked at again"


def test_after_a_long_quiet_time_a_fight_is_forgotten() -> None:
    clock = Clock()
    history = Contention(clock)
    fight(history, clock)
    clock.now += 3600
    assert fight(history, clock) == contention.OFTEN


# Pools.

POOL = """
<network><name>pool</name><forward mode='hostdev' managed='yes'><driver name='vfio'/><pf dev='eno1'/>{}</forward></network>
"""
MEMBERS = "".join(f"<address type='pci' domain='0x0000' bus='0x18' slot='0x02' function='0x{n}'/>" for n in (3, 1, 2))


def test_a_running_pool_tells_its_members_and_one_that_is_not_its_physical_function() -> None:
    running = read_network(POOL.format(MEMBERS))
    assert running is not None
    assert [str(member) for member in running.members] == ["0000:18:02.1", "0000:18:02.2", "0000:18:02.3"]
    stopped = read_network(POOL.format(""))
    assert stopped is not None
    assert (stopped.members, stopped.physical) == ((), ("eno1",))
    assert read_network("<network><name>default</name><forward mode='nat'/></network>") is None
    assert read_network("<network><name>isolated</name></network>") is None


def test_the_functions_of_a_physical_function_are_read_from_sysfs(tmp_path: Path) -> None:
    device = tmp_path / "sys/class/net/eno1/device"
    device.mkdir(parents=True)
    for number in range(12):
        (device / f"virtfn{number}").symlink_to(f"../0000:18:{2 + number // 8:02x}.{number % 8}")
    (device / "virtfn_other").mkdir()
    found = virtual_functions(tmp_path, ["eno1", "gone0"])
    assert found == [PciAddress(0, 0x18, 2 + n // 8, n % 8) for n in range(12)]


def test_only_networks_of_interfaces_are_asked_about() -> None:
    assert networks(two_cells().hostdev("17:00.0").formatted()) == []
    xml = two_cells().pool("b").pool("a").pool("b").formatted()
    assert networks(xml) == ["a", "b"]


# What is about to boot.


def examine(xml: bytes, host: Path, *, allow: bool = True, persistent: bool = True) -> StartCheck:
    return check_start(xml, lambda uuid: Request(host), lambda uuid, owner: allow, lambda uuid: persistent)


def both(domain: Domain) -> Domain:
    return domain.hostdev("17:00.0").hostdev("b3:00.0")


def test_an_unplaced_domain_counts_no_device_as_placed_though_the_engine_would_place_it(host: Path) -> None:
    found = examine(both(two_cells()).formatted(), host)
    assert found.current_layout()[0].outcome is Outcome.FALLBACK
    assert [device.placed for device in found.current_layout()[0].devices] == [False, False]
    assert found.placed is not None
    assert found.refusal is None


def test_a_placed_domain_boots_as_it_is(host: Path) -> None:
    placed = engine.place(both(two_cells()).formatted(), Request(host)).xml
    found = examine(placed, host)
    assert (found.current_layout()[0].reason, found.placed, found.refusal) == (Reason.ALREADY_PLACED, None, None)
    assert all(device.placed for device in found.current_layout()[0].devices)


def test_a_device_that_was_added_after_placing_is_the_one_that_is_not_placed(host: Path) -> None:
    placed = engine.place(two_cells().hostdev("17:00.0").formatted(), Request(host)).xml.decode()
    new = two_cells().hostdev("b3:00.0", "02:00.0").formatted().decode()
    hostdev = new[new.index("    <hostdev") : new.index("</hostdev>") + len("</hostdev>\n")]
    found = examine(placed.replace("    <memballoon", hostdev + "    <memballoon").encode(), host)
    assert {device.source: device.placed for device in found.current_layout()[0].devices} == {"0000:17:00.0": True, "0000:b3:00.0": False}


def test_required_counts_what_boots(host: Path) -> None:
    strict = both(two_cells().metadata(policy="required")).formatted()
    assert "start it again" in (examine(strict, host).refusal or "")
    assert "pcinuma-proxy" in (examine(strict, host, persistent=False).refusal or "")
    assert examine(strict, host, allow=False).refusal is None
    assert examine(engine.place(strict, Request(host)).xml, host).refusal is None


def test_a_host_that_changed_under_a_placed_domain_is_noticed(host: Path, tmp_path: Path) -> None:
    strict = both(two_cells().metadata(policy="required")).formatted()
    placed = engine.place(strict, Request(host)).xml
    swapped = placed.replace(b"cellid='0'", b"cellid='9'").replace(b"cellid='1'", b"cellid='0'").replace(b"cellid='9'", b"cellid='1'")
    found = examine(swapped, host)
    assert found.refusal is not None
    assert not any(device.placed for device in found.current_layout()[0].devices)


def test_foreign_devices_on_our_ports_are_those_that_are_not_passed_through(host: Path) -> None:
    placed = engine.place(both(two_cells()).formatted(), replace(Request(host), settings=Settings(spare_ports=1))).xml
    domain = parse_domain(placed)
    assert foreign_devices(domain) == frozenset()
    assert domain.placement is not None
    free = max(domain.placement.controllers)
    here = f"<address type='pci' domain='0x0000' bus='0x{free:02x}' slot='0x00' function='0x0'/>"
    rng = f"<rng model='virtio'><backend model='random'>/dev/urandom</backend>{here}</rng>"
    moved_in = placed.replace(b"</devices>", rng.encode() + b"</devices>")
    assert foreign_devices(parse_domain(moved_in)) == {PciAddress(0, free, 0, 0)}
    assert foreign_devices(parse_domain(both(two_cells()).formatted())) == frozenset()


# Hot-plug.


def hostdev_xml(bus: int, address: str = "") -> str:
    source = f"<address domain='0x0000' bus='0x{bus:02x}' slot='0x00' function='0x0'/>"
    return f"<hostdev mode='subsystem' type='pci' managed='yes'><source>{source}</source>{address}</hostdev>"


def placed_with_spares(host: Path, spares: int) -> tuple[bytes, Request]:
    request = replace(Request(host), settings=Settings(spare_ports=spares))
    return engine.place(both(two_cells()).formatted(), request).xml, request


@pytest.mark.parametrize(("bus", "cell"), [(0x18, 0), (0xB4, 1)])
def test_a_plugged_device_gets_a_spare_port_of_its_own_cell(host: Path, bus: int, cell: int) -> None:
    live, request = placed_with_spares(host, 1)
    addressed = hotplug.assign_address(live, hostdev_xml(bus), request)
    assert addressed.changed
    with_device = parse_domain(live.replace(b"</devices>", addressed.device_xml.encode() + b"</devices>"))
    address = with_device.devices[-1].address
    assert address is not None
    port = with_device.controllers[address.bus]
    assert port.hotplug is not False
    assert port.address is not None
    assert with_device.controllers[port.address.bus].node == cell
    assert with_device.addresses().count(address) == 1


def test_without_a_spare_port_the_device_goes_as_it_came(host: Path) -> None:
    live, request = placed_with_spares(host, 0)
    addressed = hotplug.assign_address(live, hostdev_xml(0x18), request)
    assert (addressed.device_xml, addressed.changed) == (hostdev_xml(0x18), False)
    assert "spare" in (addressed.message or "")


@pytest.mark.parametrize(
    "device",
    [
        hostdev_xml(0x18, "<address type='pci' domain='0' bus='0x02' slot='0' function='0'/>"),
        hostdev_xml(0x18, "<address type='unassigned'/>"),
        hostdev_xml(0x17),
        hostdev_xml(0x99),
        "<disk type='file'><source file='/x'/><target dev='vdb' bus='virtio'/></disk>",
        "<hostdev/>",
        "<hostdev mode='subsystem' type='pci'><source><address bus='seven'/></source></hostdev>",
    ],
)
def test_a_device_that_is_not_to_be_moved_goes_as_it_came(host: Path, device: str) -> None:
    live, request = placed_with_spares(host, 2)
    assert hotplug.assign_address(live, device, request)[:2] == (device, False)


def test_a_domain_that_is_not_placed_gets_its_device_as_it_came(host: Path) -> None:
    assert not hotplug.assign_address(both(two_cells()).formatted(), hostdev_xml(0x18), Request(host)).changed


def test_what_is_no_xml_is_unusable(host: Path) -> None:
    live, request = placed_with_spares(host, 1)
    with pytest.raises(UnusableInput):
        hotplug.assign_address(live, "<hostdev", request)
