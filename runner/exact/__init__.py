"""Exact mode: the same bits on every framework, by construction. docs/exact.md has the rules and their bounds.

The arithmetic is written once over the operations of primitives.py: layers, losses, optimizers, a whole update. NumPy gives
them in witness.py, which is the oracle; backends/*/exact.py give them in their framework.
"""
