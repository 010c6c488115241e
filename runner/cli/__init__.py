"""From a command line to the work it asks for."""
