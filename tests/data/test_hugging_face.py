"""Data sets of Hugging Face's library: a table is that of a file, other fields are rows."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runner
from runner.errors import ConfigError
from tests.data.test_data import dataset
from tests.data.test_frame import read
from tests.data.test_table import penguins, written


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library with a cache of its own, below the test's folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def table_of(library: Any, path: Path) -> Any:
    """The table of a CSV, with the species as a ClassLabel in another order than the names'."""
    table = read(path)
    rows = library.Dataset.from_dict(table.to_pydict())
    return rows.cast_column("species", library.ClassLabel(names=["Gentoo", "Adelie", "Chinstrap"]))


KEYS = ("data.target=species", "data.missing=median")


def test_a_table_is_the_data_set_of_the_same_file(library: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", penguins())
    expected = dataset("data=table", f"data.path={path}", *KEYS).description()
    rows = table_of(library, path)
    rows.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "files").mkdir()
    rows.to_parquet(str(tmp_path / "files" / "train.parquet"))
    for source in ("saved", "files", "files/train.parquet"):
        data = dataset("data=huggingface", f"data.path={tmp_path / source}", *KEYS)
        assert data.description() == expected, source


def test_splits_are_those_of_tables(library: Any, tmp_path: Path) -> None:
    rows = penguins()
    parts = {"train": rows[:80], "validation": rows[80:100], "test": rows[100:]}
    paths = {name: written(tmp_path / f"{name}.csv", part) for name, part in parts.items()}
    sets = library.DatasetDict({name: table_of(library, path) for name, path in paths.items()})
    sets.save_to_disk(str(tmp_path / "saved"))
    expected = dataset(
        "data=table",
        f"data.path={paths['train']}",
        f"data.val_path={paths['validation']}",
        f"data.test_path={paths['test']}",
        "data.val_fraction=0",
        "data.test_fraction=0",
        *KEYS,
    )
    data = dataset("data=huggingface", f"data.path={tmp_path / 'saved'}", *KEYS)
    assert data.description() == expected.description()


def test_an_object_in_python_is_the_same_and_predicts(library: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", penguins())
    rows = table_of(library, path)
    keys = f"trainer.max_epochs=1 device=cpu output.root={tmp_path} {' '.join(KEYS)}"
    run = runner.train(keys, data=rows, quiet=True)
    of_file = runner.train(f"{keys} data=table data.path={path}", quiet=True)
    assert run.result["weights_sha256"] == of_file.result["weights_sha256"]
    new = rows.shuffle(seed=0).select(range(10)).remove_columns(["species"])
    assert np.array_equal(run.predict(new), of_file.predict(new.to_dict()))


def images(library: Any, num: int = 40) -> tuple[Any, np.ndarray, np.ndarray]:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (num, 6, 5), dtype=np.uint8)
    labels = np.arange(num) % 3
    features = library.Features(
        {"image": library.Image(), "label": library.ClassLabel(names=["b", "a", "c"])}
    )
    rows = {"image": [image.fromarray(x) for x in pixels], "label": labels.tolist()}
    return library.Dataset.from_dict(rows, features=features), pixels, labels


@pytest.mark.parametrize("memory", [(), ("data.memory_mb=1",)])
def test_images_are_rows_with_the_names_of_their_labels(
    library: Any, tmp_path: Path, memory: tuple[str, ...]
) -> None:
    rows, pixels, labels = images(library)
    rows.save_to_disk(str(tmp_path / "saved"))
    data = dataset(
        "data=huggingface",
        f"data.path={tmp_path / 'saved'}",
        "data.inputs=image",
        "data.standardize=false",
        "data.val_fraction=0",
        "data.split=chronological",  # keeps the order
        *memory,
    )
    assert (data.input_shape, data.classes) == ((6, 5, 1), ("a", "b", "c"))
    assert np.array_equal(data.train.x[:][..., 0], pixels[:32])
    assert np.array_equal(
        np.array(data.classes)[data.train.y], np.array(["b", "a", "c"])[labels][:32]
    )


def test_sequences_and_numbers_are_joined_to_a_vector(library: Any, tmp_path: Path) -> None:
    columns = {"v": [[1.0, 2.0], [3.0, 4.0]] * 10, "n": [5, 6] * 10, "y": [0, 1] * 10}
    library.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "saved"))
    path = f"data.path={tmp_path / 'saved'}"
    data = dataset("data=huggingface", path, "data.inputs=[n, v]", "data.standardize=false")
    assert {tuple(row) for row in data.train.x.tolist()} == {(5.0, 1.0, 2.0), (6.0, 3.0, 4.0)}
    with pytest.raises(ConfigError, match=r"column v has the type list<.*>; data\.drop=\[v\]"):
        dataset("data=huggingface", path, "data.target=y")


def test_nothing_is_downloaded(library: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        dataset("data=huggingface", "data.path=nobody/nothing")
    assert str(error.value).startswith(
        "data.path must be a data set of Hugging Face, got nobody/nothing: "
    )
    assert str(error.value).endswith("; data.offline=false downloads it")


def test_an_iterable_data_set_needs_the_keys_of_iterables(library: Any, tmp_path: Path) -> None:
    rows = table_of(library, written(tmp_path / "a.csv", penguins())).to_iterable_dataset()
    with pytest.raises(ConfigError, match=r"data\.num_classes must be set for data, whose rows"):
        runner.train(f"output.root={tmp_path}", data=rows, quiet=True)


def test_wrong_keys_are_refused(library: Any, tmp_path: Path) -> None:
    rows, *_ = images(library)
    rows.save_to_disk(str(tmp_path / "saved"))
    path = f"data.path={tmp_path / 'saved'}"
    for keys, message in {
        ("data.memory_mb=1",): "data.memory_mb must be null without data.inputs, because a "
        "table is read into memory, got 1",
        ("data.inputs=picture",): "data.inputs must be a field of the rows of "
        f"{tmp_path / 'saved'}, image, label, got picture",
        ("data.inputs=image", "data.target=[label]"): "data.target must be one field with "
        "data.inputs, got label",
    }.items():
        with pytest.raises(ConfigError) as error:
            dataset("data=huggingface", path, *keys)
        assert str(error.value) == message


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ConfigError, match=r"data=huggingface needs the library datasets .* install"
    ):
        dataset("data=huggingface", f"data.path={tmp_path}")
