# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest on a virtual host, from define to what its kernel prints; and the judgement."""

from __future__ import annotations

from pathlib import Path

from pcinuma.lab import compare, guest_tree, jobs, kernel, layout, nested, virtual_host
from pcinuma.lab.compare import Finding
from pcinuma.lab.guest_tree import SeenTree
from pcinuma.lab.initramfs import END
from pcinuma.lab.presets import Preset
from pcinuma.lab.virtual_host import HostRun
from pcinuma.settings import GroupBy


def run(preset: Preset, image: kernel.Kernel, scratch: Path) -> HostRun:
    job = jobs.DRIVERS + preset.prepare + "\n" + jobs.LIBVIRT + jobs.VERSIONS + jobs.INSTALL + jobs.DEFINE
    job += (jobs.PLACED if preset.host.expanders else "sleep 3\n") + jobs.START + jobs.GUEST + jobs.STOP
    files = {
        f"{jobs.NAME}.xml": nested.domain(jobs.NAME, preset.slots, preset.cells, group_by="switch"),
        "images/nested.cpio": nested.image(image),
    }
    return virtual_host.run(preset.host, job, image, scratch, files=files, timeout=jobs.PATIENCE)


def judge(run: HostRun, preset: Preset, group_by: GroupBy = GroupBy.SWITCH) -> list[Finding]:
    live = layout.read(run.out["live.xml"].encode())
    host = guest_tree.parse(run.out["tree-at-start"])
    guest = trees(run)[0]
    assert len(compare.pair(live, host, guest)) == len(preset.names), "a device of the domain is not on the host, or not in the live XML"
    return compare.judge(live, host, guest, {node: cell for cell, node in preset.cells.items()}, group_by)


def trees(run: HostRun) -> list[SeenTree]:
    """What the guest saw, each time that it printed it."""
    return [guest_tree.parse(text + END) for text in run.out[f"{jobs.NAME}.console"].split(END)[:-1]]
