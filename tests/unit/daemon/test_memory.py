# SPDX-License-Identifier: LGPL-2.1-or-later
"""When the heap is handed back: whatever a request did meanwhile, what it freed goes back to the system."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pcinuma.daemon.memory import GROWN, LONGEST_PAUSE, Trimming

MEGABYTE = 1 << 20
SMALL = 40 * MEGABYTE
EVENTS = st.lists(st.tuples(st.sampled_from(["take", "free", "tick"]), st.integers(1, 60)), max_size=60)


class Heap:
    """As the C library's: what is freed stays with the process until it is handed back."""

    def __init__(self) -> None:
        self.used = self.resident = SMALL
        self.trimming = Trimming()
        self.trims = 0

    def take(self, size: int) -> None:
        self.used += size
        self.resident = max(self.resident, self.used)

    def tick(self) -> None:
        if self.trimming.due(self.resident):
            self.resident = self.used
            self.trims += 1
            self.trimming.done(self.resident)


@given(EVENTS)
def test_some_time_after_the_last_request_the_process_is_as_small_as_before(events: list[tuple[str, int]]) -> None:
    heap = Heap()
    heap.tick()
    for event, size in events:
        if event == "tick":
            heap.tick()
        elif event == "take":
            heap.take(size * MEGABYTE)
        else:
            heap.used = max(SMALL, heap.used - size * MEGABYTE)
    heap.used = SMALL
    for _ in range(LONGEST_PAUSE + 1):
        heap.tick()
    assert heap.resident <= SMALL + GROWN


def test_what_stays_in_use_is_looked_for_ever_more_rarely() -> None:
    heap = Heap()
    heap.tick()
    heap.take(100 * MEGABYTE)
    for _ in range(10 * LONGEST_PAUSE):
        heap.tick()
    assert heap.trims <= 14
