"""Compare Twinrun's training phase with idiomatic scripts of the same frameworks: `python -m
benchmarks`."""
