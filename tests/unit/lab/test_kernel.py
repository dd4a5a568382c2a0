# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel that is kept: complete or not there, whoever looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcinuma.lab import kernel


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
