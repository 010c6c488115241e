"""Lightning is imported as the command line imports it: without the metrics that it does not use,
which take a quarter of the time that the collection of all tests takes."""

from backends.lightning import lean

lean.install()
