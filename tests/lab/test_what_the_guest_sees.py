# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tier 3, the promise: the guest on the virtual host prints what its kernel sees, and it agrees with the host."""

from __future__ import annotations

import pytest

from pcinuma.lab import hardware, kernel, layout, presets
from pcinuma.lab.guest_tree import between
from pcinuma.lab.layout import MAIN_ROOT
from pcinuma.lab.nested import READ_BEGIN, READ_END
from pcinuma.lab.virtual_host import HostRun
from tests.lab import tier3
from tests.lab.table import Table

TWO_SOCKETS = "two-sockets-with-switches"


def test_two_groups_and_a_switch_on_each_node(first_host: HostRun, lab_kernel: kernel.Kernel, lab_table: Table) -> None:
    preset = presets.PRESETS[TWO_SOCKETS]()
    findings = tier3.judge(first_host, preset)
    lab_table.add(TWO_SOCKETS, preset, first_host, findings, lab_kernel.release)
    assert findings == []


def test_the_judge_objects_if_the_cells_were_swapped(first_host: HostRun) -> None:
    preset = presets.two_sockets_with_switches()
    swapped = presets.Preset(preset.host, preset.passed, {0: 1, 1: 0})
    wrong = {finding.device for finding in tier3.judge(first_host, swapped) if finding.what.startswith("numa_node")}
    assert len(wrong) == len(preset.names)


def test_the_guest_reads_its_drive_by_dma(first_host: HostRun) -> None:
    read = between(first_host.out["vm1.console"], READ_BEGIN, READ_END)
    assert hardware.sector("disk0").decode().strip() in read


@pytest.mark.full
@pytest.mark.parametrize("preset_host", sorted(set(presets.PRESETS) - {TWO_SOCKETS}), indirect=True)
def test_every_other_host(preset_host: tuple[str, HostRun], lab_kernel: kernel.Kernel, lab_table: Table) -> None:
    name, run = preset_host
    preset = presets.PRESETS[name]()
    findings = tier3.judge(run, preset)
    lab_table.add(name, preset, run, findings, lab_kernel.release)
    assert findings == []
    live = layout.read(run.out["live.xml"].encode())
    on_the_main_root = {live.path(device.address).root == MAIN_ROOT for device in live.passthrough}
    assert on_the_main_root == {not preset.host.expanders}, "placed exactly where the host's firmware says something"
