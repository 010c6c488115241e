"""Facts about this backend that the runner needs before it imports the framework."""

from runner.spec import About

ABOUT = About(
    name="witness", distribution="twinrun", packages=(), precisions=("exact",), has_profiler=False
)
