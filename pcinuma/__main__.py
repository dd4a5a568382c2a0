# SPDX-License-Identifier: LGPL-2.1-or-later
"""``python3 -m pcinuma``: the command, from a checkout as well as from an installed package."""

from __future__ import annotations

import sys

from pcinuma.cli import main

if __name__ == "__main__":
    sys.exit(main())
