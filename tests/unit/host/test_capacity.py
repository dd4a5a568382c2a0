# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the host's nodes have to give: read live, whatever their numbers, and whatever this process itself may use of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pcinuma.engine import Request, place
from pcinuma.errors import HostError
from pcinuma.host.capacity import Capacity, read_capacity
from pcinuma.host.nodes import Nodes
from pcinuma.host.sysfs import Sysfs
from pcinuma.reason import Outcome, Reason
from tests.golden.cells import pair
from tests.hosts.build import Host, unreadable
from tests.hosts.guard import no_real_host  # noqa: F401
from tests.hosts.machines import two_sockets

NODE = "sys/devices/system/node/node1"


def _read(host: Host, root: Path, hugepages: bool = False) -> Capacity:
    sysfs = Sysfs(host.write(root))
    return read_capacity(sysfs, Nodes(sysfs), hugepages)


def test_node_numbers_may_have_gaps_and_distances_count_online_nodes(tmp_path: Path) -> None:
    host = Host().node(0, "0-3", [10, 40, 80]).node(8, "4-7", [40, 10, 60]).node(252, "", [80, 60, 10], memory_kib=0)
    capacity = _read(host, tmp_path)
    assert list(capacity.nodes) == [0, 8, 252]
    assert (capacity.distances[0, 8], capacity.distances[8, 252], capacity.distances[252, 252]) == (40, 60, 10)


def test_a_node_may_have_no_cpus_or_no_memory(tmp_path: Path) -> None:
    capacity = _read(Host().node(0, "0-3", memory_kib=0).node(1, "", memory_kib=1 << 20), tmp_path)
    assert [(len(node.cpus), node.memory_kib) for node in capacity.nodes.values()] == [(4, 0), (0, 1 << 20)]


def test_offline_cpus_are_nobodys(tmp_path: Path) -> None:
    capacity = _read(two_sockets().without_cpus("0,9-15"), tmp_path)
    assert [list(node.cpus) for node in capacity.nodes.values()] == [[1, 2, 3, 4, 5, 6, 7], [8]]


def test_a_cpulist_that_lists_offline_cpus_is_cut_to_those_online(tmp_path: Path) -> None:
    root = two_sockets().write(tmp_path)
    (root / "sys/devices/system/cpu/online").write_text("0-5,8-15\n")
    sysfs = Sysfs(root)
    assert list(read_capacity(sysfs, Nodes(sysfs), False).nodes[0].cpus) == [0, 1, 2, 3, 4, 5]


def test_what_this_process_may_run_on_does_not_count(tmp_path: Path) -> None:
    mine = os.sched_getaffinity(0)
    wanted = _read(two_sockets(), tmp_path / "a")
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert _read(two_sockets(), tmp_path / "b") == wanted
    finally:
        os.sched_setaffinity(0, mine)


def test_hugepages_are_counted_by_size_and_only_where_asked_for(tmp_path: Path) -> None:
    host = two_sockets()
    host.hugepage_kib = 2048
    host.nodes[0].hugepages, host.nodes[1].hugepages = {2048: 512, 1 << 20: 4}, {2048: 0}
    capacity = _read(host, tmp_path, hugepages=True)
    assert [dict(node.hugepages) for node in capacity.nodes.values()] == [{2048: 512, 1 << 20: 4}, {2048: 0}]
    assert capacity.hugepage_kib == 2048
    sysfs = Sysfs(tmp_path)
    assert [dict(node.hugepages) for node in read_capacity(sysfs, Nodes(sysfs), False).nodes.values()] == [{}, {}]


def test_distances_that_do_not_fit_the_nodes_are_not_told(tmp_path: Path) -> None:
    root = two_sockets().write(tmp_path)
    (root / NODE / "distance").write_text("10 21 30\n")
    sysfs = Sysfs(root)
    assert set(read_capacity(sysfs, Nodes(sysfs), False).distances) == {(0, 0), (0, 1)}


DAMAGE = [
    ("meminfo", None, "is missing"),
    ("meminfo", "garbage\n", "tells no MemTotal"),
    ("cpulist", "x\n", "where a list of numbers belongs"),
    ("distance", "ten\n", "where distances belong"),
    ("hugepages/hugepages-2048kB/nr_hugepages", "many\n", "where a number belongs"),
    ("../../cpu/online", "many\n", "where a list of CPUs belongs"),
]


@pytest.mark.parametrize(("name", "text", "says"), DAMAGE)
def test_what_cannot_be_read_is_said_with_its_file_and_gives_no_cells(name: str, text: str, says: str, tmp_path: Path) -> None:
    host = two_sockets()
    host.nodes[1].hugepages = {2048: 512}
    root = host.write(tmp_path)
    file = root / NODE / name
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    sysfs = Sysfs(root)
    with pytest.raises(HostError, match=says):
        read_capacity(sysfs, Nodes(sysfs), True)
    xml = pair(memoryBacking="<memoryBacking><hugepages/></memoryBacking>").raw()
    result = place(xml, Request(root=root, cells=True))
    assert (result.outcome, result.reason, result.xml) == (Outcome.FALLBACK, Reason.HOST_UNREADABLE, xml)
    assert says in (result.message or "") and result.cells is None


def test_who_asks_for_no_cells_reads_none_of_it(tmp_path: Path) -> None:
    root = two_sockets().write(tmp_path)
    for node in ("node0", "node1"):
        for name in ("meminfo", "distance", "cpulist"):
            unreadable(root / "sys/devices/system/node" / node / name)
    unreadable(root / "sys/devices/system/cpu/online")
    xml = pair().raw()
    result = place(xml, Request(root=root))
    assert (result.outcome, result.reason, result.xml) == (Outcome.UNCHANGED, Reason.NO_CELLS, xml)
