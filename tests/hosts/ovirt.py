# SPDX-License-Identifier: LGPL-2.1-or-later
"""oVirt's engine, as far as PCI goes: the XML that it writes for a VM's next start from what it remembers of the VM that ran.

Of each controller that has an address it keeps type, model, index and address (``VmDevicesConverter.parseControllers``), of each device the
address; ``LibvirtVmXmlBuilder`` writes that into the VM's own XML, which has its metadata and none of anybody else's.
"""

from __future__ import annotations

from lxml import etree

METADATA = b"<metadata><ovirt-vm:vm xmlns:ovirt-vm='http://ovirt.org/vm/1.0'/></metadata>"
_MODELS = ("hostdev", "interface", "disk", "memballoon")


def managed(xml: bytes) -> bytes:
    """The domain ``xml`` with the engine's metadata instead of any other."""
    root = etree.fromstring(xml)
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    root.insert(0, etree.fromstring(METADATA))
    return etree.tostring(root)


def remembered(xml: bytes, ran: bytes) -> bytes:
    """What the engine writes for the next start of the VM ``xml``, of which ``ran`` ran."""
    root, running = etree.fromstring(xml), etree.fromstring(ran)
    devices = root.find("devices")
    for controller in devices.findall("controller"):
        devices.remove(controller)
    for controller in running.findall("devices/controller"):
        address = controller.find("address")
        if address is not None:
            kept = {name: controller.get(name) for name in ("type", "model", "index") if controller.get(name)}
            etree.SubElement(devices, "controller", kept).append(address)
    for tag in _MODELS:
        theirs = running.findall(f"devices/{tag}")
        if len(devices.findall(tag)) < len(theirs):  # libvirt's own balloon
            devices.extend(etree.Element(tag, device.attrib) for device in theirs)
        for device, other in zip(devices.findall(tag), theirs):
            address = other.find("address")
            for old in device.findall("address"):
                device.remove(old)
            if address is not None:
                device.append(address)
    return etree.tostring(root)
