"""The claim: texts of different lengths become rows of token ids of one length, by the vocabulary
of the training rows, in training, evaluation and prediction."""

import csv
import json
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from sklearn.feature_extraction.text import CountVectorizer

import runner
from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data import Dataset, text_class_stream
from runner.data.tokenizer import Tokenizer
from runner.errors import ConfigError
from tests.command_line import BACKENDS, Running, forked
from tests.exact.common import assert_same_bits
from tests.rows import slow_but
from tests.training import differences, prepare, train

ALL_TRAIN = ("data.val_fraction=0", "data.test_fraction=0")
SMALL = (
    "model=text_classifier",
    "trainer.batch_size=8",
    "trainer.max_epochs=6",
    "optimizer.lr=0.05",
    "device=cpu",
)
SHORT = (
    "model.layers=[{layer: embedding, features: 8},{layer: global_average_pool},"
    "{layer: dense, units: outputs}]"
)


def load(path: Path, *overrides: str) -> Dataset:
    data = parse(compose(["data=text_classes", f"data.path={path}", *overrides])).data
    return data.load()


def folder(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def table(path: Path, header: list[str], rows: list[tuple[str, ...]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def reviews(num: int = 60, seed: int = 0) -> list[tuple[str, str]]:
    """Sentences of 2 to 9 words; one word, at any place, says the label."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(num):
        words = [str(word) for word in rng.choice(["a", "film", "of", "the", "town"], 1 + i % 8)]
        label = ("bad", "good")[int(rng.integers(2))]
        words.insert(int(rng.integers(len(words) + 1)), {"bad": "dull", "good": "great"}[label])
        rows.append((" ".join(words), label))
    return rows


def test_rows_are_padded_at_the_end_to_the_longest(tmp_path: Path) -> None:
    """b is the most frequent word, then a; ! and c once each, in sorted order."""
    path = folder(tmp_path / "t", {"x/1.txt": "B a b!", "x/2.txt": "b a", "y/1.txt": "c\n"})
    data = load(path, *ALL_TRAIN)
    assert data.tokenizer is not None
    assert data.tokenizer.vocabulary == ("<pad>", "<unk>", "b", "a", "!", "c")
    rows = dict(zip(map(tuple, data.train.x.tolist()), data.train.y.tolist(), strict=True))
    assert rows == {(2, 3, 2, 4): 0, (2, 3, 0, 0): 0, (5, 0, 0, 0): 1}
    assert (data.classes, data.num_tokens, data.positions) == (("x", "y"), 6, ())
    assert data.train.x.dtype == np.int32


@pytest.mark.parametrize(("most", "kept"), [(20_000, None), (3, 3)])
def test_the_vocabulary_is_that_of_scikit_learn(tmp_path: Path, most: int, kept: int) -> None:
    """CountVectorizer with the same pattern of words, fitted on the training rows alone."""
    texts = ["It's a café, a _bar_ 2!", "The café? THE bar.", "nothing else here", "it 2 a"] * 3
    rows = [(f"{text} {i % 5}", "ab"[i % 2]) for i, text in enumerate(texts)]
    path = table(tmp_path / "a.csv", ["text", "label"], rows)
    data = load(path, f"data.max_vocabulary={most}", "data.val_fraction=0.25")
    assert data.tokenizer is not None
    whole = load(path, "data.context=20", *ALL_TRAIN)
    assert whole.tokenizer is not None
    (train_texts,) = [[data.tokenizer.decode(row) for row in data.train.x]]
    if kept is None:
        oracle = CountVectorizer(token_pattern=r"(?u)\w+|[^\w\s]").fit(train_texts)
        assert {*data.tokenizer.vocabulary[2:]} == {*oracle.vocabulary_}
    else:
        assert len(data.tokenizer) == 2 + kept
        assert (data.train.x == 1).any()  # <unk>


def test_words_that_the_training_rows_lack_are_unknown(tmp_path: Path) -> None:
    train_path = table(tmp_path / "a.csv", ["t", "l"], [("one two", "x"), ("two three", "y")])
    val_path = table(tmp_path / "b.csv", ["l", "t"], [("y", "two four"), ("x", "one two three !")])
    keys = (f"data.val_path={val_path}", "data.val_fraction=0", "data.test_fraction=0")
    data = load(train_path, *keys)
    assert data.val.x.tolist() == [[2, 1], [3, 2]]  # two <unk>; one two, without its end
    assert data.val.y.tolist() == [1, 0]
    assert data.warnings == (
        "1 of 4 rows lost its end: rows have 2 tokens, like the longest training row, and the "
        "longest text has 4",
    )


def test_characters_bytes_and_tokenizers_have_ids_from_1_on(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["[UNK]", "to", "be"])}
    model = library.Tokenizer(library.models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = library.pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "words.json"))
    path = table(tmp_path / "a.csv", ["t", "l"], [("to be", "x"), ("be é", "y")])
    expected = {
        "characters": [[6, 5, 2, 3, 4], [3, 4, 2, 7, 0]],  # " ", b, e, o, t, é: from 2 on
        "bytes": [[117, 112, 33, 99, 102], [99, 102, 33, 196, 170]],
        tmp_path / "words.json": [[2, 3], [3, 1]],
    }
    for kind, rows in expected.items():
        data = load(path, f"data.tokenizer={kind}", "data.split=chronological", *ALL_TRAIN)
        assert data.train.x.tolist() == rows, kind
        assert data.tokenizer is not None
        assert data.num_tokens == len(data.tokenizer.vocabulary) > max(map(max, rows))
        saved = json.loads(json.dumps(data.description()["tokenizer"]))
        again = Tokenizer.read(saved)
        assert again.encode("be").tolist() == data.tokenizer.encode("be").tolist()
        assert again.decode([*again.encode("to be"), 0, 0]) == "to be"


def test_a_pair_keeps_half_of_each_text(tmp_path: Path) -> None:
    """The token of a word is its number; the last id is the token between two texts."""
    rows = [("a b c d e f", "g", "x"), ("a", "b c d e f g", "y"), ("a b c d", "e f g", "x")]
    path = table(tmp_path / "a.csv", ["first", "second", "label"], rows)
    keys = ("data.column=[first,second]", "data.split=chronological", *ALL_TRAIN)
    data = load(path, *keys)
    assert data.tokenizer is not None
    assert data.input_shape == (8,)
    assert data.tokenizer.decode(data.train.x[1]) == "a <sep> b c d e f g"
    data = load(path, *keys, "data.context=5")
    found = [data.tokenizer.decode(row) for row in data.train.x]
    assert found == ["a b c <sep> g", "a <sep> b c d", "a b <sep> e f"]


def test_records_of_a_file_are_rows(tmp_path: Path) -> None:
    """Empty records, as at the end of a file of fortunes, are no rows."""
    files = {"x/a": "one\n%\ntwo\nlines\n%\n%\n\n%\n", "y/b": "%\n100 %\n%\nfour"}
    path = folder(tmp_path / "t", files)
    data = load(path, "data.record_separator=%", "data.split=chronological", *ALL_TRAIN)
    assert data.tokenizer is not None
    found = [data.tokenizer.decode(row) for row in data.train.x]
    assert found == ["one", "two lines", "100 %", "four"]
    assert data.train.y.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "more",
    [["data.record_separator=%"], ["data.tokenizer=bytes", "data.context=9", "data.split=grouped"]],
    ids=["records", "bytes"],
)
def test_rows_that_are_read_while_training_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    """Compare bits and order with texts in memory; blocks have three files."""
    monkeypatch.setattr(text_class_stream, "_MOST_FILES", 3)
    files: dict[str, list[str]] = {}
    for i, (text, label) in enumerate(reviews(40)):
        files.setdefault(f"{label}/{i // 3}.txt", []).append(text)
    texts = {name: "\n%\n".join(rows) for name, rows in files.items()}
    path = folder(tmp_path / "t", texts)
    rows = [(name, Path(name).parent.name, str(len(text))) for name, text in texts.items()]
    listing = f"data.table={table(tmp_path / 't.csv', ['path', 'label', 'group'], rows)}"
    common = ["data=text_classes", f"data.path={path}", "model=text_classifier", *more]
    common += ["trainer.max_epochs=2", "trainer.batch_size=4", listing]
    resident, read = prepare(common), prepare([*common, "data.memory_mb=1"])
    assert isinstance(read.data.train.x, text_class_stream.TextRows)
    whole = resident.run_spec().fields["x"]
    pairs = zip(*(p.chunks(0, None, adapt=False) for p in (resident, read)), strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(b.fields["x"], whole[a.rows])
        assert b.fields["x"].dtype == whole.dtype
    for split in ("train", "val", "test"):
        a, b = (getattr(p.data, split) for p in (resident, read))
        np.testing.assert_array_equal(a.y, b.y)
        np.testing.assert_array_equal(a.x, b.x[:])
    descriptions = [p.data.description() for p in (resident, read)]
    for key in ("x_range", "rows", "tokenizer", "num_tokens", "classes"):
        assert descriptions[0][key] == descriptions[1][key]
    assert resident.data.warnings == read.data.warnings


def test_splits_are_folders_or_have_paths_of_their_own(tmp_path: Path) -> None:
    files = {f"{split}/{c}/a.txt": f"{split} {c}" for split in ("train", "val") for c in "xy"}
    path = folder(tmp_path / "t", files)
    data = load(path, "data.test_fraction=0")
    assert (len(data.train), len(data.val), len(data.test)) == (2, 2, 0)
    keys = (f"data.test_path={path / 'val'}", "data.test_fraction=0", "data.val_fraction=0")
    other = load(path / "train", *keys)
    np.testing.assert_array_equal(other.test.x, data.val.x)
    np.testing.assert_array_equal(other.test.y, [0, 1])


def test_parquet_and_groups(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(20)]
    columns = {"id": [i // 2 for i in range(20)], "text": texts, "label": ["a", "b"] * 10}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    keys = ("data.split=grouped", "data.group=id", "data.val_fraction=0.5", "data.test_fraction=0")
    data = load(tmp_path / "a.parquet", *keys)
    assert data.tokenizer is not None
    assert len(data.val) == 10
    numbers = [int(data.tokenizer.decode(row[1:])) for row in data.train.x]
    assert sorted(numbers) == sorted(i ^ 1 for i in numbers)  # both rows of a group


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        ([("a", "x"), (" ", "y")], [], r"a\.csv: line 3, column \"?text\"? has no text"),
        ([("a", "x"), ("b", "")], [], r"a\.csv: line 3, column label is empty"),
        ([("a", "x"), ("b", "x")], [], "label has a single class, x"),
        ([("a", "x"), ("b", "y")], ["data.column=tekst"], "got tekst; did you mean text"),
        ([("a", "x"), ("b", "y")], ["data.column=label"], "another column than data.target"),
        ([("a", "x"), ("b", "y")], ["data.record_separator=%"], "must be null for a table"),
        ([("a", "x"), ("b", "y")], ["data.column=[text,label,c]"], "one column, or two for pairs"),
        ([("1", "x"), ("2", "y")], ["data.tokenizer=word"], r"data\.tokenizer must be a file"),
        ([("a", "x"), ("b", "y")], ["data.memory_mb=8"], "unless data.path is a folder of texts"),
    ],
)
def test_tables_that_cannot_be_rows_are_refused(
    tmp_path: Path, rows: list[tuple[str, ...]], overrides: list[str], message: str
) -> None:
    path = table(tmp_path / "a.csv", ["text", "label"], rows)
    with pytest.raises(ConfigError, match=message):
        load(path, *ALL_TRAIN, *overrides)


@pytest.mark.parametrize(
    ("files", "overrides", "message"),
    [
        ({"x/a": "one", "y/b": " \n"}, [], r"y/b has no text; remove it"),
        ({"x/a": "one"}, [], "has text files of a single class, x"),
        ({"x/a": "one", "y/b": "two"}, ["data.target=label"], "data.target must be null unless"),
        ({"x/a": "one", "b.txt": "two"}, [], "lies beside the class folders"),
    ],
)
def test_folders_that_cannot_be_rows_are_refused(
    tmp_path: Path, files: dict[str, str], overrides: list[str], message: str
) -> None:
    path = folder(tmp_path / "t", files)
    for more in ([], ["data.memory_mb=1"]):
        with pytest.raises(ConfigError, match=message):
            load(path, *ALL_TRAIN, *overrides, *more)


# --- training


@pytest.mark.slow
def test_the_backends_agree_and_exact_mode_has_the_same_bits(tmp_path: Path) -> None:
    """Float64 is within 1e-12, as in tests/parity, since sums are in another order."""
    path = table(tmp_path / "a.csv", ["text", "label"], reviews())
    keys = ["data=text_classes", f"data.path={path}", "device=cpu", "trainer.batch_size=8"]
    float64 = [*keys, "model=text_classifier", "trainer.precision=float64"]
    double = [train(backend, [*float64, "trainer.max_steps=30"]) for backend in BACKENDS]
    assert max(differences(*double).values()) < 1e-12
    exact = [*keys, SHORT, "trainer.precision=exact", "trainer.max_steps=5"]
    witness = train("witness", exact)
    for backend in BACKENDS:
        assert_same_bits(train(backend, exact), witness)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_new_texts_are_predicted_and_measured(tmp_path: Path, backend: str) -> None:
    """Texts come in a folder, as records, in Python and in a table, with words that the run does
    not know: a film of the same words has the same outputs."""
    files = {f"{label}/{i:02}.txt": text for i, (text, label) in enumerate(reviews())}
    folder(tmp_path / "t", files)
    keys = ("data=text_classes", "data.path=t", f"backend={backend}", *SMALL)
    (done,) = forked(tmp_path, (*keys, "data.split=stratified"))
    assert (done.status, done.err) == (0, "")
    new = {"good/1.txt": "great town zzz", "bad/1.txt": "the dull film", "bad/2.txt": "dull yyy"}
    folder(tmp_path / "new", new)
    (tmp_path / "one.csv").write_text("text\ngreat film\n")
    run = f"run={done.folder}"
    results = [
        forked(tmp_path, command)[0]
        for command in (
            ("task=evaluate", run),
            ("task=evaluate", run, "data.path=t"),
            ("task=evaluate", run, "data.path=new"),
            ("task=predict", run, "data.path=new"),
            ("task=predict", run, "data.path=new/good/1.txt"),
            ("task=predict", run, "data.path=one.csv"),
        )
    ]
    assert [(each.status, each.err) for each in results] == [(0, "")] * 6
    assert "warning: one.csv is one text, not a table, because" in results[5].out
    assert "(12 rows, " in results[0].out
    assert results[1].out.splitlines()[-2:] == results[0].out.splitlines()[-2:]
    assert "test/accuracy 1.0000  (3 new rows" in results[2].out
    with (tmp_path / done.folder / "predictions.csv").open(newline="") as file:
        found = {row["path"]: row for row in csv.DictReader(file)}
    assert {name: row["label"] for name, row in found.items()} == {
        name: name.partition("/")[0] for name in new
    }
    outputs = runner.load_run(tmp_path / done.folder).predict(["dull qqq", "The DULL film"])
    expected = [
        [float(found[name][f"output_{i}"]) for i in range(2)] for name in ("bad/2.txt", "bad/1.txt")
    ]
    np.testing.assert_allclose(outputs, expected, atol=1e-6)  # of float32, in other batches


@pytest.mark.slow
@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_a_killed_run_resumes_to_the_bits_of_a_whole_one(tmp_path: Path, backend: str) -> None:
    """Within an epoch too: it makes the vocabulary and the rows of the texts again."""
    folder(tmp_path / "t", {f"{label}/{i}.txt": text for i, (text, label) in enumerate(reviews())})
    small = [key for key in SMALL if not key.startswith("trainer.max_epochs")]
    keys = ("data=text_classes", "data.path=t", f"backend={backend}", *small)
    keys += ("trainer.max_epochs=100000",)  # both end by the steps, however late the kill is
    with Running(
        tmp_path, *keys, "trainer.checkpoint_every=3steps", "output.root=killed"
    ) as running:
        running.until(lambda: any(tmp_path.glob("killed/runs/*/checkpoints/last")))
        assert running.end(signal.SIGKILL).status == 128 + signal.SIGKILL
    (killed,) = tmp_path.glob("killed/runs/*")
    num_updates = (killed / "trace.csv").read_bytes().count(b"\n")
    end = (f"trainer.max_steps={num_updates + 10}",)
    whole, rest = forked(tmp_path, (*keys, *end), (f"resume={killed}", *end))
    assert [(each.status, each.err) for each in (whole, rest)] == [(0, "")] * 2
    hashes = [
        json.loads((path / "result.json").read_text())["weights_sha256"]
        for path in (killed, tmp_path / whole.folder)
    ]
    assert hashes[0] == hashes[1]


def test_pairs_in_a_table_are_predicted(tmp_path: Path) -> None:
    """The label is whether the second text repeats the first. The columns of the new table are in
    another order, and it has another one."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(80):
        a, b = (str(word) for word in rng.choice(["sun", "moon"], 2))
        rows.append((a, b, "same" if a == b else "other"))
    table(tmp_path / "a.csv", ["first", "second", "label"], rows)
    layers = (
        "model.layers=[{layer: embedding, features: 8},{layer: flatten},{layer: dense, units: 16},"
        "{layer: activation, function: tanh},{layer: dense, units: outputs}]"
    )
    keys = ["data=text_classes", f"data.path={tmp_path / 'a.csv'}", "data.column=[first,second]"]
    rest = ["trainer.batch_size=8", "trainer.max_epochs=20", "optimizer.lr=0.05", "device=cpu"]
    rest += [layers, f"output.root={tmp_path}"]
    run = runner.train([*keys, *rest], quiet=True)
    table(
        tmp_path / "new.csv", ["id", "second", "first"], [("1", "sun", "sun"), ("2", "sun", "moon")]
    )
    (done,) = forked(
        tmp_path, ("task=predict", f"run={run.folder}", f"data.path={tmp_path / 'new.csv'}")
    )
    assert (done.status, done.err) == (0, "")
    with (run.folder / "predictions.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["same", "other"]
    pairs = run.predict([("sun", "sun"), ("moon", "sun")])
    frame = run.predict({"second": ["sun", "sun"], "first": ["sun", "moon"]})
    np.testing.assert_array_equal(pairs, frame)
    assert run.evaluate(tmp_path / "a.csv") == run.evaluate()
    with pytest.raises(ConfigError, match="each row must be a pair of texts"):
        run.predict(["sun"])


def test_describe_says_how_rows_are_made(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", ["text", "label"], reviews())
    command = ("task=describe", "data=text_classes", f"data.path={path}", "data.tokenizer=words")
    (done,) = forked(tmp_path, command)
    assert (done.status, done.err) == (0, "")
    line = "text     words: 9 different token ids, rows of 9, padded with 0"
    assert line in done.out.splitlines()
