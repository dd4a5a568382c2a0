# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma demo --quick``: its server is a host like any other, its guest boots, and its kernel agrees."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pcinuma.cli import main
from pcinuma.host.topology import read_topology
from pcinuma.lab import server
from pcinuma.lab.kernel import Kernel
from pcinuma.lab.virtual_host import CHECKOUT


def test_it_shows_every_device_where_the_server_has_it(lab_kernel: Kernel) -> None:
    argv = [sys.executable, "-m", "pcinuma", "demo", "--quick", "--json"]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["findings"] == []
    assert len(said["devices"]) == 10
    for device in said["devices"]:
        assert device["guest_node"] == device["host_node"] is not None
        assert sorted(device["guest_switch_peers"]) == sorted(device["host_switch_peers"])
    assert sum(bool(device["host_switch_peers"]) for device in said["devices"]) == 8


def test_its_server_is_read_like_any_other_host(tmp_path: Path) -> None:
    made = server.write(tmp_path)
    topology = read_topology(tmp_path)
    assert [node.number for node in topology.nodes] == [0, 1]
    found = {device.address: device for device in topology.devices}
    assert all(device.problem is None for device in found.values())
    assert {found[address].node for address in made.names} == {0, 1}
    assert {name: len(found[address].switches) for address, name in made.names.items()} == {
        name: 0 if name.startswith("drive") else 1 for name in made.names.values()
    }
    assert main(["topology", "--root", str(tmp_path)]) == 0
