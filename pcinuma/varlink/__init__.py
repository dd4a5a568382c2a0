# SPDX-License-Identifier: LGPL-2.1-or-later
"""Varlink on a unix socket, with nothing of pcinuma in it: this package imports the standard library and structlog alone.

::

    interface   an interface's description, and the check of a call's parameters against it
    wire        calls and replies as bytes
    client      one call, blocking
    server      many connections, in an event loop
    peer        who is at the other end, and whether he still is

Source of protocol and language: https://varlink.org.
"""
