# SPDX-License-Identifier: LGPL-2.1-or-later
"""Inactive mediated devices on a real libvirt: their parents are learnt from its node devices, outside the hook's path.

mdevctl keeps what is defined in files, ``/etc/mdevctl.d/PARENT/UUID``, and libvirt lists what mdevctl lists; neither needs the hardware.
Starting such a device does, so no test here goes beyond the start that libvirt refuses for want of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import libvirt
import pytest

from tests.hosts.small import GPU_0, GPU_1, NIC_0, small_host
from tests.libvirt.conftest import require
from tests.libvirt.domains import cells, guest
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_daemon import RunningDaemon
from tests.libvirt.running_proxy import RunningProxy
from tests.waiting import CHECKOUT, until

NEAR, FAR, LATE, TWICE = (f"{n}0000000-0000-4000-8000-00000000000{n}" for n in (1, 2, 3, 4))
SECURE = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE


def hostdev(uuid: str) -> str:
    return f"<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source><address uuid='{uuid}'/></source></hostdev>"


def define_mdev(host: PrivateLibvirt, uuid: str, parent: str) -> None:
    """What ``mdevctl define`` writes, in the folders of its package, without which it lists nothing."""
    for scripts in ("callouts", "notifiers"):
        (host.path("/etc/mdevctl.d/scripts.d") / scripts).mkdir(parents=True, exist_ok=True)
    folder = host.path("/etc/mdevctl.d") / parent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / uuid).write_text(json.dumps({"mdev_type": "nvidia-557", "start": "manual", "attrs": []}))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A private libvirt with three defined mediated devices, our hook and a daemon."""
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path_factory.mktemp("host")), libvirtd=False) as host:
        if not (host.root / "usr/bin/mdevctl").exists():
            pytest.skip("mdevctl is not installed")
        host.install_hook(CHECKOUT / "hook/qemu", "qemu.d/pcinuma")
        define_mdev(host, NEAR, GPU_0)
        define_mdev(host, FAR, GPU_1)
        define_mdev(host, TWICE, GPU_0)
        define_mdev(host, TWICE, GPU_1)
        host.start_libvirtd()
        if host.connect().getLibVersion() < 7_003_000:
            pytest.skip("this libvirt does not list inactive mediated devices")
        with RunningDaemon(host) as daemon:
            yield daemon


def await_placed(domain: libvirt.virDomain, expected: dict[str, object]) -> None:
    until(lambda: cells(domain.XMLDesc(SECURE)) == expected, f"{domain.name()} to be placed as {expected}")


def test_a_domain_with_inactive_devices_is_placed_beside_their_parents(daemon: RunningDaemon) -> None:
    domain = daemon.host.connect().defineXML(guest("inactive", (NIC_0,), extra=hostdev(NEAR) + hostdev(FAR)))
    await_placed(domain, {NIC_0: 0, NEAR: 0, FAR: 1})
    until(lambda: daemon.outcome("inactive"), "the daemon to record it")
    report = daemon.call("PlaceDomain", {"domain": "inactive", "dry_run": True})["report"]
    assert report["reason"] == "already-placed"
    told = {line["source"]: (line["device"], line["form"], line["host_node"], line["placed"]) for line in report["devices"]}
    assert told[FAR] == (GPU_1, "mdev", 1, True)


def test_one_that_is_defined_later_is_placed_then(daemon: RunningDaemon) -> None:
    domain = daemon.host.connect().defineXML(guest("waiting", (NIC_0,), extra=hostdev(LATE)))
    until(lambda: daemon.outcome("waiting") == ("fallback", "device-absent"), "the daemon to find it absent")
    assert cells(domain.XMLDesc(SECURE)) == {NIC_0: None, LATE: None}
    define_mdev(daemon.host, LATE, GPU_1)
    await_placed(domain, {NIC_0: 0, LATE: 1})


def test_one_that_is_defined_for_two_parents_has_none(daemon: RunningDaemon) -> None:
    domain = daemon.host.connect().defineXML(guest("twice", (NIC_0,), extra=hostdev(TWICE)))
    until(lambda: daemon.outcome("twice") == ("fallback", "device-absent"), "the daemon to decide")
    assert cells(domain.XMLDesc(SECURE)) == {NIC_0: None, TWICE: None}


def test_the_hook_knows_what_the_reconciler_was_told_and_refuses_nothing_for_it(daemon: RunningDaemon) -> None:
    host = daemon.host
    domain = host.connect().defineXML(guest("required", (NIC_0,), extra=hostdev(FAR), policy="required"))
    await_placed(domain, {NIC_0: 0, FAR: 1})
    define_mdev(host, "90000000-0000-4000-8000-000000000009", GPU_0)  # an event that has nothing to do with it
    for _ in range(2):
        said = host.virsh("start", "required", check=False)
        assert said.returncode != 0 and "Hook script" not in said.stderr, "libvirt refuses it for want of the device, and the hook does not"
    assert "outcome=unchanged" in daemon.decided("required", "hook")[-1]


def test_a_placed_domain_whose_devices_nobody_told_of_is_not_judged_wrong(daemon: RunningDaemon) -> None:
    host = daemon.host
    domain = host.connect().defineXML(guest("forgotten", (NIC_0,), extra=hostdev(FAR)))
    await_placed(domain, {NIC_0: 0, FAR: 1})
    placed = domain.XMLDesc(SECURE)
    (host.path("/etc/mdevctl.d") / GPU_1 / FAR).unlink()
    try:
        until(lambda: FAR.replace("-", "_") not in str([d.name() for d in host.connect().listAllDevices(0)]), "libvirt to notice")
        daemon.kill()
        daemon.start()  # and this one was never told
        until(lambda: daemon.outcome("forgotten") == ("fallback", "device-absent"), "the daemon to look at it")
        said = host.virsh("start", "forgotten", check=False)
        assert said.returncode != 0 and "Hook script" not in said.stderr
        assert domain.XMLDesc(SECURE) == placed
    finally:
        define_mdev(host, FAR, GPU_1)


def test_a_transient_domain_is_placed_on_its_way_through_the_proxy(daemon: RunningDaemon) -> None:
    until(lambda: FAR.replace("-", "_") in str([d.name() for d in daemon.host.connect().listAllDevices(0)]), "libvirt to list it")
    probe = {"xml": guest("probe", (NIC_0,), extra=hostdev(FAR)), "caller": "test"}
    until(lambda: daemon.call("Place", probe)["report"]["outcome"] == "placed", "the daemon to hear of it")
    xml = guest("transient", (NIC_0,), extra=hostdev(FAR))
    with RunningProxy(daemon.host) as proxy, pytest.raises(libvirt.libvirtError):  # there is no such device to start it with
        proxy.connect().createXML(xml)
    until(lambda: daemon.decided("transient", "hook"), "the hook to report")
    (line,) = [line for line in daemon.log().splitlines() if "placed an XML" in line and " domain=transient " in line]
    assert " by=proxy " in line and " outcome=placed " in line
    assert "outcome=unchanged" in daemon.decided("transient", "hook")[-1], "what libvirt is about to boot is placed"


def test_the_command_asks_libvirt_itself_where_there_is_no_daemon(daemon: RunningDaemon) -> None:
    daemon.host.connect().defineXML(guest("explained", (NIC_0,), extra=hostdev(FAR), policy="off"))
    said = daemon.host.run([daemon.host.python, "-m", "pcinuma", "explain", "--json", "explained"])
    (line,) = [line for line in json.loads(said.stdout)["devices"] if line["source"] == FAR]
    assert (line["device"], line["host_node"], line["guest_cell"]) == (GPU_1, 1, 1)
