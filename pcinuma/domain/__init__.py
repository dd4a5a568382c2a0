# SPDX-License-Identifier: LGPL-2.1-or-later
"""The domain XML: what it says about PCI, cells and pinning, and edits of it; knows no sysfs.

In: bytes, or a parsed document. Out: a :class:`~pcinuma.model.Domain`, and the document changed as a :class:`~pcinuma.plan.Plan` says.
Input that is no domain XML raises UnusableInput; a value in it that means nothing is a ``problem`` of the domain, and no exception.
"""
