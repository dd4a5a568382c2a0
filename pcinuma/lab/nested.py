# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest inside the virtual host: its domain XML as an owner would write it, and its initramfs.

Everything about it is chosen for speed, since TCG in TCG is slow: one vCPU, an old CPU model, a second cell without CPUs, a kernel that is
booted directly, an init that forks nearly nothing. What is not touched is PCI: hostdevs are written without addresses, managed by
libvirt, and libvirt chooses everything that pcinuma does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Optional, Union

from pcinuma.address import PciAddress
from pcinuma.lab import guest_agent, initramfs, machine
from pcinuma.lab.kernel import Kernel

READ_BEGIN = "=====PCINUMA-READ-BEGIN====="
READ_END = "=====PCINUMA-READ-END====="
CMDLINE = f"{machine.BRISK} {machine.LEAN} 8250.nr_uarts=1"

_MODULES = """
mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
    insmod "$module"
done
"""

_READ = """
tries=100
while [ ! -b /dev/nvme0n1 ] && [ $tries -gt 0 ]; do sleep 0.2; tries=$((tries - 1)); done
echo "%(begin)s"
for disk in /dev/nvme*n1; do
    read -r line <"$disk" && echo "read disk=${disk##*/} text=$line"
done
echo "%(end)s"
""" % {"begin": READ_BEGIN, "end": READ_END}

PLUGGED = "=====PCINUMA-PLUGGED====="
UNPLUGGED = "=====PCINUMA-UNPLUGGED====="
FILE_BEGIN = "=====PCINUMA-FILE-BEGIN====="
FILE_END = "=====PCINUMA-FILE-END====="

# Waiting is a builtin here: nobody types at the serial port.
_WATCH = """
count() { set -- /sys/bus/pci/devices/*; number=$#; }
count; first=$number
while [ $number -eq $first ]; do read -r -t 1 nothing; count; done
read -r -t 1 nothing
print_tree
echo "%(begin)s"
cat /var/run/nvidia-topologyd/virtualTopology.xml
echo "%(end)s"
echo "%(plugged)s"
while [ $number -ne $first ]; do read -r -t 1 nothing; count; done
echo "%(unplugged)s"
while :; do read -r -t 60 nothing; done
""" % {"plugged": PLUGGED, "unplugged": UNPLUGGED, "begin": FILE_BEGIN, "end": FILE_END}

_DOMAIN = """<domain type='qemu'>
  <name>%(name)s</name>
  <metadata>
    <lab:about xmlns:lab='urn:example:lab'>the lab's guest</lab:about>%(metadata)s
  </metadata>
  <memory unit='MiB'>%(memory)d</memory>
  <vcpu>1</vcpu>%(numatune)s
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/images/vmlinux</kernel>
    <initrd>/images/%(initrd)s</initrd>
    <cmdline>%(cmdline)s</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom'>
    <model>qemu64</model>%(numa)s
  </cpu>
  <on_reboot>destroy</on_reboot>
  <devices>
    <controller type='usb' model='none'/>
    <serial type='file'><source path='/consoles/%(name)s.console'/><target port='0'/></serial>
    <memballoon model='none'/>
%(hostdevs)s  </devices>
</domain>
"""

Slot = Union[PciAddress, tuple[PciAddress, ...]]


def image(kernel: Kernel, *, read_disks: bool = False, agent: Optional[Mapping[str, bytes]] = None, watch: bool = False) -> bytes:
    """The guest's initramfs: it prints its tree, and with ``read_disks`` the first line of each NVMe drive, which is DMA.

    ``agent``: the files of the QEMU guest agent, which it starts then. With ``watch`` it prints its tree again when it has got a device
    more, and the topology file for NCCL that was written into it, says when that device is gone, and runs on.
    """
    files: dict[str, bytes] = {}
    # The console that the kernel opened for init is the serial port already, and the tree needs sysfs alone: each mount is a fork.
    work = "mount -t sysfs sysfs /sys\n" + initramfs.PRINT_TREE + "print_tree\nmount -t proc proc /proc\n"
    modules = [*(["nvme"] if read_disks else []), *(guest_agent.MODULES if agent else [])]
    if modules:
        work += _MODULES
        for number, (name, content) in enumerate(initramfs.modules(kernel, modules)):
            files[f"modules/{number:02}-{name}"] = content
    if agent:
        work += guest_agent.START
        files.update(agent)
    if read_disks:
        work += _READ
    if watch:
        work += _WATCH
    files["init"] = ("#!/bin/sh\n" + work + initramfs.RESET).encode()
    return initramfs.image(files)


def domain(
    name: str,
    slots: Sequence[Slot],
    cells: Optional[dict[int, int]],
    *,
    policy: str = "",
    group_by: str = "",
    memory_mib: int = 256,
    initrd: str = "nested.cpio",
    hotplug: bool = False,
    agent: bool = False,
) -> bytes:
    """The domain XML.

    ``cells``: guest cell -> host node; None for a guest without any, whose owner leaves them to pcinuma. A tuple of addresses shares a
    slot. ``policy``, ``group_by``: what its owner asks for. ``hotplug``: the kernel is to serve hot-pluggable ports, which costs it a
    quarter of a second for each. ``agent``: it has a channel for the QEMU guest agent.
    """
    asked = (("policy", policy), ("group-by", group_by), ("cells", "auto" if cells is None else ""))
    attributes = "".join(f" {key}='{value}'" for key, value in asked if value)
    numatune = numa = ""
    if cells is not None:
        each = memory_mib // len(cells)
        memory_mib = each * len(cells)
        memnodes = [f"    <memnode cellid='{cell}' mode='strict' nodeset='{node}'/>\n" for cell, node in sorted(cells.items())]
        numatune = f"\n  <numatune>\n{''.join(memnodes)}  </numatune>"
        numa = f"\n    <numa>\n{''.join(_cell(cell, each) for cell in sorted(cells))}    </numa>"
    values = {
        "name": name,
        "metadata": f"\n    <pcinuma xmlns='urn:pcinuma:domain:1'{attributes}/>" if attributes else "",
        "memory": memory_mib,
        "numatune": numatune,
        "numa": numa,
        "initrd": initrd,
        "cmdline": CMDLINE + ("" if hotplug else " pcie_ports=compat"),
        "hostdevs": (guest_agent.CHANNEL if agent else "") + "".join(_hostdevs(slots)),
    }
    return (_DOMAIN % values).encode()


def _cell(cell: int, memory: int) -> str:
    cpus = " cpus='0'" if cell == 0 else ""
    return f"      <cell id='{cell}'{cpus} memory='{memory}' unit='MiB'/>\n"


def _hostdevs(slots: Sequence[Slot]) -> list[str]:
    texts = []
    for number, slot in enumerate(slots):
        several = not isinstance(slot, PciAddress)
        for function, address in enumerate([slot] if isinstance(slot, PciAddress) else slot):
            more = " multifunction='on'" if function == 0 else ""
            # A shared slot needs its address; what libvirt would have chosen, on a root port of its own, is left to a later define.
            place = f"      <address type='pci' bus='0x00' slot='0x{8 + number:02x}' function='0x{function:x}'{more}/>\n" if several else ""
            texts.append(hostdev(address, place))
    return texts


def hostdev(address: PciAddress, place: str = "") -> str:
    """A device as its owner writes it; ``place``: the element with its guest address, if it has one."""
    return (
        "    <hostdev mode='subsystem' type='pci' managed='yes'>\n"
        "      <source><address domain='0x%04x' bus='0x%02x' slot='0x%02x' function='0x%x'/></source>\n%s"
        "    </hostdev>\n" % (*address, place)
    )
