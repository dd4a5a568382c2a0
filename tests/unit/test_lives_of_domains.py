# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whole lives of domains, over the engine alone: what owners, libvirt and hosts do to them, in any order, and what holds after each step.

The owner's XML goes through libvirt's keeping (``tests/hosts/keeping.py``) or not, the engine answers, and the answer is judged: by the
rules of every placement, by what the step may change, by placing it once more (as it is and as libvirt keeps it), and by taking it back.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Optional

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from lxml import etree

from pcinuma.engine import Request, Result, place, revert
from pcinuma.reason import Outcome
from pcinuma.settings import GroupBy, Settings
from tests.hosts.build import ENDPOINT, INHERIT, Function, Host
from tests.hosts.domains import Domain
from tests.hosts.edits import with_device
from tests.hosts.guard import no_real_host  # noqa: F401
from tests.hosts.guest import PORTS, Guest, Slot
from tests.hosts.judge import QEMU, faults, without_ours
from tests.hosts.keeping import kept
from tests.hosts.memory import MEMORY
from tests.hosts.passthrough import NS, ours, passed, placement
from tests.hosts.rules import address_faults
from tests.hosts.strategies import hosts

_GROUPINGS = st.sampled_from(list(GroupBy))
_GROUPINGS = st.sampled_from([None, *GroupBy])
LINKS = [("2.5 GT/s PCIe", "1"), ("8.0 GT/s PCIe", "8"), ("16.0 GT/s PCIe", "16"), ("32.0 GT/s PCIe", "16"), ("Unknown", "0"), None]
_OWN = f"metadata/{NS}pcinuma"


class Lives(RuleBasedStateMachine):
    """One host with one domain. ``given``: where owner and libvirt last had each device, the layout that a revert owes."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="life-", dir=MEMORY))
        self.host = Host()
        self.xml = b""
        self.keeps = True
        self.group_by: Optional[GroupBy] = None
        self.spare_ports = 0
        self.given: dict[str, Optional[Slot]] = {}
        self.numatune: Optional[etree._Element] = None

    def teardown(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    # The beginning.

    @initialize(
        host=hosts(), data=st.data(), cells=st.integers(1, 3), machine=st.sampled_from(["q35", "q35", "q35", "pc"]),
        keeps=st.booleans(), foreign=st.integers(0, 2), group_by=_GROUPINGS,
    )  # fmt: skip
    def define(
        self, host: Host, data: st.DataObject, cells: int, machine: str, keeps: bool, foreign: int, group_by: Optional[GroupBy]
    ) -> None:
        self.host, self.keeps = host, keeps
        self._write_host()
        domain = Domain().on(machine).cells(*map(str, range(cells)))
        for cell in range(cells):
            domain.memnode(cell, str(sorted(host.nodes)[cell % len(host.nodes)]))
        if group_by is not None:
            domain.metadata(group_by=group_by.value)
        for _ in range(foreign):
            domain.nic()
        self._some_card(domain, data)
        for source in self._unused(domain.raw(), data, 5):
            domain.hostdev(source)
        self.xml = self._keep(domain.raw())
        self._placed(self.xml)

    def _some_card(self, domain: Domain, data: st.DataObject) -> None:
        """Functions of one host device in one guest slot, as their owner put them together."""
        cards: dict[str, list[str]] = {}
        for function in self._ends():
            cards.setdefault(function.address[:-1], []).append(function.address)
        several = [sorted(card) for card in cards.values() if len(card) > 1]
        if several and domain.machine == "q35" and data.draw(st.booleans(), "a card in one slot"):
            domain.controller(1, "pcie-root-port", "", "00:03.0")
            for number, address in enumerate(data.draw(st.sampled_from(several), "card")):
                domain.hostdev(address, f"01:00.{number}", multifunction=number == 0)

    # What owners and managers do.

    @rule(data=st.data(), gone=st.integers(0, 3), new=st.integers(0, 3))
    def change_devices(self, data: st.DataObject, gone: int, new: int) -> None:
        """Devices taken out and others put in, in one definition."""
        self._redefine(self._with_other_devices(self.xml, data, gone, new))

    @precondition(lambda self: self.keeps)
    @rule(data=st.data(), gone=st.integers(0, 3), new=st.integers(0, 3))
    def change_devices_while_it_is_left_alone(self, data: st.DataObject, gone: int, new: int) -> None:
        """A domain that is disabled and has no port to spare: libvirt puts what comes on an emptied port of ours. A revert may be next."""
        xml = self._with_other_devices(self.xml, data, gone, 0)
        guest, mine = Guest.of(xml), ours(xml)
        nics = sum(c.model in PORTS and not guest.used(c.index) and c.index not in mine for c in guest.controllers.values())
        element = Domain().nic().devices[0].text().encode()
        xml = kept(xml.replace(b"  </devices>", nics * element + b"  </devices>", 1))
        xml = kept(self._with_other_devices(xml, data, 0, new))
        self._note_given(xml)
        self._can_be_taken_back(xml, f"left alone:\n{xml.decode()}")
        self.xml = xml

    def _with_other_devices(self, xml: bytes, data: st.DataObject, gone: int, new: int) -> bytes:
        root = etree.fromstring(xml)
        here = [d for d in passed(root) if d.form == "hostdev-pci"]
        for device in data.draw(st.lists(st.sampled_from(here), max_size=gone, unique_by=id), "gone") if here else ():
            root.find("devices").remove(device.element)
            self.given.pop(device.source, None)
        xml = etree.tostring(root) + b"\n"
        for source in self._unused(xml, data, new):
            xml = with_device(source)(xml)
        return xml

    @rule()
    def add_a_nic(self) -> None:
        """An emulated device without an address: libvirt gives it the first free port, which may be one of ours."""
        if len(re.findall(b"<interface type='user'>|<interface type=\"user\">", self.xml)) < 4:
            number = len(self.xml) % 200
            element = Domain().nic().devices[0].text().replace("52:54:00:00:00:01", f"52:54:00:00:01:{number:02x}")
            self._redefine(self.xml.replace(b"  </devices>", element.encode() + b"  </devices>", 1))

    @rule(metadata=st.booleans())
    def define_anew(self, metadata: bool) -> None:
        """The owner's own file, which knows neither controllers nor addresses; with the metadata that were there or without."""
        root = etree.fromstring(self.xml)
        for controller in root.findall("devices/controller"):
            controller.getparent().remove(controller)
        for device in root.find("devices").iterchildren(etree.Element):
            for address in device.findall("address"):
                device.remove(address)
        own = root.find(_OWN)
        if own is not None and not metadata:
            own.getparent().remove(own)
        self.given.clear()
        self._redefine(etree.tostring(root) + b"\n")

    @rule(data=st.data())
    def forget_an_address(self, data: st.DataObject) -> None:
        """A device whose address the owner leaves to libvirt, or to whoever comes next."""
        root = etree.fromstring(self.xml)
        here = [d for d in passed(root) if d.at is not None]
        if here:
            device = data.draw(st.sampled_from(here), "device")
            device.element.remove(device.element.find("address"))
            self.given.pop(device.source, None)
            self._redefine(etree.tostring(root) + b"\n")

    @rule(data=st.data())
    def keep_or_not(self, data: st.DataObject) -> None:
        """``<keep>`` for a device, or no more."""
        root = etree.fromstring(self.xml)
        own = root.find(_OWN)
        here = [d.source for d in passed(root)]
        if own is None or not here:
            return
        source = data.draw(st.sampled_from(here), "device")
        there = own.find(f"{NS}keep[@device='{source}']")
        if there is not None:
            own.remove(there)
        else:
            own.insert(0, etree.Element(f"{NS}keep", device=source))
        self._redefine(etree.tostring(root) + b"\n")

    @rule(policy=st.sampled_from(["off", "preferred"]))
    def say_policy(self, policy: str) -> None:
        """A policy in the metadata."""
        self._set_metadata("policy", policy)

    @rule(group_by=_GROUPINGS)
    def say_grouping(self, group_by: Optional[GroupBy]) -> None:
        """A grouping in the metadata: for devices that come, and for a layout afresh."""
        self._set_metadata("group-by", group_by.value if group_by else None)

    @rule(link=st.sampled_from(["host", "host", "off", None]))
    def say_link(self, link: Optional[str]) -> None:
        """Whether ports are to tell the host's links."""
        self._set_metadata("link", link)

    @rule(data=st.data())
    def change_the_links_of_ports(self, data: st.DataObject) -> None:
        """Another slot, or firmware that lets a port do less."""
        ports = [f for f in self.host.functions.values() if f.children]
        for port in data.draw(st.lists(st.sampled_from(ports), max_size=3, unique_by=id), "ports"):
            port.link = data.draw(st.sampled_from(LINKS), "link")
        self._write_host()
        self._placed(self.xml)

    @precondition(lambda self: b"override" in self.xml)
    @rule(data=st.data())
    def change_or_add_an_override(self, data: st.DataObject) -> None:
        """What pcinuma wrote becomes the owner's, who also has one of his own."""
        root = etree.fromstring(self.xml)
        mine = root.findall(f"{QEMU}override/{QEMU}device")
        if mine and data.draw(st.booleans(), "change"):
            data.draw(st.sampled_from(mine), "override").find(f"{QEMU}frontend/{QEMU}property").set("value", "1")
        elif mine:
            other = etree.SubElement(mine[0].getparent(), f"{QEMU}device", alias="ua-other")
            etree.SubElement(etree.SubElement(other, f"{QEMU}frontend"), f"{QEMU}property", name="x", type="string", value="y")
        self._redefine(etree.tostring(root) + b"\n")

    def _set_metadata(self, name: str, value: Optional[str]) -> None:
        root = etree.fromstring(self.xml)
        own = root.find(_OWN)
        if own is None:
            return
        own.attrib.pop(name, None)
        if value is not None:
            own.set(name, value)
        self._redefine(etree.tostring(root) + b"\n")

    @rule(spare_ports=st.integers(0, 2))
    def configure_spare_ports(self, spare_ports: int) -> None:
        """The host's setting."""
        self.spare_ports = spare_ports
        self._placed(self.xml)

    @rule()
    def take_numatune_out_or_put_it_back(self) -> None:
        """No cell is bound to any node, and then each again to the one it was."""
        root = etree.fromstring(self.xml)
        there = root.find("numatune")
        if there is not None:
            self.numatune = there
            root.remove(there)
        elif self.numatune is not None:
            root.find("vcpu").addnext(self.numatune)
        self._redefine(etree.tostring(root) + b"\n", moves=True)

    @rule(data=st.data())
    def bind_cells_otherwise(self, data: st.DataObject) -> None:
        """Another node for a cell."""
        root = etree.fromstring(self.xml)
        memnodes = root.findall("numatune/memnode")
        if memnodes:
            node = data.draw(st.sampled_from(sorted(self.host.nodes)), "node")
            data.draw(st.sampled_from(memnodes), "memnode").set("nodeset", str(node))
            self._redefine(etree.tostring(root) + b"\n", moves=True)

    @precondition(lambda self: not self.keeps)
    @rule()
    def take_a_cell_out(self) -> None:
        """The last cell, in XML that libvirt has not seen (it refuses an expander for a cell that is not there)."""
        root = etree.fromstring(self.xml)
        cells = root.findall("cpu/numa/cell")
        if len(cells) > 1:
            cells[-1].getparent().remove(cells[-1])
            for memnode in root.findall(f"numatune/memnode[@cellid='{len(cells) - 1}']"):
                memnode.getparent().remove(memnode)
            self._redefine(etree.tostring(root) + b"\n", moves=True)

    # What happens to hosts.

    @rule(data=st.data())
    def move_a_device_to_another_node(self, data: st.DataObject) -> None:
        """Another slot, or other firmware settings: a whole card says another node."""
        function = data.draw(st.sampled_from(self._ends()), "device")
        node = data.draw(st.sampled_from([*sorted(self.host.nodes), -1]), "node")
        for sibling in self.host.functions.values():
            if sibling.address[:-1] == function.address[:-1]:
                sibling.node, sibling.cpulist = node, INHERIT
        self._write_host()
        self._placed(self.xml, moves=True)

    @rule(data=st.data())
    def move_a_port_to_another_root_complex(self, data: st.DataObject) -> None:
        """What was below one root complex is below another one."""
        root = data.draw(st.sampled_from(self.host.roots), "from")
        other = data.draw(st.sampled_from(self.host.roots), "to")
        if root is not other and root.functions:
            port = root.functions.pop()
            other.functions.append(port)
            port.parent = other
            self._write_host()
            self._placed(self.xml, moves=True)

    # What pcinuma is asked for.

    @rule(group_by=_GROUPINGS)
    def replan(self, group_by: GroupBy) -> None:
        """A layout afresh, with a grouping."""
        before = self.xml
        self._placed(before, moves=True, replan=True, group_by=group_by)
        for again in (self.xml, self._keep(self.xml)):
            result = self._place(again, replan=True, group_by=group_by)
            assert result.xml == again and result.outcome is not Outcome.PLACED, f"replanned once more:\n{_shown(again, result)}"
        if _policy(before) != "off":
            untouched = [d.source for d in passed(before) if d.source in _kept(before) and _below_ours(before, d.at)]
            here = {d.source: d.at for d in passed(self.xml)}
            was = {d.source: d.at for d in passed(before)}
            assert not [source for source in untouched if here[source] != was[source]], "replanning moved a kept device"
            assert _together(self.xml) <= _together(before), "replanning put devices into one slot that were not"

    @rule()
    def take_back(self) -> None:
        """A revert, after which the domain is placed like one that is seen for the first time."""
        self.xml = self._keep(revert(self.xml).xml)
        self._placed(self.xml, moves=True)

    # The engine, and what must hold.

    def _place(self, xml: bytes, replan: bool = False, group_by: Optional[GroupBy] = None) -> Result:
        return place(xml, Request(self.root, group_by=group_by, settings=Settings(spare_ports=self.spare_ports), replan=replan))

    def _redefine(self, xml: bytes, *, moves: bool = False) -> None:
        self._placed(self._keep(xml), moves=moves)

    def _placed(self, xml: bytes, *, moves: bool = False, replan: bool = False, group_by: Optional[GroupBy] = None) -> None:
        """Place ``xml``; ``moves``: the step may move devices that stood."""
        self._note_given(xml)
        result = self._place(xml, replan, group_by)
        told = _shown(xml, result)
        assert result.reason is None or result.reason.value != "internal-error", told
        if result.outcome is Outcome.FALLBACK:
            assert result.xml in (xml, revert(xml).xml), told
        elif result.outcome is Outcome.UNCHANGED:
            assert result.xml == xml, told
        else:
            found = faults(xml, result.xml, self.host, result.report(), fresh=False)
            if ours(result.xml):  # once nothing is ours, what lay above our indexes is not ours to move down
                found += _gaps(xml, result.xml)
            owners = address_faults(Guest.of(xml).completed())  # what the owner did to a slot
            found = [fault for fault in found if fault not in owners]
            if ours(xml) and not ours(result.xml) and (_foreign_on_ours(xml) or _kept_on_ours(xml)):  # such ports are their owner's now
                found = [fault for fault in found if "not ours" not in fault]
            if not self.keeps:  # devices without an address may land on an emptied port of ours, and are moved when libvirt has said so
                found = [fault for fault in found if "lands on our expander" not in fault and "has hotplug on" not in fault]
            assert not found, "\n".join([*found, told])
        if not moves:
            self._nobody_else_moved(xml, result)
        for again in (result.xml, self._keep(result.xml)):
            settled = self._place(again)
            assert settled.xml == again and settled.outcome is not Outcome.PLACED, f"not settled:\n{_shown(again, settled)}\n{told}"
        self._can_be_taken_back(result.xml, told)
        self.xml = self._keep(result.xml)

    def _note_given(self, xml: bytes) -> None:
        """What a revert owes: the address of each device that is not where pcinuma put it, or recorded as moved."""
        element = placement(xml)
        recorded = {entry.get("source") for entry in element.findall(f"{NS}device")} if element is not None else set()
        for device in passed(xml):
            if not _below_ours(xml, device.at) and not (device.source in recorded and device.at and device.at.bus in ours(xml)):
                self.given[device.source] = device.at

    def _nobody_else_moved(self, xml: bytes, result: Result) -> None:
        report = {line["source"]: line for line in result.report()["devices"]}
        guest = Guest.of(xml)
        after = {d.source: d.at for d in passed(result.xml)}
        for device in passed(xml):
            home = guest.expander(device.at.bus) if device.at else None
            if home is not None and home.index in ours(xml) and report[device.source]["placed"]:
                seen = any(d.at == Slot(*device.at[:2], 0) for d in passed(xml))  # without function 0 the guest sees none of a slot
                tells = seen and home.node == report[device.source]["guest_cell"] and self._alone_below(guest, xml, home.index)
                assert not tells or after[device.source] == device.at, f"{device.source} moved\n{_shown(xml, result)}"

    def _alone_below(self, guest: Guest, xml: bytes, expander: int) -> bool:
        """Whether all devices below an expander are of one root complex, so that none of them can be in the wrong place."""
        below = [d for d in passed(xml) if d.at and (home := guest.expander(d.at.bus)) and home.index == expander]
        return len({self.host.root_of(d.host_address) for d in below if d.host_address in self.host.functions}) == 1

    def _can_be_taken_back(self, xml: bytes, told: str) -> None:
        back = revert(xml).xml
        assert not ours(back) and placement(back) is None, told
        left = [index for index in ours(xml) if index in Guest.of(back).controllers and Guest.of(back).controllers[index].expander]
        assert not left or _emulated_on_ours(xml) or _kept_on_ours(xml), f"taken back, and yet there are expanders {left}\n{told}"
        assert _text(without_ours(back)) == _text(without_ours(xml)) or _foreign_on_ours(xml), told
        guest = Guest.of(back)
        if not guest.express:
            guest = Guest.of(kept(back))
        before = address_faults(Guest.of(xml).completed())  # what its owner did to a slot
        found = [fault for fault in address_faults(guest.completed()) if fault not in before]
        assert not found, "\n".join(["taken back:", *found, back.decode(), told])
        if ours(xml):
            kept(back)
        free = {d.source: d.at for d in passed(back)}
        taken = [e.at for e in Guest.of(back).endpoints if e.at] + [c.at for c in Guest.of(back).controllers.values() if c.at]
        for source, at in free.items():
            owed = self.given.get(source)
            if owed is None or at == owed or owed.bus in ours(xml) or _policy(xml) == "off":
                continue
            first = Slot(owed.bus, owed.slot, 0)
            visible = owed.function == 0 or any(at == first and other[:-1] == source[:-1] for other, at in free.items())
            if at is None and owed.function == 0 and any(other is not None and other[:2] == owed[:2] for other in free.values()):
                visible = _says_several(xml, source)  # QEMU refuses a function 0 that does not say so where others stand
            assert owed in taken or not visible or owed.bus not in Guest.of(back).controllers, (
                f"taken back, {source} is at {at}, its owner gave it {owed}\n{back.decode()}\n{told}"
            )

    # Means.

    def _keep(self, xml: bytes) -> bytes:
        return kept(xml) if self.keeps else xml

    def _write_host(self) -> None:
        shutil.rmtree(self.root / "sys", ignore_errors=True)
        self.host.write(self.root)

    def _ends(self) -> list[Function]:
        return [f for f in self.host.functions.values() if f.port_type == ENDPOINT]

    def _unused(self, xml: bytes, data: st.DataObject, most: int) -> list[str]:
        used = {d.host_address for d in passed(xml)}
        unused = [f.address for f in self._ends() if f.address not in used]
        return data.draw(st.lists(st.sampled_from(unused), max_size=most, unique=True), "new") if unused else []


def _policy(xml: bytes) -> Optional[str]:
    own = etree.fromstring(xml).find(_OWN)
    return None if own is None else own.get("policy")


def _kept(xml: bytes) -> set[str]:
    return {str(keep.get("device")) for keep in etree.fromstring(xml).findall(f"{_OWN}/{NS}keep")}


def _below_ours(xml: bytes, at: Optional[Slot]) -> bool:
    home = Guest.of(xml).expander(at.bus) if at else None
    return home is not None and home.index in ours(xml)


def _together(xml: bytes) -> set[frozenset[str]]:
    """Pairs of devices that share a guest slot."""
    here = [d for d in passed(xml) if d.at is not None]
    return {frozenset((a.source, b.source)) for a in here for b in here if a.source < b.source and a.at[:2] == b.at[:2]}


def _gaps(before: bytes, after: bytes) -> list[str]:
    """Indexes that libvirt would fill with root ports now, and would not before."""
    was, now = Guest.of(before).controllers, Guest.of(after).controllers
    return [f"a gap at index {i}" for i in range(1, max(now, default=0)) if i not in now and (i in was or i > max(was, default=0))]


def _text(xml: str) -> str:
    """Without the white space in which controllers stood."""
    return re.sub(r">\s+<", "><", xml)


def _foreign_on_ours(xml: bytes) -> bool:
    """Whether something sits on a controller of ours that pcinuma did not put there."""
    owned, element = set(ours(xml)), placement(xml)
    recorded = {entry.get("source") for entry in element.findall(f"{NS}device")} if element is not None else set()
    by_chance = [d for d in passed(xml) if d.at and d.at.bus in owned and d.source not in recorded]
    return bool(by_chance) or _emulated_on_ours(xml)


def _emulated_on_ours(xml: bytes) -> bool:
    """Whether an emulated device sits on a controller of ours."""
    endpoints, owned = Guest.of(xml).endpoints, set(ours(xml))
    return any(e.at and e.at.bus in owned and e.element is not None and not e.name.startswith("hostdev") for e in endpoints)


def _says_several(xml: bytes, source: str) -> bool:
    """Whether it is recorded of a device that its owner made it function 0 of several."""
    element = placement(xml)
    entry = element.find(f"{NS}device[@source='{source}']") if element is not None else None
    return entry is not None and entry.get("multifunction") == "on"


def _kept_on_ours(xml: bytes) -> bool:
    """Whether a device that its owner wants kept sits on a controller of ours."""
    kept, owned = {k.get("device") for k in etree.fromstring(xml).iterfind(f"metadata/{NS}pcinuma/{NS}keep")}, set(ours(xml))
    return any(d.source in kept and d.at is not None and d.at.bus in owned for d in passed(xml))


def _shown(xml: bytes, result: Result) -> str:
    return f"before:\n{xml.decode()}\nafter ({result.outcome.value} {result.reason} {result.message}):\n{result.xml.decode()}"


SHARED: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


def test_every_step_of_a_life_keeps_the_promises() -> None:
    run_state_machine_as_test(Lives, settings=settings(max_examples=40, stateful_step_count=12, **SHARED))


@pytest.mark.full
def test_every_step_of_many_long_lives_keeps_the_promises() -> None:
    run_state_machine_as_test(Lives, settings=settings(max_examples=1500, stateful_step_count=40, **SHARED))
