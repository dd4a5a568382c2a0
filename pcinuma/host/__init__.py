# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host: live PCI and NUMA topology, read from a sysfs root; knows neither libvirt nor XML.

In: the directory that holds ``sys/``, and PCI addresses. Out: values, None for what the host does not tell. What is unreadable or nonsense
raises HostError with the file's name, a device that is not there DeviceAbsent.
"""
