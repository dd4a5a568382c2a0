# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hooks for managers of virtual machines that offer a place of their own to change a domain's XML before libvirt has it.

:mod:`~pcinuma.managers.isolated` does the work in a process of its own and within a time; :mod:`~pcinuma.managers.placing` is that work:
the owner's wishes into the metadata, then the engine. :mod:`~pcinuma.managers.vdsm` (oVirt) and :mod:`~pcinuma.managers.kubevirt` are the
two protocols. No hook asks the daemon: it need not run, and the hook's user may not ask it.
"""
