# SPDX-License-Identifier: LGPL-2.1-or-later
"""The life of Debian's package on hosts of three releases, booted, with a real libvirtd: installed on a host that has nothing, upgraded and
downgraded with placed and running domains and the proxy on libvirt's socket, its configuration changed, removed and purged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import needs
from tests.hosts.small import GPU_0, GPU_1
from tests.libvirt.conftest import require
from tests.libvirt.domains import cells, guest
from tests.packages import building
from tests.packages.host import SUITES, Host, root, tools
from tests.waiting import CHECKOUT, until

pytestmark = pytest.mark.versions

OLD, NEW = "0.0.9", "0.1.0"
HOOK = "/etc/libvirt/hooks/qemu.d/pcinuma"
CONFIGURATION = "/etc/pcinuma/pcinuma.conf"
PLACED = {GPU_0: 0, GPU_1: 1}
FOREIGN = "#!/bin/sh\n# somebody else's\nexit 0\n"
UNATTENDED = ("-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold")


@dataclass(frozen=True)
class Packages:
    suite: str
    made: dict[str, Path]
    lintian: str
    rpmlint: str


@pytest.fixture(scope="module", params=SUITES)
def packages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Packages of this and of another version, made by the release's own tools."""
    require()
    needs.require(needs.booting())
    suite, folder = request.param, tmp_path_factory.mktemp("debs")
    new, said = building.debhelper(building.source(folder / "new", NEW), folder / "new.deb", tools(suite))
    old, _ = building.debhelper(building.other(folder / "old", OLD), folder / "old.deb", tools(suite))
    plain = building.plain(building.source(folder / "plain", NEW), folder / "plain.deb")
    hooks = {f"{name}-hook": building.hook_package(deb) for name, deb in (("new", new), ("old", old))}
    rpms = {f"{name}-rpm": building.rpm(folder / name, folder / f"{name}.rpm", tools(suite)) for name in ("new", "old")}
    made = {"new": new, "old": old, "plain": plain, **hooks, **{name: package for name, (package, _) in rpms.items()}}
    return Packages(suite, made, said, rpms["new-rpm"][1])


@pytest.fixture(scope="module")
def host(packages: Packages) -> Iterator[Host]:
    """The host, after its first installation and a purge: with libvirt and QEMU, and without pcinuma."""
    with Host(root(packages.suite, packages.made["new"]), packages.made) as host:
        host.said = host.install("new")
        host.await_libvirt()
        yield host


@pytest.fixture
def bare(host: Host) -> Iterator[Host]:
    """The same without pcinuma."""
    purge(host)
    yield host
    purge(host)
    host.shell("for name in $(virsh -q list --name); do virsh -q destroy $name; done")
    host.shell("for name in $(virsh -q list --all --name); do virsh -q undefine $name; done; rm -rf /etc/libvirt/hooks/*")


@pytest.fixture
def installed(bare: Host) -> Host:
    """The same with this version."""
    bare.install("new")
    await_daemon(bare)
    return bare


def purge(host: Host) -> None:
    host.shell("systemctl start libvirtd.service")
    if host.run("dpkg-query", "-W", "pcinuma", check=False).returncode == 0:
        host.apt("purge", "pcinuma")


def await_daemon(host: Host) -> None:
    """Until it has listed the domains: what is there by then is left alone."""
    until(lambda: host.path("/var/lib/pcinuma/existing/README").exists(), "the daemon to have listed the domains", interval=0.1)


def place(host: Host, name: str = "placed") -> tuple[str, str]:
    """Define a domain with two devices; what it was, and what the daemon made of it."""
    host.shell("systemctl stop pcinuma.socket pcinuma.service")
    host.define(guest(name, [GPU_0, GPU_1]))
    original = host.inactive(name)
    host.run("virsh", "-q", "undefine", name)
    host.shell("systemctl start pcinuma.service")
    host.run("pcinuma", "status")
    host.path("/srv/domain.xml").write_text(original)
    host.run("virsh", "-q", "define", "/srv/domain.xml")
    until(lambda: cells(host.inactive(name)) == PLACED, "the domain to be placed", interval=0.1)
    return original, host.inactive(name)


def start_guest(host: Host) -> str:
    """Start a guest with nothing passed through; its process."""
    host.define(guest("running"))
    host.run("virsh", "-q", "start", "running")
    return qemu(host)


def qemu(host: Host) -> str:
    return host.shell("pidof qemu-system-x86_64").strip()


def owned_files(host: Host) -> set[str]:
    """What dpkg knows as the package's; of bookworm's below /lib, which is a link."""
    return {re.sub("^/lib/", "/usr/lib/", path) for path in host.run("dpkg", "-L", "pcinuma").stdout.split()}


def daemons(host: Host, unit: str) -> set[str]:
    """The processes that a unit has had so far."""
    lines = host.run("journalctl", "-q", "-u", unit, "-o", "json", "--output-fields=_PID,_COMM").stdout.splitlines()
    return {line["_PID"] for line in map(json.loads, lines) if line.get("_COMM", "").startswith("pcinuma")}


def test_lintian_has_no_errors_and_no_warnings(packages: Packages) -> None:
    assert [line for line in packages.lintian.splitlines() if re.match(r"[EW]:", line)] == []


def test_rpmlint_has_no_errors_and_no_warnings(packages: Packages) -> None:
    assert "2 packages and 1 specfiles checked" in packages.rpmlint, packages.rpmlint
    said = [line for line in packages.rpmlint.splitlines() if re.search(r": [EW]: ", line)]
    # A filter of what another release's rpmlint says.
    assert [line for line in said if "unused-rpmlintrc-filter" not in line] == []


def test_what_is_made_without_debhelper_is_the_same_package(packages: Packages, host: Host) -> None:
    (plain, plainly), (new, newly) = (describe(host, name) for name in ("plain", "new"))
    assert plain ^ new == set()
    assert plainly ^ newly == set()


def describe(host: Host, name: str) -> tuple[set[str], set[str]]:
    """What is in a package, with modes and links, and what it says of itself."""
    contents = host.run("dpkg-deb", "-c", f"/srv/{name}.deb").stdout.splitlines()
    files = {" ".join([line.split()[0], *line.split()[5:]]).replace(" ./lib/", " ./usr/lib/") for line in contents}
    files -= {file for file in files if "/python3/" in file or "/lintian/" in file or file.endswith((" ./lib", " ./usr/lib/"))}
    said = host.run("dpkg-deb", "-f", f"/srv/{name}.deb").stdout.replace("python3:any", "python3 (>= 3.9)").splitlines()
    return files, {line for line in said if not line.startswith("Installed-Size")}


def test_one_command_on_a_host_that_has_nothing_brings_all_and_starts_it(host: Host) -> None:
    assert "systemd1" not in host.said
    for unit in ("pcinuma.service", "pcinuma.socket"):
        assert host.active(unit)
        assert host.run("systemctl", "is-enabled", unit).stdout.strip() == "enabled"
    assert not host.active("pcinuma-proxy.socket")
    checked = host.run("pcinuma", "check", check=False).stdout
    assert "FAIL" not in checked and "PASS  hook in use" in checked and "QEMU" in checked
    place(host)
    # A guest without a cell for the device: the hook is what refuses.
    host.define(guest("strict", [GPU_0], policy="required", pinned=False))
    assert "required" in host.run("virsh", "start", "strict", check=False).stderr
    host.shell("virsh -q undefine strict; virsh -q undefine placed")
    # Shells complete it, and the manual has a page for each program.
    assert "pcinuma" in host.shell("ls /usr/share/bash-completion/completions /usr/share/zsh/vendor-completions")
    assert host.shell("ls /usr/share/man/man8 | grep pcinuma").split() == ["pcinuma-proxy.8.gz", "pcinuma.8.gz", "pcinumad.8.gz"]


def test_installed_again_nothing_changes_and_nothing_is_reloaded(installed: Host) -> None:
    before, libvirtd = installed.files(), installed.main_pid("libvirtd")
    said = installed.install("new")
    assert {path for path, _ in installed.files().items() ^ before.items()} - {"/var/lib/pcinuma/state.json"} == set()
    assert "reloaded" not in said and installed.main_pid("libvirtd") == libvirtd


@pytest.mark.parametrize(("first", "then"), [("old", "new"), ("new", "old"), ("plain", "new"), ("new", "plain")])
def test_another_version_restarts_daemon_and_proxy_once_and_touches_no_guest(bare: Host, first: str, then: str) -> None:
    bare.install(first)
    await_daemon(bare)
    _, placed = place(bare)
    bare.run("pcinuma", "proxy", "enable")
    process = start_guest(bare)
    before = {unit: (daemons(bare, unit), bare.main_pid(unit)) for unit in ("pcinuma.service", "pcinuma-proxy.service")}
    libvirtd, hook = bare.main_pid("libvirtd"), bare.path(HOOK).stat().st_mtime

    said = bare.install(then)

    for unit, (known, pid) in before.items():
        until(lambda unit=unit: bare.active(unit), f"{unit} to be up", interval=0.2)
        assert bare.main_pid(unit) not in (0, pid)
        assert len(daemons(bare, unit) - known) == 1, unit
        assert bare.run("systemctl", "show", "-p", "NRestarts", "--value", unit).stdout == "0\n"
    assert (qemu(bare), bare.main_pid("libvirtd")) == (process, libvirtd)
    assert bare.inactive("placed") == placed
    assert bare.run("pcinuma", "proxy", "status").stdout.startswith("on:")
    assert "reloaded" not in said and bare.path(HOOK).stat().st_mtime == hook
    assert bare.path(HOOK).read_bytes() == bare.path("/usr/share/pcinuma/qemu-hook").read_bytes()
    assert bare.path("/usr/share/pcinuma/pcinuma/of_another_version.py").exists() == (then == "old")
    assert bare.run("dpkg", "-V", "pcinuma").stdout == ""
    assert bare.run("pcinuma", "--version").stdout.split() == ["pcinuma", OLD if then == "old" else NEW]
    # Nothing of the first is left with the second, compiled files included.
    kept = set(bare.shell("find /usr -name '*pcinuma*' -prune -print; find /usr/share/pcinuma").split())
    owned = owned_files(bare)
    assert {path for path in kept - owned if "__pycache__" not in path} == set()


def test_a_changed_configuration_stays_in_force(bare: Host) -> None:
    bare.install("old")
    bare.path(CONFIGURATION).write_text("[placement]\ngroup-by = node\n")
    bare.path("/etc/pcinuma/pcinuma.conf.d/own.conf").write_text("[placement]\nspare-ports = 1\n")
    bare.install("new", *UNATTENDED)
    assert bare.path(CONFIGURATION).read_text() == "[placement]\ngroup-by = node\n"
    assert "group-by node" in bare.run("pcinuma", "check", check=False).stdout
    bare.apt("remove", "pcinuma")
    assert bare.path("/etc/pcinuma/pcinuma.conf.d/own.conf").exists()
    bare.install("new", *UNATTENDED)
    assert bare.path(CONFIGURATION).read_text() == "[placement]\ngroup-by = node\n"


def test_an_unchanged_configuration_becomes_the_new_default(bare: Host) -> None:
    bare.install("old")
    bare.install("new", *UNATTENDED)
    assert bare.path(CONFIGURATION).read_text() == (CHECKOUT / "config/pcinuma.conf").read_text()


def test_removing_reverts_what_is_placed_and_leaves_the_configuration(bare: Host) -> None:
    before = bare.files()
    bare.install("new")
    await_daemon(bare)
    original, _ = place(bare)
    bare.run("pcinuma", "proxy", "enable")
    process = start_guest(bare)

    said = bare.apt("remove", "pcinuma")

    assert "placed: reverted" in said and "libvirt's socket is libvirt's again" in said
    assert bare.inactive("placed") == original
    assert qemu(bare) == process
    assert bare.shell("ps -e -o comm= | grep pcinuma || true") == ""
    left = {path for path in bare.files() if path not in before and not path.startswith("/etc/systemd/system/")}
    assert left == {CONFIGURATION}
    assert bare.run("virsh", "-q", "list", "--name").stdout.split() == ["running"]


def test_purging_leaves_nothing(bare: Host) -> None:
    before = bare.files()
    bare.install("new")
    await_daemon(bare)
    place(bare)
    bare.path("/etc/pcinuma/pcinuma.conf.d/own.conf").write_text("")
    bare.apt("purge", "pcinuma")
    assert bare.files().items() ^ before.items() == set()
    everywhere = bare.shell("find / /run -xdev -path '*pcinuma*' ! -path '/srv/*' ! -path '/run/systemd/system/pcinuma*'")
    assert everywhere == ""
    assert bare.run("systemctl", "list-units", "--all", "--no-legend", "pcinuma*").stdout == ""
    bare.run("virsh", "-q", "undefine", "placed")


def test_removing_while_libvirt_is_down_says_why_not_and_what_to_do(installed: Host) -> None:
    place(installed)
    before = installed.files()
    installed.shell("systemctl stop libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket")
    daemon = installed.main_pid("pcinuma")

    said = installed.apt("remove", "pcinuma", check=False)

    assert re.search(r"pcinuma: not reverted: placed, so pcinuma is not removed\. .*: touch /run/pcinuma/leave-placed", said)
    assert installed.files().items() ^ before.items() == set()
    assert installed.active("pcinuma.service") and installed.main_pid("pcinuma") == daemon
    assert installed.run("dpkg-query", "-W", "-f", "${db:Status-Status}", "pcinuma").stdout == "installed"

    installed.shell("touch /run/pcinuma/leave-placed")
    assert "not reverted, and left as they are: placed" in installed.apt("remove", "pcinuma")
    installed.await_libvirt()
    assert cells(installed.inactive("placed")) == PLACED


def test_hooks_of_others_are_what_they_were_before_meanwhile_and_after(bare: Host) -> None:
    bare.shell("mkdir -p /etc/libvirt/hooks/qemu.d")
    hooks = [bare.path(f"/etc/libvirt/hooks/{name}") for name in ("qemu", "qemu.d/another", "qemu.d/pcinuma")]
    for hook in hooks:
        hook.write_text(FOREIGN)
        hook.chmod(0o755)

    def state() -> list[tuple[str, float]]:
        return [(hook.read_text(), hook.stat().st_mtime) for hook in hooks]

    before = state()
    assert f"{HOOK} is somebody else's, so the hook is not installed" in bare.install("new")
    assert state() == before
    bare.install("old")
    bare.apt("purge", "pcinuma")
    assert state() == before
    hooks.pop().unlink()
    before = state()
    bare.install("new")
    assert bare.path(HOOK).read_bytes() == (CHECKOUT / "hook/qemu").read_bytes() and state() == before
    bare.apt("purge", "pcinuma")
    assert state() == before and not bare.path(HOOK).exists()


FORMER = r"""
# As install.sh installed it when it was an installer of its own.
dpkg-deb -x /srv/old.deb /srv/former
mkdir -p /usr/lib/pcinuma /etc/libvirt/hooks
cp -R /srv/former/usr/share/pcinuma/pcinuma /usr/lib/pcinuma/pcinuma
echo '#!/bin/bash' >/usr/lib/pcinuma/install.sh
echo python3-lxml >/usr/lib/pcinuma/installed-packages
for name in pcinuma pcinumad pcinuma-proxy; do
    sed 's|/usr/share/pcinuma|/usr/lib/pcinuma|' /srv/former/usr/bin/$name >/usr/bin/$name
    chmod 755 /usr/bin/$name
done
for unit in pcinuma.service pcinuma.socket pcinuma-proxy.service pcinuma-proxy.socket; do
    cp "$(find /srv/former -name $unit)" /usr/lib/systemd/system/
done
cp /srv/former/usr/lib/tmpfiles.d/pcinuma.conf /usr/lib/tmpfiles.d/
mkdir -p /usr/share/man/man8 /usr/share/man/man5
zcat /srv/former/usr/share/man/man8/pcinuma.8.gz >/usr/share/man/man8/pcinuma.8
zcat /srv/former/usr/share/man/man5/pcinuma.conf.5.gz >/usr/share/man/man5/pcinuma.conf.5
cp /srv/former/usr/share/bash-completion/completions/pcinuma /usr/share/bash-completion/completions/
cp -R /srv/former/etc/pcinuma /etc/
cp /srv/former/usr/share/pcinuma/qemu-hook /etc/libvirt/hooks/qemu
rm -rf /srv/former
systemctl daemon-reload
systemctl -q enable pcinuma.socket pcinuma.service
systemctl start pcinuma.socket pcinuma.service
systemctl reload libvirtd
"""


def test_who_installed_by_the_former_script_is_taken_over_without_a_leftover(bare: Host) -> None:
    before = bare.files()
    bare.shell(FORMER)
    await_daemon(bare)
    original, placed = place(bare)
    bare.run("pcinuma", "proxy", "enable")
    process, libvirtd = start_guest(bare), bare.main_pid("libvirtd")
    former = {unit: bare.main_pid(unit) for unit in ("pcinuma.service", "pcinuma-proxy.service")}

    assert "took over" in bare.install("new", *UNATTENDED)

    for unit, pid in former.items():
        until(lambda unit=unit: bare.active(unit), f"{unit} to be up", interval=0.2)
        assert bare.main_pid(unit) not in (0, pid)
    assert (qemu(bare), bare.main_pid("libvirtd")) == (process, libvirtd)
    assert bare.inactive("placed") == placed
    assert bare.run("pcinuma", "--version").stdout.split() == ["pcinuma", NEW]
    owned = owned_files(bare)
    for path in bare.files().keys() - before.keys():
        ours = "pcinuma" in path and path not in owned and not path.startswith(("/etc/systemd/system/", "/var/lib/pcinuma"))
        assert not ours or path in (HOOK, f"{CONFIGURATION}.dpkg-dist"), path
    bare.apt("purge", "pcinuma")
    assert bare.inactive("placed") == original
    bare.shell("virsh -q destroy running; virsh -q undefine running; virsh -q undefine placed")
    assert bare.files().items() ^ before.items() == set()


def test_the_rpm_package_does_the_same_as_far_as_rpm_on_debian_can_show(bare: Host) -> None:
    bare.apt("--no-install-recommends", "install", "rpm", "python3-libvirt", "python3-lxml", "python3-psutil", "python3-structlog")
    before = bare.files()
    bare.run("rpm", "--nodeps", "-i", "/srv/old-rpm.rpm")
    bare.shell("systemctl daemon-reload; systemctl enable --now pcinuma.socket pcinuma.service")  # as a preset of Fedora's would
    await_daemon(bare)
    original, placed = place(bare)
    bare.run("pcinuma", "proxy", "enable")
    process = start_guest(bare)
    known = {unit: daemons(bare, unit) for unit in ("pcinuma.service", "pcinuma-proxy.service")}
    bare.path(CONFIGURATION).write_text("[placement]\ngroup-by = node\n")

    bare.run("rpm", "--nodeps", "-U", "/srv/new-rpm.rpm")

    for unit, pids in known.items():
        until(lambda unit=unit: bare.active(unit), f"{unit} to be up", interval=0.2)
        assert len(daemons(bare, unit) - pids) == 1, unit
    assert (bare.inactive("placed"), qemu(bare)) == (placed, process)
    assert bare.path(CONFIGURATION).read_text() == "[placement]\ngroup-by = node\n"
    assert bare.path(HOOK).read_bytes() == (CHECKOUT / "hook/qemu").read_bytes()
    bare.shell("systemctl stop libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket")
    refused = bare.run("rpm", "-e", "pcinuma", check=False)
    assert refused.returncode != 0 and "not reverted: placed, so pcinuma is not removed" in refused.stderr
    assert bare.run("rpm", "-q", "pcinuma").returncode == 0 and bare.active("pcinuma.service")
    bare.await_libvirt()
    said = bare.run("rpm", "-e", "pcinuma")
    assert "placed: reverted" in said.stdout + said.stderr
    assert (bare.inactive("placed"), qemu(bare)) == (original, process)
    bare.shell("virsh -q destroy running; virsh -q undefine running; virsh -q undefine placed; rm -r /etc/pcinuma")
    # Folders that packages of Fedora's own have.
    folders = {"/var/lib/rpm", "/usr/share/licenses", "/usr/share/zsh/site-functions"}
    assert {path for path, _ in bare.files().items() ^ before.items() if "/rpm/" not in path} - folders == set()


VDSM = "/usr/libexec/vdsm/hooks/before_vm_start"
OVIRT_HOOK = f"{VDSM}/60_pcinuma"


def run_as_vdsm(host: Host) -> str:
    """What the hook for oVirt says of a VM with a device that is not there, run by somebody who is not root; the VM stays what it is."""
    xml = guest("vm", ["ffff:ff:1f.7"])
    host.shell("rm -rf /tmp/vdsm; mkdir /tmp/vdsm")
    host.path("/tmp/vdsm/vm.xml").write_text(xml)
    host.shell("chown -R nobody /tmp/vdsm")
    said = host.run("setpriv", "--reuid=nobody", "--clear-groups", "env", "_hook_domxml=/tmp/vdsm/vm.xml", OVIRT_HOOK).stderr
    assert host.path("/tmp/vdsm/vm.xml").read_text() == xml
    return said


def test_the_hook_for_ovirt_comes_and_goes_with_its_package_beside_somebody_elses(bare: Host) -> None:
    other = bare.path(f"{VDSM}/50_other")
    other.parent.mkdir(parents=True)
    other.write_text(FOREIGN)
    other.chmod(0o755)
    before = bare.files()
    for name in ("old", "new"):  # together, for the one wants the other's very version
        bare.apt("--allow-downgrades", "install", f"/srv/{name}.deb", f"/srv/{name}-hook.deb")
        versions = bare.run("dpkg-query", "-W", "-f", "${Version} ", "pcinuma", "vdsm-hook-pcinuma").stdout.split()
        assert [version.partition("-")[0] for version in versions] == [OLD if name == "old" else NEW] * 2
        assert run_as_vdsm(bare) == "pcinuma: ffff:ff:1f.7: the host has no such device at the moment\n"
        assert bare.run("dpkg", "-V", "pcinuma", "vdsm-hook-pcinuma").stdout == ""
    with_package = bare.files()
    bare.apt("remove", "vdsm-hook-pcinuma")
    gone = with_package.keys() - bare.files().keys()
    assert {path for path in gone if "vdsm-hook-pcinuma" not in path} == {OVIRT_HOOK}
    assert other.read_text() == FOREIGN
    bare.apt("install", "/srv/new-hook.deb")
    assert bare.files() == with_package
    bare.apt("purge", "pcinuma")  # takes along what cannot be without it
    assert bare.run("dpkg-query", "-W", "vdsm-hook-pcinuma", check=False).returncode != 0
    assert bare.files().items() ^ before.items() == set()
    bare.shell("rm -r /usr/libexec/vdsm")


def test_the_metrics_are_off_until_somebody_wants_them_and_gone_with_the_package(bare: Host) -> None:
    timer, folder = "pcinuma-metrics.timer", "/var/lib/prometheus/node-exporter"
    written = bare.path(f"{folder}/pcinuma.prom")

    def state() -> tuple[str, bool]:
        return bare.run("systemctl", "is-enabled", timer, check=False).stdout.strip(), bare.active(timer)

    bare.apt("--no-install-recommends", "install", "python3-prometheus-client")
    bare.shell(f"mkdir -p {folder}")
    before = bare.files()
    for version in ("old", "new"):
        bare.install(version)
        assert state() == ("disabled", False) and not written.exists()
    bare.run("systemctl", "enable", "--now", timer)
    until(written.exists, "the metrics to be written", interval=0.2)
    for version in ("old", "new"):
        bare.install(version)
        assert state() == ("enabled", True)
        written.unlink()
        bare.run("systemctl", "start", "pcinuma-metrics.service")
        assert "pcinuma_" in written.read_text()
    bare.apt("remove", "pcinuma")
    assert not written.exists() and not bare.active(timer)
    bare.apt("purge", "pcinuma")
    assert bare.run("systemctl", "list-units", "--all", "--no-legend", "pcinuma*").stdout == ""
    assert bare.files().items() ^ before.items() == set()
    bare.apt("purge", "python3-prometheus-client")
    bare.shell("rm -r /var/lib/prometheus")
