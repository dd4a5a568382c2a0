# SPDX-License-Identifier: LGPL-2.1-or-later
"""The checks of ``pcinuma check``, by what they look at; each module has a ``check`` that returns findings and never raises our errors."""
