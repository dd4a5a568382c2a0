# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the host says of a device and of the ports above it, as far as traffic between devices goes by it. Reads, and judges nothing.

None is what is not known: the configuration space beyond its first 64 bytes is root's to read, and a captured machine may have less.
"""

from __future__ import annotations

import enum
from typing import NamedTuple, Optional

from pcinuma.host.links import Link, best_link, link_now
from pcinuma.host.pci_config import DOWNSTREAM_PORTS, SIZE, Acs, Config, read_config
from pcinuma.host.place import DEVICES
from pcinuma.host.sysfs import Sysfs
from pcinuma.host.topology import HostDevice


class Kind(enum.Enum):
    """What a device is to peer-to-peer traffic."""

    GPU = "GPU"
    NIC = "NIC"
    DRIVE = "drive"
    OTHER = "device"

    @classmethod
    def of(cls, class_code: Optional[int]) -> Kind:
        """By the class: display and processing accelerators, network, NVMe."""
        if class_code is None:
            return cls.OTHER
        if class_code >> 8 == 0x0108:
            return cls.DRIVE
        return {0x03: cls.GPU, 0x12: cls.GPU, 0x02: cls.NIC}.get(class_code >> 16, cls.OTHER)


class Ats(enum.Enum):
    """Address Translation Services of a device."""

    ON = "on"
    OFF = "off"
    NONE = "none"  # it has no such capability


class Port(NamedTuple):
    """A downstream port on the way; ``acs`` is None where it has no ACS. ``known``: whether that could be read."""

    address: str
    known: bool
    acs: Optional[Acs]


class Facts(NamedTuple):
    """A device. ``iommu``: the type of its group's default domain (``identity``, ``DMA``, ``DMA-FQ``), None if not told."""

    device: HostDevice
    kind: Kind
    now: Link
    best: Link
    ats: Optional[Ats]
    iommu: Optional[str]

    @property
    def name(self) -> str:
        return str(self.device.address)

    @property
    def narrow(self) -> bool:
        """Whether the link has fewer lanes than both ends have: a fault, whatever the device is doing."""
        return self.now.width is not None and self.best.width is not None and self.now.width < self.best.width

    @property
    def slow(self) -> bool:
        """Whether the link is slower than both ends can: a fault, or an idle GPU that saves power."""
        return self.now.speed is not None and self.best.speed is not None and self.now.speed < self.best.speed

    @property
    def link_text(self) -> str:
        """What the link does, and where that is less than both ends can, of what: ``16 GT/s x1 of 16 GT/s x4``."""
        return f"{self.now.text} of {self.best.text}" if self.narrow or self.slow else self.now.text


class PathReader:
    """Reads facts below one root, each function's configuration space once."""

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs
        self._configs: dict[str, Config] = {}

    def facts(self, device: HostDevice) -> Facts:
        """The facts of a device."""
        name = str(device.address)
        config = self._config(name)
        ats = None if not config.whole else Ats.NONE if config.ats is None else Ats.ON if config.ats else Ats.OFF
        iommu = self._sysfs.read(f"{DEVICES}/{name}/iommu_group/type")
        return Facts(device, Kind.of(device.class_code), link_now(self._sysfs, name), best_link(self._sysfs, name), ats, iommu)

    def ports(self, device: HostDevice, below: int) -> tuple[Port, ...]:
        """The downstream ports above a device that are deeper than its first ``below`` bridges, topmost first."""
        ports = []
        for name in device.path[below:]:
            config = self._config(name)
            if config.port_type is None or config.port_type in DOWNSTREAM_PORTS:
                ports.append(Port(name, config.port_type is not None and config.whole, config.acs))
        return tuple(ports)

    def _config(self, name: str) -> Config:
        if name not in self._configs:
            self._configs[name] = read_config(self._sysfs.read_bytes(f"{DEVICES}/{name}/config", SIZE))
        return self._configs[name]
