# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guest cells in the life of a domain: who asks for them, what its owner changes, other cells, and the way back."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from lxml import etree

from pcinuma.engine import Request, place, revert
from pcinuma.reason import Outcome, Reason
from pcinuma.settings import MemoryMode, Settings
from tests.golden.cells import flat, pair
from tests.hosts.build import GPU
from tests.hosts.cells_judge import cells_of, record
from tests.hosts.edits import with_device, without_device
from tests.hosts.guard import no_real_host  # noqa: F401
from tests.hosts.judge import without_ours
from tests.hosts.machines import two_sockets
from tests.hosts.passthrough import passed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_sockets().write(tmp_path_factory.mktemp("two-sockets"))


def _given(xml: bytes, root: Path) -> bytes:
    result = place(xml, Request(root=root, cells=True))
    assert result.outcome is Outcome.PLACED and result.cells is not None
    return result.xml


ASKING = [
    # (metadata, host-wide, caller) -> cells
    (None, False, None, False),
    (None, True, None, True),
    (None, False, True, True),
    (None, True, False, False),
    ("auto", False, None, True),
    ("auto", False, False, False),
    ("off", True, None, False),
    ("off", True, True, False),
]


@pytest.mark.parametrize(("owner", "host_wide", "caller", "given"), ASKING)
def test_the_owners_off_counts_most_then_the_caller_then_the_owners_auto_then_the_configuration(
    owner: str, host_wide: bool, caller: bool, given: bool, root: Path
) -> None:
    domain = pair() if owner is None else pair().metadata(cells=owner)
    xml = domain.raw()
    result = place(xml, Request(root=root, cells=caller, settings=Settings(cells=host_wide)))
    assert (result.cells is not None, result.xml != xml) == (given, given)


def test_which_cpus_this_process_may_use_and_which_are_isolated_changes_nothing(root: Path, tmp_path: Path) -> None:
    """A service's cpuset is not QEMU's, and what is isolated is kept free for guests."""
    wanted = _given(pair().raw(), root)
    here = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(here)})
        assert _given(pair().raw(), root) == wanted
    finally:
        os.sched_setaffinity(0, here)
    isolated = two_sockets().write(tmp_path)
    (isolated / "sys/devices/system/cpu/isolated").write_text("1-7\n")
    assert _given(pair().raw(), isolated) == wanted


def test_policy_off_gets_none(root: Path) -> None:
    xml = pair().metadata(policy="off", cells="auto").raw()
    assert place(xml, Request(root=root, cells=True)).xml == xml


def test_a_word_that_means_nothing_is_an_error_and_places_nothing(root: Path) -> None:
    xml = pair().metadata(cells="yes").raw()
    result = place(xml, Request(root=root, cells=True))
    assert (result.outcome, result.reason, result.xml) == (Outcome.FALLBACK, Reason.BAD_VALUE, xml)
    assert "neither auto nor off" in (result.message or "")


VALUES = [
    ("vcpu", "<vcpu>x</vcpu>"), ("vcpu", "<vcpu>0</vcpu>"), ("vcpu", "<vcpu cpuset='a'>4</vcpu>"),
    ("memory", "<memory unit='KiX'>4</memory>"),
    ("memory", "<memory>-4</memory>"), ("memory", "<memory/>"), ("memory", "<memory unit='EiB'>99999999</memory>"),
    ("cputune", "<cputune><vcpupin vcpu='0' cpuset='1-'/></cputune>"), ("cputune", "<cputune><vcpupin vcpu='z' cpuset='1'/></cputune>"),
    ("numatune", "<numatune><memory mode='loose' nodeset='0'/></numatune>"),
    ("memoryBacking", "<memoryBacking><hugepages><page size='x'/></hugepages></memoryBacking>"),
    ("cpu", "<cpu><topology sockets='1' cores='1' threads='q'/></cpu>"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), VALUES)
def test_a_strange_value_is_a_fallback_that_names_its_element(name: str, text: str, root: Path) -> None:
    xml = pair(**{name: text}).raw()
    result = place(xml, Request(root=root, cells=True))
    assert (result.outcome, result.reason, result.xml) == (Outcome.FALLBACK, Reason.BAD_VALUE, xml)
    tags = re.findall(r"<(\w+)", text)
    assert any(f"<{tag}" in (result.message or "") for tag in tags), result.message


# The way back.

DRESSES = [
    lambda xml: xml,
    lambda xml: xml.replace("'", '"'),
    lambda xml: re.sub(r">\s+<", "><", xml),
    lambda xml: xml.replace("\n", "\r\n"),
    lambda xml: xml.replace("  <memory unit", "  <metadata/>\n  <memory unit"),
    lambda xml: xml.replace("  <memory unit", "  <metadata>\n    <pcinuma xmlns='urn:pcinuma:domain:1'/>\n  </metadata>\n  <memory unit"),
    lambda xml: xml.replace("  <os>", "  <cputune/>\n  <numatune/>\n  <os>"),
    lambda xml: xml.replace("  <os>", "  <cputune>\n    <emulatorpin cpuset='0'/>\n  </cputune>\n  <os>"),
    lambda xml: xml.replace("  <devices>", "  <cpu mode='host-passthrough'/>\n  <devices>", 1),
    lambda xml: xml.replace("  <devices>", "  <!-- here --><cpu>\n  <numa/></cpu>\n  <devices>", 1),
]


@pytest.mark.parametrize("dress", DRESSES)
@pytest.mark.parametrize("formatted", [False, True])
def test_whatever_the_xml_looks_like_it_comes_back_byte_for_byte(dress, formatted: bool, root: Path) -> None:  # type: ignore[no-untyped-def]
    domain = pair()
    xml = dress((domain.formatted() if formatted else domain.raw()).decode()).encode()
    back = revert(_given(xml, root)).xml
    assert back.replace(b"\r\n", b"\n") == xml.replace(b"\r\n", b"\n")


def test_what_came_to_need_the_cells_keeps_them_and_is_named(root: Path) -> None:
    needs = {
        "<maxMemory>": ("  <memory unit", "  <maxMemory slots='2' unit='GiB'>8</maxMemory>\n  <memory unit"),
        "a memory device (<memory>)": ("  </devices>", "    <memory model='dimm'/>\n  </devices>"),
        "<page nodeset='…'> in <hugepages>": (
            "  <vcpu", "  <memoryBacking><hugepages><page size='2' unit='M' nodeset='1'/></hugepages></memoryBacking>\n  <vcpu",
        ),
        "<node> of PCI controller 40": (
            "  </devices>",
            "    <controller type='pci' index='40' model='pcie-expander-bus'><target><node>1</node></target></controller>\n  </devices>",
        ),
        "<acpi nodeset='…'> of a device": ("  </devices>", "    <hostdev><acpi nodeset='1'/></hostdev>\n  </devices>"),
    }  # fmt: skip
    given = _given(pair().raw(), root).decode()
    for named, (old, new) in needs.items():
        changed = given.replace(old, new, 1).encode()
        result = revert(changed)
        assert named in (result.message or ""), result.message
        assert len(cells_of(result.xml)) == 2 and record(result.xml) is not None
        assert b"<pcinuma:placement" not in result.xml
        again = revert(result.xml)
        assert (again.outcome, again.xml) == (Outcome.UNCHANGED, result.xml) and named in (again.message or "")


# The owner.


def test_an_owner_who_defines_the_domain_without_cells_gets_the_same_again(root: Path) -> None:
    xml = pair().metadata(cells="auto").formatted()
    first = _given(xml, root)
    assert _given(xml, root) == first
    tree = etree.fromstring(first)
    for path in ("cpu", "numatune"):
        tree.remove(tree.find(path))
    without = etree.tostring(tree)
    result = place(without, Request(root=root))
    assert result.cells is not None and result.cells == place(first, Request(root=root)).cells
    assert [cell.attrib for cell in cells_of(result.xml)] == [cell.attrib for cell in cells_of(first)]
    assert revert(result.xml).outcome is Outcome.PLACED and not cells_of(revert(result.xml).xml)


def test_cells_that_the_owner_changed_are_his_and_only_the_record_goes(root: Path) -> None:
    given = _given(pair().raw(), root)
    tree = etree.fromstring(given)
    tree.find("cpu/numa").append(etree.fromstring("<cell id='2' memory='1048576' unit='KiB'/>"))
    his = etree.tostring(tree)
    result = place(his, Request(root=root, cells=True))
    assert (result.outcome, result.reason, result.cells) == (Outcome.PLACED, Reason.ALREADY_PLACED, None)
    assert "record of cells" in (result.message or "")
    assert record(result.xml) is None and len(cells_of(result.xml)) == 3
    again = place(result.xml, Request(root=root, cells=True))
    assert (again.outcome, again.xml) == (Outcome.UNCHANGED, result.xml)
    back = revert(result.xml)
    assert len(cells_of(back.xml)) == 3 and b"memnode" in back.xml and b"vcpupin" in back.xml


@pytest.mark.parametrize(
    "record_text",
    ["<cells xmlns='urn:pcinuma:domain:1'/>", "<p:cells xmlns:p='urn:pcinuma:domain:1'><p:cell id='x'/></p:cells>"],
)
def test_a_record_that_means_nothing_takes_nothing_out(record_text: str, root: Path) -> None:
    given = _given(pair().raw(), root).decode()
    changed = re.sub(r"<pcinuma:cells.*?</pcinuma:cells>", record_text, given, flags=re.DOTALL).encode()
    assert len(cells_of(revert(changed).xml)) == 2
    result = place(changed, Request(root=root))
    assert result.outcome is Outcome.PLACED and record(result.xml) is None and len(cells_of(result.xml)) == 2


# Other cells.


def _seen(xml: bytes) -> dict[str, str]:
    return {device.source: str(device.at) for device in passed(xml)}


def test_a_device_that_comes_later_on_another_node_has_no_cell_until_replan(root: Path) -> None:
    one = _given(flat().formatted(), root)
    two = with_device("b3:00.0")(one)
    stays = place(two, Request(root=root, cells=True))
    lines = {device.source: device.reason for device in stays.devices}
    assert (stays.outcome, lines["0000:b3:00.0"]) == (Outcome.UNCHANGED, Reason.NO_CELL)
    assert "`pcinuma cells guest --replan` shows" in (stays.message or "")
    other = place(two, Request(root=root, replan_cells=True))
    assert other.outcome is Outcome.PLACED and all(device.placed for device in other.devices)
    assert other.cells is not None and [(cell.host_node, cell.vcpus) for cell in other.cells] == [(0, "0-1"), (1, "2-3")]
    assert _seen(other.xml)["0000:17:00.0"] == _seen(one)["0000:17:00.0"]
    assert not cells_of(revert(other.xml).xml)


def test_replan_with_fewer_nodes_lays_the_placement_out_for_those(root: Path) -> None:
    fewer = without_device("17:00.0")(_given(pair().formatted(), root))
    result = place(fewer, Request(root=root, replan_cells=True))
    assert result.outcome is Outcome.PLACED and result.cells is not None
    assert [(cell.cell, cell.host_node) for cell in result.cells] == [(0, 1)]
    assert {int(node.text) for node in etree.fromstring(result.xml).iter("node")} == {0}


def test_replan_that_comes_to_the_same_changes_nothing(root: Path) -> None:
    given = _given(pair().formatted(), root)
    result = place(given, Request(root=root, replan_cells=True))
    assert (result.outcome, result.xml) == (Outcome.UNCHANGED, given)
    looser = place(given, Request(root=root, replan_cells=True, memory=MemoryMode.PREFERRED))
    assert looser.outcome is Outcome.PLACED and looser.xml.count(b"mode='preferred'") == 2


def test_where_there_are_no_cells_today_those_that_stand_stay(tmp_path: Path) -> None:
    host = two_sockets()
    given = _given(pair().formatted(), host.write(tmp_path / "then"))
    host.nodes[1].memory_kib = 1024
    result = place(given, Request(root=host.write(tmp_path / "now"), replan_cells=True))
    assert (result.outcome, result.xml) == (Outcome.FALLBACK, given)
    assert "the guest's cells stay as they are" in (result.message or "") and result.cells is not None


def test_cells_outlive_the_devices_that_they_were_written_for(root: Path) -> None:
    given = _given(flat().formatted(), root)
    result = place(without_device("17:00.0")(given), Request(root=root))
    assert cells_of(result.xml) and record(result.xml) is not None
    assert not cells_of(revert(result.xml).xml)


def test_a_host_that_changed_moves_no_cell(tmp_path: Path) -> None:
    host = two_sockets()
    given = _given(pair().formatted(), host.write(tmp_path / "then"))
    host.rc("pci0000:40", node=1).port("40:00.0").device("41:00.0", GPU)
    host.offline_cpus = {1, 2, 3}
    host.nodes[0].memory_kib = 2 << 20
    result = place(given, Request(root=host.write(tmp_path / "now"), cells=True))
    assert (result.outcome, result.xml) == (Outcome.UNCHANGED, given)


PLAIN = """<domain type='kvm'>
  <name>vm</name>
  <memory unit='GiB'>3</memory>{memory}
  <vcpu placement='static'>8</vcpu>{vcpu}
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source><address domain='0x0000' bus='0xb4' slot='0x00' function='0x0'/></source>
    </hostdev>{device}
  </devices>{end}
</domain>
"""
SHARED = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
CACHE = "<cachetune vcpus='0-1'><cache id='0' level='3' type='both' size='3' unit='MiB'/></cachetune>"
LATER = "<maxMemory slots='4' unit='GiB'>8</maxMemory>"
BESIDE = {
    "SEV": {"end": "<launchSecurity type='sev'><policy>0x0003</policy></launchSecurity>"},
    "SEV-SNP": {"end": "<launchSecurity type='sev-snp'><policy>0x30000</policy></launchSecurity>"},
    "TDX": {"end": "<launchSecurity type='tdx'><policy>0x0</policy></launchSecurity>"},
    "virtiofs": {
        "vcpu": SHARED,
        "device": "<filesystem type='mount'><driver type='virtiofs'/><source dir='/x'/><target dir='x'/></filesystem>",
    },
    "vhost-user": {
        "vcpu": SHARED,
        "device": "<interface type='vhostuser'><source type='unix' path='/x' mode='client'/><model type='virtio'/></interface>",
    },
    "cachetune": {"vcpu": f"<cputune>{CACHE}<memorytune vcpus='2'><node id='0' bandwidth='60'/></memorytune></cputune>"},
}
MEMORY_DEVICES = {
    "virtio-mem": "<target><size unit='GiB'>2</size><node>0</node><block unit='MiB'>2</block><requested unit='GiB'>1</requested></target>",
    "nvdimm": "<source><path>/x</path></source><target><size unit='GiB'>1</size><node>0</node></target>",
}


def _plain(**parts: str) -> bytes:
    return PLAIN.format(**{"memory": "", "vcpu": "", "device": "", "end": "", **parts}).encode()


@pytest.mark.parametrize("what", BESIDE)
def test_cells_come_and_go_beside_whatever_else_the_guest_has(what: str, root: Path) -> None:
    xml = _plain(**BESIDE[what])
    result = place(xml, Request(root, cells=True))
    assert result.outcome is Outcome.PLACED and result.cells is not None
    for text in BESIDE[what].values():
        assert text.partition(">")[0].encode() in result.xml
    assert without_ours(revert(result.xml).xml) == without_ours(xml)


@pytest.mark.parametrize("model", MEMORY_DEVICES)
def test_a_memory_device_needs_cells_of_its_owners(model: str, root: Path) -> None:
    xml = _plain(memory=LATER, device=f"<memory model='{model}'>{MEMORY_DEVICES[model]}</memory>")
    result = place(xml, Request(root, cells=True))
    assert (result.reason, result.xml) == (Reason.NO_CELLS, xml)
    assert f"<memory model='{model}'>" in (result.message or "")
