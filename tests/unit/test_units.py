# SPDX-License-Identifier: LGPL-2.1-or-later
"""The systemd units: systemd itself accepts them, they are hardened, and they say the same as the rest of the tree."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import needs
from tests.waiting import CHECKOUT

UNITS = sorted(unit for kind in ("service", "socket", "timer") for unit in (CHECKOUT / "systemd").glob(f"*.{kind}"))
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
EXPOSURE = {"pcinuma.service": 17, "pcinuma-proxy.service": 11, "pcinuma-metrics.service": 8}
# Of 100; systemd calls everything below 50 at least "ok"


def settings(unit: Path) -> dict[str, list[str]]:
    """The settings of a unit file, every value of each."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def test_every_unit_is_installed_as_it_is(staged: Path) -> None:
    installed = sorted((staged / "usr/lib/systemd/system").iterdir())
    assert [(unit.name, unit.read_text()) for unit in installed] == sorted((unit.name, unit.read_text()) for unit in UNITS)


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        # The programs are not installed on the machine of a test.
        text = re.sub(r"^ExecStart=/usr/bin/pcinuma\S*", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    verify = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", *(str(tmp_path / unit.name) for unit in UNITS)],
        capture_output=True,
        text=True,
    )
    ours = [line for line in verify.stderr.splitlines() if "pcinuma" in line]
    assert (verify.returncode, ours) == (0, [])


@pytest.mark.parametrize("service", SERVICES, ids=lambda unit: unit.name)
def test_a_service_is_hardened(service: Path) -> None:
    threshold = f"--threshold={EXPOSURE[service.name]}"
    security = subprocess.run(["systemd-analyze", "security", "--offline=true", threshold, str(service)], capture_output=True, text=True)
    assert security.returncode == 0, security.stdout


def test_each_service_has_only_the_capabilities_that_it_needs() -> None:
    """What for is in the units; that it is enough is shown in their sandboxes on a booted systemd."""
    assert settings(CHECKOUT / "systemd/pcinuma.service")["CapabilityBoundingSet"] == ["CAP_SYS_ADMIN"]
    assert settings(CHECKOUT / "systemd/pcinuma-proxy.service")["CapabilityBoundingSet"] == ["CAP_SETUID CAP_SETGID"]
    assert settings(CHECKOUT / "systemd/pcinuma-metrics.service")["CapabilityBoundingSet"] == [""]


def test_the_services_run_the_programs_that_are_installed(staged: Path) -> None:
    for service in SERVICES:
        (command,) = settings(service)["ExecStart"]
        program = command.split()[0]
        assert (staged / program.lstrip("/")).stat().st_mode & 0o111 == 0o111


def test_the_daemon_listens_where_the_hook_asks() -> None:
    (listens,) = settings(CHECKOUT / "systemd/pcinuma.socket")["ListenStream"]
    assert f'SOCKET = "{listens}"' in (CHECKOUT / "hook/qemu").read_text()


def test_the_temporary_files_are_what_systemd_understands(tmp_path: Path) -> None:
    needs.require(needs.root() or needs.program("systemd-tmpfiles", "systemd"))
    configuration = shutil.copy(CHECKOUT / "systemd/pcinuma.tmpfiles", tmp_path / "pcinuma.conf")
    subprocess.run(["systemd-tmpfiles", "--create", f"--root={tmp_path}", configuration], check=True)
    folder = tmp_path / "run/pcinuma"
    assert folder.is_dir() and folder.stat().st_mode & 0o7777 == 0o755
