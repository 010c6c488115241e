"""A hand-written torch loop: a lower limit for eager torch.

Does: a fresh permutation each epoch, forward, backward, torch's fused Adam, rates from a
precomputed table, images and convolutions channels last; the validation accuracy after every
epoch. Does not: training metrics, checkpoints, logs; it does not keep the loss.
Timed from the first epoch's permutation to the end of the last epoch's validation.
"""

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.peers import job as jobs
from benchmarks.peers.torch_layers import inputs, network


def main(tuned: bool = True, keeps_records: bool = False) -> None:
    """Train. `tuned` selects the fused optimizer and channels last, which are not torch's
    defaults. With `keeps_records` it measures the loss and the accuracy of training and
    validation, and writes a row per update and a checkpoint per epoch."""
    job = jobs.read()
    records = jobs.Records(job.folder) if keeps_records else None
    torch.manual_seed(0)
    model, x, y = network(job.model), inputs(job.train.x), torch.from_numpy(job.train.y)
    x_val, y_val = inputs(job.val.x), torch.from_numpy(job.val.y)
    if tuned and x.ndim == 4:
        model, last = model.to(memory_format=torch.channels_last), torch.channels_last
        x, x_val = x.to(memory_format=last), x_val.to(memory_format=last)
    optimizer = torch.optim.Adam(model.parameters(), lr=jobs.LEARNING_RATE, fused=tuned or None)
    rates = iter(job.rates())
    group, num_steps, clock = optimizer.param_groups[0], 0, jobs.Clock()

    clock.begin()
    for _ in range(job.num_epochs):
        taken = []
        for rows in torch.randperm(len(x)).split(job.batch_size):
            optimizer.zero_grad()
            z = model(x[rows])
            loss = F.cross_entropy(z, y[rows])
            loss.backward()
            group["lr"] = next(rates)
            optimizer.step()
            num_steps += 1
            if records is not None:
                taken.append((group["lr"], loss.detach(), z.detach().argmax(1) == y[rows]))
        with torch.inference_mode():
            z = torch.cat([model.eval()(rows) for rows in x_val.split(jobs.VAL_BATCH_SIZE)])
            accuracy = float((z.argmax(1) == y_val).float().mean())
        model.train()
        if records is not None:
            used, losses, right = zip(*taken, strict=True)
            values = torch.stack(losses).numpy()
            train_accuracy = float(torch.cat(right).float().mean())
            val_loss = float(F.cross_entropy(z, y_val))
            metrics = (float(values.mean()), train_accuracy, val_loss, accuracy)
            records.end_epoch(used, values, metrics)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            records.save(".pt", partial(torch.save, state))
        clock.end_epoch()
    clock.print_result(num_steps, accuracy)


if __name__ == "__main__":
    main()
