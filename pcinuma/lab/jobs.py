# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is done on a virtual host: the shell of a system administrator's day, in pieces that jobs are put together from."""

from __future__ import annotations

from pcinuma.lab.initramfs import END
from pcinuma.lab.nested import READ_END

NAME = "vm1"
PATIENCE = 3600.0
"""Seconds for a whole job; a tenth of that where nothing else runs."""

LIBVIRT = """
start_libvirt
(virsh -q domcapabilities --virttype qemu --machine q35 >/dev/null 2>&1 &)
step "libvirt is running"
"""

VERSIONS = """
virsh version >/job/out/versions
"""

INSTALL = """
if [ -d /var/lib/dpkg ]; then
    bash /checkout/install.sh --no-packages >/job/out/install.log 2>&1 || give_up "install.sh: $(tail -n 2 /job/out/install.log)"
    step "pcinuma is installed by install.sh"
else # there are no books here in which a package could be entered
    make -s -C /checkout install >/job/out/install.log 2>&1 && /usr/share/pcinuma/host-setup installed >>/job/out/install.log 2>&1 ||
        give_up "make install: $(tail -n 2 /job/out/install.log)"
    step "pcinuma is installed"
fi
start_pcinuma
step "pcinumad is running"
"""

SPARE_PORTS = """
sed -i 's/^#spare-ports = 0$/spare-ports = 1/' /etc/pcinuma/pcinuma.conf
grep -qx 'spare-ports = 1' /etc/pcinuma/pcinuma.conf && kill -HUP "$(pidof -x pcinumad)" || give_up "the configuration is not as expected"
"""

DEFINE = """
virsh -q define /job/%(name)s.xml >/dev/null || give_up "virsh define"
step "virsh define %(name)s"
""" % {"name": NAME}

PLACED = """
placed() { virsh dumpxml --inactive "$1" | grep -q 'controller index='; }
wait_for 120 placed %(name)s || give_up "%(name)s was not placed: $(tail -n 2 /job/out/pcinumad.log)"
step "pcinumad has placed %(name)s"
""" % {"name": NAME}

DRIVERS = """
target() { # what the link $1 is the name of, in $found; a fork for each device would be dear
    found=none
    [ -e "$1" ] && cd -P "$1" && found=${PWD##*/}
}
drivers() { # one line per device: address, driver, IOMMU group
    for device in /sys/bus/pci/devices/*; do
        target $device/driver; driver=$found
        target $device/iommu_group; group=$found
        echo "${device##*/} $driver $group"
    done
    cd /
}
"""

START = """
print_tree >/job/out/tree-at-start
drivers >/job/out/drivers-before
virsh -q start %(name)s >/job/out/start.log 2>&1 || give_up "virsh start %(name)s: $(cat /job/out/start.log)"
step "virsh start %(name)s: its devices are on vfio-pci"
drivers >/job/out/drivers-running
virsh dumpxml %(name)s >/job/out/live.xml
""" % {"name": NAME}

MEMORY = """
pid=$(cat /run/libvirt/qemu/%(name)s.pid)
cat "/proc/$pid/numa_maps" >/job/out/numa-maps
for thread in "/proc/$pid/task/"*; do # one line per thread: the host CPUs on which it may run, and its name
    read -r name <"$thread/comm"
    while read -r key value; do
        [ "$key" != Cpus_allowed_list: ] || echo "$value $name"
    done <"$thread/status"
done >/job/out/threads
""" % {"name": NAME}

GUEST = """
printed() { grep -q '%(end)s' /consoles/%(name)s.console; }
wait_for 2400 printed || give_up "the guest printed nothing: $(tail -n 3 /consoles/%(name)s.console)"
step "the guest has printed what it sees"
""" % {"name": NAME, "end": END}

READ = """
has_read() { grep -q '%(end)s' /consoles/%(name)s.console; }
wait_for 1200 has_read || give_up "the guest read nothing"
step "the guest has read its drives"
""" % {"name": NAME, "end": READ_END}

STOP = """
virsh -q destroy %(name)s >/dev/null 2>&1
drivers >/job/out/drivers-after
step "the guest is gone"
""" % {"name": NAME}

UNINSTALL = """
bash /checkout/install.sh --uninstall >/job/out/uninstall.log 2>&1 || give_up "uninstall: $(tail -n 2 /job/out/uninstall.log)"
virsh dumpxml --inactive %(name)s >/job/out/uninstalled.xml
# What was written over this machine's own folders is in the upper layers; the rest of the virtual host is one tmpfs. A character device
# is how an overlay says that something is not there.
find / /run /layers/upper -xdev -iname '*pcinuma*' ! -type c >/job/out/left-behind 2>/dev/null
step "pcinuma is uninstalled"
""" % {"name": NAME}


def without_pcinuma(prepare: str = "") -> str:
    """Stock libvirt: define, start, and what the guest sees."""
    return DRIVERS + prepare + "\n" + LIBVIRT + DEFINE + START + GUEST


def with_pcinuma(prepare: str = "") -> str:
    """The same with pcinuma installed before."""
    return DRIVERS + prepare + "\n" + LIBVIRT + INSTALL + DEFINE + PLACED + START + GUEST
