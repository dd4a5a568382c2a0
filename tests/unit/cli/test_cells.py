# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma cells`` on files, and what the other commands say of guests without cells."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from lxml import etree

from pcinuma.cli import main
from pcinuma.cli.capture import archive, collect
from pcinuma.engine import Request, place
from tests.golden.cells import flat, pair, with_hugepages
from tests.hosts.cells_judge import cells_of
from tests.hosts.domains import two_cells
from tests.hosts.machines import MACHINES, two_sockets


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(two_sockets().write(tmp_path / "host"))


def _file(tmp_path: Path, xml: bytes) -> str:
    file = tmp_path / "vm.xml"
    file.write_bytes(xml)
    return str(file)


def test_a_proposal_shows_nodes_beside_cells_and_the_devices_of_each(tmp_path: Path, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cells", _file(tmp_path, pair().raw()), "--root", root]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert out.startswith("guest: would have 2 guest cells for the host nodes 0 and 1, 2 of 2 devices placed")
    assert ["cell", "0", "node", "0", "0-1", "0-7", "256", "MiB", "a"] in lines
    assert ["cell", "1", "node", "1", "2-3", "8-15", "256", "MiB", "b"] in lines
    assert "`pcinuma place --cells auto` writes it" in out


def test_json_and_diff_are_of_the_same(tmp_path: Path, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = _file(tmp_path, pair().raw())
    assert main(["cells", file, "--root", root, "--json", "--diff", "--memory", "preferred"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["domain"], data["state"], data["changed"], len(data["report"]["cells"])) == ("guest", "proposed", True, 2)
    assert "+    <memnode cellid='1' mode='preferred' nodeset='1'/>" in data["diff"]
    assert main(["cells", file, "--root", root, "--diff"]) == 0
    assert "+    <memnode cellid='1' mode='strict' nodeset='1'/>" in capsys.readouterr().out


def test_what_place_writes_is_shown_as_written_and_replan_as_proposed(
    tmp_path: Path, root: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    file = _file(tmp_path, flat().raw())
    assert main(["place", "--cells", "auto", "--root", root, file]) == 0
    placed = capsysbinary.readouterr().out
    assert placed == place(flat().raw(), Request(root=Path(root), cells=True)).xml and len(cells_of(placed)) == 1
    assert main(["cells", _file(tmp_path, placed), "--root", root]) == 0
    assert b"guest: has 1 guest cell for host node 0, 1 of 1 device placed" in capsysbinary.readouterr().out
    more = placed.replace(b"  </devices>", pair().devices[-1].text().encode() + b"  </devices>")
    assert main(["cells", _file(tmp_path, more), "--root", root, "--replan"]) == 0
    assert b"guest: would have 2 guest cells for the host nodes 0 and 1, 2 of 2 devices placed" in capsysbinary.readouterr().out
    assert main(["place", "--cells", "off", "--root", root, _file(tmp_path, flat().raw())]) == 0
    assert capsysbinary.readouterr().out == flat().raw()


def test_none_is_a_negative_answer_and_the_owners_are_not(tmp_path: Path, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    spread = pair("<vcpu placement='static' cpuset='0-15'>4</vcpu>").raw()
    assert main(["cells", _file(tmp_path, spread), "--root", root]) == 1
    assert "guest: no cells: " in (out := capsys.readouterr().out) and "<vcpu cpuset='0-15'> lies on the host nodes 0 and 1" in out
    assert main(["cells", _file(tmp_path, spread), "--root", root, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["state"] == "none"
    assert main(["cells", _file(tmp_path, two_cells().hostdev("17:00.0").raw()), "--root", root]) == 0
    assert "has NUMA cells of its owner's, which pcinuma never changes" in capsys.readouterr().out


USAGE = [
    (["--apply"], "--apply changes a definition on this host"),
    (["--remove"], "--remove changes a definition on this host"),
    (["--apply", "--remove"], "not allowed with"),
    (["--memory", "loose"], "invalid choice"),
]


@pytest.mark.parametrize(("words", "says"), USAGE)
def test_what_makes_no_sense_is_wrong_usage(
    words: list[str], says: str, tmp_path: Path, root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _file(tmp_path, pair().raw())
    try:
        code = main(["cells", file, *words])
    except SystemExit as end:
        code = int(str(end.code))
    assert code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--diff", "--apply"], ["--remove", "--replan"], ["--remove", "--memory", "strict"]])
def test_options_that_contradict_each_other_are_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cells", "vm1", *words]) == 2
    assert "takes neither" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["explain"], ["topology"]])
def test_who_is_unplaced_for_want_of_cells_is_told_the_command_that_shows_some(
    words: list[str], tmp_path: Path, root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, _file(tmp_path, pair().raw()), "--root", root]) == 0
    assert "`pcinuma cells guest` shows those that pcinuma can give it" in capsys.readouterr().out


def test_topology_draws_the_definition_as_it_is_though_its_owner_asks_for_cells(
    tmp_path: Path, root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["topology", _file(tmp_path, pair().metadata(cells="auto").raw()), "--root", root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["guest"]["cells"] == []


def test_a_capture_brings_what_cells_depend_on(tmp_path: Path) -> None:
    root = with_hugepages(256, 300).write(tmp_path / "there")
    entries, unreadable = collect(root)
    with tarfile.open(fileobj=io.BytesIO(archive(entries))) as tar:
        tar.extractall(tmp_path / "here", filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(tmp_path / "here")
    xml = pair(memoryBacking="<memoryBacking><hugepages/></memoryBacking>").raw()
    there, here = (place(xml, Request(root=root, cells=True)) for root in (root, tmp_path / "here"))
    assert there == here and there.cells is not None and unreadable == []


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_every_machine_gives_an_answer(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = MACHINES[name]()
    host.write(tmp_path)
    domain = flat()
    domain.devices.clear()
    ends = [f for f in host.functions.values() if not f.children and f.port_type in (0, 9)]
    for function in ends[:3]:
        domain.hostdev(function.address)
    code = main(["cells", _file(tmp_path, domain.raw()), "--root", str(tmp_path), "--json"])
    data = json.loads(capsys.readouterr().out)
    assert code == (0 if data["report"]["cells"] else 1) and (data["report"]["cells"] or data["report"]["message"])
    assert etree.fromstring(domain.raw()).find("cpu") is None
