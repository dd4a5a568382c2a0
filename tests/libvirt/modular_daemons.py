# SPDX-License-Identifier: LGPL-2.1-or-later
"""pcinuma where libvirt's daemons are modular: run by :mod:`tests.libvirt.versions` with ``PCINUMA_TEST_MODULAR``, beside the start paths.

systemd does not run in a private host, so what ``pcinuma proxy enable`` does here is to refuse; below a root directory with the daemons'
own units it writes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.hosts.small import GPU_0, GPU_1, small_host
from tests.libvirt.conftest import require
from tests.libvirt.domains import cells, guest
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_daemon import RunningDaemon
from tests.waiting import CHECKOUT, until

UNITS = "usr/lib/systemd/system"
ETC = "etc/systemd/system"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirt]:
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path_factory.mktemp("host"))) as private:
        yield private


def proxy(host: PrivateLibvirt, *words: str) -> Any:
    return host.run([host.python, "-m", "pcinuma", "proxy", *words], check=False)


def test_virtqemud_and_virtproxyd_run_and_libvirtd_does_not(host: PrivateLibvirt) -> None:
    assert host.processes("virtqemud") and host.processes("virtproxyd") and not host.processes("libvirtd")
    for name in ("virtqemud-sock", "libvirt-sock"):
        assert libvirt.open(f"qemu+unix:///system?socket={host.path('/run/libvirt') / name}").getType() == "QEMU"


def test_the_daemon_places_what_is_defined(host: PrivateLibvirt) -> None:
    with RunningDaemon(host):
        domain = host.connect().defineXML(guest("modular", (GPU_0, GPU_1)))
        until(lambda: cells(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) == {GPU_0: 0, GPU_1: 1}, "the domain to be placed")


def test_enabling_the_proxy_is_refused_where_systemd_does_not_run(host: PrivateLibvirt) -> None:
    refused = proxy(host, "enable")
    assert refused.returncode == 1
    assert "systemd does not run here" in refused.stderr and "/run/pcinuma/libvirt-sock" in refused.stderr
    assert list(host.path(f"/{ETC}").rglob("*pcinuma*")) == []


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A root directory with the units of the daemons as they were built, and of the proxy."""
    units = tmp_path / UNITS
    units.mkdir(parents=True)
    for unit in Path(os.environ["PCINUMA_TEST_MODULAR"]).glob("virt*.s*"):
        shutil.copy(unit, units)
    assert (units / "virtqemud.socket").is_file() and (units / "virtproxyd.socket").is_file()
    for unit in (CHECKOUT / "systemd").glob("pcinuma-proxy.*"):
        shutil.copy(unit, units)
    return tmp_path


def test_enabling_the_proxy_is_refused_where_virtqemuds_socket_is_not_systemds(host: PrivateLibvirt, image: Path) -> None:
    refused = proxy(host, "enable", "--root", str(image))
    assert refused.returncode == 1
    assert "started without socket activation" in refused.stderr and "virtqemud.socket" in refused.stderr
    assert not (image / ETC).exists()


def test_the_proxy_takes_virtqemuds_socket_and_not_virtproxyds(host: PrivateLibvirt, image: Path) -> None:
    wants = image / ETC / "sockets.target.wants"
    wants.mkdir(parents=True)
    for name in ("virtqemud.socket", "virtproxyd.socket"):
        (wants / name).symlink_to(f"/{UNITS}/{name}")
    assert proxy(host, "enable", "--root", str(image)).returncode == 0
    assert (image / ETC / "virtqemud.socket.d").is_dir() and not (image / ETC / "virtproxyd.socket.d").exists()
    assert '"upstream": "/run/libvirt/virtqemud-sock-direct"' in proxy(host, "status", "--json", "--root", str(image)).stdout
    assert proxy(host, "disable", "--root", str(image)).returncode == 0
    assert not list(image.rglob("*50-pcinuma*"))
