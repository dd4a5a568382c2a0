# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one place that makes XML parsers, for whatever XML comes in: of domains, devices, networks, node devices, capabilities.

Anybody who may write to libvirt can hand us XML, and we read it as root. So a parser here opens nothing: no DTD, no external entity, no
network; entities are not expanded, and libxml2's limits on size and depth hold. A document with a document type declaration is unusable
input in every process: no manager writes one, libvirt never formats one, and whatever it declares would only change what the rest means.

It is refused before libxml2 looks at it, in the encodings that are told by their first bytes; in one that only libxml2 knows it is
refused after, and libxml2 has not opened what it names either. (lxml's ``collect_ids=False`` must never be given: it is carried out by a
bit in libxml2's ``loadsubset``, and any bit there makes it load the external subset, whatever ``load_dtd`` says.)

libxml2 compares each attribute of an element with each other one, and looks for a prefix among all namespaces in scope: 64,000 attributes
took 12 s. Documents with more of either than anybody needs are unusable too; expat, whose work is linear, counts them.
"""

from __future__ import annotations

import threading
from typing import Optional, Union
from xml.parsers import expat

from lxml import etree

from pcinuma.errors import UnusableInput

_BOM = b"\xef\xbb\xbf"
_WIDE = {  # by their first bytes, as XML 1.0 appendix F tells them apart; longer ones first
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"<\0\0\0": "utf-32-le",
    b"\0\0\0<": "utf-32-be",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"<\0": "utf-16-le",
    b"\0<": "utf-16-be",
}
_OF_THREAD = threading.local()
_SPACE = b" \t\r\n"
_MANY = 1000
_LONG = 64 * 1024
_DECLARED = "has a document type declaration (<!DOCTYPE>), which pcinuma does not read"
_HINT = "take it out"


def parse(xml: Union[bytes, str], subject: str) -> etree._Element:
    """The root element of ``xml``; comments, CDATA sections and processing instructions stay. Raises UnusableInput about ``subject``."""
    try:
        data = xml.encode() if isinstance(xml, str) else xml
        narrow = _narrow(data)
        if _has_doctype(narrow):
            raise UnusableInput(_DECLARED, subject=subject, hint=_HINT)
        if _is_crowded(narrow, None if narrow is data else "utf-8"):
            raise UnusableInput(f"has more than {_MANY} attributes in an element, or namespaces", subject=subject)
        root = _tree(data) if len(data) <= _LONG else _tree_from_a_thread(data)
    except (etree.XMLSyntaxError, expat.ExpatError, ValueError) as error:
        raise UnusableInput(f"not well-formed XML ({' '.join(str(error).split())})", subject=subject) from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise UnusableInput(_DECLARED, subject=subject, hint=_HINT)
    return root


def _tree(xml: bytes) -> etree._Element:
    parser = getattr(_OF_THREAD, "parser", None)
    if parser is None:
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, strip_cdata=False)
        _OF_THREAD.parser = parser
    return etree.fromstring(xml, parser)


def _tree_from_a_thread(xml: bytes) -> etree._Element:
    """The same. lxml keeps the names of all elements and attributes that a thread ever read, until that thread ends."""
    found: list[etree._Element] = []
    raised: list[Exception] = []

    def read() -> None:
        try:
            found.append(_tree(xml))
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=read)
    try:
        thread.start()
    except RuntimeError:  # no thread to be had: names that stay are the smaller evil
        return _tree(xml)
    thread.join()
    if raised:
        raise raised[0]
    return found[0]


def stream_parser() -> expat.XMLParserType:
    """An expat parser that says names as ``NAMESPACE NAME``. A document type declaration is a ValueError from its ``Parse``."""
    parser = expat.ParserCreate(None, " ")
    parser.StartDoctypeDeclHandler = _refuse
    parser.buffer_text = True
    return parser


def prolog_of(xml: bytes) -> bytes:
    """What stands before the root element, in an encoding that extends ASCII: declaration, comments, instructions and white space."""
    if xml[:1] == b"<" and xml[1:2].isalpha():
        return b""  # nearly always
    position = len(_BOM) if xml.startswith(_BOM) else 0
    while True:
        while xml[position : position + 1] and xml[position] in _SPACE:
            position += 1
        if xml.startswith(b"<!--", position):
            end = xml.find(b"-->", position + 4) + 3
        elif xml.startswith(b"<?", position):
            end = xml.find(b"?>", position + 2) + 2
        else:
            return xml[:position]
        if end < position:
            return xml  # not well-formed, which libxml2 says better
        position = end


def _refuse(*_: Optional[object]) -> None:
    raise ValueError(_DECLARED)


def _narrow(xml: bytes) -> bytes:
    """``xml`` in an encoding that extends ASCII."""
    if not xml.startswith(tuple(_WIDE)):
        return xml
    encoding = next(encoding for mark, encoding in _WIDE.items() if xml.startswith(mark))
    return xml.decode(encoding, "replace").lstrip("\ufeff").encode("utf-8", "replace")


def _is_crowded(xml: bytes, encoding: Optional[str]) -> bool:
    """Whether an element of ``xml`` has too many attributes, or the whole too many namespaces. Raises ExpatError.

    ``encoding``: whatever ``xml`` says; None: what it says.
    """
    in_a_tag = _may_have_long_tag(xml) and any(piece.count(b"=") > _MANY for piece in xml.split(b"<"))
    if not in_a_tag and xml.count(b"xmlns") <= _MANY:
        return False
    most = namespaces = 0

    def start(_: str, attributes: list[str]) -> None:
        nonlocal most, namespaces
        most = max(most, len(attributes) // 2)
        namespaces += sum([name.startswith("xmlns") for name in attributes[::2]])

    parser = expat.ParserCreate(encoding)
    parser.ordered_attributes = True
    parser.StartElementHandler = start
    parser.Parse(xml, True)
    return most > _MANY or namespaces > _MANY


def _may_have_long_tag(xml: bytes) -> bool:
    """Whether a tag is so long that it may have too many attributes, which have five bytes at least: from one ``<`` to the next."""
    long = _MANY * 5
    start = 0
    while start + long <= len(xml):
        start = xml.rfind(b"<", start + 1, start + long)
        if start < 0:
            return True
    return False


def _has_doctype(xml: bytes) -> bool:
    """Whether a document type declaration stands before the root element, where alone one may stand."""
    return xml.startswith(b"<!", len(prolog_of(xml)))
