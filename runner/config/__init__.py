"""The config: its keys, their checks, and the messages for wrong values."""
