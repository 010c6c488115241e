"""A run: the work between two chunks, and the files of a run's folder."""
