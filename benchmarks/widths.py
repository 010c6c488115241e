"""Find the best learning rate at several widths, with and without `optimizer.width_base`.

    python -m benchmarks.widths                                          # two minutes, one thread
    python -m benchmarks.widths --model transformer --widths 32 64 128
    python -m benchmarks.widths --backend keras --optimizer sgd --powers -6 4

Each run is a hundred updates of batch 32 on digits, at a constant rate. A cell has the mean loss of
the last 40 updates, and an asterisk at the best rate of its row. With the scaling (muP), the best
rate should be the same at every width; the narrowest is the base width.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from benchmarks.report import layout
from runner import dispatcher
from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data.order import Chunk
from runner.plan import plan
from runner.spec import Live, Report, first_state

UPDATES, COUNTED = 100, 40
_HEAD = 8  # features of a head of attention, at every width


def _mlp(width: int) -> str:
    hidden = f"{{layer: dense, units: {width}}},{{layer: activation, function: relu}},"
    return f"{hidden}{hidden}{{layer: dense, units: outputs}}"


def _transformer(width: int) -> str:
    """The rows of an image are the steps of a sequence."""
    block = (
        "{layer: residual, layers: [{layer: layer_norm},"
        f"{{layer: attention, num_heads: {width // _HEAD}}}]}},"
        f"{{layer: residual, layers: [{{layer: layer_norm}},{{layer: dense, units: {2 * width}}},"
        f"{{layer: activation, function: gelu}},{{layer: dense, units: {width}}}]}},"
    )
    return (
        f"{{layer: reshape, shape: [8, 8]}},{{layer: dense, units: {width}}},"
        f"{{layer: position_embedding}},{2 * block}{{layer: layer_norm}},"
        "{layer: global_average_pool},{layer: dense, units: outputs}"
    )


MODELS = {"mlp": _mlp, "transformer": _transformer}


def main() -> int:
    arguments = _parser().parse_args()
    dispatcher.load(arguments.backend).can_use_threads(1)
    low, high = arguments.powers
    rates = [2.0**power for power in range(low, high + 1)]
    base = min(arguments.widths)
    header = ("width_base", "width", *(f"2^{power}" for power in range(low, high + 1)))
    rows: list[Sequence[str]] = [header]
    for width_base in ("null", str(base)):
        for width in arguments.widths:
            given = [
                f"backend={arguments.backend}",
                f"optimizer={arguments.optimizer}",
                f"optimizer.width_base={width_base}",
                f"model.layers=[{MODELS[arguments.model](width)}]",
            ]
            losses = [_loss([*given, f"optimizer.lr={rate}"]) for rate in rates]
            best = int(np.argmin(losses))
            cells = [f"{loss:.3f}{'*' * (i == best)}" for i, loss in enumerate(losses)]
            rows.append((width_base, str(width), *cells))
            print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    print(layout(rows, arguments.markdown))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.widths", description="The best rate at several widths."
    )
    parser.add_argument("--backend", choices=["lightning", "keras"], default="lightning")
    parser.add_argument("--model", choices=[*MODELS], default="mlp")
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument(
        "--powers", nargs=2, type=int, default=[-11, -4], help="of 2: the lowest and highest rate"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser


def _loss(overrides: Sequence[str]) -> float:
    """Return the mean loss of a run's last updates; infinite if it diverges."""
    given = [
        *overrides,
        "device=cpu",
        "trainer.threads=1",
        f"trainer.max_steps={UPDATES}",
    ]
    prepared = plan(parse(compose(given)))
    config = prepared.config
    start = first_state(prepared.network, config.optimizer, prepared.model.dtype, config.seed)
    losses: list[np.ndarray] = []

    def on_chunk(chunk: Chunk, report: Report, live: Live) -> bool:
        losses.append(report.losses)
        return True

    chunks = prepared.chunks(0, prepared.checkpoints(), adapt=False)
    dispatcher.load(config.backend).train(prepared.run_spec(), start, chunks, on_chunk)
    loss = float(np.concatenate(losses)[-COUNTED:].mean())
    return loss if np.isfinite(loss) else np.inf


if __name__ == "__main__":
    sys.exit(main())
