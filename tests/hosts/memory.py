# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where examples of generated tests keep their files: many small ones for a moment, a millisecond each on a disk with a journal."""

from __future__ import annotations

import os
from typing import Optional

MEMORY: Optional[str] = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""For ``dir`` of :mod:`tempfile`: in memory; None, its own choice, where this machine has no such folder."""
