# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names, values, paths and messages that others wrote reach a terminal as text that can be read, whatever is in them.

Every attribute and every text of a domain, every file and link of a host and every argument is made hostile in turn; libvirt's and the
daemon's words are in tests/libvirt/test_foreign_text.py.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from lxml import etree

from pcinuma.cli import COMMANDS, main
from tests.hosts.machines import MACHINES
from tests.waiting import CHECKOUT

GOLDEN = CHECKOUT / "tests/golden"
FORGED = "PASS all is well"
IN_XML = f"\x85\x9b31m\x7f\u202e\u2028\u200b\r\n{FORGED}\n"
"""C1, DEL, a bidirectional override, separators and a line that is not ours: whatever XML 1.0 has room for."""
ANYWHERE = f"\x1b]0;title\x07\x1b[2J{IN_XML}"
NUMBER = re.compile(r"(0x)?[0-9a-f]*[0-9][0-9a-f]*")
DOMAINS = (
    ("mediated", "forms"),
    ("two-sockets", "already-placed"),
    ("two-sockets", "qemu-commandline"),
    ("two-sockets", "keep"),
)


def assert_readable(text: str) -> None:
    """Nothing but what can be seen, blanks and line feeds; no line that somebody else wrote."""
    strange = {character for character in text if not (character.isprintable() or character == "\n")}
    assert not strange, ascii(text)
    assert not any(line.lstrip().startswith(FORGED) for line in text.split("\n")), text


def hostile_variants(xml: bytes) -> Iterator[bytes]:
    """The document with something hostile appended to one of its attributes or texts, once for values that differ in a number."""
    seen = set()
    root = etree.fromstring(xml)
    for element in root.iter(etree.Element):
        for attribute in (None, *element.attrib):
            value = (element.text or "").strip() if attribute is None else element.get(attribute, "")
            kind = (element.getparent() is not None and element.getparent().tag, element.tag, attribute, NUMBER.sub("0", value))
            if not value or kind in seen:
                continue
            seen.add(kind)
            changed = copy.deepcopy(root)
            twin = changed.getroottree().find(root.getroottree().getelementpath(element)) if element is not root else changed
            assert twin is not None
            if attribute is None:
                twin.text = value + IN_XML
            else:
                twin.set(attribute, value + IN_XML)
            yield etree.tostring(changed)


@pytest.mark.parametrize(("machine", "name"), DOMAINS)
def test_no_part_of_a_domain_moves_a_cursor_or_forges_a_line(
    machine: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = MACHINES[machine]().write(tmp_path / "host")
    (root / "etc/pcinuma").mkdir(parents=True)
    (root / "etc/pcinuma/pcinuma.conf").write_text("[placement]\nnear-backing = on\n")
    variants = list(hostile_variants((GOLDEN / f"{name}-in.xml").read_bytes()))
    assert len(variants) > 20
    for xml in variants:
        (tmp_path / "vm.xml").write_bytes(xml)
        for command in ("explain", "topology", "place"):
            main([command, str(tmp_path / "vm.xml"), "--root", str(root)])
            captured = capsys.readouterr()
            assert_readable(captured.err if command == "place" else captured.out + captured.err)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_argument_moves_a_cursor_or_forges_a_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCINUMA_SOCKET", str(tmp_path / f"no{ANYWHERE}"))
    monkeypatch.setenv("PCINUMA_LIBVIRT_URI", f"test:///{tmp_path}/no{ANYWHERE}")
    monkeypatch.setenv("PCINUMA_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"{ANYWHERE.replace('/', '')}.xml"
    file.write_text("<domain><name>x</name></domain>" if command != "attach" else "<nonsense/>")
    names = ([], [ANYWHERE], [ANYWHERE, ANYWHERE], ["vm", ANYWHERE])
    for words in (*names, [str(file)], ["vm", str(file)], ["--root", ANYWHERE], [f"--{ANYWHERE}"]):
        if command in ("demo", "proxy") and not any(ANYWHERE in word for word in words):
            continue
        try:
            main([command, *words])
        except SystemExit:
            pass
        captured = capsys.readouterr()
        assert_readable(captured.err if command == "place" else captured.out + captured.err)


def test_no_file_of_the_host_moves_a_cursor_or_forges_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = MACHINES["two-sockets"]().write(tmp_path / "host")
    device = root / "sys/bus/pci/devices/0000:17:00.0"
    driver = Path(os.path.realpath(device)) / "driver"
    if driver.is_symlink():
        driver.unlink()
    driver.symlink_to(f"../{ANYWHERE.replace('/', '')}")
    files = [path for path in Path(os.path.realpath(device)).iterdir() if path.is_file()]
    assert files
    for file in files:
        before = file.read_bytes()
        for content in (before.rstrip() + ANYWHERE.encode(), ANYWHERE.encode()):
            file.write_bytes(content)
            for words in (["topology"], ["topology", "--all"], ["explain", str(GOLDEN / "two-nodes-in.xml")]):
                main([*words, "--root", str(root)])
                captured = capsys.readouterr()
                assert_readable(captured.out + captured.err)
        file.write_bytes(before)


def test_json_has_foreign_text_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = MACHINES["two-sockets"]().write(tmp_path / "host")
    name = "g\x85\x9b\u202e\u00e4st"
    (tmp_path / "vm.xml").write_text((GOLDEN / "two-nodes-in.xml").read_text().replace("<name>guest</name>", f"<name>{name}</name>"))
    for command in ("explain", "topology"):
        assert main([command, str(tmp_path / "vm.xml"), "--root", str(root), "--json"]) == 0
        text = capsys.readouterr().out
        assert text.isascii()
        assert json.loads(text)["domain"] == name
