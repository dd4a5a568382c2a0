"""Varlink on a unix socket: the wire format, a server and a client. Knows nothing of placement. Source: https://varlink.org."""
