"""Twinrun's training phase against idiomatic scripts of the same frameworks: `python -m
benchmarks`."""
