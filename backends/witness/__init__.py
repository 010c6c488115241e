"""Exact mode in NumPy: a backend without a framework. It is slow, and the others are compared with
it."""
