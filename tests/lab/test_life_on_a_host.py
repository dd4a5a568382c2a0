# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tier 2: real libvirt, real vfio-pci and install.sh on a virtual two-socket host; what each step of :mod:`tests.lab.tier2` left behind."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Optional

import pytest
from lxml import etree

from pcinuma.lab import guest_tree, jobs, layout, nested
from pcinuma.lab.guest_tree import PciPath
from pcinuma.lab.layout import MAIN_ROOT
from pcinuma.lab.virtual_host import HostRun
from pcinuma.ranges import format_ranges
from tests import needs
from tests.lab import apparmor, faults, tier2, tier3

PRESET = tier2.preset()
ADDRESSES = {name: str(address) for name, address in PRESET.host.addresses().items()}
PASSED = [ADDRESSES[name] for name in PRESET.names]


def drivers(run: HostRun, when: str) -> dict[str, tuple[str, str]]:
    """Address -> (driver, IOMMU group) of the devices that are passed or plugged in."""
    lines = [line.split() for line in run.out[f"drivers-{when}"].splitlines()]
    return {address: (driver, group) for address, driver, group in lines if address in ADDRESSES.values()}


def cpus_of(run: HostRun, node: int) -> str:
    """The CPUs of a node of the virtual host, as it says itself."""
    return format_ranges(guest_tree.parse(run.out["host-tree"]).nodes[node])


def cell_of(live: layout.Layout, device: layout.Device) -> Optional[int]:
    """The cell of the expander that a device is below."""
    root = live.path(device.address).root
    return next((c.cell for c in live.controllers.values() if c.bus_nr is not None and root == "0000:%02x" % c.bus_nr), None)


def test_the_host_is_what_its_plan_says(first_host: HostRun) -> None:
    host = guest_tree.parse(first_host.out["host-tree"])
    for name, path in PRESET.host.places().items():
        seen = host.at(path)
        assert seen is not None, name
        assert str(seen.address) == ADDRESSES[name]
        assert seen.numa_node == (1 if name.endswith("1") else 0)


def sentences(text: str) -> str:
    """What was printed, without the line breaks of a terminal's width."""
    return " ".join(text.split())


@pytest.mark.parametrize("planted", faults.LINKS, ids=lambda planted: planted.device)
def test_a_planted_link_is_shown_as_it_is_by_paths_and_by_check(first_host: HostRun, planted: faults.Link) -> None:
    at, (now, best) = ADDRESSES[planted.device], (f"{speed:g} GT/s x{width}" for speed, width in (planted.does, planted.can))
    # A device without Link Capabilities 2 has "Unknown" where a kernel reads its registers at each question.
    if first_host.out[f"max-link-speed-{at}"].split()[0] not in ("Unknown", f"{planted.can[0]:.1f}"):
        pytest.skip("this kernel remembers what speeds a device can do from when it found it, so that none can be planted")
    (device,) = [device for device in json.loads(first_host.out["paths.json"])["devices"] if device["device"] == at]
    assert (device["link"], device["best_link"]) == tuple({"speed_gts": s, "width": w} for s, w in (planted.does, planted.can))
    assert re.search(rf"(?m)^{at} .*  {now} of {best}  ", first_host.out["paths"])
    assert re.search(rf"{planted.told}: [^;]*{at}", sentences(first_host.out["paths"]))
    (line,) = [line for line in first_host.out["check"].splitlines() if " links " in line]
    assert line.startswith("WARN") and f"{at} ({now} of {best})" in line


def test_without_planted_links_nothing_is_said_of_links(first_host: HostRun) -> None:
    (line,) = [line for line in first_host.out["check-unplanted"].splitlines() if " links " in line]
    assert line.startswith("PASS")


@pytest.mark.parametrize("whose", ["host", "guest"])
@pytest.mark.parametrize("planted", [*faults.PAIRS, faults.UNPLANTED], ids=["redirected", "not redirected", "unplanted"])
def test_what_planted_acs_and_ats_do_to_a_pair_is_what_paths_says(first_host: HostRun, planted: faults.Pair, whose: str) -> None:
    before = "" if planted in faults.PAIRS else "-unplanted"
    file = f"{'guest-' if whose == 'guest' else ''}paths{before}"
    at = [ADDRESSES[name] for name in planted.devices]
    (pair,) = [pair for pair in json.loads(first_host.out[f"{file}.json"])["pairs"] if [pair["first"], pair["second"]] == at]
    tree = guest_tree.parse(first_host.out["host-tree"])
    above = [tree.at(PciPath(path.root, path.chain[:-1])) for path in (PRESET.host.places()[name] for name in planted.devices)]
    names = {"ports": " and ".join(str(port.address) for port in above if port is not None), "devices": " and ".join(at)}
    way, why, advice = (word.format(**names) for word in (planted.host if whose == "host" else planted.guest))
    assert pair["verdict"] == way
    assert why in pair["why"]
    assert advice in (pair["advice"] or "") and bool(advice) == bool(pair["advice"])
    if not before:
        assert pair["why"] in sentences(first_host.out[file])


def test_a_definition_is_placed_before_the_start(first_host: HostRun) -> None:
    live = layout.read(first_host.out["live.xml"].encode())
    assert [device.source for device in live.passthrough] == PASSED
    assert all(live.path(device.address).root != MAIN_ROOT for device in live.passthrough)
    assert {c.cell for c in live.controllers.values() if c.model == "pcie-expander-bus"} == {0, 1}


def test_a_guest_without_cells_has_those_that_its_devices_need(first_host: HostRun) -> None:
    assert b"<numa>" not in tier2.definition()
    live = etree.fromstring(first_host.out["live.xml"].encode())
    cells = {cell.get("id"): (cell.get("cpus"), cell.get("memory")) for cell in live.iterfind("cpu/numa/cell")}
    assert cells == {"0": ("0", str(128 << 10)), "1": (None, str(128 << 10))}
    assert {pin.get("vcpu"): pin.get("cpuset") for pin in live.iterfind("cputune/vcpupin")} == {"0": cpus_of(first_host, 0)}


def test_each_cell_is_in_its_nodes_memory_and_the_vcpu_on_its_cpus(first_host: HostRun) -> None:
    """By the kernel of the virtual host: VFIO has pinned all of the guest's memory."""
    pages: dict[str, Counter[str]] = {"bind:0": Counter(), "bind:1": Counter()}
    for line in first_host.out["numa-maps"].splitlines():
        _, policy, *facts = line.split()
        if policy in pages:
            pages[policy].update({node: int(count) for node, _, count in (fact.partition("=") for fact in facts) if node in ("N0", "N1")})
    mib = {policy: {node: count * 4 // 1024 for node, count in found.items()} for policy, found in pages.items()}
    assert mib == {"bind:0": {"N0": 128}, "bind:1": {"N1": 128}}
    allowed = {name: cpus for cpus, _, name in (line.partition(" ") for line in first_host.out["threads"].splitlines())}
    assert allowed["CPU 0/TCG"] == cpus_of(first_host, 0)


def test_the_devices_are_on_vfio_pci_while_the_guest_runs_and_on_their_own_driver_before_and_after(first_host: HostRun) -> None:
    before, running, after = (drivers(first_host, when) for when in ("before", "running", "after"))
    assert {address for address, (driver, _) in running.items() if driver == "vfio-pci"} == set(PASSED)
    assert len({group for _, group in running.values()}) == len(ADDRESSES)
    assert {driver for driver, _ in before.values()} == {"e1000e", "nvme"}
    assert after == before


def test_libvirtd_calls_the_hook(first_host: HostRun) -> None:
    assert any("by=hook" in line for line in first_host.out["pcinumad-first.log"].splitlines())


@pytest.mark.full
def test_libvirtd_its_hooks_and_the_guest_run_under_debians_apparmor_profiles(whole_host: HostRun) -> None:
    needs.require(needs.apparmor())
    labels = dict(line.split(maxsplit=1) for line in whole_host.out["apparmor-labels"].splitlines())
    uuid = etree.fromstring(whole_host.out["live.xml"].encode()).findtext("uuid")
    assert labels == {"libvirtd": "libvirtd (enforce)", "hook": "libvirtd (enforce)", "guest": f"libvirt-{uuid} (enforce)"}


@pytest.mark.full
def test_apparmor_denies_nothing_of_all_that_happens_on_a_host_but_what_it_must(whole_host: HostRun) -> None:
    """The hook, the daemon, the proxy, guests with real vfio-pci, hot-plug, installing and removing."""
    needs.require(needs.apparmor())
    denied = [line for line in whole_host.out["apparmor-log"].splitlines() if 'apparmor="DENIED"' in line]
    forbidden = [line for line in denied if f'name="{apparmor.FORBIDDEN}"' in line and 'profile="libvirt-' in line]
    assert forbidden, "what must be denied is in the log, so the log tells of denials"
    assert [line for line in denied if line not in forbidden] == []
    live, transient = (layout.read(whole_host.out[name].encode()) for name in ("live.xml", "transient.xml"))
    assert [cell_of(live, device) for device in live.passthrough] == [0, 0, 0, 1, 1]
    assert [cell_of(transient, device) for device in transient.passthrough] == [0]
    assert json.loads(whole_host.out["verify.json"])["passed"] is True


def test_a_device_that_is_gone_for_a_while_changes_nothing(first_host: HostRun) -> None:
    placed = first_host.out["placed.xml"]
    assert json.loads(first_host.out["status-while-device-gone"])
    assert first_host.out["while-device-gone.xml"] == placed
    assert first_host.out["after-rescan.xml"] == placed


def test_required_refuses_a_start_and_says_why(first_host: HostRun) -> None:
    said = first_host.out["required.log"]
    assert "started" not in said.splitlines()
    assert "pcinuma" in said
    assert ADDRESSES["nic1"] in said or "no guest cell" in said


def test_a_guest_starts_on_the_default_root_when_the_daemon_is_dead(first_host: HostRun) -> None:
    live = layout.read(first_host.out["bare-live.xml"].encode())
    assert [device.source for device in live.passthrough] == [ADDRESSES["disk0"]]
    assert all(live.path(device.address).root == MAIN_ROOT for device in live.passthrough)


def test_without_systemd_the_proxy_is_not_put_on_libvirts_socket_and_says_what_to_do(first_host: HostRun) -> None:
    said = first_host.out["proxy-enable.log"]
    assert "systemd does not run here" in said
    assert f"socket={tier2.PROXY}" in said
    assert said.splitlines()[-1] == "exit code 1"


def test_a_transient_guest_that_comes_through_the_proxy_is_placed(first_host: HostRun) -> None:
    live = layout.read(first_host.out["transient.xml"].encode())
    assert [(device.source, cell_of(live, device)) for device in live.passthrough] == [(ADDRESSES["gpu0"], 0)]


def test_a_device_plugged_in_through_the_proxy_lands_on_the_spare_port_beside_its_neighbour(first_host: HostRun) -> None:
    before, live = (layout.read(first_host.out[name].encode()) for name in ("transient.xml", "transient-plugged.xml"))
    assert live.controllers == before.controllers
    gpu, nic = live.passthrough
    assert (gpu.source, nic.source) == (ADDRESSES["gpu0"], ADDRESSES["nic0"])
    assert live.path(gpu.address).root == live.path(nic.address).root != MAIN_ROOT
    assert live.controllers[nic.address.bus].hotplug
    assert not live.controllers[gpu.address.bus].hotplug


def test_its_devices_are_on_vfio_pci_meanwhile_and_given_back(first_host: HostRun) -> None:
    busy = {ADDRESSES["gpu0"], ADDRESSES["nic0"]}
    assert {address for address, (driver, _) in drivers(first_host, "transient").items() if driver == "vfio-pci"} == busy
    gone = {address for address, (driver, _) in drivers(first_host, "transient-gone").items() if driver == "vfio-pci"}
    assert gone == set()


@pytest.mark.full
def test_verify_passes_by_the_word_of_the_guests_kernel(whole_host: HostRun) -> None:
    assert whole_host.out["verify.log"].splitlines()[-1] == "exit code 0", whole_host.out["verify.log"]
    said = json.loads(whole_host.out["verify.json"])
    assert (said["passed"], said["from"], said["agent"]["state"]) == (True, "guest", "answered")
    live, seen = layout.read(whole_host.out["live.xml"].encode()), tier3.trees(whole_host)[0]
    assert [device["source"] for device in said["devices"]] == PASSED
    for device, there in zip(said["devices"], live.passthrough):
        printed, told = seen.at(live.path(there.address)), device["guest"]
        assert printed is not None
        assert (told["address"], told["numa_node"]) == (str(printed.address), printed.numa_node)
        assert told["id"] == f"{printed.vendor:04x}:{printed.device:04x}"
        bridges = [seen.at(path) for path in live.path(there.address).bridges]
        assert told["bridges"] == [str(bridge.address) for bridge in bridges if bridge is not None]
        assert told["bars_without_address"] == []
    assert [device["guest"]["driver"] for device in said["devices"] if device["source"] == ADDRESSES["disk0"]] == ["nvme"]


@pytest.mark.full
def test_the_topology_for_nccl_is_written_into_the_running_guest(whole_host: HostRun) -> None:
    said = whole_host.out["install-nccl.log"].splitlines()
    assert said[-1] == "exit code 0", said
    written = guest_tree.between(whole_host.out[f"{jobs.NAME}.console"], nested.FILE_BEGIN, nested.FILE_END)
    assert written.strip() == whole_host.out["nccl.xml"].strip(), "what the guest's kernel says is what is computed"
    folder, file = "/var/run/nvidia-topologyd", "/var/run/nvidia-topologyd/virtualTopology.xml"
    wrote = f"vm1: wrote {file}, {len(whole_host.out['nccl.xml'])} bytes"
    assert [line for line in said if line.startswith("vm1: ")] == [f"vm1: made {folder}", wrote]


def test_a_running_guest_is_given_a_device_on_the_spare_port_and_its_kernel_sees_the_node(first_host: HostRun) -> None:
    live, inactive = (layout.read(first_host.out[f"attached{which}.xml"].encode()) for which in ("", "-inactive"))
    *_, gpu, _, nic = live.passthrough
    assert (gpu.source, nic.source) == (ADDRESSES["gpu1"], ADDRESSES[tier2.PLUGGED])
    assert live.path(gpu.address).root == live.path(nic.address).root != MAIN_ROOT
    assert live.controllers[nic.address.bus].hotplug
    assert {item["guest_cell"] for item in json.loads(first_host.out["attach.json"])["attached"]} == {1}
    before, after = tier3.trees(first_host)
    assert before.at(live.path(nic.address)) is None
    for tree, device in ((before, gpu), (after, gpu), (after, nic)):
        seen = tree.at(live.path(device.address))
        assert seen is not None
        assert seen.numa_node == 1
    assert [(d.source, inactive.path(d.address)) for d in inactive.passthrough] == [
        (d.source, live.path(d.address)) for d in live.passthrough
    ]


def test_a_running_guest_lets_go_of_a_device_that_goes_back_to_its_own_driver(first_host: HostRun) -> None:
    assert first_host.out["detach.log"].splitlines()[-1] == "exit code 0", first_host.out["detach.log"]
    done = {item["where"]: item["detached"] for item in json.loads(first_host.out["detach.json"])["done"]}
    assert done == {"live": True, "config": True}
    for which in ("", "-inactive"):
        left = layout.read(first_host.out[f"detached{which}.xml"].encode())
        assert [device.source for device in left.passthrough] == PASSED
    assert nested.UNPLUGGED in first_host.out[f"{jobs.NAME}.console"]
    assert drivers(first_host, "attached")[ADDRESSES[tier2.PLUGGED]][0] == "vfio-pci"
    assert drivers(first_host, "detached")[ADDRESSES[tier2.PLUGGED]] == drivers(first_host, "before")[ADDRESSES[tier2.PLUGGED]]


def test_uninstalling_reverts_the_domains_and_leaves_the_configuration_only(first_host: HostRun) -> None:
    definition = etree.fromstring(first_host.out["uninstalled.xml"].encode())
    assert not definition.xpath("//controller[@model='pcie-expander-bus']")
    assert not definition.xpath("//*[local-name()='placement']")
    # What an administrator wants, which units too, and what package managers keep of it.
    kept = ("/etc/pcinuma", "/etc/systemd/system/", "/var/lib/systemd/deb-systemd-helper-enabled/", "/var/lib/dpkg/info/pcinuma.")
    assert [line for line in first_host.out["left-behind"].splitlines() if not any(folder in line for folder in kept)] == []
