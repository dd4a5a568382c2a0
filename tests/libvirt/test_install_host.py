# SPDX-License-Identifier: LGPL-2.1-or-later
"""install.sh on a whole host, where libvirt runs and domains are placed: what it sets up works, and taking it down undoes it all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.hosts.small import GPU_0, GPU_1, small_host
from tests.libvirt.conftest import require
from tests.libvirt.domains import cells, guest
from tests.libvirt.harness import USR_WRITTEN, PrivateLibvirt
from tests.waiting import ended, until

PLACED = {GPU_0: 0, GPU_1: 1}
FOLDERS = ("etc", "var", "run")
# What libvirt itself, a test's mounts, and the package manager in its own books write meanwhile.
OTHERS = (
    *("run/libvirt", "var/lib/libvirt", "var/log/libvirt", "var/cache/libvirt", "etc/libvirt/qemu", "run/virtlogd"),
    *("var/lib/dpkg", "var/log/dpkg.log"),
)
# Which units an administrator wants is configuration too: it is there when the package is installed again.
ENABLED = {
    *("etc/systemd/system/multi-user.target.wants/pcinuma.service", "etc/systemd/system/sockets.target.wants/pcinuma.socket"),
    *("var/lib/systemd/deb-systemd-helper-enabled/multi-user.target.wants/pcinuma.service",),
    *("var/lib/systemd/deb-systemd-helper-enabled/sockets.target.wants/pcinuma.socket",),
    *(f"var/lib/systemd/deb-systemd-helper-enabled/pcinuma.{kind}.dsh-also" for kind in ("service", "socket")),
    *(f"var/lib/systemd/deb-systemd-helper-enabled/pcinuma-{unit}.dsh-also" for unit in ("proxy.socket", "metrics.timer")),
}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[PrivateLibvirt]:
    """A private libvirt on a host of two nodes."""
    require()
    with PrivateLibvirt(host_tree=small_host(tmp_path / "host")) as host:
        yield host


def install(host: PrivateLibvirt, *arguments: str, check: bool = True) -> CompletedProcess[str]:
    return host.run(["./install.sh", *arguments], check=check)


def start_daemon(host: PrivateLibvirt) -> None:
    with (host.base / "pcinumad.log").open("ab") as log:
        host.popen(["/usr/bin/pcinumad"], stdout=log, stderr=log)
    until(lambda: _is_connected(host), "the installed daemon to know what was there before", interval=0.2)


def _is_connected(host: PrivateLibvirt) -> bool:
    said = host.run(["/usr/bin/pcinuma", "status", "--json"], check=False)
    return said.returncode == 0 and bool(json.loads(said.stdout)["libvirt"]["connected"])


def inactive(host: PrivateLibvirt, name: str) -> str:
    return host.virsh("dumpxml", "--inactive", "--security-info", name).stdout


def files(host: PrivateLibvirt) -> set[str]:
    """Every file that the host has of its own: what was written to /usr, and all of /etc, /var and /run but what is libvirt's."""
    written = host.run(["find", host.base / USR_WRITTEN, "!", "-type", "d", "-printf", "usr/%P\n"]).stdout.splitlines()
    found = {str(path.relative_to(host.base)) for folder in FOLDERS for path in (host.base / folder).rglob("*") if not path.is_dir()}
    return {file for file in {*written, *found} if not file.startswith(OTHERS) and not file.endswith(".pyc")}


def test_a_running_libvirt_calls_the_hook_from_the_install_on_and_is_not_restarted(host: PrivateLibvirt) -> None:
    # On a busy machine a child of its own that has not become another program yet is called the same.
    (libvirtd,) = until(lambda: (found := host.processes("libvirtd")) and len(found) == 1 and found, "libvirtd to be one process")
    host.connect().defineXML(guest("strict", [GPU_0], policy="required"))
    assert "libvirtd reloaded" in install(host, "--no-packages").stdout
    # The daemon does not run: the hook is what refuses.
    refusal = until(
        lambda: (said := host.virsh("start", "strict", check=False).stderr).find("pcinuma:") >= 0 and said,
        "the hook to be called",
        interval=0.5,
    )
    assert "required" in refusal
    until(lambda: [process.pid for process in host.processes("libvirtd")] == [libvirtd.pid], "libvirtd to be one process")
    assert not ended(libvirtd)


def test_a_second_run_changes_nothing_and_leaves_libvirt_in_peace(host: PrivateLibvirt) -> None:
    install(host, "--no-packages")
    before = files(host)
    said = install(host, "--no-packages").stdout
    assert "nothing was changed" in said and "reloaded" not in said
    assert files(host) == before


def by_hand(said: str) -> list[str]:
    """The commands that install.sh gives where no systemd runs."""
    _, _, told = said.partition("No systemd runs here")
    return [line.strip() for line in told.partition("Next:")[0].splitlines()[1:]]


@pytest.mark.parametrize("running", [True, False], ids=["libvirtd runs", "nothing runs"])
def test_without_systemd_what_it_says_word_for_word_leads_to_a_placed_domain(host: PrivateLibvirt, running: bool) -> None:
    if not running:
        for name in ("libvirtd", "virtlogd"):
            for process in host.processes(name):
                process.kill()
        until(lambda: not host.processes("libvirtd") and not host.processes("virtlogd"), "libvirt to end")
    commands = by_hand(install(host, "--no-packages").stdout)
    assert ("libvirtd -d" in commands) is not running
    host.run(["sh", "-euc", "\n".join(commands)])
    until(lambda: host.virsh("list", check=False).returncode == 0, "libvirtd to answer", interval=0.1)
    # What is there when the daemon lists the domains for the first time is left alone.
    until(lambda: host.path("/var/lib/pcinuma/existing/README").exists(), "the daemon to have listed the domains", interval=0.1)
    host.run(["virsh", "-q", "define", "/dev/stdin"], input=guest("new", [GPU_0, GPU_1]))
    until(lambda: cells(inactive(host, "new")) == PLACED, "the domain to be placed", interval=0.1)
    assert "placed" in host.run(["pcinuma", "status"]).stdout
    assert by_hand(install(host, "--no-packages").stdout) == []


def test_purging_restores_placed_domains_stops_the_daemon_and_leaves_no_file(host: PrivateLibvirt) -> None:
    before = files(host)
    domain = host.connect().defineXML(guest("restored", [GPU_0, GPU_1]))
    original = inactive(host, "restored")
    domain.undefine()
    install(host, "--no-packages")
    start_daemon(host)
    host.connect().defineXML(original)
    until(lambda: cells(inactive(host, "restored")) == PLACED, "the domain to be placed")

    said = install(host, "--purge").stdout

    assert "restored: reverted" in said
    assert inactive(host, "restored") == original
    assert [process.name() for process in host.processes() if "pcinuma" in process.name()] == []
    assert files(host) == before
    assert "Nothing of pcinuma is installed here" in install(host, "--purge").stdout


def test_uninstalling_leaves_the_configuration_and_domains_start_as_ever(host: PrivateLibvirt) -> None:
    before = files(host)
    install(host, "--no-packages")
    host.connect().defineXML(guest("plain"))
    install(host, "--uninstall")
    assert files(host) - before - ENABLED == {"etc/pcinuma/pcinuma.conf"}
    host.virsh("start", "plain")
    host.virsh("destroy", "plain")


def test_a_placed_domain_that_cannot_be_reverted_stops_the_uninstall_unless_forced(host: PrivateLibvirt) -> None:
    install(host, "--no-packages")
    host.connect().defineXML(guest("stuck", [GPU_0, GPU_1]))
    host.run(["/usr/bin/pcinuma", "enable", "stuck"], check=False)
    host.run(["/usr/bin/pcinuma", "apply", "stuck"], check=False)
    assert cells(inactive(host, "stuck")) == PLACED
    installed = files(host)
    host.stop_libvirtd()

    refused = install(host, "--uninstall", check=False)
    assert refused.returncode == 1 and "nothing was removed" in refused.stderr
    assert files(host) == installed

    forced = install(host, "--purge", "--force")
    assert "not reverted, and left as they are: stuck" in forced.stdout
    host.start_libvirtd()
    assert cells(inactive(host, "stuck")) == PLACED


def test_what_is_missing_is_named_and_nothing_is_installed(host: PrivateLibvirt) -> None:
    before = files(host)
    host.run(["sed", "-i", "/^Package: python3-structlog$/,/^$/d", "/var/lib/dpkg/status"])
    missing = install(host, "--no-packages", check=False)
    assert missing.returncode == 1 and missing.stderr == "install.sh: missing: python3-structlog\n"
    assert files(host) == before


def test_the_package_manager_owns_what_was_installed(host: PrivateLibvirt) -> None:
    before = files(host)
    install(host, "--no-packages")
    listed = {line.lstrip("/") for line in host.run(["dpkg", "-L", "pcinuma"]).stdout.splitlines()}
    assert files(host) - before - ENABLED - listed == {"etc/libvirt/hooks/qemu.d/pcinuma", "run/pcinuma/hook-seen"}
    assert host.run(["dpkg", "-V", "pcinuma"]).stdout == ""
