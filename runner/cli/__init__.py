"""Read a command line and start the work that it asks for."""
