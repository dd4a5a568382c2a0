# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two changes of one definition brought together, generated: what either did is there, once, wherever they did not do the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcinuma.domain.merge import differences, distance, merge, same

TARGETS = [f"vd{letter}" for letter in "abcdefgh"]
MACS = [f"52:54:00:00:00:{number:02x}" for number in range(8)]
HOSTDEVS = list(range(8))
SPACES = [f"urn:test:{number}" for number in range(4)]
VCPUS = list(range(4))


@dataclass
class Guest:
    """What a definition says, as far as these tests change it. Addresses are slots on bus 0."""

    title: str = ""
    memory: int = 1024
    current: int = 4
    notes: dict[str, str] = field(default_factory=dict)
    pins: dict[int, str] = field(default_factory=dict)
    disks: dict[str, tuple[str, int]] = field(default_factory=dict)
    interfaces: dict[str, tuple[int, int]] = field(default_factory=dict)
    hostdevs: dict[int, int] = field(default_factory=dict)

    def xml(self) -> bytes:
        def address(slot: int) -> str:
            return f"<address type='pci' domain='0x0000' bus='0x00' slot='0x{slot:02x}' function='0x0'/>"

        notes = "".join(f'<n:note xmlns:n="{space}">{text}</n:note>' for space, text in self.notes.items())
        pins = "".join(f"<vcpupin vcpu='{vcpu}' cpuset='{cpus}'/>" for vcpu, cpus in self.pins.items())
        disks = "".join(
            f"<disk type='file' device='disk'><source file='{source}'/><target dev='{target}' bus='virtio'/>{address(slot)}</disk>"
            for target, (source, slot) in self.disks.items()
        )
        interfaces = "".join(
            f"<interface type='user'><mac address='{mac}'/><mtu size='{mtu}'/>{address(slot)}</interface>"
            for mac, (mtu, slot) in self.interfaces.items()
        )
        hostdevs = "".join(
            f"<hostdev type='pci'><source><address bus='0x17' slot='0x{n:02x}' function='0x0'/></source>{address(slot)}</hostdev>"
            for n, slot in self.hostdevs.items()
        )
        return f"""<domain type='kvm'>
  <name>vm</name>
  {f"<title>{self.title}</title>" if self.title else ""}
  {f"<metadata>{notes}</metadata>" if notes else ""}
  <memory unit='KiB'>{self.memory}</memory>
  <vcpu placement='static' current='{self.current}'>4</vcpu>
  {f"<cputune>{pins}</cputune>" if pins else ""}
  <devices>
    <emulator>/usr/bin/qemu</emulator>
    <controller type='pci' index='0' model='pcie-root'/>
    {disks}{interfaces}{hostdevs}
    <memballoon model='virtio'>{address(3)}</memballoon>
  </devices>
</domain>
""".encode()


Change = tuple[str, Callable[[Guest, int], None]]
"""What it touches, and how; the number makes what it writes its own."""


def add_or_remove(kind: str, key: object, value: Callable[[int], object]) -> Callable[[Guest, int], None]:
    def change(guest: Guest, number: int) -> None:
        holder = getattr(guest, kind)
        if key in holder:
            del holder[key]
        else:
            holder[key] = value(number)

    return change


def put(kind: str, key: object, value: Callable[[int], object]) -> Callable[[Guest, int], None]:
    def change(guest: Guest, number: int) -> None:
        getattr(guest, kind)[key] = value(number)

    return change


def assign(name: str, value: Callable[[int], object]) -> Callable[[Guest, int], None]:
    return lambda guest, number: setattr(guest, name, value(number))


def slot(number: int) -> int:
    """Of a device that a change adds: none has it yet, and no other change gives it."""
    return 20 + number


CHANGES: list[Change] = [
    ("title", assign("title", lambda n: f"title {n}")),
    ("memory", assign("memory", lambda n: 2048 + n)),
    ("current", assign("current", lambda n: 100 + n)),
    *((f"note {s}", put("notes", s, lambda n: f"text {n}")) for s in SPACES),
    *((f"note {s}", add_or_remove("notes", s, lambda n: f"text {n}")) for s in SPACES),
    *((f"pin {v}", put("pins", v, lambda n: f"{n}")) for v in VCPUS),
    *((f"disk {t}", add_or_remove("disks", t, lambda n: (f"/file-{n}", slot(n)))) for t in TARGETS),
    *((f"nic {m}", add_or_remove("interfaces", m, lambda n: (1000 + n, slot(n)))) for m in MACS),
    *((f"hostdev {h}", add_or_remove("hostdevs", h, slot)) for h in HOSTDEVS),
]
SEVERAL = st.lists(st.sampled_from(CHANGES), max_size=8)


@st.composite
def guests(draw: st.DrawFn) -> Guest:
    slots = iter(range(4, 20))
    disks = {target: (f"/{target}", next(slots)) for target in draw(st.lists(st.sampled_from(TARGETS), unique=True, max_size=4))}
    interfaces = {mac: (1500, next(slots)) for mac in draw(st.lists(st.sampled_from(MACS), unique=True, max_size=4))}
    hostdevs = {number: next(slots) for number in draw(st.lists(st.sampled_from(HOSTDEVS), unique=True, max_size=4))}
    notes = dict.fromkeys(draw(st.lists(st.sampled_from(SPACES), unique=True)), "first")
    pins = dict.fromkeys(draw(st.lists(st.sampled_from(VCPUS), unique=True)), "0-9")
    return Guest(notes=notes, pins=pins, disks=disks, interfaces=interfaces, hostdevs=hostdevs)


def done(guest: Guest, changes: list[Change], first: int) -> Guest:
    changed = copy.deepcopy(guest)
    for number, (_, change) in enumerate(changes, first):
        change(changed, number)
    return changed


@given(base=guests(), mine=SEVERAL, yours=SEVERAL)
def test_what_two_did_to_different_things_is_all_there(base: Guest, mine: list[Change], yours: list[Change]) -> None:
    touched = {what for what, _ in mine}
    yours = [change for change in yours if change[0] not in touched]
    onto, theirs = done(base, mine, 1), done(base, yours, 50)
    both = done(onto, yours, 50)
    merged = merge(base.xml(), theirs.xml(), onto.xml())
    assert merged.conflicts == ()
    assert distance(merged.xml, both.xml()) == 0, merged.xml.decode()


def test_what_each_took_another_half_of_is_gone() -> None:
    base = Guest(notes=dict.fromkeys(SPACES[:2], "first"))
    (mine, yours) = (Guest(notes={space: "first"}) for space in SPACES[:2])
    assert distance(merge(base.xml(), yours.xml(), mine.xml()).xml, Guest().xml()) == 0


@given(base=guests(), mine=SEVERAL, yours=SEVERAL)
def test_of_what_both_changed_the_later_counts_and_nothing_is_there_twice(base: Guest, mine: list[Change], yours: list[Change]) -> None:
    onto, theirs = done(base, mine, 1), done(base, yours, 50)
    merged = merge(base.xml(), theirs.xml(), onto.xml()).xml
    again = merge(base.xml(), theirs.xml(), merged)
    assert distance(again.xml, merged) == 0, "all of theirs is in it already"
    if {what for what, _ in mine} <= {what for what, _ in yours} and theirs.title:
        assert theirs.title.encode() in merged


@given(base=guests(), changes=SEVERAL)
def test_a_change_that_only_one_made_is_his_version(base: Guest, changes: list[Change]) -> None:
    theirs = done(base, changes, 1)
    assert merge(base.xml(), theirs.xml(), base.xml()).xml == theirs.xml()
    assert merge(base.xml(), base.xml(), theirs.xml()).xml == theirs.xml()
    assert distance(merge(base.xml(), theirs.xml(), theirs.xml()).xml, theirs.xml()) == 0


@given(one=guests(), changes=SEVERAL)
def test_the_distance_is_nothing_only_between_what_says_the_same(one: Guest, changes: list[Change]) -> None:
    other = done(one, changes, 1)
    assert (distance(one.xml(), other.xml()) == 0) == (sorted_guest(one) == sorted_guest(other))
    assert distance(one.xml(), other.xml()) == distance(other.xml(), one.xml())
    assert same(one.xml(), one.xml().replace(b"\n", b"\n\n"))


@given(base=guests(), changes=SEVERAL, more=SEVERAL)
def test_nothing_is_nearer_to_what_was_wanted_than_that(base: Guest, changes: list[Change], more: list[Change]) -> None:
    wanted = done(base, changes, 1)
    other = done(wanted, more, 50)
    assert differences(base.xml(), wanted.xml(), wanted.xml()) == (0, 0, 0)
    assert (differences(base.xml(), wanted.xml(), other.xml()) == (0, 0, 0)) == (sorted_guest(wanted) == sorted_guest(other))


def sorted_guest(guest: Guest) -> dict[str, object]:
    return {name: sorted(value.items()) if isinstance(value, dict) else value for name, value in vars(guest).items()}


def test_two_devices_that_libvirt_gave_one_address_both_stay_and_the_later_one_gets_another() -> None:
    base = Guest()
    onto, theirs = Guest(disks={"vdb": ("/one", 9)}), Guest(interfaces={MACS[0]: (1500, 9)})
    merged = merge(base.xml(), theirs.xml(), onto.xml())
    assert merged.conflicts == ()
    assert distance(merged.xml, Guest(disks=onto.disks, interfaces=theirs.interfaces).xml()) == 1
    assert merged.xml.count(b"slot='0x09'") + merged.xml.count(b'slot="0x09"') == 1


@pytest.mark.parametrize(
    ("theirs", "what"),
    [
        (Guest(title="theirs"), "title"),
        (Guest(notes={SPACES[0]: "theirs"}), "metadata/{urn:test:0}note"),
        (Guest(disks={"vda": ("/theirs", 8)}), "devices/disk vda virtio"),
        (Guest(pins={1: "7"}), "cputune/vcpupin vcpu=1/@cpuset"),
    ],
)
def test_a_conflict_names_what_was_changed_twice(theirs: Guest, what: str) -> None:
    base = Guest(title="old", notes={SPACES[0]: "old"}, disks={"vda": ("/old", 8)}, pins={1: "0"})
    for name, value in vars(theirs).items():
        if not value and name in ("title", "notes", "disks", "pins"):
            setattr(theirs, name, copy.deepcopy(getattr(base, name)))
        assert value is not None
    onto = Guest(title="mine", notes={SPACES[0]: "mine"}, disks={"vda": ("/mine", 8)}, pins={1: "3"})
    merged = merge(base.xml(), theirs.xml(), onto.xml())
    assert [conflict.replace("/source", "") for conflict in merged.conflicts] == [what]
