# SPDX-License-Identifier: LGPL-2.1-or-later
"""Windows into memory and I/O space: which BARs a placed guest maps, and the limits of its firmware (docs/limits.md)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Mapping

import pytest

from pcinuma.lab import endpoints, initramfs, layout, machine
from pcinuma.lab.endpoints import Endpoint
from pcinuma.lab.kernel import Kernel
from pcinuma.settings import GroupBy
from tests.guest.boots import placed
from tests.guest.handmade import plain
from tests.hosts.machines import MACHINES

GPUS = [f"0000:{0x20 + 0x30 * switch + offset:02x}:00.0" for switch in range(4) for offset in (4, 5)]
CELLS = {0: 0, 1: 1}
PRINT = """
exec >/dev/ttyS0 2>&1
for device in /sys/bus/pci/devices/*; do
    read -r id <$device/device
    number=0
    while read -r start end flags; do
        [ $number -lt 6 ] && echo "bar ${device##*/} $id $number $start $end"
        number=$((number+1))
    done <$device/resource
done
echo windows-end
"""
INIT = "#!/bin/sh\n" + initramfs.MOUNTS + PRINT + initramfs.RESET
_BAR = re.compile(r"bar (\S+) 0x([0-9a-f]{4}) (\d) 0x([0-9a-f]{16}) 0x([0-9a-f]{16})")


def _mapped(
    xml: bytes, kinds: Mapping[str, Endpoint], bar: int, kernel: Kernel, scratch: Path, firmware: str, gpu_bar_mib: int = 16
) -> int:
    """How many of the passthrough devices have BAR ``bar`` at an address."""
    (scratch / "tree.cpio").write_bytes(initramfs.tree_image(INIT))
    hardware = endpoints.hardware(layout.read(xml), kinds, gpu_bar_mib=gpu_bar_mib)
    console = machine.boot_tree(kernel, hardware, scratch, firmware=firmware).console
    assert "windows-end" in console
    ids = {f"{kind.device:04x}" for kind in kinds.values()}
    return sum(1 for _, id_, number, start, _ in _BAR.findall(console) if id_ in ids and int(number) == bar and int(start, 16))


def test_eight_bars_of_32_gib_are_all_mapped_by_seabios(lab_kernel: Kernel, tmp_path: Path) -> None:
    root = MACHINES["eight-gpus"]().write(tmp_path / "host")
    xml = placed(plain(GPUS, CELLS), root, GroupBy.ROOT_COMPLEX).xml
    kinds = dict.fromkeys(GPUS, Endpoint.GPU)
    assert _mapped(xml, kinds, 2, lab_kernel, tmp_path, "seabios", 32768) == len(GPUS)


@pytest.mark.parametrize(("ports", "mapped"), [pytest.param(10, 2, marks=pytest.mark.full), (11, 0)])
def test_ovmf_maps_devices_with_io_bars_beside_ten_hot_pluggable_ports(
    ports: int, mapped: int, lab_kernel: Kernel, tmp_path: Path
) -> None:
    """Why such a guest falls back beyond: not even the memory of the devices is mapped, by OVMF 2022.11; 2025.02 maps it."""
    version = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", "ovmf"], capture_output=True, text=True, check=False).stdout
    if version and not version.startswith("2022"):
        mapped = 2
    root = MACHINES["two-sockets"]().write(tmp_path / "host")
    sources = ["0000:17:00.0", "0000:b3:00.0"]
    xml = placed(plain(sources, CELLS), root, GroupBy.ROOT_COMPLEX).xml
    present = sum(1 for c in layout.read(xml).controllers.values() if c.model == "pcie-root-port" and c.hotplug)
    index = max(layout.read(xml).controllers)
    for number in range(ports - present):
        place = f"<address type='pci' domain='0x0000' bus='0x00' slot='0x{0x18 + number // 8:02x}' function='0x{number % 8}'"
        place += " multifunction='on'/>" if number % 8 == 0 else "/>"
        target = f"<target chassis='{index + 1 + number}' port='0x{number}'/>"
        port = f"<controller type='pci' index='{index + 1 + number}' model='pcie-root-port'>{target}{place}</controller>\n"
        xml = xml.replace(b"  </devices>", port.encode() + b"  </devices>")
    kinds = dict.fromkeys(sources, Endpoint.NIC)
    assert _mapped(xml, kinds, 0, lab_kernel, tmp_path, "ovmf") == mapped
