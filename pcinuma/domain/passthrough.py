"""The forms in which a domain names a device of the host, and where each keeps the device's host address.

Source: libvirt, ``docs/formatdomain.rst`` ("Host device assignment", "Network interfaces", "Hard drives") and ``src/conf/domain_conf.c``.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from lxml import etree

from pcinuma.address import PciAddress
from pcinuma.domain.model import Form, Given
from pcinuma.domain.xml import child, read_address
from pcinuma.errors import DomainError


class Named(NamedTuple):
    """A device of the host as an element names it; the fields are those of :class:`~pcinuma.domain.model.Passthrough`."""

    source: str
    form: Form
    host: Optional[PciAddress]
    name: Optional[str]
    given: Given
    problem: Optional[str]


def read_passthrough(element: etree._Element, pools: frozenset[str]) -> Optional[Named]:
    """The passthrough device in a ``<hostdev>``, ``<interface>`` or ``<disk>``; None if the element is none.

    Its guest address is not looked at, except that a disk on a bus of another kind is no PCI device of its own.
    """
    kind = element.get("type")
    if element.tag == "hostdev":
        if kind == "pci" and element.get("mode", "subsystem") == "subsystem":
            return _at_host_address(element, Form.HOSTDEV_PCI)
        if kind == "mdev" and element.get("model") == "vfio-pci":
            address = element.find("source/address")
            uuid = address.get("uuid", "") if address is not None else ""
            problem = None if uuid else "a mediated device without uuid"
            return Named(uuid.lower() or "mdev", Form.MDEV, None, uuid.lower(), Given.PCI, problem)
        return None
    if element.tag == "interface":
        if kind == "hostdev":
            return _at_host_address(element, Form.INTERFACE_HOSTDEV)
        if kind == "vdpa":
            return _vdpa(element, Given.PCI)
        if kind == "network":
            return _pool(element, pools)
        return None
    target = child(element, "target")
    on_virtio = target is not None and target.get("bus", "virtio") == "virtio"
    given = Given.PCI if on_virtio else Given.NOT_PCI
    if kind == "nvme":
        disk = _at_host_address(element, Form.NVME_DISK)
        source = child(element, "source")
        namespace = source.get("namespace", "1") if source is not None else "1"
        return disk._replace(source=f"{disk.source}#{namespace}", given=given)
    if kind == "vhostvdpa":
        return _vdpa(element, given)
    return None


def _at_host_address(element: etree._Element, form: Form) -> Named:
    source = child(element, "source")
    address = source[0] if source is not None and len(source) == 1 else None
    if address is None or address.tag != "address":
        address = None if source is None else child(source, "address")
    try:
        host = read_address(address, "host address")
    except DomainError:
        assert address is not None
        raw = "{}:{}:{}.{}".format(*(address.get(name, "0") for name in ("domain", "bus", "slot", "function")))
        return Named(raw, form, None, None, Given.PCI, f"{raw}: is no PCI address of a host device")
    if host is None:
        return Named("?", form, None, None, Given.PCI, f"<{element.tag}> names no host address")
    return Named(str(host), form, host, None, Given.PCI, None)


def _vdpa(element: etree._Element, given: Given) -> Named:
    source = child(element, "source")
    path = source.get("dev", "") if source is not None else ""
    return Named(path or "?", Form.VDPA, None, path, given, None if path else f"<{element.tag}> names no vDPA device")


def _pool(element: etree._Element, pools: frozenset[str]) -> Optional[Named]:
    source, mac = child(element, "source"), child(element, "mac")
    network = source.get("network", "") if source is not None else ""
    if network not in pools:
        return None
    address = mac.get("address", "").lower() if mac is not None else ""
    return Named(f"{network}#{address}", Form.NETWORK_POOL, None, network, Given.PCI, None)
