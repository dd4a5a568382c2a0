# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma paths``: which way traffic goes, from configuration spaces and links that the tests' hosts plant."""

from __future__ import annotations

import json
import re
import struct
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcinuma.cli import main
from pcinuma.engine import Request, place
from pcinuma.host.pci_config import SIZE, read_config, without_identity
from pcinuma.settings import GroupBy
from tests.hosts.build import DOWNSTREAM, GPU, NIC, NVME, ROOT_PORT, UPSTREAM, Function, Host
from tests.hosts.domains import two_cells
from tests.hosts.machines import MACHINES
from tests.hosts.memory import MEMORY
from tests.hosts.strategies import hosts
from tests.hosts.sysfs import SERIAL

REDIRECT, TRANSLATED = 1 << 2, 1 << 6
ALL = 0x7F
LINUX = 0x1D  # what pci_enable_acs of Linux switches on: source validation, both redirects, upstream forwarding


def server() -> Host:
    """One switch with GPUs 24:00.0 and 25:00.0, NIC 26:00.0 and drive 27:00.0; a NIC on another port, 30:00.0, and on node 1, 81:00.0."""
    host = Host().node(0, "0-7").node(1, "8-15")
    root = host.rc("pci0000:20", node=0)
    ports = root.port("20:01.0").switch("21:00.0", [f"22:{slot:02x}.0" for slot in range(4)])
    for port, bus, kind in zip(ports, (0x24, 0x25, 0x26, 0x27), (GPU, GPU, NIC, NVME)):
        port.acs = (ALL, LINUX)
        port.device(f"{bus:02x}:00.0", kind)
    root.port("20:02.0").device("30:00.0", NIC)
    host.rc("pci0000:80", node=1).port("80:01.0").device("81:00.0", NIC)
    return host


def answer(capsys: pytest.CaptureFixture[str], host: Host, root: Path, *arguments: str) -> dict[str, Any]:
    host.write(root)
    assert main(["paths", *arguments, "--root", str(root), "--json"]) == 0
    answered: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answered


def pair(answered: dict[str, Any], one: str, other: str) -> dict[str, Any]:
    found = [p for p in answered["pairs"] if {p["first"], p["second"]} == {f"0000:{one}:00.0", f"0000:{other}:00.0"}]
    assert len(found) == 1
    result: dict[str, Any] = found[0]
    return result


def ports_of(host: Host) -> list[Function]:
    return [f for f in host.functions.values() if f.port_type == DOWNSTREAM]


# On the host.


@pytest.mark.parametrize("kind", ["identity", None])
def test_without_redirect_and_translation_the_switch_passes_requests_on(
    kind: Optional[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = server()
    host.iommu_type = kind
    for port in ports_of(host):
        port.acs = (ALL, 0)
    answered = answer(capsys, host, tmp_path)
    assert pair(answered, "24", "25")["verdict"] == pair(answered, "24", "26")["verdict"] == "direct"


def test_a_port_without_acs_redirects_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = server()
    host.iommu_type = "identity"
    for port in ports_of(host):
        port.acs = None
    assert pair(answer(capsys, host, tmp_path), "24", "25")["verdict"] == "direct"


@pytest.mark.parametrize("redirecting", ["22:00.0", "22:02.0"])
def test_acs_redirect_at_either_devices_port_is_found_and_its_cost_said(
    redirecting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = server()
    host.iommu_type = "identity"
    for port in ports_of(host):
        port.acs = (ALL, LINUX if port.address == f"0000:{redirecting}" else 0)
    answered = answer(capsys, host, tmp_path)
    found = pair(answered, "24", "26")
    assert found["verdict"] == "redirected" and found["host"] == "PIX"
    assert f"pci=disable_acs_redir=0000:{redirecting};" in found["advice"] and "gives up the isolation" in found["advice"]
    assert pair(answered, "25", "27")["verdict"] == "direct"


def test_an_iommu_that_translates_sends_requests_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = server()
    for port in ports_of(host):
        port.acs = (ALL, 0)
    found = pair(answer(capsys, host, tmp_path), "24", "26")
    assert found["verdict"] == "redirected" and "DMA-FQ" in found["why"] and "iommu=pt" in found["advice"]


def test_without_a_shared_switch_requests_pass_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answered = answer(capsys, server(), tmp_path)
    assert (pair(answered, "24", "30")["host"], pair(answered, "24", "30")["verdict"]) == ("PHB", "cpu")
    assert (pair(answered, "24", "81")["host"], pair(answered, "24", "81")["verdict"]) == ("SYS", "remote")


def test_what_only_root_may_read_is_not_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = server()
    host.write(tmp_path)
    for function in host.functions.values():
        file = tmp_path / "sys" / function.path / "config"
        file.write_bytes(file.read_bytes()[:64])
    assert main(["paths", "--root", str(tmp_path), "--json"]) == 0
    answered = json.loads(capsys.readouterr().out)
    assert pair(answered, "24", "26")["verdict"] == "unknown" and "root" in pair(answered, "24", "26")["why"]
    assert {device["ats"] for device in answered["devices"]} == {None}


def redirects(host: Host, one: Function, other: Function) -> bool:
    """The same from the model: does a downstream port below the lowest shared bridge, above either device, redirect?"""
    mine, yours = one.chain(), other.chain()
    between = [f for f in [*mine, *yours] if not (f in mine and f in yours) and f.port_type in (DOWNSTREAM, ROOT_PORT)]
    return any(f.acs is not None and f.acs[1] & REDIRECT for f in between)


def shares_switch(host: Host, one: Function, other: Function) -> bool:
    return bool(host.switches_of(one.address)) and host.switches_of(one.address)[:1] and any(
        f.port_type == UPSTREAM and f in other.chain() for f in one.chain()
    )


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(hosts(), st.data())
def test_any_redirect_on_any_tree_of_switches_is_found(host: Host, data: Any) -> None:
    host.iommu_type = "identity"
    for function in host.functions.values():
        if function.port_type in (ROOT_PORT, DOWNSTREAM, UPSTREAM):
            function.acs = data.draw(st.sampled_from([None, (ALL, 0), (ALL, 0), (ALL, LINUX), (ALL, REDIRECT), (ALL, ALL & ~REDIRECT)]))
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        root = host.write(Path(directory))
        file = root / "answer"
        with file.open("w") as out, pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", out)
            assert main(["paths", "--root", str(root), "--json"]) == 0
        answered = json.loads(file.read_text())
    for found in answered["pairs"]:
        one, other = host.functions[found["first"]], host.functions[found["second"]]
        if one.address[:-2] == other.address[:-2]:
            assert found["verdict"] == "direct"
        elif shares_switch(host, one, other):
            assert found["verdict"] == ("redirected" if redirects(host, one, other) else "direct"), found
        else:
            assert found["verdict"] in ("cpu", "remote", "unknown")


# In a guest.


def guest(tmp_path: Path, host: Host, group_by: Optional[GroupBy] = None, *, sources: tuple[str, ...] = ("24", "25", "26", "27")) -> str:
    domain = two_cells()
    for source in sources:
        domain.hostdev(f"{source}:00.0")
    xml = domain.formatted()
    if group_by is not None:
        xml = place(xml, Request(root=host.write(tmp_path / "for-placing"), group_by=group_by)).xml
    (tmp_path / "vm.xml").write_bytes(xml)
    return str(tmp_path / "vm.xml")


@pytest.mark.parametrize(
    ("ats", "control", "verdict", "why", "advice"),
    [
        (None, LINUX, "redirected", "without ATS in 0000:26:00.0", None),
        (False, LINUX, "redirected", "ATS is off in 0000:26:00.0", "ATS_ENABLED=1"),
        (True, LINUX, "redirected", "sends translated requests up", "pci=config_acs=1xxxxxx@0000:22:00.0;1xxxxxx@0000:22:02.0 "),
        (True, LINUX | TRANSLATED, "direct", "translated (ATS)", None),
        (True, 0, "direct", "translated (ATS)", None),
        (None, 0, "redirected", "without ATS", None),
    ],
)
def test_in_a_guest_the_nic_must_have_its_addresses_translated(
    ats: Optional[bool], control: int, verdict: str, why: str, advice: Optional[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = server()
    host.functions["0000:26:00.0"].ats = ats
    for port in ports_of(host):
        port.acs = (ALL, control)
    found = pair(answer(capsys, host, tmp_path / "host", guest(tmp_path, host)), "24", "26")
    assert found["verdict"] == verdict and why in found["why"]
    assert (found["advice"] is None) == (advice is None) and (advice or "") in (found["advice"] or "")


def test_a_port_that_cannot_pass_translated_requests_on_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = server()
    host.functions["0000:26:00.0"].ats = True
    host.functions["0000:22:02.0"].acs = (ALL & ~TRANSLATED, LINUX)
    found = pair(answer(capsys, host, tmp_path / "host", guest(tmp_path, host)), "24", "26")
    assert found["verdict"] == "redirected" and "no direct translated requests at 0000:22:02.0" in found["why"]


@pytest.mark.parametrize(
    ("group_by", "seen", "hidden"), [(None, "PHB", True), (GroupBy.ROOT_COMPLEX, "PHB", True), (GroupBy.SWITCH, "PIX", False)]
)
def test_the_guests_distance_is_beside_the_hosts(
    group_by: Optional[GroupBy], seen: str, hidden: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = server()
    answered = answer(capsys, host, tmp_path / "host", guest(tmp_path, host, group_by))
    found = pair(answered, "24", "26")
    assert (found["host"], found["guest"], found["nccl_gpudirect_rdma_hidden"]) == ("PIX", seen, hidden)
    assert not pair(answered, "26", "27")["nccl_gpudirect_rdma_hidden"]
    assert {device["atomicops"] for device in answered["devices"]} == {group_by is not GroupBy.SWITCH}


def test_the_hosts_own_view_has_no_guest_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answered = answer(capsys, server(), tmp_path)
    assert answered["domain"] is None and {found["guest"] for found in answered["pairs"]} == {None}
    assert len(answered["devices"]) == 6 and {device["kind"] for device in answered["devices"]} == {"gpu", "nic", "drive"}


def test_vfs_go_the_ways_of_their_pf_and_are_not_listed_for_the_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answered = answer(capsys, MACHINES["sriov"](), tmp_path)
    assert [device["device"] for device in answered["devices"]] == ["0000:3b:00.0", "0000:d8:00.0"]


# Links.


@pytest.mark.parametrize(
    ("kind", "now", "says"),
    [
        (NIC, ("16.0 GT/s PCIe", "8"), "fewer lanes than both ends have: 0000:26:00.0"),
        (NIC, ("8.0 GT/s PCIe", "16"), "slower than both ends can: 0000:26:00.0; reseat"),
        (GPU, ("2.5 GT/s PCIe", "16"), "slower than both ends can: 0000:26:00.0; idle GPUs"),
        (GPU, ("2.5 GT/s PCIe", "8"), "fewer lanes than both ends have: 0000:26:00.0"),
        (NIC, ("16.0 GT/s PCIe", "16"), None),
        (NIC, ("Unknown", "0"), None),
        (NIC, None, None),
    ],
)
def test_a_link_that_trained_down_is_found(
    kind: Any, now: Optional[tuple[str, str]], says: Optional[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = server()
    host.functions["0000:26:00.0"].kind = kind
    host.functions["0000:26:00.0"].now = now
    host.write(tmp_path)
    assert main(["paths", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert (says or "than both ends") in out if says else "than both ends" not in out


def test_a_card_in_a_smaller_slot_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = server()
    device = host.functions["0000:26:00.0"]
    assert isinstance(device.parent, Function)
    device.parent.link, device.now = ("16.0 GT/s PCIe", "8"), ("16.0 GT/s PCIe", "8")
    host.write(tmp_path)
    assert main(["paths", "--root", str(tmp_path)]) == 0
    assert "than both ends" not in capsys.readouterr().out


# What is read, and what a capture keeps of it.


@settings(max_examples=200)
@given(st.binary(max_size=300), st.integers(0, SIZE))
def test_any_bytes_can_be_read(data: bytes, length: int) -> None:
    whole = (data * (SIZE // max(1, len(data)) + 1))[:length] if data else bytes(length)
    read_config(whole)
    kept = without_identity(whole, 0)
    if len(whole) == SIZE:
        assert read_config(kept)[1:] == read_config(whole)[1:]


@pytest.mark.parametrize("acs", [None, (ALL, 0), (ALL, LINUX), (0x1F, LINUX), (ALL, ALL)])
@pytest.mark.parametrize("ats", [None, True, False])
def test_a_capture_keeps_acs_and_ats_and_no_serial_number(
    acs: Optional[tuple[int, int]], ats: Optional[bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = server()
    for function in host.functions.values():
        function.acs, function.ats = (acs, None) if function.port_type == DOWNSTREAM else (None, ats)
    root = host.write(tmp_path / "machine")
    assert main(["capture", str(tmp_path / "c.tar.gz"), "--root", str(root)]) == 0
    with tarfile.open(tmp_path / "c.tar.gz") as archive:
        assert all(SERIAL not in archive.extractfile(m).read() for m in archive.getmembers() if m.isfile())  # type: ignore[union-attr]
        archive.extractall(tmp_path / "copy")
    capsys.readouterr()
    answers = []
    for where in (root, tmp_path / "copy"):
        assert main(["paths", "--root", str(where), "--json"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    assert SERIAL in (root / "sys" / host.functions["0000:24:00.0"].path / "config").read_bytes()


def test_a_list_of_capabilities_that_runs_in_a_circle_ends() -> None:
    data = bytearray(SIZE)
    struct.pack_into("<I", data, 0x100, 0x0001 | 1 << 16 | 0x200 << 20)
    struct.pack_into("<I", data, 0x200, 0x0002 | 1 << 16 | 0x100 << 20)
    assert read_config(bytes(data)).acs is None


def test_a_machine_without_devices_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Host().node(0, "0-1").write(tmp_path)
    assert main(["paths", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no GPUs, NICs or drives on this host\n"


@pytest.mark.parametrize("machine", ["eight-gpus", "cascaded-switches", "two-sockets", "two-root-complexes", "mediated", "four-nodes"])
@pytest.mark.parametrize("acs", [(ALL, LINUX), (ALL, 0), None], ids=["redirect", "no redirect", "no ACS"])
def test_what_is_to_be_said_of_many_pairs_is_said_once(
    machine: str, acs: Optional[tuple[int, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = MACHINES[machine]()
    for port in ports_of(host):
        port.acs = acs
    answered = answer(capsys, host, tmp_path)
    assert main(["paths", "--root", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    listed, *blocks = text.split("\n\n")
    assert "0000:" in listed
    said = [(block.splitlines()[0].partition(":")[0], *_without_addresses(block.splitlines()[1:])) for block in blocks]
    assert len(said) == len(set(said))
    ports = {name for p in answered["pairs"] for name in re.findall(ADDRESS, (p["advice"] or "").partition("redir=")[2])}
    shown = {name for block in blocks for name in re.findall(ADDRESS, block.partition("redir=")[2])}
    assert shown == ports, "one boot option names every port that some pair would have to"


ADDRESS = r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"


def _without_addresses(lines: list[str]) -> list[str]:
    return [re.sub(rf"({ADDRESS})((, |;| and ){ADDRESS})*", "X", line) for line in lines]
