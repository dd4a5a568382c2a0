# SPDX-License-Identifier: LGPL-2.1-or-later
"""The life of pcinuma on a virtual host, as one job: installed, at work, killed, refusing, removed; and a guest that boots with all devices
and prints what its kernel sees. The tests look at what it wrote."""

from __future__ import annotations

from pathlib import Path

from pcinuma.lab import guest_agent, jobs, kernel, nested, presets, virtual_host
from pcinuma.lab.hardware import nic
from pcinuma.lab.presets import Preset
from pcinuma.lab.virtual_host import HostRun
from tests import needs
from tests.lab import apparmor, faults

PLUGGED = "other-nic1"
STRANGER = "stranded"
BARE = "unplaced"
TRANSIENT = "transient"
PROXY = "/run/pcinuma/libvirt-sock"


def preset() -> Preset:
    """The demonstration's, and beside the switch of node 1 a NIC that is plugged into the guest while it runs."""
    made = presets.two_sockets_with_switches()
    made.host.complexes[-1].port(nic(PLUGGED))
    return made


def addresses() -> dict[str, str]:
    """Name -> address in the running host."""
    return {name: str(address) for name, address in preset().host.addresses().items()}


FIRST = jobs.VERSIONS + jobs.INSTALL + jobs.SPARE_PORTS + jobs.DEFINE + jobs.PLACED
AGENT = """
connected() { virsh dumpxml %(vm)s | grep -q "org.qemu.guest_agent.0' state='connected'"; }
wait_for 600 connected || give_up "no agent runs in the guest"
step "the guest agent is there"
pcinuma verify %(vm)s --timeout 1200 --json >/job/out/verify.json 2>/job/out/verify.log
echo "exit code $?" >>/job/out/verify.log
step "pcinuma verify: the guest has been asked"
pcinuma topology %(vm)s --nccl --install --timeout 1200 >/job/out/install-nccl.log 2>&1
echo "exit code $?" >>/job/out/install-nccl.log
pcinuma topology %(vm)s --nccl >/job/out/nccl.xml 2>/job/out/nccl.log
step "pcinuma topology --nccl --install: the file is in the guest"
"""
SECOND = (
    """
says() { grep -q "$1" /consoles/%(vm)s.console; }
pcinuma attach %(vm)s %(plugged)s --json >/job/out/attach.json 2>/job/out/attach.log || give_up "attach: $(cat /job/out/attach.log)"
virsh dumpxml %(vm)s >/job/out/attached.xml
virsh dumpxml --inactive %(vm)s >/job/out/attached-inactive.xml
drivers >/job/out/drivers-attached
wait_for 600 says '%(seen)s' || give_up "the guest did not see its new device"
step "pcinuma attach: the guest has seen its new device"
pcinuma detach %(vm)s %(plugged)s --timeout 300 --json >/job/out/detach.json 2>/job/out/detach.log
echo "exit code $?" >>/job/out/detach.log
virsh dumpxml %(vm)s >/job/out/detached.xml
virsh dumpxml --inactive %(vm)s >/job/out/detached-inactive.xml
drivers >/job/out/drivers-detached
wait_for 120 says '%(unseen)s'
step "pcinuma detach: the guest has let go of it"
"""
    + jobs.STOP
    + """
virsh dumpxml --inactive %(vm)s >/job/out/placed.xml
cp /job/out/pcinumad.log /job/out/pcinumad-first.log

gone=/sys/bus/pci/devices/%(gone)s
echo 1 >$gone/remove
wait_for 60 test ! -e $gone
sleep 1
virsh dumpxml --inactive %(vm)s >/job/out/while-device-gone.xml
pcinuma status --json >/job/out/status-while-device-gone
echo 1 >/sys/bus/pci/rescan
wait_for 60 test -e $gone || give_up "the device did not come back"
sleep 1
virsh dumpxml --inactive %(vm)s >/job/out/after-rescan.xml
step "a device was taken out of the host and came back"

virsh -q define /job/%(stranger)s.xml >/dev/null || give_up "define %(stranger)s"
virsh start %(stranger)s >/job/out/required.log 2>&1 && echo started >>/job/out/required.log
step "a start under policy required was refused"

mkdir -p /etc/pcinuma/pcinuma.conf.d
printf '[proxy]\\ntimeout = 60\\n' >/etc/pcinuma/pcinuma.conf.d/patient.conf # this host may be a slow one
pcinuma proxy enable >/job/out/proxy-enable.log 2>&1
echo "exit code $?" >>/job/out/proxy-enable.log
/usr/bin/pcinuma-proxy >/job/out/pcinuma-proxy.log 2>&1 &
wait_for 120 test -S %(socket)s || give_up "pcinuma-proxy does not listen"
through_proxy() { virsh -q -c 'qemu+unix:///system?socket=%(socket)s' "$@"; }
through_proxy create --paused /job/%(transient)s.xml >/job/out/create.log 2>&1 || give_up "virsh create: $(cat /job/out/create.log)"
virsh dumpxml %(transient)s >/job/out/transient.xml
step "a transient guest was created through the proxy"
through_proxy attach-device %(transient)s /job/plug.xml --live >/job/out/plug.log 2>&1 || give_up "attach-device: $(cat /job/out/plug.log)"
virsh dumpxml %(transient)s >/job/out/transient-plugged.xml
drivers >/job/out/drivers-transient
virsh -q destroy %(transient)s
drivers >/job/out/drivers-transient-gone
step "a device was plugged into it through the proxy"

kill -9 "$(pidof -x pcinumad)" && wait_for 60 sh -c '! pidof -x pcinumad' || give_up "pcinumad does not die"
virsh -q define /job/%(bare)s.xml >/dev/null || give_up "define %(bare)s"
virsh start %(bare)s >/job/out/bare.log 2>&1
virsh dumpxml %(bare)s >/job/out/bare-live.xml
virsh -q destroy %(bare)s
step "a guest has started although pcinumad was killed"

rm -f /run/pcinuma/pcinuma.sock
start_pcinuma
"""
    + jobs.UNINSTALL
)


def job(whole: bool) -> str:
    """The day; ``whole``: the guest's agent is asked too, and where AppArmor can be had libvirt and guests are under it."""
    first, seen = FIRST + faults.job(addresses()), jobs.MEMORY + jobs.GUEST + jobs.READ
    if not whole:
        return jobs.DRIVERS + jobs.LIBVIRT + first + jobs.START + seen + SECOND
    if needs.apparmor():
        return jobs.DRIVERS + jobs.LIBVIRT + first + jobs.START + seen + AGENT + SECOND
    start = apparmor.LABEL_OF_HOOKS + jobs.START + apparmor.LABELS
    return jobs.DRIVERS + apparmor.LIBVIRT + first + start + seen + AGENT + SECOND + apparmor.LOG


def definition(agent: bool = False) -> bytes:
    """The guest's, as its owner wrote it: without cells."""
    return nested.domain(jobs.NAME, preset().slots, None, group_by="switch", hotplug=True, agent=agent)


def run(image: kernel.Kernel, scratch: Path, whole: bool = False) -> HostRun:
    host = preset()
    at = host.host.addresses()
    files = {
        f"{jobs.NAME}.xml": definition(whole),
        f"{STRANGER}.xml": nested.domain(STRANGER, [at["nic1"]], {0: 0}, policy="required"),
        f"{BARE}.xml": nested.domain(BARE, [at["disk0"]], host.cells),
        f"{TRANSIENT}.xml": nested.domain(TRANSIENT, [at["gpu0"]], host.cells),
        "plug.xml": nested.hostdev(at["nic0"]).encode(),
        "images/nested.cpio": nested.image(
            image, read_disks=True, agent=guest_agent.files(needs.kernel_cache()) if whole else None, watch=True
        ),
    }
    confined = whole and needs.apparmor() is None
    if confined:
        files[f"images/{apparmor.ARCHIVE}"] = apparmor.archive()[0]
    names = {
        "vm": jobs.NAME,
        "stranger": STRANGER,
        "bare": BARE,
        "transient": TRANSIENT,
        "gone": at["disk0"],
        "plugged": at[PLUGGED],
        "socket": PROXY,
        "seen": nested.PLUGGED,
        "unseen": nested.UNPLUGGED,
    }
    line = apparmor.COMMAND_LINE if confined else virtual_host.CMDLINE
    hands = faults.hands(scratch, addresses())
    return virtual_host.run(
        host.host, job(whole) % names, image, scratch, files=files, timeout=jobs.PATIENCE, progress=hands, command_line=line
    )
