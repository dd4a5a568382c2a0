"""The life of pcinuma on a virtual host, as one job: installed, at work, killed, refusing, removed. The tests look at what it wrote."""

from __future__ import annotations

from pathlib import Path

from pcinuma.lab import jobs, kernel, nested, presets, virtual_host
from pcinuma.lab.virtual_host import HostRun

PRESET = presets.two_sockets_with_switches
STRANGER = "stranded"
BARE = "unplaced"

JOB = (
    jobs.DRIVERS
    + jobs.LIBVIRT
    + jobs.INSTALL
    + jobs.DEFINE
    + jobs.PLACED
    + jobs.START
    + jobs.STOP
    + """
virsh dumpxml --inactive %(vm)s >/job/out/placed.xml
cp /job/out/pcinumad.log /job/out/pcinumad-first.log

gone=/sys/bus/pci/devices/%(gone)s
echo 1 >$gone/remove
wait_for 5 test ! -e $gone
sleep 1
virsh dumpxml --inactive %(vm)s >/job/out/while-device-gone.xml
pcinuma status --json >/job/out/status-while-device-gone
echo 1 >/sys/bus/pci/rescan
wait_for 10 test -e $gone || give_up "the device did not come back"
sleep 1
virsh dumpxml --inactive %(vm)s >/job/out/after-rescan.xml
step "a device was taken out of the host and came back"

virsh -q define /job/%(stranger)s.xml >/dev/null || give_up "define %(stranger)s"
virsh start %(stranger)s >/job/out/required.log 2>&1 && echo started >>/job/out/required.log
step "a start under policy required was refused"

kill -9 "$(pidof -x pcinumad)" && wait_for 5 sh -c '! pidof -x pcinumad' || give_up "pcinumad does not die"
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


def run(image: kernel.Kernel, scratch: Path) -> HostRun:
    preset = PRESET()
    at = preset.host.addresses()
    files = {
        f"{jobs.NAME}.xml": nested.domain(jobs.NAME, preset.slots, preset.cells, group_by="switch"),
        f"{STRANGER}.xml": nested.domain(STRANGER, [at["nic1"]], {0: 0}, policy="required"),
        f"{BARE}.xml": nested.domain(BARE, [at["disk0"]], preset.cells),
        "images/nested.cpio": nested.image(image),
    }
    names = {"vm": jobs.NAME, "stranger": STRANGER, "bare": BARE, "gone": at["disk0"]}
    return virtual_host.run(preset.host, JOB % names, image, scratch, files=files, timeout=1500)
