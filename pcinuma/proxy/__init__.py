# SPDX-License-Identifier: LGPL-2.1-or-later
"""The proxy on libvirt's RPC: the one place where a start can be placed that nobody announced a moment before.

Every client's connection is relayed by a process of its own (:mod:`~pcinuma.proxy.relay`), which has the client's
uid, gid and groups from before it connects to libvirt until it ends (:mod:`~pcinuma.proxy.credentials`). That is what
makes "never more rights than the client" a matter of the kernel and not of our care, and it is also what libvirt
needs: it asks for uid, gid and pid of the socket's peer as they were at ``connect``, and then looks the *process* up
(start time) for every identity that it makes and polkit does for every decision, so the connecting process has to
live as long as the connection and really be of that user. One client's malice or misfortune stays in its own process.

The privileged parent (:mod:`~pcinuma.proxy.server`) only accepts, forks (whose turn it is:
:mod:`~pcinuma.proxy.admission`), reaps, and passes three kinds of request on to the daemon (:mod:`~pcinuma.proxy.request_handler`) that a
relay may ask over its socket pair: prepare this start, place this XML, find an address for this device. It never sees a
byte that a client sent except the XML in those requests.

What is understood of the protocol is in :mod:`~pcinuma.proxy.wire` (header, framing, XDR strings) and
:mod:`~pcinuma.proxy.calls` (the seven calls that start a guest or plug a device into one). Everything else passes
byte for byte; whatever does not even look like the protocol turns that direction into a blind relay, so that libvirt
judges it exactly as without a proxy.
"""
