"""A torch loop as most are written by hand; the other one, `torch_loop`, without what torch does
not choose by itself.

Does: a fresh permutation each epoch, forward, backward, torch's Adam as it comes, its rate set
before each update; the validation rows' accuracy after every epoch. Does not: metrics of the
training, checkpoints, logs; not even the loss is kept.
"""

from benchmarks.peers.torch_loop import main

if __name__ == "__main__":
    main(tuned=False)
