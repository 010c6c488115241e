"""Exact mode in NumPy: a backend without a framework. It is slow; tests compare the other backends
with it."""
