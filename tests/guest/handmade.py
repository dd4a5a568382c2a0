# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domains written by hand: what a person has before pcinuma (:func:`plain`), and layouts that may be wrong on purpose (:class:`ByHand`)."""

from __future__ import annotations

from typing import Iterable, Optional, Union

from pcinuma.address import PciAddress

HEAD = """<domain type='qemu'>
  <name>lab</name>
  <memory unit='MiB'>1024</memory>
  <vcpu>%(vcpus)d</vcpu>
  <numatune>
%(memnodes)s
  </numatune>
  <os><type arch='x86_64' machine='%(machine)s'>hvm</type></os>
  <cpu>
    <numa>
%(cells)s
    </numa>
  </cpu>
  <devices>
"""
TAIL = "  </devices>\n</domain>\n"


def _head(nodes: dict[int, int], machine: str) -> str:
    """``nodes``: guest cell -> host node."""
    cells = [f"      <cell id='{cell}' cpus='{2 * cell}-{2 * cell + 1}' memory='256' unit='MiB'/>" for cell in sorted(nodes)]
    memnodes = [f"    <memnode cellid='{cell}' mode='strict' nodeset='{node}'/>" for cell, node in sorted(nodes.items())]
    values = {"vcpus": 2 * len(nodes), "machine": machine, "memnodes": "\n".join(memnodes), "cells": "\n".join(cells)}
    return HEAD % values


def _hostdev(source: str, address: str = "") -> str:
    host = PciAddress.parse(source)
    assert host is not None
    return (
        "    <hostdev mode='subsystem' type='pci' managed='yes'>\n"
        "      <source><address domain='0x%04x' bus='0x%02x' slot='0x%02x' function='0x%x'/></source>\n%s"
        "    </hostdev>\n"
    ) % (*host, address)


def _at(bus: int, slot: int, function: int = 0, multifunction: bool = False) -> str:
    more = " multifunction='on'" if multifunction else ""
    return f"      <address type='pci' domain='0x0000' bus='0x{bus:02x}' slot='0x{slot:02x}' function='0x{function:x}'{more}/>\n"


def plain(
    sources: Iterable[Union[str, tuple[str, ...]]], nodes: dict[int, int], *, addresses: bool = True, machine: str = "pc-q35-7.2"
) -> bytes:
    """A q35 domain with these hostdevs; a tuple of sources is one multifunction slot.

    ``nodes``: guest cell -> host node. ``addresses``: as libvirt formats it, every hostdev on a root port of pcie.0; otherwise raw.
    """
    slots = [(item,) if isinstance(item, str) else item for item in sources]
    text = _head(nodes, machine) + "    <controller type='pci' index='0' model='pcie-root'/>\n"
    if addresses:
        for index in range(1, len(slots) + 2):
            slot, function = 2 + (index - 1) // 8, (index - 1) % 8
            text += f"    <controller type='pci' index='{index}' model='pcie-root-port'>\n      <model name='pcie-root-port'/>\n"
            text += f"      <target chassis='{index}' port='0x{slot * 8 + function:x}'/>\n"
            text += _at(0, slot, function, function == 0) + "    </controller>\n"
    for index, functions in enumerate(slots, start=1):
        for function, source in enumerate(functions):
            several = len(functions) > 1
            address = _at(index if addresses else 0x1E, 0, function, several and function == 0) if addresses or several else ""
            text += _hostdev(source, address)
    return (text + TAIL).encode()


class ByHand:
    """A placed domain, controller by controller. Methods return the index of what they added."""

    def __init__(self, nodes: dict[int, int], machine: str = "pc-q35-7.2") -> None:
        self._text = _head(nodes, machine)
        self._index = -1
        self._add("pcie-root")

    def _add(self, model: str, address: str = "", target: str = "") -> int:
        self._index += 1
        self._text += f"    <controller type='pci' index='{self._index}' model='{model}'>\n{target}{address}    </controller>\n"
        return self._index

    def expander(self, bus_nr: int, cell: int, slot: int) -> int:
        return self._add("pcie-expander-bus", _at(0, slot), f"      <target busNr='{bus_nr}'><node>{cell}</node></target>\n")

    def port(self, bus: int, slot: int, function: int = 0, source: Optional[str] = None) -> int:
        """A root port, and a hostdev on it."""
        number = self._index + 1
        target = f"      <target chassis='{number}' port='0x{number & 255:x}' hotplug='off'/>\n"
        index = self._add("pcie-root-port", _at(bus, slot, function, function == 0), target)
        if source is not None:
            self.device(source, index)
        return index

    def device(self, source: str, bus: int) -> None:
        self._text += _hostdev(source, _at(bus, 0))

    def xml(self) -> bytes:
        return (self._text + TAIL).encode()
