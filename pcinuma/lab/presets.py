# SPDX-License-Identifier: LGPL-2.1-or-later
"""Virtual hosts to try pcinuma on, each a few lines; ``PRESETS[name]`` is one, with the guest that is to be run on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Union

from pcinuma.address import PciAddress
from pcinuma.lab.hardware import HostPlan, functions, gpu, igb, nic, nvme, switch


@dataclass(frozen=True)
class Preset:
    """A host, the names of the devices to pass through (a tuple shares a guest slot), and guest cell -> host node."""

    host: HostPlan
    passed: tuple[Union[str, tuple[str, ...]], ...]
    cells: dict[int, int]
    prepare: str = ""
    """What the virtual host's administrator does first (shell)."""

    @property
    def names(self) -> list[str]:
        """The passed devices in the order of the domain."""
        return [name for item in self.passed for name in ([item] if isinstance(item, str) else item)]

    @property
    def slots(self) -> list[Union[PciAddress, tuple[PciAddress, ...]]]:
        """The passed devices by their addresses in the running host."""
        at = self.host.addresses()
        return [at[item] if isinstance(item, str) else tuple(at[name] for name in item) for item in self.passed]


def two_sockets_with_switches() -> Preset:
    """A GPU and a NIC under one switch on each node, and a drive on a root complex of its own."""
    host = HostPlan()
    host.complex(0).port(switch(gpu("gpu0"), nic("nic0")))
    host.complex(0).port(nvme("disk0"))
    host.complex(1).port(switch(gpu("gpu1"), nic("nic1")))
    return Preset(host, ("gpu0", "nic0", "disk0", "gpu1", "nic1"), {0: 0, 1: 1})


def four_nodes() -> Preset:
    """A NIC on each of four nodes, and a guest with four cells."""
    host = HostPlan(nodes=4)
    for node in range(4):
        host.complex(node).port(nic(f"nic{node}"))
    return Preset(host, tuple(f"nic{node}" for node in range(4)), {node: node for node in range(4)})


def two_root_complexes() -> Preset:
    """Two root complexes on each node."""
    host = HostPlan()
    for node in range(2):
        for number in range(2):
            host.complex(node).port(nic(f"nic{2 * node + number}"))
    return Preset(host, ("nic0", "nic1", "nic2", "nic3"), {0: 0, 1: 1})


def sriov() -> Preset:
    """VFs of a drive on node 0, a NIC on node 1."""
    host = HostPlan()
    host.complex(0).port(nvme("pf", vfs=2))
    host.complex(1).port(nic("nic1"))
    # QEMU's nvme VFs have no working driver in a Linux host: keep it off them.
    prepare = "pf=/sys/bus/pci/devices/%s; echo 0 >$pf/sriov_drivers_autoprobe; echo 2 >$pf/sriov_numvfs" % str(host.addresses()["pf"])
    return Preset(host, ("pf/1", "pf/2", "nic1"), {0: 0, 1: 1}, prepare)


def sriov_nic() -> Preset:
    """VFs of a NIC on node 1, a drive on node 0."""
    host = HostPlan()
    host.complex(0).port(nvme("disk0"))
    host.complex(1).port(igb("pf", vfs=2))
    # The kernel's driver for functions whose VFs are for guests only; igb itself would make the VFs just as well.
    at = str(host.addresses()["pf"])
    prepare = (
        f"pf=/sys/bus/pci/devices/{at}; modprobe pci-pf-stub; echo pci-pf-stub >$pf/driver_override; echo {at} >/sys/bus/pci/drivers_probe"
        '; echo 2 >$pf/sriov_numvfs || give_up "the NIC makes no VFs"'
    )
    return Preset(host, ("disk0", "pf/1", "pf/2"), {0: 0, 1: 1}, prepare)


def multifunction() -> Preset:
    """A card with two functions on node 1, passed on as such, and a NIC on node 0."""
    host = HostPlan()
    host.complex(0).port(nic("nic0"))
    host.complex(1).port(functions(gpu("card"), nic("card-nic")))
    return Preset(host, ("nic0", ("card", "card-nic")), {0: 0, 1: 1})


def minus_one() -> Preset:
    """Nodes exist, but the firmware says of no device where it is: nothing is to be placed."""
    host = HostPlan(expanders=False)
    host.complex(0).port(nic("nic0"))
    host.complex(1).port(nvme("disk1"))
    return Preset(host, ("nic0", "disk1"), {0: 0, 1: 1})


PRESETS: dict[str, Callable[[], Preset]] = {
    "two-sockets-with-switches": two_sockets_with_switches,
    "four-nodes": four_nodes,
    "two-root-complexes": two_root_complexes,
    "sriov": sriov,
    "multifunction": multifunction,
    "minus-one": minus_one,
}

NEWER_PRESETS: dict[str, Callable[[], Preset]] = {"igb": sriov_nic}
"""What QEMU has only from 8.0 on."""
