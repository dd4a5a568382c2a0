"""Placement: a pure function from (domain, host, policy) to a plan, or to the reason for none. No I/O."""
