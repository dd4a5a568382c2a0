"""The daemon: keeps the inactive definitions of domains placed, and answers the hook, the proxy and the command.

One asyncio process. The event loop owns all state; threads only run what may block::

    client      the other end: a blocking call, for the command (no libvirt, no lxml)
    interface   what the daemon speaks: the varlink interface io.pcinuma, and the check of a call's parameters against it
    server      varlink's wire format on a unix socket
    service     the methods of the interface
    reconciler  which domain is looked at when, one thing at a time for each domain; contention; what is recorded
    definition  one domain's inactive definition on libvirt: read, place, compare, define (blocking; runs in a thread)
    link        the connection to libvirt: events, reconnecting for ever
    pools       hostdev network pools, as libvirt knows them
    hotplug     a guest address for a device that is about to be plugged in
    boot        what a domain that is about to boot looks like (the hook's question)
    state       what outlives the process
    systemd     readiness, watchdog, socket activation
    log         structlog on the journal or a terminal

Two rules hold everywhere. No libvirt call is ever made on behalf of a waiting hook, since libvirt waits for the hook with the
domain locked. And nothing that fails here stops a guest: a call that cannot be answered is answered with an error, and its
caller goes on.
"""
