# SPDX-License-Identifier: LGPL-2.1-or-later
"""The engine: one function from a domain's XML to the XML to start, behind every caller.

Flow: ``domain.read`` parses the XML; ``resolve`` reads, live and below the request's root, the places of the devices that count;
``placement.plan`` decides; ``domain.edit`` applies. The caller gets a :class:`Result`, always: whatever goes wrong on the way ends in
:func:`place`, the one boundary, as outcome ``fallback``. Only input that is no domain XML raises (UnusableInput).

No call here ever asks libvirt; what only libvirt knows (members of hostdev pools, parents of inactive mediated devices) is part of
the request.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable, Mapping, NamedTuple, Optional, Sequence

from pcinuma.address import PciAddress
from pcinuma.domain.aperture import manager_of
from pcinuma.domain.edit import apply_plan, withdraw
from pcinuma.domain.metadata import write_placement
from pcinuma.domain.ovirt import has_stale_expanders, take_stale_expanders_out
from pcinuma.domain.read import Elements, read_domain
from pcinuma.domain.xml import Document
from pcinuma.domain_reason import no_cells_hint, why_nothing
from pcinuma.errors import DomainError, HostError, UnusableInput
from pcinuma.host.place import HostReader
from pcinuma.model import BACKED, POLICY_SETTINGS, Domain, Hypervisor, MachineKind, Placement
from pcinuma.placement.aperture import NoAperture
from pcinuma.placement.layout import EXPANDERS, Layout
from pcinuma.placement.options import PlanOptions
from pcinuma.placement.planner import make_plan
from pcinuma.plan import NoRoom, Plan, Resolved
from pcinuma.printable import command
from pcinuma.reason import Outcome, Reason
from pcinuma.report import DeviceReport, Result, cell_reports, device_reports, unmet
from pcinuma.resolve import Resolution, resolve
from pcinuma.settings import GroupBy, MemoryMode, Policy, Settings

__all__ = ["AS_SET_UP", "CellsOption", "DeviceReport", "Request", "Result", "cells_option", "place", "revert"]

CELLS_WORDS = ("auto", "off", "replan")

_DEFAULTS = Settings()
_NOTHING_LEFT = "no device has a place that the guest could see any more: the devices are back on the default PCI root"
_RECORD_GONE = "pcinuma's record of an earlier placement is taken out"
_STALE_EXPANDERS_GONE = "the expander buses that oVirt's engine remembers of an earlier placement are taken out"
_LINKS_CHANGED = "what the guest's root ports tell of their links changes"
_CELLS_RECORD_GONE = "pcinuma's record of cells that it wrote is taken out, for they are gone or somebody changed them"
_REASON_OF_MACHINE = {MachineKind.NONE: Reason.MACHINE_TYPE, MachineKind.UNNAMED: Reason.NO_MACHINE}


@dataclass(frozen=True)
class Request:
    """What to place for and where to read the host.

    ``root``: the directory that holds ``sys/``. ``group_by`` and ``policy``: what a caller asks for; None leaves it to the domain's
    metadata and then to ``settings``. ``pools``: what libvirt was asked about: network name -> host addresses of a hostdev pool's members,
    UUID of an inactive mediated device -> its parent's. ``replan``: lay a placed domain out afresh. ``ran_with``: guest addresses of
    devices that somebody put on one of our ports and that the guest already ran with: they stay. ``cells``: whether a guest without cells
    gets some, and ``memory`` how they are bound to host nodes, else by the owner's ``<numatune>``, else strictly. ``replan_cells``: a guest
    that has pcinuma's gets those that it would get today. ``stale_expanders``: what oVirt's engine remembers of a placement is taken out,
    though no metadata says any more whose it is. ``policy_setting``: what a manager's users set the policy by, in their words. ``link``:
    whether root ports tell the host's links; ``hypervisor``: asks libvirt what it is, where it may be asked, and only if that matters.
    """

    root: Path = Path("/")
    group_by: Optional[GroupBy] = None
    policy: Optional[Policy] = None
    settings: Settings = _DEFAULTS
    pools: Mapping[str, tuple[PciAddress, ...]] = field(default_factory=dict)
    replan: bool = False
    ran_with: frozenset[PciAddress] = frozenset()
    cells: Optional[bool] = None
    memory: Optional[MemoryMode] = None
    replan_cells: bool = False
    stale_expanders: bool = True
    policy_setting: Optional[str] = None
    link: Optional[bool] = None
    hypervisor: Optional[Callable[[], Optional[Hypervisor]]] = None


class CellsOption(NamedTuple):
    """The fields of the same names of a :class:`Request`."""

    cells: Optional[bool] = None
    memory: Optional[MemoryMode] = None
    replan_cells: bool = False


AS_SET_UP = CellsOption()
"""As the owner and the configuration say."""


def cells_option(cells: Optional[str], memory: Optional[str]) -> CellsOption:
    """What words mean, as commands and the daemon's interface take them. Raises UnusableInput."""
    if cells not in (None, *CELLS_WORDS):
        raise UnusableInput(f"cells: {cells!r} is none of {', '.join(CELLS_WORDS)}")
    modes = [mode.value for mode in MemoryMode]
    if memory not in (None, *modes):
        raise UnusableInput(f"memory: {memory!r} is none of {', '.join(modes)}")
    asked = None if cells is None else cells != "off"
    return CellsOption(asked, None if memory is None else MemoryMode(memory), cells == "replan")


def place(xml: bytes, request: Optional[Request] = None) -> Result:
    """Place the passthrough devices of the domain ``xml``. Raises UnusableInput for input that is no domain XML, and nothing else."""
    request = request or Request()
    document = Document(xml)
    try:
        job = _Job(xml, document, request)
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


def _placed(job: _Job) -> Result:
    return job.run() if job.domain.made_cells is None else _with_made_cells(job)


def _with_links(job: _Job) -> Result:
    """A domain whose ports tell the host's links, or shall: placed as if they told nothing, and then told."""
    from pcinuma.links import without

    standing = job.linked.links if job.linked is not None else ()
    if job.policy is Policy.OFF:
        return _placed(job)
    bare = job
    if job.linked is not None:
        xml = without(Document(job.xml), job.linked)
        bare = _Job(xml, Document(xml), job.request)
    result = _told(job, bare, _placed(bare), standing)
    if result.outcome is Outcome.UNCHANGED and result.xml != job.xml:
        bare = _Job(bare.xml, Document(bare.xml), job.request)
        bare.writes = True  # as everything that changes a definition, this brings the record up to date
        result = _told(job, bare, _placed(bare), standing)
        message = "; ".join([part for part in (_LINKS_CHANGED, result.message) if part])
        return replace(result, outcome=Outcome.PLACED, reason=None, message=message)
    return result


def _told(job: _Job, bare: _Job, result: Result, standing: Sequence[tuple[int, str]]) -> Result:
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


def _without_stale_expanders(job: _Job) -> Result:
    """A domain with what oVirt's engine remembers of a placement, which never comes out again, whatever becomes of the domain."""
    take_stale_expanders_out(job.document, job.domain, job.elements)
    xml = job.document.serialise()
    result = place(xml, job.request)
    if result.xml != xml or result.refused:
        return result
    outcome = Outcome.FALLBACK if result.outcome is Outcome.FALLBACK else Outcome.PLACED
    return replace(result, outcome=outcome, message=f"{result.message}; {_STALE_EXPANDERS_GONE}")


def _with_made_cells(job: _Job) -> Result:
    """A domain with a record of cells that pcinuma wrote. Where they are there no more, or are somebody else's by now, the record goes."""
    from pcinuma.cells import without_stale_record

    assert job.domain.made_cells is not None
    xml = None if job.policy is Policy.OFF else without_stale_record(job.xml, job.document, job.domain.made_cells)
    if xml is None:
        return _with_other_cells(job) if job.request.replan_cells and job.policy is not Policy.OFF else job.run()
    result = _Job(xml, Document(xml), job.request).run()
    if result.outcome is Outcome.UNCHANGED:
        return replace(result, outcome=Outcome.PLACED, message=f"{result.message}; {_CELLS_RECORD_GONE}", xml=xml)
    return replace(result, xml=job.xml) if result.outcome is Outcome.FALLBACK and result.xml == xml else result


def _with_other_cells(job: _Job) -> Result:
    """A domain that has cells of pcinuma's, with those that it would get today; its placement is mended as after any other change of the
    mapping, and laid out afresh where there are fewer cells than before. Where that comes to nothing, everything stands."""
    from pcinuma.cells import memory_modes, without

    made = job.domain.made_cells
    assert made is not None
    request = replace(job.request, cells=True, replan_cells=False)
    bare = without(job.xml, made)
    result = _Job(bare, Document(bare), request).run()
    if result.cells is not None and len(result.cells) < len(made.cells):
        bare = revert(job.xml).xml
        result = _Job(bare, Document(bare), request).run()
    if result.cells is not None and result.outcome is Outcome.PLACED:
        as_asked = request.memory is None or memory_modes(job.document) == {request.memory.value}
        return job.run() if as_asked and result.cells == cell_reports(made) else result
    message = f"the guest's cells stay as they are: {result.message}"
    return replace(job.run(), outcome=Outcome.FALLBACK, reason=result.reason, message=message, xml=job.xml)


class _Job:
    """One domain on its way through the engine."""

    def __init__(self, xml: bytes, document: Document, request: Request) -> None:
        self.xml = xml
        self.document = document
        self.request = request
        self.domain: Domain
        self.elements: Elements
        self.domain, self.elements = self._read(document)
        self.recorded = self.domain.placement is not None
        self.linked = self.domain.placement if self.domain.placement is not None and self.domain.placement.links else None
        if self.domain.placement is not None and not self.domain.placement.controllers:
            self.domain = self.domain._replace(placement=None)  # nothing of it is left, so it binds nobody
        self.reader = HostReader(request.root)
        self.resolution = Resolution.nothing()
        self.got_cells = False
        self.writes = False

    def _read(self, document: Document) -> tuple[Domain, Elements]:
        return read_domain(document, frozenset(self.request.pools), self.request.settings.near_backing)

    @property
    def policy(self) -> Policy:
        if self.domain.policy is Policy.OFF:
            return Policy.OFF
        return self.request.policy or self.domain.policy or self.request.settings.policy

    @property
    def group_by(self) -> GroupBy:
        return self.request.group_by or self.domain.group_by or self.request.settings.group_by

    @property
    def asks_for_cells(self) -> bool:
        """Whether the guest gets cells if it has none."""
        if self.domain.asks_for_cells is False:
            return False
        asked = self.request.cells if self.request.cells is not None else self.domain.asks_for_cells
        return self.request.settings.cells if asked is None else asked

    @property
    def asks_for_link(self) -> bool:
        """Whether the guest's root ports tell the host's links."""
        if self.domain.asks_for_link is False:
            return False
        asked = self.request.link if self.request.link is not None else self.domain.asks_for_link
        return self.request.settings.link if asked is None else asked

    @property
    def concerns_links(self) -> bool:
        """Whether they do, or shall."""
        return self.asks_for_link or self.linked is not None

    def run(self) -> Result:
        standing = self.domain.made_cells
        result = self._run()
        made = self.domain.made_cells
        if made is None:
            return result
        message = result.message
        if standing is not None and any(device.reason is Reason.NO_CELL for device in result.devices):
            hint = f"`{command('cells', self.domain.name or 'DOMAIN', '--replan')}` shows the cells that it would get today"
            message = f"{message}; {hint}" if message else hint
        return replace(result, cells=cell_reports(made), message=message)

    def _resolve(self, earlier: Optional[Resolution] = None) -> Resolution:
        switches = self.group_by is GroupBy.SWITCH
        if self.domain.placement is not None:
            switches = self.domain.placement.group_by is GroupBy.SWITCH or (switches and self.request.replan)
        return resolve(self.domain, self.reader, self.request.pools, self.request.settings.unaligned, switches, earlier)

    def _run(self) -> Result:
        self.resolution = self._resolve()
        if self.resolution.remarks:
            self.domain = self.domain._replace(warnings=(*self.domain.warnings, *self.resolution.remarks))
        leave = self._reason_to_leave_alone()
        if leave is not None and leave[0] is Reason.QEMU_COMMANDLINE and self.domain.placement is not None:
            return self._taken_back(*leave)  # QEMU would plug that device into an expander of ours, and not start
        if leave is not None:
            return self._with_cells() if leave[0] is Reason.NO_CELLS and self.asks_for_cells else self._left_alone(*leave)
        if self.domain.problem is not None:
            return self._as_it_is(Outcome.FALLBACK, Reason.BAD_VALUE, self.domain.problem)
        if self.resolution.trouble is not None:
            return self._as_it_is(Outcome.FALLBACK, *self.resolution.trouble)
        return self._place()

    def _reason_to_leave_alone(self) -> Optional[tuple[Reason, str]]:
        domain = self.domain
        if self.policy is Policy.OFF:
            return Reason.POLICY_OFF, Reason.POLICY_OFF.sentence
        if domain.problem is not None:
            return None
        if not domain.devices and domain.placement is None:
            return Reason.NOTHING_TO_PLACE, "the domain passes no PCI device through"
        of_machine = _REASON_OF_MACHINE.get(domain.machine)
        if of_machine is not None:
            name = f" ({domain.machine_name})" if domain.machine_name else ""
            return of_machine, of_machine.sentence + name
        if domain.without_acpi:
            return Reason.NO_ACPI, Reason.NO_ACPI.sentence
        if domain.commandline_pci is not None:
            return Reason.QEMU_COMMANDLINE, f"{Reason.QEMU_COMMANDLINE.sentence} ({domain.commandline_pci})"
        if domain.root_iommu:
            return Reason.IOMMU_BUS, Reason.IOMMU_BUS.sentence
        foreign = _foreign_expander(domain)
        if foreign is not None:
            return Reason.FOREIGN_EXPANDER, f"{Reason.FOREIGN_EXPANDER.sentence} (controller {foreign})"
        if not domain.cells and domain.placement is None:
            hint = "" if self.asks_for_cells else f"; {no_cells_hint(domain, manager_of(self.document.root))}"
            return Reason.NO_CELLS, Reason.NO_CELLS.sentence + hint
        return None

    def _with_cells(self) -> Result:
        """A domain without cells, which gets some together with its placement, or neither."""
        if self.resolution.trouble is not None:
            return self._as_it_is(Outcome.FALLBACK, *self.resolution.trouble)
        from pcinuma.cells import NoProposal, elsewhere, give  # not for those who do without

        try:
            self.domain, proposal = give(self.document, self.domain, self.reader, self.resolution.nodes, self.request.memory)
        except NoProposal as error:
            return self._without_cells(Reason.NO_CELLS, f"{Reason.NO_CELLS.sentence}, and none can be given to it: {error.sentence()}")
        except DomainError as error:
            return self._as_it_is(Outcome.FALLBACK, Reason.BAD_VALUE, error.sentence())
        except HostError as error:
            return self._as_it_is(Outcome.FALLBACK, Reason.HOST_UNREADABLE, error.sentence())
        self.got_cells = True
        self.resolution = self._resolve(self.resolution)
        result = self._place()
        if result.outcome is Outcome.PLACED and any(device.placed for device in result.devices):
            return result
        bare = _Job(self.xml, Document(self.xml), replace(self.request, cells=False)).run()
        self.domain = self.domain._replace(made_cells=None)
        if bare.xml != self.xml:
            return bare
        of_no_use = elsewhere(proposal, self.resolution.nodes) if result.reason is Reason.NO_CELL else None
        message = of_no_use or f"with the cells that it would get: {result.message}"
        return replace(bare, outcome=result.outcome, reason=result.reason, message=message, refused=result.refused)

    def _without_cells(self, reason: Reason, message: str) -> Result:
        if self.domain.placement is not None:
            return self._taken_back(reason, message)
        return self._left_alone(reason, message)

    def _place(self) -> Result:
        if not self.domain.cells:
            if self.asks_for_cells:
                return self._with_cells()
            return self._taken_back(Reason.NO_CELLS, Reason.NO_CELLS.sentence)
        domain = self.domain
        replan = self.request.replan and domain.placement is not None
        existing = domain.placement is not None and not replan
        followers = self._give_up_followers() if replan and not self.request.settings.near_backing else frozenset()
        options = PlanOptions(self.group_by, self.request.settings.spare_ports, replan, self.request.ran_with, self.resolution.aperture)
        try:
            plan = self._make_plan(options)
        except NoRoom as error:
            return self._no_room(options, error)
        if plan.doubt is not None:
            self.domain = domain._replace(warnings=(*domain.warnings, self._doubtful(plan.doubt, existing)))
        devices = tuple(line for line in device_reports(self.domain, self.resolution, plan) if line.source not in followers)
        if domain.placement is None and not plan.addresses:
            return self._left_alone(*self._why_nothing(devices), plan, devices)
        if self.policy is Policy.REQUIRED:
            lacking = unmet(devices)
            if lacking is not None:
                return self._refuse(lacking)
        if plan.empty and not self.got_cells and not self.writes and _says_the_same(plan.placement, domain.placement):
            why = (Reason.ALREADY_PLACED, Reason.ALREADY_PLACED.sentence) if plan.addresses else self._why_nothing(devices)
            return self._as_it_is(Outcome.UNCHANGED, *why, plan, devices)
        if plan.placement is None:  # not even an expander is left: as it was before pcinuma, main ports included
            return self._nothing_left()
        apply_plan(self.document, self.elements, plan)
        xml = self.document.serialise()
        grouping = plan.placement.group_by
        if not plan.addresses:
            return Result(Outcome.PLACED, Reason.NOTHING_TO_PLACE, _NOTHING_LEFT, grouping, devices, xml, False, self.domain.warnings)
        message = plan.stepped_down or (None if plan.doubt is None else self._doubtful(plan.doubt, existing))
        return Result(Outcome.PLACED, None, message, grouping, devices, xml, False, self.domain.warnings)

    def _why_nothing(self, devices: Sequence[DeviceReport]) -> tuple[Reason, str]:
        return why_nothing(self.domain, devices, manager_of(self.document.root))

    def _nothing_left(self) -> Result:
        withdraw(self.document, self.domain, self.elements)
        domain, _ = self._read(self.document)
        devices, xml = device_reports(domain, self.resolution, None), self.document.serialise()
        return Result(Outcome.PLACED, Reason.NOTHING_TO_PLACE, _NOTHING_LEFT, None, devices, xml, False, self.domain.warnings)

    def _give_up_followers(self) -> frozenset[str]:
        """Emulated devices that followed what is behind them while that was wanted belong nowhere in a layout afresh; their sources."""
        followers = frozenset(device.source for device in self.domain.devices if device.form in BACKED)
        resolved = self.resolution.resolved
        without = {source: Resolved(None, Reason.NO_AFFINITY) for source in followers & resolved.keys()}
        self.resolution = self.resolution._replace(resolved={**resolved, **without})
        return followers

    def _make_plan(self, options: PlanOptions) -> Plan:
        return make_plan(self.domain, self.resolution.resolved, self.resolution.hosts, self.resolution.virtual, options)

    def _doubtful(self, why: str, existing: bool) -> str:
        if not existing:
            return f"UEFI firmware may leave devices without memory: {why}"
        hint = f"'pcinuma apply {self.domain.name or 'DOMAIN'} --replan' takes the layout back if it does not fit"
        return f"UEFI firmware may leave devices of the standing layout without memory: {why}; {hint}"

    def _no_room(self, options: PlanOptions, error: NoRoom) -> Result:
        reason = Reason.NO_APERTURE if isinstance(error, NoAperture) else Reason.NO_ROOM
        message = f"{reason.sentence} ({error})"
        if self.domain.placement is None or (reason is Reason.NO_ROOM and options.replan and self._may_stay(options)):
            return self._as_it_is(Outcome.FALLBACK, reason, message)
        return self._taken_back(reason, message)

    def _may_stay(self, options: PlanOptions) -> bool:
        """Whether the placement that there is can stay, where none afresh fits."""
        try:
            return self._make_plan(replace(options, replan=False)).empty
        except NoRoom:
            return False

    def _left_alone(
        self, reason: Reason, message: str, plan: Optional[Plan] = None, devices: Optional[tuple[DeviceReport, ...]] = None
    ) -> Result:
        """Nothing to do; but a record of pcinuma's by which nothing is placed any more goes."""
        result = self._as_it_is(Outcome.UNCHANGED, reason, message, plan, devices)
        nothing = plan is not None or reason in (Reason.NOTHING_TO_PLACE, Reason.NO_CELLS)
        gone = nothing and self.recorded and self.domain.placement is None
        if not gone or result.outcome is not Outcome.UNCHANGED:
            return result
        write_placement(self.document, None)
        return replace(result, outcome=Outcome.PLACED, message=f"{message}; {_RECORD_GONE}", xml=self.document.serialise())

    def _taken_back(self, reason: Reason, message: str) -> Result:
        """A placed domain back in its default layout: the one fallback that differs from its input."""
        if self.policy is Policy.REQUIRED:
            return self._as_it_is(Outcome.FALLBACK, reason, message)
        document = Document(self.xml)
        domain, elements = self._read(document)
        withdraw(document, domain, elements)
        domain, _ = self._read(document)
        devices = device_reports(domain, self.resolution, None, fallback=reason)
        message = f"the standing placement is wrong and no other fits, so it was taken back: {message}"
        return Result(Outcome.FALLBACK, reason, message, None, devices, document.serialise(), False, domain.warnings)

    def _as_it_is(
        self,
        outcome: Outcome,
        reason: Reason,
        message: str,
        plan: Optional[Plan] = None,
        devices: Optional[tuple[DeviceReport, ...]] = None,
    ) -> Result:
        """The input byte for byte; under ``required`` only if that is good enough. ``devices``: what ``plan`` makes of them, if known."""
        if devices is None:
            devices = device_reports(self.domain, self.resolution, plan, fallback=reason)
        if self.policy is Policy.REQUIRED:
            lacking = unmet(devices)
            if lacking is not None or outcome is Outcome.FALLBACK:
                return self._refuse(lacking, message, reason)
        grouping = self.domain.placement.group_by if self.domain.placement else None
        return Result(outcome, reason, message, grouping, devices, self.xml, False, self.domain.warnings)

    def _refuse(self, lacking: Optional[DeviceReport], message: Optional[str] = None, reason: Optional[Reason] = None) -> Result:
        devices = device_reports(self.domain, self.resolution, None, fallback=reason)
        grouping = self.domain.placement.group_by if self.domain.placement else None
        if lacking is None:
            why = message or Reason.REQUIRED.sentence
        else:
            detail = lacking.reason.sentence if lacking.reason and reason is not Reason.NO_CELLS else message
            why = f"{lacking.source} is not placed: {detail}" if detail else f"{lacking.source} is not placed"
        text = f"{Reason.REQUIRED.sentence}: {why}; {self._how_to_start()}"
        return Result(Outcome.FALLBACK, Reason.REQUIRED, text, grouping, devices, self.xml, True, self.domain.warnings)

    def _how_to_start(self) -> str:
        """What lets a domain start that policy ``required`` refuses. Managers write their domains afresh: there it is what a user sets."""
        setting = self.request.policy_setting or POLICY_SETTINGS.get(manager_of(self.document.root))
        if setting is not None:
            return f"{setting} set to 'preferred' or 'off' lets it start as it is"
        name = self.domain.name or "DOMAIN"
        return f"'pcinuma explain {name}' tells more, 'pcinuma disable {name}' lets it start as it is"


def _says_the_same(new: Optional[Placement], old: Optional[Placement]) -> bool:
    """Whether ``old`` need not be written anew: it says what ``new`` does, and beyond that only of devices that are gone."""
    if new is None or old is None:
        return new is old
    recorded = {entry.source: entry for entry in old.devices}
    listed = new.group_by is old.group_by and new.controllers == old.controllers
    return listed and all(recorded.get(entry.source) == entry for entry in new.devices)


def _foreign_expander(domain: Domain) -> Optional[int]:
    """An expander that is not ours and that a passthrough device sits below, or whose bus number libvirt has yet to choose."""
    ours = frozenset(domain.placement.controllers if domain.placement else ())
    if not any((c.model in EXPANDERS or c.node is not None) and c.index not in ours for c in domain.controllers.values()):
        return None
    layout = Layout(domain)
    for device in domain.devices:
        expander = layout.expander_of(device.address.bus) if device.address is not None else None
        if expander is not None and expander not in ours:
            return expander
    for index, controller in sorted(domain.controllers.items()):
        if layout.is_expander(controller) and index not in ours and controller.bus_nr is None and domain.machine is not MachineKind.PHB:
            return index
    return None


