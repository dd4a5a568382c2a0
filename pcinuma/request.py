# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the engine is asked: a :class:`Request` beside the domain's XML. All of it is plain data, but for one question to libvirt."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Mapping, NamedTuple, Optional

from pcinuma.address import PciAddress
from pcinuma.errors import UnusableInput
from pcinuma.model import Hypervisor
from pcinuma.settings import GroupBy, MemoryMode, Policy, Settings

CELLS_WORDS = ("auto", "off", "replan")

_DEFAULTS = Settings()


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
