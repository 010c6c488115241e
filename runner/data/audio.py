"""Audio files in folders: their list, and the features of their samples, which soundfile reads."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from runner.components.alignment import NO_LABEL
from runner.data import spectra
from runner.data.capacity import memory
from runner.data.dataset import Dataset, Scaling, Split, fit_scaling_in_blocks
from runner.data.files import unscaled
from runner.data.folders import Folder, Listing, Media, each
from runner.data.mixing import Alpha
from runner.data.splits import SPLITS
from runner.data.stream import RowFile, StoredRows, read_stored
from runner.errors import ConfigError, listed, one_line, show_path
from runner.schedules.dialects.calls import SentenceError
from runner.section import Count, NonNegative, Positive

# The first bytes of a file -> its format. libsndfile has more readers, for formats that are rare.
_FORMATS = {b"RIFF": "WAV", b"RF64": "WAV", b"fLaC": "FLAC", b"OggS": "OGG", b"FORM": "AIFF"}
_NAMES = "AIFF, FLAC, OGG, WAV"
_SUFFIXES = (".aif", ".aiff", ".flac", ".oga", ".ogg", ".opus", ".wav")
_THREADS = 8  # that read; more wait for memory
_FITTED = 64  # rows whose frames are in memory a second time, to fit the scaling
_LEAST_RATE, _LARGEST_RATE = 1_000, 384_000  # Hz
_LARGEST_SAMPLE = 2.0**31  # of files of floats; those of integers are within -1 and 1
# The log of libsndfile about the bytes of a file's samples
_CUT = re.compile(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN = 0x7FFF0000  # bytes; programs that write to a pipe promise at least so many

_PAGE = 27 + 255 + 255 * 255  # bytes of the longest page of an OGG file

Rate = Annotated[int, Field(ge=_LEAST_RATE, le=_LARGEST_RATE)]
Size = Annotated[int, Field(ge=1, le=2**20)]


class Sounds(NamedTuple):
    """Rows of audio."""

    values: np.ndarray  # float64[N, T, F]; float32 for waveforms
    num_frames: np.ndarray  # the frames of each row that are not padding  # int64[N]
    warnings: tuple[str, ...]

    @property
    def mask(self) -> np.ndarray:
        """True for frames that are not padding.  # bool[N, T]"""
        is_sound: np.ndarray = np.arange(self.values.shape[1]) < self.num_frames[:, None]
        return is_sound

    def frames(self, rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Yield the frames of some rows that are not padding, of `size` rows at a time.

        int64[n] -> float64[m, F] each
        """
        mask = self.mask
        for first in range(0, len(rows), size):
            some = rows[first : first + size]
            yield self.values[some][mask[some]].astype(np.float64, copy=False)

    def pad(self, frame: np.ndarray) -> None:
        """Set the frames of padding.  # float64[F]"""
        self.values[~self.mask] = frame


class AudioFolder(Folder):
    """A folder with one folder of audio files per class, or with the folders train, val and test,
    which hold the class folders. With `table`, a CSV file, the classes are in its column label, and
    the files in its column path; split=grouped follows its column group.

    Rows are [frames, features] in the order of the sorted paths, or of the table. The channels of a
    file are averaged. Samples are resampled to `sample_rate` by a windowed sinc of 64 zero
    crossings, then cut to `seconds`, or padded with zeros. `features`: waveform has a frame per
    sample, with 1 feature. log_mel: ln(max(power, `log_floor`)) of `num_mels` bands; frame t has
    `n_fft` samples around sample t `hop_length`, zeros beyond the ends, and a periodic `window`.
    mfcc: the first `num_mfcc` coefficients of the orthonormal DCT-II of log_mel. The formulas are
    in runner/data/spectra.py. `standardize` scales each feature to mean 0 and deviation 1 over the
    frames of the training rows, without padding; frames of padding are then 0. AIFF, FLAC, OGG
    (Vorbis, Opus) and WAV are read. Names that begin with a dot are ignored. A split without its
    own folder is split off the training rows. With `memory_mb` (in 2^20 bytes), features are
    computed in blocks, and read while training, within this memory, from a temporary file, with
    the same values.

    With `task: transcription`, a label is a text, and a row's labels are its characters, or its
    words between white space: `target_tokenizer`. The classes are the distinct ones of all rows.
    """

    media: ClassVar[Media] = Media("audio files", _SUFFIXES)

    name: Literal["audio_folder"]
    sample_rate: Rate
    seconds: Positive
    features: Literal["waveform", "log_mel", "mfcc"]
    n_fft: Annotated[int, Field(ge=2, le=2**15)]
    hop_length: Size
    window: spectra.Window
    num_mels: Annotated[int, Field(ge=1, le=2**10)]
    mel_scale: spectra.Scale
    f_min: NonNegative
    f_max: Positive | None
    log_floor: Positive
    num_mfcc: Size
    standardize: bool
    images: Literal["auto"] | bool
    memory_mb: Count | None
    task: Literal["classification", "transcription"]
    target_tokenizer: Literal["characters", "words"]
    mixup: Alpha
    cutmix: Alpha

    @model_validator(mode="after")
    def _agree(self) -> "AudioFolder":
        half = self.sample_rate / 2
        if self.seconds * self.sample_rate < 1:
            raise SentenceError(
                f"seconds must be at least one sample of data.sample_rate={self.sample_rate}, got "
                f"{self.seconds:g}"
            )
        if self.highest > half:
            raise SentenceError(
                f"f_max must be <= {half:g}, half of data.sample_rate, got {self.f_max:g}"
            )
        if self.f_min >= self.highest:
            raise SentenceError(
                f"f_min must be < {self.highest:g}, the upper end of the bands, got {self.f_min:g}"
            )
        if self.features == "mfcc" and self.num_mfcc > self.num_mels:
            raise SentenceError(
                f"num_mfcc must be <= data.num_mels={self.num_mels}, got {self.num_mfcc}"
            )
        if self.features != "waveform":
            empty = int((self._filters().max(axis=1) == 0).sum())
            if empty:
                raise SentenceError(
                    f"num_mels must give bands that hold a frequency of the spectrum, got "
                    f"{self.num_mels} with {empty} empty ones; lower it, or raise data.n_fft"
                )
        return self

    @property
    def highest(self) -> float:
        """The upper end of the last band, in Hz."""
        return self.sample_rate / 2 if self.f_max is None else self.f_max

    @property
    def num_samples(self) -> int:
        """The samples of a row."""
        return round(self.seconds * self.sample_rate)

    @property
    def row_shape(self) -> tuple[int, int]:
        """[frames, features]."""
        if self.features == "waveform":
            return self.num_samples, 1
        frames = spectra.num_frames(self.num_samples, self.hop_length)
        return frames, self.num_mels if self.features == "log_mel" else self.num_mfcc

    @property
    def dtype(self) -> np.dtype:
        """The type of a row before it is scaled."""
        return np.dtype(np.float32 if self.features == "waveform" else np.float64)

    @property
    def has_texts(self) -> bool:
        return self.task == "transcription"

    @property
    def separator(self) -> str | None:
        """The text between two labels; None without texts."""
        between = "" if self.target_tokenizer == "characters" else " "
        return between if self.has_texts else None

    def _tokens(self, text: str) -> list[str]:
        return [*text] if self.target_tokenizer == "characters" else text.split()

    def _numbered(self, found: Listing, classes: Sequence[str]) -> np.ndarray:
        """Number the tokens of each row's text.  # int64[N, L], -1 after the last one"""
        number = {token: i for i, token in enumerate(classes)}
        rows = [[number[token] for token in self._tokens(text)] for text in found.classes]
        if [] in rows:
            text = found.classes[rows.index([])]
            raise ConfigError(f"{show_path(self.path)}: the label {text!r} has no words")
        y = np.full((len(rows), max(map(len, rows))), NO_LABEL)
        for labels, row in zip(y, rows, strict=True):
            labels[: len(row)] = row
        return y[found.labels]

    def new_labels(self, found: Listing, classes: Sequence[str], path: str) -> np.ndarray:
        if not self.has_texts:
            return super().new_labels(found, classes, path)
        unknown = {token for text in found.classes for token in self._tokens(text)} - {*classes}
        if unknown:
            raise ConfigError(
                f"{show_path(path)} has labels with the {self.target_tokenizer} "
                f"{listed([*map(repr, sorted(unknown))])}, which the run was not trained on"
            )
        return self._numbered(found, classes)

    def _labelled(self) -> Listing:
        """List the files with their labels, the tokens of texts if they are texts."""
        found = self.listing()
        if not self.has_texts:
            return found
        tokens = {token for text in found.classes for token in self._tokens(text)}
        classes = tuple(sorted(tokens))
        return replace(found, labels=self._numbered(found, classes), classes=classes)

    def load(self) -> Dataset:
        if self.memory_mb is not None:
            return self._streamed(self.memory_mb * 2**20)
        found = self._labelled()
        sounds = read_sounds(found.files, self)
        splits = self.split_numbers(found)
        if not self.has_texts:
            self.check_classes(splits["train"].y, found.classes)
        values, warnings = sounds.values, sounds.warnings
        folds = self.folds_sha256(values, found.labels, found.weights)
        scaling = None
        if self.standardize:
            rows = splits["train"].x
            scaling = fit_scaling_in_blocks(lambda: sounds.frames(rows, _FITTED))
            sounds.pad(scaling.offset)
        elif self.features != "waveform":
            warnings += unscaled(values, self.path, "data.standardize=true scales them")
        parts = (
            Split(scaling.apply(values[part.x]) if scaling else values[part.x], part.y)
            for part in (splits[name] for name in SPLITS)
        )
        return self._dataset(
            found, splits, parts, x_scaling=scaling, folds_sha256=folds, warnings=warnings
        )

    def _dataset(
        self,
        found: Listing,
        splits: Mapping[str, Split],
        parts: Iterable[Split],
        **others: Any,
    ) -> Dataset:
        """Return the data set of three splits, of which `splits` has the numbers of the rows."""
        train, val, test = parts
        data = Dataset(
            train,
            val,
            test,
            self.task,
            found.classes,
            (),
            separator=self.separator,
            image_shape=(*self.row_shape, 1),
            **others,
        )
        data = self.weighted(data, found, splits)
        return data.as_images() if self.images is True else data

    def _streamed(self, memory: int) -> Dataset:
        """Compute the features of all files once, and store them in a temporary file."""
        found = self._labelled()
        splits = self.split_numbers(found)
        if not self.has_texts:
            self.check_classes(splits["train"].y, found.classes)
        stored, warnings = _stored(found.files, self, memory)
        scaling = None
        if self.standardize:
            rows = stored.taken(splits["train"].x)
            size = _rows_in(memory, rows.row_bytes)
            scaling = fit_scaling_in_blocks(lambda: rows.frames(size))
        every = stored.scaled(scaling, splits["train"].x, memory)
        if not self.standardize and self.features != "waveform":
            warnings += unscaled(every, self.path, "data.standardize=true scales them")
        parts = (Split(every.taken(part.x), part.y) for part in (splits[name] for name in SPLITS))
        hashed = np.frombuffer(every.sha256.encode(), np.uint8)
        return self._dataset(
            found,
            splits,
            parts,
            x_scaling=scaling,
            memory=memory,
            folds_sha256=self.folds_sha256(hashed, found.labels, found.weights),
            warnings=warnings,
        )

    def new_rows(
        self, files: Sequence[Path], description: Mapping[str, Any]
    ) -> tuple[np.ndarray, list[str]]:
        sounds = read_sounds(files, self)
        scaling = Scaling.of(description["x_scaling"])
        if scaling is not None:
            sounds.pad(scaling.offset.reshape(-1))
        values = sounds.values
        is_image = len(description["input_shape"]) == 3
        return values[..., None] if is_image else values, [*sounds.warnings]

    def row(self, samples: np.ndarray) -> np.ndarray:
        """Compute the features of samples.  # float64[num_samples] -> float64[frames, features]"""
        if self.features == "waveform":
            return samples[:, None]
        frames = (self.n_fft, self.hop_length, self.window)
        bands = spectra.log_mel(samples, *frames, self._filters(), self.log_floor)
        return bands if self.features == "log_mel" else spectra.cepstra(bands, self.num_mfcc)

    def _filters(self) -> np.ndarray:
        return spectra.mel_filters(
            self.sample_rate, self.n_fft, self.num_mels, self.f_min, self.highest, self.mel_scale
        )


def read_sounds(files: Sequence[Path], section: AudioFolder) -> Sounds:
    """Read audio files and compute their features, several at a time; the result does not depend on
    how many.

    Raises:
        ConfigError: a file is no audio or a damaged one; or the rows do not fit into memory.
    """
    shape, dtype = section.row_shape, section.dtype
    _check_memory(len(files), shape, dtype.itemsize + 8)  # standardized rows are float64
    values = np.empty((len(files), *shape), dtype)
    found = _read(files, section, values)
    return Sounds(values, _num_frames(found.lengths, section), _warnings(files, found, section))


class _Read(NamedTuple):
    """The lengths and the rates of files."""

    lengths: np.ndarray  # samples at data.sample_rate  # int64[N]
    rates: np.ndarray  # of the files, in Hz  # int64[N]


def _read(files: Sequence[Path], section: AudioFolder, values: np.ndarray) -> _Read:
    """Write the features of files to `values`, float[N, T, F]."""
    lengths, rates = np.empty((2, len(files)), np.int64)

    def read(numbered_file: tuple[int, Path]) -> None:
        i, file = numbered_file
        samples, lengths[i], rates[i] = _samples(file, section.sample_rate, section.num_samples)
        values[i] = section.row(samples)

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), "audio") as pool:
        _import_soundfile()
        each(pool, read, [*enumerate(files)])
    return _Read(lengths, rates)


def _num_frames(lengths: np.ndarray, section: AudioFolder) -> np.ndarray:
    """Return the frames of files that are not padding.  # int64[N]"""
    used = np.minimum(lengths, section.num_samples)
    if section.features == "waveform":
        return used
    frames: np.ndarray = spectra.num_frames(used, section.hop_length)
    return frames


@dataclass(frozen=True)
class SoundRows(StoredRows):
    """Rows of audio in a temporary file: features that are not scaled, as they are stored. They are
    scaled as they are read, and padding is then 0."""

    stored: np.dtype  # of the values in the file
    num_frames: np.ndarray  # int64[all rows], the frames that are not padding
    scaling: Scaling | None
    low: np.ndarray  # the smallest values of the training rows  # [1, F]
    high: np.ndarray
    is_image: bool = False

    @property
    def row_shape(self) -> tuple[int, ...]:
        return (*self.stored_shape, 1) if self.is_image else self.stored_shape

    @property
    def ranges(self) -> tuple[Any, Any]:
        return (
            (self.low[..., None], self.high[..., None]) if self.is_image else (self.low, self.high)
        )

    def __getitem__(self, which: np.ndarray | slice) -> np.ndarray:
        rows = self.rows[which]
        found = read_stored(self.file, self.stored, self.stored_shape, rows)
        sounds = Sounds(found, self.num_frames[rows], ())
        values = sounds.values
        if self.scaling is not None:
            sounds.pad(self.scaling.offset)
            values = self.scaling.apply(values)
        return values[..., None] if self.is_image else values

    def reshape(self, *shape: int) -> Self:
        """Return the rows as images of one channel, the only other shape that they have."""
        assert shape[1:] == (*self.stored_shape, 1)
        return replace(self, is_image=True)

    def frames(self, size: int) -> Iterator[np.ndarray]:
        """Yield the frames that are not padding, of `size` rows at a time.  # float64[n, F]"""
        for first in range(0, len(self), size):
            sounds = Sounds(
                self[first : first + size], self.num_frames[self.rows[first : first + size]], ()
            )
            yield from sounds.frames(np.arange(len(sounds.values)), size)

    def scaled(self, scaling: Scaling | None, train: np.ndarray, memory: int) -> Self:
        """Return the rows scaled, with the smallest and the largest of all values, and of each
        feature of the rows `train`."""
        dtype = self.stored if scaling is None else np.dtype(np.float64)
        every = replace(self, scaling=scaling, dtype=dtype)
        low, high = _ends(every.taken(train), memory)
        others = np.setdiff1d(self.rows, train)
        least, largest = _ends(every.taken(others), memory) if len(others) else (low, high)
        extent = (float(min(low.min(), least.min())), float(max(high.max(), largest.max())))
        return replace(every, low=low, high=high, extent=extent)


def _rows_in(memory: int, row_bytes: int) -> int:
    """Return the number of rows that fit eight times into `memory`: they are read, sorted, selected
    and scaled, each time into a new array."""
    return max(1, memory // (8 * row_bytes))


def _ends(rows: SoundRows, memory: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the smallest and largest value of each feature.  # float64[1, F] each"""
    size = _rows_in(memory, rows.row_bytes)
    low, high = (np.full(rows.low.shape, end) for end in (np.inf, -np.inf))
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        low, high = np.minimum(low, part.min(axis=(0, 1))), np.maximum(high, part.max(axis=(0, 1)))
    return low, high


def _stored(
    files: Sequence[Path], section: AudioFolder, memory: int
) -> tuple[SoundRows, tuple[str, ...]]:
    """Write the features of all files to a temporary file. Return them, and warnings."""
    shape, dtype, num = section.row_shape, section.dtype, len(files)
    row_bytes = shape[0] * shape[1] * dtype.itemsize
    stored = RowFile(num * row_bytes, "the features of the sounds")
    stored.digest.update(repr((num, shape, dtype.str)).encode())
    size, parts = _rows_in(memory, row_bytes), []
    for first in range(0, num, size):
        some = files[first : first + size]
        values = np.empty((len(some), *shape), dtype)
        parts.append(_read(some, section, values))
        stored.append(values)
    found = _Read(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    frames = _num_frames(found.lengths, section)
    stored.digest.update(frames.data)
    unknown = np.zeros((1, shape[1]))
    rows = SoundRows(
        rows=np.arange(num),
        dtype=dtype,
        extent=(0.0, 0.0),
        sha256=stored.digest.hexdigest(),
        stored_shape=shape,
        file=stored.file,
        stored=dtype,
        num_frames=frames,
        scaling=None,
        low=unknown,
        high=unknown,
    )
    return rows, _warnings(files, found, section)


def _warnings(files: Sequence[Path], found: _Read, section: AudioFolder) -> tuple[str, ...]:
    """Warn of files that are longer than a row, or have a lower sample rate."""
    (lengths, rates), texts, most = found, [], section.num_samples
    if longer := int((lengths > most).sum()):
        longest = int(np.argmax(lengths))
        texts.append(
            f"{longer} of {len(files)} audio files are longer than data.seconds={section.seconds:g}"
            f", and their ends are not used; the longest is {show_path(files[longest])} with "
            f"{lengths[longest] / section.sample_rate:.3g} s"
        )
    if lower := int((rates < section.sample_rate).sum()):
        least = int(np.argmin(rates))
        texts.append(
            f"{lower} of {len(files)} audio files have a lower rate than data.sample_rate="
            f"{section.sample_rate}; {show_path(files[least])} with {rates[least]} Hz has no sound "
            f"above {rates[least] / 2:g} Hz"
        )
    return tuple(texts)


def _check_memory(num: int, shape: Sequence[int], size: int) -> None:
    needed, most = num * shape[0] * shape[1] * size, memory()
    if needed > most:
        raise ConfigError(
            f"data.seconds must give rows that fit into this machine's {most / 2**30:.3g} GiB of "
            f"memory, got {num} rows of {shape[0]} x {shape[1]}, which take "
            f"{needed / 2**30:.3g} GiB"
        )


def _import_soundfile() -> Any:
    try:
        import soundfile
    except ModuleNotFoundError:
        raise ConfigError(
            "audio needs soundfile, which is not installed: pip install soundfile"
        ) from None
    except OSError as error:  # the library libsndfile is missing
        raise ConfigError(f"soundfile cannot be loaded: {one_line(error)}") from None
    return soundfile


def _samples(file: Path, sample_rate: int, num: int) -> tuple[np.ndarray, int, int]:
    """Read the first `num` samples at `sample_rate`, padded with zeros: the mean of the channels.

    Returns:
        The samples, float64[num]; the number of samples of the whole file at `sample_rate`; and the
        file's own rate.
    """
    with _opened(file) as sound:
        rate, total = sound.samplerate, sound.frames
        if not _LEAST_RATE <= rate <= _LARGEST_RATE:
            raise ConfigError(
                f"{show_path(file)} has {rate} samples per second; {_LEAST_RATE} to "
                f"{_LARGEST_RATE} can be read"
            )
        if not total:
            raise ConfigError(f"{show_path(file)} has no samples")
        wanted = min(total, ceil(num * rate / sample_rate) + spectra.reach(rate, sample_rate))
        channels = sound.read(wanted, dtype="float64", always_2d=True)
        _check(file, channels, wanted, sound.extra_info)
    samples = spectra.resampled(channels.mean(axis=1), rate, sample_rate)[:num]
    length = -(-total * sample_rate // rate)
    return np.pad(samples, (0, num - len(samples))), length, rate


def _check(file: Path, channels: np.ndarray, wanted: int, log: str) -> None:
    """Refuse samples that are missing or cannot be used. `log` is libsndfile's."""
    cut = _CUT.search(log)
    if cut is not None and int(cut[2]) < int(cut[1]) < _UNKNOWN:
        raise ConfigError(
            f"{show_path(file)} is cut off: it has {cut[2]} of {cut[1]} bytes of samples"
        )
    if len(channels) < wanted:
        raise ConfigError(f"{show_path(file)} is damaged: it ends after {len(channels)} samples")
    if not (np.abs(channels) <= _LARGEST_SAMPLE).all():  # also for NaN
        bad = np.argwhere(~(np.abs(channels) <= _LARGEST_SAMPLE))[0]
        raise ConfigError(
            f"{show_path(file)} has the sample {channels[tuple(bad)]:g} at number {bad[0]}; "
            f"samples are finite and mostly within -1 and 1"
        )


def _check_pages(file: Path) -> None:
    """Refuse an OGG file that ends within a page, which libsndfile leaves out. A page begins with
    27 bytes, the last of them the number of its segments, then has a byte for each one's size
    (RFC 3533, section 6)."""
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - _PAGE))
        end = content.read()
    page = end[max(0, end.rfind(b"OggS\0")) :]
    sizes = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if len(page) < 27 or len(sizes) < page[26] or len(page) < 27 + len(sizes) + sum(sizes):
        raise ConfigError(f"{show_path(file)} is cut off: its last page is not complete")


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open an audio file, without its samples. An error in the block is one of the file."""
    soundfile = _import_soundfile()
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise ConfigError(f"{show_path(file)} is not a regular file, so not an audio file")
        with file.open("rb") as content:
            first = content.read(4)
        if first not in _FORMATS:
            raise ConfigError(
                f"{show_path(file)} is not an audio file in one of the formats {_NAMES}; remove "
                f"it, or convert it"
            )
        if first == b"OggS":
            _check_pages(file)
        with soundfile.SoundFile(str(file)) as sound:
            yield sound
    except ConfigError:
        raise
    except Exception as error:  # a damaged file raises several types of errors
        reason = getattr(error, "strerror", None) or getattr(error, "error_string", None)
        reason = one_line(reason or error) or type(error).__name__
        raise ConfigError(f"{show_path(file)} cannot be read as audio: {reason}") from None
