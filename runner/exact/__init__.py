"""Exact mode: the same bits on every framework, by construction. docs/exact.md has the rules and
their bounds.

The arithmetic is written once over the operations of primitives.py: layers, losses, optimizers, a
whole update. reference.py gives the operations in NumPy, which backend=witness trains with;
backends/*/exact.py give them in their framework.
"""
