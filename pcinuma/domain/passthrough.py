"""The forms in which a domain names a device of the host, and where each keeps the device's host address.

Source: libvirt, ``docs/formatdomain.rst`` ("Host device assignment", "Network interfaces", "Hard drives") and ``src/conf/domain_conf.c``.
"""

from __future__ import annotations

from typing import Optional

from lxml import etree

from pcinuma.address import PciAddress
from pcinuma.domain.model import Form, Given, Passthrough
from pcinuma.domain.xml import number
from pcinuma.errors import DomainError


def read_passthrough(element: etree._Element, pools: frozenset[str]) -> Optional[Passthrough]:
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
            return Passthrough(uuid.lower() or "mdev", Form.MDEV, None, uuid.lower(), None, (), Given.PCI, problem)
        return None
    if element.tag == "interface":
        if kind == "hostdev":
            return _at_host_address(element, Form.INTERFACE_HOSTDEV)
        if kind == "vdpa":
            return _vdpa(element, Given.PCI)
        if kind == "network":
            return _pool(element, pools)
        return None
    target = element.find("target")
    on_virtio = target is not None and target.get("bus", "virtio") == "virtio"
    given = Given.PCI if on_virtio else Given.NOT_PCI
    if kind == "nvme":
        disk = _at_host_address(element, Form.NVME_DISK)
        source = element.find("source")
        namespace = source.get("namespace", "1") if source is not None else "1"
        return disk._replace(source=f"{disk.source}#{namespace}", given=given)
    if kind == "vhostvdpa":
        return _vdpa(element, given)
    return None


def _at_host_address(element: etree._Element, form: Form) -> Passthrough:
    address = element.find("source/address")
    if address is None:
        return Passthrough("?", form, None, None, None, (), Given.PCI, f"<{element.tag}> names no host address")
    parts = [address.get(name, default) for name, default in (("domain", "0"), ("bus", "0"), ("slot", "0"), ("function", "0"))]
    try:
        numbers = [number(part, "host address") for part in parts]
        host = PciAddress(*numbers)
        if host.domain > 0xFFFFFFFF or host.bus > 255 or host.slot > 31 or host.function > 7:
            raise DomainError("out of range", subject="host address")
    except DomainError:
        raw = "{}:{}:{}.{}".format(*parts)
        return Passthrough(raw, form, None, None, None, (), Given.PCI, f"{raw}: is no PCI address of a host device")
    return Passthrough(str(host), form, host, None, None, (), Given.PCI, None)


def _vdpa(element: etree._Element, given: Given) -> Passthrough:
    source = element.find("source")
    path = source.get("dev", "") if source is not None else ""
    return Passthrough(path or "?", Form.VDPA, None, path, None, (), given, None if path else f"<{element.tag}> names no vDPA device")


def _pool(element: etree._Element, pools: frozenset[str]) -> Optional[Passthrough]:
    source, mac = element.find("source"), element.find("mac")
    network = source.get("network", "") if source is not None else ""
    if network not in pools:
        return None
    address = mac.get("address", "").lower() if mac is not None else ""
    return Passthrough(f"{network}#{address}", Form.NETWORK_POOL, None, network, None, (), Given.PCI, None)
