"""What a golden case is; the cases themselves are in :mod:`tests.golden.cases` and :mod:`tests.golden.cells`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional, Union

from pcinuma.engine import Request
from pcinuma.model import Hypervisor
from pcinuma.settings import GroupBy, MemoryMode, Policy, Settings
from tests.hosts.build import Host
from tests.hosts.machines import MACHINES

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One case. ``domain`` is bytes, or a function from the output of the case ``after``; ``devices``: source -> cell or reason.

    ``cells``, ``memory``, ``link``: what the caller asks for; ``hypervisor``: what libvirt says of itself. ``proposed``: of each guest cell
    that pcinuma wrote the host node, vCPUs, MiB of memory and host CPUs. ``says``: a part of the message.
    """

    name: str
    machine: Union[str, Callable[[], Host]]
    domain: Union[bytes, Callable[[bytes], bytes]]
    devices: dict[str, Union[int, str, None]] = field(default_factory=dict)
    outcome: str = "placed"
    reason: Optional[str] = None
    expanders: Optional[int] = None
    switches: int = 0
    group_by: Optional[str] = None
    grouping: Optional[str] = None
    policy: Optional[str] = None
    after: Optional[str] = None
    stored: bool = True
    settings: dict[str, object] = field(default_factory=dict)
    cells: Optional[bool] = None
    memory: Optional[str] = None
    proposed: Optional[list[tuple[int, str, int, str]]] = None
    says: Optional[str] = None
    link: Optional[bool] = None
    hypervisor: Optional[Hypervisor] = None

    def host(self) -> Host:
        return MACHINES[self.machine]() if isinstance(self.machine, str) else self.machine()

    def request(self, root: Path) -> Request:
        """What is asked of the engine."""
        return Request(
            root=root,
            group_by=GroupBy(self.group_by) if self.group_by else None,
            policy=Policy(self.policy) if self.policy else None,
            settings=Settings(**self.settings),  # type: ignore[arg-type]
            cells=self.cells,
            memory=MemoryMode(self.memory) if self.memory else None,
            link=self.link,
            hypervisor=None if self.hypervisor is None else lambda: self.hypervisor,
        )
