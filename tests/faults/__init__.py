"""Faults that a run must survive: each is injected into a whole run of the real program, again and
again."""
