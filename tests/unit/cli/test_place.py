# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma place`` as others build on it: the real command, its exit codes, its bytes, its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Callable, Optional

import pytest

from tests.golden.cases import BY_NAME, FOLDER
from tests.hosts.build import unreadable
from tests.hosts.command import CHECKOUT, Command
from tests.hosts.domains import Domain, two_cells
from tests.hosts.guest import Guest
from tests.hosts.judge import DEVICE_KEYS, REPORT_KEYS, judge
from tests.hosts.machines import MACHINES, MDEV
from tests.hosts.passthrough import passed


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def _pair(domain: Domain) -> Domain:
    return domain.hostdev("17:00.0").hostdev("b3:00.0")


def test_a_placed_domain_comes_out_on_stdout_and_the_report_has_the_frozen_keys(command: Command) -> None:
    xml = _pair(two_cells()).raw()
    answer = command.on("two-sockets").place(xml)
    assert answer.code == 0 and answer.report is not None
    assert list(answer.report) == REPORT_KEYS
    assert [list(line) for line in answer.report["devices"]] == [DEVICE_KEYS] * 2
    judge(xml, answer.out, MACHINES["two-sockets"](), answer.report)


@pytest.mark.parametrize("name", ["two-nodes", "eight-gpus-switch", "forms", "multifunction", "ambiguous"])
def test_the_command_gives_the_golden_files_byte_for_byte(name: str, command: Command) -> None:
    case = BY_NAME[name]
    arguments = ["--group-by", case.group_by] if case.group_by else []
    answer = command.on(str(case.machine)).place((FOLDER / f"{name}-in.xml").read_bytes(), *arguments)
    assert answer.out == (FOLDER / f"{name}-out.xml").read_bytes()
    assert answer.report == json.loads((FOLDER / f"{name}.json").read_bytes())


def test_a_file_a_dash_and_no_argument_are_the_same(command: Command) -> None:
    xml = _pair(two_cells()).raw()
    command.on("two-sockets")
    assert command.place(xml).out == command.place(xml, "-").out == command.place(xml, file=True).out


def test_the_same_input_gives_the_same_bytes_whatever_the_hash_seed(command: Command) -> None:
    xml = (FOLDER / "forms-in.xml").read_bytes()
    command.on("mediated")
    outs = set()
    for seed in ("0", "1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(CHECKOUT)}
        arguments = [sys.executable, "-m", "pcinuma", "place", "--root", str(command.root), "-"]
        outs.add(subprocess.run(arguments, input=xml, capture_output=True, cwd=command.directory, env=environment, check=True).stdout)
    assert len(outs) == 1


_FALLBACKS: dict[str, Callable[[Path], None]] = {
    "numa_node is garbage": lambda root: (root / "sys/bus/pci/devices/0000:17:00.0/numa_node").write_text("what\n") and None,
    "numa_node is empty": lambda root: (root / "sys/bus/pci/devices/0000:17:00.0/numa_node").write_text("") and None,
    "numa_node is unreadable": lambda root: unreadable(root / "sys/bus/pci/devices/0000:17:00.0/numa_node"),
    "the device is gone": lambda root: (root / "sys/bus/pci/devices/0000:17:00.0").unlink(),
    "the device's link goes nowhere": lambda root: _relink(root / "sys/bus/pci/devices/0000:17:00.0", "../../../devices/nowhere"),
}


def _relink(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


@pytest.mark.parametrize("what", sorted(_FALLBACKS))
def test_falls_back_byte_for_byte_when(what: str, command: Command) -> None:
    xml = _pair(two_cells().with_extras()).formatted()
    command.on("two-sockets")
    _FALLBACKS[what](command.root)
    answer = command.place(xml)
    reason = "device-absent" if "gone" in what or "nowhere" in what else "host-unreadable"
    answer.leaves(xml, "fallback", reason)
    assert answer.report is not None and "0000:17:00.0" in answer.report["message"]
    assert {line["source"] for line in answer.report["devices"]} == {"0000:17:00.0", "0000:b3:00.0"}


def test_a_missing_numa_node_file_is_no_affinity_and_the_others_are_placed(command: Command) -> None:
    command.on("two-sockets")
    (command.root / "sys/bus/pci/devices/0000:17:00.0/numa_node").unlink()
    answer = command.place(_pair(two_cells()).raw())
    assert answer.line("0000:17:00.0")["reason"] == "no-affinity"
    assert answer.line("0000:17:00.0")["host_node"] is None
    assert answer.line("0000:b3:00.0")["placed"] is True


@pytest.mark.parametrize("node", ["-1", "-2", "-2147483648"])
def test_any_negative_node_counts_as_unknown(node: str, command: Command) -> None:
    command.on("two-sockets")
    device = command.root / "sys/bus/pci/devices/0000:17:00.0"
    (device / "numa_node").write_text(f"{node}\n")
    (device / "local_cpulist").write_text("0-15\n")
    assert command.place(_pair(two_cells()).raw()).line("0000:17:00.0")["reason"] == "no-affinity"


def test_a_node_that_is_not_online_is_no_affinity(command: Command) -> None:
    command.on("two-sockets")
    (command.root / "sys/devices/system/node/online").write_text("1\n")
    answer = command.place(_pair(two_cells()).raw())
    assert (answer.line("0000:17:00.0")["reason"], answer.line("0000:b3:00.0")["placed"]) == ("no-affinity", True)


_CPULISTS = [("0-7", 0), ("8-15", 1), ("3", 0), ("0-3,5", 0), ("6-9", None), ("0-15", None), ("", None), (None, None)]


@pytest.mark.parametrize(("cpulist", "node"), _CPULISTS)
def test_local_cpulist_helps_where_it_is_a_proper_part_of_the_machine(
    cpulist: Optional[str], node: Optional[int], command: Command
) -> None:
    command.on("two-sockets")
    device = command.root / "sys/bus/pci/devices/0000:17:00.0"
    (device / "numa_node").write_text("-1\n")
    (device / "local_cpulist").unlink()
    if cpulist is not None:
        (device / "local_cpulist").write_text(f"{cpulist}\n")
    line = command.place(_pair(two_cells()).raw()).line("0000:17:00.0")
    assert (line["host_node"], line["placed"]) == (node, node is not None)


@pytest.mark.parametrize("cpulist", ["zero", "7-3", "0-", "0,,1", "1 2", "0x3"])
def test_a_garbage_local_cpulist_falls_back(cpulist: str, command: Command) -> None:
    command.on("two-sockets")
    device = command.root / "sys/bus/pci/devices/0000:17:00.0"
    (device / "numa_node").write_text("-1\n")
    (device / "local_cpulist").write_text(f"{cpulist}\n")
    xml = _pair(two_cells()).raw()
    command.place(xml).leaves(xml, "fallback", "host-unreadable")


# Exit codes.


@pytest.mark.parametrize("xml", [b"", b"not xml", b"<network/>", b"<domain>", b"\x00", "<domäin/>".encode()])
def test_input_that_is_no_domain_exits_2_with_one_line_and_nothing_on_stdout(xml: bytes, command: Command) -> None:
    answer = command.on("one-node").place(xml)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, b"", 1), answer.err
    assert answer.err.strip()


@pytest.mark.parametrize(
    "arguments",
    [["--group-by", "socket"], ["--policy", "off"], ["--policy", "strict"], ["--bogus"], ["one", "two"], ["--report"], ["--json"]],
)
def test_wrong_usage_exits_2_with_one_line_and_nothing_on_stdout(arguments: list[str], command: Command) -> None:
    answer = command.on("one-node").run("place", "--root", str(command.root), *arguments, stdin=two_cells().raw())
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, b"", 1), answer.err


def test_a_root_without_sys_exits_2_and_names_it(command: Command) -> None:
    command.root.mkdir()
    answer = command.place(two_cells().hostdev("17:00.0").raw())
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, b"", 1), answer.err
    assert str(command.root) in answer.err


def test_a_file_that_is_not_there_exits_2(command: Command) -> None:
    answer = command.on("one-node").run("place", "--root", str(command.root), str(command.directory / "none.xml"))
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, b"", 1), answer.err


def test_a_report_that_cannot_be_written_is_said_in_one_line(command: Command) -> None:
    answer = command.on("one-node").run("place", "--root", str(command.root), "--report", "/nowhere/report.json", stdin=two_cells().raw())
    assert answer.code in (1, 2) and answer.err.count("\n") == 1 and "/nowhere/report.json" in answer.err


def test_the_report_may_go_to_a_file_that_exists(command: Command) -> None:
    command.on("one-node")
    (command.directory / "report.json").write_text("old " * 1000)
    done = command.run("place", "--root", str(command.root), "--report", str(command.directory / "report.json"), stdin=two_cells().raw())
    assert done.code == 0
    assert json.loads((command.directory / "report.json").read_text())["outcome"] == "unchanged"


def test_strange_values_in_a_domain_are_a_fallback_and_no_error(command: Command) -> None:
    command.on("two-sockets")
    good = _pair(two_cells()).raw()
    for old, new in (
        (b"nodeset='0'", b"nodeset='all'"),
        (b"<cell id='0'", b"<cell id='first'"),
        (b"cpus='0-1'", b"cpus='1-0'"),
        (b"bus='0x17'", b"bus='0xq'"),
        (b"bus='0x17'", b"bus='0x177'"),
    ):
        xml = good.replace(old, new, 1)
        assert xml != good
        answer = command.place(xml)
        answer.leaves(xml, "fallback", "bad-value")
        assert answer.report is not None and answer.report["message"]


# Devices that are not what they seem.


def test_a_kept_device_is_not_even_looked_up(command: Command) -> None:
    command.on("two-sockets")
    unreadable(command.root / "sys/bus/pci/devices/0000:b3:00.0/numa_node")
    answer = command.place(_pair(two_cells().keep("0000:b3:00.0")).raw())
    assert (answer.code, answer.line("0000:17:00.0")["placed"], answer.line("0000:b3:00.0")["reason"]) == (0, True, "kept")


def test_what_shares_a_guest_slot_with_a_kept_device_stays_too(command: Command) -> None:
    xml = (FOLDER / "multifunction-in.xml").read_bytes()
    keep = b"<metadata><p:pcinuma xmlns:p='urn:pcinuma:domain:1'><p:keep device='0000:17:00.1'/></p:pcinuma></metadata><memory"
    answer = command.on("multifunction-gpu").place(xml.replace(b"<memory", keep, 1))
    assert [answer.line(f"0000:17:00.{n}")["placed"] for n in range(4)] == [False] * 4
    assert answer.line("0000:17:00.1")["reason"] == "kept"
    assert answer.line("0000:65:00.0")["placed"] is True


@pytest.mark.parametrize("kept", ["0000:99:00.0", "", "nonsense"])
def test_an_unknown_name_in_keep_is_ignored(kept: str, command: Command) -> None:
    answer = command.on("two-sockets").place(_pair(two_cells().keep(kept)).raw())
    assert answer.report is not None and answer.report["outcome"] == "placed"


def test_keep_names_each_form_by_its_source(command: Command) -> None:
    sources = [MDEV, "0000:19:00.0#1", "/dev/vhost-vdpa-0"]
    domain = two_cells().mdev(MDEV).nvme("19:00.0").vdpa(0).hostdev("3b:01.1")
    for source in sources:
        domain.keep(source)
    answer = command.on("mediated").place(domain.formatted())
    assert [answer.line(source)["reason"] for source in sources] == ["kept"] * 3
    assert answer.line("0000:3b:01.1")["placed"] is True


def test_a_memnode_for_no_cell_and_a_vcpu_in_no_cell_are_ignored(command: Command) -> None:
    answer = command.on("two-sockets").place(_pair(two_cells().memnode(7, "0").vcpupin(99, "0-7")).raw())
    assert answer.report is not None and [line["placed"] for line in answer.report["devices"]] == [True, True]


def test_the_report_lists_what_the_guest_does_not_get(command: Command) -> None:
    domain = two_cells().hostdev("17:00.0", "unassigned").nvme("19:00.0", 3, bus="sata", target="sda").hostdev("b3:00.0")
    answer = command.on("two-sockets").place(domain.raw())
    assert answer.line("0000:17:00.0")["reason"] == "unassigned"
    assert answer.line("0000:17:00.0")["guest_address"] is None
    assert answer.line("0000:19:00.0#3")["reason"] == "not-pci"


def test_two_namespaces_of_one_drive_are_two_devices(command: Command) -> None:
    domain = two_cells().nvme("19:00.0", 1, target="vda").nvme("19:00.0", 2, target="vdb")
    xml = domain.formatted()
    answer = command.on("two-sockets").place(xml)
    assert answer.report is not None
    assert [line["source"] for line in answer.report["devices"]] == ["0000:19:00.0#1", "0000:19:00.0#2"]
    judge(xml, answer.out, MACHINES["two-sockets"](), answer.report)


def test_a_network_stays_where_it_is_and_only_libvirt_could_tell_whether_it_is_a_pool(command: Command) -> None:
    domain = two_cells().pool("vf-pool").hostdev("17:00.0")
    xml = domain.formatted()
    answer = command.on("two-sockets").place(xml)
    assert answer.report is not None and answer.report["outcome"] == "placed"
    before, after = Guest.of(xml), Guest.of(answer.out)
    assert [e.at for e in before.endpoints if e.name == "interface"] == [e.at for e in after.endpoints if e.name == "interface"]
    pools = [line for line in answer.report["devices"] if line["form"] == "network-pool"]
    assert all((line["source"], line["placed"]) == ("vf-pool#52:54:00:00:00:01", False) for line in pools)


def test_an_inactive_mdev_leaves_the_whole_domain_as_it_is(command: Command) -> None:
    xml = two_cells().mdev("00000000-0000-0000-0000-000000000001").hostdev("17:00.0").formatted()
    command.on("mediated").place(xml).leaves(xml, "fallback", "device-absent")


def test_an_mdev_uuid_in_capitals_is_the_same_device(command: Command) -> None:
    xml = two_cells().mdev(MDEV.upper()).formatted()
    answer = command.on("mediated").place(xml)
    assert answer.report is not None and answer.report["outcome"] == "placed", answer.report


def test_usb_and_sata_controllers_are_devices_like_any_other(command: Command) -> None:
    xml = two_cells().hostdev("00:14.0").hostdev("00:17.0").raw()
    answer = command.on("two-sockets").place(xml)
    assert answer.report is not None
    assert [line["placed"] for line in answer.report["devices"]] == [True, True]
    judge(xml, answer.out, MACHINES["two-sockets"](), answer.report)


def test_comments_and_foreign_elements_survive(command: Command) -> None:
    answer = command.on("two-sockets").place(_pair(two_cells().with_extras()).raw())
    assert b"<!-- the owner's comment: leave the tablet -->" in answer.out
    assert b"s&amp;cret" in answer.out
    assert b"  a  b </o:ticket>" in answer.out
    assert len(passed(answer.out)) == 2


def test_an_xml_declaration_and_a_comment_before_the_domain_survive(command: Command) -> None:
    xml = b"<?xml version='1.0' encoding='utf-8'?>\n<!-- made by hand -->\n" + _pair(two_cells()).raw()
    answer = command.on("two-sockets").place(xml)
    assert answer.report is not None and answer.report["outcome"] == "placed"
    assert b"<!-- made by hand -->" in answer.out


def test_an_entity_is_not_expanded_into_the_domain(command: Command) -> None:
    secret = command.directory / "secret"
    secret.write_text("tops3cret")
    declaration = f'<!DOCTYPE domain [<!ENTITY x SYSTEM "file://{secret}">]>'.encode()
    xml = declaration + _pair(two_cells()).raw().replace(b"<name>guest", b"<name>&x;guest")
    answer = command.on("two-sockets").place(xml)
    assert b"tops3cret" not in answer.out + answer.err.encode()


# Topology.


def test_topology_is_read_below_the_root(command: Command) -> None:
    answer = command.on("cascaded-switches").run("topology", "--root", str(command.root), "--json")
    assert answer.code == 0, answer.err
    assert "0000:24:00.0" in answer.out.decode() and json.loads(answer.out)
    text = command.run("topology", "--root", str(command.root))
    assert text.code == 0 and "24:00.0" in text.out.decode()


def test_topology_of_a_root_without_sys_exits_2(command: Command) -> None:
    command.root.mkdir()
    answer = command.run("topology", "--root", str(command.root))
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, b"", 1), answer.err
