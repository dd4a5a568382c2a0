# SPDX-License-Identifier: LGPL-2.1-or-later
"""NUMA cells in the life of a domain: given to one that has none, recognised on one that was given some, taken back.

The engine comes here only for domains that somebody asked cells for, or that have pcinuma's: nobody else pays for it. What decides is in
:mod:`pcinuma.placement.cells`, what is written in :mod:`pcinuma.domain.cells`.
"""

from __future__ import annotations

from typing import Mapping, NamedTuple, Optional

from pcinuma.domain.cells import are_as_made, memory_modes_of, needed_by, take_out, write_proposal
from pcinuma.domain.flat import read_flat
from pcinuma.domain.xml import Document
from pcinuma.host.capacity import read_capacity
from pcinuma.host.place import HostReader
from pcinuma.model import Domain, MachineKind, MadeCells
from pcinuma.placement.cells import elsewhere, propose
from pcinuma.plan import NoProposal, Proposal
from pcinuma.ranges import Ranges
from pcinuma.settings import MemoryMode

__all__ = ["Given", "NoProposal", "elsewhere", "give", "memory_modes", "take_back", "without", "without_stale_record"]


class Given(NamedTuple):
    """The domain with its new cells, as the document says them now; ``proposal``: what they came from."""

    domain: Domain
    proposal: Proposal


def give(
    document: Document, domain: Domain, reader: HostReader, device_nodes: Mapping[str, int], memory: Optional[MemoryMode]
) -> Given:
    """Write cells for ``domain`` into its ``document``. ``device_nodes``: source -> host node.

    Raises NoProposal where there are none for it, DomainError and HostError for what cannot be read.
    """
    flat = read_flat(document.root, domain.machine is MachineKind.PHB)
    capacity = read_capacity(reader.sysfs, reader.nodes, flat.hugepage_kib is not None)
    proposal = propose(flat, device_nodes, capacity, memory)
    made = write_proposal(document, proposal)
    cells = {cell.number: cell.vcpus for cell in proposal.cells}
    memnodes = tuple([(cell.number, Ranges(((cell.node, cell.node),))) for cell in proposal.cells])
    pins = tuple([(cell.number, cell.cpus) for cell in proposal.cells if cell.vcpus])
    return Given(domain._replace(cells=cells, memnodes=memnodes, pins=pins, made_cells=made), proposal)


def without_stale_record(xml: bytes, document: Document, made: MadeCells) -> Optional[bytes]:
    """``xml``, parsed as ``document``, without its record of cells, where they are gone or somebody changed them; None where they are as
    they were written."""
    return None if are_as_made(document.root, made) else without(xml, made)


def without(xml: bytes, made: MadeCells) -> bytes:
    """``xml`` without pcinuma's cells, whatever else in it needs them, and without their record."""
    document = Document(xml)
    take_out(document, made)
    return document.serialise()


def memory_modes(document: Document) -> set[str]:
    """How the memory of the cells is bound to host nodes, in libvirt's words."""
    return memory_modes_of(document.root)


def take_back(document: Document, made: MadeCells) -> Optional[str]:
    """Take the cells out of a domain that is not placed any more; return what needs them, so that they stay."""
    needed = needed_by(document.root) if are_as_made(document.root, made) else None
    if needed is None:
        take_out(document, made)
    return needed
