# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which domains pcinuma may touch without being told to.

In this order: a person disabled the domain (no) or enabled it (yes); whom people disabled is not known (no); its owner wrote a policy
other than ``off`` into its metadata (yes: that is a wish for this very domain); it existed before pcinuma was first started (no: its
guest's addresses would change); the host-wide ``adopt``. Policy ``off`` is the engine's business. A UUID that was undefined and defined
again is still the same guest.
"""

from __future__ import annotations

from typing import Optional

from pcinuma.daemon.choices import Choices
from pcinuma.settings import Adopt, Policy


def allowed(state: Choices, adopt: Adopt, uuid: Optional[str], owner: Optional[Policy]) -> bool:
    """Whether pcinuma may place the domain ``uuid`` (None: XML that names none), whose own metadata says ``owner``."""
    if uuid in state.disabled or (state.unsure and uuid not in state.enabled):
        return False
    if uuid in state.enabled or owner in (Policy.PREFERRED, Policy.REQUIRED):
        return True
    if state.existing is None or uuid in state.existing:
        return False
    return adopt is Adopt.NEW
