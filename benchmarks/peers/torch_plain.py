"""A typical hand-written torch loop: `torch_loop` with torch's defaults.

Does: a fresh permutation each epoch, forward, backward, torch's default Adam, its rate set before
each update; the validation accuracy after every epoch. Does not: training metrics, checkpoints,
logs; it does not keep the loss.
"""

from benchmarks.peers.torch_loop import main

if __name__ == "__main__":
    main(tuned=False)
