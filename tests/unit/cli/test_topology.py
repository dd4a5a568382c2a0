# SPDX-License-Identifier: LGPL-2.1-or-later
"""topology and capture: what they show and save of every machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Optional

import pytest

from pcinuma.cli import main
from pcinuma.host.place import HostReader
from pcinuma.host.topology import read_topology
from tests.golden.cases import CASES
from tests.hosts.build import NIC, Host, Kind
from tests.hosts.domains import two_cells
from tests.hosts.machines import MACHINES
from tests.waiting import CHECKOUT

GOLDEN = CHECKOUT / "tests/golden"


@pytest.fixture(params=sorted(MACHINES))
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    root = tmp_path / "machine"
    MACHINES[request.param]().write(root)
    return root


def unpack(archive: Path, copy: Path) -> None:
    copy.mkdir()
    subprocess.run(["tar", "xzf", str(archive), "-C", str(copy)], check=True)


def test_topology_json_is_what_was_read(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "--root", str(machine), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read_topology(machine).as_json()


def test_topology_shows_every_device_that_could_be_passed_through(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "--root", str(machine), "--all"]) == 0
    everything = capsys.readouterr().out
    assert main(["topology", "--root", str(machine)]) == 0
    short = capsys.readouterr().out
    for device in read_topology(machine).devices:
        assert f"{device.address} " in everything
        if not device.is_bridge:
            assert (f"{device.address} " in short) == (device.physfn is None)


@pytest.mark.parametrize(
    ("kind", "slot", "driver", "shown"),
    [
        (0x068000, True, None, True),  # an NVSwitch
        (0x068000, False, None, False),  # "other bridge" of the chipset
        (0x068000, False, "vfio-pci", True),
        (0x050200, True, None, True),  # CXL memory
        (0x088000, True, None, True),
        (0x0B4000, False, None, True),  # a co-processor in the root complex
        (0x060100, False, None, False),  # ISA bridge
        (0x130000, True, None, False),  # a dummy function, of which AMD has one below each internal bridge
        (0x060700, True, None, False),  # CardBus
        (0x120000, True, None, True),
        (0x0C0330, False, None, True),
    ],
)
def test_what_can_be_passed_through_has_a_line_and_the_chipset_one_for_each_root_complex(
    kind: int, slot: bool, driver: Optional[str], shown: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host().node(0, "0-3")
    root = host.rc("pci0000:16", node=0)
    function = Kind(kind, 0x10DE, 0x22A3, driver or "none")
    place = root.port("16:00.0").device("17:00.0", function) if slot else root.device("16:1f.0", function)
    tree, address = host.write(tmp_path), f"0000:{place.address[-7:]}"
    assert main(["topology", "--root", str(tree)]) == 0
    text = capsys.readouterr().out
    assert (f"{address} " in text) is shown
    bridge = kind >> 8 == 0x0607
    assert ("1 function of the chipset" in text) is (not shown and not bridge)
    assert main(["topology", "--root", str(tree), "--all"]) == 0
    assert f"{address} " in capsys.readouterr().out


def test_an_unpacked_capture_reads_like_the_machine_itself(machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive, copy = tmp_path / "capture.tar.gz", tmp_path / "copy"
    assert main(["capture", str(archive), "--root", str(machine), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"] == len(read_topology(machine).devices)
    unpack(archive, copy)
    assert read_topology(copy) == read_topology(machine)


def test_a_capture_serves_place_as_well_as_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for case in (case for case in CASES if case.name in ("forms", "vfs-without-node", "cascaded-switch", "vmd")):
        root, archive, copy = tmp_path / case.name, tmp_path / f"{case.name}.tar.gz", tmp_path / f"{case.name}-copy"
        case.host().write(root)
        assert main(["capture", str(archive), "--root", str(root)]) == 0
        unpack(archive, copy)
        capsys.readouterr()
        answers = []
        for place in (root, copy):
            main(["place", "--root", str(place), str(GOLDEN / f"{case.name}-in.xml")])
            answers.append(capsys.readouterr().out)
        assert answers[0] == answers[1], case.name


@pytest.mark.parametrize("cpuinfo", ["vendor_id\t: GenuineIntel\nflags\t: sse pdpe1gb\naddress sizes\t: 46 bits physical\nserial\t: 4711\n",
                                     "vendor_id\t: AuthenticAMD\nflags\t: sme\naddress sizes\t: 43 bits physical\n",
                                     "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Secret\n",
                                     "address sizes\t: 40 bits physical\n", "", None])  # fmt: skip
def test_a_capture_knows_of_the_cpus_what_decides_on_a_guests_address_bits(cpuinfo: Optional[str], tmp_path: Path) -> None:
    root = MACHINES["two-sockets"]().write(tmp_path / "machine")
    if cpuinfo is not None:
        (root / "proc").mkdir()
        (root / "proc/cpuinfo").write_text(cpuinfo)
    assert main(["capture", str(tmp_path / "c"), "--root", str(root)]) == 0
    unpack(tmp_path / "c", tmp_path / "copy")
    assert HostReader(tmp_path / "copy").cpu() == HostReader(root).cpu()
    saved = tmp_path / "copy/proc/cpuinfo"
    assert not saved.exists() or "4711" not in saved.read_text()


@pytest.mark.parametrize("setting", ["on", "off"])
def test_a_capture_knows_what_is_behind_emulated_devices_where_the_setting_asks_for_it(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, archive, copy = tmp_path / "machine", tmp_path / "c", tmp_path / "copy"
    MACHINES["backed"]().write(root)
    (root / "etc/pcinuma").mkdir(parents=True)
    (root / "etc/pcinuma/pcinuma.conf").write_text(f"[placement]\nnear-backing = {setting}\n")
    domain = two_cells().block("/dev/dm-1").block("/dev/nvme0n1p1", "vdc").block("/dev/nvme9n1", "vdd").direct("bond0.7").direct("eth0")
    (tmp_path / "vm.xml").write_bytes(domain.hostdev("19:00.0").raw())
    assert main(["capture", str(archive), "--root", str(root)]) == 0
    unpack(archive, copy)
    capsys.readouterr()
    answers = []
    for place_at in (root, copy):
        assert main(["place", "--root", str(place_at), "--report", str(tmp_path / "report"), str(tmp_path / "vm.xml")]) == 0
        answers.append((capsys.readouterr().out, json.loads((tmp_path / "report").read_text())))
    assert answers[0] == answers[1]
    devices = answers[0][1]["devices"]
    assert [line["guest_cell"] for line in devices] == ([1, 0, 0, 1, 0, 0] if setting == "on" else [0])
    assert (copy / "sys/class/block").exists() is (setting == "on")


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    MACHINES["sriov"]().write(tmp_path / "machine")
    for name in ("one", "two"):
        assert main(["capture", str(tmp_path / name), "--root", str(tmp_path / "machine")]) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_capture_holds_no_addresses_or_serial_numbers_of_things(tmp_path: Path) -> None:
    root = tmp_path / "machine"
    host = Host().node(0, "0")
    host.rc("pci0000:16", node=0).port("16:00.0").device("17:00.0", NIC).net("eth0")
    host.write(root)
    device = (root / "sys/bus/pci/devices/0000:17:00.0").resolve()
    (device / "vpd").write_bytes(b"SERIAL-4711")
    (device / "config").write_bytes(b"\0" * 256 + b"SERIAL-4712")
    (root / "sys/class/dmi/id").mkdir(parents=True)
    (root / "sys/class/dmi/id/product_serial").write_text("SERIAL-4713")
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/hostname").write_text("SERIAL-4714")
    assert main(["capture", str(tmp_path / "c"), "--root", str(root)]) == 0
    with tarfile.open(tmp_path / "c") as tar:
        files = [tar.extractfile(member) for member in tar if member.isfile()]
        contents = b"".join(file.read() for file in files if file is not None)
        names = " ".join(tar.getnames())
    assert b"SERIAL" not in contents
    assert not re.search(r"vpd|serial|hostname|address", names)


def test_a_capture_does_not_overwrite_a_file_unless_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MACHINES["one-node"]().write(tmp_path / "machine")
    (tmp_path / "c").write_text("precious")
    assert main(["capture", str(tmp_path / "c"), "--root", str(tmp_path / "machine")]) == 2
    assert (tmp_path / "c").read_text() == "precious"
    assert "--force" in capsys.readouterr().err
    assert main(["capture", str(tmp_path / "c"), "--root", str(tmp_path / "machine"), "--force"]) == 0


def test_host_and_guest_stand_on_one_line_when_the_guest_is_placed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MACHINES["eight-gpus"]().write(tmp_path)
    assert main(["topology", str(GOLDEN / "eight-gpus-switch-out.xml"), "--root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    devices = [line for line in lines if re.search(r"\b0000:[0-9a-f]{2}:00\.0  (3D|Ethernet|NVIDIA|Mellanox)", line)]
    assert len(devices) == 16
    for line in devices:
        letters = re.findall(r"\b([a-p]) 0000:", line)
        assert len(letters) == 2
        assert letters[0] == letters[1]


def test_topology_of_a_domain_as_json_names_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MACHINES["two-sockets"]().write(tmp_path)
    assert main(["topology", str(GOLDEN / "two-nodes-out.xml"), "--root", str(tmp_path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["host"] == read_topology(tmp_path).as_json()
    assert {device["source"]: device["guest_cell"] for device in data["guest"]["devices"]} == {"0000:17:00.0": 0, "0000:b3:00.0": 1}


def test_this_very_machine_can_be_drawn_and_captured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not os.path.isdir("/sys/bus/pci/devices"):
        pytest.skip("this machine has no PCI")
    assert main(["topology"]) == 0
    assert main(["capture", str(tmp_path / "c")]) == 0
