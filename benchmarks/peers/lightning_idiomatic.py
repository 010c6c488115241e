"""Lightning as users write it: a LightningModule with automatic optimization, and a Trainer.

Does: self.log of the training loss each step (kept every 50 steps, the default) and of validation
loss and accuracy, a DataLoader over a shuffled TensorDataset, ExponentialLR stepped every update,
CSVLogger, validation and the default checkpoint after every epoch. Does not: a progress bar,
training accuracy, a trace of every step. Timed from the start of the first training batch to the
end of `fit`, without the sanity check.
"""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers import job as jobs
from benchmarks.peers.torch_layers import inputs, network


class Classifier(pl.LightningModule):
    def __init__(self, model: str) -> None:
        super().__init__()
        self.network = network(model)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.network(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        z = self.network(x)
        self.log("val/loss", F.cross_entropy(z, y))
        self.log("val/accuracy", (z.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=jobs.LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=jobs.DECAY_RATE)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Timed(pl.Callback):
    def __init__(self) -> None:
        self.clock = jobs.Clock()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.clock.begin()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.clock.end_epoch()


def loader(job: jobs.Job, rows: jobs.Rows, shuffle: bool) -> DataLoader[Any]:
    return DataLoader(
        TensorDataset(inputs(rows.x), torch.from_numpy(rows.y)), job.batch_size, shuffle=shuffle
    )


def main() -> None:
    job = jobs.read()
    pl.seed_everything(0)
    timed = Timed()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=job.num_epochs,
        logger=CSVLogger(job.folder),
        callbacks=[timed],
        enable_progress_bar=False,
    )
    trainer.fit(
        Classifier(job.model),
        loader(job, job.train, shuffle=True),
        loader(job, job.val, shuffle=False),
    )
    timed.clock.print_result(trainer.global_step, float(trainer.callback_metrics["val/accuracy"]))


if __name__ == "__main__":
    main()
