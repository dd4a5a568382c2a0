"""Tier 3, the promise: the guest on the virtual host prints what its kernel sees, and it agrees with the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcinuma.lab import hardware, kernel, layout, presets
from pcinuma.lab.guest_tree import between
from pcinuma.lab.layout import MAIN_ROOT
from pcinuma.lab.nested import READ_BEGIN, READ_END
from pcinuma.lab.virtual_host import HostRun
from tests.lab import tier3


def test_two_groups_and_a_switch_on_each_node(tier3_host: HostRun) -> None:
    assert tier3.judge(tier3_host, presets.two_sockets_with_switches()) == []


def test_the_judge_objects_if_the_cells_were_swapped(tier3_host: HostRun) -> None:
    preset = presets.two_sockets_with_switches()
    swapped = presets.Preset(preset.host, preset.passed, {0: 1, 1: 0})
    wrong = {finding.device for finding in tier3.judge(tier3_host, swapped) if finding.what.startswith("numa_node")}
    assert len(wrong) == len(preset.names)


def test_the_guest_reads_its_drive_by_dma(tier3_host: HostRun) -> None:
    read = between(tier3_host.out["vm1.console"], READ_BEGIN, READ_END)
    assert hardware.sector("disk0").decode().strip() in read


@pytest.mark.full
@pytest.mark.parametrize("name", ["four-nodes", "two-root-complexes", "sriov", "multifunction"])
def test_every_other_host(name: str, lab_kernel: kernel.Kernel, tmp_path: Path) -> None:
    preset = presets.PRESETS[name]()
    run = tier3.run(preset, lab_kernel, tmp_path).require()
    assert tier3.judge(run, preset) == []


@pytest.mark.full
def test_a_host_whose_firmware_says_nothing_changes_nothing(lab_kernel: kernel.Kernel, tmp_path: Path) -> None:
    preset = presets.minus_one()
    run = tier3.run(preset, lab_kernel, tmp_path, placed=False).require()
    assert tier3.judge(run, preset) == []
    live = layout.read(run.out["live.xml"].encode())
    assert {live.path(device.address).root for device in live.passthrough} == {MAIN_ROOT}
