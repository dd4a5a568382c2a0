# SPDX-License-Identifier: LGPL-2.1-or-later
"""A collector's file: replaced as a whole, readable by everybody, and never somewhere else than was meant."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pcinuma.cli import textfile
from pcinuma.errors import PcinumaError
from tests import needs

SOMEBODY = 65534


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000, 0o777])
def test_the_file_has_its_content_and_mode_whatever_the_umask(mask: int, tmp_path: Path) -> None:
    file = tmp_path / "x.prom"
    before = os.umask(mask)
    try:
        for content in (b"one\n", b"two\n"):
            textfile.replace(file, content)
            assert file.read_bytes() == content
            assert stat.S_IMODE(file.stat().st_mode) == 0o644
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["x.prom"]


def test_who_reads_the_old_file_goes_on_reading_that(tmp_path: Path) -> None:
    file = tmp_path / "x.prom"
    textfile.replace(file, b"old")
    with file.open("rb") as reader:
        textfile.replace(file, b"new and longer")
        assert reader.read() == b"old"


def link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))
    path.with_name("elsewhere").write_text("precious")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize("make", [link, Path.mkdir, os.mkfifo, unix_socket], ids=["link", "folder", "fifo", "socket"])
def test_what_is_no_regular_file_is_not_replaced(make: Callable[[Path], object], tmp_path: Path) -> None:
    file = tmp_path / "x.prom"
    make(file)
    before = {path.name: path.lstat().st_ino for path in tmp_path.iterdir()}
    with pytest.raises(PcinumaError, match=r"x\.prom: this is no regular file"):
        textfile.replace(file, b"x")
    assert {path.name: path.lstat().st_ino for path in tmp_path.iterdir()} == before
    assert make is not link or (tmp_path / "elsewhere").read_text() == "precious"


@pytest.mark.parametrize("target", ["../inside", "ABSOLUTE", "./../outside/.././inside"])
def test_a_folders_links_are_followed_if_they_are_the_writers_own(target: str, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/way").symlink_to(target.replace("ABSOLUTE", str(tmp_path / "inside")))
    textfile.replace(tmp_path / "outside/way/x.prom", b"x")
    assert (tmp_path / "inside/x.prom").read_bytes() == b"x"


@pytest.mark.parametrize("deep", [False, True], ids=["the folder itself", "on the way to it"])
def test_a_link_of_somebody_elses_is_not_followed(deep: bool, tmp_path: Path) -> None:
    needs.require(needs.root())
    (tmp_path / "precious/below").mkdir(parents=True)
    way = tmp_path / "way"
    way.symlink_to("precious")
    os.lchown(way, SOMEBODY, SOMEBODY)
    folder = way / "below" if deep else way
    with pytest.raises(PcinumaError, match=r"way on the way is a link of user 65534, and is not followed"):
        textfile.replace(folder / "x.prom", b"x")
    assert [path.name for path in (tmp_path / "precious").rglob("*")] == ["below"]


def missing(folder: Path) -> Path:
    return folder / "missing/x.prom"


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file/x.prom"


def round_in_circles(folder: Path) -> Path:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    return folder / "a/x.prom"


def with_a_name_that_is_too_long(folder: Path) -> Path:
    return folder / ("x" * 300)


def kernels(_folder: Path) -> Path:
    return Path("/proc/x.prom")


@pytest.mark.parametrize("where", [missing, below_a_file, round_in_circles, with_a_name_that_is_too_long, kernels])
def test_what_cannot_be_written_is_one_line(where: Callable[[Path], Path], tmp_path: Path) -> None:
    file = where(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PcinumaError) as error:
        textfile.replace(file, b"x")
    assert "\n" not in error.value.sentence() and str(file.parent) in error.value.sentence()
    assert sorted(tmp_path.rglob("*")) == before
