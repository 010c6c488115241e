"""What this machine has: devices, memory, cores."""
