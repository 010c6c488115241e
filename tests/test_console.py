"""What the console draws."""

from runner.console import tree


def test_a_config_is_drawn_as_a_tree_with_a_branch_per_group() -> None:
    values = {"seed": 0, "model": {"layers": [{"layer": "dense"}, {"layer": "flatten"}]}, "metrics": ["a", "b"]}
    drawn = """\
config
├── seed: 0
├── model
│   └── layers
│       ├── 0
│       │   └── layer: dense
│       └── 1
│           └── layer: flatten
└── metrics: ['a', 'b']"""
    assert tree(values) == drawn


def test_what_rich_would_take_for_markup_is_drawn_as_it_is() -> None:
    assert tree({"data": {"path": "[red]x[/red].csv"}}).endswith("└── path: [red]x[/red].csv")
