# SPDX-License-Identifier: LGPL-2.1-or-later
"""The packages: what is in them, and what they do to a host over their whole life."""
