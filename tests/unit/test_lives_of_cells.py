# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lives of guests without cells, over the engine alone: cells are given, changed by owners, counted on and taken back, and hosts change.

After each step: the rules of every placement and of every cell (``tests/hosts/judge.py``), the same answer to the same question, nobody's
cells changed but by who asked for that, and a way back to what the owner wrote.
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
from pcinuma.reason import Outcome, Reason
from pcinuma.settings import MemoryMode, Settings
from tests.hosts.build import Host
from tests.hosts.cells_judge import cells_of, record
from tests.hosts.edits import with_device
from tests.hosts.guard import no_real_host  # noqa: F401
from tests.hosts.judge import faults, without_ours
from tests.hosts.keeping import kept
from tests.hosts.memory import MEMORY
from tests.hosts.passthrough import NS, ours, passed, placement
from tests.unit.placement.test_cells import setups

_OWN = f"metadata/{NS}pcinuma"
_MODES = st.sampled_from([None, None, *MemoryMode])
_WORDS = st.sampled_from([None, "auto", "off"])


class Lives(RuleBasedStateMachine):
    """One host with one domain. ``everywhere``: the configuration gives cells to whoever has none."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="life-", dir=MEMORY))
        self.host = Host()
        self.xml = b""
        self.keeps = True
        self.everywhere = False

    def teardown(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    @initialize(setup=setups(), keeps=st.booleans(), everywhere=st.booleans())
    def define(self, setup: Any, keeps: bool, everywhere: bool) -> None:
        self.host, self.everywhere = setup.host, everywhere
        self.keeps = keeps and b"pseries" not in setup.xml and b"<graphics" not in setup.xml  # what the keeper does not know
        self._write_host()
        self._placed(self._keep(setup.xml))

    # What owners do.

    @rule(data=st.data(), gone=st.integers(0, 1), new=st.integers(0, 2))
    def change_devices(self, data: st.DataObject, gone: int, new: int) -> None:
        root = etree.fromstring(self.xml)
        here = passed(root)
        for device in data.draw(st.lists(st.sampled_from(here), max_size=gone, unique_by=id), "gone") if here else ():
            root.find("devices").remove(device.element)
        if not len(root.find("devices")):
            root.find("devices").text, balloon = "\n    ", etree.fromstring("<memballoon model='none'/>")
            root.find("devices").append(balloon)
            balloon.tail = "\n  "
        xml = etree.tostring(root) + b"\n"
        used = {device.host_address for device in passed(xml)}
        unused = [name for name in self._gpus() if name not in used]
        for source in data.draw(st.lists(st.sampled_from(unused), max_size=new, unique=True), "new") if unused else ():
            xml = with_device(source)(xml)
        self._placed(self._keep(xml))

    @rule(word=_WORDS)
    def say_cells(self, word: Optional[str]) -> None:
        """``cells=`` in the metadata, or no more."""
        root = etree.fromstring(self.xml)
        own = root.find(_OWN)
        if own is None and word is None:
            return
        if own is None:
            if root.find("metadata") is None:
                root.find("name").addnext(etree.Element("metadata"))
            own = etree.SubElement(root.find("metadata"), f"{NS}pcinuma")
        own.attrib.pop("cells", None)
        if word is not None:
            own.set("cells", word)
        self._placed(self._keep(etree.tostring(root) + b"\n"))

    @rule(metadata=st.booleans())
    def define_anew(self, metadata: bool) -> None:
        """The owner's own file, without cells, controllers and addresses; with the metadata that are there, or with none."""
        root = etree.fromstring(without_cells(self.xml))
        for element in [*root.findall("devices/controller"), *root.findall("devices/*/address")]:
            element.getparent().remove(element)
        own = root.find(_OWN)
        if own is not None and not metadata:
            own.getparent().remove(own)
        for element in root.iter("numatune", "cpu", "metadata", "cputune"):
            if not len(element):
                element.text = None
        self._placed(self._keep(etree.tostring(root) + b"\n"), cells_change=True)

    @precondition(lambda self: cells_of(self.xml))
    @rule(data=st.data())
    def change_cells(self, data: st.DataObject) -> None:
        """By hand, so that they are the owner's from now on."""
        root = etree.fromstring(self.xml)
        cells = root.findall("cpu/numa/cell")
        change = data.draw(st.sampled_from(["memory", "one more", "unbound"]), "change")
        if change == "memory":
            cells[0].set("memory", str(int(cells[0].get("memory")) + 1024))
        elif change == "one more" and not self._restrictive(root):
            cells[0].getparent().append(etree.fromstring(f"<cell id='{len(cells)}' memory='1024' unit='KiB'/>"))
        elif change == "unbound":
            for memnode in root.findall("numatune/memnode")[:1]:
                memnode.getparent().remove(memnode)
        self._placed(self._keep(etree.tostring(root) + b"\n"))

    @rule(data=st.data())
    def change_a_pin(self, data: st.DataObject) -> None:
        root = etree.fromstring(self.xml)
        pins = root.findall("cputune/vcpupin")
        if pins:
            pin = data.draw(st.sampled_from(pins), "pin")
            cpus = [node.cpus for node in self.host.nodes.values() if node.cpus]
            pin.set("cpuset", data.draw(st.sampled_from(cpus), "cpuset"))
            self._placed(self._keep(etree.tostring(root) + b"\n"))

    # What happens to hosts.

    @rule(data=st.data())
    def change_a_node(self, data: st.DataObject) -> None:
        """Less memory, or more; CPUs offline, or back."""
        node = data.draw(st.sampled_from(list(self.host.nodes.values())), "node")
        node.memory_kib = data.draw(st.sampled_from([64 << 20, 128 << 10, 0]), "memory")
        node.hugepages = {}
        cpus = sorted(self.host.cpus())
        self.host.offline_cpus = set(data.draw(st.lists(st.sampled_from(cpus), max_size=4, unique=True), "offline")) if cpus else set()
        self._write_host()
        self._placed(self.xml)

    @rule(data=st.data())
    def move_a_device(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self._gpus()), "device")
        self.host.functions[name].node = data.draw(st.sampled_from([*sorted(self.host.nodes), -1]), "node")
        self._write_host()
        self._placed(self.xml)

    # What pcinuma is asked for.

    @rule(mode=_MODES)
    def give(self, mode: Optional[MemoryMode]) -> None:
        """``pcinuma cells --apply``."""
        self._placed(self.xml, cells=True, memory=mode)

    @rule(mode=_MODES)
    def replan_cells(self, mode: Optional[MemoryMode]) -> None:
        self._placed(self.xml, cells=True, memory=mode, replan_cells=True, cells_change=True)
        again = self._place(self.xml, cells=True, memory=mode, replan_cells=True)
        assert again.xml == self.xml, f"replanned once more:\n{_shown(self.xml, again)}"

    @rule()
    def replan(self) -> None:
        self._placed(self.xml, replan=True)

    @rule()
    def take_back(self) -> None:
        """A revert; the daemon then leaves the domain alone until it is enabled."""
        self.xml = self._keep(revert(self.xml).xml)
        assert record(self.xml) is None and placement(self.xml) is None

    # The engine, and what must hold.

    def _place(self, xml: bytes, **asked: Any) -> Result:
        return place(xml, Request(self.root, settings=Settings(cells=self.everywhere), **asked))

    def _placed(self, xml: bytes, *, cells_change: bool = False, **asked: Any) -> None:
        result = self._place(xml, **asked)
        told = _shown(xml, result)
        assert result.reason is not Reason.INTERNAL, told
        if result.outcome is Outcome.UNCHANGED:
            assert result.xml == xml, told
        elif result.outcome is Outcome.PLACED:
            dropped = record(xml) is not None and record(result.xml) is None and cells_of(result.xml)  # they are the owner's by now
            before = _without_record(xml) if dropped else without_cells(xml) if cells_change else xml
            found = faults(before, result.xml, self.host, result.report(), fresh=False)
            found = [fault for fault in found if not dropped or fault != "outcome placed but nothing changed"]
            if not self.keeps:  # devices without an address may land on an emptied port of ours, and are moved when libvirt has said so
                found = [fault for fault in found if "lands on our expander" not in fault and "has hotplug on" not in fault]
            assert not found, "\n".join([*found, told])
        else:
            assert result.xml in (xml, revert(xml).xml) or not ours(result.xml), told
        had = record(xml)
        if cells_of(xml) and not cells_change:
            assert _cells(result.xml) == _cells(xml) or not cells_of(result.xml), f"cells changed unasked\n{told}"
            assert had is not None or _cells(result.xml) == _cells(xml), f"the owner's cells changed\n{told}"
        for again in (result.xml, self._keep(result.xml)):
            settled = self._place(again)
            assert settled.xml == again and settled.outcome is not Outcome.PLACED, f"not settled:\n{_shown(again, settled)}\n{told}"
            assert settled.cells == self._place(result.xml).cells, told
        back = revert(result.xml).xml
        assert record(back) is None and placement(back) is None, told
        assert _text(without_ours(back)) == _text(without_ours(result.xml)), f"taken back:\n{back.decode()}\n{told}"
        if had is None and not cells_of(xml) and record(result.xml) is not None:
            assert _text(without_ours(back)) == _text(without_ours(revert(xml).xml)), f"taken back:\n{back.decode()}\n{told}"
        self.xml = self._keep(result.xml)

    # Means.

    def _keep(self, xml: bytes) -> bytes:
        return kept(xml) if self.keeps else xml

    def _write_host(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.host.write(self.root)

    def _gpus(self) -> list[str]:
        return sorted(address for address in self.host.functions if address.endswith("01:00.0"))

    def _restrictive(self, root: etree._Element) -> bool:
        return root.find("numatune/memory[@mode='restrictive']") is not None


def without_cells(xml: bytes) -> bytes:
    """A domain without any cells, as its owner first wrote it, but for the metadata."""
    root = etree.fromstring(xml)
    made = record(xml)
    gone = [*root.findall("cpu/numa"), *root.findall("numatune/memnode")]
    if made is not None and "memory" in made.get("made", "").split():
        gone += root.findall("numatune/memory")
    for element in gone:
        element.getparent().remove(element)
    return etree.tostring(root) + b"\n"


def _cells(xml: bytes) -> list[tuple[Any, ...]]:
    root = etree.fromstring(xml)
    bound = {memnode.get("cellid"): memnode.get("nodeset") for memnode in root.findall("numatune/memnode")}
    return [(c.get("id"), c.get("cpus"), c.get("memory"), bound.get(c.get("id"))) for c in root.findall("cpu/numa/cell")]


def _without_record(xml: bytes) -> bytes:
    root = etree.fromstring(xml)
    for element in root.findall(f"{_OWN}/{NS}cells"):
        element.getparent().remove(element)
    return etree.tostring(root) + b"\n"


def _text(xml: Any) -> str:
    return re.sub(r">\s+<", "><", xml if isinstance(xml, str) else xml.decode())


def _shown(xml: bytes, result: Result) -> str:
    return f"before:\n{xml.decode()}\nafter ({result.outcome.value} {result.reason} {result.message}):\n{result.xml.decode()}"


SHARED: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


def test_every_step_of_a_life_with_cells_keeps_the_promises() -> None:
    run_state_machine_as_test(Lives, settings=settings(max_examples=25, stateful_step_count=10, **SHARED))


@pytest.mark.full
def test_every_step_of_many_long_lives_with_cells_keeps_the_promises() -> None:
    run_state_machine_as_test(Lives, settings=settings(max_examples=800, stateful_step_count=30, **SHARED))
