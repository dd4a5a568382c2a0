# SPDX-License-Identifier: LGPL-2.1-or-later
"""How requests travel between two devices: what is read of the host, and the verdict on it."""
