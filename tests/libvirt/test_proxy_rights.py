# SPDX-License-Identifier: LGPL-2.1-or-later
"""A connection through the proxy has its client's rights, no more and no fewer: by the socket's group, by polkit, and for placement."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.libvirt.domains import guest
from tests.libvirt.harness import PrivateLibvirt
from tests.libvirt.running_proxy import RunningProxy
from tests.waiting import ended, until

STRANGER, MEMBER = 4321, 4322
DIRECT = "qemu:///system"


def group_of_libvirt(host: PrivateLibvirt) -> int:
    return int(host.run(["getent", "group", "libvirt"]).stdout.split(":")[2])


def as_user(uid: int, gid: int, groups: Sequence[int] = ()) -> list[str]:
    extra = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", *extra, "env", "HOME=/tmp", "XDG_RUNTIME_DIR=/tmp"]


def add_users(host: PrivateLibvirt) -> None:
    """libvirt's library wants every user to have a name."""
    for name, number in (("stranger", STRANGER), ("member", MEMBER)):
        for line, file in ((f"{name}:x:{number}:{number}::/tmp:/bin/sh", "passwd"), (f"{name}:x:{number}:", "group")):
            with host.path(f"/etc/{file}").open("a") as table:
                table.write(line + "\n")


def wide_open(proxy: RunningProxy) -> None:
    """Everybody may connect to the proxy, so that only libvirt's own socket can turn anybody away."""
    proxy.socket.chmod(0o666)


@pytest.fixture(scope="module")
def host() -> Iterator[PrivateLibvirt]:
    with PrivateLibvirt(libvirtd=False) as private:
        configuration = private.path("/etc/libvirt/libvirtd.conf")
        configuration.write_text(configuration.read_text() + 'unix_sock_group = "libvirt"\nunix_sock_rw_perms = "0770"\n')
        add_users(private)
        private.start_libvirtd()
        private.connect().defineXML(guest("still"))
        yield private


@pytest.fixture(scope="module")
def proxy(host: PrivateLibvirt) -> Iterator[RunningProxy]:
    with RunningProxy(host) as running:
        yield running


def test_the_socket_has_the_mode_and_group_of_libvirts_own(host: PrivateLibvirt) -> None:
    own = host.path("/run/libvirt/libvirt-sock").stat()
    with RunningProxy(host, ["--listen", "/run/pcinuma/another"]):
        made = host.path("/run/pcinuma/another").stat()
    assert (
        (stat.S_IMODE(made.st_mode), made.st_uid, made.st_gid)
        == (stat.S_IMODE(own.st_mode), own.st_uid, own.st_gid)
        == (
            0o770,
            0,
            group_of_libvirt(host),
        )
    )


@pytest.mark.parametrize("who", ["stranger", "member", "member by primary group", "root"])
def test_who_may_use_libvirt_directly_may_through_the_proxy_and_nobody_else(host: PrivateLibvirt, proxy: RunningProxy, who: str) -> None:
    wide_open(proxy)
    group = group_of_libvirt(host)
    user = {
        "stranger": as_user(STRANGER, STRANGER),
        "member": as_user(MEMBER, MEMBER, [group, 4400]),
        "member by primary group": as_user(MEMBER, group),
        "root": as_user(0, 0),
    }[who]
    direct, through = (host.run([*user, "virsh", "-c", uri, "domuuid", "still"], check=False) for uri in (DIRECT, proxy.inside))
    assert through.returncode == direct.returncode == (1 if who == "stranger" else 0)
    assert through.stdout == direct.stdout
    if who == "stranger":
        assert "Permission denied" in direct.stderr
        assert f"uid={STRANGER}" in proxy.log() and "Permission denied" in proxy.log()


def test_libvirt_and_the_kernel_see_the_client_in_the_relay(host: PrivateLibvirt, proxy: RunningProxy) -> None:
    wide_open(proxy)
    group = group_of_libvirt(host)
    before = {relay.pid for relay in proxy.relays()}
    script = f"import libvirt; connection = libvirt.open({proxy.inside!r}); print(connection.getHostname(), flush=True); input()"
    client = host.popen([*as_user(MEMBER, STRANGER, [group, 4400]), host.python, "-c", script], stdin=-1, stdout=-1)
    assert client.stdout is not None and client.stdin is not None
    assert client.stdout.readline()
    (relay,) = [relay for relay in proxy.relays() if relay.pid not in before]
    assert tuple(relay.uids()) == (MEMBER,) * 3
    assert tuple(relay.gids()) == (STRANGER,) * 3
    status = Path(f"/proc/{relay.pid}/status").read_text()
    assert re.findall(r"^Groups:\s*(.*?)\s*$", status, re.MULTILINE) == [f"{group} 4400" if group < 4400 else f"4400 {group}"]
    assert re.findall(r"^Cap(?:Eff|Prm|Inh):\s*(\w+)$", status, re.MULTILINE) == ["0" * 16] * 3
    inside = re.findall(r"^NSpid:.*\s(\d+)$", status, re.MULTILINE)[0]
    shown = [
        host.run(["virt-admin", "client-info", "libvirtd", row.split()[0]]).stdout
        for row in host.run(["virt-admin", "client-list", "libvirtd"]).stdout.splitlines()[2:]
        if row.strip()
    ]
    (ours,) = [info for info in shown if re.search(rf"unix_process_id\s*:\s*{inside}\b", info)]
    assert re.search(rf"unix_user_id\s*:\s*{MEMBER}\b", ours) and re.search(rf"unix_group_id\s*:\s*{STRANGER}\b", ours)
    client.communicate("\n")
    until(lambda: ended(relay), "the relay to end")


def test_a_relay_cannot_be_traced_by_its_user(host: PrivateLibvirt, proxy: RunningProxy) -> None:
    """It holds a line to the privileged parent: no debugger of the client's may take it over."""
    wide_open(proxy)
    script = f"""
import ctypes, libvirt, os, sys
connection = libvirt.open({proxy.inside!r})
traced = []
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) != os.getpid() and os.stat("/proc/" + name).st_uid in (0, {MEMBER}):
        line = open("/proc/" + name + "/cmdline").read()
        if "pcinuma.proxy" in line and ctypes.CDLL(None, use_errno=True).ptrace(16, int(name), 0, 0) == 0:
            traced.append(name)
print(traced, connection.getHostname() != "")
"""
    run = host.run([*as_user(MEMBER, group_of_libvirt(host)), host.python, "-c", script])
    assert run.stdout.strip() == "[] True"


@pytest.mark.parametrize(
    ("words", "asked"),
    [(["start", "still"], True), (["--readonly", "start", "still"], False)],
    ids=["write", "read-only"],
)
def test_only_a_start_that_libvirt_could_permit_reaches_the_daemon(
    host: PrivateLibvirt, proxy: RunningProxy, words: list[str], asked: bool
) -> None:
    """No daemon runs here: what would have asked it leaves a line."""
    wide_open(proxy)
    user = as_user(MEMBER, group_of_libvirt(host))
    before = proxy.log().count("forwarded as it came")
    run = host.run([*user, "virsh", "-c", proxy.inside, *words], check=False)
    assert (run.returncode == 0) == asked
    assert (proxy.log().count("forwarded as it came") > before) == asked
    if asked:
        host.virsh("destroy", "still")


# polkit


POLKIT_ACTION = "org.libvirt.unix.manage"


def start_polkit(host: PrivateLibvirt) -> None:
    """A system bus and polkitd, with a member of the group libvirt, whom Debian's own rule lets in."""
    groups = host.path("/etc/group")
    groups.write_text(re.sub(r"^(libvirt:.*:.*:)(.*)$", r"\1member", groups.read_text(), flags=re.MULTILINE))
    host.path("/run/dbus").mkdir(exist_ok=True)
    host.run(["dbus-daemon", "--system", "--fork"])
    host.popen(["/usr/lib/polkit-1/polkitd", "--no-debug"], stdout=-3, stderr=-3)
    until(lambda: host.run(["pkaction", "--action-id", POLKIT_ACTION], check=False).returncode == 0, "polkitd", interval=0.1)


def test_polkit_decides_about_the_client_and_not_about_the_proxy() -> None:
    with PrivateLibvirt(libvirtd=False) as host:
        add_users(host)
        start_polkit(host)
        configuration = host.path("/etc/libvirt/libvirtd.conf")
        text = configuration.read_text().replace('auth_unix_rw = "none"', 'auth_unix_rw = "polkit"')
        configuration.write_text(text + 'unix_sock_rw_perms = "0777"\n')
        host.start_libvirtd()
        host.connect().defineXML(guest("still"))
        with RunningProxy(host) as proxy:
            wide_open(proxy)
            for user, allowed in ((as_user(MEMBER, MEMBER), True), (as_user(STRANGER, STRANGER), False), (as_user(0, 0), True)):
                for uri in (DIRECT, proxy.inside):
                    run = host.run([*user, "virsh", "-c", uri, "domuuid", "still"], check=False)
                    assert (run.returncode == 0) == allowed, run.stderr
                    if not allowed:
                        assert "authentication" in run.stderr


# SASL


def test_sasl_passes_through_and_a_start_behind_it_is_still_seen() -> None:
    with PrivateLibvirt(libvirtd=False) as host:
        if not list((host.root / "usr/lib").glob("*/sasl2/libanonymous.so")):
            pytest.skip("SASL's mechanism ANONYMOUS is not installed (libsasl2-modules)")
        configuration = host.path("/etc/libvirt/libvirtd.conf")
        configuration.write_text(configuration.read_text().replace('auth_unix_rw = "none"', 'auth_unix_rw = "sasl"'))
        host.path("/etc/sasl2/libvirt.conf").write_text("mech_list: ANONYMOUS\n")
        host.start_libvirtd()
        with RunningProxy(host) as proxy:
            for uri in (DIRECT, proxy.inside):
                run = host.run(["virsh", "-c", uri, "nodeinfo"], check=False)
                assert run.returncode == 0, run.stderr
            host.run(["virsh", "-c", proxy.inside, "define", "/dev/stdin"], input=guest("behind-sasl"))
            host.run(["virsh", "-c", proxy.inside, "start", "behind-sasl"])
            assert "forwarded as it came call=start" in proxy.log()  # there is no daemon: it was asked in vain
