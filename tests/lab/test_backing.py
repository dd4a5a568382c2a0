# SPDX-License-Identifier: LGPL-2.1-or-later
"""near-backing on a virtual host: a volume, a drive of an NVMe subsystem, a card and a VLAN in a VLAN, as a real kernel shows them; a guest
that libvirt starts on them prints where it sees its virtio devices."""

from __future__ import annotations

import pytest
from lxml import etree

from pcinuma.lab import guest_tree, jobs, kernel, layout, nested, virtual_host
from pcinuma.lab.hardware import HostPlan, nic, nvme
from pcinuma.lab.virtual_host import HostRun

pytestmark = pytest.mark.full  # a virtual host and a guest in it, two minutes for these alone

PREPARE = """
modprobe -a 8021q macvtap dm_mod || give_up "modules"
name() { basename "$(ls -d /sys/bus/pci/devices/$1)"; }
card=$(name "%(nic0)s/net/*") trunk=$(name "%(nic1)s/net/*") drive=$(name "%(disk0)s/nvme/*/nvme*n1")
subsystem=$(dirname "$(ls -d /sys/class/nvme-subsystem/*/$(name "%(disk1)s/nvme/*"))")
shared=$(basename "$(ls -d $subsystem/nvme*n1)")
ip link add link "$trunk" name outer type vlan id 7 && ip link add link outer name inner type vlan id 8 || give_up "a VLAN in a VLAN"
for link in "$card" "$trunk" outer inner; do ip link set "$link" up; done
dmsetup create volume --table "0 $(blockdev --getsz /dev/$drive) linear /dev/$drive 0" || give_up "dmsetup"
# There is no udev. It would make /dev/mapper/volume a link to dm-0; libvirt finds what a volume is made of in /dev/block.
mknod /dev/mapper/volume b $(tr : ' ' </sys/class/block/dm-0/dev) && mkdir -p /dev/block &&
    ln -s "../$drive" "/dev/block/$(cat /sys/class/block/$drive/dev)" || give_up "nodes of the volume"
ls -l /sys/class/net /sys/class/block >/job/out/classes
mkdir -p /etc/pcinuma/pcinuma.conf.d
printf '[placement]\\nnear-backing = on\\n' >/etc/pcinuma/pcinuma.conf.d/near.conf
sed -i "s/@card@/$card/; s/@shared@/$shared/" /job/%(vm)s.xml
step "the host has a volume on $drive, $shared, $card and a VLAN in a VLAN on $trunk"
"""
DISK = "<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/{}'/><target dev='{}' bus='virtio'/></disk>"
CARD = "<interface type='direct'><mac address='52:54:00:00:00:{}'/><source dev='{}' mode='bridge'/><model type='virtio'/></interface>"
DEVICES = DISK.format("mapper/volume", "vda") + DISK.format("@shared@", "vdb") + CARD.format("0a", "@card@") + CARD.format("0b", "inner")
NODES = {"vda": 0, "vdb": 1, "52:54:00:00:00:0a": 0, "52:54:00:00:00:0b": 1}


@pytest.fixture(scope="module")
def host(lab_kernel: kernel.Kernel, tmp_path_factory: pytest.TempPathFactory) -> HostRun:
    plan = HostPlan()
    plan.complex(0).port(nvme("disk0"))
    plan.complex(0).port(nic("nic0"))
    plan.complex(1).port(nvme("disk1", vfs=2))
    plan.complex(1).port(nic("nic1"))
    names = {"vm": jobs.NAME, **{name: str(address) for name, address in plan.addresses().items()}}
    job = jobs.DRIVERS + PREPARE % names + jobs.LIBVIRT + jobs.INSTALL + jobs.DEFINE + jobs.PLACED + jobs.START + jobs.GUEST + jobs.STOP
    xml = nested.domain(jobs.NAME, [], {0: 0, 1: 1}, group_by="root-complex").replace(b"  </devices>", DEVICES.encode() + b"\n  </devices>")
    files = {f"{jobs.NAME}.xml": xml, "images/nested.cpio": nested.image(lab_kernel)}
    return virtual_host.run(plan, job, lab_kernel, tmp_path_factory.mktemp("backing"), files=files, timeout=jobs.PATIENCE).require()


def test_the_host_shows_virtual_devices_as_virtual(host: HostRun) -> None:
    """What the test is worth: none of these names a PCI device by its own path, and only links lead there."""
    paths = {line.split(" -> ")[0].split()[-1]: line.split(" -> ")[1] for line in host.out["classes"].splitlines() if " -> " in line}
    shared = etree.fromstring(host.out["live.xml"].encode()).find("devices/disk/target[@dev='vdb']/../source").get("dev")[5:]
    assert "/virtual/nvme-subsystem/" in paths[shared]
    assert all("/virtual/" in paths[name] for name in ("dm-0", "inner", "outer"))


def test_the_guest_sees_its_virtio_devices_where_what_is_behind_them_is(host: HostRun) -> None:
    live = layout.read(host.out["live.xml"].encode())
    guest = guest_tree.parse(host.out[f"{jobs.NAME}.console"])
    seen = {}
    for device in live.passthrough:
        found = guest.at(live.path(device.address))
        assert found is not None and found.vendor == 0x1AF4 and found.device in (0x1041, 0x1042), device.source
        seen[(device.source or "").partition("@")[0]] = found.numa_node
    assert seen == NODES
