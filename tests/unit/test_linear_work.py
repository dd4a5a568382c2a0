# SPDX-License-Identifier: LGPL-2.1-or-later
"""Work on XML is linear in its length, whatever a client writes into it: sixteen times the input is never 64 times the work.

CPU time of this process, the best of several runs, the two lengths in turn, each as if it were the first: what is remembered of small
elements fits the short input and not the long one. What a busy machine or its hypervisor adds to a run comes and goes, so runs go on, with
pauses between them, for as long as they may still show that the work is linear (8 to 40 times, measured at a load of 8); quadratic work
fails in all of them.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from pcinuma import engine
from pcinuma.daemon import mdevs, pools
from pcinuma.domain.merge import differences, distance, merge, same
from pcinuma.domain.read import parse_domain
from pcinuma.domain.remembered import Remembered
from pcinuma.domain.summary import summarise
from pcinuma.domain.xml import Document
from pcinuma.engine import Request
from pcinuma.errors import UnusableInput
from tests.hosts.domains import two_cells
from tests.hosts.machines import eight_gpus

PLAIN = two_cells().hostdev("24:00.0").hostdev("84:00.0")
Family = Callable[[int], bytes]


def _with(position: str, text: str) -> bytes:
    """A domain that is placed, with ``text`` before the first ``position``."""
    xml = PLAIN.raw().decode()
    assert position in xml
    return xml.replace(position, text + position, 1).encode()


def _described(unit: str) -> Family:
    return lambda size: _with("<devices>", f"<description>{unit * (size // len(unit))}</description>")


def _in_devices(unit: str) -> Family:
    return lambda size: _with("</devices>", "".join(unit.replace("#", str(n)) for n in range(size // len(unit))))


def _in(opening: str, unit: str, closing: str, before: str = "<devices>") -> Family:
    return lambda size: _with(before, opening + "".join(unit.replace("#", str(n)) for n in range(size // len(unit))) + closing)


def _longer(attribute: str, unit: str) -> Family:
    """The value of an attribute grows, from the quote that begins it."""
    xml = PLAIN.raw().decode()
    assert attribute in xml
    return lambda size: xml.replace(attribute, attribute + unit * (size // len(unit)), 1).encode()


def _namespaces(count: int) -> str:
    return "".join(f" xmlns:n{number}='u'" for number in range(count))


FAMILIES: dict[str, Family] = {
    "quotes in text": _described("=&quot;&quot; "),
    "raw quotes in text": _described('="" '),
    "half a quote in text": _described('="x '),
    "apostrophes in text": _described("=&apos;' "),
    "greater than in text": _described("&gt; ="),
    "references in text": _described("&#61;&#34;"),
    "long text": _described("abcdefgh"),
    "blanks": _described("        "),
    "lines": _described("\n"),
    "comments": _in_devices("<!-- = -->"),
    "a comment of openings": _in("<!--", "<! <? ", "-->"),
    "sections": _in_devices("<![CDATA[]]>"),
    "a section of openings": _in("<description><![CDATA[", "<!<?\"' ", "]]></description>"),
    "instructions": _in_devices("<?a ='?>"),
    "instructions called as ours": _in_devices("<?pcinuma-slot- #?>"),
    "an instruction like ours": _in("<?pcinuma-slot", "-", " ?>"),
    "instructions before the root": lambda size: b"<?a ='\"'?> " * (size // 12) + PLAIN.raw(),
    "blanks before the root": lambda size: b"<!---->" + b"\n" * size + PLAIN.raw(),
    "instructions behind the root": lambda size: PLAIN.raw() + b"<?a ='\"'?> " * (size // 12),
    "blanks behind the root": lambda size: PLAIN.raw() + b"\n " * (size // 2),
    "attributes": _in("<description", " a#='&quot;'", "/>"),
    "apostrophes in an attribute": _in("<description a='", "&apos;", "'/>"),
    "equals in an attribute": _in("<description a='", "=&quot;", "'/>"),
    "a long name": _longer("<name>", "n "),
    "a long name in pieces": _longer("<name>", "n<!---->"),
    "a long type": _longer("<domain type='", "k"),
    "many names": _in("", "<name/>", ""),
    "elements": _in_devices("<x/>"),
    "interfaces without an end": _described("&lt;interface type="),
    "interfaces": _in_devices("<interface type='network'><source network='n#'/></interface>"),
    "interfaces of long types": _in_devices("<interface                    x='' type='networks'/>"),
    "network pools": _in_devices("<interface type='network'><source network='default'/></interface>"),
    "mediated devices": _in_devices("<hostdev type='mdev' model='vfio-pci'><source><address uuid='#'/></source></hostdev>"),
    "devices": _in_devices("<hostdev type='pci'><source><address domain='#' bus='1'/></source></hostdev>"),
    "the same device": _in_devices("<hostdev type='pci'><source><address bus='1'/></source></hostdev>"),
    "controllers": _in_devices("<controller type='pci' index='#' model='pcie-root-port'/>"),
    "controllers without an index": _in_devices("<controller type='pci' model='pcie-root-port'/>"),
    "disks": _in_devices("<disk type='file'><target dev='vda#' bus='virtio'/><address type='pci' slot='1'/></disk>"),
    "children of a device": _in(
        "<hostdev type='pci'><source><address bus='1'/></source>", "<address slot='1'/>", "</hostdev>", "</devices>"
    ),
    "long guest addresses": _in_devices(f"<disk><address type='pci' slot='1' x='#{200 * 'x'}'/></disk>"),
    "placements": _in(
        "<metadata><p:pcinuma xmlns:p='urn:pcinuma:domain:1'>", "<p:placement group-by='node'/>", "</p:pcinuma></metadata>"
    ),
    "placed devices": _in(
        "<metadata><p:pcinuma xmlns:p='urn:pcinuma:domain:1'><p:placement group-by='node'>",
        "<p:device source='#' bus='1'/><p:controller index='#'/>",
        "</p:placement></p:pcinuma></metadata>",
    ),
    "kept devices": _in("<metadata><p:pcinuma xmlns:p='urn:pcinuma:domain:1'>", "<p:keep device='#'/>", "</p:pcinuma></metadata>"),
    "attributes of many": _in_devices("<x" + "".join(f" a{n}=''" for n in range(900)) + "/>"),
    "names in many namespaces": lambda size: _with("<devices>", f"<m{_namespaces(900)}>{'<n1:x/>' * (size // 7)}</m>"),
    "namespaces": _in("<metadata", " xmlns:n#='u#'", "/>"),
    "our element again and again": _in(
        "<metadata><a xmlns:p='urn:pcinuma:domain:1'>", "<p:pcinuma policy='off'/>", "</a></metadata>"
    ),
    "arguments": _in(
        "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>", "<q:arg value='-set'/>", "</q:commandline>"
    ),
    "a long argument": _in(
        "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:arg value='-device'/><q:arg value='",
        "{&quot;a,,",
        "'/></q:commandline>",
    ),
    "overrides": _in(
        "<q:override xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>",
        "<q:device alias='hostdev#'><q:frontend><q:property name='x'/></q:frontend></q:device>",
        "</q:override>",
    ),
    "cells": _in("", "<cell id='#' cpus='#'/>", "", "</numa>"),
    "a cell of many": _in("<cell id='9' cpus='", "#,", "0'/>", "</numa>"),
    "cells of everything": _in("", "<cell id='1#' cpus='0-16383'/>", "", "</numa>"),
    "exclusions": _in("<cell id='9' cpus='0-16383", ",^#", "'/>", "</numa>"),
    "pins": _in("<cputune>", "<vcpupin vcpu='#' cpuset='0-16383'/>", "</cputune>"),
    "pins of one vCPU": _in("<cputune>", "<vcpupin vcpu='1' cpuset='0-16383,^5'/>", "</cputune>"),
    "memnodes": _in("", "<memnode cellid='0' nodeset='0-1023'/>", "", "</numatune>"),
    "targets": _in_devices("<controller type='pci' index='#' model='pcie-root-port'><target chassis='#' port='#'/></controller>"),
    "firmware": _in("<sysinfo type='fwcfg'>", "<entry name='opt/ovmf/X-PciMmio64Mb'>1</entry>", "</sysinfo>"),
}


def _merged(xml: bytes) -> None:
    """Somebody made ``xml`` while ours was made, or took all of it out, or both had it."""
    plain, titled = PLAIN.raw(), xml.replace(b"<memory", b"<title>t</title><memory", 1)
    for versions in ((plain, xml, PLAIN.formatted()), (xml, plain, titled), (plain, xml, titled)):
        merge(*versions)


WORK: dict[str, Callable[[bytes, Path], Any]] = {
    "place": lambda xml, root: engine.place(xml, Request(root)),
    "revert": lambda xml, _: engine.revert(xml),
    "serialise": lambda xml, _: Document(xml).serialise(),
    "summary": lambda xml, _: summarise(xml),
    "networks and mdevs": lambda xml, _: (pools.networks(xml), mdevs.uuids(xml)),
    "parse": lambda xml, _: parse_domain(xml),
    "compare": lambda xml, _: (same(xml, xml + b"\n"), distance(xml, PLAIN.raw()), differences(PLAIN.raw(), xml, PLAIN.raw())),
    "merge": lambda xml, _: _merged(xml),
}
SHORT, TIMES, BOUND, RUNS, ENOUGH = 32 * 1024, 16, 64, 30, 20.0
QUARTER = ("compare", "merge")
"""What costs most, done with a quarter of that."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eight_gpus().write(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module", autouse=True)
def nothing_is_remembered_between_runs() -> Iterator[None]:
    """Before the collector is told to look at nothing that is there by now."""
    for known in gc.get_objects():
        if isinstance(known, Remembered):
            FORGET.append(known.clear)
        elif isinstance(known, functools._lru_cache_wrapper) and known.__module__.startswith("pcinuma."):
            FORGET.append(known.cache_clear)
    yield
    FORGET.clear()


FORGET: list[Callable[[], None]] = []


def seconds(work: Callable[[bytes, Path], Any], xml: bytes, root: Path) -> float:
    for forget in FORGET:
        forget()
    begin = time.process_time()
    try:
        work(xml, root)
    except UnusableInput:
        pass
    return time.process_time() - begin


def ratio(work: Callable[[bytes, Path], Any], short: bytes, long: bytes, root: Path, runs: int = RUNS) -> float:
    """How much more the long input costs. Below a fifth of a millisecond for the short one, what is fixed counts, not what grows."""
    best = [1e9, 1e9]
    began = time.process_time()
    for attempt in range(runs):
        # The short one twice: what was added to its only run would make quadratic work look linear.
        best[0] = min(best[0], seconds(work, short, root), seconds(work, short, root))
        best[1] = min(best[1], seconds(work, long, root))
        if best[1] < BOUND * max(best[0], 0.0002) or time.process_time() - began > ENOUGH:
            break
        time.sleep(0.01 * attempt)
    return best[1] / max(best[0], 0.0002)


@pytest.fixture(scope="module", autouse=True)
def no_collection_while_it_is_measured(nothing_is_remembered_between_runs: None) -> Iterator[None]:
    """Nor one of what all other tests hold: what there is by now is not looked at between two of these."""
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.mark.parametrize("family", FAMILIES)
def test_sixteen_times_the_input_is_not_64_times_the_work(root: Path, family: str) -> None:
    inputs = {size: (FAMILIES[family](size), FAMILIES[family](TIMES * size)) for size in (SHORT, SHORT // 4)}
    assert all(6 * len(short) < len(long) < 22 * len(short) for short, long in inputs.values())
    gc.collect()
    found = {name: ratio(work, *inputs[SHORT // 4 if name in QUARTER else SHORT], root) for name, work in WORK.items()}
    assert {name: round(value, 1) for name, value in found.items() if value >= BOUND} == {}


def test_what_is_measured_sees_quadratic_work(root: Path) -> None:
    def work(xml: bytes, _: Path) -> None:
        for start in range(0, len(xml), 512):
            xml[start:].count(b"\0")

    assert ratio(work, bytes(SHORT), bytes(TIMES * SHORT), root, runs=3) > BOUND
