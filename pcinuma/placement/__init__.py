# SPDX-License-Identifier: LGPL-2.1-or-later
"""Placement: a pure function from (domain, what the host says of its devices, options) to a plan. No I/O.

The one entry is :func:`pcinuma.placement.planner.make_plan`. What does not fit raises NoRoom, or NoAperture, with the figures; nothing else
is raised on purpose. The same input gives the same plan.
"""
