# SPDX-License-Identifier: LGPL-2.1-or-later
"""How fast pcinuma is, as ratios to what nobody can undercut on the same machine: ``sudo python3 -m tests.bench``."""
