# SPDX-License-Identifier: LGPL-2.1-or-later
"""``link = host``: what root ports are made to tell, what libvirt and QEMU take, whose an override is, and the way back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from pcinuma.domain.links import read_link, spelled
from pcinuma.engine import Request, Result, place, revert
from pcinuma.host.links import Link
from pcinuma.model import Hypervisor
from pcinuma.reason import Outcome
from pcinuma.settings import GroupBy, Policy, Settings
from tests.hosts.build import Host
from tests.hosts.domains import Domain, two_cells
from tests.hosts.guard import no_real_host  # noqa: F401
from tests.hosts.judge import QEMU, judge
from tests.hosts.keeping import kept
from tests.hosts.machines import MACHINES
from tests.hosts.passthrough import NS, passed

GPU, NIC = "0000:17:00.0", "0000:b3:00.0"
EMULATOR = "/usr/bin/qemu-system-x86_64"
DECLARED = " xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
OLD, NEW = (Hypervisor((9, 0), qemu, EMULATOR, "x86_64") for qemu in ((7, 2), (9, 0)))
Ends = dict[str, dict[str, str]]


def host(speed: Optional[str] = "32.0 GT/s PCIe", width: str = "16", machine: str = "two-sockets") -> Host:
    """A host whose port above 17:00.0 has this link; all others are 16 GT/s x16."""
    made = MACHINES[machine]()
    made.functions["0000:16:00.0"].link = None if speed is None else (speed, width)
    return made


def pair() -> Domain:
    return two_cells().hostdev("17:00.0").hostdev("b3:00.0")


def answer(xml: bytes, root: Path, hypervisor: Optional[Hypervisor] = None, **asked: Any) -> Result:
    asked.setdefault("link", True)
    return place(xml, Request(root=root, hypervisor=None if hypervisor is None else lambda: hypervisor, **asked))


def told(xml: bytes) -> Ends:
    """For each device whose port is overridden the properties, by its source."""
    root = etree.fromstring(xml)
    by_alias: Ends = {}
    for device in root.iterfind(f"{QEMU}override/{QEMU}device"):
        properties = device.findall(f"{QEMU}frontend/{QEMU}property")
        assert all(prop.get("type") == "string" for prop in properties)
        by_alias[device.get("alias")] = {prop.get("name"): prop.get("value") for prop in properties}
    return {d.source: by_alias[f"pci.{d.at.bus}"] for d in passed(root) if d.at and f"pci.{d.at.bus}" in by_alias}


def both(speed: str, width: str) -> dict[str, str]:
    return {"x-speed": speed, "x-width": width}


OTHERS = {NIC: both("16", "16")}


@pytest.mark.parametrize(
    ("speed", "width", "hypervisor", "expected", "says"),
    [
        ("2.5 GT/s PCIe", "1", None, both("2_5", "1"), None),
        ("5.0 GT/s PCIe", "4", OLD, both("5", "4"), None),
        ("8.0 GT/s PCIe", "8", OLD, both("8", "8"), None),
        ("16.0 GT/s PCIe", "32", OLD, both("16", "32"), None),
        ("32.0 GT/s PCIe", "16", NEW, both("32", "16"), None),
        ("64.0 GT/s PCIe", "16", NEW, both("64", "16"), None),
        ("32.0 GT/s PCIe", "16", OLD, {"x-width": "16"}, "QEMU 7.2 knows no such speed"),
        ("32.0 GT/s PCIe", "16", None, {"x-width": "16"}, "libvirt was not asked for QEMU's version"),
        ("32.0 GT/s PCIe", "16", NEW._replace(emulator="/opt/qemu"), {"x-width": "16"}, "the domain's own QEMU is not known"),
        ("32.0 GT/s PCIe", "16", NEW._replace(arch="aarch64"), {"x-width": "16"}, "the domain's own QEMU is not known"),
        ("128.0 GT/s PCIe", "16", NEW, {"x-width": "16"}, "QEMU 9.0 knows no such speed"),
        ("Unknown", "16", NEW, {"x-width": "16"}, None),
        ("8.0 GT/s PCIe", "255", NEW, {"x-speed": "8"}, None),
        ("Unknown", "0", NEW, None, None),
        (None, "", NEW, None, None),
    ],
)
def test_a_port_tells_what_the_hosts_port_can_do_as_far_as_qemu_takes_it(
    speed: Optional[str], width: str, hypervisor: Optional[Hypervisor], expected: Optional[dict[str, str]], says: Optional[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    root = host(speed, width).write(tmp_path)
    xml = pair().formatted().replace(b"<devices>", f"<devices>\n    <emulator>{EMULATOR}</emulator>".encode())
    result = answer(xml, root, hypervisor)
    assert told(result.xml) == {**OTHERS, **({} if expected is None else {GPU: expected})}
    assert (result.outcome, result.message is None) == (Outcome.PLACED, says is None)
    assert says is None or says in (result.message or "")


def test_libvirt_that_has_no_overrides_gets_none_and_the_report_says_so(tmp_path: Path) -> None:
    root, old = host().write(tmp_path), Hypervisor((8, 1), (9, 0), EMULATOR, "x86_64")
    result = answer(pair().formatted(), root, old)
    assert result.xml == answer(pair().formatted(), root, link=False).xml
    assert "libvirt 8.1 takes no others, 8.2 does" in (result.message or "")


@pytest.mark.parametrize(
    ("owner", "configured", "asked", "expected"),
    [
        (None, False, None, False), (None, True, None, True), ("host", False, None, True), ("off", True, None, False),
        ("off", False, True, False), ("host", True, False, False), (None, True, False, False), (None, False, True, True),
    ],
)  # fmt: skip
def test_the_owners_off_wins_then_who_asks_then_the_owner_then_the_configuration(
    owner: Optional[str], configured: bool, asked: Optional[bool], expected: bool, tmp_path: Path
) -> None:
    root, domain = host().write(tmp_path), pair()
    xml = (domain if owner is None else domain.metadata(link=owner)).formatted()
    assert bool(told(answer(xml, root, link=asked, settings=Settings(link=configured)).xml)) is expected


@pytest.mark.parametrize("value", ["", "Host", "auto", "on"])
def test_a_word_that_is_none_of_them_leaves_the_domain_alone(value: str, tmp_path: Path) -> None:
    xml = pair().metadata(link=value).formatted()
    result = answer(xml, host().write(tmp_path))
    assert (result.outcome, result.xml) == (Outcome.FALLBACK, xml) and "link" in (result.message or "")


def _with_override(owner: str) -> Callable[[bytes], bytes]:
    def edit(xml: bytes) -> bytes:
        return xml.replace(b"</domain>", f"  <qemu:override{DECLARED}>{owner}</qemu:override>\n</domain>".encode())

    return edit


def _device(alias: str, name: str = "x-speed", value: str = "8") -> str:
    setting = f"<qemu:property name='{name}' type='string' value='{value}'/>"
    return f"<qemu:device alias='{alias}'><qemu:frontend>{setting}</qemu:frontend></qemu:device>"


def _declared(xml: bytes) -> bytes:
    return xml.replace(b"<domain ", f"<domain{DECLARED} ".encode(), 1)


RAW: list[Callable[[bytes], bytes]] = [
    lambda xml: xml,
    _declared,
    lambda xml: _declared(xml).replace(b"xmlns:qemu", b"xmlns:q"),
    _with_override(""),
    _with_override(_device("ua-disk")),
    lambda xml: _with_override("")(_declared(xml)).replace(b"</qemu:override>", b"<!-- mine --></qemu:override>"),
    lambda xml: _declared(xml).replace(b"</domain>", b"<qemu:commandline><qemu:env name='A' value='b'/></qemu:commandline></domain>"),
    lambda xml: re.sub(rb">\s+<", b"><", xml).strip(),
    lambda xml: xml.replace(b"'", b'"'),
    lambda xml: xml.decode().encode("utf-16"),
    lambda xml: b"<!-- <domain xmlns:qemu='a'> -->\n" + xml,
]


@pytest.mark.parametrize("way", range(len(RAW)))
@pytest.mark.parametrize("formatted", [True, False])
def test_what_was_there_comes_back_byte_for_byte(way: int, formatted: bool, tmp_path: Path) -> None:
    root = host().write(tmp_path)
    xml = RAW[way](pair().formatted() if formatted else pair().raw())
    placed, plain = answer(xml, root), answer(xml, root, link=False)
    assert len(told(placed.xml)) == 2 and placed.xml != plain.xml
    assert answer(placed.xml, root).xml == placed.xml and answer(placed.xml, root).outcome is Outcome.UNCHANGED
    assert answer(placed.xml, root, link=False).xml == plain.xml
    assert revert(placed.xml).xml == revert(plain.xml).xml


def test_what_libvirt_made_of_it_comes_back_too(tmp_path: Path) -> None:
    root = host().write(tmp_path)
    plain = kept(answer(kept(pair().raw()), root, link=False).xml)
    linked = kept(answer(plain, root).xml)
    assert linked.startswith(b"<domain xmlns:qemu=") and len(told(linked)) == 2
    assert (answer(linked, root).outcome, answer(linked, root).xml) == (Outcome.UNCHANGED, linked)
    assert answer(linked, root, link=False).xml == plain
    assert revert(linked).xml == revert(plain).xml


def test_an_override_of_the_owners_stays_and_so_does_its_port(tmp_path: Path) -> None:
    root = host().write(tmp_path)
    placed = answer(pair().formatted(), root, link=False).xml
    bus = next(d.at.bus for d in passed(placed) if d.source == GPU and d.at)
    xml = _with_override(_device(f"pci.{bus}", "x-pcie-lnkact", "off"))(placed)
    result = answer(xml, root)
    assert told(result.xml) == {**OTHERS, GPU: {"x-pcie-lnkact": "off"}}
    assert f"the owner decides on the link of PCI controller {bus}" in (result.message or "")
    assert answer(result.xml, root, link=False).xml == xml


def test_an_override_that_somebody_changed_is_his(tmp_path: Path) -> None:
    root = host().write(tmp_path)
    placed = answer(pair().formatted(), root)
    xml = placed.xml.replace(b"name='x-width' type='string' value='16'", b"name='x-width' type='string' value='4'", 1)
    mine = {GPU: {"x-width": "4"}}
    for link in (True, False):
        result = answer(xml, root, link=link)
        assert told(result.xml) == ({**OTHERS, **mine} if link else mine)
        assert answer(result.xml, root, link=link).xml == result.xml
    assert told(revert(xml).xml) == {} and b"value='4'" in revert(xml).xml


def test_the_owners_command_line_decides_on_links_if_it_says_something_about_them(tmp_path: Path) -> None:
    root = host().write(tmp_path)
    argument = "<qemu:arg value='-global'/><qemu:arg value='pcie-root-port.x-speed=8'/>"
    xml = _declared(pair().formatted()).replace(b"</domain>", f"<qemu:commandline>{argument}</qemu:commandline></domain>".encode())
    result = answer(xml, root)
    assert (result.outcome, told(result.xml)) == (Outcome.PLACED, {}) and "<qemu:commandline>" in (result.message or "")


def test_a_port_under_an_alias_of_the_owners_is_left_alone(tmp_path: Path) -> None:
    root = host().write(tmp_path)
    placed = kept(answer(kept(pair().raw()), root, link=False).xml)
    bus = next(d.at.bus for d in passed(placed) if d.source == GPU and d.at)
    tree = etree.fromstring(placed)
    etree.SubElement(tree.find(f"devices/controller[@type='pci'][@index='{bus}']"), "alias", name="ua-mine")
    assert told(answer(etree.tostring(tree), root).xml) == OTHERS


def test_only_occupied_root_ports_tell_anything(tmp_path: Path) -> None:
    machine = MACHINES["eight-gpus"]()
    root = machine.write(tmp_path)
    xml = two_cells().hostdev("24:00.0").hostdev("26:00.0").hostdev("84:00.0").raw()
    result = answer(xml, root, group_by=GroupBy.SWITCH, settings=Settings(spare_ports=2))
    assert list(told(result.xml)) == ["0000:84:00.0"]
    assert len(etree.fromstring(result.xml).findall(f"{QEMU}override/{QEMU}device")) == 1
    for other in ("pc", "pseries"):
        assert b"override" not in answer(pair().on(other).raw(), host().write(tmp_path / other)).xml


def test_without_libvirt_what_a_port_tells_already_stands_if_it_is_true(tmp_path: Path) -> None:
    root = host().write(tmp_path / "one")
    placed = answer(pair().formatted(), root, NEW)
    assert told(placed.xml)[GPU] == both("32", "16")
    assert (answer(placed.xml, root).outcome, answer(placed.xml, root).xml) == (Outcome.UNCHANGED, placed.xml)
    after = answer(placed.xml, root, OLD)
    assert told(after.xml)[GPU] == {"x-width": "16"} and after.outcome is Outcome.PLACED
    slower = answer(placed.xml, host("8.0 GT/s PCIe", "8").write(tmp_path / "other"))
    assert told(slower.xml)[GPU] == both("8", "8") and "links changes" in (slower.message or "")


def test_libvirt_is_asked_only_if_that_matters(tmp_path: Path) -> None:
    def ask() -> Optional[Hypervisor]:
        raise AssertionError("libvirt was asked")

    root = host().write(tmp_path)
    for xml in (pair().formatted(), two_cells().raw()):
        result = place(xml, Request(root=root, hypervisor=ask))
        assert result.reason is None or result.reason.value == "nothing-to-place"
    assert place(two_cells().raw(), Request(root=root, link=True, hypervisor=ask)).outcome is Outcome.UNCHANGED


def test_a_guest_slot_with_devices_of_two_ports_keeps_qemus_link(tmp_path: Path) -> None:
    made = host()
    made.functions["0000:16:02.0"].link = ("8.0 GT/s PCIe", "8")
    root = made.write(tmp_path)
    domain = two_cells().controller(1, "pcie-root-port", "", "00:03.0")
    domain.hostdev("17:00.0", "01:00.0", multifunction=True).hostdev("18:00.0", "01:00.1")
    result = answer(kept(domain.raw()), root, NEW)
    together = len({d.at.bus for d in passed(result.xml) if d.at}) == 1
    assert bool(told(result.xml)) is not together


def test_off_and_fallbacks_leave_everything_as_it_stands(tmp_path: Path) -> None:
    root = host().write(tmp_path)
    placed = answer(pair().formatted(), root, NEW).xml
    off = placed.replace(b"<pcinuma:pcinuma ", b"<pcinuma:pcinuma policy='off' ", 1)
    assert answer(off, root, NEW).xml == off
    gone = host()
    gone.functions[GPU].node = "garbage"
    result = answer(placed, gone.write(tmp_path / "gone"), NEW)
    assert (result.outcome, result.xml) == (Outcome.FALLBACK, placed)
    refused = answer(placed, tmp_path / "gone", NEW, policy=Policy.REQUIRED)
    assert refused.refused and refused.xml == placed


def test_devices_that_go_take_the_link_of_their_port_along(tmp_path: Path) -> None:
    root = host().write(tmp_path)
    tree = etree.fromstring(answer(kept(pair().raw()), root, NEW).xml)
    device = next(d.element for d in passed(tree) if d.source == GPU)
    device.getparent().remove(device)
    result = answer(etree.tostring(tree), root, NEW)
    assert told(result.xml) == OTHERS
    assert [c.get("link") for c in etree.fromstring(result.xml).iter(f"{NS}controller") if c.get("link")] == ["16x16"]


def test_what_ports_told_goes_with_a_placement_of_which_nothing_is_left(tmp_path: Path) -> None:
    """The owner's own file, with the metadata and overrides of a definition and none of its controllers."""
    root = host().write(tmp_path)
    tree = etree.fromstring(answer(pair().formatted(), root, NEW).xml)
    for element in tree.findall("devices/controller") + tree.findall("devices/hostdev/address"):
        element.getparent().remove(element)
    for link in (True, False):
        result = answer(etree.tostring(tree), root, NEW, link=link)
        assert len(etree.fromstring(result.xml).findall(f"{QEMU}override/{QEMU}device")) == 2 * link == len(told(result.xml))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    links=st.dictionaries(
        st.sampled_from([GPU, NIC, "0000:18:00.0", "0000:b4:00.0"]),
        st.tuples(st.sampled_from(["2.5", "5.0", "8.0", "16.0", "32.0", "64.0"]), st.sampled_from(["1", "2", "4", "8", "12", "16", "32"])),
        min_size=1,
    ),
    hypervisor=st.sampled_from([None, OLD, NEW]),
    formatted=st.booleans(),
)
def test_any_links_of_any_ports_come_and_go(
    links: dict[str, tuple[str, str]], hypervisor: Optional[Hypervisor], formatted: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = MACHINES["two-sockets"]()
    domain = two_cells()
    for source, (speed, width) in links.items():
        parent: Any = made.functions[source].parent
        parent.link = (f"{speed} GT/s PCIe", width)
        domain.hostdev(source[5:])
    root = made.write(tmp_path_factory.mktemp("host"))
    xml = kept(domain.raw()) if formatted else domain.raw()
    result = answer(xml, root, hypervisor)
    judge(xml, result.xml, made, json.loads(json.dumps(result.report())))
    fast = hypervisor is NEW
    words = {source: {"x-speed": f"{float(speed):g}".replace(".", "_"), "x-width": width} for source, (speed, width) in links.items()}
    assert told(result.xml) == {
        source: said if fast or said["x-speed"] not in ("32", "64") else {"x-width": said["x-width"]} for source, said in words.items()
    }
    for again in (result.xml, kept(result.xml)):
        assert answer(again, root, hypervisor).xml == again
        assert answer(again, root, hypervisor, replan=True).xml == again
    plain = answer(xml, root, link=False).xml
    assert answer(result.xml, root, link=False).xml == plain
    assert revert(result.xml).xml == revert(plain).xml
    assert revert(kept(result.xml)).xml == revert(kept(plain)).xml


@given(st.tuples(st.sampled_from([None, 2.5, 5.0, 8.0, 16.0, 32.0, 64.0]), st.sampled_from([None, 1, 2, 4, 8, 12, 16, 32])))
def test_a_record_says_what_was_written(link: tuple[Optional[float], Optional[int]]) -> None:
    assert read_link(spelled(Link(*link))) == (Link(*link) if any(link) else None)


@given(st.text(max_size=8))
def test_a_record_that_means_nothing_owns_nothing(text: str) -> None:
    link = read_link(text)
    assert link is None or (spelled(link).replace("x", "") and link != Link())
