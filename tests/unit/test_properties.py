"""The four invariants over generated machines and domains: all or nothing, never in the way, only what is ours, stable."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcinuma.engine import Request, Result, place, revert
from pcinuma.placement.reason import Outcome
from pcinuma.settings import GroupBy
from tests.hosts.build import unreadable
from tests.hosts.edits import with_device, without_device
from tests.hosts.guest import Guest
from tests.hosts.judge import faults, judge, without_ours
from tests.hosts.passthrough import ours, passed
from tests.hosts.strategies import Setup, setups

SHARED: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
THOROUGH = int(os.environ.get("PCINUMA_THOROUGH", "1"))
_MEMORY = Path("/dev/shm")


class Tree:
    """The sysfs tree of one example, in memory where there is memory."""

    def __init__(self, setup: Setup) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="host-", dir=_MEMORY if _MEMORY.is_dir() else None))
        setup.host.write(self.path)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _place(xml: bytes, setup: Setup, root: Path) -> Result:
    return place(xml, Request(root=root, group_by=GroupBy(setup.group_by) if setup.group_by else None))


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
        assert without_ours(back.xml) == without_ours(xml) and ours(back.xml) == []
        assert [(d.source, d.at) for d in passed(back.xml)] == [(d.source, d.at) for d in passed(xml)]
        assert (back.outcome is Outcome.PLACED) == (back.xml != result.xml)


def _seen(xml: bytes) -> dict[str, tuple[Any, Any]]:
    """Endpoint -> (address, bus number in the guest), for everything that has an address."""
    guest = Guest.of(xml).completed()
    numbers = guest.numbers()
    return {f"{e.name} {n}": (e.at, numbers.get(e.at.bus)) for n, e in enumerate(guest.endpoints) if e.element is not None and e.at}


def _seen_by_source(xml: bytes) -> dict[str, tuple[Any, Any]]:
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
            here = [d.source for d in passed(xml, setup.host) if d.form == "hostdev-pci" and not d.unassigned]
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
            assert here is not None
            before = _seen_by_source(xml)
            result = _place(changed, setup, root)
            found = faults(changed, result.xml, setup.host, result.report(), fresh=False)
            assert not found, "\n".join([f"after {'adding' if add else 'removing'} {source}:", *found, result.xml.decode()])
            after = _seen_by_source(result.xml)
            moved = {name: (at, after.get(name)) for name, at in before.items() if name != source and after.get(name) != at}
            assert not moved, f"{'adding' if add else 'removing'} {source} moved {moved}\n{result.xml.decode()}"
            xml = result.xml


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
