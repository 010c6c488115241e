"""Features of sound: resampling, power spectrograms, mel bands and cepstra, in float64.

L samples, T frames, F = n_fft // 2 + 1 frequencies, M mel bands, K coefficients. No product is left
to BLAS, which may add in another order with another number of threads.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import gcd
from typing import Any, Literal

import numpy as np

Window = Literal["hann", "hamming", "rectangular"]
Scale = Literal["slaney", "htk"]

# The filter of `resampled`: with these, what it lets through is right to 1e-4 below 0.9 of the
# lower Nyquist frequency, and what it stops is below 1e-4 above the Nyquist frequency
_CROSSINGS = 64  # Z, of zero on each side
_ROLLOFF = 0.95
_BETA = 9.0  # of the Kaiser window

_BLOCK = 2**20  # samples of frames in memory

# Slaney's scale: linear below 1000 Hz, then logarithmic
_LINEAR = 200 / 3  # Hz per mel
_BREAK = 1000.0  # Hz
_LOG_STEP = np.log(6.4) / 27  # ln(Hz) per mel


def resampled(x: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Resample by a windowed sinc, in polyphase form.

        y[m] = sum_k x[k] g(m rate / wanted - k), g(t) = c sinc(c t) w(c t / Z), |t| < Z / c,
        c = 0.95 min(1, wanted / rate), sinc(t) = sin(pi t) / (pi t), Z = 64,
        w(u) = I0(9 sqrt(1 - u^2)) / I0(9), the window of Kaiser (1974)

    The time of the first sample stays; samples beyond the ends are 0. This is
    scipy.signal.resample_poly with this filter as `window`.

    Args:
        x: samples.  # float64[L]
        rate: of x, in Hz.
        wanted: of the result, in Hz.

    Returns:
        # float64[ceil(L wanted / rate)]
    """
    if rate == wanted:
        return x
    from scipy.signal import resample_poly

    up, down = _ratio(rate, wanted)
    y: np.ndarray = resample_poly(x, up, down, window=_filter(up, down))
    return y


def reach(rate: int, wanted: int) -> int:
    """The samples of the input on each side of an output sample that determine it."""
    if rate == wanted:
        return 0
    return int(np.ceil(_CROSSINGS / (_ROLLOFF * min(1.0, wanted / rate)))) + 1


def _ratio(rate: int, wanted: int) -> tuple[int, int]:
    common = gcd(rate, wanted)
    return wanted // common, rate // common


@lru_cache(maxsize=4)
def _filter(up: int, down: int) -> np.ndarray:
    """g at multiples of 1 / up, divided by `up`, with which scipy multiplies."""
    cutoff = _ROLLOFF * min(1.0, up / down)
    half = int(np.ceil(_CROSSINGS / cutoff * up))
    t = cutoff / up * np.arange(half + 1)  # in zero crossings
    window = np.i0(_BETA * np.sqrt(np.clip(1 - (t / _CROSSINGS) ** 2, 0, None))) / np.i0(_BETA)
    right = cutoff / up * np.sinc(t) * np.where(t < _CROSSINGS, window, 0.0)
    return np.concatenate([right[:0:-1], right])


def window_of(name: Window, size: int) -> np.ndarray:
    """A periodic window.  # float64[size]

    hann: w[n] = 0.5 - 0.5 cos(2 pi n / size)
    hamming: w[n] = 0.54 - 0.46 cos(2 pi n / size)
    rectangular: w[n] = 1
    """
    constant = {"hann": 0.5, "hamming": 0.54, "rectangular": 1.0}[name]
    return constant - (1 - constant) * np.cos(2 * np.pi * np.arange(size) / size)


def num_frames(num_samples: Any, hop_length: int) -> Any:
    """The number of frames of a spectrogram: frame t has its centre at sample t hop_length."""
    return 1 + num_samples // hop_length


def power_spectrogram(x: np.ndarray, n_fft: int, hop_length: int, window: Window) -> np.ndarray:
    """Compute |short-time Fourier transform|^2, with the frames of librosa.stft(center=True).

        S[t, f] = |sum_n w[n] x[t hop_length + n - n_fft // 2] exp(-2 pi i f n / n_fft)|^2,
        n = 0 ... n_fft - 1, f = 0 ... n_fft // 2, t = 0 ... L // hop_length, x = 0 beyond its ends

    Args:
        x: samples.  # float64[L]
        n_fft: the samples of a frame.
        hop_length: samples from one frame to the next.
        window: its name.

    Returns:
        # float64[T, F]
    """
    return np.concatenate([*_powers(x, n_fft, hop_length, window)])


def _powers(x: np.ndarray, n_fft: int, hop_length: int, window: Window) -> Iterator[np.ndarray]:
    """Yield a power spectrogram in blocks of frames, which overlap in x."""
    padded = np.pad(x, (n_fft // 2, n_fft))
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop_length]
    num, weights = num_frames(len(x), hop_length), window_of(window, n_fft)
    size = max(1, _BLOCK // n_fft)
    for first in range(0, num, size):
        spectrum = np.fft.rfft(frames[first : min(first + size, num)] * weights, axis=1)
        yield spectrum.real**2 + spectrum.imag**2


def to_mel(frequency: Any, scale: Scale) -> Any:
    """Hz -> mel.

    htk: 2595 log10(1 + f / 700), O'Shaughnessy (1987), as in HTK
    slaney: 3 f / 200 below 1000 Hz, then 15 + 27 ln(f / 1000) / ln(6.4), as in Slaney's
    Auditory Toolbox (1998)
    """
    f = np.asarray(frequency, np.float64)
    if scale == "htk":
        return 2595.0 * np.log10(1 + f / 700)
    above = _BREAK / _LINEAR + np.log(np.maximum(f, _BREAK) / _BREAK) / _LOG_STEP
    return np.where(f < _BREAK, f / _LINEAR, above)


def from_mel(mel: Any, scale: Scale) -> Any:
    """mel -> Hz, the inverse of `to_mel`."""
    m = np.asarray(mel, np.float64)
    if scale == "htk":
        return 700.0 * (10.0 ** (m / 2595) - 1)
    start = _BREAK / _LINEAR
    return np.where(m < start, m * _LINEAR, _BREAK * np.exp(_LOG_STEP * (m - start)))


def mel_filters(
    sample_rate: int, n_fft: int, num_mels: int, f_min: float, f_max: float, scale: Scale
) -> np.ndarray:
    """Triangles over the frequencies f of a spectrogram, whose corners e[0] ... e[M + 1] are
    equally spaced in mel from f_min to f_max.

        W[j, f] = max(0, min((f - e[j]) / (e[j+1] - e[j]), (e[j+2] - f) / (e[j+2] - e[j+1])))

    Of the slaney scale they are also divided by their area, (e[j+2] - e[j]) / 2, as in
    librosa.filters.mel; those of htk have the height 1, as in torchaudio's melscale_fbanks.

    Returns:
        # float64[M, F]
    """
    frequencies = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    low, high = to_mel([f_min, f_max], scale)
    e = from_mel(np.linspace(low, high, num_mels + 2), scale)[:, None]
    rising = (frequencies - e[:-2]) / (e[1:-1] - e[:-2])
    falling = (e[2:] - frequencies) / (e[2:] - e[1:-1])
    weights = np.maximum(0.0, np.minimum(rising, falling))
    return weights * (2 / (e[2:] - e[:-2])) if scale == "slaney" else weights


def log_mel(
    x: np.ndarray,
    n_fft: int,
    hop_length: int,
    window: Window,
    filters: np.ndarray,
    floor: float,
) -> np.ndarray:
    """Compute ln(max(sum_f W[j, f] S[t, f], floor)) with the power spectrogram S of `x`.

    Args:
        x: samples.  # float64[L]
        n_fft, hop_length, window: of the spectrogram.
        filters: W.  # float64[M, F]
        floor: the least power of a band.

    Returns:
        # float64[T, M]
    """
    powers = _powers(x, n_fft, hop_length, window)
    bands = np.concatenate([np.einsum("tf,mf->tm", power, filters) for power in powers])
    return np.log(np.maximum(bands, floor))


def cepstra(values: np.ndarray, num: int) -> np.ndarray:
    """The first `num` coefficients of the orthonormal DCT-II of each frame.

        c[k] = s[k] sum_j v[j] cos(pi k (2 j + 1) / (2 M)), s[0] = sqrt(1 / M), else sqrt(2 / M)

    # float64[T, M] -> float64[T, num]
    """
    size = values.shape[1]
    k, j = np.arange(num)[:, None], np.arange(size)
    table = np.sqrt(2 / size) * np.cos(np.pi * k * (2 * j + 1) / (2 * size))
    table[0] = np.sqrt(1 / size)
    return np.einsum("tm,km->tk", values, table)
