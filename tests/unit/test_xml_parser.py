# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever XML comes in, and wherever: nothing is opened but what was given, and a document type declaration is unusable input."""

from __future__ import annotations

import ast
import os
import threading
from pathlib import Path
from typing import Any, Callable

import pytest

from pcinuma import engine
from pcinuma.cli import devices
from pcinuma.daemon import hotplug, mdevs, pools
from pcinuma.daemon.start_check import check_start
from pcinuma.domain.read import parse_domain
from pcinuma.domain.summary import summarise
from pcinuma.domain.xml import Document
from pcinuma.engine import Request
from pcinuma.errors import EXIT_UNUSABLE, PcinumaError, UnusableInput
from pcinuma.lab import layout
from pcinuma.reason import Outcome
from pcinuma.xml_parser import parse
from tests.hosts.command import Answer, Command
from tests.waiting import CHECKOUT

DOMAIN = (
    "<domain type='kvm'><name>a</name><metadata><p:pcinuma xmlns:p='urn:pcinuma:domain:1' policy='required'/></metadata><devices>"
    "<interface type='network'><source network='n'/></interface>"
    "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source><address uuid='u'/></source></hostdev></devices></domain>"
)
DEVICE = "<hostdev mode='subsystem' type='pci'><source><address bus='1'/></source></hostdev>"
NETWORK = "<network><forward mode='hostdev'><pf dev='a'/></forward></network>"
NODE_DEVICE = "<device><parent>pci_0000_01_00_0</parent><capability type='mdev'><uuid>u</uuid></capability></device>"
"""One entry a place where XML comes in: what it reads, and the call."""
ENTRIES: dict[str, tuple[str, Callable[[bytes], Any]]] = {
    "parse": (DOMAIN, lambda xml: parse(xml, "it")),
    "document": (DOMAIN, Document),
    "place": (DOMAIN, lambda xml: engine.place(xml, Request(Path("/nowhere")))),
    "revert": (DOMAIN, engine.revert),
    "summary": (DOMAIN, summarise),
    "standing": (DOMAIN, parse_domain),
    "boot": (DOMAIN, lambda xml: check_start(xml, lambda _: Request(Path("/nowhere")), lambda *_: True, lambda _: True)),
    "networks of a domain": (DOMAIN, pools.networks),
    "mdevs of a domain": (DOMAIN, mdevs.uuids),
    "network": (NETWORK, lambda xml: pools.read_network(xml.decode("latin-1"))),
    "node device": (NODE_DEVICE, lambda xml: mdevs.read_node_device(xml.decode("latin-1"))),
    "running domain": (DOMAIN, lambda xml: hotplug.assign_address(xml, DEVICE, Request(Path("/nowhere")))),
    "plugged device": (DEVICE, lambda xml: hotplug.assign_address(DOMAIN.encode(), xml.decode("latin-1"), Request(Path("/nowhere")))),
    "attached device": (DEVICE, devices.source_of),
    "detached device": (DOMAIN, lambda xml: devices.wanted("0000:01:00.0").find(xml)),
    "lab": (DOMAIN, layout.read),
}
"""Each way to say it, before the document; ``{}`` is the file that is not to be opened."""
DECLARATIONS = {
    "system": "<!DOCTYPE domain SYSTEM '{}'>",
    "url": "<!DOCTYPE domain SYSTEM 'file://{}'>",
    "public": "<!DOCTYPE domain PUBLIC '-//X//Y' '{}'>",
    "bare": "<!DOCTYPE domain>",
    "after misc": "<?xml version='1.0'?>\n<!-- > --> <?a ?>\t<!---->\r\n<!DOCTYPE domain SYSTEM '{}'>",
    "parameter entity": "<!DOCTYPE domain [<!ENTITY % p SYSTEM '{}'> %p;]>",
    "both subsets": "<!DOCTYPE domain SYSTEM '{}' [<!ENTITY % p SYSTEM '{}'> %p;]>",
    "entity": "<!DOCTYPE domain [<!ENTITY e SYSTEM '{}'>]>",
    "notation": "<!DOCTYPE domain [<!NOTATION n SYSTEM '{}'><!ENTITY e SYSTEM '{}' NDATA n>]>",
    "default attribute": "<!DOCTYPE domain [<!ATTLIST domain type CDATA 'qemu'>]>",
    "standalone": "<?xml version='1.0' standalone='no'?><!DOCTYPE domain SYSTEM '{}'>",
    "entities in entities": "<!DOCTYPE domain [<!ENTITY a '" + 100 * "x" + "'>"
    + "".join(f"<!ENTITY {new} '{10 * f'&{old};'}'>" for old, new in zip("abcdefgh", "bcdefghi"))
    + "<!ATTLIST domain v CDATA '&i;'>]>",
}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "latin-1", "cp037")


def opened_while(fifo: Path, work: Callable[[], Any]) -> tuple[bool, list[BaseException]]:
    """Whether anybody opened ``fifo`` for reading during ``work``, and what that raised. Who reads it gets an end of file at once."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread, opened = threading.Thread(target=run, daemon=True), False
    thread.start()
    while thread.is_alive():
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
            opened = True
        except OSError:  # ENXIO: nobody has it open
            thread.join(0.001)
    return opened, raised


@pytest.fixture(scope="module")
def fifo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("outside") / "fifo"
    os.mkfifo(path)
    return path


def test_the_proof_sees_who_opens_the_file(fifo: Path) -> None:
    assert opened_while(fifo, lambda: fifo.read_bytes()) == (True, [])
    assert opened_while(fifo, lambda: None) == (False, [])


@pytest.mark.parametrize("declaration", DECLARATIONS.values(), ids=DECLARATIONS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_document_type_declaration_is_unusable_and_opens_nothing(fifo: Path, entry: str, declaration: str) -> None:
    document, read = ENTRIES[entry]
    given = (declaration.replace("{}", str(fifo)) + document).encode()
    opened, raised = opened_while(fifo, lambda: read(given))
    assert not opened
    assert [type(error) for error in raised] == [UnusableInput], raised
    assert isinstance(raised[0], PcinumaError) and raised[0].hint and "DOCTYPE" in str(raised[0]) and "\n" not in str(raised[0])


@pytest.mark.parametrize("declaration", DECLARATIONS.values(), ids=DECLARATIONS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_encoding_hides_a_document_type_declaration(fifo: Path, encoding: str, declaration: str) -> None:
    text = declaration.replace("{}", str(fifo)) + DOMAIN
    text = f"<?xml version='1.0' encoding='{encoding.replace('-sig', '').replace('-le', '').replace('-be', '')}'?>" + text.split("?>", 1)[
        text.startswith("<?xml")
    ]
    marks = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
    for mark in {b"", marks.get(encoding, b"")}:
        given = mark + (text.replace("<!", "+ADw-!").encode() if encoding == "utf-7" else text.encode(encoding))
        for entry in ("document", "summary"):
            opened, raised = opened_while(fifo, lambda: ENTRIES[entry][1](given))  # noqa: B023
            assert not opened
            assert [type(error) for error in raised] == [UnusableInput], raised


@pytest.mark.parametrize(
    "given",
    [
        "<!-- <!DOCTYPE domain SYSTEM '/etc/shadow'> -->\n" + DOMAIN,
        "<?a <!DOCTYPE domain SYSTEM '/etc/shadow'> ?>\n" + DOMAIN,
        DOMAIN.replace("<devices>", "<description><![CDATA[<!DOCTYPE html>]]>&lt;!DOCTYPE html></description><devices>"),
        DOMAIN.replace("<devices>", "<!-- <!DOCTYPE html> --><devices>"),
    ],
)
def test_the_words_of_one_where_they_declare_nothing_are_text(given: str) -> None:
    for document, read in ENTRIES.values():
        if document == DOMAIN:
            read(given.encode())
    assert Document(given.encode()).serialise() == given.replace("html>]]>&lt;!DOCTYPE html>", "html>]]>&lt;!DOCTYPE html&gt;").encode()


@pytest.mark.parametrize("command", ["place", "explain"])
def test_a_command_says_in_one_line_what_is_wrong_with_it(tmp_path: Path, fifo: Path, command: str) -> None:
    given = DECLARATIONS["system"].replace("{}", str(fifo)) + DOMAIN
    file = tmp_path / "vm.xml"
    file.write_text(given)
    arguments = ["place", "-"] if command == "place" else [command, str(file)]
    answers: list[Answer] = []
    opened, raised = opened_while(fifo, lambda: answers.append(Command(tmp_path).run(*arguments, stdin=given.encode())))
    assert not opened and not raised
    (answer,) = answers
    assert answer.code == EXIT_UNUSABLE and answer.out == b""
    (line,) = answer.err.splitlines()
    assert "<!DOCTYPE" in line and "take it out" in line


def test_a_domain_without_one_is_still_read(tmp_path: Path) -> None:
    assert engine.place(DOMAIN.replace("required", "off").encode(), Request(tmp_path)).outcome is Outcome.UNCHANGED
    assert summarise(DOMAIN.encode()).name == "a"
    assert pools.networks(DOMAIN.encode()) == ["n"] and mdevs.uuids(DOMAIN.encode()) == ["u"]


@pytest.mark.parametrize("before", ["", "<b/>" * 10, "<b/>" * 3000, "t" * 4999, "t" * 12000, "<b/>" + "t" * 4990], ids=len)
@pytest.mark.parametrize("after", ["", "<b/>" * 3000, "t" * 12000], ids=len)
def test_a_thousand_attributes_are_read_and_one_more_is_not_wherever_they_stand(before: str, after: str) -> None:
    attributes = [f" a{number}=''" for number in range(1001)]
    parse(f"<d>{before}<e{''.join(attributes[1:])}/>{after}</d>", "it")
    with pytest.raises(UnusableInput, match="more than 1000 attributes"):
        parse(f"<d>{before}<e{''.join(attributes)}/>{after}</d>", "it")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("attribute", [" a{}='\u3c3d'", " xmlns:a{}='urn:a'"])
@pytest.mark.parametrize("declared", [False, True])
def test_attributes_and_namespaces_are_counted_in_every_encoding(encoding: str, attribute: str, declared: bool) -> None:
    """Also where a character has bytes that are ``<`` and ``=`` in ASCII."""
    attributes = [attribute.format(number) for number in range(1001)]
    declaration = f"<?xml version='1.0' encoding='{encoding[:6].rstrip('-')}'?>" if declared else ""
    with pytest.raises(UnusableInput, match=r"more than 1000 attributes|not well-formed"):
        parse(f"{declaration}<d{''.join(attributes)}/>".encode(encoding), "it")
    few = f"{declaration}<d{''.join(attributes[:900])}/>".encode(encoding)
    if encoding in ("utf-8", "utf-16"):
        assert len(parse(few, "it").attrib) + len(parse(few, "it").nsmap) == 900


MAKERS = {"fromstring", "fromstringlist", "XML", "XMLID", "HTML", "iterparse", "iterwalk", "XMLParser", "ETCompatXMLParser", "HTMLParser"}
MAKERS |= {"XMLPullParser", "HTMLPullParser", "XMLSchema", "DTD", "XSLT", "XInclude", "parseid", "set_default_parser", "ParserCreate"}
OTHERS = {"xml", "expat", "pyexpat", "html5lib", "bs4"}


@pytest.mark.parametrize("source", sorted((CHECKOUT / "pcinuma").rglob("*.py")), ids=lambda file: str(file.relative_to(CHECKOUT)))
def test_one_module_makes_parsers(source: Path) -> None:
    made = _parsers_made(source.read_text())
    assert bool(made) == (source == CHECKOUT / "pcinuma/xml_parser.py"), made


def test_no_regular_expression_is_for_xml() -> None:
    """XML is bytes until a parser has read it; what the kernel writes is the host's."""
    files = sorted((CHECKOUT / "pcinuma").rglob("*.py"))
    found = {file.relative_to(CHECKOUT).parts[1] for file in files if _patterns_for_bytes(file.read_text())}
    assert found <= {"host"} and _patterns_for_bytes("import re\nre.search(rb'<a', x)")


def _patterns_for_bytes(text: str) -> list[bytes]:
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re.")]
    first = [call.args[0] for call in calls if call.args]
    return [node.value for node in first if isinstance(node, ast.Constant) and isinstance(node.value, bytes)]


def test_the_search_for_parsers_finds_them() -> None:
    for text in ("etree.fromstring(x)", "from lxml.etree import XML", "etree.parse(f)", "import xml.sax", "from xml.parsers import expat"):
        assert _parsers_made(text), text


def _parsers_made(text: str) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            if node.attr in MAKERS or (node.attr == "parse" and isinstance(node.value, ast.Name) and node.value.id == "etree"):
                found.append(node.attr)
        elif isinstance(node, ast.ImportFrom):
            module, names = node.module or "", [(name.name, name.asname) for name in node.names]
            allowed = {"lxml": ("etree", None), "xml.parsers.expat": ("ExpatError", None)}.get(module)
            if module.partition(".")[0] in OTHERS | {"lxml"} and names != [allowed]:
                found.append(module)
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.partition(".")[0] in OTHERS or name.name.startswith("lxml")]
    return found
