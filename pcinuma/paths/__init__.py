"""How requests travel between two devices: what is read of the host, and the verdict on it."""
