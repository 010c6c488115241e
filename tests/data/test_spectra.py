"""Features of sound are those of their formulas, of librosa and of scipy."""

import numpy as np
import pytest
import scipy.fft
import scipy.signal

from runner.data import spectra

# Two tones, one of them rising
_N = np.arange(400)
SOUND = np.sin(0.05 * _N) + 0.3 * np.sin(0.0007 * _N**2)

# Frames 0, 6 and 12 of SOUND, made once by librosa 0.11.0 with
#   mel = librosa.feature.melspectrogram(
#       y=SOUND, sr=16000, n_fft=64, hop_length=32, n_mels=6, window=WINDOW, htk=HTK, norm=NORM,
#       fmin=100, fmax=7000, center=True, pad_mode="constant", dtype=np.float64)
#   log = np.log(np.maximum(mel, 1e-6)); log.T[[0, 6, 12]].round(6)
#   librosa.feature.mfcc(S=log, n_mfcc=4).T[[0, 6, 12]].round(6)
# slaney: HTK=False, NORM="slaney"; htk: HTK=True, NORM=None, which is torchaudio's default too.
LIBROSA = {
    ("slaney", "hann"): (
        [
            [-2.808783, -6.643462, -8.630309, -10.369419, -11.958973, -13.304401],
            [-1.951898, -3.215146, -7.120852, -12.841275, -13.815511, -13.815511],
            [-1.736921, -3.621603, -3.075749, -5.805176, -8.341151, -8.824272],
        ],
        [
            [-21.929199, 8.283093, 1.443272, 1.404781],
            [-21.539258, 11.798449, 2.097359, -1.819634],
            [-12.820985, 6.28706, -0.840134, -0.147632],
        ],
    ),
    ("htk", "hamming"): (
        [
            [3.333137, 0.835852, -1.797969, -2.738625, -3.285606, -3.60264],
            [4.381819, 3.052018, -0.138061, -2.275463, -2.614028, -2.840561],
            [4.391324, 2.981039, 3.339605, 0.474532, -1.001312, -1.123952],
        ],
        [
            [-2.962189, 5.691067, 2.133545, 0.76492],
            [-0.177292, 6.660303, 1.977392, -0.23722],
            [3.699234, 5.129659, -0.273382, -0.543847],
        ],
    ),
}


@pytest.mark.parametrize(("scale", "window"), LIBROSA)
def test_log_mel_and_mfcc_are_those_of_librosa(
    scale: spectra.Scale, window: spectra.Window
) -> None:
    bands, coefficients = LIBROSA[scale, window]
    filters = spectra.mel_filters(16000, 64, 6, 100, 7000, scale)
    values = spectra.log_mel(SOUND, 64, 32, window, filters, 1e-6)
    assert values.shape == (13, 6)
    # The values above are rounded to 6 decimals.
    np.testing.assert_allclose(values[[0, 6, 12]], bands, rtol=0, atol=6e-7)
    found = spectra.cepstra(values, 4)[[0, 6, 12]]
    np.testing.assert_allclose(found, coefficients, rtol=0, atol=6e-7)


def test_the_size_of_a_block_of_frames_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    filters = spectra.mel_filters(16000, 64, 6, 0, 8000, "slaney")
    found = []
    for size in (1, 200, 2**20):
        monkeypatch.setattr(spectra, "_BLOCK", size)
        found.append(spectra.log_mel(SOUND, 64, 7, "hann", filters, 1e-6).tobytes())
    assert len(set(found)) == 1


@pytest.mark.parametrize(("n_fft", "hop_length"), [(16, 5), (15, 20), (2, 1), (500, 7)])
def test_a_power_spectrogram_is_its_sum(n_fft: int, hop_length: int) -> None:
    """The discrete Fourier transform of each frame, term by term; frame t is around sample t hop,
    also where hops are longer than frames, and frames longer than the sound."""
    x = SOUND[:101]
    found = spectra.power_spectrogram(x, n_fft, hop_length, "hann")
    assert found.shape == (1 + 101 // hop_length, n_fft // 2 + 1)
    assert spectra.num_frames(101, hop_length) == len(found)
    w = scipy.signal.get_window("hann", n_fft)
    for t in range(len(found)):
        places = t * hop_length + np.arange(n_fft) - n_fft // 2
        inside = (places >= 0) & (places < len(x))
        frame = np.where(inside, x[np.clip(places, 0, len(x) - 1)], 0.0) * w
        for f in range(n_fft // 2 + 1):
            term = np.exp(-2j * np.pi * f * np.arange(n_fft) / n_fft)
            # Sums of 500 terms of size 1, squared: 500 units of rounding each.
            np.testing.assert_allclose(found[t, f], abs(frame @ term) ** 2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "scipys"), [("hann", "hann"), ("hamming", "hamming"), ("rectangular", "boxcar")]
)
def test_windows_are_the_periodic_ones_of_scipy(name: spectra.Window, scipys: str) -> None:
    for size in (1, 2, 7, 400):
        expected = scipy.signal.get_window(scipys, size)
        # A window of one sample is 0 here, and 1 in scipy; cosines are right to a rounding.
        if size > 1:
            np.testing.assert_allclose(spectra.window_of(name, size), expected, atol=1e-15)


def test_cepstra_are_the_orthonormal_dct_of_scipy() -> None:
    values = np.random.default_rng(0).normal(size=(7, 40))
    expected = scipy.fft.dct(values, type=2, norm="ortho", axis=1)
    # Sums of 40 products of size 1.
    np.testing.assert_allclose(spectra.cepstra(values, 40), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(spectra.cepstra(values, 13), expected[:, :13], rtol=0, atol=1e-13)


def test_mel_scales_have_their_fixed_points() -> None:
    """Both put 1000 Hz at a round number: 15 mel of Slaney's, 1000 of HTK's up to 0.02. Slaney's
    steps above it are 27 for a factor of 6.4, below it 200 Hz for 3 mel."""
    np.testing.assert_allclose(spectra.to_mel([0, 200, 1000, 6400], "slaney"), [0, 3, 15, 42])
    np.testing.assert_allclose(spectra.to_mel([0, 1000], "htk"), [0, 999.98554], rtol=1e-8)
    frequencies = np.linspace(0, 20000, 101)
    scales: tuple[spectra.Scale, ...] = ("slaney", "htk")
    for scale in scales:
        back = spectra.from_mel(spectra.to_mel(frequencies, scale), scale)
        # Powers and logarithms lose some bits of 16 digits.
        np.testing.assert_allclose(back, frequencies, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(
    ("rate", "wanted"), [(44100, 16000), (8000, 16000), (16000, 11025), (48000, 8000), (7, 5)]
)
def test_resampling_is_its_sum(rate: int, wanted: int) -> None:
    """The windowed sinc, term by term."""
    x = np.random.default_rng(0).normal(size=300)
    found = spectra.resampled(x, rate, wanted)
    assert len(found) == -(-300 * wanted // rate)
    c = 0.95 * min(1, wanted / rate)
    t = (np.arange(len(found)) * rate / wanted)[:, None] - np.arange(300)
    inside = np.abs(t) < 64 / c
    window = np.i0(9 * np.sqrt(np.where(inside, 1 - (c * t / 64) ** 2, 0))) / np.i0(9)
    expected = (c * np.sinc(c * t) * np.where(inside, window, 0)) @ x
    # Sums of up to 300 products of size 1; NumPy's i0 is right to 1e-15 or so.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rate", "wanted"), [(44100, 16000), (16000, 44100), (48000, 16000)])
def test_resampling_keeps_tones_below_the_lower_half_rate_and_no_others(
    rate: int, wanted: int
) -> None:
    """The promise of runner/data/spectra.py: right to 1e-4 below 0.9 of it, gone to 1e-4 above it.
    Samples near the ends, where the sound is cut off, are left out."""
    num, half = rate // 2, min(rate, wanted) / 2
    t_in, t_out = np.arange(num) / rate, np.arange(num * wanted // rate) / wanted
    inner = slice(400, -400)
    for share in (0.0, 0.01, 0.3, 0.7, 0.9):
        tones = (np.cos(2 * np.pi * share * half * t) for t in (t_in, t_out))
        x, expected = tones
        found = spectra.resampled(x, rate, wanted)[: len(expected)]
        np.testing.assert_allclose(found[inner], expected[inner], rtol=0, atol=1e-4)
    if wanted < rate:
        for share in (1.0, 1.1, 1.7):
            x = np.cos(2 * np.pi * share * half * t_in)
            assert np.abs(spectra.resampled(x, rate, wanted)[inner]).max() < 1e-4


def test_the_first_samples_need_only_the_samples_within_reach() -> None:
    """Long files are read up to there."""
    x = np.random.default_rng(0).normal(size=4000)
    for rate, wanted in ((44100, 16000), (8000, 16000), (16000, 16000)):
        whole = spectra.resampled(x, rate, wanted)[:500]
        needed = int(np.ceil(500 * rate / wanted)) + spectra.reach(rate, wanted)
        assert np.array_equal(spectra.resampled(x[:needed], rate, wanted)[:500], whole)
