# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/lab.md is of the presets as they are."""

from __future__ import annotations

from pcinuma.lab.presets import PRESETS
from tests.lab.table import FILE, rows


def test_the_table_has_every_device_of_every_preset_on_the_node_that_the_preset_says() -> None:
    expected = []
    for name, preset in ((name, make()) for name, make in PRESETS.items()):
        nodes, cells = preset.host.device_nodes(), {node: cell for cell, node in preset.cells.items()}
        for device in preset.names:
            node = nodes[device.split("/")[0]]
            on_host, in_guest = (
                "-1" if number is None else str(number) for number in (node, cells.get(node) if node is not None else None)
            )
            expected.append((name, device, on_host, in_guest))
    assert sorted(rows(FILE.read_text(encoding="utf-8"))) == sorted(expected), "tests/run lab --full writes it"
