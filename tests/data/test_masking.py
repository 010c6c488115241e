"""Masked language modelling: which tokens are hidden, the loss at their positions only, the same
on both backends, and a classification that begins with what was learned."""

from pathlib import Path

import numpy as np
import pytest

from runner.cli.compose import compose
from runner.components.losses import MaskedTokens
from runner.components.metrics import accuracy, bits_per_token, overlaps, top_k_accuracy
from runner.config.schema import parse
from runner.data import load
from runner.data.masking import NO_LABEL, masked
from runner.data.tokenizer import MASKED, PADDING, Tokenizer
from runner.plan import plan
from runner.run.run_folder import read_columns, read_json
from tests.command_line import forked
from tests.parity.test_parity import assert_parity, in_float64
from tests.rows import of_lengths, slow_but
from tests.training import difference, prepare, train

TEXT = "the cat sat on the mat. the dog sat on the log. a cat and a dog met on a mat. " * 12
LAYERS = (
    "model.layers=[{layer: embedding, features: 8},{layer: position_embedding},"
    "{layer: residual, layers: [{layer: attention, num_heads: 2}]},{layer: layer_norm},"
    "{layer: dense, units: outputs}]"
)


def keys(folder: Path, *more: str) -> list[str]:
    (folder / "a.txt").write_text(TEXT)
    path = f"data.path={folder / 'a.txt'}"
    return ["data=text", path, "data.context=16", "data.mask_rate=0.2", LAYERS, *more]


def test_chosen_tokens_are_hidden_as_bert_hides_them() -> None:
    """15 % of each row, rounded; of 20,000 rows' chosen tokens 80, 10 and 10 % within five standard
    deviations; random tokens are uniform over all but padding and mask (chi-squared)."""
    tokens = np.random.default_rng(0).integers(1, 19, (20_000, 20)).astype(np.int32)
    x, y = masked(tokens, 0.15, 20, np.arange(len(tokens)), seed=3, name="1")
    chosen = y != NO_LABEL
    assert (chosen.sum(axis=1) == 3).all()
    assert np.array_equal(y[chosen], tokens[chosen])
    assert np.array_equal(x[~chosen], tokens[~chosen])
    num = chosen.sum()
    is_mask, is_same = x[chosen] == 19, x[chosen] == tokens[chosen]
    is_other = ~is_mask & ~is_same
    # a random token is the same by chance once in 18 times
    shares = {"mask": 0.8, "same": 0.1 + 0.1 / 18, "other": 0.1 - 0.1 / 18}
    for found, share in zip((is_mask, is_same, is_other), shares.values(), strict=True):
        assert abs(found.mean() - share) < 5 * np.sqrt(share * (1 - share) / num)
    counts = np.bincount(x[chosen][is_other], minlength=20)
    assert counts[[0, 19]].tolist() == [0, 0]
    expected = counts.sum() / 18
    # mean 17 and standard deviation sqrt(2 * 17) of chi-squared: less than five above
    assert np.sum((counts[1:19] - expected) ** 2) / expected < 17 + 5 * np.sqrt(34)
    positions = chosen.mean(axis=0)  # each position is chosen as often
    assert np.abs(positions - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / len(tokens))


def test_hidden_tokens_depend_on_seed_epoch_and_row_alone() -> None:
    tokens = np.random.default_rng(0).integers(1, 9, (40, 12)).astype(np.int32)
    rows = np.arange(40)
    x, y = masked(tokens, 0.25, 10, rows, 0, "0")
    some = np.array([7, 3, 31])
    for whole, part in zip((x, y), masked(tokens[some], 0.25, 10, some, 0, "0"), strict=True):
        assert np.array_equal(whole[some], part)
    for seed, name in ((1, "0"), (0, "1")):
        other = masked(tokens, 0.25, 10, rows, seed, name)[1]
        # as often as chance has it: 1/4 of the positions
        assert abs(((other >= 0) & (y >= 0)).mean() / (y >= 0).mean() - 0.25) < 0.15


def test_loss_and_metrics_are_those_of_the_labelled_positions() -> None:
    """The same numbers as of these positions alone."""
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(5, 6, 4)), rng.integers(0, 4, (5, 6))
    y[:, [0, 3, 4, 5]] = NO_LABEL
    kept_z, kept_y = z[:, [1, 2]], y[:, [1, 2]]
    loss = MaskedTokens(name="masked_tokens")
    log_p = kept_z - np.log(np.exp(kept_z).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_p, kept_y[..., None], -1)[..., 0].mean(axis=1)
    np.testing.assert_allclose(loss.rows(z, y), expected, rtol=1e-14)
    for metric in (accuracy, bits_per_token, top_k_accuracy(2)):
        np.testing.assert_allclose(metric(z, y), metric(kept_z, kept_y), rtol=1e-14)
    assert np.array_equal(overlaps(z, y), overlaps(kept_z, kept_y))


def test_splits_have_labels_where_tokens_are_hidden(tmp_path: Path) -> None:
    """Tokens of training rows are hidden during the training; padding and mask are tokens."""
    data = load(parse(compose(keys(tmp_path))).data)
    assert (data.classes[0], data.classes[-1]) == (PADDING, MASKED)
    assert data.num_tokens == len(data.classes)
    assert np.array_equal(data.train.x, data.train.y)
    assert (data.train.x > 0).all()
    for split in (data.val, data.test):
        assert ((split.y >= 0).sum(axis=1) == 3).all()
        assert (split.x == data.num_tokens - 1).any()
    tokenizer = data.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode("a cat")
    assert tokenizer.decode(ids) == "a cat"
    assert tokenizer.decode([*ids, data.num_tokens - 1]) == f"a cat{MASKED}"
    assert Tokenizer.read(tokenizer.saved()) == tokenizer


SMALL = "model.layers=[{layer: embedding, features: 8},{layer: dense, units: outputs}]"


@pytest.mark.parametrize(("model", "num_updates"), of_lengths([SMALL, LAYERS, "model=bert"], 8))
def test_both_backends_train_alike_in_float64(model: str, num_updates: int, tmp_path: Path) -> None:
    data = keys(tmp_path)[:-1]
    assert_parity([*data, model, "data.stride=4", *in_float64(num_updates)])


@pytest.mark.parametrize("num", [1, 5])
def test_updates_have_other_hidden_tokens_in_each_epoch(tmp_path: Path, num: int) -> None:
    """The fields that the chunks bring are those of `masked`, however many updates one has."""
    prepared = prepare(keys(tmp_path, "trainer.max_epochs=2", f"trainer.steps_per_call={num}"))
    train_rows, per_epoch = prepared.data.train, prepared.order.epochs.length
    for chunk in prepared.chunks(0, None, adapt=False):
        epoch = chunk.first_step // per_epoch
        tokens = np.ascontiguousarray(train_rows.x[chunk.rows])
        arguments = (0.2, prepared.data.num_tokens, chunk.rows, prepared.config.seed)
        x, y = masked(tokens, *arguments, f"{epoch}")
        assert np.array_equal(chunk.fields["x"], x)
        assert np.array_equal(chunk.fields["y"], y)


@pytest.mark.slow
def test_a_run_in_two_parts_is_evaluated_and_tuned(tmp_path: Path, backend: str) -> None:
    """A part and its rest have the bits of the whole; a classification of chapters begins with its
    weights and its tokens, and only the head is new."""
    line = (
        *keys(tmp_path, "device=cpu", "trainer.max_epochs=2", f"backend={backend}"),
        *("trainer.checkpoint_every=1steps", "trainer.keep_checkpoints=null"),
    )
    whole, part = forked(tmp_path, line, (*line, "trainer.max_steps=2"))
    assert [(done.status, done.err) for done in (whole, part)] == [(0, "")] * 2
    encoder = LAYERS.replace("{layer: dense", "{layer: global_average_pool},{layer: dense")
    tuned = (
        *(
            "data=python_docs",
            "data.chapters=true",
            "data.split=random",
            "data.context=16",
            encoder,
        ),
        *("trainer.max_steps=2", "trainer.max_epochs=null", "device=cpu", f"backend={backend}"),
        *(f"data.tokenizer={whole.folder}", f"model.weights={whole.folder}", "model.strict=false"),
    )
    each = forked(
        tmp_path,
        (f"resume={part.folder}", "checkpoint=1", "trainer.max_steps=null"),
        (f"run={whole.folder}", "task=evaluate"),
        (f"run={whole.folder}", "task=evaluate", f"data.path={Path(__file__)}"),
        tuned,
    )
    assert [(done.status, done.err) for done in each] == [(0, "")] * 4
    hashes = [read_json(tmp_path / done.folder / "result.json") for done in (whole, part)]
    assert hashes[0]["weights_sha256"] == hashes[1]["weights_sha256"]
    for name in ("test.json", "evaluation.json"):
        found = read_json(tmp_path / whole.folder / name)
        bits = found["test/loss"] / np.log(2)
        assert found["test/bits_per_token"] == pytest.approx(bits, rel=1e-12)
    assert "tensors loaded\nweights  of another shape: dense_0/bias" in each[-1].out
    columns = read_columns(tmp_path / each[-1].folder / "metrics.csv")
    assert np.isfinite(columns["val/accuracy"]).all()


def test_auto_and_cross_entropy_are_the_loss_of_hidden_tokens(tmp_path: Path) -> None:
    for more in ([], ["loss=cross_entropy"]):
        assert plan(parse(compose(keys(tmp_path, *more)))).loss == MaskedTokens(
            name="masked_tokens"
        )


@pytest.mark.parametrize("other", slow_but(["lightning", "keras"], "lightning"))
def test_exact_mode_has_the_same_bits_and_the_loss_of_float64(other: str, tmp_path: Path) -> None:
    """Micro-batches, and a short last batch. The first loss, before any update, is that of float64
    within the 2^-24 of each value of exact mode, times some dozen operations."""
    settings = keys(tmp_path, "trainer.max_steps=6", "trainer.accumulate_grad_batches=2")
    settings += ["trainer.batch_size=5"]
    a, b = (train(name, [*settings, "trainer.precision=exact"]) for name in ("witness", other))
    assert np.array_equal(a.losses, b.losses)
    assert difference(a.state.weights, b.state.weights) == 0
    plain = train("lightning", [*settings, "trainer.precision=float64"])
    assert a.losses[0] == pytest.approx(plain.losses[0], rel=1e-5)
    assert np.abs(a.losses - plain.losses).max() < 1e-3
