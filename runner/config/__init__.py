"""The config: its keys, their checks, and the words where one is wrong."""
