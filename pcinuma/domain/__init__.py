"""The domain XML: what it says about PCI, cells and pinning, and edits of it; knows no sysfs."""
