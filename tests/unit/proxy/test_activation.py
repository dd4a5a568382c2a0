# SPDX-License-Identifier: LGPL-2.1-or-later
"""The proxy on libvirt's own socket: what is written for it, when it is refused, and that systemd accepts it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from pcinuma.errors import PcinumaError, UnusableInput
from pcinuma.proxy import activation as switch
from pcinuma.proxy.dropins import Daemon, SocketUnit, files, read_socket_unit, unit_texts
from tests import needs
from tests.waiting import CHECKOUT

LIB = "usr/lib/systemd/system"
ETC = "etc/systemd/system"
LIBVIRTD = """\
[Unit]
Description=Libvirt local socket
Before=libvirtd.service
[Socket]
ListenStream=/run/libvirt/libvirt-sock
Service=libvirtd.service
SocketMode=0666
RemoveOnStop=yes
[Install]
WantedBy=sockets.target
"""


def host(root: Path, *sockets: str, used: tuple[str, ...] = ("libvirtd",)) -> Path:
    """A root directory with libvirt's socket units and the proxy's own; those ``used`` are enabled."""
    wants = root / ETC / "sockets.target.wants"
    wants.mkdir(parents=True)
    (root / LIB).mkdir(parents=True)
    (root / LIB / "pcinuma-proxy.service").write_text("[Service]\nExecStart=/usr/bin/pcinuma-proxy\n")
    for name in sockets:
        text = LIBVIRTD if name == "libvirtd" else LIBVIRTD.replace("libvirt-sock", f"{name}-sock").replace("libvirtd", name)
        (root / LIB / f"{name}.socket").write_text(text)
    for name in used:
        (wants / f"{name}.socket").symlink_to(f"/{LIB}/{name}.socket")
    return root


def listing(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def run(root: Path, *words: str) -> int:
    return switch.main([*words, "--root", str(root)])


def test_libvirts_socket_moves_aside_and_ours_takes_its_place(tmp_path: Path) -> None:
    root = host(tmp_path, "libvirtd")
    assert run(root, "enable") == 0
    dropin = (root / ETC / "libvirtd.socket.d/50-pcinuma.conf").read_text()
    assert dropin.splitlines()[1:] == ["[Socket]", "ListenStream=", "ListenStream=/run/libvirt/libvirt-sock-direct"]
    ours = (root / ETC / "pcinuma-proxy-libvirtd.socket").read_text().splitlines()
    assert "ListenStream=/run/libvirt/libvirt-sock" in ours
    assert "SocketMode=0666" in ours
    assert "Service=pcinuma-proxy.service" in ours
    assert "FileDescriptorName=/run/libvirt/libvirt-sock-direct" in ours
    link = root / ETC / "sockets.target.wants/pcinuma-proxy-libvirtd.socket"
    assert str(link.readlink()) == f"/{ETC}/pcinuma-proxy-libvirtd.socket"


def test_disable_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = host(tmp_path, "libvirtd")
    before = listing(root)
    run(root, "enable")
    assert listing(root) != before
    run(root, "disable")
    assert listing(root) == before
    capsys.readouterr()
    run(root, "disable")
    assert "nothing to do" in capsys.readouterr().out


def test_enabling_twice_is_enabling_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = host(tmp_path, "libvirtd")
    run(root, "enable")
    before = listing(root)
    capsys.readouterr()
    run(root, "enable")
    assert "nothing to do" in capsys.readouterr().out
    assert listing(root) == before


def test_where_the_daemons_are_modular_the_socket_is_virtqemuds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = host(tmp_path, "libvirtd", "virtqemud", "virtproxyd", used=("virtqemud", "virtproxyd"))
    run(root, "enable")
    assert (root / ETC / "virtqemud.socket.d/50-pcinuma.conf").exists()
    assert not (root / ETC / "libvirtd.socket.d").exists() and not (root / ETC / "virtproxyd.socket.d").exists()
    capsys.readouterr()
    run(root, "status", "--json")
    assert json.loads(capsys.readouterr().out) == {
        "enabled": True,
        "daemon": "virtqemud",
        "path": "/run/libvirt/virtqemud-sock",
        "upstream": "/run/libvirt/virtqemud-sock-direct",
        "proxy": None,
    }


def test_the_administrators_mode_user_and_group_are_kept(tmp_path: Path) -> None:
    root = host(tmp_path, "libvirtd")
    dropin = root / ETC / "libvirtd.socket.d/access.conf"
    dropin.parent.mkdir()
    dropin.write_text("[Socket]\nSocketMode=0660\nSocketGroup=libvirt\n")
    run(root, "enable")
    ours = (root / ETC / "pcinuma-proxy-libvirtd.socket").read_text().splitlines()
    assert "SocketMode=0660" in ours and "SocketGroup=libvirt" in ours
    run(root, "disable")
    assert dropin.exists()


@pytest.mark.parametrize(
    ("sockets", "used", "words"),
    [
        ((), (), "neither virtqemud.socket nor libvirtd.socket is there"),
        (("libvirtd",), (), "started without socket activation"),
    ],
)
def test_refused_with_a_reason_and_nothing_written(tmp_path: Path, sockets: tuple[str, ...], used: tuple[str, ...], words: str) -> None:
    root = host(tmp_path, *sockets, used=used)
    before = listing(root)
    with pytest.raises(PcinumaError, match=words):
        run(root, "enable")
    assert listing(root) == before


def test_refused_where_the_socket_listens_on_more_than_one_path(tmp_path: Path) -> None:
    root = host(tmp_path, "libvirtd")
    dropin = root / ETC / "libvirtd.socket.d/more.conf"
    dropin.parent.mkdir()
    dropin.write_text("[Socket]\nListenStream=/run/other\n")
    with pytest.raises(PcinumaError, match="only one path can be moved"):
        run(root, "enable")


def test_refused_without_the_proxys_own_unit(tmp_path: Path) -> None:
    root = host(tmp_path, "libvirtd")
    (root / LIB / "pcinuma-proxy.service").unlink()
    with pytest.raises(PcinumaError, match="install the package"):
        run(root, "enable")


def test_a_masked_socket_is_as_good_as_none(tmp_path: Path) -> None:
    root = host(tmp_path, "libvirtd")
    (root / ETC / "libvirtd.socket").symlink_to("/dev/null")
    assert unit_texts(root, "libvirtd.socket") is None


def test_json_is_for_status_only(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput):
        run(host(tmp_path, "libvirtd"), "enable", "--json")


def test_a_socket_unit_is_read_as_systemd_reads_it() -> None:
    texts = [
        "[Unit]\nListenStream=/not/in/this/section\n[Socket]\nListenStream=/a\n# ListenStream=/c\nSocketMode=0600\n",
        "[Socket]\nListenStream=\nListenStream = /var/run/b\nSocketMode=0660\nSocketUser=\n",
    ]
    assert read_socket_unit(texts) == SocketUnit(("/run/b",), (("SocketMode", "0660"),))


@pytest.mark.parametrize("name", ["libvirtd", "virtqemud"])
def test_systemd_accepts_what_is_written(tmp_path: Path, name: str) -> None:
    needs.require(needs.program("systemd-analyze", "systemd"), needs.program("libvirtd", "libvirt-daemon-system"))
    # The machine's own units, libvirt's among them, so that everything that is named is there.
    shutil.copytree("/usr/lib/systemd/system", tmp_path / LIB, symlinks=True)
    for unit in (CHECKOUT / "systemd").glob("pcinuma*.*"):
        shutil.copy(unit, tmp_path / LIB)
    if name != "libvirtd":
        for unit in (f"{name}.socket", f"{name}-ro.socket", f"{name}-admin.socket", f"{name}.service"):
            text = (tmp_path / LIB / unit.replace(name, "libvirtd")).read_text()
            (tmp_path / LIB / unit).write_text(text.replace("libvirtd", name).replace("libvirt-sock", f"{name}-sock"))
    (tmp_path / "usr/bin").mkdir(parents=True)
    for program in ("pcinuma-proxy", "sh"):
        shutil.copy("/bin/true", tmp_path / "usr/bin" / program)
    (tmp_path / "bin").symlink_to("usr/bin")
    wants = tmp_path / ETC / "sockets.target.wants"
    wants.mkdir(parents=True)
    (wants / f"{name}.socket").symlink_to(f"/{LIB}/{name}.socket")
    run(tmp_path, "enable")
    units = [f"{name}.socket", f"pcinuma-proxy-{name}.socket", "pcinuma-proxy.service", "pcinuma-proxy-off.service"]
    verify = subprocess.run(["systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", *units], capture_output=True, text=True)
    ours = [line for line in verify.stderr.splitlines() if "pcinuma" in line or f"{name}.socket" in line]
    assert ours == []


def test_the_rescue_undoes_what_enabling_wrote(tmp_path: Path) -> None:
    """The shell commands of the unit that systemd starts when the proxy fails for good, run on a staged tree without systemd."""
    root = host(tmp_path, "libvirtd")
    before = listing(root)
    run(root, "enable")
    daemon, unit = Daemon("libvirtd"), read_socket_unit([LIBVIRTD])
    (command,) = [line for line in files(daemon, unit)["pcinuma-proxy-off.service"].splitlines() if line.startswith("ExecStart=")]
    script = command.split("'")[1].replace("/etc/systemd/system", str(root / ETC)).replace("systemctl", "true")
    subprocess.run(["sh", "-euc", script], check=True)
    left = [path for path in listing(root) if not path.endswith(".d")]
    assert left == before
