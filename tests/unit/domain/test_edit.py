# SPDX-License-Identifier: LGPL-2.1-or-later
"""New controllers and the metadata are written as text into the document: it is the same XML whatever the document looks like."""

from __future__ import annotations

from pathlib import Path

import pytest
from lxml import etree

from pcinuma.engine import Request, place, revert
from pcinuma.reason import Outcome
from tests.hosts.domains import two_cells
from tests.hosts.machines import eight_gpus

RAW = two_cells().hostdev("24:00.0").hostdev("84:00.0").raw()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return eight_gpus().write(tmp_path)


def meaning(xml: bytes) -> bytes:
    """What two documents have in common that differ in quotes, encoding and white space only."""
    parser = etree.XMLParser(remove_blank_text=True, remove_pis=True)
    return etree.tostring(etree.fromstring(xml, parser), method="c14n2", strip_text=True)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1"])
def test_every_encoding_gets_the_same_controllers(root: Path, encoding: str) -> None:
    declared = f"<?xml version='1.0' encoding='{encoding}'?>\n".encode() + RAW
    given = declared.decode().encode(encoding)
    found = place(given, Request(root))
    assert found.outcome is Outcome.PLACED
    assert meaning(found.xml) == meaning(place(RAW, Request(root)).xml)
    assert revert(found.xml).outcome is Outcome.PLACED


def test_quotes_are_those_of_the_document(root: Path) -> None:
    double = place(RAW.replace(b"'", b'"'), Request(root)).xml
    assert b"'" not in double and meaning(double) == meaning(place(RAW, Request(root)).xml)
    assert b'"' not in place(RAW, Request(root)).xml


@pytest.mark.parametrize(
    "prolog",
    [
        "<?xml version='1.0'?>\n",
        '<?xml version="1.0" encoding="UTF-8"?>\n\n',
        '<?xml version="1.0" standalone="yes"?><!-- > a="b" --> \n<?p q="\'"?>',
        "\ufeff<?xml version='1.0'?>\r\n\t",
        "\ufeff",
        "<!---->\n<?p?><!-- ' \u00e9 -->",
    ],
)
def test_what_stands_beside_the_root_stays_as_it_stands(root: Path, prolog: str) -> None:
    behind = b"\n<!-- a \" ' -->\n<?p q '\"?>\n<?p?>\n\n"
    for given in (RAW, RAW.replace(b"'", b'"')):
        placed = place(given, Request(root)).xml
        found = place(prolog.encode() + given.rstrip() + behind, Request(root)).xml
        assert found == prolog.encode() + placed.rstrip() + behind


def test_a_document_may_have_the_slots_own_words(root: Path) -> None:
    instruction = b"<?pcinuma-slot 0?><!-- <?pcinuma-slot- 1?> -->"
    given = RAW.replace(b"<devices>", b"<devices>" + instruction)
    found = place(given, Request(root)).xml
    assert found.count(instruction) == 1
    assert meaning(found.replace(instruction, b"")) == meaning(place(RAW, Request(root)).xml)


@pytest.mark.parametrize(
    "element", ["<pcinuma xmlns='urn:pcinuma:domain:1' policy='preferred'/>", "<p:pcinuma xmlns:p='urn:pcinuma:domain:1'/>"]
)
def test_the_owners_prefix_is_taken(root: Path, element: str) -> None:
    given = RAW.replace(b"<devices>", f"<metadata>{element}</metadata><devices>".encode())
    found = place(given, Request(root))
    assert found.outcome is Outcome.PLACED and found.xml.count(b"urn:pcinuma:domain:1") == 1
    assert place(found.xml, Request(root)).outcome is Outcome.UNCHANGED


def test_values_with_markup_in_them_come_back_as_they_were(root: Path) -> None:
    path = root / "sys/bus/vdpa/devices"
    path.mkdir(parents=True, exist_ok=True)
    device = next((root / "sys/devices").glob("pci*/**/0000:24:00.0"))
    (device / "vdpa0").mkdir()
    name = "vhost'vdpa\"<&>=\"x\"\t\u00e9"
    (device / "vdpa0" / name).mkdir()
    (path / "vdpa0").symlink_to(device / "vdpa0")
    quoted = name.replace("&", "&amp;").replace("<", "&lt;").replace("'", "&apos;").replace("\t", "&#9;")
    given = two_cells().vdpa(0).raw().replace(b"vhost-vdpa-0", quoted.encode())
    found = place(given, Request(root))
    assert found.outcome is Outcome.PLACED, found.message
    (source,) = etree.fromstring(found.xml).xpath("//*[local-name()='placement']/*[local-name()='device']/@source")
    assert source == f"/dev/{name}"
    assert meaning(revert(found.xml).xml) == meaning(given)
