# SPDX-License-Identifier: LGPL-2.1-or-later
"""The picture of host and guest: well-formed whatever names there are, each device on both sides and joined, nothing over anything else."""

from __future__ import annotations

import os
import stat
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lxml import etree

from pcinuma.cli import main
from pcinuma.cli.whole_file import write_whole
from pcinuma.errors import PcinumaError
from pcinuma.show.describe import short_name
from pcinuma.show.svg import Box, Column, Leaf, picture
from tests import readme_picture
from tests.hosts.domains import two_cells
from tests.hosts.machines import MACHINES
from tests.waiting import CHECKOUT

SVG = "{http://www.w3.org/2000/svg}"
GOLDEN = CHECKOUT / "tests/golden"
DRAWN = {
    "two-nodes-out": "two-sockets",
    "two-nodes-formatted-in": "two-sockets",
    "eight-gpus-switch-out": "eight-gpus",
    "eight-gpus-node-out": "eight-gpus",
    "cascaded-switch-out": "cascaded-switches",
    "forms-out": "mediated",
    "no-cells-in": "two-sockets",
    "no-affinity-in": "minus-one",
    "absent-in": "sriov",
}


class Rectangle(NamedTuple):
    x: float
    y: float
    right: float
    bottom: float

    def inside(self, other: Rectangle) -> bool:
        return other.x <= self.x and other.y <= self.y and self.right <= other.right and self.bottom <= other.bottom

    def apart(self, other: Rectangle) -> bool:
        return self.right <= other.x or other.right <= self.x or self.bottom <= other.y or other.bottom <= self.y


def rectangles(root: etree._Element, kind: str) -> list[Rectangle]:
    found = []
    for element in root.iter(f"{SVG}rect"):
        if element.get("class", "").split()[0] == kind:
            x, y, width, height = (float(element.get(name, "0")) for name in ("x", "y", "width", "height"))
            found.append(Rectangle(x, y, x + width, y + height))
    return found


def drawn(tmp_path: Path, name: str) -> etree._Element:
    root, file = MACHINES[DRAWN[name]]().write(tmp_path / "host"), tmp_path / "picture.svg"
    assert main(["topology", "--root", str(root), str(GOLDEN / f"{name}.xml"), "--svg", str(file)]) == 0
    return etree.fromstring(file.read_bytes())


@pytest.mark.parametrize("name", DRAWN)
def test_boxes_are_in_boxes_and_nothing_covers_anything(name: str, tmp_path: Path) -> None:
    root = drawn(tmp_path, name)
    boxes, leaves, (page,) = rectangles(root, "box"), rectangles(root, "leaf"), rectangles(root, "page")
    assert leaves
    assert all(item.inside(page) for item in [*boxes, *leaves])
    assert all(any(leaf.inside(box) for box in boxes) for leaf in leaves)
    for one, other in combinations([*boxes, *leaves], 2):
        assert one.apart(other) or one.inside(other) or other.inside(one)
    assert all(one.apart(other) for one, other in combinations(leaves, 2))


@pytest.mark.parametrize("name", DRAWN)
def test_each_device_is_joined_to_itself(name: str, tmp_path: Path) -> None:
    root = drawn(tmp_path, name)
    middle = float(root.get("width", "0")) / 2
    leaves, joins = rectangles(root, "leaf"), [path.get("d", "") for path in root.iter(f"{SVG}path")]
    ends = {(leaf.right if leaf.x < middle else leaf.x, (leaf.y + leaf.bottom) / 2) for leaf in leaves}
    joined = set()
    for path in joins:
        numbers = path.replace("M", " ").replace("C", " ").split()
        joined |= {(float(numbers[0]), float(numbers[1])), (float(numbers[-2]), float(numbers[-1]))}
    assert joined == ends
    assert 2 * len(joins) == len(leaves)


def test_where_the_order_is_the_same_no_join_bends(tmp_path: Path) -> None:
    for number, name in enumerate(("eight-gpus-switch-out", "cascaded-switch-out", "two-nodes-formatted-in")):
        for path in drawn(tmp_path / str(number), name).iter(f"{SVG}path"):
            numbers = path.get("d", "").replace("M", " ").replace("C", " ").split()
            assert numbers[1] == numbers[-1]


NAMES = st.text(max_size=80)


@given(NAMES, NAMES, NAMES)
@example("</text><script>alert(1)</script>", "]]>&\"'", "\x00\x1b[2J\u202e\ud800")
def test_foreign_text_stays_text(one: str, other: str, third: str) -> None:
    box = Box(one, other, 1, [Leaf("key", third, one, other, third, None)])
    text = picture(Column(one, [box], 200), Column(other, [box], 100), third)
    root = etree.fromstring(text.encode())
    ours = ("svg", "title", "desc", "style", "rect", "text", "tspan", "g", "path")
    assert {element.tag for element in root.iter()} <= {SVG + name for name in ours}
    assert all(name.startswith(("{", "on")) is False for element in root.iter() for name in map(str, element.attrib))


def test_both_colour_schemes_style_every_class(tmp_path: Path) -> None:
    root = drawn(tmp_path, "eight-gpus-switch-out")
    style = root.findtext(f"{SVG}style") or ""
    light, _, dark = style.partition("@media (prefers-color-scheme:dark)")
    used = {tuple(element.get("class", "").split()) for element in root.iter() if " " in element.get("class", "")}
    assert used
    for kind, colour in used:
        for scheme in (light, dark):
            assert f".{kind}.{colour}{{" in scheme or colour == "n"


@pytest.mark.parametrize(
    ("vendor", "product", "name"),
    [
        ("NVIDIA Corporation", "GH100 [H100 SXM5 80GB]", "NVIDIA H100 SXM5 80GB"),
        ("Mellanox Technologies", "MT2910 Family [ConnectX-7]", "Mellanox ConnectX-7"),
        ("Advanced Micro Devices, Inc. [AMD/ATI]", "Aqua Vanjaram [Instinct MI300X]", "AMD/ATI Instinct MI300X"),
        ("Intel Corporation", "Ethernet Controller E810-C for QSFP", "Intel Ethernet Controller E810-C for QSFP"),
        ("Samsung Electronics Co Ltd", "NVMe SSD Controller PM9A1/PM9A3/980PRO", "Samsung NVMe SSD Controller PM9A1/PM9A3/980PRO"),
        ("Broadcom / LSI", "PEX890xx PCIe Gen 5 Switch", "Broadcom / LSI PEX890xx PCIe Gen 5 Switch"),
        (None, "x", "x"),
        ("Incas", None, "Incas"),
    ],
)
def test_devices_are_called_as_people_call_them(vendor: str, product: str, name: str) -> None:
    assert short_name(vendor, product) == name


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "picture.svg"
    write_whole(file, "one")
    write_whole(file, "two")
    assert file.read_text() == "two"
    (tmp_path / "link").symlink_to(file)
    write_whole(tmp_path / "link", "three")
    assert (tmp_path / "link").is_symlink()
    assert file.read_text() == "three"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "picture.svg"]
    old = os.umask(0o022)
    try:
        write_whole(tmp_path / "new", "")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o644


@pytest.mark.parametrize("where", ["folder", "none/picture.svg", "file/picture.svg", "x" * 300])
def test_a_file_that_cannot_be_written_is_one_line(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    root = MACHINES["two-sockets"]().write(tmp_path / "host")
    domain = tmp_path / "vm.xml"
    domain.write_bytes(two_cells().hostdev("17:00.0").raw())
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["topology", "--root", str(root), str(domain), "--svg", str(tmp_path / where)]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "cannot be written" in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_full_disk_leaves_nothing_behind() -> None:
    with pytest.raises(PcinumaError, match="No space left"):
        write_whole(Path("/dev/full"), "x")


@pytest.mark.parametrize("words", [["--svg", "x"], ["vm.xml", "--svg", "x", "--json"], ["vm.xml", "--svg", "x", "--nccl"]])
def test_wrong_usage_is_said(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_readme_has_the_picture_that_is_drawn_today(tmp_path: Path) -> None:
    assert readme_picture.FILE.read_bytes() == readme_picture.drawn(tmp_path), "python -m tests.readme_picture writes it"
