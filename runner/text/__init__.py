"""Output text: escaped for the terminal, the shell, and report pages."""
