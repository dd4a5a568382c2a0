# SPDX-License-Identifier: LGPL-2.1-or-later
"""check: what it finds in a host's files and in the processes of a libvirt."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

import pytest

from pcinuma.cli.checks import daemon, hook, host
from pcinuma.cli.checks.finding import Finding, Level
from pcinuma.daemon import choices
from tests.hosts.machines import MACHINES
from tests.waiting import CHECKOUT


def levels(findings: list[Finding]) -> dict[str, Level]:
    return {finding.what: finding.level for finding in findings}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    MACHINES["two-sockets"]().write(tmp_path)
    return tmp_path


def test_a_two_socket_machine_with_an_iommu_passes(root: Path) -> None:
    assert set(levels(host.check(root)).values()) == {Level.PASS}


def test_a_machine_with_one_node_is_told_that_there_is_nothing_to_see(tmp_path: Path) -> None:
    MACHINES["one-node"]().write(tmp_path)
    assert levels(host.check(tmp_path))["NUMA nodes"] is Level.WARN


def test_firmware_that_tells_no_nodes_fails(tmp_path: Path) -> None:
    MACHINES["minus-one"]().write(tmp_path)
    assert levels(host.check(tmp_path))["device affinity"] is Level.FAIL


def test_a_spelling_mistake_in_the_configuration_fails_and_names_the_file(root: Path) -> None:
    write(root / "etc/pcinuma/pcinuma.conf.d/10-site.conf", "[placement]\ngroup-by = socket\n")
    (finding,) = [finding for finding in host.check(root) if finding.what == "configuration"]
    assert finding.level is Level.FAIL
    assert "10-site.conf" in finding.message


@pytest.mark.parametrize(
    ("device", "now", "told"),
    [
        ("18:00.0", ("16.0 GT/s PCIe", "8"), "16 GT/s x8 of 16 GT/s x16"),  # a NIC
        ("18:00.0", ("8.0 GT/s PCIe", "16"), "8 GT/s x16 of 16 GT/s x16"),
        ("17:00.0", ("16.0 GT/s PCIe", "8"), "16 GT/s x8 of 16 GT/s x16"),  # a GPU
        ("17:00.0", ("2.5 GT/s PCIe", "16"), None),  # which may be idle
        ("18:00.0", None, None),
    ],
)
def test_a_link_below_what_both_ends_can_do_is_a_warning(
    device: str, now: Optional[tuple[str, str]], told: Optional[str], tmp_path: Path
) -> None:
    machine = MACHINES["two-sockets"]()
    machine.functions[f"0000:{device}"].now = now
    (finding,) = [finding for finding in host.check(machine.write(tmp_path)) if finding.what == "links"]
    assert finding.level is (Level.PASS if told is None else Level.WARN)
    assert told is None or f"0000:{device} ({told})" in finding.message


def test_no_iommu_groups_is_a_warning(root: Path) -> None:
    shutil.rmtree(root / "sys/kernel", ignore_errors=True)
    assert levels(host.check(root))["IOMMU"] is Level.WARN


@pytest.mark.parametrize(
    ("enforce", "boolean", "expected"),
    [("1", "1 1", Level.PASS), ("1", "0 0", Level.FAIL), ("0", "0 0", Level.WARN), ("1", None, Level.WARN)],
)
def test_selinux_matters_where_the_boolean_is_off(root: Path, enforce: str, boolean: str, expected: Level) -> None:
    write(root / "sys/fs/selinux/enforce", enforce)
    if boolean is not None:
        write(root / "sys/fs/selinux/booleans/virt_hooks_unconfined", boolean)
    (finding,) = [finding for finding in host.check(root) if finding.what == "SELinux"]
    assert finding.level is expected
    if expected is Level.FAIL:
        assert finding.hint == "setsebool -P virt_hooks_unconfined on"


def test_apparmor_that_confines_libvirt_is_said(root: Path) -> None:
    write(root / "sys/module/apparmor/parameters/enabled", "Y\n")
    profiles = "/usr/sbin/cupsd (enforce)\nlibvirtd (enforce)\nlibvirtd//qemu_bridge_helper (enforce)\n"
    write(root / "sys/kernel/security/apparmor/profiles", profiles)
    (finding,) = [finding for finding in host.check(root) if finding.what == "AppArmor"]
    assert finding.message.startswith("libvirtd confined")


def install(root: Path, name: str = "qemu", mode: int = 0o755) -> Path:
    path = root / "etc/libvirt/hooks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(CHECKOUT / "hook/qemu", path)
    path.chmod(mode)
    return path


@contextmanager
def process_called(name: str, folder: Path) -> Iterator[int]:
    """A real process of that name; returns its pid."""
    shutil.copyfile(shutil.which("sleep") or "/bin/sleep", folder / name)
    (folder / name).chmod(0o755)
    with subprocess.Popen([str(folder / name), "60"]) as process:
        try:
            until = time.monotonic() + 120
            while Path(f"/proc/{process.pid}/comm").read_text().strip() != name and time.monotonic() < until:
                time.sleep(0.01)
            yield process.pid
        finally:
            process.kill()


def test_without_a_hook_check_fails_and_says_how_to_get_one(root: Path) -> None:
    (finding,) = hook.check(root)
    assert finding.level is Level.FAIL
    assert "host-setup installed" in (finding.hint or "")


def test_somebody_elses_hook_is_not_taken_for_ours(root: Path) -> None:
    write(root / "etc/libvirt/hooks/qemu", "#!/bin/sh\nexit 0\n")
    assert hook.find(root) is None
    ours = install(root, "qemu.d/pcinuma")
    assert hook.find(root) == ours


def test_a_hook_that_libvirt_would_ignore_fails(root: Path) -> None:
    install(root, mode=0o644)
    (finding,) = hook.check(root)
    assert finding.level is Level.FAIL
    assert "not executable" in finding.message


def test_a_hook_that_anybody_can_write_fails(root: Path) -> None:
    install(root, mode=0o757)
    assert levels(hook.check(root))["hook"] is Level.FAIL


def test_a_libvirt_that_runs_since_before_the_hook_does_not_call_it(root: Path, tmp_path: Path) -> None:
    path = install(root)
    with process_called("virtqemud", tmp_path) as pid:
        os.utime(path, (time.time() + 60, time.time() + 60))
        (finding,) = [finding for finding in hook.check(root) if finding.what == "hook in use"]
        assert finding.level is Level.FAIL
        assert f"virtqemud (pid {pid})" in finding.message
        assert "virtqemud" in (finding.hint or "")
        start = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19]
        write(root / "run/pcinuma/hook-seen", f"{pid} {start}\n")
        (finding,) = [finding for finding in hook.check(root) if finding.what == "hook in use"]
        # Another libvirt of this machine may see the file too, and is rightly told about; this one no longer is.
        assert finding.level is Level.PASS or f"(pid {pid})" not in finding.message


def test_a_libvirt_that_started_after_the_hook_calls_it(root: Path, tmp_path: Path) -> None:
    path = install(root)
    os.utime(path, (0, 0))
    with process_called("libvirtd", tmp_path):
        assert levels(hook.check(root)) == {"hook": Level.PASS, "hook in use": Level.PASS}


def test_choices_that_were_lost_are_said_while_no_daemon_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCINUMA_SOCKET", str(tmp_path / "nobody"))
    monkeypatch.setenv("PCINUMA_STATE", str(tmp_path))
    choices.establish(tmp_path, [])
    assert [finding.level for finding in daemon.check() if finding.what == "daemon"] == [Level.FAIL]
    shutil.rmtree(tmp_path / choices.DISABLED)
    _, lost = [finding for finding in daemon.check() if finding.what == "daemon"]
    assert lost.level is Level.FAIL
    assert "was lost" in lost.message
