# SPDX-License-Identifier: LGPL-2.1-or-later
"""The virtual host with an emulated igb, a NIC that has virtual functions. QEMU has it from 8.0 on; on an older one this says so."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pcinuma.lab import guest_tree, kernel, machine, presets
from tests.lab import tier3

pytestmark = pytest.mark.full


@pytest.fixture(scope="module", autouse=True)
def igb() -> None:
    version = subprocess.run([machine.binary(), "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[0]
    asked = subprocess.run([machine.binary(), "-machine", "none", "-device", "igb,help"], capture_output=True, text=True, check=False)
    if "rombar" not in asked.stdout:
        pytest.skip(f"{version} has no igb, 8.0 and later have: tests/run --versions runs this on a newer QEMU")


def test_the_virtual_functions_are_passed_through_and_the_guest_sees_them_on_their_node(lab_kernel: kernel.Kernel, tmp_path: Path) -> None:
    preset = presets.NEWER_PRESETS["igb"]()
    run = tier3.run(preset, lab_kernel, tmp_path).require()
    host, at = guest_tree.parse(run.out["tree-at-start"]), preset.host.addresses()
    for name in ("pf/1", "pf/2"):
        vf = host.by_address(at[name])
        assert vf is not None and vf.numa_node == 1, name
        assert f"{at[name]} vfio-pci " in run.out["drivers-running"]
    assert tier3.judge(run, preset) == []
