# SPDX-License-Identifier: LGPL-2.1-or-later
"""The forms in which a domain names a device of the host, and where each keeps the device's host address.

Source: libvirt, ``docs/formatdomain.rst`` ("Host device assignment", "Network interfaces", "Hard drives") and ``src/conf/domain_conf.c``.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from lxml import etree

from pcinuma.address import PciAddress
from pcinuma.domain.address import attributes_of, location_of
from pcinuma.domain.remembered import Attributes, remembered
from pcinuma.domain.xml import Parts, child
from pcinuma.errors import DomainError
from pcinuma.model import AttachedAs, Form

_FORMS = {"hostdev": Form.HOSTDEV_PCI, "interface": Form.INTERFACE_HOSTDEV, "disk": Form.NVME_DISK}
"""By the element's tag: what has the host address of a PCI device in its ``<source>``."""


class Named(NamedTuple):
    """A device of the host as an element names it; the fields are those of :class:`~pcinuma.model.Passthrough`."""

    source: str
    form: Form
    host: Optional[PciAddress]
    name: Optional[str]
    attached_as: AttachedAs
    problem: Optional[str]


def read_passthrough(element: etree._Element, parts: Parts, pools: frozenset[str]) -> Optional[Named]:
    """The passthrough device in a ``<hostdev>``, ``<interface>`` or ``<disk>``; None if the element is none.

    ``parts``: the element's children. Its guest address is not looked at, but a disk on a bus of another kind is no PCI device of its own.
    """
    kind = element.get("type")
    tag = element.tag
    if tag == "hostdev":
        if kind == "pci" and element.get("mode", "subsystem") == "subsystem":
            return _at_host_address(tag, parts)
        if kind == "mdev" and element.get("model") == "vfio-pci":
            return _mdev(parts)
        return None
    if tag == "interface":
        if kind == "hostdev":
            return _at_host_address(tag, parts)
        if kind == "vdpa":
            return _vdpa(tag, parts, AttachedAs.PCI)
        if kind == "network":
            return _pool(parts, pools)
        return None
    target = parts.get("target")
    on_virtio = target is not None and target.get("bus", "virtio") == "virtio"
    attached_as = AttachedAs.PCI if on_virtio else AttachedAs.NOT_PCI
    if kind == "nvme":
        disk = _at_host_address(tag, parts)
        source = parts.get("source")
        namespace = source.get("namespace", "1") if source is not None else "1"
        return disk._replace(source=f"{disk.source}#{namespace}", attached_as=attached_as)
    if kind == "vhostvdpa":
        return _vdpa(tag, parts, attached_as)
    return None


def _at_host_address(tag: str, parts: Parts) -> Named:
    source = parts.get("source")
    address = source[0] if source is not None and len(source) == 1 else None
    if address is None or address.tag != "address":
        address = None if source is None else child(source, "address")
    return _named((tag, () if address is None else attributes_of(address)))


@remembered
def _named(says: tuple[str, Attributes]) -> Named:
    """The device in an element with such a tag, by the attributes of its host address, which is a PCI address whatever its type."""
    tag, attributes = says
    form = _FORMS[tag]
    try:
        host = location_of(tuple([item for item in attributes if item[0] != "type"]))
    except DomainError:
        values = dict(attributes)
        raw = "{}:{}:{}.{}".format(*(values.get(name, "0") for name in ("domain", "bus", "slot", "function")))
        return Named(raw, form, None, None, AttachedAs.PCI, f"{raw}: is no PCI address of a host device")
    if host.address is None:
        return Named("?", form, None, None, AttachedAs.PCI, f"<{tag}> names no host address")
    return Named(host.text, form, host.address, None, AttachedAs.PCI, None)


def _mdev(parts: Parts) -> Named:
    source = parts.get("source")
    address = child(source, "address") if source is not None else None
    uuid = address.get("uuid", "") if address is not None else ""
    return Named(uuid.lower() or "mdev", Form.MDEV, None, uuid.lower(), AttachedAs.PCI, None if uuid else "a mediated device without uuid")


def _vdpa(tag: str, parts: Parts, attached_as: AttachedAs) -> Named:
    source = parts.get("source")
    path = source.get("dev", "") if source is not None else ""
    return Named(path or "?", Form.VDPA, None, path, attached_as, None if path else f"<{tag}> names no vDPA device")


def _pool(parts: Parts, pools: frozenset[str]) -> Optional[Named]:
    source, mac = parts.get("source"), parts.get("mac")
    network = source.get("network", "") if source is not None else ""
    if network not in pools:
        return None
    address = mac.get("address", "").lower() if mac is not None else ""
    return Named(f"{network}#{address}", Form.NETWORK_POOL, None, network, AttachedAs.PCI, None)
