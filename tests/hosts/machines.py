# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines that tests place on, each named after what is odd about it. ``MACHINES[name]()`` gives a fresh :class:`Host`."""

from __future__ import annotations

from typing import Callable

from tests.hosts.build import AUDIO, E810, GPU, NIC, NVME, SATA, USB, VGA, Host

MDEV = "6f0b2ab3-8f2c-4c5b-9c26-0a45a01d8a11"
MDEV_REMOTE = "c2f6bdb0-17d4-4f8c-a3a7-93fa2a6f7d22"


def two_sockets() -> Host:
    """A root complex per node: GPU 17:00.0, NIC 18:00.0, NVMe 19:00.0 on node 0; GPU b3:00.0, NIC b4:00.0, NVMe b5:00.0 on 1."""
    host = Host().node(0, "0-7").node(1, "8-15")
    for name, node, bus in (("pci0000:16", 0, 0x17), ("pci0000:b2", 1, 0xB3)):
        root = host.rc(name, node=node)
        for slot, kind in enumerate((GPU, NIC, NVME)):
            root.port(f"{bus - 1:02x}:{slot * 2:02x}.0").device(f"{bus + slot:02x}:00.0", kind)
    legacy = host.rc("pci0000:00", node=0)
    legacy.device("00:14.0", USB)
    legacy.device("00:17.0", SATA)
    return host


def four_nodes() -> Host:
    """Two nodes a socket: one GPU and one NIC on each of four nodes, (40 + 20 n):00.0 and the next bus."""
    host = Host()
    for number in range(4):
        distance = [10 if other == number else 12 if other // 2 == number // 2 else 32 for other in range(4)]
        host.node(number, f"{number * 4}-{number * 4 + 3}", distance)
    for number in range(4):
        bus = 0x40 + 0x20 * number
        root = host.rc(f"pci0000:{bus - 1:02x}", node=number)
        root.port(f"{bus - 1:02x}:01.0").device(f"{bus:02x}:00.0", GPU)
        root.port(f"{bus - 1:02x}:03.0").device(f"{bus + 1:02x}:00.0", NIC)
    return host


def two_root_complexes() -> Host:
    """Two root complexes on node 0 (GPU 17:00.0 and NIC 18:00.0; GPU 4b:00.0), one on node 1 (GPU b3:00.0)."""
    host = Host().node(0, "0-7").node(1, "8-15")
    first = host.rc("pci0000:16", node=0)
    first.port("16:02.0").device("17:00.0", GPU)
    first.port("16:04.0").device("18:00.0", NIC)
    host.rc("pci0000:4a", node=0).port("4a:02.0").device("4b:00.0", GPU)
    host.rc("pci0000:b2", node=1).port("b2:02.0").device("b3:00.0", GPU)
    return host


def eight_gpus() -> Host:
    """Four switches, two a socket, each in a root complex of its own: two GPUs and two NICs below each.

    Switch n has its root port at (20 + 30 n):01.0; GPUs at buses +4 and +5, NICs at +6 and +7.
    """
    host = Host().node(0, "0-15").node(1, "16-31")
    for number in range(4):
        bus = 0x20 + 0x30 * number
        root = host.rc(f"pci0000:{bus:02x}", node=number // 2)
        ports = root.port(f"{bus:02x}:01.0").switch(f"{bus + 1:02x}:00.0", [f"{bus + 2:02x}:{slot:02x}.0" for slot in (0, 4, 8, 0xC)])
        for port, offset, kind in zip(ports, (4, 5, 6, 7), (GPU, GPU, NIC, NIC)):
            port.device(f"{bus + offset:02x}:00.0", kind)
    return host


def cascaded_switches() -> Host:
    """A switch of switches on node 0: GPUs 24:00.0 and 25:00.0 below one, 28:00.0 below another, NIC 2a:00.0 on the outer switch;
    NIC 2c:00.0 on a root port of its own."""
    host = Host().node(0, "0-3").node(1, "4-7")
    root = host.rc("pci0000:1f", node=0)
    outer = root.port("1f:01.0").switch("20:00.0", ["21:00.0", "21:01.0", "21:02.0"])
    left = outer[0].switch("22:00.0", ["23:00.0", "23:01.0"])
    left[0].device("24:00.0", GPU)
    left[1].device("25:00.0", GPU)
    right = outer[1].switch("26:00.0", ["27:00.0", "27:01.0"])
    right[0].device("28:00.0", GPU)
    outer[2].device("2a:00.0", NIC)
    root.port("1f:02.0").device("2c:00.0", NIC)
    host.rc("pci0000:80", node=1).port("80:01.0").device("81:00.0", GPU)
    return host


def sriov() -> Host:
    """A NIC with four VFs on each node: PF 3b:00.0, VFs 3b:01.0 to 3b:01.3; PF d8:00.0, VFs d8:01.0 to d8:01.3."""
    host = Host().node(0, "0-7").node(1, "8-15")
    for name, node, bus, net in (("pci0000:3a", 0, "3b", "ens1f0"), ("pci0000:d7", 1, "d8", "ens2f0")):
        port = host.rc(name, node=node).port(f"{name[-2:]}:00.0")
        port.device(f"{bus}:00.0", E810).net(net).vfs(*(f"{bus}:01.{vf}" for vf in range(4)))
    return host


def vfs_without_node() -> Host:
    """As :func:`sriov`, but VFs say -1 and all CPUs (3b) or have no numa_node file at all (d8): their PF knows."""
    host = Host().node(0, "0-7").node(1, "8-15")
    first = host.rc("pci0000:3a", node=0).port("3a:00.0").device("3b:00.0", E810)
    first.vfs("3b:01.0", "3b:01.1", node=-1)
    second = host.rc("pci0000:d7", node=1).port("d7:00.0").device("d8:00.0", E810)
    second.vfs("d8:01.0", "d8:01.1", node=None, cpulist=None)
    return host


def multifunction_gpu() -> Host:
    """A graphics card with audio, USB and UCSI functions, 17:00.0 to 17:00.3 on node 0, another, 65:00.0 and .1, on node 1."""
    host = Host().node(0, "0-7").node(1, "8-15")
    port = host.rc("pci0000:16", node=0).port("16:00.0")
    for number, kind in enumerate((VGA, AUDIO, USB, USB)):
        port.device(f"17:00.{number}", kind)
    port = host.rc("pci0000:64", node=1).port("64:00.0")
    port.device("65:00.0", VGA)
    port.device("65:00.1", AUDIO)
    return host


def minus_one() -> Host:
    """A machine with two nodes whose firmware says nothing: every device -1 and all CPUs. GPUs 17:00.0 and b3:00.0."""
    host = Host().node(0, "0-7").node(1, "8-15")
    host.rc("pci0000:16").port("16:02.0").device("17:00.0", GPU)
    host.rc("pci0000:b2").port("b2:02.0").device("b3:00.0", GPU)
    return host


def local_cpulist() -> Host:
    """As :func:`minus_one`, but local_cpulist tells: 17:00.0 node 0, 18:00.0 half of it, b3:00.0 node 1, b4:00.0 across both."""
    host = Host().node(0, "0-7").node(1, "8-15")
    first = host.rc("pci0000:16")
    first.port("16:02.0").device("17:00.0", GPU, cpulist="0-7")
    first.port("16:03.0").device("18:00.0", NIC, cpulist="2-3")
    second = host.rc("pci0000:b2")
    second.port("b2:02.0").device("b3:00.0", GPU, cpulist="8-15")
    second.port("b2:03.0").device("b4:00.0", NIC, cpulist="6-9")
    return host


def one_node() -> Host:
    """A single node: GPU 17:00.0, NIC 18:00.0."""
    host = Host().node(0, "0-7")
    root = host.rc("pci0000:16", node=0)
    root.port("16:02.0").device("17:00.0", GPU)
    root.port("16:03.0").device("18:00.0", NIC)
    return host


def vmd() -> Host:
    """NVMe drives in PCI domain 10000 behind VMD on node 0 (10000:01:00.0, 10000:02:00.0) and domain 10001 on node 1
    (10001:01:00.0); GPU 0001:17:00.0 in another PCI domain on node 1."""
    host = Host().node(0, "0-7").node(1, "8-15")
    for name, node, volume, drives in (("pci0000:5d", 0, "pci10000:00", 2), ("pci0000:ae", 1, "pci10001:00", 1)):
        nested = host.rc(name, node=node).device(f"{name[-2:]}:05.5", SATA).vmd(volume)
        for drive in range(drives):
            nested.port(f"00:0{drive + 2}.0").device(f"0{drive + 1}:00.0", NVME)
    host.rc("pci0001:16", node=1).port("16:00.0").device("17:00.0", GPU)
    return host


def mediated() -> Host:
    """mdevs on GPUs of both nodes, vDPA on VFs of both: MDEV (17:00.0, node 0), MDEV_REMOTE (b3:00.0, node 1), vhost-vdpa-0
    (3b:01.0, node 0), vhost-vdpa-1 (d8:01.0, node 1), NVMe 19:00.0 and b5:00.0."""
    host = Host().node(0, "0-7").node(1, "8-15")
    for name, node, gpu, uuid in (("pci0000:16", 0, "17", MDEV), ("pci0000:b2", 1, "b3", MDEV_REMOTE)):
        root = host.rc(name, node=node)
        root.port(f"{name[-2:]}:02.0").device(f"{gpu}:00.0", GPU).mdev(uuid)
        root.port(f"{name[-2:]}:03.0").device(f"{int(gpu, 16) + 2:02x}:00.0", NVME).block(f"nvme{node}")
    for name, node, bus in (("pci0000:3a", 0, "3b"), ("pci0000:d7", 1, "d8")):
        vfs = host.rc(name, node=node).port(f"{name[-2:]}:00.0").device(f"{bus}:00.0", NIC).vfs(f"{bus}:01.0", f"{bus}:01.1")
        vfs[0].vdpa(node)
    return host


def backed() -> Host:
    """Drives and NICs that guests reach by the host's drivers: nvme0 (17:00.0) and eth0 (18:00.0) on node 0, nvme1 (b3:00.0) and eth1
    (b4:00.0) on node 1, GPU 19:00.0. On nvme1: dm-1 (a volume, on the partition); on both: dm-2; on eth1: bond0, and on that bond0.7;
    on both NICs: bond1; on nothing: dm-3, br0 (with a guest's tap beside eth0). nvme9n1: over nvme0's and a second controller beside it."""
    host = Host().node(0, "0-7").node(1, "8-15")
    for node, name, bus in ((0, "pci0000:16", 0x17), (1, "pci0000:b2", 0xB3)):
        root = host.rc(name, node=node)
        root.port(f"{bus - 1:02x}:00.0").device(f"{bus:02x}:00.0", NVME).block(f"nvme{node}")
        root.port(f"{bus - 1:02x}:02.0").device(f"{bus + 1:02x}:00.0", NIC).net(f"eth{node}")
        if not node:
            root.port("16:04.0").device("19:00.0", GPU)
            root.port("16:06.0").device("1a:00.0", NVME).block("nvme4")
    host.virtual_block("dm-1", "nvme1n1p1").virtual_block("dm-2", "nvme0n1", "nvme1n1").virtual_block("dm-3")
    host.virtual_net("bond0", "eth1").virtual_net("bond0.7", "bond0").virtual_net("bond1", "eth0", "eth1")
    host.virtual_net("tap0").virtual_net("br0", "eth0", "tap0").subsystem("nvme9n1", "nvme0", "nvme4").subsystem("nvme10n1", "nvme5")
    host.dev_link("disk/by-id/nvme-a", "nvme0n1").dev_link("mapper/vg-lv", "dm-1").dev_link("vg/lv", "dm-1")
    return host


def device_node_without_cpus() -> Host:
    """Grace-like: nodes 0 and 1 have CPUs, 2 and 3 are the memory of GPUs 17:00.0 and b3:00.0, near 0 and 1."""
    distances = ([10, 40, 80, 120], [40, 10, 120, 80], [80, 120, 10, 160], [120, 80, 160, 10])
    host = Host()
    for number, (cpus, distance) in enumerate(zip(("0-7", "8-15", "", ""), distances)):
        host.node(number, cpus, distance)
    host.rc("pci0000:16", node=2).port("16:02.0").device("17:00.0", GPU)
    host.rc("pci0000:b2", node=3).port("b2:02.0").device("b3:00.0", GPU)
    return host


def platform() -> Host:
    """An Arm server: root complexes below platform devices, each in a PCI domain of its own; NIC 0002:01:00.0, GPU 0009:01:00.0."""
    host = Host().node(0, "0-63").node(1, "64-127")
    host.rc("pci0002:00", node=0, below="platform/LNRO0001:00/").port("00:01.0").device("01:00.0", NIC)
    host.rc("pci0009:00", node=1, below="platform/LNRO0001:07/").port("00:01.0").device("01:00.0", GPU)
    return host


def crowd(devices: int = 40, roots: int = 1, nodes: int = 1) -> Host:
    """Many NVMe drives: ``devices`` of them on each of ``roots`` root complexes on each of ``nodes`` nodes, root r in PCI
    domain r with its drives at 000r:01:00.0 and up."""
    host = Host()
    for node in range(nodes):
        host.node(node, f"{node * 8}-{node * 8 + 7}")
    for number in range(nodes * roots):
        root = host.rc(f"pci{number:04x}:00", node=number // roots)
        for drive in range(devices):
            root.port(f"00:{drive // 8 + 1:02x}.{drive % 8}").device(f"{drive + 1:02x}:00.0", NVME)
    return host


def switches(count: int = 60) -> Host:
    """One node with ``count`` root complexes, each with a switch and two GPUs: nnnn:03:00.0 and nnnn:04:00.0."""
    host = Host().node(0, "0-7")
    for number in range(count):
        root = host.rc(f"pci{number:04x}:00", node=0)
        for bus, port in zip((3, 4), root.port("00:01.0").switch("01:00.0", ["02:00.0", "02:01.0"])):
            port.device(f"{bus:02x}:00.0", GPU)
    return host


MACHINES: dict[str, Callable[[], Host]] = {
    machine.__name__.replace("_", "-"): machine
    for machine in (
        two_sockets,
        four_nodes,
        two_root_complexes,
        eight_gpus,
        cascaded_switches,
        sriov,
        vfs_without_node,
        multifunction_gpu,
        minus_one,
        local_cpulist,
        one_node,
        vmd,
        mediated,
        backed,
        device_node_without_cpus,
        platform,
        crowd,
    )
}
