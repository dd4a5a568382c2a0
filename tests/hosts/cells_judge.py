# SPDX-License-Identifier: LGPL-2.1-or-later
"""The judge of guest cells that pcinuma wrote: the contract, worked out from the XML before and after, the host's model and the report.

Nothing here comes from the code under test.
"""

from __future__ import annotations

from typing import Any, Optional

from lxml import etree

from tests.hosts.build import Host, cpu_set, list_format
from tests.hosts.passthrough import NS, nodeset

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "M": 1 << 20, "GB": 10**9}


def record(xml: bytes) -> Optional[etree._Element]:
    """What pcinuma's metadata says of cells that it wrote."""
    return etree.fromstring(xml).find(f"metadata/{NS}pcinuma/{NS}cells")


def cells_of(xml: bytes) -> list[etree._Element]:
    return list(etree.fromstring(xml).findall("cpu/numa/cell"))


def size(element: etree._Element, text: Optional[str] = None) -> int:
    """A size in KiB, rounded up."""
    return -(-int(text if text is not None else element.text) * _UNITS[element.get("unit", "KiB")] // 1024)


def vcpus(root: etree._Element) -> int:
    return int(root.findtext("vcpu", "1"))


def pins(root: etree._Element) -> dict[int, set[int]]:
    """vCPU -> the host CPUs that it is pinned to by its owner or pcinuma."""
    element = root.find("vcpu")
    everywhere = nodeset(element.get("cpuset")) if element is not None and element.get("cpuset") else None
    found = {} if everywhere is None else dict.fromkeys(range(vcpus(root)), everywhere)
    found.update({int(pin.get("vcpu")): nodeset(pin.get("cpuset")) for pin in root.findall("cputune/vcpupin")})
    return found


def strip(root: etree._Element) -> None:
    """Take out of a domain the cells that its record lists, and the record."""
    listed = root.find(f"metadata/{NS}pcinuma/{NS}cells")
    if listed is None:
        return
    made = listed.get("made", "").split()
    numbers = {cell.get("id") for cell in listed.findall(f"{NS}cell")}
    pinned = {(pin.get("vcpu"), pin.get("cpuset")) for pin in listed.findall(f"{NS}vcpupin")}
    gone = [cell for cell in root.findall("cpu/numa/cell") if cell.get("id") in numbers]
    gone += [memnode for memnode in root.findall("numatune/memnode") if memnode.get("cellid") in numbers]
    gone += root.findall("numatune/memory") if "memory" in made else []
    gone += [pin for pin in root.findall("cputune/vcpupin") if (pin.get("vcpu"), pin.get("cpuset")) in pinned]
    for element in [*gone, listed]:
        element.getparent().remove(element)
    for path in ("cpu/numa", "cpu", "numatune", "cputune"):
        for element in root.findall(path):
            if not len(element) and not (element.text or "").strip():
                element.text = None
            if path.rsplit("/", 1)[-1] in made and not len(element) and not element.attrib:
                element.getparent().remove(element)


def cells_faults(before: bytes, after: bytes, host: Host, report: dict[str, Any]) -> list[str]:
    """What is wrong with the cells of ``after``."""
    written = record(after)
    if written is None:
        return [] if report["cells"] is None else [f"there is no record of cells, and the report has {report['cells']}"]
    if cells_of(before):
        return [] if record(before) is not None else ["the owner's cells were changed"]
    old, root = etree.fromstring(before), etree.fromstring(after)
    cells = root.findall("cpu/numa/cell")
    found = []
    if [cell.get("id") for cell in cells] != [str(number) for number in range(len(cells))]:
        found.append(f"cells are numbered {[cell.get('id') for cell in cells]}")
    sets = [cpu_set(cell.get("cpus", "")) for cell in cells]
    if sorted(vcpu for one in sets for vcpu in one) != list(range(vcpus(old))):
        found.append(f"{[cell.get('cpus') for cell in cells]} is no partition of {vcpus(old)} vCPUs")
    memory = [size(cell, cell.get("memory")) for cell in cells]
    if sum(memory) != size(old.find("memory")):
        found.append(f"cells of {memory} KiB are {sum(memory)} KiB, <memory> is {size(old.find('memory'))}")
    bound = {memnode.get("cellid"): memnode.get("nodeset") for memnode in root.findall("numatune/memnode")}
    nodes = [int(bound.get(cell.get("id"), "-1")) for cell in cells]
    if nodes != sorted(set(nodes)) or len(bound) != len(cells):
        found.append(f"cells are bound to the nodes {nodes}")
        return found
    found += _mode_faults(root, nodes)
    for cell, node, own, kib in zip(cells, nodes, sets, memory):
        found += _cell_faults(root, host, cell, node, own, kib)
    found += _even_faults(old, root, host, nodes, sets, memory)
    found += _distance_faults(host, cells, nodes)
    pinned = pins(root)
    wanted = [
        {
            "cell": number,
            "host_node": node,
            "vcpus": list_format(own),
            "memory_kib": kib,
            "cpus": list_format(set().union(*(pinned.get(vcpu, set()) for vcpu in own))),
        }
        for number, (node, own, kib) in enumerate(zip(nodes, sets, memory))
    ]
    if report["cells"] != wanted:
        found.append(f"the report says {report['cells']}, it is {wanted}")
    return found


def _mode_faults(root: etree._Element, nodes: list[int]) -> list[str]:
    """libvirt: a memnode is restrictive if and only if <memory> is."""
    memory = root.find("numatune/memory")
    whole = memory.get("mode", "strict") if memory is not None else None
    modes = {memnode.get("mode") for memnode in root.findall("numatune/memnode")}
    if len(modes) != 1 or ("restrictive" in modes) != (whole == "restrictive"):
        return [f"memnodes of the modes {modes} beside <memory mode={whole}>"]
    if record(etree.tostring(root)).get("made", "").split().count("memory") and nodeset(memory.get("nodeset")) != set(nodes):
        return [f"<memory> of {memory.get('nodeset')} for the nodes {nodes}"]
    return []


def online(host: Host, node: int) -> set[int]:
    return cpu_set(host.nodes[node].cpus) - host.offline_cpus if node in host.nodes else set()


def _cell_faults(root: etree._Element, host: Host, cell: etree._Element, node: int, own: set[int], kib: int) -> list[str]:
    number, found, pinned = cell.get("id"), [], pins(root)
    if node not in host.nodes or not host.nodes[node].memory_kib:
        return [f"cell {number} is bound to node {node}, which has no memory"]
    if kib <= 0 or kib > host.nodes[node].memory_kib:
        found.append(f"cell {number} has {kib} KiB, node {node} {host.nodes[node].memory_kib}")
    for vcpu in sorted(own):
        elsewhere = [other for other in host.nodes if other != node and pinned.get(vcpu, set()) & online(host, other)]
        if not pinned.get(vcpu, set()) & online(host, node) or elsewhere:
            found.append(f"vCPU {vcpu} of cell {number} is pinned to {sorted(pinned.get(vcpu, set()))}, not to node {node}")
    return found


def _even_faults(
    old: etree._Element, root: etree._Element, host: Host, nodes: list[int], sets: list[set[int]], memory: list[int]
) -> list[str]:
    owners, found = pins(old), []
    topology = old.find("cpu/topology")
    threads = int(topology.get("threads", "1")) if topology is not None else 1
    if len(owners) < vcpus(old):
        for core in range(-(-vcpus(old) // threads)):
            inside = {core * threads + thread for thread in range(threads)} & set(range(vcpus(old)))
            if not any(inside <= own for own in sets):
                found.append(f"core {sorted(inside)} is split")
    if not owners:
        cores = [len({vcpu // threads for vcpu in own}) for own, node in zip(sets, nodes) if online(host, node)]
        if cores != sorted(cores, reverse=True) or max(cores) - min(cores) > 1:
            found.append(f"cells have {cores} cores")
        flat = [vcpu for own in sets for vcpu in sorted(own)]
        if flat != sorted(flat):
            found.append("vCPUs are not consecutive")
        if max(memory) - min(memory) >= 2 * _unit(old):
            found.append(f"cells have {memory} KiB")
    for pin in root.findall("cputune/vcpupin"):
        if int(pin.get("vcpu")) not in owners and nodeset(pin.get("cpuset")) != online(host, _home(nodes, sets, int(pin.get("vcpu")))):
            found.append(f"vCPU {pin.get('vcpu')} is pinned to {pin.get('cpuset')}, not to all CPUs of its node")
    return found


def _unit(old: etree._Element) -> int:
    page = old.find("memoryBacking/hugepages/page")
    kib = 1024 if page is None else max(1024, size(page, page.get("size")))
    return max(kib, 256 * 1024) if "pseries" in old.find("os/type").get("machine", "") else kib


def _home(nodes: list[int], sets: list[set[int]], vcpu: int) -> int:
    return next(node for node, own in zip(nodes, sets) if vcpu in own)


def _distance_faults(host: Host, cells: list[etree._Element], nodes: list[int]) -> list[str]:
    told = [[int(sibling.get("value")) for sibling in cell.findall("distances/sibling")] for cell in cells]
    wanted = [[host.distance(node, other) for other in nodes] for node in nodes]
    valid = all(d == 10 if n == o else 10 < d < 255 for n, row in zip(nodes, wanted) for o, d in zip(nodes, row))
    wanted = wanted if valid and len(nodes) > 1 else [[] for _ in nodes]
    return [] if told == wanted else [f"distances are {told}, the host's {wanted}"]
