# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma demo --quick``: a guest placed on a server of two sockets with switches, and booted; what its kernel sees beside the host.

The server is one that was written down (:mod:`pcinuma.lab.server`); the guest is real, with emulated devices where the passed-through ones
would be (tier 1 of the laboratory): no libvirt, no IOMMU, no VFIO. The verdict is that of :mod:`pcinuma.lab.compare`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Callable, NamedTuple, Optional

from pcinuma.engine import Request, place
from pcinuma.errors import EXIT_DONE, EXIT_NEGATIVE
from pcinuma.host.topology import read_topology
from pcinuma.lab import LabError, compare, drawing, endpoints, guest_tree, layout, machine, nested, server
from pcinuma.lab.guest_tree import PciPath, SeenTree
from pcinuma.lab.kernel import Kernel
from pcinuma.settings import GroupBy
from pcinuma.show.screen import Screen

NAME = "vm1"


class Shown(NamedTuple):
    """What came of it. ``switches``: addresses of the host's upstream ports."""

    server: server.Server
    host: SeenTree
    switches: set[str]
    guest: SeenTree
    pairs: list[compare.Pairing]
    findings: list[compare.Finding]

    def name(self, pair: compare.Pairing) -> str:
        """What a device is called."""
        return self.server.names[pair.host.address]


def run(
    image: Callable[[Path], Kernel], progress: Callable[[str], None], screen: Screen, as_json: bool, seconds: Callable[[], float]
) -> int:
    """Show it; returns the exit code. ``image`` fetches the kernel, given a folder; ``seconds``: since the beginning."""
    with tempfile.TemporaryDirectory(prefix="pcinuma-demo-", dir="/var/tmp") as folder:
        scratch = Path(folder)
        kernel = image(scratch)
        progress(f"a stock kernel {kernel.release}")
        shown = show(kernel, scratch, progress)
    if as_json:
        print(json.dumps(_answer(shown, seconds()), indent=2))
    else:
        print("\n".join(_drawing(shown, screen, seconds())))
    return EXIT_DONE if not shown.findings else EXIT_NEGATIVE


def show(kernel: Kernel, scratch: Path, progress: Callable[[str], None]) -> Shown:
    """Place the guest, boot it, and judge what it printed."""
    host = server.write(scratch / "host")
    xml = nested.domain(NAME, sorted(host.names), host.cells, group_by=GroupBy.SWITCH.value)
    result = place(xml, Request(root=host.root))
    if not all(device.placed for device in result.devices):
        raise LabError(f"the guest was not placed: {result.message or result.reason}")
    progress(f"{len(result.devices)} devices are placed; the guest boots, emulated (TCG)")
    what = layout.read(result.xml)
    kinds = endpoints.kinds_of(what, host.root)
    run = machine.boot_tree(kernel, endpoints.hardware(what, kinds), scratch)
    seen, real = guest_tree.parse(run.console), guest_tree.read_sysfs(host.root)
    progress("its kernel has printed what it sees")
    cells = {node: cell for cell, node in host.cells.items()}
    findings = compare.judge(what, real, seen, cells, GroupBy.SWITCH, kinds)
    switches = {upstream for device in read_topology(host.root).devices for upstream, _ in device.switches}
    return Shown(host, real, switches, seen, compare.pair(what, real, seen), findings)


def _drawing(shown: Shown, screen: Screen, seconds: float) -> list[str]:
    on_host = {shown.name(pair): pair.host for pair in shown.pairs}
    in_guest = {shown.name(pair): pair.guest for pair in shown.pairs}
    left = drawing.tree("HOST", shown.host, on_host, screen, lambda device: str(device.address) in shown.switches)
    right = drawing.tree("GUEST, by its own kernel", shown.guest, in_guest, screen)
    return ["", *screen.beside(left, right), "", f"{drawing.verdict(shown.findings, screen)} ({seconds:.0f} s)."]


def _answer(shown: Shown, seconds: float) -> dict[str, object]:
    on_host: dict[str, Optional[PciPath]] = {shown.name(pair): pair.host.path for pair in shown.pairs}
    in_guest = {shown.name(pair): None if pair.guest is None else pair.guest.path for pair in shown.pairs}
    devices = [
        {
            "name": name,
            "device": str(pair.host.address),
            "guest_address": None if pair.guest is None else str(pair.guest.address),
            "host_node": pair.host_node,
            "guest_node": None if pair.guest is None else pair.guest.numa_node,
            "host_root_complex": pair.host.path.root,
            "guest_root_complex": None if pair.guest is None else pair.guest.path.root,
            "host_switch_peers": drawing.peers(name, on_host),
            "guest_switch_peers": drawing.peers(name, in_guest),
        }
        for name, pair in ((shown.name(pair), pair) for pair in shown.pairs)
    ]
    findings = [str(finding) for finding in shown.findings]
    return {"group_by": GroupBy.SWITCH.value, "devices": devices, "findings": findings, "seconds": round(seconds, 1)}
