"""The largest domain that the bus numbers allow: drives on two nodes, one more of which no longer fits.

QEMU needs minutes for hundreds of ports (its time to map a BAR grows with their number), so the guest boots beside other tests: where the
files are spread over processes, this one's is among the first.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pcinuma.engine import Request, place
from pcinuma.lab.endpoints import Endpoint
from pcinuma.lab.kernel import Kernel
from pcinuma.report import Result
from pcinuma.settings import GroupBy
from tests.guest.boots import Booted, boot
from tests.guest.handmade import plain
from tests.hosts.machines import crowd

CELLS = {0: 0, 1: 1}
ON_A_NODE = 126


def write_host(folder: Path) -> Path:
    return crowd(ON_A_NODE, 1, 2).write(folder)


def domain(devices: int) -> bytes:
    """A domain with this many drives, alternately of both nodes, as nobody has formatted it yet."""
    sources = [f"{number % 2:04x}:{1 + number // 2:02x}:00.0" for number in range(devices)]
    return plain(sources, CELLS, addresses=False)


def attempt(devices: int, root: Path, group_by: GroupBy) -> Result:
    return place(domain(devices), Request(root=root, group_by=group_by))


def fits(result: Result, group_by: GroupBy) -> bool:
    return result.group_by is group_by and all(device.placed for device in result.devices)


def largest(root: Path, group_by: GroupBy) -> int:
    """The number of drives above which one is not placed."""
    low, high = 1, 2 * ON_A_NODE
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(attempt(middle, root, group_by), group_by) else (low, middle - 1)
    return low


def start(kernel: Kernel, scratch: Path, pool: ThreadPoolExecutor, firmware: str = "seabios") -> Future[Booted]:
    """Boot the largest domain in the background."""
    root = write_host(scratch / "host")
    result = attempt(largest(root, GroupBy.ROOT_COMPLEX), root, GroupBy.ROOT_COMPLEX)
    return pool.submit(boot, result.xml, root, kernel, scratch, firmware=firmware, kind=Endpoint.TINY)
