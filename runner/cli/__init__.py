"""Read a command line and run it."""
