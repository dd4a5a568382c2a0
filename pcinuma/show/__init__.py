# SPDX-License-Identifier: LGPL-2.1-or-later
"""What commands and the laboratory draw with: tables, trees, sentences, comparisons of host and guest. Knows no command and no libvirt."""
