# SPDX-License-Identifier: LGPL-2.1-or-later
"""What Status counts as pending where libvirt's event of a new domain is late."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pcinuma.settings import Settings


@pytest.mark.parametrize(("patience", "comes"), [(60.0, True), (0.1, False)])
def test_a_definition_of_an_unknown_domain_is_pending_until_libvirt_tells_of_it_or_it_is_none(
    tmp_path: Path, patience: float, comes: bool
) -> None:
    pytest.importorskip("libvirt")
    from pcinuma.daemon.inventory import Known
    from pcinuma.daemon.pools import Pools
    from pcinuma.daemon.reconciler import EVENT_TAKES, Reconciler
    from pcinuma.daemon.state import State
    from pcinuma.daemon.state_file import StateFile

    async def walk() -> None:
        state, domain = State(), Any
        threads = ThreadPoolExecutor(1)
        reconciler = Reconciler(state, StateFile(tmp_path, state), Settings(), tmp_path, Pools(tmp_path), threads)
        reconciler._definition_written("new", patience)
        if comes:
            await asyncio.sleep(3 * EVENT_TAKES)
            assert reconciler.pending == 1
            reconciler.known["new"] = Known(domain)
        while reconciler.pending:
            await asyncio.sleep(EVENT_TAKES)
        threads.shutdown()

    asyncio.run(asyncio.wait_for(walk(), 30))
