# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon: keeps the inactive definitions of domains placed, and answers the hook, the proxy and the command.

One asyncio process. The event loop owns all state; threads only run what may block::

    interface         what it speaks on its socket, and
    client            a call to it
    methods           what each of the calls does
    start_check       the hook's question: is what is about to boot placed as the host is now?
    hotplug           a guest address for a device that is about to be plugged in
    current_layout    what an XML is, as opposed to what it should become
    reconciler        which domain is looked at when, one thing at a time for each domain
    placer            one definition, alone with it: placed or reverted, and recorded
    define_events     which of the definitions that libvirt tells of are our own
    sweep             a look at every domain
    work_queue        which domains are to be looked at, in what order
    inventory         the domains that libvirt has, and what is remembered of each
    permission        whether a domain may be touched at all
    debounce          when a domain that somebody is changing is looked at
    starts            starts that are under way, during which a domain is left alone
    contention        backing off from a domain that somebody else keeps undoing
    definition        one domain's inactive definition: read, place, define (blocking; runs in a thread)
    definition_files  every version of every definition, as libvirt writes it, by
    file_watch        the kernel's word on files that somebody writes
    overwritten       a definition of ours loses nothing that somebody changes at that moment
    stale             from which version somebody made his
    undefine_race     domains that must not come back
    decisions         what was decided about each domain
    link              the connection to libvirt: events, reconnecting for ever
    hypervisor        libvirt's and QEMU's versions
    pools             what only libvirt knows: hostdev network pools, and by
    mdevs             inactive mediated devices
    choices           what people decided about domains, a file each
    state             what outlives the process, and
    state_file        how it gets to the disk
    threads           threads that are counted while they may block
    memory            the C library's heap, handed back
    lock              one process at a time has the state

Two rules hold everywhere. No libvirt call is ever made on behalf of a waiting hook, since libvirt waits for the hook with the
domain locked. And nothing that fails here stops a guest: a call that cannot be answered is answered with an error, and its
caller goes on.
"""
