# SPDX-License-Identifier: LGPL-2.1-or-later
"""KubeVirt, as far as a domain's PCI goes: what its converter writes, and what its types keep of libvirt's XML.

From ``pkg/virt-launcher/virtwrap``: ``converter/pci-placement.go``, ``api/schema.go`` (``Controller``, ``ControllerTarget``,
``HostDevice``, ``Address``, ``Metadata``), ``network/nichotplug.go`` (``WithNetworkIfacesResources``).
"""

from __future__ import annotations

from lxml import etree

METADATA = "<metadata><kubevirt xmlns='http://kubevirt.io'><uid>1</uid></kubevirt></metadata>"
_ADDRESS = "type domain bus slot function controller target unit uuid device cssid ssid devno"
_KEPT = {
    "controller": ("type index model", {"address": _ADDRESS, "target": "hotplug busNr", "alias": "name"}),
    "hostdev": ("type managed mode model display ramfb", {"address": _ADDRESS, "alias": "name", "boot": "order", "driver": "iommufd"}),
}
"""Of an element its attributes, and its children with theirs. ``<node>`` of a target and ``<source>`` of a hostdev are kept too."""


def marshalled(xml: bytes) -> bytes:
    """``xml`` as Go's encoder writes it: no empty elements, tabs."""
    root = etree.fromstring(xml)
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    root.append(etree.fromstring(METADATA))
    for element in root.iter():
        element.text = element.text or ""
    return etree.tostring(root, method="c14n")


def read_back(domain: bytes, defined: bytes) -> bytes:
    """The domain ``domain`` with the devices that libvirt made of it, but for interfaces, as far as KubeVirt's types hold them."""
    root, theirs = etree.fromstring(domain), etree.fromstring(defined)
    devices = root.find("devices")
    for tag, (attributes, children) in _KEPT.items():
        for old in devices.findall(tag):
            devices.remove(old)
        for element in theirs.findall(f"devices/{tag}"):
            kept = etree.SubElement(devices, tag, _only(element, attributes))
            for child in element:
                if child.tag in children:
                    part = etree.SubElement(kept, child.tag, _only(child, children[child.tag]))
                    part.extend(child.findall("node"))
                elif child.tag == "source":
                    kept.append(child)
    return marshalled(etree.tostring(root))


def _only(element: etree._Element, names: str) -> dict[str, str]:
    return {name: value for name, value in element.attrib.items() if name in names.split()}


def placed_by_kubevirt(domain: bytes, nodes: dict[int, int]) -> bytes:
    """The raw domain ``domain`` with its hostdevs on KubeVirt's own expanders: ``nodes`` says the guest cell of the bus of each."""
    root = etree.fromstring(domain)
    devices, index, count = root.find("devices"), 0, 0
    for cell in sorted(set(nodes.values())):
        index, first = index + 1, index + 1
        mine = [d for d in devices.findall("hostdev") if nodes[int(d.find("source/address").get("bus"), 16)] == cell]
        count += 1 + len(mine)
        target = f"<target busNr='{256 - count}'><node>{cell}</node></target>"
        devices.append(etree.fromstring(f"<controller type='pci' index='{first}' model='pcie-expander-bus'>{target}</controller>"))
        for slot, device in enumerate(mine):
            index += 1
            place = f"<address type='pci' domain='0x0000' bus='{first}' slot='{slot:#04x}' function='0x0'/>"
            devices.append(etree.fromstring(f"<controller type='pci' index='{index}' model='pcie-root-port'>{place}</controller>"))
            address = {"type": "pci", "domain": "0x0000", "bus": str(index), "slot": "0x00", "function": "0x0"}
            etree.SubElement(device, "address", address)
    return marshalled(etree.tostring(root))
