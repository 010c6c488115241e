"""Examples are the same in every run, and a busy machine fails none of them for its time."""

from hypothesis import settings

settings.register_profile("twinrun", derandomize=True, deadline=None)
settings.load_profile("twinrun")
