"""The golden cases of guests without NUMA cells: one for each rule by which cells are proposed, and for each reason for none."""

from __future__ import annotations

from tests.golden.case import Case
from tests.hosts.build import GPU, NIC, Host
from tests.hosts.domains import Domain
from tests.hosts.machines import MACHINES

PAIR = {"0000:17:00.0": 0, "0000:b3:00.0": 1}
NONE = {"0000:17:00.0": None, "0000:b3:00.0": None}
FIRST, SECOND = (0, "0-1", 256.0, "0-7"), (1, "2-3", 256.0, "8-15")


def flat(vcpu: str = "<vcpu placement='static'>4</vcpu>", **texts: str) -> Domain:
    """A guest without cells, 4 vCPUs and 512 MiB, that gets GPU 17:00.0 of node 0."""
    return Domain().says(vcpu=vcpu, **texts).hostdev("17:00.0")


def pair(vcpu: str = "<vcpu placement='static'>4</vcpu>", **texts: str) -> Domain:
    """The same with GPU b3:00.0 of node 1."""
    return flat(vcpu, **texts).hostdev("b3:00.0")


def _pins(*cpusets: str) -> str:
    pins = "".join(f"    <vcpupin vcpu='{vcpu}' cpuset='{cpuset}'/>\n" for vcpu, cpuset in enumerate(cpusets) if cpuset)
    return f"<cputune>\n{pins}  </cputune>"


def _topology(sockets: int, cores: int, threads: int) -> str:
    inner = f"<topology sockets='{sockets}' dies='1' cores='{cores}' threads='{threads}'/>"
    return f"<cpu mode='host-passthrough' check='none' migratable='on'>\n    {inner}\n  </cpu>"


def _backing(page: str = "") -> str:
    pages = f"<hugepages>\n      {page}\n    </hugepages>" if page else "<hugepages/>"
    return f"<memoryBacking>\n    {pages}\n  </memoryBacking>"


def _tune(memory: str) -> str:
    return f"<numatune>\n    {memory}\n  </numatune>"


def with_gaps() -> Host:
    """Nodes 0, 8 and 252: the last has a GPU's memory only, none while the GPU is a guest's."""
    host = Host().node(0, "0-3", [10, 40, 80]).node(8, "8-11", [40, 10, 80]).node(252, "", [80, 80, 10], memory_kib=0)
    host.rc("pci0000:16", node=0).port("16:02.0").device("17:00.0", GPU)
    host.rc("pci0008:00", node=8).port("00:02.0").device("01:00.0", NIC)
    host.rc("pci0252:00", node=252).port("00:02.0").device("01:00.0", GPU)
    return host


def memory_alone() -> Host:
    """Node 2 has memory but no CPUs; NIC 65:00.0 is there."""
    host = MACHINES["two-sockets"]().node(2, "", [30, 30, 10], memory_kib=8 << 20)
    host.nodes[0].distance, host.nodes[1].distance = [10, 21, 30], [21, 10, 30]
    host.rc("pci0000:64", node=2).port("64:02.0").device("65:00.0", NIC)
    return host


def offline() -> Host:
    """CPUs 2 to 7 of node 0 are offline."""
    return MACHINES["two-sockets"]().without_cpus("2-7")


def with_hugepages(first: int, second: int, size: int = 2048) -> Host:
    """Two sockets with hugepages."""
    host = MACHINES["two-sockets"]()
    host.hugepage_kib = 2048
    host.nodes[0].hugepages, host.nodes[1].hugepages = {size: first}, {size: second}
    return host


def small_node() -> Host:
    """Node 0 has 128 MiB."""
    host = MACHINES["two-sockets"]()
    host.nodes[0].memory_kib = 128 << 10
    return host


def odd_distances() -> Host:
    """A firmware that says 255, unreachable, for what is reached well."""
    host = MACHINES["two-sockets"]()
    host.nodes[0].distance, host.nodes[1].distance = [10, 255], [255, 10]
    return host


def _case(name: str, domain: bytes, cells: list[tuple[int, str, float, str]], **more: object) -> Case:
    devices = more.pop("devices", PAIR)
    expanders = len({cell for cell in devices.values() if isinstance(cell, int)})  # type: ignore[attr-defined]
    return Case(name, more.pop("machine", "two-sockets"), domain, devices, expanders=expanders, cells=True, proposed=cells, **more)  # type: ignore[arg-type]


def _refusal(name: str, domain: bytes, says: str, reason: str = "no-cells", **more: object) -> Case:
    machine, devices = more.pop("machine", "two-sockets"), more.pop("devices", NONE)
    outcome = more.pop("outcome", "unchanged")
    return Case(name, machine, domain, devices, outcome, reason, cells=True, says=says, **more)  # type: ignore[arg-type]


CELL_CASES = [
    # Nodes.
    _case("cells-of-devices", pair().raw(), [FIRST, SECOND]),
    _case("cells-formatted", pair().nic().disk().formatted(), [FIRST, SECOND]),
    _case("cells-one-node", flat().raw(), [(0, "0-3", 512, "0-7")], devices={"0000:17:00.0": 0}),
    _case("cells-nearest-for-vcpus", flat("<vcpu placement='static'>10</vcpu>").raw(), [(0, "0-4", 256, "0-7"), (1, "5-9", 256, "8-15")],
          devices={"0000:17:00.0": 0}),
    _case("cells-nearest-for-memory", flat(memory="<memory unit='GiB'>80</memory>").raw(),
          [(0, "0-1", 40960, "0-7"), (1, "2-3", 40960, "8-15")], devices={"0000:17:00.0": 0}),
    _case("cells-nearest-by-distance", Domain().says(vcpu="<vcpu>8</vcpu>").hostdev("80:00.0").raw(),
          [(2, "0-3", 256, "8-11"), (3, "4-7", 256, "12-15")], machine="four-nodes", devices={"0000:80:00.0": 0}),
    _case("cells-as-pinned", pair(cputune=_pins("8", "9", "10", "0-7")).raw(), [(0, "3", 128, "0-7"), (1, "0-2", 384, "8-10")]),
    _case("cells-as-vcpu-cpuset", flat("<vcpu placement='static' cpuset='8-11'>4</vcpu>").hostdev("b3:00.0").raw(),
          [(1, "0-3", 512, "8-11")], devices={"0000:17:00.0": "no-cell", "0000:b3:00.0": 0}),
    _case("cells-some-pinned", pair(cputune=_pins("", "8", "", "8-9")).raw(), [(0, "0,2", 256, "0-7"), (1, "1,3", 256, "8-9")]),
    _case("cells-pinned-beyond-the-devices", flat(cputune=_pins("", "", "", "8")).raw(), [(0, "0-1", 256, "0-7"), (1, "2-3", 256, "8-15")],
          devices={"0000:17:00.0": 0}),
    _case("cells-of-numatune", flat(numatune=_tune("<memory mode='strict' nodeset='0-1'/>")).raw(), [FIRST, SECOND],
          devices={"0000:17:00.0": 0}),
    _case("cells-of-numatune-leaves-out", pair(numatune=_tune("<memory mode='strict' nodeset='1'/>")).raw(), [(1, "0-3", 512, "8-15")],
          devices={"0000:17:00.0": "no-cell", "0000:b3:00.0": 0}),
    _case("cells-with-gaps", flat().hostdev("0008:01:00.0").hostdev("0252:01:00.0").raw(),
          [(0, "0-1", 256, "0-3"), (8, "2-3", 256, "8-11")], machine=with_gaps,
          devices={"0000:17:00.0": 0, "0008:01:00.0": 1, "0252:01:00.0": "no-cell"}),
    _case("cells-with-memory-alone", flat().hostdev("65:00.0").raw(), [(0, "0-3", 256, "0-7"), (2, "", 256, "")], machine=memory_alone,
          devices={"0000:17:00.0": 0, "0000:65:00.0": 1}),
    _case("cells-offline-cpus", pair("<vcpu placement='static'>8</vcpu>").raw(), [(0, "0-3", 256, "0-1"), (1, "4-7", 256, "8-15")],
          machine=offline),
    # vCPUs.
    _case("cells-one-vcpu", pair("<vcpu placement='static'>1</vcpu>").raw(), [(0, "0", 256, "0-7"), (1, "", 256, "")]),
    _case("cells-uneven", pair("<vcpu placement='static'>5</vcpu>").raw(), [(0, "0-2", 256, "0-7"), (1, "3-4", 256, "8-15")]),
    _case("cells-up-to-the-maximum", pair("<vcpu placement='static' current='2'>4</vcpu>").raw(), [FIRST, SECOND]),
    _case("cells-hotpluggable", pair("<vcpu placement='static' current='2'>4</vcpu>", vcpus="<vcpus>\n" + "".join(
        f"    <vcpu id='{n}' enabled='{'yes' if n < 2 else 'no'}' hotpluggable='{'yes' if n > 1 else 'no'}'"
        f"{f' order={chr(39)}{n + 1}{chr(39)}' if n < 2 else ''}/>\n" for n in range(4)) + "  </vcpus>").raw(), [FIRST, SECOND]),
    _case("cells-whole-cores", pair("<vcpu placement='static'>6</vcpu>", cpu=_topology(1, 3, 2)).raw(),
          [(0, "0-3", 256, "0-7"), (1, "4-5", 256, "8-15")]),
    _case("cells-whole-sockets", pair("<vcpu placement='static'>12</vcpu>", cpu=_topology(2, 3, 2)).raw(),
          [(0, "0-5", 256, "0-7"), (1, "6-11", 256, "8-15")]),
    _case("cells-core-with-its-pinned-thread", pair("<vcpu placement='static'>4</vcpu>", cpu=_topology(1, 2, 2),
          cputune=_pins("8-15")).raw(), [(0, "2-3", 256, "0-7"), (1, "0-1", 256, "8-15")]),
    # Memory.
    _case("cells-odd-memory", pair(memory="<memory unit='KiB'>1000001</memory>").raw(),
          [(0, "0-1", 488, "0-7"), (1, "2-3", (1000001 - 488 * 1024) / 1024, "8-15")]),
    _case("cells-memory-in-gigabytes", pair(memory="<memory unit='GB'>1</memory>").raw(),
          [(0, "0-1", 477, "0-7"), (1, "2-3", (976563 - 477 * 1024) / 1024, "8-15")]),
    _case("cells-hugepages", pair(memoryBacking=_backing("<page size='2' unit='M'/>"), memory="<memory unit='MiB'>514</memory>").raw(),
          [(0, "0-1", 258, "0-7"), (1, "2-3", 256, "8-15")], machine=lambda: with_hugepages(1000, 1000)),
    _case("cells-hugepages-of-the-usual-size", pair(memoryBacking=_backing()).raw(), [FIRST, SECOND],
          machine=lambda: with_hugepages(128, 128)),
    _case("cells-hugepages-of-one-gib", pair(memoryBacking=_backing("<page size='1' unit='GiB'/>"), memory="<memory unit='GiB'>3</memory>"
          ).raw(), [(0, "0-1", 2048, "0-7"), (1, "2-3", 1024, "8-15")], machine=lambda: with_hugepages(2, 1, 1 << 20)),
    _case("cells-nearest-for-hugepages", flat(memoryBacking=_backing()).raw(), [FIRST, SECOND], devices={"0000:17:00.0": 0},
          machine=lambda: with_hugepages(200, 200)),
    _case("cells-pseries", pair(memory="<memory unit='MiB'>1280</memory>").on("pseries").raw(),
          [(0, "0-1", 768, "0-7"), (1, "2-3", 512, "8-15")], grouping="node"),
    _case("cells-i440fx", pair().on("pc").raw(), [FIRST, SECOND]),
    _case("cells-aarch64", Domain().says(vcpu="<vcpu>4</vcpu>").on("virt").interface("0002:01:00.0").hostdev("0009:01:00.0").raw(),
          [(0, "0-1", 256, "0-63"), (1, "2-3", 256, "64-127")], machine="platform", devices={"0002:01:00.0": 0, "0009:01:00.0": 1}),
    _case("cells-max-memory", pair(maxMemory="<maxMemory slots='4' unit='GiB'>8</maxMemory>").raw(), [FIRST, SECOND]),
    # What is written.
    _case("cells-memory-preferred", pair().raw(), [FIRST, SECOND], memory="preferred"),
    _case("cells-memory-restrictive", pair(numatune=_tune("<memory mode='restrictive' nodeset='0-1'/>")).raw(), [FIRST, SECOND]),
    _case("cells-memory-restrictive-asked-for", pair().raw(), [FIRST, SECOND], memory="restrictive"),
    _case("cells-odd-distances", pair().raw(), [FIRST, SECOND], machine=odd_distances),
    _case("cells-owners-tuning", pair(
        memoryBacking="<memoryBacking>\n    <source type='memfd'/>\n    <access mode='shared'/>\n    <locked/>\n  </memoryBacking>",
        iothreads="<iothreads>1</iothreads>",
        cputune="<cputune>\n    <shares>512</shares>\n    <vcpupin vcpu='1' cpuset='1'/>\n    <emulatorpin cpuset='0-15'/>\n"
        "    <iothreadpin iothread='1' cpuset='0,8'/>\n    <vcpusched vcpus='0-3' scheduler='batch'/>\n  </cputune>",
        cpu="<cpu mode='custom' match='exact' check='none'>\n    <model fallback='forbid'>qemu64</model>\n"
        "    <topology sockets='4' dies='1' cores='1' threads='1'/>\n    <feature policy='disable' name='svm'/>\n  </cpu>"
    ).with_extras().metadata(policy="preferred").formatted(), [FIRST, SECOND]),
    _case("cells-asked-by-owner", pair().metadata(cells="auto").raw(), [FIRST, SECOND]),
    Case("cells-asked-host-wide", "two-sockets", pair().raw(), PAIR, expanders=2, settings={"cells": True}, proposed=[FIRST, SECOND]),
    Case("cells-off-by-owner", "two-sockets", pair().metadata(cells="off").raw(), NONE, "unchanged", "no-cells", cells=True,
         says="its owner says cells='off'"),
    Case("cells-off-by-caller", "two-sockets", pair().metadata(cells="auto").raw(), NONE, "unchanged", "no-cells", cells=False),
    Case("cells-not-asked-for", "two-sockets", pair().raw(), NONE, "unchanged", "no-cells", says="`pcinuma cells guest` shows"),
    Case("cells-of-the-owner", "two-sockets", Domain().cells("0-1").memnode(0, "1").hostdev("b3:00.0").raw(), {"0000:b3:00.0": 0},
         expanders=1, cells=True),
    # No proposal.
    _refusal("no-cells-pins-across-nodes", pair(cputune=_pins("0-3", "6-9", "8", "9")).raw(),
             "<vcpupin vcpu='1' cpuset='6-9'> lies on the host nodes 0 and 1"),
    _refusal("no-cells-cpuset-across-nodes", pair("<vcpu placement='static' cpuset='0-15'>4</vcpu>").raw(),
             "<vcpu cpuset='0-15'> lies on the host nodes 0 and 1"),
    _refusal("no-cells-pinned-to-offline-cpus", pair(cputune=_pins("3", "8", "8", "8")).raw(), "no CPU that is online", machine=offline),
    _refusal("no-cells-core-pinned-apart", pair(cputune=_pins("0", "8"), cpu=_topology(1, 2, 2)).raw(), "the other threads of its core"),
    _refusal("no-cells-pinned-outside-numatune", pair(cputune=_pins("8"), numatune=_tune("<memory mode='strict' nodeset='0'/>")).raw(),
             "<vcpupin vcpu='0' cpuset='8'> is on host node 1, which <numatune><memory nodeset='0'> leaves out"),
    _refusal("no-cells-placement-auto", pair("<vcpu placement='auto'>4</vcpu>").raw(), "<vcpu placement='auto'> leaves the nodes to numad"),
    _refusal("no-cells-memory-auto", pair(numatune=_tune("<memory mode='strict' placement='auto'/>")).raw(), "placement='static'"),
    _refusal("no-cells-interleave", pair(numatune=_tune("<memory mode='interleave' nodeset='0-1'/>")).raw(), "mode='strict' there gives"),
    _refusal("no-cells-restrictive", pair(numatune=_tune("<memory mode='restrictive' nodeset='0-1'/>")).raw(),
             "makes every cell's mode restrictive", memory="strict"),
    _refusal("no-cells-strict-against-restrictive", pair(numatune=_tune("<memory mode='strict' nodeset='0-1'/>")).raw(),
             "<numatune><memory mode='strict'> lets libvirt take no cell whose mode is restrictive", memory="restrictive"),
    _refusal("no-cells-nodeset-without-memory", flat(numatune=_tune("<memory mode='strict' nodeset='0,252'/>")).raw(),
             "names host node 252, which has no memory", machine=with_gaps, devices={"0000:17:00.0": None}),
    _refusal("no-cells-nodeset-not-online", pair(numatune=_tune("<memory mode='strict' nodeset='0-2'/>")).raw(),
             "names host node 2, which is not online"),
    _refusal("no-cells-nodeset-without-cpus", flat(numatune=_tune("<memory mode='strict' nodeset='2'/>")).raw(), "no host node with CPUs",
             machine=memory_alone, devices={"0000:17:00.0": None}),
    _refusal("no-cells-undividable-memory", pair(memory="<memory unit='MiB'>1</memory>").raw(), "cannot be divided among 2 cells"),
    _refusal("no-cells-undividable-hugepages", pair(memoryBacking=_backing(), memory="<memory unit='MiB'>511</memory>").raw(),
             "no whole number of hugepages of 2048 KiB", machine=lambda: with_hugepages(999, 999)),
    _refusal("no-cells-page-nodeset", pair(memoryBacking=_backing("<page size='2' unit='M' nodeset='0'/>")).raw(),
             "<page nodeset='0'> in <hugepages>", machine=lambda: with_hugepages(999, 999)),
    _refusal("no-cells-too-few-hugepages", pair(memoryBacking=_backing()).raw(),
             "the cell for host node 1 would need 262144 KiB of <memory>, and the node has 204800 KiB in hugepages of 2048 KiB",
             machine=lambda: with_hugepages(999, 100)),
    _refusal("no-cells-too-little-memory", pair(cputune=_pins("0", "1", "8", "9")).raw(), "the node has 131072 KiB", machine=small_node),
    _refusal("no-cells-too-few-cpus", pair("<vcpu placement='static'>17</vcpu>").raw(), "up to 17 vCPUs"),
    _refusal("no-cells-no-affinity", pair().raw(), "no NUMA node for any of its passthrough devices", machine="minus-one"),
    _refusal("no-cells-device-node-without-memory", Domain().says(vcpu="<vcpu>4</vcpu>").hostdev("0252:01:00.0").raw(),
             "host node 252 of 0252:01:00.0 has no memory", machine=with_gaps, devices={"0252:01:00.0": None}),
    _refusal("no-cells-none-for-the-devices", flat("<vcpu placement='static' cpuset='8-11'>4</vcpu>").raw(),
             "on host node 1, and its devices on host node 0", reason="no-cell", devices={"0000:17:00.0": "no-cell"}),
    _refusal("no-cells-memory-device", pair(maxMemory="<maxMemory slots='4' unit='GiB'>8</maxMemory>").device_text(
        "<memory model='dimm'>\n      <target>\n        <size unit='MiB'>512</size>\n        <node>0</node>\n      </target>\n    </memory>"
    ).raw(), "<memory model='dimm'> is a memory device"),
    _refusal("no-cells-required", pair("<vcpu placement='static' cpuset='0-15'>4</vcpu>").metadata(policy="required").raw(),
             "<vcpu cpuset='0-15'> lies on the host nodes 0 and 1", reason="required", outcome="fallback"),
]  # fmt: skip
