# SPDX-License-Identifier: LGPL-2.1-or-later
"""What hosts made of this machine's programs get of it: no pcinuma of another version, and nothing that somebody configured."""

from __future__ import annotations

from pathlib import Path

from pcinuma.lab import userland

ACCOUNTS = {
    "passwd": "root:x:0:0:root:/root:/bin/bash\nsomebody:x:1000:1000::/home/somebody:/bin/zsh\n",
    "group": "root:x:0:\nwheel:x:10:somebody\n",
}
OWN = ("shadow", "libvirt/libvirtd.conf", "libvirt/hooks/qemu", "pcinuma/pcinuma.conf", "systemd/system/x.service", "ld.so.preload")
INSTALLED = (
    "bin/pcinuma",
    "bin/pcinuma-proxy",
    "lib/pcinuma",
    "lib/python3/dist-packages/pcinuma-9.9.egg-info",
    "lib/systemd/system/pcinuma.service",
    "lib/systemd/system/pcinuma.service.d",
    "lib/tmpfiles.d/pcinuma.conf",
    "local/bin/pcinumad",
    "share/bash-completion/completions/pcinuma",
    "share/man/man8/pcinuma-old.8.gz",
)


def write(file: Path, text: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_whatever_of_pcinuma_is_installed_is_found_by_whatever_name(tmp_path: Path) -> None:
    for name in INSTALLED:
        below = "program.py" if name in ("lib/pcinuma", "lib/systemd/system/pcinuma.service.d") else ""
        write(tmp_path / "usr" / name / below if below else tmp_path / "usr" / name)
    write(tmp_path / "usr/bin/pci")
    write(tmp_path / "usr/lib/pcinuma/pcinuma/cli.py")
    assert userland.installed(tmp_path) == INSTALLED


def test_nothing_is_found_where_nothing_is_installed(tmp_path: Path) -> None:
    write(tmp_path / "usr/bin/numactl")
    assert userland.installed(tmp_path) == ()


def test_of_etc_there_is_what_programs_need_and_nothing_that_somebody_wrote(tmp_path: Path) -> None:
    root, made = tmp_path / "root", tmp_path / "made"
    for name, text in ACCOUNTS.items():
        write(root / "etc" / name, text)
    for name in OWN:
        write(root / "etc" / name, "somebody wrote this")
    write(root / "etc/alternatives/sh", "needed")
    userland.write_etc(made, root)
    files = {str(file.relative_to(made)): file.read_text() for file in made.rglob("*") if file.is_file()}
    assert files["alternatives/sh"] == "needed"
    assert not [name for name, text in files.items() if "somebody" in text]
    assert not [name for name in files if "pcinuma" in name or "hooks" in name or "systemd" in name]
