"""Sphinx: `sphinx-build -W -b html docs docs/_build`. The reference is made before each build."""

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import reference  # noqa: E402

project = "Twinrun"
author = "The Twinrun founders"
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "Twinrun"
nitpicky = True


def setup(app: Any) -> None:
    app.connect("builder-inited", lambda _: reference.write(HERE / "reference"))
