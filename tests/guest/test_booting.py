# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest starts from a disk that near-backing moved below an expander bus: what is never in the way must not be so at boot either."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pcinuma.engine import Request, place
from pcinuma.lab import endpoints, layout, machine
from pcinuma.lab.kernel import Kernel
from pcinuma.settings import Settings
from tests.hosts.domains import two_cells
from tests.hosts.machines import MACHINES

SAID = b"\r\nstarted from the placed disk\r\n\0"
LOADED_AT, TEXT_AT, COM1 = 0x7C00, 0x20, 0x3F8
PRINT_AND_STOP = (
    bytes((0x31, 0xC0, 0x8E, 0xD8))  # ds = 0
    + bytes((0xBE, TEXT_AT, LOADED_AT >> 8, 0xBA, COM1 & 0xFF, COM1 >> 8))  # si = the text, dx = the serial port
    + bytes((0xAC, 0x84, 0xC0, 0x74, 0x03, 0xEE, 0xEB, 0xF8, 0xF4))  # write its bytes up to the zero, and halt
)
"""A master boot record in 8086 code."""


def _start(xml: bytes, disk: str, root: Path, scratch: Path, firmware: str, stop_at: str) -> str:
    """What the console says of a guest whose only virtio disk is ``disk`` (options of a block driver)."""
    what = layout.read(xml)
    hardware = endpoints.hardware(what, endpoints.kinds_of(what, root))
    (device,) = (number for number, argument in enumerate(hardware) if argument.startswith("virtio-blk-pci"))
    hardware[device] = re.sub(r"drive=drive\d+", "drive=the-disk", hardware[device]) + ",bootindex=1"
    argv = [machine.binary(), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", *hardware]
    position = argv.index(hardware[device]) - 1
    argv[position:position] = ["-blockdev", f"driver=raw,node-name=the-disk,read-only=on,{disk}"]
    if firmware == "ovmf":
        code, variables = machine.ovmf()
        shutil.copy(variables, scratch / "vars.fd")
        argv += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}"]
        argv += ["-drive", f"if=pflash,format=raw,unit=1,file={scratch / 'vars.fd'}"]
    return machine.run(argv, timeout=machine.PATIENCE, scratch=scratch, stop_at=stop_at).console


@pytest.mark.parametrize(
    ("firmware", "path"),
    [
        ("seabios", "/dev/nvme0n1"),
        pytest.param("seabios", "/dev/nvme1n1", marks=pytest.mark.full),
        ("ovmf", "/dev/nvme1n1"),
        pytest.param("ovmf", "/dev/nvme0n1", marks=pytest.mark.full),
    ],
)
def test_a_guest_starts_from_a_placed_disk(firmware: str, path: str, lab_kernel: Kernel, tmp_path: Path) -> None:
    root = MACHINES["backed"]().write(tmp_path / "host")
    xml = two_cells().block(path).hostdev("19:00.0").formatted()
    result = place(xml, Request(root=root, settings=Settings(near_backing=True)))
    assert [line.placed for line in result.devices] == [True, True]
    if firmware == "seabios":
        image = tmp_path / "disk"
        code = PRINT_AND_STOP.ljust(TEXT_AT, b"\x90") + SAID
        image.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
        said = SAID.strip(b"\r\n\0").decode()
        assert said in _start(result.xml, f"file.driver=file,file.filename={image}", root, tmp_path, firmware, said)
        return
    (tmp_path / "esp/EFI/BOOT").mkdir(parents=True)
    shutil.copy(lab_kernel.bzimage, tmp_path / "esp/EFI/BOOT/BOOTX64.EFI")
    disk = f"file.driver=vvfat,file.dir={tmp_path / 'esp'},file.fat-type=16"
    (expander,) = {c.bus_nr for c in layout.read(result.xml).controllers.values() if c.cell == int(path[9]) and c.bus_nr is not None}
    started = f'BdsDxe: starting Boot0001 "UEFI Misc Device" from PciRoot(0x{expander:X})/Pci(0x0,0x0)/Pci(0x0,0x0)'
    assert started in _start(result.xml, disk, root, tmp_path, firmware, "BdsDxe: starting")
