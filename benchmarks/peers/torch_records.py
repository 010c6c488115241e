"""The hand-written loop `torch_loop` with the records that Twinrun keeps.

Does, besides: the loss and accuracy of training and validation, a row per update with its rate and
loss, and after every epoch a synced checkpoint of the weights and the optimizer.
"""

from benchmarks.peers.torch_loop import main

if __name__ == "__main__":
    main(keeps_records=True)
