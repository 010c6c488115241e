"""The claim: rows of text are windows of its tokens, and their labels the tokens that follow."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import runner
from runner import dispatcher
from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data import Dataset, text_stream
from runner.data.order import Chunk
from runner.data.tokenizer import Tokenizer
from runner.errors import ConfigError
from runner.spec import Live, Report
from tests.command_line import forked
from tests.rows import slow_but
from tests.training import first, prepare

VERSE = "to be, or not to be: that is the question"


def load(path: Path, *overrides: str) -> Dataset:
    data = parse(compose(["data=text", f"data.path={path}", *overrides])).data
    return data.load()  # type: ignore[union-attr]


def write(folder: Path, text: str = VERSE, name: str = "a.txt") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def decoded(data: Dataset, rows: np.ndarray) -> list[str]:
    assert data.tokenizer is not None
    return [data.tokenizer.decode(row) for row in rows]


def test_a_label_is_the_next_character(tmp_path: Path) -> None:
    """41 characters are 8 windows of 5, each with a character after it; the last two are for
    validation and the test, in the order of the text."""
    data = load(write(tmp_path), "data.context=5")
    assert decoded(data, data.train.x) == [VERSE[i : i + 5] for i in range(0, 30, 5)]
    assert decoded(data, data.train.y) == [VERSE[i : i + 5] for i in range(1, 31, 5)]
    assert decoded(data, data.test.x) == ["estio"]
    assert decoded(data, data.test.y) == ["stion"]
    assert data.classes == ("<unk>", *" ,:abehinorst")
    assert (data.num_tokens, data.positions, data.input_shape) == (14, (5,), (5,))


def test_characters_that_the_training_rows_lack_are_unknown(tmp_path: Path) -> None:
    """q and u of `question`; the first 31 characters have neither."""
    data = load(write(tmp_path), "data.context=5")
    assert decoded(data, data.val.x) == ["he <unk><unk>"]
    assert data.val.x.tolist()[0][3:] == [0, 0]


def test_windows_overlap_only_within_the_training_text(tmp_path: Path) -> None:
    data = load(write(tmp_path), "data.context=5", "data.stride=2")
    starts = range(0, 26, 2)  # all tokens of the last window are training tokens
    assert decoded(data, data.train.x) == [VERSE[i : i + 5] for i in starts]
    assert decoded(data, data.train.y) == [VERSE[i + 1 : i + 6] for i in starts]
    assert len(data.val) == len(data.test) == 1
    assert np.shares_memory(data.train.x, data.train.y)  # no copy per window


def test_bytes_are_those_of_utf_8(tmp_path: Path) -> None:
    text = "grün 模型 " * 9
    data = load(write(tmp_path, text), "data.context=4", "data.tokenizer=bytes")
    content = text.encode()
    assert data.train.x.reshape(-1).tolist() == list(content[: data.train.x.size])
    assert data.num_tokens == 256
    assert Tokenizer.of_bytes().decode(content[:4]) == "grü"


def test_a_tokenizer_of_the_library(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["[UNK]", "to", "be", "or", "not", ",", ":"])}
    model = library.Tokenizer(library.models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = library.pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "words.json"))
    path = write(tmp_path)
    data = load(path, "data.context=2", f"data.tokenizer={tmp_path / 'words.json'}")
    assert data.train.x[:3].tolist() == [[1, 2], [5, 3], [4, 1]]  # to be | , or | not to
    with pytest.raises(ConfigError, match="others need the whole text at once, got 8"):
        load(path, f"data.tokenizer={tmp_path / 'words.json'}", "data.memory_mb=8")
    assert data.classes == tuple(words)
    saved = json.loads(json.dumps(data.description()["tokenizer"]))
    assert Tokenizer.read(saved).encode("be or be").tolist() == [2, 3, 2]


def test_a_folder_s_files_are_joined_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write(tmp_path, "\ufeffabc\r\ndef\rgh", "a.txt")
    write(tmp_path, "ijklmno", "b/a.txt")
    write(tmp_path, "pq" * 30, "c.txt")
    write(tmp_path, "no text", "b/notes.md")
    data = load(tmp_path, "data.context=4")
    assert "".join(decoded(data, data.train.x[:5])) == "abc\ndef\ngh\nijklmno\np"


def test_splits_may_have_files_of_their_own(tmp_path: Path) -> None:
    train_path, val_path = write(tmp_path), write(tmp_path, "not this! or that?", "val.txt")
    keys = [f"data.val_path={val_path}", "data.val_fraction=0", "data.test_fraction=0"]
    data = load(train_path, "data.context=5", *keys)
    assert decoded(data, data.val.x) == ["not t", "his<unk> ", "or th"]
    assert (len(data.train), len(data.test)) == (8, 0)


def test_the_topics_of_the_standard_library() -> None:
    data = parse(compose(["data=python_docs"])).data.load()
    num = 1 + len(data.train) + len(data.val) + len(data.test)
    assert 460_000 < num * 64 < 500_000
    assert decoded(data, data.train.x[:1])[0].startswith('The "assert" statement')


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (VERSE, ["data.context=64"], r"has 41 tokens; data\.context=64 needs 65 for a row"),
        ("", [], r"has 0 tokens; data\.context=64 needs 65 for a row"),
        (VERSE, ["data.context=1"], r"data\.context must be >= 2, got 1"),
        (VERSE, ["data.context=5", "data.stride=6"], r"data\.stride must be <= data\.context=5"),
        (VERSE, ["data.context=5", "data.split=grouped"], "must be chronological or random"),
        (VERSE, ["data.tokenizer=words"], r"data\.tokenizer must be a file, got words"),
        ("caf\udce9", ["data.context=2"], r"is not in data\.encoding=utf-8 at byte 3"),
        (VERSE, ["data.encoding=utf-9"], r"data\.encoding must be the name of an encoding"),
    ],
)
def test_text_that_cannot_be_rows_is_refused(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(errors="surrogateescape"))
    for more in ([], ["data.memory_mb=1"]):
        with pytest.raises(ConfigError, match=message):
            load(path, *overrides, *more)


# --- training


def small(path: Path, *overrides: str) -> list[str]:
    layers = (
        "model.layers=[{layer: embedding, features: 8},{layer: position_embedding},"
        "{layer: attention, num_heads: 2, causal: true},{layer: dense, units: outputs}]"
    )
    text = ["data=text", f"data.path={path}", "data.context=8", layers, "device=cpu"]
    return [*text, "trainer.batch_size=4", "trainer.max_epochs=2", "optimizer.lr=0.01", *overrides]


@pytest.mark.parametrize("backend", slow_but(["lightning", "keras"], "lightning"))
def test_the_metrics_of_labels_at_each_step(tmp_path: Path, backend: str) -> None:
    """bits_per_token is the loss in bits and perplexity two to its power. The loss of an epoch is
    the mean of its updates' losses, weighted by their 4, 4, 4, 4 and 4 windows."""
    path = write(tmp_path, f"{VERSE} " * 5)
    names = "metrics=[bits_per_token,perplexity,accuracy]"
    overrides = small(path, names, f"backend={backend}", f"output.root={tmp_path}")
    run = runner.train(overrides, quiet=True)
    metrics, losses = run.metrics, run.trace["loss"]
    val = metrics["val/loss"]
    np.testing.assert_allclose(metrics["val/bits_per_token"], val / math.log(2), rtol=1e-12)
    np.testing.assert_allclose(metrics["val/perplexity"], np.exp(val), rtol=1e-12)
    assert "train/accuracy" not in metrics
    rows = len(run.plan.data.train)
    sizes = [min(4, rows - i) for i in range(0, rows, 4)]
    expected = np.average(losses[: len(sizes)], weights=sizes)
    np.testing.assert_allclose(metrics["train/loss"][0], expected, rtol=1e-6)  # of float32
    split = run.plan.data.val
    z = run.predict(split.x).astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    mean = -np.take_along_axis(log_p, split.y[..., None], -1).mean()
    np.testing.assert_allclose(val[-1], mean, rtol=1e-12)
    assert metrics["val/accuracy"][-1] == (z.argmax(-1) == split.y).mean()


@pytest.mark.parametrize("backend", slow_but(["lightning", "keras"], "lightning"))
def test_rows_that_overlap_are_read_during_training(tmp_path: Path, backend: str) -> None:
    """They give the bits of the same rows in memory."""
    read = prepare(small(write(tmp_path, f"{VERSE} " * 5), "data.stride=3"))
    resident = replace(read, data=replace(read.data, overlaps=False))
    assert set(read.run_spec().streamed) == set(resident.run_spec().fields) == {"x", "y"}
    losses = []
    for plan in (read, resident):
        reports: list[np.ndarray] = []

        def on_chunk(chunk: Chunk, report: Report, live: Live) -> bool:
            reports.append(report.losses)  # noqa: B023  # called within this iteration
            return True

        chunks = plan.chunks(0, None, adapt=False)
        dispatcher.load(backend).train(plan.run_spec(), first(plan), chunks, on_chunk)
        losses.append(np.concatenate(reports))
    assert len(losses[0]) == 2 * -(-len(read.data.train) // 4)
    np.testing.assert_array_equal(*losses)


@pytest.mark.slow
def test_a_prompt_is_continued(tmp_path: Path) -> None:
    """After 60 epochs, a model of causal attention knows that b is followed by e. What follows a
    prompt in the window does not affect the prediction."""
    path = write(tmp_path, f"{VERSE} " * 20)
    overrides = [o for o in small(path, "schedule=cosine") if "max_epochs" not in o]
    overrides += ["trainer.max_epochs=60", f"output.root={tmp_path}"]
    run = runner.train(overrides, quiet=True)
    prompt = run.tokenizer.encode("not to b")
    assert run.tokenizer.decode(run.predict(prompt[None])[0, -1:].argmax(-1)) == "e"
    changed = np.where(np.arange(8) < 5, prompt, 0)
    np.testing.assert_array_equal(
        run.predict(changed[None])[0, :5], run.predict(prompt[None])[0, :5]
    )


@pytest.mark.parametrize("backend", slow_but(["lightning", "keras"], "lightning"))
def test_an_export_predicts_from_token_ids(tmp_path: Path, backend: str) -> None:
    path = write(tmp_path, f"{VERSE} " * 5)
    overrides = small(path, f"backend={backend}", f"output.root={tmp_path}")
    run = runner.train(overrides, quiet=True)
    x = run.plan.data.val.x
    expected, model = run.predict(x), run.model()
    if backend == "keras":
        found = model.predict(x, verbose=0)
    else:
        import torch

        with torch.no_grad():
            found = model(torch.from_numpy(np.array(x))).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)  # stock layers sum in another order


def test_a_new_text_is_measured_with_the_run_s_tokens(tmp_path: Path) -> None:
    """41 characters are five windows of 8, with a character after each: the mean loss of the first
    40 characters but one. The run's own text has its own test rows."""
    path = write(tmp_path, f"{VERSE} " * 5)
    run = runner.train(small(path, f"output.root={tmp_path}"), quiet=True)
    new = write(tmp_path, "be that question: not to be, or Whatever is", "new.txt")
    values = run.evaluate(new)
    ids = run.tokenizer.encode(new.read_text())
    assert ids.tolist().count(0) == 2  # W and v
    x, y = ids[:40].reshape(5, 8), ids[1:41].reshape(5, 8)
    z = run.predict(x).astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    mean = -np.take_along_axis(log_p, y[..., None].astype(int), -1).mean()
    assert values["test/loss"] == pytest.approx(mean, rel=1e-9)
    assert run.evaluate(path) == run.evaluate()


@pytest.mark.slow
def test_predictions_of_labels_at_each_step_are_an_npz(tmp_path: Path) -> None:
    path = write(tmp_path, f"{VERSE} " * 5)
    run = runner.train(small(path, f"output.root={tmp_path}"), quiet=True)
    data = run.plan.data.train
    np.savez(tmp_path / "a.npz", x=data.x[:9], y=data.y[:9])
    arrays = ["data=npz", f"data.path={tmp_path / 'a.npz'}", "trainer.monitor=train/loss"]
    own = [o for o in small(path, f"output.root={tmp_path / 'b'}") if not o.startswith("data")]
    run = runner.train([*own, *arrays], quiet=True)
    command = ("task=predict", f"run={run.folder}", f"data.path={tmp_path / 'a.npz'}")
    (done,) = forked(tmp_path, command)
    assert (done.status, done.err) == (0, "")
    found = np.load(run.folder / "predictions.npz")
    assert found["outputs"].shape == (9, 8, len(run.data["classes"]))
    labels = np.array(run.data["classes"])[found["outputs"].argmax(-1)]
    np.testing.assert_array_equal(found["label"], labels)


@pytest.mark.parametrize(
    "more",
    [
        ["data.split=random"],
        ["data.tokenizer=bytes", "data.stride=3", "trainer.precision=exact"],
        ["data.mask_rate=0.2"],
        ["data.val_path=val.txt", "data.val_fraction=0"],
    ],
    ids=["characters", "bytes", "masked", "own"],
)
def test_windows_that_are_read_while_training_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    """Compare bits and order with a text in memory. Blocks of 7 characters divide line breaks."""
    monkeypatch.setattr(text_stream, "_CHARACTERS", 7)
    monkeypatch.setattr(text_stream, "_WINDOWS", 3)
    monkeypatch.chdir(tmp_path)
    rng, letters = np.random.default_rng(0), np.array([*"abcdefghij \u00e4\u4e16"])
    for name in ("text/1.txt", "text/a/2.txt", "val.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        lines = ["".join(rng.choice(letters, 20)) for _ in range(15)]
        Path(name).write_bytes("\r\n".join([*lines, name]).encode("utf-8-sig"))
    common = ["data=text", "data.path=text", "data.context=8", "model=gpt", "trainer.batch_size=2"]
    common += ["trainer.max_epochs=2", *more]
    resident, read = prepare(common), prepare([*common, "data.memory_mb=1"])
    assert read.data.tokenizer == resident.data.tokenizer
    assert isinstance(read.data.train.x, text_stream.TokenRows)
    whole = resident.run_spec().fields
    pairs = zip(*(p.chunks(0, None, adapt=False) for p in (resident, read)), strict=True)
    for a, b in pairs:
        for name in ("x", "y"):
            expected = a.fields[name] if a.fields else whole[name][a.rows]
            np.testing.assert_array_equal(b.fields[name], expected)
    for split in ("val", "test"):
        batches = [p.batches(getattr(p.data, split)) for p in (resident, read)]
        for a, b in zip(*batches, strict=True):
            np.testing.assert_array_equal(a["x"], b["x"])
            np.testing.assert_array_equal(a["y"], b["y"])
    descriptions = [p.data.description() for p in (resident, read)]
    for key in ("x_range", "rows", "tokenizer", "num_tokens"):
        assert descriptions[0][key] == descriptions[1][key]
