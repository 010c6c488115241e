"""Text that leaves the program: spelled for a terminal, a shell, a page."""
