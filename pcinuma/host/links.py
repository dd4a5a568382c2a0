# SPDX-License-Identifier: LGPL-2.1-or-later
"""The PCI Express links of host devices, as the kernel tells them: what both ends could agree on at most, and what they do now.

The kernel writes a port's and a device's own maximum (``Documentation/ABI/testing/sysfs-bus-pci``, ``max_link_speed`` and
``max_link_width``, from the Link Capabilities Register; ``current_…`` from Link Status); a link does what both of its ends can, which is
how NCCL counts it too (``src/graph/xml.cc``). A VF's register may be empty: its link is its PF's. What is not told, or is no number, is
None.
"""

from __future__ import annotations

import posixpath
import re
from typing import NamedTuple, Optional

from pcinuma.host.place import DEVICES
from pcinuma.host.sysfs import Sysfs

_SPEED = re.compile(r"(\d+(?:\.\d+)?) GT/s")
LANES = (1, 2, 4, 8, 12, 16, 32)


class Link(NamedTuple):
    """``speed``: GT/s per lane; ``width``: lanes."""

    speed: Optional[float] = None
    width: Optional[int] = None

    @property
    def text(self) -> str:
        """As people write it: ``16 GT/s x4``."""
        speed = "?" if self.speed is None else f"{self.speed:g} GT/s"
        return f"{speed} x{'?' if self.width is None else self.width}"


def link_now(sysfs: Sysfs, name: str) -> Link:
    """What the link above the device called ``name`` does at this moment."""
    return _told(sysfs, _carrier(sysfs, name), "current")


def best_link(sysfs: Sysfs, name: str) -> Link:
    """The most that the link between the device called ``name`` (``0000:17:00.0``) and the port above it can do."""
    return both_ends(_told(sysfs, _carrier(sysfs, name), "max"), port_link(sysfs, name))


def port_link(sysfs: Sysfs, name: str) -> Link:
    """The most that the port above the device called ``name`` can do."""
    path = sysfs.link(f"{DEVICES}/{name}") or ""
    return _told(sysfs, posixpath.basename(posixpath.dirname(path)), "max") if path else Link()


def both_ends(one: Link, other: Link) -> Link:
    """The most that a link with these two ends can do, as far as they tell."""
    return Link(
        min((speed for speed in (one.speed, other.speed) if speed is not None), default=None),
        min((width for width in (one.width, other.width) if width is not None), default=None),
    )


def _carrier(sysfs: Sysfs, name: str) -> str:
    """The function whose registers tell of the link: the device's own, or a VF's PF where the VF's are empty."""
    physical = sysfs.link(f"{DEVICES}/{name}/physfn")
    return name if physical is None or _told(sysfs, name, "max") != Link() else posixpath.basename(physical)


def _told(sysfs: Sysfs, name: str, which: str) -> Link:
    speed = _SPEED.match(sysfs.read(f"{DEVICES}/{name}/{which}_link_speed") or "")
    width = sysfs.read(f"{DEVICES}/{name}/{which}_link_width") or ""
    lanes = int(width) if width.isascii() and width.isdigit() else 0
    return Link(float(speed.group(1)) if speed else None, lanes if lanes in LANES else None)
