# SPDX-License-Identifier: LGPL-2.1-or-later
"""The engine: one function from a domain's XML to the XML to start, behind every caller.

A :class:`~pcinuma.job.Job` takes the domain through once. What was written beside a placement (links, cells, what oVirt's engine
remembers) is taken out before and seen to after it, here. The caller gets a :class:`Result`, always: whatever goes wrong on the way ends in
:func:`place`, the one boundary, as outcome ``fallback``. Only input that is no domain XML raises (UnusableInput).

No call here ever asks libvirt; what only libvirt knows (members of hostdev pools, parents of inactive mediated devices) is part of
the request.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Optional, Sequence

from pcinuma.domain.edit import withdraw
from pcinuma.domain.ovirt import has_stale_expanders, take_stale_expanders_out
from pcinuma.domain.read import read_domain
from pcinuma.domain.xml import Document
from pcinuma.job import Job
from pcinuma.reason import Outcome, Reason
from pcinuma.report import DeviceReport, Result, cell_reports
from pcinuma.request import AS_SET_UP, CellsOption, Request, cells_option
from pcinuma.settings import Policy

__all__ = ["AS_SET_UP", "CellsOption", "DeviceReport", "Request", "Result", "cells_option", "place", "revert"]

_STALE_EXPANDERS_GONE = "the expander buses that oVirt's engine remembers of an earlier placement are taken out"
_LINKS_CHANGED = "what the guest's root ports tell of their links changes"
_CELLS_RECORD_GONE = "pcinuma's record of cells that it wrote is taken out, for they are gone or somebody changed them"


def place(xml: bytes, request: Optional[Request] = None) -> Result:
    """Place the passthrough devices of the domain ``xml``. Raises UnusableInput for input that is no domain XML, and nothing else."""
    request = request or Request()
    document = Document(xml)
    try:
        job = Job(xml, document, request)
        if request.stale_expanders and has_stale_expanders(document, job.domain):
            return _without_stale_expanders(job)
        return _with_links(job) if job.concerns_links else _placed(job)
    except Exception as error:  # the boundary: no failure of pcinuma stops a guest
        message = f"{Reason.INTERNAL.sentence} ({type(error).__name__}: {error})"
        required = request.policy is Policy.REQUIRED
        return Result(Outcome.FALLBACK, Reason.INTERNAL, message, None, (), xml, required, (message,))


def revert(xml: bytes) -> Result:
    """Take pcinuma's placement and cells back out of the domain ``xml``: outcome ``placed`` if the XML changed, else ``unchanged``."""
    document = Document(xml)
    domain, elements = read_domain(document)
    if domain.placement is not None and domain.placement.links:
        from pcinuma.links import without as without_links  # not for those who do without

        return revert(without_links(document, domain.placement))
    if domain.placement is None and domain.made_cells is None:
        return Result(Outcome.UNCHANGED, None, "pcinuma has not placed this domain", None, (), xml)
    message = "reverted to the layout before pcinuma"
    withdraw(document, domain, elements)
    if domain.made_cells is not None:
        from pcinuma.cells import take_back  # not for those who do without

        needed = take_back(document, domain.made_cells)
        if needed is not None:
            stay = f"the guest cells stay, since {needed} needs them"
            if domain.placement is None:
                return Result(Outcome.UNCHANGED, None, stay, None, (), xml, cells=cell_reports(domain.made_cells))
            message = f"{message}; {stay}"
    return Result(Outcome.PLACED, None, message, None, (), document.serialise())


def _placed(job: Job) -> Result:
    return job.run() if job.domain.made_cells is None else _with_made_cells(job)


def _with_links(job: Job) -> Result:
    """A domain whose ports tell the host's links, or shall: placed as if they told nothing, and then told."""
    from pcinuma.links import without

    standing = job.linked.links if job.linked is not None else ()
    if job.policy is Policy.OFF:
        return _placed(job)
    bare = job
    if job.linked is not None:
        xml = without(Document(job.xml), job.linked)
        bare = Job(xml, Document(xml), job.request)
    result = _told(job, bare, _placed(bare), standing)
    if result.outcome is Outcome.UNCHANGED and result.xml != job.xml:
        bare = Job(bare.xml, Document(bare.xml), job.request)
        bare.writes = True  # as everything that changes a definition, this brings the record up to date
        result = _told(job, bare, _placed(bare), standing)
        message = "; ".join([part for part in (_LINKS_CHANGED, result.message) if part])
        return replace(result, outcome=Outcome.PLACED, reason=None, message=message)
    return result


def _told(job: Job, bare: Job, result: Result, standing: Sequence[tuple[int, str]]) -> Result:
    """``result``, which came of ``bare``, with what ports are to tell. ``standing``: what they told in the domain of ``job``."""
    from pcinuma.links import says_so, tell

    if result.refused or (result.outcome is Outcome.FALLBACK and result.xml == bare.xml):
        return replace(result, xml=job.xml)
    if not job.asks_for_link or not any(device.placed for device in result.devices):
        return result
    request = job.request
    told = tell(result.xml, result.devices, job.reader.sysfs, request.pools, request.hypervisor, standing)
    xml = job.xml if result.xml == bare.xml and says_so(job.document, standing, told) else told.xml
    message = "; ".join([part for part in (result.message, told.lacking) if part])
    return replace(result, xml=xml, message=message or None)


def _without_stale_expanders(job: Job) -> Result:
    """A domain with what oVirt's engine remembers of a placement, which never comes out again, whatever becomes of the domain."""
    take_stale_expanders_out(job.document, job.domain, job.elements)
    xml = job.document.serialise()
    result = place(xml, job.request)
    if result.xml != xml or result.refused:
        return result
    outcome = Outcome.FALLBACK if result.outcome is Outcome.FALLBACK else Outcome.PLACED
    return replace(result, outcome=outcome, message=f"{result.message}; {_STALE_EXPANDERS_GONE}")


def _with_made_cells(job: Job) -> Result:
    """A domain with a record of cells that pcinuma wrote. Where they are there no more, or are somebody else's by now, the record goes."""
    from pcinuma.cells import without_stale_record

    assert job.domain.made_cells is not None
    xml = None if job.policy is Policy.OFF else without_stale_record(job.xml, job.document, job.domain.made_cells)
    if xml is None:
        return _with_other_cells(job) if job.request.replan_cells and job.policy is not Policy.OFF else job.run()
    result = Job(xml, Document(xml), job.request).run()
    if result.outcome is Outcome.UNCHANGED:
        return replace(result, outcome=Outcome.PLACED, message=f"{result.message}; {_CELLS_RECORD_GONE}", xml=xml)
    return replace(result, xml=job.xml) if result.outcome is Outcome.FALLBACK and result.xml == xml else result


def _with_other_cells(job: Job) -> Result:
    """A domain that has cells of pcinuma's, with those that it would get today; its placement is mended as after any other change of the
    mapping, and laid out afresh where there are fewer cells than before. Where that comes to nothing, everything stands."""
    from pcinuma.cells import memory_modes, without

    made = job.domain.made_cells
    assert made is not None
    request = replace(job.request, cells=True, replan_cells=False)
    bare = without(job.xml, made)
    result = Job(bare, Document(bare), request).run()
    if result.cells is not None and len(result.cells) < len(made.cells):
        bare = revert(job.xml).xml
        result = Job(bare, Document(bare), request).run()
    if result.cells is not None and result.outcome is Outcome.PLACED:
        as_asked = request.memory is None or memory_modes(job.document) == {request.memory.value}
        return job.run() if as_asked and result.cells == cell_reports(made) else result
    message = f"the guest's cells stay as they are: {result.message}"
    return replace(job.run(), outcome=Outcome.FALLBACK, reason=result.reason, message=message, xml=job.xml)
