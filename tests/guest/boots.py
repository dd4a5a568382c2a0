# SPDX-License-Identifier: LGPL-2.1-or-later
"""Place, boot, judge: the three steps that every test here takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional, Sequence

from pcinuma.domain.read import read_domain
from pcinuma.domain.xml import Document
from pcinuma.engine import Request, place
from pcinuma.errors import UnusableInput
from pcinuma.guest.addresses import address_in_guest, bus_numbers
from pcinuma.guest.seen import KernelView
from pcinuma.lab import compare, endpoints, guest_tree, layout, machine
from pcinuma.lab.compare import Finding
from pcinuma.lab.endpoints import Endpoint
from pcinuma.lab.guest_tree import SeenTree
from pcinuma.lab.kernel import Kernel
from pcinuma.model import AttachedAs, Hypervisor
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


def placed(xml: bytes, root: Path, group_by: GroupBy, *, link: bool = False, qemu: tuple[int, int] = (0, 0)) -> Result:
    """What the engine makes of the domain; it must have placed it. ``link``: its ports tell the host's links, as far as ``qemu`` can."""
    known = Hypervisor((8, 2), qemu, None, "x86_64")
    result = place(xml, Request(root=root, group_by=group_by, link=link, hypervisor=lambda: known))
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
    numa: Optional[Sequence[str]] = None,
) -> Booted:
    """Boot a domain with emulated endpoints where the hostdevs are. ``kind``: one kind for all of them; ``numa``: QEMU's
    arguments for processors, memory and cells."""
    what = layout.read(xml)
    kinds = endpoints.kinds_of(what, root) if kind is None else {device.source or "": kind for device in what.passthrough}
    hardware = endpoints.hardware(what, kinds, gpu_bar_mib=gpu_bar_mib, numa=numa)
    aperture = endpoints.aperture_mib(what, kinds, gpu_bar_mib)
    run = machine.boot_tree(kernel, hardware, scratch, firmware=firmware, timeout=timeout, aperture_mib=aperture)
    guest = guest_tree.parse(run.console)
    compare_addresses(xml, what, guest)
    return Booted(what, guest_tree.read_sysfs(root), guest, kinds)


def _file(guest: SeenTree, path: str) -> Optional[bytes]:
    """A file of the guest's sysfs, by what its kernel printed."""
    name, file = path.rsplit("/", 2)[1:]
    seen = next((device for device in guest.devices if str(device.address) == name), None)
    if seen is None:
        return None
    if file == "config":
        config = bytearray(256)
        config[0x0E], config[0x19] = (0, 0) if seen.behind is None else (1, seen.behind)
        return bytes(config)
    node = -1 if seen.numa_node is None else seen.numa_node
    return {"uevent": f"PCI_ID={seen.vendor:04X}:{seen.device:04X}\n", "numa_node": f"{node}\n"}.get(file, "").encode()


def compare_addresses(xml: bytes, what: layout.Layout, guest: SeenTree) -> None:
    """Every passthrough device that the guest sees has the address that was computed for it, whatever else is wrong with the guest; and it
    is found there by who asks the guest."""
    domain, _ = read_domain(Document(xml))
    try:
        buses = bus_numbers(domain)
    except UnusableInput as error:
        assert "belongs to controller" in str(error)  # a test of overlapping buses: the guest misses devices
        return
    computed = {device.address: str(address_in_guest(buses, device)) for device in domain.devices if device.address is not None}
    for device in what.passthrough:
        seen = guest.at(what.path(device.address))
        if seen is not None and device.address in computed:
            assert str(seen.address) == computed[device.address], f"{device.source} is at {seen.address} in the guest"
    view = KernelView(domain, lambda path, size: _file(guest, path))
    for device in domain.devices:
        seen = guest.at(what.path(device.address)) if device.address is not None and device.attached_as is AttachedAs.PCI else None
        asked = view.device(device) if device.address is not None else None
        if seen is not None:
            assert asked is not None
            assert (asked.address, asked.node, asked.missing) == (seen.address, seen.numa_node, None), device.source
