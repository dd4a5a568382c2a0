# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the guest sees of its devices: their bus addresses, and the topology that its applications read; pure, from the domain's XML."""
