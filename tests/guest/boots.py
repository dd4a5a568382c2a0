"""Place, boot, judge: the three steps that every test here takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional

from pcinuma.engine import Request, place
from pcinuma.lab import compare, endpoints, guest_tree, layout, machine
from pcinuma.lab.compare import Finding
from pcinuma.lab.endpoints import Endpoint
from pcinuma.lab.guest_tree import SeenTree
from pcinuma.lab.kernel import Kernel
from pcinuma.reason import Outcome
from pcinuma.report import Result
from pcinuma.settings import GroupBy


@dataclass(frozen=True)
class Booted:
    """A guest that ran: what it was made of and what its kernel saw."""

    layout: layout.Layout
    host: SeenTree
    guest: SeenTree
    kinds: Mapping[str, Endpoint]

    def judge(self, cells: Mapping[int, int], group_by: GroupBy) -> list[Finding]:
        """``cells``: guest cell -> host node, as the domain's memnodes say."""
        return compare.judge(self.layout, self.host, self.guest, {node: cell for cell, node in cells.items()}, group_by, self.kinds)


def placed(xml: bytes, root: Path, group_by: GroupBy) -> Result:
    """What the engine makes of the domain; it must have placed it."""
    result = place(xml, Request(root=root, group_by=group_by))
    assert result.outcome is Outcome.PLACED, result.report()
    return result


def boot(
    xml: bytes,
    root: Path,
    kernel: Kernel,
    scratch: Path,
    *,
    firmware: str = "seabios",
    timeout: float = machine.PATIENCE,
    gpu_bar_mib: int = 16,
    kind: Optional[Endpoint] = None,
) -> Booted:
    """Boot a domain with emulated endpoints where the hostdevs are. ``kind``: one kind for all of them."""
    what = layout.read(xml)
    kinds = endpoints.kinds_of(what, root) if kind is None else {device.source or "": kind for device in what.passthrough}
    hardware = endpoints.hardware(what, kinds, gpu_bar_mib=gpu_bar_mib)
    aperture = endpoints.aperture_mib(what, kinds, gpu_bar_mib)
    run = machine.boot_tree(kernel, hardware, scratch, firmware=firmware, timeout=timeout, aperture_mib=aperture)
    return Booted(what, guest_tree.read_sysfs(root), guest_tree.parse(run.console), kinds)
