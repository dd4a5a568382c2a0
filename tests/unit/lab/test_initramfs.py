# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest and a virtual host print of themselves is printed alike by busybox's shell and by the distribution's."""

from __future__ import annotations

import subprocess

import pytest

from pcinuma.lab import guest_tree, initramfs
from tests.hosts.build import cpu_set


@pytest.mark.parametrize("shell", [["/bin/sh"], ["bash", "--posix"], ["busybox", "sh"]], ids=["sh", "bash", "busybox"])
def test_every_shell_prints_the_same_tree(shell: list[str]) -> None:
    """Of this very machine: PRINT_TREE reads sysfs alone."""
    done = subprocess.run([*shell, "-c", initramfs.PRINT_TREE + "print_tree"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    tree = guest_tree.parse(done.stdout)
    assert tree.nodes.keys() == tree.memory_kib.keys() == tree.distances.keys() and tree.nodes
    with open("/sys/devices/system/node/online") as file:
        assert set(tree.nodes) == cpu_set(file.read().strip())
    for node, distances in tree.distances.items():
        with open(f"/sys/devices/system/node/node{node}/distance") as file:
            assert list(distances) == [int(value) for value in file.read().split()]
