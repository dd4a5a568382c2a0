# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who a domain is, told by the beginning of its XML: name, UUID and its owner's policy, without building a tree.

A start waits for the answer to a hook, and the engine parses the XML anyway; a second tree only for these three would be a
tenth of that time. libvirt writes all three before everything else, so most often less than a kilobyte is looked at. In
other people's XML they may stand anywhere.
"""

from __future__ import annotations

from typing import NamedTuple, Optional
from xml.parsers.expat import ExpatError

from pcinuma.domain.metadata import NAMESPACE
from pcinuma.domain.read import parse_domain
from pcinuma.settings import Policy
from pcinuma.xml_parser import stream_parser

_OURS = f"{NAMESPACE} pcinuma"
_FIRST_PIECE = 512


class Summary(NamedTuple):
    """``name`` is empty and ``uuid`` None where the XML has none; ``owner``: the policy in the metadata, None if it means nothing."""

    name: str
    uuid: Optional[str]
    owner: Optional[Policy]


def mentions_pcinuma(xml: bytes) -> bool:
    """Whether the XML may have metadata of ours; without, nobody asked for or placed anything."""
    return NAMESPACE.encode() in xml


def summarise(xml: bytes) -> Summary:
    """Look at a domain's XML. Raises UnusableInput for what is none, as far as it looks."""
    reader = _Reader(mentions_pcinuma(xml))
    try:
        start, end = 0, _FIRST_PIECE
        while start < len(xml):
            reader.parser.Parse(xml[start:end], False)
            if reader.done:
                return reader.found()
            start, end = end, 2 * end  # expat looks at an unfinished token again with each piece, so pieces grow with what is behind them
        reader.parser.Parse(b"", True)
    except (ExpatError, ValueError):  # a DTD, an encoding that only lxml knows, or no XML, which it says better
        if reader.done:  # newer expats tell of the beginning only when they come to what is wrong behind it
            return reader.found()
        domain = parse_domain(xml)
        return Summary(domain.name, domain.uuid, domain.policy)
    return reader.found()


class _Reader:
    def __init__(self, ours: bool) -> None:
        self.parser = stream_parser()
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self._texts: dict[str, list[str]] = {}
        self._path: list[str] = []
        self._policy: Optional[str] = None
        self._look_for_policy = ours

    @property
    def done(self) -> bool:
        return not self._look_for_policy and len(self._texts) == 2 and self.parser.CharacterDataHandler is None

    def found(self) -> Summary:
        name, uuid = ("".join(self._texts.get(tag, ())).strip() for tag in ("name", "uuid"))
        try:
            owner = Policy(self._policy) if self._policy is not None else None
        except ValueError:
            owner = None  # the engine says what is wrong with it
        return Summary(name, uuid or None, owner)

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        path = self._path
        if not path and tag != "domain":
            raise ValueError("no domain")
        path.append(tag)
        if len(path) == 2 and tag in ("name", "uuid") and tag not in self._texts:
            self._texts[tag] = []
            self.parser.CharacterDataHandler = self._text
        else:
            self.parser.CharacterDataHandler = None  # what follows a child is not the beginning of the text
            if self._look_for_policy and tag == _OURS and len(path) == 3 and path[1] == "metadata":
                self._policy = attributes.get("policy")
                self._look_for_policy = False

    def _text(self, text: str) -> None:
        self._texts[self._path[-1]].append(text)

    def _end(self, tag: str) -> None:
        self.parser.CharacterDataHandler = None
        if len(self._path) == 2 and tag == "metadata":
            self._look_for_policy = False  # only the first <metadata> counts
        self._path.pop()
