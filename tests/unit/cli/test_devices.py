# SPDX-License-Identifier: LGPL-2.1-or-later
"""What detach takes for a device: whatever attach took, and every name by which a person knows it in the domain."""

from __future__ import annotations

from pathlib import Path

import pytest
from lxml import etree

from pcinuma.cli.devices import device_xml, still_there, wanted
from pcinuma.errors import LibvirtError, UnusableInput

UUID = "6f0b2ab3-8f2c-4c5b-9c26-0a45a01d8a11"
MAC = "52:54:00:6b:3c:58"


def address(bus: str) -> str:
    return f"<address type='pci' domain='0x0000' bus='0x{bus}' slot='0x00' function='0x0'/>"


FORMS = {
    "hostdev": (
        f"<hostdev mode='subsystem' type='pci' managed='yes'><source>{address('17')}</source></hostdev>",
        ("0000:17:00.0", "17:00.0"),
    ),
    "mdev": (
        f"<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source><address uuid='{UUID}'/></source></hostdev>",
        (UUID, UUID.upper()),
    ),
    "interface": (
        f"<interface type='hostdev' managed='yes'><source>{address('18')}</source></interface>",
        ("0000:18:00.0", "18:00.0"),
    ),
    "pool": ("<interface type='network'><source network='vfs'/></interface>", ("vfs",)),
    "pool with a MAC address": (
        f"<interface type='network'><mac address='{MAC}'/><source network='vfs'/></interface>",
        (MAC, f"vfs#{MAC}"),
    ),
    "user": ("<interface type='user'><model type='virtio'/></interface>", ()),
    "bridge": ("<interface type='bridge'><source bridge='br0'/></interface>", ()),
    "vdpa": ("<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>", ("/dev/vhost-vdpa-0",)),
    "nvme": (
        "<disk type='nvme' device='disk'><source type='pci' managed='yes' namespace='1'>"
        "<address domain='0x0000' bus='0x19' slot='0x00' function='0x0'/></source><target dev='vdn' bus='virtio'/></disk>",
        ("0000:19:00.0", "0000:19:00.0#1", "vdn"),
    ),
    "block": ("<disk type='block' device='disk'><source dev='/dev/sdx'/><target dev='vdb' bus='virtio'/></disk>", ("vdb", "vdb@/dev/sdx")),
    "file": ("<disk type='file' device='disk'><source file='/images/x'/><target dev='vdc' bus='virtio'/></disk>", ("vdc",)),
}
OTHERS = (
    f"<hostdev mode='subsystem' type='pci' managed='yes'><source>{address('b3')}</source></hostdev>",
    "<interface type='network'><mac address='52:54:00:00:00:99'/><source network='default'/></interface>",
    "<disk type='file' device='disk'><source file='/images/other'/><target dev='vda' bus='virtio'/></disk>",
)


def domain(*devices: str) -> bytes:
    return f"<domain type='qemu'><name>vm</name><devices><emulator>/qemu</emulator>{''.join(devices)}</devices></domain>".encode()


def in_domain(form: str) -> str:
    """The device as libvirt keeps it: with a MAC address, a guest address and an alias."""
    element = etree.fromstring(FORMS[form][0])
    if element.tag == "interface" and element.find("mac") is None:
        element.insert(0, etree.fromstring(f"<mac address='{MAC}'/>"))
    element.append(etree.fromstring("<alias name='ua-mine'/>"))
    element.append(etree.fromstring("<address type='pci' domain='0x0000' bus='0x05' slot='0x00' function='0x0'/>"))
    return etree.tostring(element).decode()


@pytest.mark.parametrize("form", FORMS)
def test_a_device_is_found_by_the_file_that_attached_it_and_by_every_name(form: str, tmp_path: Path) -> None:
    file = tmp_path / "device.xml"
    file.write_text(FORMS[form][0])
    kept = in_domain(form)
    names = [str(file), "ua-mine", *FORMS[form][1]]
    if FORMS[form][0].startswith("<interface"):
        names += [MAC, MAC.upper()]
    assert device_xml(str(file)) == FORMS[form][0].encode()
    for name in names:
        found = wanted(name).find(domain(*OTHERS, kept))
        assert found is not None, name
        assert etree.fromstring(found).find("alias") is not None, name
        assert wanted(name).find(domain(*OTHERS)) is None, name
    assert still_there(domain(*OTHERS, kept), kept.encode())
    assert not still_there(domain(*OTHERS), kept.encode())


def test_a_name_that_several_devices_have_is_answered_with_what_tells_them_apart() -> None:
    one, other = (f"<interface type='network'><mac address='{mac}'/><source network='vfs'/></interface>" for mac in (MAC, MAC[:-1] + "9"))
    with pytest.raises(LibvirtError, match=f"2 devices.*{MAC}.*{MAC[:-1]}9"):
        wanted("vfs").find(domain(one, other))


@pytest.mark.parametrize("content", ["<controller type='pci'/>", "no XML", "<!DOCTYPE disk SYSTEM '/etc/shadow'><disk/>", ""])
def test_a_file_that_holds_no_device_is_unusable(content: str, tmp_path: Path) -> None:
    file = tmp_path / "device.xml"
    file.write_text(content)
    for take in (wanted, device_xml):
        with pytest.raises(UnusableInput):
            take(str(file))
