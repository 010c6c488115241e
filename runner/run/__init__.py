"""A run: what happens between its chunks, and what it leaves behind."""
