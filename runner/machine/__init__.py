"""Properties of this machine: devices, memory, cores."""
