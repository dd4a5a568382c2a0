# SPDX-License-Identifier: LGPL-2.1-or-later
"""The XML document of a domain: parsed so that what nobody touches comes out as it went in.

Nothing is fetched and nothing expanded (:mod:`pcinuma.xml_parser`); comments, CDATA, processing instructions and foreign namespaces
stay. Elements are put in and taken out together with the white space around them, so that taking out what was put in gives the old text
back. Larger pieces are written as text that is never parsed: a slot, a processing instruction, stands for each until the document is
serialised.
"""

from __future__ import annotations

from typing import Any, Mapping, Optional

from lxml import etree

from pcinuma.errors import UnusableInput
from pcinuma.xml_parser import parse, prolog_of

_SLOT = "pcinuma-slot"
_UNPARSED = ((b"!--", b"-->"), (b"![CDATA[", b"]]>"), (b"?", b"?>"))

Parts = Mapping[str, etree._Element]


class Document:
    """A parsed domain. ``root`` is its ``<domain>`` element."""

    def __init__(self, xml: bytes) -> None:
        """Parse ``xml``. Raises UnusableInput for anything but a well-formed document whose root is ``<domain>``."""
        self.root = parse(xml, "domain XML")
        if self.root.tag != "domain":
            name = etree.QName(self.root).localname
            raise UnusableInput(f"the root element is <{name}>, not <domain>", subject="domain XML")
        self._prolog = prolog_of(xml)
        body = xml[len(self._prolog) :]
        doubles = b'"' in body
        self._single = b"='" in body and not (doubles and b'="' in body)
        self._plain = not doubles and not (b"&" in body and any(quote in body for quote in (b"&quot;", b"&apos;", b"&#")))
        self._tail = xml[len(xml.rstrip()) :]
        self._body = body
        self._slot_name = ""
        self._fillings: list[str] = []
        self._undeclared = b""

    def slot(self) -> etree._Element:
        """A node to be put where text belongs that :meth:`fill` is told next."""
        if not self._slot_name:
            behind = self._body.replace(b"\0", b"").split(_SLOT.encode())[1:]  # another processing instruction may be called so
            self._slot_name = _SLOT + "-" * max((1 + len(text) - len(text.lstrip(b"-")) for text in behind), default=0)
        self._fillings.append("")
        return etree.ProcessingInstruction(self._slot_name, str(len(self._fillings) - 1))

    def fill(self, slot: etree._Element, text: str) -> None:
        """Say what is written in the place of ``slot``: elements with their attributes in single quotes (:func:`attribute`)."""
        self._fillings[int(slot.text or "")] = text if self._single else text.replace("'", '"')

    def undeclare(self, prefix: str, namespace: str) -> None:
        """Leave out the root element's declaration of a namespace that nothing uses any more; lxml takes none away from an element."""
        self._undeclared = f' xmlns:{prefix}="{namespace}"'.encode()

    def serialise(self) -> bytes:
        """The document as bytes, in the encoding that it came in; what stood before the root element as it stood."""
        tree = self.root.getroottree()
        encoding: Any = tree.docinfo.encoding or "UTF-8"  # lxml-stubs knows only "unicode" here
        if "<".encode(encoding) == b"<":
            behind = [b"\n" + _beside(node).encode(encoding, "xmlcharrefreplace") for node in self.root.itersiblings()]
            root: bytes = etree.tostring(self.root, encoding=encoding, xml_declaration=False)
            if self._undeclared:
                tag, end, rest = root.partition(b">")
                root = tag.replace(self._undeclared, b"", 1) + end + rest
            data = b"".join([self._filled(root, encoding), *behind])
        else:
            data = self._filled(etree.tostring(tree, encoding=encoding), encoding)
        if self._single:
            data = data.replace(b'"', b"'") if self._plain else _single_quoted(data)
        return self._prolog + data.rstrip() + self._tail

    def _filled(self, data: bytes, encoding: str) -> bytes:
        slots = [f"<?{self._slot_name} {number}?>" for number in range(len(self._fillings))]
        if "<".encode(encoding) == b"<":
            for slot, text in zip(slots, self._fillings):
                data = data.replace(slot.encode(), text.encode(encoding, "xmlcharrefreplace"))
            return data
        whole = data.decode(encoding)
        for slot, text in zip(slots, self._fillings):
            whole = whole.replace(slot, text)
        return whole.encode(encoding)


def _beside(node: etree._Element) -> str:
    """A comment or an instruction as text: lxml would look for the root from the first node on to write each."""
    text: Any = node.text or ""
    if not isinstance(node, etree._ProcessingInstruction):
        return f"<!--{text}-->"
    target: Any = node.target
    return f"<?{target} {text}?>" if text else f"<?{target}?>"


def _single_quoted(data: bytes) -> bytes:
    """Serialised XML with its attributes in single quotes, as libvirt writes them; lxml knows only double ones.

    One pass, from ``<`` to ``<``: libxml2 writes neither ``<`` nor ``>`` raw in an attribute or a text, but everything in the pieces of
    markup whose content is not parsed.
    """
    pieces = data.split(b"<")
    until = b""
    for number, piece in enumerate(pieces):
        if until:
            until = b"" if until in piece else until
        elif piece[:1] in (b"!", b"?"):
            opening, until = next(pair for pair in _UNPARSED if piece.startswith(pair[0]))
            until = b"" if piece.find(until, len(opening)) >= 0 else until
        elif b'"' in piece:
            tag, end, text = piece.partition(b">")
            if b"'" in tag:
                parts = tag.split(b'"')
                parts[1::2] = [value.replace(b"'", b"&apos;") for value in parts[1::2]]
                pieces[number] = b"'".join(parts) + end + text
            else:
                pieces[number] = tag.replace(b'"', b"'") + end + text
    return b"<".join(pieces)


def child(element: etree._Element, tag: str) -> Optional[etree._Element]:
    """The first child called ``tag``: ``element.find(tag)`` at a quarter of its cost."""
    return next(element.iterchildren(tag), None)


def parts_of(element: etree._Element) -> Parts:
    """The first child of each name, for those who want several: the price of one :func:`child`."""
    parts: dict[str, etree._Element] = {}
    for part in element[::-1]:  # type: ignore[index]  # lxml-stubs knows no slices
        parts[part.tag] = part
    return parts


_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", "'": "&apos;", '"': "&quot;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"})


def attribute(name: str, value: str) -> str:
    """An attribute as text, with a blank before it."""
    return f" {name}='{value.translate(_ESCAPES)}'"


def insert_after(sibling: etree._Element, new: etree._Element) -> None:
    """Put ``new`` behind ``sibling``, indented like it."""
    previous, parent = sibling.getprevious(), sibling.getparent()
    assert parent is not None
    before, after = previous.tail if previous is not None else parent.text, sibling.tail
    sibling.addnext(new)  # lxml before 6.1 makes the sibling's tail the new element's, later ones do not
    sibling.tail, new.tail = _blank(before), after


def append(parent: etree._Element, new: etree._Element) -> None:
    """Put ``new`` at the end of ``parent``, indented one step deeper than it."""
    if len(parent):
        insert_after(parent[-1], new)
        return
    before = _line_before(parent)
    parent.text = before + "  " if before else parent.text
    new.tail = before or None
    parent.append(new)


def insert_first(parent: etree._Element, new: etree._Element) -> None:
    """Put ``new`` before everything else in ``parent``."""
    if not len(parent):
        append(parent, new)
        return
    parent.insert(0, new)
    new.tail = parent.text


def remove(element: etree._Element) -> None:
    """Take ``element`` out together with the white space that was put in with it."""
    parent, previous, tail = element.getparent(), element.getprevious(), element.tail
    assert parent is not None
    alone = previous is None and element.getnext() is None  # lxml counts the children to say how many are left
    parent.remove(element)
    if previous is not None:
        previous.tail = tail
    elif alone and tail is not None and not tail.strip():
        parent.text = None
    else:
        parent.text = tail


def space_before(element: etree._Element) -> str:
    """The white space that stands before an element, as far as it is white space."""
    return _line_before(element)


def _line_before(element: etree._Element) -> str:
    previous, parent = element.getprevious(), element.getparent()
    if parent is None:
        return "\n"
    return _blank(previous.tail if previous is not None else parent.text) or ""


def _blank(text: Optional[str]) -> Optional[str]:
    """``text`` if it is only white space; what a new neighbour of real text gets is nothing."""
    return text if text is None or not text.strip() else None
