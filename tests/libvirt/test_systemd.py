# SPDX-License-Identifier: LGPL-2.1-or-later
"""The units and install.sh on a host that systemd booted: hardened as they are, the services do their work."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests import needs
from tests.hosts.small import GPU_0, GPU_1, small_host
from tests.libvirt.booted import Booted
from tests.libvirt.conftest import require
from tests.libvirt.domains import cells, guest
from tests.waiting import until

TREE = "/srv/host"
PLACED = {GPU_0: 0, GPU_1: 1}
PROXY = "qemu+unix:///system?socket=/run/pcinuma/libvirt-sock"
SERVICES = ("pcinuma.service", "pcinuma-proxy.service")


@pytest.fixture(scope="module")
def machine() -> Iterator[Booted]:
    """A booted host with libvirtd, two nodes, and a guest that is not there yet."""
    require()
    needs.require(needs.booting())
    with Booted() as machine:
        small_host(machine.path(TREE))
        for service in SERVICES:
            folder = machine.path(f"/run/systemd/system/{service}.d")
            folder.mkdir(parents=True)
            (folder / "test.conf").write_text(f"[Service]\nEnvironment=PCINUMA_ROOT={TREE}\n")
        machine.path("/srv/placed.xml").write_text(guest("placed", [GPU_0, GPU_1]))
        machine.run("systemctl", "start", "libvirtd.service")
        yield machine


@pytest.fixture
def installed(machine: Booted) -> Iterator[Booted]:
    """The same with pcinuma installed; purged afterwards."""
    machine.run("./install.sh", "--no-packages")
    yield machine
    machine.run("./install.sh", "--purge")
    machine.shell("for name in $(virsh -q list --all --name); do virsh -q undefine $name; done")


def inactive(machine: Booted, name: str = "placed") -> str:
    return machine.run("virsh", "-q", "dumpxml", "--inactive", name).stdout


def await_placed(machine: Booted) -> None:
    until(lambda: cells(inactive(machine)) == PLACED, "the domain to be placed", interval=0.1)


def test_installing_starts_the_daemon_and_reloads_libvirt_without_a_restart(machine: Booted) -> None:
    libvirtd = machine.main_pid("libvirtd")
    said = machine.run("./install.sh", "--no-packages").stdout
    assert "libvirtd reloaded" in said
    assert machine.main_pid("libvirtd") == libvirtd
    assert machine.active("pcinuma.socket") and machine.active("pcinuma.service")
    assert machine.run("systemctl", "is-enabled", "pcinuma.service", "pcinuma.socket").stdout.split() == ["enabled", "enabled"]
    assert not machine.active("pcinuma-proxy.socket")
    daemon = machine.main_pid("pcinuma")
    assert "nothing was changed" in machine.run("./install.sh", "--no-packages").stdout
    assert machine.main_pid("pcinuma") == daemon
    machine.run("./install.sh", "--purge")


def test_the_hardened_daemon_places_a_domain(installed: Booted) -> None:
    installed.run("virsh", "-q", "define", "/srv/placed.xml")
    await_placed(installed)
    assert installed.run("systemctl", "show", "-p", "NRestarts", "--value", "pcinuma").stdout == "0\n"


def test_the_timer_writes_metrics_from_its_sandbox_once_it_is_enabled_and_they_go_with_the_package(machine: Booted) -> None:
    needs.require(needs.module("prometheus_client"))
    machine.run("./install.sh", "--no-packages")
    folder = "/var/lib/prometheus/node-exporter"
    assert machine.run("systemctl", "is-enabled", "pcinuma-metrics.timer", check=False).stdout == "disabled\n"
    assert not machine.active("pcinuma-metrics.timer")
    machine.run("systemctl", "start", "pcinuma-metrics.service")
    assert not machine.path(folder).exists(), "a host without node_exporter is none of its business"
    machine.shell(f"mkdir -p {folder}; chown 65534 {folder}/..")
    machine.run("systemctl", "enable", "--now", "pcinuma-metrics.timer")
    file = machine.path(f"{folder}/pcinuma.prom")
    until(file.exists, "the metrics to be written")
    assert "pcinuma_up 1.0" in file.read_text().splitlines()
    assert [path.name for path in file.parent.iterdir()] == ["pcinuma.prom"]
    machine.run("./install.sh", "--purge")
    assert not machine.active("pcinuma-metrics.timer")
    assert not [name for name in machine.written() if "pcinuma-metrics" in name or "pcinuma.prom" in name]


LOOK = """
import errno, json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pcinuma.daemon import memory
from pcinuma.host.backing import Backings
from pcinuma.host.sysfs import Sysfs

def opened(path):
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        return errno.errorcode[error.errno]

devices = sorted(Path("/sys/bus/pci/devices").iterdir())
backings = Backings(Sysfs(Path("/")))
said = {
    "config": {device.name: len((device / "config").read_bytes()) for device in devices},
    "net": {name: str(backings.of_net(name)) for name in sorted(os.listdir("/sys/class/net"))},
    "disks": {name: str(backings.of_block("/dev/disk/by-id/" + name)) for name in sorted(os.listdir("/dev/disk/by-id"))},
    "memory": memory.give_back(),
}
print(json.dumps([said, opened("/etc/shadow"), opened("/dev/disk/by-id/probe-0")]))
"""


def test_in_its_sandbox_the_daemon_sees_all_that_it_reads_and_no_more(installed: Booted) -> None:
    """Beside what the same code sees without a sandbox."""
    installed.shell(
        "mkdir -p /dev/disk/by-id; n=0;"
        "for block in $(ls /sys/class/block | head -3); do ln -sf /dev/$block /dev/disk/by-id/probe-$n; n=$((n + 1)); done;"
        "mknod /dev/probe b 7 200; ln -sf /dev/probe /dev/disk/by-id/probe-0"
    )
    installed.path("/srv/look.py").write_text(LOOK)
    unit = re.sub(
        r"(?m)^(WatchdogSec|Restart\w*|Requires|Before|Type|ExecReload|RuntimeDirectory\w*|WantedBy|Also|\[Install\]).*\n",
        "",
        installed.path("/usr/lib/systemd/system/pcinuma.service").read_text(),
    )
    command = "/usr/bin/python3 /srv/look.py /usr/share/pcinuma"
    unit = re.sub(r"(?m)^ExecStart=.*$", f"Type=oneshot\nExecStart={command}\nStandardOutput=file:/srv/seen", unit)
    installed.path("/run/systemd/system/probe.service").write_text(unit)
    installed.run("systemctl", "daemon-reload")
    installed.run("systemctl", "start", "probe.service")
    inside, shadow, disk = json.loads(installed.path("/srv/seen").read_text())
    outside = json.loads(installed.run(*command.split()).stdout)[0]
    assert inside == outside
    assert inside["net"] and inside["disks"]
    assert shadow in ("EACCES", "EPERM") and disk in ("EACCES", "EPERM")


def test_a_stopped_daemon_is_brought_up_by_its_socket(installed: Booted) -> None:
    installed.run("systemctl", "stop", "pcinuma.service")
    assert not installed.active("pcinuma.service")
    installed.run("pcinuma", "status")
    assert installed.active("pcinuma.service")


def test_a_killed_daemon_is_started_again(installed: Booted) -> None:
    killed = installed.main_pid("pcinuma")
    installed.run("kill", "-KILL", str(killed))
    until(lambda: installed.main_pid("pcinuma") not in (0, killed) and installed.active("pcinuma.service"), "another daemon", interval=0.1)


def test_an_upgrade_restarts_the_daemon_and_keeps_what_it_knows(installed: Booted) -> None:
    installed.run("virsh", "-q", "define", "/srv/placed.xml")
    await_placed(installed)
    before, placed = installed.main_pid("pcinuma"), inactive(installed)
    installed.shell("echo >>/usr/share/pcinuma/pcinuma/settings.py")
    assert " is installed." in installed.run("./install.sh", "--no-packages").stdout
    assert installed.main_pid("pcinuma") not in (0, before)
    assert inactive(installed) == placed


def test_the_hardened_proxy_connects_as_its_client(installed: Booted) -> None:
    installed.run("systemctl", "start", "pcinuma-proxy.socket")
    installed.run("virsh", "-q", "define", "/srv/placed.xml")
    for user in ("root", "nobody"):
        direct, proxied = (
            installed.run("setpriv", f"--reuid={user}", "--clear-groups", "virsh", "-q", "-c", uri, "list", "--all", "--name", check=False)
            for uri in ("qemu:///system", PROXY)
        )
        assert (proxied.returncode, proxied.stdout, proxied.stderr) == (direct.returncode, direct.stdout, direct.stderr)
    assert installed.active("pcinuma-proxy.service")


def test_the_proxy_switched_onto_libvirts_socket_is_taken_off_it_by_the_uninstaller(installed: Booted) -> None:
    before = installed.written()
    installed.run("pcinuma", "proxy", "enable")
    installed.run("virsh", "-q", "define", "/srv/placed.xml")
    await_placed(installed)
    assert "/etc/systemd/system/libvirtd.socket.d/50-pcinuma.conf" in installed.written() - before
    said = installed.run("./install.sh", "--purge").stdout
    assert "libvirt's socket is libvirt's again" in said and "placed: reverted" in said
    assert {file for file in installed.written() | links(installed) if "pcinuma" in file} == set()
    assert installed.run("virsh", "-q", "list", "--all", "--name").stdout.split() == ["placed"]


def test_purging_leaves_no_unit_and_no_file(machine: Booted) -> None:
    machine.run("./install.sh", "--no-packages")
    machine.run("systemctl", "start", "pcinuma-proxy.socket")
    assert "/etc/systemd/system/sockets.target.wants/pcinuma.socket" in machine.written() | links(machine)
    machine.run("./install.sh", "--purge")
    assert {file for file in machine.written() | links(machine) if "pcinuma" in file} == set()
    assert machine.run("find", "/run", "-name", "*pcinuma*", "!", "-name", "pcinuma*.service.d").stdout == ""
    assert machine.run("systemctl", "list-units", "--all", "--no-legend", "pcinuma*").stdout == ""


def links(machine: Booted) -> set[str]:
    return set(machine.run("find", "/etc", "-type", "l").stdout.split())
