"""The host: live PCI and NUMA topology, read from a sysfs root; knows neither libvirt nor XML."""
