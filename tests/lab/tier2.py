"""The life of pcinuma on a virtual host, as one job: installed, at work, killed, refusing, removed; and a guest that boots with all devices
and prints what its kernel sees. The tests look at what it wrote."""

from __future__ import annotations

from pathlib import Path

from pcinuma.lab import initramfs, jobs, kernel, nested, presets, virtual_host
from pcinuma.lab.virtual_host import HostRun

PRESET = presets.two_sockets_with_switches
STRANGER = "stranded"
BARE = "unplaced"
TRANSIENT = "transient"
HOT = "changing"
PROXY = "/run/pcinuma/libvirt-sock"

JOB = (
    jobs.DRIVERS
    + jobs.LIBVIRT
    + jobs.VERSIONS
    + jobs.INSTALL
    + jobs.SPARE_PORTS
    + jobs.DEFINE
    + jobs.PLACED
    + jobs.START
    + jobs.GUEST
    + jobs.READ
    + jobs.STOP
    + """
# The guest that is to be changed while it runs boots while everything else happens.
virsh -q define /job/%(hot)s.xml >/dev/null || give_up "define %(hot)s"
wait_for 120 placed %(hot)s || give_up "%(hot)s was not placed"
virsh -q start %(hot)s >/job/out/hot-start.log 2>&1 || give_up "virsh start %(hot)s: $(cat /job/out/hot-start.log)"
step "virsh start %(hot)s"

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

says() { grep -q "$1" /consoles/%(hot)s.console; }
wait_for 1200 says '%(tree)s' || give_up "%(hot)s printed nothing"
step "%(hot)s runs"
pcinuma attach %(hot)s %(plugged)s --json >/job/out/attach.json 2>/job/out/attach.log || give_up "attach: $(cat /job/out/attach.log)"
virsh dumpxml %(hot)s >/job/out/hot-attached.xml
virsh dumpxml --inactive %(hot)s >/job/out/hot-attached-inactive.xml
drivers >/job/out/drivers-hot
wait_for 600 says '%(seen)s' || give_up "%(hot)s did not see its new device"
step "pcinuma attach: the guest has seen its new device"
pcinuma detach %(hot)s %(plugged)s --timeout 300 --json >/job/out/detach.json 2>/job/out/detach.log
echo "exit code $?" >>/job/out/detach.log
virsh dumpxml %(hot)s >/job/out/hot-detached.xml
virsh dumpxml --inactive %(hot)s >/job/out/hot-detached-inactive.xml
drivers >/job/out/drivers-hot-detached
wait_for 120 says '%(unseen)s'
step "pcinuma detach: the guest has let go of it"
virsh -q destroy %(hot)s
"""
    + jobs.UNINSTALL
)


def run(image: kernel.Kernel, scratch: Path) -> HostRun:
    preset = PRESET()
    at = preset.host.addresses()
    files = {
        f"{jobs.NAME}.xml": nested.domain(jobs.NAME, preset.slots, preset.cells, group_by="switch"),
        f"{STRANGER}.xml": nested.domain(STRANGER, [at["nic1"]], {0: 0}, policy="required"),
        f"{BARE}.xml": nested.domain(BARE, [at["disk0"]], preset.cells),
        f"{TRANSIENT}.xml": nested.domain(TRANSIENT, [at["gpu0"]], preset.cells),
        f"{HOT}.xml": nested.domain(HOT, [at["gpu1"]], preset.cells, initrd="watch.cpio", hotplug=True),
        "plug.xml": nested.hostdev(at["nic0"]).encode(),
        "images/nested.cpio": nested.image(image, read_disks=True),
        "images/watch.cpio": nested.image(image, watch=True),
    }
    names = {
        "vm": jobs.NAME,
        "stranger": STRANGER,
        "bare": BARE,
        "transient": TRANSIENT,
        "hot": HOT,
        "gone": at["disk0"],
        "plugged": at["nic1"],
        "socket": PROXY,
        "tree": initramfs.END,
        "seen": nested.PLUGGED,
        "unseen": nested.UNPLUGGED,
    }
    return virtual_host.run(preset.host, JOB % names, image, scratch, files=files, timeout=jobs.PATIENCE)
