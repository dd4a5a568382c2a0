# SPDX-License-Identifier: LGPL-2.1-or-later
"""The four invariants over generated machines and domains: all or nothing, never in the way, only what is ours, stable."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pcinuma.engine import Request, Result, place, revert
from pcinuma.reason import Outcome
from pcinuma.settings import GroupBy, Settings
from tests.hosts.build import INHERIT, list_format, unreadable
from tests.hosts.edits import with_device, without_device
from tests.hosts.guard import no_real_host  # noqa: F401
from tests.hosts.guest import Guest
from tests.hosts.judge import faults, judge, without_ours
from tests.hosts.libvirt_format import define, missing
from tests.hosts.memory import MEMORY
from tests.hosts.passthrough import cells_for, ours, passed
from tests.hosts.strategies import Setup, setups

SHARED: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
THOROUGH = int(os.environ.get("PCINUMA_THOROUGH", "1"))


class Tree:
    """The sysfs tree of one example, in memory where there is memory."""

    def __init__(self, setup: Setup) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="host-", dir=MEMORY))
        setup.host.write(self.path)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _place(xml: bytes, setup: Setup, root: Path) -> Result:
    group_by = GroupBy(setup.group_by) if setup.group_by else None
    return place(xml, Request(root=root, group_by=group_by, settings=Settings(near_backing=setup.near_backing)))


@settings(max_examples=40 * THOROUGH, **SHARED)
@given(setups())
def test_every_layout_keeps_every_rule_and_can_be_undone(setup: Setup) -> None:
    with Tree(setup) as root:
        xml = setup.xml()
        result = _place(xml, setup, root)
        judge(xml, result.xml, setup.host, result.report())
        assert _place(xml, setup, root) == result
        again = _place(result.xml, setup, root)
        assert again.xml == result.xml and again.outcome is not Outcome.PLACED
        back = revert(result.xml)
        assert without_ours(back.xml) == without_ours(xml) and not ours(back.xml)
        assert [(d.source, d.at) for d in passed(back.xml)] == [(d.source, d.at) for d in passed(xml)]
        assert (back.outcome is Outcome.PLACED) == (back.xml != result.xml)


def _seen(xml: bytes) -> dict[str, tuple[Any, Any]]:
    guest = Guest.of(xml).completed()
    numbers = guest.numbers()
    shown = {d.source: (d.at, numbers.get(d.at.bus)) for d in passed(xml) if d.at}
    for endpoint in guest.endpoints:
        if endpoint.element is not None and endpoint.at and not endpoint.name.startswith(("hostdev", "interface {", "disk {")):
            shown[endpoint.name + str(endpoint.at)] = (endpoint.at, numbers.get(endpoint.at.bus))
    return shown


@settings(max_examples=25 * THOROUGH, **SHARED)
@given(setups(formatted=True), st.data())
def test_devices_that_come_and_go_move_nobody_else(setup: Setup, data: st.DataObject) -> None:
    with Tree(setup) as root:
        xml = _place(setup.xml(), setup, root).xml
        for _ in range(4):
            alone = [d.source for d in passed(xml) if d.form == "hostdev-pci" and d.at and len(Guest.of(xml).used(d.at.bus)) == 1]
            add = bool(setup.spare) and data.draw(st.booleans() if alone else st.just(True), "add")
            if not add and not alone:
                return
            if add:
                source = setup.spare.pop(data.draw(st.integers(0, len(setup.spare) - 1), "which"))
                changed = with_device(source)(xml)
            else:
                source = data.draw(st.sampled_from(alone), "which")
                setup.spare.append(source)
                changed = without_device(source)(xml)
            before = _seen(xml)
            result = _place(changed, setup, root)
            found = faults(changed, result.xml, setup.host, result.report(), fresh=False)
            assert not found, "\n".join([f"after {'adding' if add else 'removing'} {source}:", *found, result.xml.decode()])
            after = _seen(result.xml)
            moved = {name: (at, after.get(name)) for name, at in before.items() if name != source and after.get(name) != at}
            assert not moved, f"{'adding' if add else 'removing'} {source} moved {moved}\n{result.xml.decode()}"
            xml = result.xml


def _home(setup: Setup, xml: bytes, source: str) -> Any:
    """Where a device belongs: its cell and root complex; None where it has no place."""
    device = next(d for d in passed(xml, setup.host) if d.source == source)
    if device.host_address not in setup.host.functions or device.unassigned or device.not_pci:
        return None
    node = setup.host.node_of(device.host_address)
    cells = cells_for(xml, setup.host, node) if node is not None else set()
    return (min(cells), setup.host.root_of(device.host_address)) if len(cells) == 1 else None


@settings(max_examples=40 * THOROUGH, **SHARED)
@given(setups(formatted=True), st.data())
def test_a_host_or_mapping_that_changed_moves_only_the_devices_that_it_concerns(setup: Setup, data: st.DataObject) -> None:
    with Tree(setup) as root:
        first = _place(setup.xml(), setup, root)
        if first.outcome is not Outcome.PLACED:
            return
        xml = first.xml
        homes = {d.source: _home(setup, xml, d.source) for d in passed(xml, setup.host)}
        sources = [d for d in passed(xml, setup.host) if d.host_address and d.form != "mdev"]
        if sources and data.draw(st.booleans(), "the host changes"):
            function = setup.host.functions[data.draw(st.sampled_from(sources), "device").host_address]
            node = data.draw(st.sampled_from([*sorted(setup.host.nodes), -1]), "node")
            for sibling in setup.host.functions.values():
                if sibling.address[:-1] == function.address[:-1]:  # a card is on one node
                    sibling.node = node
                    sibling.cpulist = INHERIT
                    local = setup.host.nodes[node].cpus if node >= 0 else list_format(setup.host.cpus())
                    (root / "sys" / sibling.path / "numa_node").write_text(f"{node}\n")
                    (root / "sys" / sibling.path / "local_cpulist").write_text(f"{local}\n")
        else:
            for _cell, nodes in setup.domain.memnodes[:1]:
                new = ",".join(map(str, data.draw(st.lists(st.sampled_from(sorted(setup.host.nodes)), min_size=1, unique=True), "nodeset")))
                xml = xml.replace(f"nodeset='{nodes}'".encode(), f"nodeset='{new}'".encode(), 1)
        result = _place(xml, setup, root)
        if result.outcome is Outcome.FALLBACK:
            assert result.xml in (xml, revert(xml).xml)
            return
        found = faults(xml, result.xml, setup.host, result.report(), fresh=False)
        assert not found, "\n".join([*found, result.xml.decode()])
        before, after = ({d.source: d.at for d in passed(text)} for text in (xml, result.xml))
        moved = [source for source in before if before[source] != after[source] and homes[source] == _home(setup, xml, source)]
        cards = {d.source[:-1] for d in passed(xml) if homes[d.source] != _home(setup, xml, d.source)}
        assert not [source for source in moved if source[:-1] not in cards], f"{moved} moved\n{xml.decode()}\n{result.xml.decode()}"


def test_the_real_libvirt_keeps_every_generated_layout_as_it_is() -> None:
    if missing():
        pytest.skip(f"the real libvirt: {missing()}")
    placed: list[tuple[Setup, bytes, Result]] = []

    @settings(max_examples=240 * THOROUGH, phases=[Phase.generate], derandomize=True, database=None, **SHARED)
    @given(setups())
    def collect(setup: Setup) -> None:
        with Tree(setup) as root:
            xml = setup.xml()
            result = _place(xml, setup, root)
            if result.outcome is Outcome.PLACED and not any(d.form == "mdev" for d in passed(xml)):
                placed.append((setup, xml, result))

    collect()
    wrong = []
    for (setup, xml, result), (kept, error) in zip(placed, define([result.xml for _, _, result in placed], timeout=300)):
        if kept is None:
            wrong.append(f"{error}\n{result.xml.decode()}")
            continue
        found = [
            f
            for f in faults(xml, kept, setup.host, result.report())
            if not any(words in f for words in ("not ours", "report says", "not in <placement>"))
        ]
        with Tree(setup) as root:
            again = _place(kept, setup, root)
        if again.xml != kept:
            found.append(f"not settled: {again.outcome.value} {again.reason}")
        if found:
            wrong.append("\n".join([*found, result.xml.decode(), kept.decode()]))
    assert not wrong, f"{len(wrong)} of {len(placed)}, the shortest:\n{min(wrong, key=len)}"
    assert len(placed) > 10


_GARBAGE = ["", "\n", "garbage\n", "-5\n", "99999999999999999999\n", "0-\n", "3-1\n", "0x0\n", "\x00\x00", "1 2\n", "é\n", "0,,1\n"]


@settings(max_examples=40 * THOROUGH, **SHARED)
@given(setups(), st.data())
def test_a_broken_host_gives_the_whole_placement_or_none_of_it(setup: Setup, data: st.DataObject) -> None:
    with Tree(setup) as root:
        xml = setup.xml()
        good = _place(xml, setup, root)
        files = sorted(p for p in (root / "sys/devices").rglob("*") if p.is_file() and p.name in _READ and not p.is_symlink())
        file = data.draw(st.sampled_from(files), "file")
        damage = data.draw(st.sampled_from(["unreadable", "gone", *_GARBAGE]), "damage")
        if damage == "unreadable":
            unreadable(file)
        elif damage == "gone":
            file.unlink()
        else:
            file.write_bytes(damage.encode())
        result = _place(xml, setup, root)
        if result.outcome is not Outcome.PLACED:
            assert result.xml == xml
        else:
            assert result.outcome in (Outcome.PLACED, good.outcome)
            addressed = {d.source: d.at for d in passed(result.xml)}
            assert set(addressed) == {d.source for d in passed(xml)}
        standing = _place(good.xml, setup, root)
        if standing.outcome is Outcome.FALLBACK and good.outcome is Outcome.PLACED:
            assert standing.xml in (good.xml, revert(good.xml).xml)


_READ = {"numa_node", "local_cpulist", "cpulist", "online", "distance", "config", "class"}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from tests.hosts.machines import two_sockets

    yield two_sockets().write(tmp_path_factory.mktemp("two-sockets"))


_VALUES = st.sampled_from(
    ["", "x", "-1", "0x", "256", "0x100", "999999999999999999999", "0-", "^0", "1,", "é", "on", "pci", "../..", "0x1f", "32", "1e3"]
)


@settings(max_examples=120 * THOROUGH, **SHARED)
@given(data=st.data())
def test_strange_values_in_a_domain_never_raise_and_never_place_half(machine: Path, data: st.DataObject) -> None:
    from lxml import etree

    from tests.golden.cases import CASES, FOLDER

    name = data.draw(st.sampled_from([c.name for c in CASES if c.stored and c.machine == "two-sockets"]), "case")
    part = data.draw(st.sampled_from(["in", "out"]))
    root = etree.fromstring((FOLDER / f"{name}-{part}.xml").read_bytes())
    for _ in range(data.draw(st.integers(1, 3), "edits")):
        element = data.draw(st.sampled_from([e for e in root.iter(etree.Element) if e is not root]), "element")
        choice = data.draw(st.integers(0, 3), "what")
        if choice == 0 and element.attrib:
            element.set(data.draw(st.sampled_from(sorted(element.attrib))), data.draw(_VALUES))
        elif choice == 1 and element.attrib:
            del element.attrib[data.draw(st.sampled_from(sorted(element.attrib)))]
        elif choice == 2 and element.text and element.text.strip():
            element.text = data.draw(_VALUES)
        elif element.getparent() is not None:
            element.getparent().remove(element)
    xml = etree.tostring(root)
    result = place(xml, Request(root=machine))
    assert result.reason is None or result.reason.value != "internal-error", result.message
    if result.outcome is Outcome.UNCHANGED:
        assert result.xml == xml
    if result.outcome is Outcome.FALLBACK and b"placement" not in xml:
        assert result.xml == xml
    revert(xml)


@settings(max_examples=60 * THOROUGH, **SHARED)
@given(
    st.one_of(
        st.binary(max_size=60), st.sampled_from([b"", b"<domain/>", b"<domain>", b"<network/>", b"\xff\xfe<\x00", b"<domain xmlns='x'/>"])
    )
)
def test_only_input_that_is_no_domain_raises(machine: Path, xml: bytes) -> None:
    from pcinuma.errors import UnusableInput

    try:
        assert place(xml, Request(root=machine)).xml == xml
    except UnusableInput as error:
        assert "\n" not in error.sentence()
