# SPDX-License-Identifier: LGPL-2.1-or-later
"""What makes room for a layout that UEFI firmware would not map, in the words of who has to set it.

The writer of a libvirt domain can set everything; a user of OpenStack Nova or oVirt only what those have a name for. Sources: Nova's
configuration reference (``[libvirt]``) and flavor extra specs; oVirt's ``LibvirtVmXmlBuilder`` and ``engine-config``, vdsm's hook
qemucmdline.
"""

from __future__ import annotations

from typing import Optional

from pcinuma.model import Cpu, Firmware, Manager

_GIB = 1 << 30
_FEWER = "fewer such devices in one guest need less"


def for_ports(manager: Manager, most: int) -> str:
    """What leaves at most ``most`` hot-pluggable ports on the main root."""
    if manager is Manager.NOVA:
        return (
            f"a lower num_pcie_ports in nova.conf, section [libvirt], that leaves at most {most} of them makes room from the next hard "
            "reboot on (outside Nova: hotplug='off' on root ports that need no hot-plug)"
        )
    if manager is Manager.OVIRT:
        return (
            f"'engine-config -s NumOfPciExpressPorts=N' with an N that leaves at most {most} of them makes room, for all VMs; oVirt has no "
            "such setting for one VM (outside oVirt: hotplug='off' on root ports that need no hot-plug)"
        )
    return "<target hotplug='off'/> on main root ports that need no hot-plug, or fewer root ports, makes room"


def for_memory(firmware: Optional[Firmware], need: int, can_be_told: bool) -> str:
    """What makes the firmware's range at least ``need`` bytes. ``can_be_told``: that much has room in the CPU's address space."""
    if firmware is not None and firmware.size is not None:
        return f"no setting makes that more on this machine type; {_FEWER}"
    manager = Manager.LIBVIRT if firmware is None else firmware.manager
    ways = [] if firmware is None else _more_bits(firmware.cpu, manager)
    if can_be_told:
        told = f"name=opt/ovmf/X-PciMmio64Mb,string={-(-need // _GIB) * 1024}"
        if manager is Manager.LIBVIRT:
            ways.append(f"QEMU's argument -fw_cfg {told} (by <qemu:commandline>)")
        elif manager is Manager.OVIRT:
            ways.append(f"the custom property qemu_cmdline=[\"-fw_cfg\",\"{told}\"] (vdsm's hook qemucmdline)")
    if not ways:
        return f"{'Nova has no setting that makes that more; ' if manager is Manager.NOVA else ''}{_FEWER}"
    return f"{', or '.join(ways)} makes room"


def _more_bits(cpu: Cpu, manager: Manager) -> list[str]:
    """How the guest's CPU gets the host's address bits, where it has not."""
    if cpu.limit is not None:
        return ["a larger limit in <maxphysaddr>"]
    if cpu.bits is None:
        return []
    if manager is Manager.NOVA:
        flavor = "a flavor with hw:maxphysaddr_mode=emulate and hw:maxphysaddr_bits"
        return ["cpu_mode=host-passthrough in nova.conf, section [libvirt]", flavor]
    if manager is Manager.OVIRT:
        return ["'Pass-Through Host CPU' in the VM's host settings"]
    return ["<cpu mode='host-passthrough'>", "<maxphysaddr mode='emulate' bits='…'/> with the host's address bits"]
