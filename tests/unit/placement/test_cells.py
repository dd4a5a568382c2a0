# SPDX-License-Identifier: LGPL-2.1-or-later
"""What holds for cells whatever the guest and the host: over generated machines, pins, topologies, memory and hugepages."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lxml import etree

from pcinuma.engine import Request, place, revert
from pcinuma.reason import Outcome, Reason
from pcinuma.settings import MemoryMode
from tests.hosts.build import GPU, Host, list_format
from tests.hosts.cells_judge import cells_of, record
from tests.hosts.domains import Domain
from tests.hosts.guard import no_real_host  # noqa: F401
from tests.hosts.judge import judge, without_ours
from tests.hosts.libvirt_format import define, missing
from tests.hosts.memory import MEMORY

THOROUGH = int(os.environ.get("PCINUMA_THOROUGH", "1"))
SHARED: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
_EMULATOR = "    <emulatorpin cpuset='0'/>\n"
_FRAME = "<cputune>\n{}  </cputune>"


@dataclass
class Setup:
    """A host, a guest without cells on it, and how its memory is to be bound."""

    host: Host
    xml: bytes
    mode: str

    def __repr__(self) -> str:
        nodes = [f"{n} offline {sorted(self.host.offline_cpus)}" for n in self.host.nodes.values()]
        return "\n".join([f"Setup({self.mode})", *nodes, self.xml.decode()])


class Tree:
    """The sysfs tree of one example."""

    def __init__(self, setup: Setup) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="host-", dir=MEMORY))
        setup.host.write(self.path)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


@st.composite
def hosts(draw: Any) -> Host:
    """One to five nodes with gaps in their numbers, some without CPUs, memory or hugepages; a GPU on each of some nodes."""
    host = Host()
    numbers = sorted(draw(st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True)))
    rows = [[10 if a == b else draw(st.sampled_from([12, 21, 21, 32])) for b in numbers] for a in numbers]
    for at, number in enumerate(numbers):
        cpus = "" if at and draw(st.integers(0, 5)) == 0 else f"{number * 4}-{number * 4 + 3}"
        memory = draw(st.sampled_from([64 << 20, 64 << 20, 64 << 20, 64 << 20, 300 << 10, 0]))
        pages = {2048: draw(st.sampled_from([0, 40, 128, 4096])), 1 << 20: draw(st.sampled_from([0, 1, 4]))}
        pages = pages if sum(size * count for size, count in pages.items()) <= memory else {}  # MemTotal is with them
        host.node(number, cpus, rows[at] if draw(st.booleans()) else None, memory, pages)
        if draw(st.integers(0, 4)) or not at:
            host.rc(f"pci{number:04x}:00", node=number).port("00:01.0").device("01:00.0", GPU)
    if draw(st.integers(0, 4)) == 0:
        host.offline_cpus = set(draw(st.lists(st.sampled_from(sorted(host.cpus())), max_size=6, unique=True))) if host.cpus() else set()
    host.hugepage_kib = draw(st.sampled_from([None, 2048]))
    return host


@st.composite
def setups(draw: Any) -> Setup:
    """A host and a guest without cells that has some of its GPUs."""
    host = draw(hosts())
    sockets, cores, threads = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    vcpus = sockets * cores * threads
    current = f" current='{draw(st.integers(1, vcpus))}'" if draw(st.integers(0, 3)) == 0 else ""
    cpuset = f" cpuset='{_cpus(draw, host)}'" if draw(st.integers(0, 7)) == 0 else ""
    texts = {"vcpu": f"<vcpu placement='static'{cpuset}{current}>{vcpus}</vcpu>"}
    size, unit = draw(st.sampled_from([("512", "MiB"), ("1000001", "KiB"), ("1", "GB"), ("3", "GiB"), ("2", "M"), ("770", "MiB")]))
    texts["memory"] = f"<memory unit='{unit}'>{size}</memory>"
    if draw(st.booleans()):
        inner = f"<topology sockets='{sockets}' dies='1' cores='{cores}' threads='{threads}'/>"
        texts["cpu"] = draw(st.sampled_from(["<cpu>{}</cpu>", "<cpu mode='host-passthrough'>\n    {}\n  </cpu>"])).format(inner)
    elif draw(st.booleans()):
        texts["cpu"] = draw(st.sampled_from(["<cpu mode='host-model'/>", "<cpu mode='host-passthrough' check='none'/>"]))
    if draw(st.integers(0, 2)) == 0:
        pinned = sorted(draw(st.lists(st.integers(0, vcpus - 1), max_size=vcpus, unique=True)))
        lines = "".join(f"    <vcpupin vcpu='{vcpu}' cpuset='{_cpus(draw, host)}'/>\n" for vcpu in pinned)
        before, behind = draw(st.sampled_from(["", "    <shares>100</shares>\n"])), draw(st.sampled_from(["", _EMULATOR]))
        lines = before + lines + behind
        texts["cputune"] = _FRAME.format(lines) if lines else ""
    if draw(st.integers(0, 5)) == 0:
        nodes = ",".join(map(str, sorted(draw(st.lists(st.sampled_from([*host.nodes]), min_size=1, unique=True)))))
        kind = draw(st.sampled_from(["strict", "strict", "restrictive", "interleave"]))
        texts["numatune"] = f"<numatune>\n    <memory mode='{kind}' nodeset='{nodes}'/>\n  </numatune>"
    if draw(st.integers(0, 5)) == 0:
        page = draw(st.sampled_from(["", "<page size='2048' unit='KiB'/>", "<page size='1' unit='GiB'/>", "<page size='4' unit='KiB'/>"]))
        pages = f"<hugepages>{page}</hugepages>" if page else "<hugepages/>"
        texts["memoryBacking"] = f"<memoryBacking>\n    {pages}\n  </memoryBacking>"
    domain = Domain(machine=draw(st.sampled_from(["q35", "q35", "pc", "pseries"]))).says(**texts)
    for address in sorted(host.functions):
        if address.endswith("01:00.0") and draw(st.integers(0, 3)):
            domain.hostdev(address)
    if draw(st.integers(0, 3)) == 0:
        domain.metadata(policy="preferred")
    if draw(st.integers(0, 3)) == 0:
        domain.with_extras()
    return Setup(host, domain.raw(), draw(st.sampled_from(["strict", "preferred", "restrictive"])))


def _cpus(draw: Any, host: Host) -> str:
    """A cpuset, mostly within one node."""
    nodes = [node for node in host.nodes.values() if node.cpus] or list(host.nodes.values())
    node = draw(st.sampled_from(nodes))
    if draw(st.integers(0, 19)) == 0:
        return list_format(host.cpus()) or "0"
    return draw(st.sampled_from([node.cpus, node.cpus.split("-")[0]])) or "0"


def _request(setup: Setup, root: Path) -> Request:
    return Request(root=root, cells=True, memory=MemoryMode(setup.mode))


@settings(max_examples=100 * THOROUGH, **SHARED)
@given(setups())
def test_every_proposal_keeps_every_rule_and_can_be_undone(setup: Setup) -> None:
    with Tree(setup) as root:
        result = place(setup.xml, _request(setup, root))
        assert result.reason is not Reason.INTERNAL, result.message
        judge(setup.xml, result.xml, setup.host, result.report())
        if result.outcome is not Outcome.PLACED:
            assert result.xml == setup.xml and result.message
            return
        assert record(result.xml) is not None and any(device.placed for device in result.devices)
        for request in (_request(setup, root), Request(root=root), Request(root=root, cells=False)):
            again = place(result.xml, request)
            assert (again.outcome, again.xml, again.cells) == (Outcome.UNCHANGED, result.xml, result.cells)
        assert place(setup.xml, _request(setup, root)) == result
        back = revert(result.xml)
        assert without_ours(back.xml) == without_ours(setup.xml) and record(back.xml) is None and not cells_of(back.xml)


@settings(max_examples=40 * THOROUGH, **SHARED)
@given(setups())
def test_what_was_written_byte_for_byte_comes_out_byte_for_byte(setup: Setup) -> None:
    with Tree(setup) as root:
        xml = setup.xml.replace(b"></p:pcinuma>", b"/>")  # two spellings of the same, of which XML's own writers know one
        result = place(xml, _request(setup, root))
        assert revert(result.xml).xml == xml


@settings(max_examples=40 * THOROUGH, **SHARED)
@given(setups(), st.data())
def test_what_the_owner_changed_since_stays(setup: Setup, data: st.DataObject) -> None:
    with Tree(setup) as root:
        result = place(setup.xml, _request(setup, root))
        if result.outcome is not Outcome.PLACED:
            return
        tree = etree.fromstring(result.xml)
        change = data.draw(st.sampled_from(["pin", "cell", "cells gone", "one more cell"]), "change")
        ours = [(pin.get("vcpu"), pin.get("cpuset")) for pin in record(result.xml).findall("{*}vcpupin")]
        numa = tree.find("cpu/numa")
        if change == "pin":
            if not ours:
                return
            pin = tree.find(f"cputune/vcpupin[@vcpu='{ours[0][0]}']")
            pin.set("cpuset", pin.get("cpuset").split("-")[0].split(",")[0])
            same = pin.get("cpuset") == ours[0][1]
            back = etree.fromstring(revert(etree.tostring(tree)).xml)
            left = {p.get("vcpu"): p.get("cpuset") for p in back.findall("cputune/vcpupin")}
            assert left.get(ours[0][0]) == (None if same else pin.get("cpuset"))
            assert not cells_of(etree.tostring(back))
            return
        if change == "cell":
            numa[0].set("memory", str(int(numa[0].get("memory")) + 1024))
        elif change == "cells gone":
            numa.getparent().remove(numa)
            tree.remove(tree.find("numatune"))
        else:
            numa.append(etree.fromstring(f"<cell id='{len(numa)}' memory='1024' unit='KiB'/>"))
        changed = etree.tostring(tree)
        asked = place(changed, Request(root=root))
        if change == "cells gone":
            assert record(asked.xml) is None and not cells_of(asked.xml)
            return
        assert asked.outcome is Outcome.FALLBACK or record(asked.xml) is None
        assert [etree.tostring(cell) for cell in cells_of(asked.xml)] == [etree.tostring(cell) for cell in cells_of(changed)]
        back = etree.fromstring(revert(changed).xml)
        assert len(back.findall("cpu/numa/cell")) == len(numa)


def test_the_real_libvirt_gives_back_what_it_made_of_the_owners_xml() -> None:
    if missing():
        pytest.skip(f"the real libvirt: {missing()}")
    found: list[Setup] = []

    @settings(max_examples=90 * THOROUGH, phases=[Phase.generate], derandomize=True, database=None, **SHARED)
    @given(setups())
    def collect(setup: Setup) -> None:
        with Tree(setup) as root:
            if place(setup.xml, _request(setup, root)).outcome is Outcome.PLACED:
                found.append(setup)

    collect()
    owners = define([setup.xml for setup in found])
    pairs = [(setup, kept) for setup, (kept, _) in zip(found, owners) if kept is not None]
    assert len(pairs) > 15
    placed = []
    for setup, kept in pairs:
        with Tree(setup) as root:
            placed.append(place(kept, _request(setup, root)))
    assert {result.outcome for result in placed} == {Outcome.PLACED}
    answers = define([result.xml for result in placed])
    wrong = [f"{error}\n{result.xml.decode()}" for result, (_, error) in zip(placed, answers) if error]
    formatted = [kept or b"" for kept, _ in answers]
    for (setup, _owner), kept in zip(pairs, formatted):
        with Tree(setup) as root:
            again = place(kept, _request(setup, root)) if kept else None
        if again is not None and (again.outcome is not Outcome.UNCHANGED or again.xml != kept):
            wrong.append(f"not settled: {again.outcome} {again.message}\n{kept.decode()}")
    backs = define([revert(kept).xml if kept else b"<domain/>" for kept in formatted])
    for (_setup, owner), (back, error), kept in zip(pairs, backs, formatted):
        if kept and back != owner:
            wrong.append(f"comes back as something else: {error}\n{owner.decode()}\n{(back or b'').decode()}")
    assert not wrong, f"{len(wrong)} of {len(pairs)}, the shortest:\n{min(wrong, key=len)}"
