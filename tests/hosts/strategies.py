# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hypothesis strategies: whole machines, and domains that use some of their devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from hypothesis import strategies as st

from tests.hosts.build import ENDPOINT, GPU, INHERIT, NIC, NVME, Function, Host
from tests.hosts.domains import Domain


class _Buses:
    """Bus numbers in the order of a depth-first scan, a PCI domain at a time."""

    def __init__(self) -> None:
        self.domain, self.bus = 0, 0

    def take(self) -> str:
        self.bus += 1
        return f"{self.domain:04x}:{self.bus:02x}"

    def next_domain(self) -> None:
        self.domain, self.bus = self.domain + 1, 0


@st.composite
def hosts(draw: Any) -> Host:
    """One to four nodes, some without CPUs; one to three root complexes a node with ports, switches, cascades, cards, VFs and mdevs."""
    host, buses = Host(), _Buses()
    count = draw(st.integers(1, 4))
    for number in range(count):
        host.node(number, "" if number and draw(st.integers(0, 9)) == 0 else f"{number * 4}-{number * 4 + 3}")
    for _ in range(draw(st.integers(1, 5))):
        node = draw(st.integers(-1, count - 1))
        root = host.rc(f"pci{buses.domain:04x}:00", node=node)
        for slot in range(draw(st.integers(1, 3))):
            _fill(draw, host, root.port(f"{buses.domain:04x}:00:{slot + 1:02x}.0"), buses, depth=0)
        buses.next_domain()
    return host


def _fill(draw: Any, host: Host, port: Function, buses: _Buses, depth: int) -> None:
    kind = draw(st.sampled_from(["device", "device", "odd", "card", "vfs", "mdev", "switch", "switch"] if depth < 2 else ["device", "vfs"]))
    bus = buses.take()
    if kind == "switch":
        inner = buses.take()
        width = draw(st.integers(1, 3))
        for down in port.switch(f"{bus}:00.0", [f"{inner}:{slot:02x}.0" for slot in range(width)]):
            _fill(draw, host, down, buses, depth + 1)
    elif kind == "card":
        for function in range(draw(st.integers(2, 4))):
            port.device(f"{bus}:00.{function}", GPU)
    elif kind == "vfs":
        odd = draw(st.sampled_from([INHERIT, INHERIT, -1, None]))
        port.device(f"{bus}:00.0", NIC).vfs(*(f"{bus}:01.{vf}" for vf in range(draw(st.integers(1, 3)))), node=odd)
    elif kind == "mdev":
        port.device(f"{bus}:00.0", GPU).mdev(f"00000000-0000-4000-8000-{buses.domain:04x}{buses.bus:04x}0000")
    elif kind == "odd":
        node = draw(st.sampled_from([-1, -1, -2, None, 63]))
        port.device(f"{bus}:00.0", NVME, node=node, cpulist=draw(st.sampled_from([INHERIT, "0-3", "4-7", "1", "2-5", "", None])))
    else:
        _with_driver(port.device(f"{bus}:00.0", draw(st.sampled_from([NVME, NIC]))))


def _with_driver(function: Function) -> None:
    """A drive or a network card that the host's own driver has, and a guest may reach through it."""
    name = function.address.replace(":", "").replace(".", "")
    if function.kind is NVME:
        function.block(f"nvme{int(name, 16)}")
    else:
        function.net(f"eth{int(name, 16)}")


@dataclass
class Setup:
    """A host, a domain with some of its devices, and endpoints of the host that the domain does not use yet."""

    host: Host
    domain: Domain
    spare: list[str] = field(default_factory=list)
    group_by: Optional[str] = None
    formatted: bool = False
    near_backing: bool = False

    def xml(self) -> bytes:
        return self.domain.formatted() if self.formatted else self.domain.raw()

    def __repr__(self) -> str:
        tree = [
            f"{f.path} node={f.own_node()} cpulist={f.cpulist if f.cpulist is not INHERIT else ''}" for f in self.host.functions.values()
        ]
        nodes = [f"node {n.number}: {n.cpus}" for n in self.host.nodes.values()]
        head = f"Setup(group_by={self.group_by}, spare={self.spare}, near_backing={self.near_backing})"
        return "\n".join([head, *nodes, *tree, self.xml().decode()])


@st.composite
def setups(draw: Any, formatted: Optional[bool] = None) -> Setup:
    """A machine and a domain on it."""
    host = draw(hosts())
    domain = Domain()
    cells = draw(st.integers(0, 4)) if draw(st.integers(0, 9)) == 0 else draw(st.integers(1, 4))
    domain.cells(*(str(cell) if draw(st.integers(0, 9)) else "" for cell in range(cells)))
    numbers = sorted(host.nodes)
    for cell in range(cells):
        if draw(st.integers(0, 3)):
            nodes = (
                [cell % len(numbers)]
                if draw(st.booleans())
                else draw(st.lists(st.sampled_from(numbers), min_size=1, max_size=2, unique=True))
            )
            domain.memnode(cell, ",".join(map(str, sorted(nodes))))
        if domain.cell_cpus[cell] and draw(st.integers(0, 2)) == 0:
            domain.vcpupin(cell, draw(st.sampled_from(["0-3", "4-7", "0-7", "1,9", "0-15,^3", "8"])))
    setup = Setup(host, domain, group_by=draw(st.sampled_from([None, "switch", "root-complex", "node"])))
    setup.formatted = draw(st.booleans()) if formatted is None else formatted
    setup.near_backing = draw(st.integers(0, 2)) == 0
    if draw(st.integers(0, 2)) == 0:
        domain.nic()
    if draw(st.integers(0, 2)) == 0:
        domain.disk("vda")
    if draw(st.integers(0, 3)) == 0:
        domain.with_extras()
    ends = [f for f in host.functions.values() if f.port_type == ENDPOINT]
    wanted = draw(st.lists(st.sampled_from(ends), unique_by=lambda f: f.address, max_size=12)) if ends else []
    ports = iter(range(16, 90))
    done: set[str] = set()
    backed: set[str] = set()
    for function in wanted:
        if function.address not in done:
            behind = [*function.nets, *(f"/dev/{block}n1" for block in function.blocks)]
            if setup.near_backing and behind and draw(st.booleans()):
                _give_backed(domain, behind[0])
                backed.add(function.address)
            else:
                done |= _give(draw, domain, function, ports, done if setup.formatted else None)
    setup.spare = [f.address for f in ends if f.address not in done | backed]
    for source in sorted(done):
        if draw(st.integers(0, 14)) == 0:
            domain.keep(source)
    return setup


def _give_backed(domain: Domain, name: str) -> None:
    """An emulated device with the host's ``name`` behind it."""
    if name.startswith("/dev/"):
        domain.block(name, f"vd{chr(98 + len(domain.devices))}")
    else:
        domain.direct(name)


def _give(draw: Any, domain: Domain, function: Function, ports: Any, done: Optional[set[str]]) -> set[str]:
    """Put a function into the domain, its whole card where ``done`` allows; the host addresses that this used up."""
    if function.mdevs and draw(st.booleans()):
        domain.mdev(next(iter(function.mdevs)))
        return {function.address}
    card = sorted(f.address for f in function.host.functions.values() if f.address[:-1] == function.address[:-1] and not f.physfn)
    if done is not None and len(card) > 1 and not done.intersection(card) and not function.physfn and draw(st.booleans()):
        port = next(ports)
        for number, address in enumerate(card):
            domain.hostdev(address, f"{port:02x}:00.{number}", multifunction=number == 0)
        return set(card)
    form = draw(st.sampled_from(["hostdev", "hostdev", "hostdev", "interface", "nvme", "sata", "unassigned"]))
    if form == "hostdev":
        domain.hostdev(function.address)
    elif form == "interface":
        domain.interface(function.address)
    elif form == "unassigned":
        domain.hostdev(function.address, "unassigned")
    else:
        domain.nvme(
            function.address,
            bus="virtio" if form == "nvme" else "sata",
            target=f"{'vd' if form == 'nvme' else 'sd'}{chr(98 + len(domain.devices))}",
        )
    return {function.address}
