"""Signals that a command forwards to the process that trains for it."""

import os
import signal

import pytest

from runner.run.other_process import forward_signals


@pytest.mark.parametrize("is_job", [False, True])
def test_sigint_is_forwarded_where_the_shell_ignores_it_but_not_in_a_job(
    is_job: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script's shell starts a command in the background with SIGINT ignored (POSIX, 2.12). Of a
    multirun's jobs, the command receives it and asks them to end."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    if is_job:
        monkeypatch.setenv("TWINRUN_MULTIRUN", "1:0.0:end")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with forward_signals(4321):
            signal.raise_signal(signal.SIGINT)
        assert sent == ([] if is_job else [(4321, signal.SIGINT)])
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
