"""Exact mode: every framework computes the same bits. docs/exact.md has the rules and their error
bounds.

Layers, losses, optimizers and whole updates are written once, with the operations of primitives.py.
reference.py implements these operations in NumPy, for backend=witness; backends/*/exact.py
implement them in a framework.
"""
