# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel that is kept: complete or not there, whoever looks."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from pcinuma.lab import LabError, kernel


def keep(cache: Path, release: str, folders: tuple[str, ...]) -> Path:
    folder = cache / release
    folder.mkdir(parents=True)
    (folder / "vmlinux").write_bytes(b"")
    (folder / kernel._NOTE).write_text("\n".join(folders))
    return folder


def test_the_newest_that_has_all_modules_is_taken(tmp_path: Path) -> None:
    assert kernel.kept(tmp_path / "none") is None
    assert kernel.kept(tmp_path) is None
    keep(tmp_path, "6.1.0-3", kernel._MODULE_FOLDERS[1:])  # by a lab that loaded fewer
    (tmp_path / "6.1.0-4").mkdir()
    (tmp_path / "6.1.0-4/vmlinux").write_bytes(b"")  # by one that did not note them
    assert kernel.kept(tmp_path) is None
    for release in ("6.1.0-1", "6.1.0-2"):
        keep(tmp_path, release, (*kernel._MODULE_FOLDERS, "more"))
    found = kernel.kept(tmp_path)
    assert found is not None
    assert (found.release, found.vmlinux) == ("6.1.0-2", tmp_path / "6.1.0-2/vmlinux")


def test_what_is_kept_is_taken_without_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, "6.1.0-1", kernel._MODULE_FOLDERS)
    monkeypatch.setattr(kernel, "_locked", None)
    assert kernel.fetch(tmp_path).release == "6.1.0-1"
    assert not (tmp_path / "lock").exists()


def bzimage(payload: bytes) -> bytes:
    """As much of one as says where its payload is."""
    image = bytearray(1024 + len(payload))
    image[0x1F1] = 1  # sectors of set-up code beside the first
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 0, len(payload))
    image[1024:] = payload
    return bytes(image)


@pytest.mark.parametrize("image", ["boot/vmlinuz-{}", "usr/lib/modules/{}/vmlinuz"])
@pytest.mark.parametrize("modules", ["lib/modules", "usr/lib/modules"])
def test_a_kernel_is_found_wherever_its_packages_put_it_and_its_modules(image: str, modules: str, tmp_path: Path) -> None:
    release, elf = "7.2.13+deb14-amd64", b"\x7fELF and the rest"
    tree, cache, scratch = (tmp_path / name for name in ("tree", "cache", "scratch"))
    for folder in (cache, scratch, (tree / image.format(release)).parent, tree / modules / release / "kernel/drivers/pci"):
        folder.mkdir(parents=True, exist_ok=True)
    (tree / image.format(release)).write_bytes(bzimage(gzip.compress(elf)))
    (tree / modules / release / "kernel/drivers/pci/some.ko").write_bytes(b"")
    made = kernel._install(tree, cache, scratch)
    assert (made.release, made.vmlinux.read_bytes()) == (release, elf)
    assert (made.modules / "kernel/drivers/pci/some.ko").is_file()
    assert kernel.kept(cache) == made


@pytest.mark.parametrize(("tool", "magic"), [("zstd", b"\x28\xb5\x2f\xfd"), ("lz4", b"\x02\x21\x4c\x18")])
def test_a_decompressor_that_is_not_installed_is_named(tool: str, magic: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match=f"compressed with {tool}, which is not installed"):
        kernel.elf_of(bzimage(magic + b"size"))
