"""Token ids of text, ids of categories and numbers in one row: branches of a network read them by
the names of their columns."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from pyarrow import csv

import runner
from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data import load
from runner.data.columns import new_rows
from runner.data.dataset import changed
from runner.data.table_files import TableFile
from runner.errors import ConfigError
from tests.data.test_data import dataset
from tests.data.test_table import written
from tests.parity.test_parity import assert_parity, in_float64
from tests.rows import long_but
from tests.training import difference, prepare, train

HEADER = ["age", "city", "review", "label"]
WORDS = ["good", "bad", "film", "Plot", "actor!"]
BRANCHES = (
    "model.layers=[{layer: parallel, branches: ["
    "[{layer: columns, names: [review]},{layer: embedding, features: 3, mask_zero: true},"
    "{layer: global_average_pool}],"
    "[{layer: columns, names: [review]},{layer: embedding, features: 2, mask_zero: true},"
    "{layer: conv1d, filters: 2, kernel_size: 2},{layer: global_max_pool}],"
    "[{layer: columns, names: [city]},{layer: embedding, features: 2},{layer: flatten}],"
    "[{layer: columns, names: [age]}]]},{layer: dense, units: outputs}]"
)


def rows(num: int = 60) -> list[list[str]]:
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(num)]
    return [
        [str(rng.integers(18, 80)), "Paris" if i % 3 else "Rome", text, "yn"["good" in text]]
        for i, text in enumerate(texts)
    ]


IDS = ["data=table", "data.texts=[review]", "data.category_encoding=ids", "data.target=label"]


def keys(folder: Path, table: list[list[str]] | None = None) -> list[str]:
    return [*IDS, f"data.path={written(folder / 'a.csv', table or rows(), HEADER)}"]


def test_a_row_has_a_scaled_number_an_id_and_the_ids_of_the_words(tmp_path: Path) -> None:
    """The vocabulary is counted here: padding 0, others 1, then words by how often the training
    rows have them, equally frequent ones sorted."""
    table = rows()
    data = dataset(*keys(tmp_path, table), "data.split=chronological", "data.max_vocabulary=4")
    train = table[: len(data.train)]
    words = [re.findall(r"\w+|[^\w\s]", row[2].lower()) for row in train]
    every = [word for row in words for word in row]
    vocabulary = sorted(set(every), key=lambda word: (-every.count(word), word))[:4]
    longest = max(map(len, words))
    ages = np.array([float(row[0]) for row in train])
    for i, found in enumerate(data.train.x):
        ids = [vocabulary.index(w) + 2 if w in vocabulary else 1 for w in words[i]]
        padded = ids + [0] * (longest - len(ids))
        city = 1 + ["Paris", "Rome"].index(train[i][1])
        np.testing.assert_array_equal(found[1:], [city, *padded])
        np.testing.assert_allclose(found[0], (ages[i] - ages.mean()) / ages.std(), rtol=1e-12)
    assert data.ids == (0, 3, *[6] * longest)
    assert data.num_tokens == 0
    new = written(tmp_path / "new.csv", [["x bad good", "Oslo", "30"]], ["review", "city", "age"])
    saved = json.loads(json.dumps(data.description()))
    x, warnings = new_rows(TableFile(new), saved, "data.json")
    ids = [1, *(vocabulary.index(w) + 2 if w in vocabulary else 1 for w in ("bad", "good"))]
    np.testing.assert_array_equal(x[0], [30, 0, *ids, *[0] * (longest - 3)])
    assert len(warnings) == 1


def test_the_order_of_the_columns_in_the_file_changes_nothing(tmp_path: Path) -> None:
    first = dataset(*keys(tmp_path))
    before = first.description()
    other = [[label, text, city, age] for age, city, text, label in rows()]
    path = written(tmp_path / "b.csv", other, HEADER[::-1])
    now = load(parse(compose([*IDS, f"data.path={path}"])).data, before)
    assert changed(before, now.description()) is None
    assert now.ids == first.ids


@pytest.mark.parametrize("num_updates", long_but([8, 300], slow=[], quick=[8]))
def test_both_backends_train_alike_on_texts_categories_and_numbers(
    num_updates: int, tmp_path: Path
) -> None:
    assert_parity([*keys(tmp_path), BRANCHES, *in_float64(num_updates)])


@pytest.mark.slow
def test_exact_mode_has_equal_bits_with_a_mask_in_two_branches(tmp_path: Path) -> None:
    overrides = [*keys(tmp_path), BRANCHES, "trainer.precision=exact", "trainer.max_steps=4"]
    first, *others = (train(name, overrides) for name in ("witness", "lightning", "keras"))
    for other in others:
        assert difference(first.state.weights, other.state.weights) == 0


@pytest.mark.parametrize(("backend", "precision"), [("lightning", "float64"), ("witness", "exact")])
def test_padding_of_a_text_changes_nothing(backend: str, precision: str, tmp_path: Path) -> None:
    """Rows of 10 and of 14 ids: equal weights, to 1e-14 in float64, to the bit in exact mode."""
    overrides = [*keys(tmp_path), BRANCHES, f"trainer.precision={precision}", "trainer.max_steps=3"]
    runs = [train(backend, [*overrides, f"data.context={size}"]) for size in (10, 14)]
    limit = 0 if precision == "exact" else 1e-14
    assert difference(runs[0].state.weights, runs[1].state.weights) <= limit


@pytest.mark.slow
def test_a_run_predicts_from_a_table_and_resumes(tmp_path: Path) -> None:
    common = [*keys(tmp_path), BRANCHES, "device=cpu", f"output.root={tmp_path}"]
    run = runner.train([*common, "trainer.max_epochs=1"])
    table = written(tmp_path / "new.csv", [["good film", "Rome", "30"]], ["review", "city", "age"])
    found = run.predict(csv.read_csv(table))
    assert found.shape == (1, 2)
    raw, _ = new_rows(TableFile(table), run.data, "data.json")
    np.testing.assert_array_equal(run.predict(raw), found)
    raw[0, 1] = 7
    with pytest.raises(ConfigError, match="x must have ids from 0 to 2 in column city, got 7"):
        run.predict(raw)
    longer = runner.resume(run.folder, ["trainer.max_epochs=2"])
    whole = runner.train([*common, "trainer.max_epochs=2"])
    assert longer.result["metrics"] == whole.result["metrics"]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (
            "{layer: dense, units: outputs}",
            "model.layers[0] (dense): the columns city, review are ids, which are no numbers; take "
            "them by columns and embedding in a branch of parallel, and the others by columns in "
            "another one",
        ),
        (
            "{layer: columns, names: [age, city]},{layer: embedding, features: 2}",
            "model.layers[1] (embedding): needs columns of ids alone before it, {layer: columns, "
            "names: [...]}; others have numbers",
        ),
        (
            "{layer: columns, names: [city]},{layer: embedding, features: 2, num_embeddings: 2}",
            "model.layers[1] (embedding): num_embeddings must be >= 3, the number of ids of its "
            "columns, got 2",
        ),
        (
            "{layer: columns, names: [city]}",
            "model.layers must not end in ids, which are no numbers; add embedding",
        ),
        (
            "{layer: parallel, branches: [[{layer: columns, names: [review]},{layer: embedding, "
            "features: 2, mask_zero: true}],[{layer: columns, names: [age]}]]}",
            "model.layers[0].branches[0]: a branch that makes a mask must end it, by "
            "global_average_pool, global_max_pool, gru or lstm",
        ),
        (
            "{layer: embedding, features: 2}",
            "model.layers begin with embedding, which needs rows of token ids, and data=table has "
            "numbers beside ids",
        ),
    ],
)
def test_ids_and_numbers_are_not_taken_for_each_other(
    layers: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(words)}$"):
        prepare([*keys(tmp_path), f"model.layers=[{layers}]"])


def test_what_cannot_represent_ids_is_refused(tmp_path: Path) -> None:
    common = keys(tmp_path)
    words = "trainer.precision must be float32, float64 or exact for ids beside numbers in one row"
    with pytest.raises(ConfigError, match=words):
        prepare([*common, BRANCHES, "trainer.precision=bf16-mixed"])
    with pytest.raises(ConfigError, match="must be null for data=table, which has token"):
        prepare([*common, BRANCHES, "data.mixup=0.2"])
