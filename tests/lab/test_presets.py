# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each virtual host is the machine that its few lines of Python describe, by what a kernel sees of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcinuma.lab import guest_tree, kernel, machine, presets


# The first one is looked at by test_life_on_a_host.
@pytest.mark.parametrize("name", sorted(set(presets.PRESETS) - {"two-sockets-with-switches"}))
def test_a_kernel_finds_every_device_where_the_plan_says(name: str, lab_kernel: kernel.Kernel, tmp_path: Path) -> None:
    host = presets.PRESETS[name]().host
    hardware = ["-accel", machine.GUEST_TCG, "-cpu", "max", *host.argv(tmp_path)]
    seen = guest_tree.parse(machine.boot_tree(lab_kernel, hardware, tmp_path, timeout=machine.PATIENCE).console)
    addresses, nodes = host.addresses(), host.device_nodes()
    assert sorted(seen.nodes) == list(range(host.nodes))
    for device, path in host.places().items():
        found = seen.at(path)
        assert found is not None, f"{device} is not at {path}"
        assert (found.address, found.numa_node) == (addresses[device], nodes[device])
