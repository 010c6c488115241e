"""What a run must survive: each fault is injected into a whole run of the real program, again and
again."""
