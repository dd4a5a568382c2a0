# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the host has a pci.ids, a device is called by its name in every drawing and listing; a reason that all have is said once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcinuma.cli import main
from pcinuma.host.names import PCI_IDS
from tests.hosts.build import GPU, NIC
from tests.hosts.domains import Domain
from tests.hosts.machines import MACHINES

IDS = f"""\
# what a distribution has
{GPU.vendor:04x}  NVIDIA Corporation
\t{GPU.device:04x}  GA100 [A100 SXM4 80GB]
{NIC.vendor:04x}  Mellanox Technologies
\t{NIC.device:04x}  MT2892 Family [ConnectX-6 Dx]
C 02  Network controller
\t00  Ethernet controller
"""
NAMES = ("A100 SXM4 80GB", "ConnectX-6 Dx")
NUMBERS = (f"{GPU.device:04x}]", f"{NIC.device:04x}]")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    return MACHINES["eight-gpus"]().write(tmp_path)


@pytest.fixture
def vm(tmp_path: Path) -> str:
    """A guest without cells, with all sixteen devices."""
    domain = Domain()
    for number in range(4):
        for offset in (4, 5, 6, 7):
            domain.hostdev(f"{0x20 + 0x30 * number + offset:02x}:00.0")
    (tmp_path / "vm.xml").write_bytes(domain.raw())
    return str(tmp_path / "vm.xml")


@pytest.mark.parametrize("file", PCI_IDS)
@pytest.mark.parametrize(
    "words", [["topology"], ["topology", "VM"], ["topology", "VM", "--svg", "-"], ["explain", "VM"], ["paths", "VM"], ["paths"]]
)
def test_a_device_is_a_name_and_no_number(
    words: list[str], file: str, machine: Path, vm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine / file).parent.mkdir(parents=True, exist_ok=True)
    (machine / file).write_text(IDS)
    picture = tmp_path / "picture.svg"
    assert main([{"VM": vm, "-": str(picture)}.get(word, word) for word in words] + ["--root", str(machine)]) == 0
    said = capsys.readouterr().out + (picture.read_text() if picture.exists() else "")
    assert [said.count(name) >= 8 for name in NAMES] == [True, True]
    assert not any(number in said for number in NUMBERS)


@pytest.mark.parametrize("command", ["topology", "explain"])
def test_a_reason_that_all_devices_have_is_said_once_and_of_all(
    command: str, machine: Path, vm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, vm, "--root", str(machine)]) == 0
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if "no guest cell stands for" in line)
    assert "a to p" in line or "all 16 devices" in line
