"""data=audio_folder: the rows are the samples of the files and their features, the order that of
the sorted paths, and what is no audio is refused with its name."""

import csv
import os
import shutil
import sys
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from runner.cli.compose import compose
from runner.config.schema import parse
from runner.data import Dataset, audio, load, spectra
from runner.data.summary import summarize
from runner.errors import ConfigError
from runner.report import description
from runner.run.run_folder import read_columns, read_json
from runner.run.saved import load_run
from tests.command_line import BACKENDS, Done, forked
from tests.data.test_images import unshuffled
from tests.rows import slow_but
from tests.training import difference, prepare, train

WHOLE = ["data.val_fraction=0", "data.test_fraction=0"]  # all rows are training rows
RATE = 8000
WAVEFORM = ["data.features=waveform", "data.standardize=false", f"data.sample_rate={RATE}"]
TONES = {"low": 300.0, "middle": 900.0, "high": 2500.0}  # Hz


def samples(number: int, num: int = 800, channels: int = 1) -> np.ndarray:
    """Other samples for every number.  # int16[num, channels]"""
    return np.random.default_rng(number).integers(-9000, 9000, (num, channels), dtype=np.int16)


def save(path: Path, values: np.ndarray, rate: int = RATE) -> Path:
    """Write int16 samples as WAV, with the standard library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(values.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.astype("<i2").tobytes())
    return path


def folder(root: Path, num: int = 4, classes: Sequence[str] = ("cat", "dog")) -> Path:
    """`num` files of 0.1 s for each class."""
    for i, name in enumerate(classes):
        for j in range(num):
            save(root / name / f"{j}.wav", samples(10 * i + j))
    return root


def tones(root: Path, num: int) -> Path:
    """`num` noisy tones of 0.2 to 0.4 s for each class, at several rates."""
    for i, (name, frequency) in enumerate(TONES.items()):
        for j in range(num):
            rng = np.random.default_rng([i, j])
            rate = (8000, 16000, 22050)[j % 3]
            t = np.arange(int(rate * rng.uniform(0.2, 0.4))) / rate
            x = np.sin(2 * np.pi * frequency * rng.uniform(0.8, 1.2) * t)
            noisy = 0.3 * x + 0.05 * rng.normal(size=len(t))
            save(root / name / f"{j:02}.wav", (noisy * 32767)[:, None].astype(np.int16), rate)
    return root


def section(root: Path, *more: str) -> Any:
    return parse(compose(["data=audio_folder", f"data.path={root}", *more])).data


def dataset(root: Path, *more: str) -> Dataset:
    return section(root, *more).load()


def test_rows_are_the_samples_by_class_and_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two channels are averaged; what is longer than a row is cut, what is shorter is followed by
    zeros. Class folders may hold folders; classes that are numbers are in their order."""
    unshuffled(monkeypatch)
    order = [("2", "b.wav"), ("2", "c/a.wav"), ("2", "d.wav"), ("10", "a.wav")]
    lengths = (700, 800, 900, 1)
    for i, (name, file) in enumerate(order):
        save(tmp_path / name / file, samples(i, lengths[i], 1 + i % 2))
    (tmp_path / "2" / ".DS_Store").write_bytes(b"no audio")
    (tmp_path / "README.txt").write_text("beside the class folders")
    data = dataset(tmp_path, *WAVEFORM, "data.seconds=0.1", *WHOLE)
    assert data.classes == ("2", "10")
    assert data.train.y.tolist() == [0, 0, 0, 1]
    assert data.input_shape == (800, 1)
    for i, row in enumerate(data.train.x):
        mono = samples(i, lengths[i], 1 + i % 2).mean(axis=1)[:800] / 2**15
        assert np.array_equal(row[:, 0], np.pad(mono, (0, 800 - len(mono))).astype(np.float32))


@pytest.mark.parametrize(
    ("suffix", "subtype", "error"),
    [
        ("wav", "PCM_16", 0),
        ("wav", "PCM_U8", 2**-7),  # rounded to 8 bits
        ("wav", "PCM_24", 0),
        ("wav", "PCM_32", 0),
        ("wav", "FLOAT", 0),
        ("wav", "DOUBLE", 0),
        ("flac", "PCM_16", 0),
        ("flac", "PCM_24", 0),
        ("aiff", "PCM_16", 0),
        ("ogg", "VORBIS", 0.1),  # a lossy format, at a tenth of full scale
    ],
)
def test_formats_are_read(tmp_path: Path, suffix: str, subtype: str, error: float) -> None:
    t = np.arange(RATE) / RATE
    x = np.rint(2**15 * 0.5 * np.sin(2 * np.pi * 440 * t)) / 2**15
    for name in "ab":
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / f"0.{suffix}", x, RATE, subtype=subtype)
    (row, _) = dataset(tmp_path, *WAVEFORM, *WHOLE).train.x
    np.testing.assert_allclose(row[:, 0], x, rtol=0, atol=error)


def test_features_are_those_of_the_resampled_samples(tmp_path: Path) -> None:
    """Long files are read only as far as needed, which changes no bit."""
    for name, rate in (("a", 11025), ("b", 8000)):
        save(tmp_path / name / "0.wav", samples(0, 9000), rate)
    common = (f"data.sample_rate={RATE}", "data.seconds=0.5", "data.standardize=false", *WHOLE)
    keys = ("data.n_fft=200", "data.hop_length=100", "data.num_mels=12", "data.f_min=50")
    more = ("data.f_max=3000", "data.mel_scale=htk", "data.window=hamming", "data.log_floor=0.001")
    more = (*more, "data.num_mfcc=7")
    found = {
        kind: dataset(tmp_path, *common, *keys, *more, f"data.features={kind}")
        for kind in ("log_mel", "mfcc")
    }
    filters = spectra.mel_filters(RATE, 200, 12, 50, 3000, "htk")
    whole = samples(0, 9000)[:, 0] / 2**15
    for name, rate in ((0, 11025), (1, RATE)):
        x = spectra.resampled(whole, rate, RATE)[: RATE // 2]
        bands = spectra.log_mel(x, 200, 100, "hamming", filters, 0.001)
        for kind, values in (("log_mel", bands), ("mfcc", spectra.cepstra(bands, 7))):
            data = found[kind]
            row = data.train.x[data.train.y == name][0]
            assert np.array_equal(row, values), kind
    assert found["log_mel"].input_shape == (41, 12)


def test_features_have_mean_0_and_deviation_1_over_the_sound_of_the_training_rows(
    tmp_path: Path,
) -> None:
    """Frames of padding are 0, and are not counted."""
    for i in range(40):
        save(tmp_path / "ab"[i % 2] / f"{i}.wav", samples(i, 400 + 20 * i))
    common = (
        f"data.sample_rate={RATE}",
        "data.n_fft=200",
        "data.hop_length=80",
        "data.seconds=0.2",
    )
    data = dataset(tmp_path, *common, "data.num_mels=20")
    assert data.input_shape == (21, 20)
    lengths = np.array([1 + (400 + 20 * i) // 80 for i in range(40)])
    is_padding = (data.train.x == 0).all(axis=2)
    assert set(21 - is_padding.sum(axis=1)) <= set(lengths)
    assert is_padding.any()
    assert not is_padding[:, :6].any()
    frames = data.train.x[~is_padding]
    # Means of some 250 numbers of size 1.
    np.testing.assert_allclose(frames.mean(axis=0), 0, atol=1e-13)
    np.testing.assert_allclose(frames.std(axis=0), 1, rtol=1e-13)
    assert np.abs(data.val.x.mean(axis=(0, 1))).max() > 1e-4


def test_rows_are_images_where_the_key_or_the_model_says_so(tmp_path: Path) -> None:
    common = (f"data.sample_rate={RATE}", "data.n_fft=200", "data.num_mels=20", *WHOLE)
    data = dataset(folder(tmp_path), *common)
    images = dataset(tmp_path, *common, "data.images=true")
    assert data.image_shape == images.input_shape == (51, 20, 1)
    assert np.array_equal(images.train.x[..., 0], data.train.x)
    assert images.x_scaling is not None
    assert images.x_scaling.offset.shape == (20, 1)


def test_probable_mistakes_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder(tmp_path, 2))
    save(Path("cat/long.wav"), samples(1, 3000))
    save(Path("dog/longer.wav"), samples(1, 9000, 2), 16000)
    common = ("data.seconds=0.1", f"data.sample_rate={RATE}", "data.n_fft=200", "data.num_mels=20")
    assert dataset(Path("."), *common).warnings == (
        "2 of 6 audio files are longer than data.seconds=0.1, and their ends are not used; the "
        "longest is dog/longer.wav with 0.562 s",
    )
    higher = ("data.sample_rate=16000", "data.n_fft=200", "data.num_mels=20")
    assert dataset(Path("."), *higher).warnings == (
        "5 of 6 audio files have a lower rate than data.sample_rate=16000; cat/0.wav with 8000 Hz "
        "has no sound above 4000 Hz",
    )
    plain = dataset(Path("."), *higher[1:], "data.sample_rate=8000", "data.standardize=false")
    assert plain.warnings == (
        ".: x has unscaled values up to 23.0259; data.standardize=true scales them",
    )


def test_the_number_of_threads_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = []
    for threads in (1, 7):
        monkeypatch.setattr(audio, "_THREADS", threads)
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
        data.append(dataset(folder(tmp_path, 30)).description())
    assert data[0] == data[1]


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["data.features=mfcc", "data.images=true", "data.mixup=0.4"],
        WAVEFORM,
        [WAVEFORM[0], WAVEFORM[2], "data.standardize=true"],
    ],
    ids=["log_mel", "images", "waveform", "scaled waveform"],
)
def test_sounds_that_are_read_while_training_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: Sequence[str]
) -> None:
    """Compare bits and order with rows in memory; with one thread and with three, and in blocks of
    5 rows."""
    monkeypatch.setattr(audio, "_rows_in", lambda memory, row_bytes: 5)
    tones(tmp_path, 8)
    common = ["data=audio_folder", f"data.path={tmp_path}", "model=linear", "data.seconds=0.3"]
    common += ["trainer.batch_size=4", "trainer.max_epochs=2", "trainer.precision=float64", *more]
    plans = [prepare(common)]
    for threads in (1, 3):
        monkeypatch.setattr(audio, "_THREADS", threads)
        plans.append(prepare([*common, "data.memory_mb=1"]))
    expected, *found = ([*prepared.chunks(0, None, adapt=False)] for prepared in plans)
    whole = plans[0].run_spec().fields
    for chunks in found:
        for a, b in zip(expected, chunks, strict=True):
            x = a.fields["x"] if a.fields else whole["x"][a.rows]
            np.testing.assert_array_equal(b.fields["x"], x)
    val = [next(iter(prepared.batches(prepared.data.val)))["x"] for prepared in plans]
    descriptions = [prepared.data.description() for prepared in plans]
    for other, streamed in zip(val[1:], descriptions[1:], strict=True):
        np.testing.assert_array_equal(other, val[0])
        for key in ("x_scaling", "x_range", "rows", "classes", "input_shape"):
            assert streamed[key] == descriptions[0][key]
    assert descriptions[1]["sha256"] == descriptions[2]["sha256"]
    assert plans[0].data.warnings == plans[1].data.warnings


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_on_them_has_the_same_bits(backend: str, tmp_path: Path) -> None:
    tones(tmp_path, 8)
    common = ["data=audio_folder", f"data.path={tmp_path}", "model=linear", "trainer.max_epochs=2"]
    common += ["trainer.batch_size=4"]
    runs = [train(backend, [*common, f"data.memory_mb={size}"]) for size in ("null", "1")]
    np.testing.assert_array_equal(runs[0].losses, runs[1].losses)
    assert difference(runs[0].state.weights, runs[1].state.weights) == 0


def test_a_changed_folder_is_read_again(tmp_path: Path) -> None:
    data = section(folder(tmp_path))
    first = load(data)
    assert load(data) is first
    save(tmp_path / "dog" / "new.wav", samples(9))
    assert sum(len(getattr(load(data), name)) for name in ("train", "val", "test")) == 9


def test_splits_follow_the_groups_of_a_table(tmp_path: Path) -> None:
    """Speakers, for example: no speaker is in two splits."""
    folder(tmp_path, 10)
    table = tmp_path / "t.csv"
    lines = [
        f"{name}/{i}.wav,{name},{speaker}"
        for name in ("cat", "dog")
        for i, speaker in enumerate("aabbccddee")
    ]
    table.write_text("\n".join(["path,label,group", *lines]) + "\n")
    common = (*WAVEFORM, "data.seconds=0.1", f"data.table={table}")
    data = dataset(tmp_path, *common, "data.split=grouped")
    speaker_of = {
        (samples(10 * i + j)[:, 0] / 2**15).astype(np.float32).tobytes(): j // 2
        for i in (0, 1)
        for j in range(10)
    }
    speakers = [
        {speaker_of[x[:, 0].tobytes()] for x in split.x}
        for split in (data.train, data.val, data.test)
    ]
    assert [len(found) for found in speakers] == [3, 1, 1]
    assert set.union(*speakers) == {0, 1, 2, 3, 4}


def _text(root: Path) -> None:
    (root / "dog" / "note.wav").write_text("no audio")


def _mp3(root: Path) -> None:
    soundfile.write(root / "cat" / "0.mp3", np.zeros(RATE), RATE)


def _cut(root: Path) -> None:
    for name in ("1", "2"):
        file = root / "dog" / f"{name}.wav"
        file.write_bytes(file.read_bytes()[:1000])


def _cut_header(root: Path) -> None:
    file = root / "dog" / "1.wav"
    file.write_bytes(file.read_bytes()[:30])


def _cut_flac(root: Path) -> None:
    file = root / "dog" / "1.flac"
    soundfile.write(file, samples(1, 20_000), RATE)
    file.write_bytes(file.read_bytes()[:20_000])


def _cut_ogg(root: Path) -> None:
    file = root / "dog" / "1.ogg"
    soundfile.write(file, samples(1, 20_000), RATE, format="OGG")
    file.write_bytes(file.read_bytes()[:8_000])


def _silent(root: Path) -> None:
    save(root / "dog" / "1.wav", samples(1, 0))


def _not_a_number(root: Path) -> None:
    soundfile.write(root / "dog" / "1.wav", np.array([0, np.nan]), RATE, subtype="FLOAT")


def _too_large(root: Path) -> None:
    soundfile.write(root / "dog" / "1.wav", np.array([0, 0, -1e300]), RATE, subtype="DOUBLE")


def _slow(root: Path) -> None:
    save(root / "dog" / "1.wav", samples(1), 10)


def _several(root: Path) -> None:
    _text(root)
    _cut(root)
    _silent(root)


def _empty(root: Path) -> None:
    (root / "fox").mkdir()


def _single(root: Path) -> None:
    shutil.rmtree(root / "dog")


def _nowhere(root: Path) -> None:
    (root / "dog" / "0.wav").unlink()
    (root / "dog" / "0.wav").symlink_to(root / "gone.wav")


def _pipe(root: Path) -> None:
    os.mkfifo(root / "dog" / "5.wav")


def _beside(root: Path) -> None:
    save(root / "stray.WAV", samples(0))


def _no_folders(root: Path) -> None:
    for name in ("cat", "dog"):
        (root / name).rename(root.parent / name)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            _text,
            "dog/note.wav is not an audio file in one of the formats AIFF, FLAC, OGG, WAV; remove "
            "it, or convert it",
        ),
        (
            _mp3,
            "cat/0.mp3 is not an audio file in one of the formats AIFF, FLAC, OGG, WAV; remove "
            "it, or convert it",
        ),
        (_cut, "dog/1.wav is cut off: it has 956 of 1600 bytes of samples (2 such files)"),
        (
            _cut_header,
            "dog/1.wav cannot be read as audio: Error in WAV file. No 'data' chunk marker.",
        ),
        (_cut_flac, "dog/1.flac cannot be read as audio: Error : flac decoder lost sync."),
        (_cut_ogg, "dog/1.ogg is cut off: its last page is not complete"),
        (_silent, "dog/1.wav has no samples"),
        (
            _not_a_number,
            "dog/1.wav has the sample nan at number 1; samples are finite and mostly within -1 "
            "and 1",
        ),
        (
            _too_large,
            "dog/1.wav has the sample -1e+300 at number 2; samples are finite and mostly within "
            "-1 and 1",
        ),
        (_slow, "dog/1.wav has 10 samples per second; 1000 to 384000 can be read"),
        (
            _several,
            "dog/1.wav has no samples; also: dog/2.wav is cut off: it has 956 of 1600 bytes of "
            "samples; also: dog/note.wav is not an audio file in one of the formats AIFF, FLAC, "
            "OGG, WAV; remove it, or convert it",
        ),
        (_empty, "fox holds no audio files; add some, or remove it"),
        (_single, ". has audio files of a single class, cat; classification needs two"),
        (_nowhere, "dog/0.wav cannot be read as audio: No such file or directory"),
        (_pipe, "dog/5.wav is not a regular file, so not an audio file"),
        (
            _beside,
            "stray.WAV lies beside the class folders; move it into the folder of its class, or "
            "name the classes in data.table",
        ),
        (
            _no_folders,
            "data.path must hold a folder of audio files for each class, got . without folders",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_name(
    break_it: Callable[[Path], None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = tmp_path / "sounds"
    break_it(folder(root))
    monkeypatch.chdir(root)
    with pytest.raises(ConfigError) as raised:
        dataset(Path("."), "data.seconds=3")
    assert str(raised.value) == message


def test_a_wav_of_unknown_length_is_read(tmp_path: Path) -> None:
    """Programs that write to a pipe promise 2^31 - 4096 bytes or more."""
    for promised in (0x7FFFF000, 0xFFFFFFFF):
        for name in "ab":
            file = save(tmp_path / name / "0.wav", samples(3))
            content = file.read_bytes()
            size = promised.to_bytes(4, "little")
            assert content[36:40] == b"data"
            file.write_bytes(content[:40] + size + content[44:])
        data = dataset(tmp_path, *WAVEFORM, "data.seconds=0.1", *WHOLE)
        assert np.array_equal(data.train.x[0], (samples(3) / 2**15).astype(np.float32))


def test_without_soundfile_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ConfigError) as raised:
        dataset(folder(tmp_path))
    assert str(raised.value) == (
        "audio needs soundfile, which is not installed: pip install soundfile"
    )


def test_rows_that_do_not_fit_into_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "memory", lambda: 2**20)
    with pytest.raises(
        ConfigError,
        match=r"data\.seconds must give rows that fit into this machine's 0\.000977 GiB of "
        r"memory, got 8 rows of 1001 x 40, which take 0\.00477 GiB",
    ):
        dataset(folder(tmp_path), "data.seconds=10")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Done]]:
    """A run of each backend on tones, in a folder of its own."""
    runs = {}
    for backend in BACKENDS:
        here = tmp_path_factory.mktemp(backend)
        tones(here / "tones", 12)
        keys = ("trainer.max_epochs=6", "trainer.batch_size=8", "optimizer.lr=0.01")
        data = ("data=audio_folder", "data.path=tones", "data.seconds=0.3", "data.n_fft=512")
        exact = ("trainer.precision=float64", "device=cpu", f"backend={backend}")
        (done,) = forked(here, (*data, *keys, *exact))
        runs[backend] = here, done
    return runs


@pytest.mark.slow
def test_both_backends_train_on_the_same_rows(trained: dict[str, tuple[Path, Done]]) -> None:
    losses, hashes = [], []
    for here, done in trained.values():
        assert (done.status, done.err) == (0, "")
        columns = read_columns(here / done.folder / "metrics.csv")
        losses.append(np.concatenate([columns[f"{name}/loss"] for name in ("train", "val")]))
        hashes.append(read_json(here / done.folder / "data.json")["sha256"])
        # Tones a factor of 2.5 apart: 36 tones, learned by heart in 6 epochs.
        assert columns["train/accuracy"][-1] == 1
        assert columns["val/accuracy"][-1] > 0.8
    assert hashes[0] == hashes[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-12)  # float64, 18 updates


@pytest.mark.slow
@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_new_files_are_predicted_and_measured(
    trained: dict[str, tuple[Path, Done]], backend: str
) -> None:
    here, done = trained[backend]
    run = f"run={done.folder}"
    (here / "new").mkdir(exist_ok=True)
    for name in ("low", "middle"):
        shutil.copytree(here / "tones" / name, here / "new" / name, dirs_exist_ok=True)
    shutil.copytree(here / "tones", here / "moved", dirs_exist_ok=True)
    commands = [
        ("task=predict", run, "data.path=new"),
        ("task=predict", run, "data.path=new/low/03.wav"),
        ("task=evaluate", run),
        ("task=evaluate", run, "data.path=moved"),
        ("task=evaluate", run, "data.path=new"),
        ("task=evaluate", run, "data.path=tones/some.csv"),
    ]
    (here / "tones" / "some.csv").write_text("label,path\nmiddle,low/00.wav\nlow,low/01.wav\n")
    results = [forked(here, command)[0] for command in commands]  # one after the other
    assert [(each.status, each.err) for each in results] == [(0, "")] * 6
    assert "(7 rows," in results[2].out
    assert results[3].out.splitlines()[-2:] == results[2].out.splitlines()[-2:]
    assert "(24 new rows," in results[4].out
    with (here / done.folder / "evaluation_2.csv").open(newline="") as file:
        wrong, right = csv.DictReader(file)
    assert [wrong[key] for key in ("path", "target", "accuracy")] == ["low/00.wav", "middle", "0.0"]
    assert [right[key] for key in ("path", "target", "accuracy")] == ["low/01.wav", "low", "1.0"]
    lines = {}
    for name in ("predictions.csv", "predictions_2.csv"):
        for line in (here / done.folder / name).read_text().splitlines():
            path, *cells = line.split(",")
            lines[path] = cells
    assert [*lines][1:] == [
        *(f"{name}/{i:02}.wav" for name in ("low", "middle") for i in range(12)),
        "03.wav",
    ]
    assert lines["low/03.wav"][-1] == "low"
    numbers = [[float(cell) for cell in lines[file][:6]] for file in ("low/03.wav", "03.wav")]
    # In one batch of 24 rows and alone: the order of a float64 sum may differ.
    np.testing.assert_allclose(*numbers, rtol=0, atol=1e-12)
    (refused,) = forked(here, ("task=evaluate", run, "data.path=."))
    assert refused.err.startswith("error: . has the classes ")
    assert refused.err.endswith(
        "which the run was not trained on; its classes are high, low, middle\n"
    )


@pytest.mark.slow
def test_a_model_of_images_gets_images(tmp_path: Path) -> None:
    """It predicts and measures new files too."""
    tones(tmp_path / "tones", 6)
    data = ("data=audio_folder", "data.path=tones", "data.seconds=0.3", "data.n_fft=512")
    (done,) = forked(tmp_path, (*data, "model=cnn", "trainer.max_epochs=1", "device=cpu"))
    assert (done.status, done.err) == (0, "")
    assert load_run(tmp_path / done.folder).data["input_shape"] == [31, 40, 1]
    run = f"run={done.folder}"
    tested, predicted = forked(
        tmp_path,
        ("task=evaluate", run, "data.path=tones"),
        ("task=predict", run, "data.path=tones"),
    )
    assert [tested.err, predicted.err] == ["", ""]
    assert "(18 rows)" in predicted.out


def test_describe_says_how_rows_are_made(tmp_path: Path) -> None:
    tones(tmp_path / "tones", 3)
    keys = ("data.seconds=0.25", "data.features=mfcc", "data.n_fft=512")
    (done,) = forked(tmp_path, ("task=describe", "data=audio_folder", "data.path=tones", *keys))
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert "audio    mfcc: 0.25 s at 16000 Hz, 26 frames of 13" in lines
    (values,) = (line for line in lines if line.startswith("values"))
    assert values.endswith(
        "rows are images [26, 13, 1] for a model that needs these, else sequences [26, 13]"
    )


@pytest.mark.parametrize("features", ["log_mel", "waveform"])
def test_a_picture_has_time_from_left_to_right_and_high_notes_above(
    tmp_path: Path, features: str
) -> None:
    """Files of one tone, which begins after half of their time."""
    t = np.arange(4000) / RATE
    for name, frequency in (("low", 500), ("high", 3500)):
        x = np.where(t < 0.25, 0, 20000 * np.sin(2 * np.pi * frequency * t))
        save(tmp_path / name / "0.wav", x[:, None].astype(np.int16))
    keys = (f"data.sample_rate={RATE}", "data.seconds=0.5", f"data.features={features}", *WHOLE)
    data = dataset(tmp_path, *keys, "data.n_fft=512")
    assert data.image_shape is not None
    images = description._pixels(data, summarize(data), np.arange(2), data.image_shape)[..., 0]
    if features == "waveform":
        assert images.shape == (2, 1, 4000)
        assert not np.ptp(images[:, 0, :2000], axis=1).any()
        return
    assert images.shape == (2, 40, 26)
    for label, image in zip(data.train.y, images, strict=True):
        row, column = np.unravel_index(image.argmax(), image.shape)
        assert column >= 12
        assert (row < 10) == (data.classes[label] == "high")
