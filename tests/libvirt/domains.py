# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domains for tests on a real libvirt, and what their XML says about where a device is.

The reading side is written apart from pcinuma's own: it follows libvirt's controllers from the device up to its expander bus.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

from lxml import etree


def hostdev(address: str) -> str:
    """A passthrough device as people write it, without a guest address."""
    domain, bus, rest = address.split(":")
    slot, function = rest.split(".")
    source = f"<address domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/>"
    return f"<hostdev mode='subsystem' type='pci' managed='yes'><source>{source}</source></hostdev>"


def other_form(form: str) -> str:
    """One device of :func:`small_host` passed through in another form than a plain hostdev."""
    bus, slot = "0x17", "slot='0x00' function='0x0'"
    return {
        "interface-hostdev": "<interface type='hostdev' managed='yes'>"
        f"<source><address type='pci' domain='0' bus='{bus}' {slot}/></source></interface>",
        "nvme-disk": "<disk type='nvme' device='disk'><driver name='qemu' type='raw'/><source type='pci' managed='yes' namespace='1'>"
        f"<address domain='0' bus='{bus}' {slot}/></source><target dev='vda' bus='virtio'/></disk>",
        "mdev": "<hostdev mode='subsystem' type='mdev' model='vfio-pci'>"
        "<source><address uuid='6f0b2ab3-8f2c-4c5b-9c26-0a45a01d8a11'/></source></hostdev>",
        "vdpa": "<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>",
    }[form]


def guest(
    name: str,
    devices: Sequence[str] = (),
    *,
    uuid: Optional[str] = None,
    pinned: bool = True,
    policy: Optional[str] = None,
    extra: str = "",
    metadata: str = "",
    machine: str = "q35",
) -> str:
    """A domain with two NUMA cells, pinned to :func:`small_host`'s two nodes or (``pinned=False``) to none, with ``devices`` passed
    through. ``extra``: more below ``<devices>``."""
    owner = f"<p:pcinuma xmlns:p='urn:pcinuma:domain:1' policy='{policy}'/>" if policy else ""
    return f"""<domain type='qemu'>
  <name>{name}</name>
  {f"<uuid>{uuid}</uuid>" if uuid else ""}
  {f"<metadata>{owner}{metadata}</metadata>" if owner or metadata else ""}
  <memory unit='MiB'>128</memory>
  <vcpu>2</vcpu>
  {"<cputune><vcpupin vcpu='0' cpuset='0'/><vcpupin vcpu='1' cpuset='1'/></cputune>" if pinned else ""}
  <os><type arch='x86_64' machine='{machine}'>hvm</type></os>
  <features><acpi/></features>
  <cpu><model>qemu64</model><numa>
    <cell id='0' cpus='0' memory='64' unit='MiB'/>
    <cell id='1' cpus='1' memory='64' unit='MiB'/>
  </numa></cpu>
  <devices>{"".join(map(hostdev, devices))}{extra}</devices>
</domain>"""


class Controller(NamedTuple):
    """A PCI controller: its index, its address as (bus, slot, function) or None, and the cell of the expander bus that it is or
    is below."""

    number: int
    model: str
    address: Optional[tuple[int, int, int]]
    bus_nr: Optional[int]
    cell: Optional[int]


def controllers(xml: str) -> list[Controller]:
    """The PCI controllers, in order of index."""
    elements = {int(c.get("index", "")): c for c in etree.fromstring(xml).iterfind("devices/controller[@type='pci']")}
    rows = []
    for index, element in sorted(elements.items()):
        target = element.find("target")
        bus_nr = target.get("busNr") if target is not None else None
        above, cell = element, None
        while cell is None:
            cell = _number(above.findtext("target/node"))
            place = _guest_address(above)
            if place is None or place[0] not in elements or above is elements[place[0]]:
                break
            above = elements[place[0]]
        rows.append(Controller(index, element.get("model", ""), _guest_address(element), _number(bus_nr), cell))
    return rows


def cells(xml: str) -> dict[str, Optional[int]]:
    """Each passthrough device that has a PCI address in the guest -> the guest cell of the expander bus that it is below; None on the
    default root. A device is named by its host address or UUID; an interface of a network, and vDPA, by network and path."""
    ports = {row.number: row.cell for row in controllers(xml)}
    found: dict[str, Optional[int]] = {}
    for device in etree.fromstring(xml).iterfind("devices/*"):
        source, place = device.find("source"), _guest_address(device)
        if source is None or place is None:
            continue
        host = source.find("address")
        if host is not None and host.get("uuid"):
            name = host.get("uuid", "")
        elif host is not None:
            name = "{:04x}:{:02x}:{:02x}.{:x}".format(*(_number(host.get(k, "0")) or 0 for k in ("domain", "bus", "slot", "function")))
        elif device.tag == "interface" and (source.get("network") or source.get("dev")):
            name = source.get("network") or source.get("dev") or ""
        else:
            continue
        found[name] = ports.get(place[0])
    return found


def _guest_address(element: etree._Element) -> Optional[tuple[int, int, int]]:
    address = element.find("address[@type='pci']")
    if address is None or address.get("bus") is None:
        return None
    bus, slot, function = (_number(address.get(key, "0")) or 0 for key in ("bus", "slot", "function"))
    return bus, slot, function


def _number(text: Optional[str]) -> Optional[int]:
    """libvirt writes numbers decimal or with 0x."""
    return int(text, 0) if text is not None else None
