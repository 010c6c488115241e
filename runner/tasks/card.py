"""task=card: write a model card of a run, or a schedule card of a multirun, into its folder: the
claim, and what another team needs to repeat it.

A card takes all its numbers from the folder's files. It imports no framework.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import ConfigError, RunError, show, show_path
from runner.report import ledger
from runner.report.jobs import OF_A_MULTIRUN, inside
from runner.report.markdown import as_markdown
from runner.run import run_folder, strict_json
from runner.run.saved import config_of
from runner.text import escape
from runner.text.numbers import show_metric
from runner.text.quoting import command_line, override

FORMAT = 1
# the hashes of a certificate that a card repeats; task=verify compares them
HASHES = ("weights_sha256", "slots_sha256", "losses_sha256", "data_sha256")
# the values of a card that come from environment.json
_OF_ENVIRONMENT = ("command", "made_with")
# the keys of the config that the page shows
_SHOWN = ("backend", "seed", "model", "data", "loss", "optimizer", "schedule", "trainer")


def card(folder: Path, repository: str | None = None) -> int:
    """Write the card of a run, or of a multirun, and print its claim and its path. Push it and the
    files to a repository, if one is given."""
    if isfile(folder / "result.json"):
        values = _of_run(folder)
        text = _model_page(values)
    else:
        values = _of_multirun(folder)
        text = _schedule_page(values)
    run_folder.write_json(folder / "card.json", values)
    run_folder.write_text(folder / "card.md", text)
    for sentence in values["claim"]:
        print(sentence)
    print(f"card     {folder / 'card.md'}")
    print(f"data     {folder / 'card.json'}")
    if repository is not None:
        from runner.tasks.push import push

        push(folder, repository, values)
    return 0


def check(folder: Path) -> None:
    """Refuse a folder that has neither a run nor a multirun."""
    if not isfile(folder / "result.json") and not isfile(folder / "answer.json"):
        raise ConfigError(
            f"run must be the folder of a run or of a multirun, got {show_path(folder)}, which "
            f"holds no result.json and no answer.json"
        )


def check_saved(folder: Path) -> None:
    """Compare the card of a run, and the run in the card of its multirun, with what the files of
    the folder say. Raise RunError with the first difference. There may be no card."""
    if isfile(folder / "card.json"):
        _compare(folder, run_folder.read_json(folder / "card.json"), _of_run(folder))
    multirun = folder.parent
    if isfile(multirun / "card.json") and isfile(multirun / "answer.json"):
        saved = run_folder.read_json(multirun / "card.json", {"jobs": (list,)})
        jobs = {job["folder"]: job for job in map(_job, inside(multirun))}
        saved["jobs"] = [job for job in saved["jobs"] if _name(job) in jobs]  # others were not sent
        made = _of_multirun(multirun)
        made["jobs"] = [jobs[_name(job)] for job in saved["jobs"]]
        _compare(multirun, saved, made)


def _name(job: Any) -> str | None:
    return str(job.get("folder")) if isinstance(job, dict) else None


def _compare(folder: Path, saved: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """Raise RunError if a card has another value than the one that would be made now. Without
    environment.json, which is not pushed, two values are unknown."""
    has_all = isfile(folder / "environment.json")
    plain = json.loads(strict_json.dumps(made))
    for key in [key for key in plain if key in saved and (has_all or key not in _OF_ENVIRONMENT)]:
        found = _difference(saved[key], plain[key], key)
        if found is not None:
            where, of_card, of_files = found
            raise RunError(
                f"different: {where} of {folder / 'card.json'} is {show(of_card)}, and the files "
                f"beside it say {show(of_files)}; task=card writes the card anew"
            )


def _difference(a: Any, b: Any, where: str) -> tuple[str, Any, Any] | None:
    """Return the place of the first difference of two JSON values, and what is there."""
    if isinstance(a, dict) and isinstance(b, dict):
        pairs = [(f"{where}.{key}", a.get(key), b.get(key)) for key in {**b, **a}]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = [(f"{where}.{i}", *pair) for i, pair in enumerate(zip(a, b, strict=True))]
    else:
        return None if a == b else (where, a, b)
    found = (_difference(mine, theirs, place) for place, mine, theirs in pairs)
    return next((each for each in found if each is not None), None)


def _of_run(folder: Path) -> dict[str, Any]:
    row = ledger.entry(folder)
    if row.status in ("damaged", "training"):
        reason = row.problem or f"{row.holder} trains in it"
        raise ConfigError(f"run must be the folder of a run that has ended: {reason}")
    config, data, result = config_of(folder), _read(folder / "data.json"), row.result
    return {
        "format": FORMAT,
        "kind": "model",
        "claim": _claim(folder, row),
        "status": row.status,
        "metrics": result["metrics"],
        "best": result.get("best"),
        "test": _read(folder / "test.json"),
        "steps": result.get("steps"),
        "num_parameters": result.get("num_parameters"),
        "seeds": [config["seed"]],
        "rates": _rates(folder),
        "data": {key: data[key] for key in ("task", "rows", "input_shape", "classes", "target")
                 if key in data},
        **_proof(folder, result, data),
        "command": _command(folder, result),
        "config": {key: value for key, value in config.items() if key != "trusted_modules"},
        "made_with": _made_with(folder),
    }  # fmt: skip


def _command(folder: Path, result: Mapping[str, Any]) -> str | None:
    """Return the command that trains the run; None if objects were passed to it in Python."""
    if _read(folder / "environment.json").get("objects"):
        return None
    options = ["--config-dir", str(result["config_dir"])] if result.get("config_dir") else []
    overrides = map(str, result.get("overrides", []))
    return command_line([*options, *(o for o in overrides if not o.startswith(OF_A_MULTIRUN))])


def _claim(folder: Path, row: ledger.Entry) -> list[str]:
    """Say in one sentence what the run reached, and in a second one what it reached on the test
    split, if it was evaluated there."""
    numbers = ", ".join(f"{name} {show_metric(value)}" for name, value in row.metrics.items())
    steps = row.result.get("steps", 0)
    of = f"schedule={row.schedule} on {row.backend}, seed {row.value('seed')}"
    if row.status != "completed":
        return [f"{of}: {row.status} after {steps} updates"]
    claim = [f"{of}, reached {numbers} after {steps} updates."]
    evaluated = _read(folder / "test.json")
    test = {k: v for k, v in evaluated.items() if k.startswith("test/")}
    if test:
        numbers = ", ".join(f"{name} {show_metric(float(value))}" for name, value in test.items())
        step = evaluated.get("checkpoint", steps)
        which = "it" if step == steps else f"its checkpoint of update {step}"
        claim.append(f"On the test split, {which} reached {numbers}.")
    return claim


def _rates(folder: Path) -> dict[str, float]:
    """Describe the rates of all updates, as the framework's optimizer applied them."""
    rates = run_folder.read_columns(folder / "trace.csv").get("learning_rate", np.empty(0))
    if not len(rates):
        return {}
    named = {"first": rates[0], "largest": rates.max(), "last": rates[-1], "sum": rates.sum()}
    return {name: float(value) for name, value in named.items()}


def _proof(folder: Path, result: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hashes of a run, and how another team repeats it."""
    recorded = _read(folder / "certificate.json")
    hashes = {name: recorded[name] for name in HASHES if name in recorded}
    known = {
        "config_sha256": result.get("config_sha256"),
        "weights_sha256": result.get("weights_sha256"),
        "data_sha256": data.get("sha256"),
    }
    return {
        "hashes": {**known, **hashes},
        "is_certified": bool(recorded),
        "verify": command_line(["task=verify", "run=."]) if recorded else None,
    }


def _of_multirun(folder: Path) -> dict[str, Any]:
    answer = run_folder.read_json(
        folder / "answer.json", {"metric": (str,), "says": (list,), "groups": (list,)}
    )
    jobs = [_job(path) for path in inside(folder)]
    return {
        "format": FORMAT,
        "kind": "schedule",
        "claim": [str(sentence).strip() for sentence in answer["says"]],
        **{key: answer.get(key) for key in ("metric", "mode", "winner", "is_real", "command")},
        "seeds": answer.get("seeds"),
        "groups": answer["groups"],
        "jobs": jobs,
        "paths": [
            *dict.fromkeys(
                path for each in inside(folder) for path in _paths(ledger.entry(each).config)
            )
        ],
        "made_with": _made_with(inside(folder)[0]) if jobs else {},
    }


def _job(folder: Path) -> dict[str, Any]:
    """Describe a job of a multirun: its result, its hashes, and the command that repeats it."""
    row = ledger.entry(folder)
    recorded = _read(folder / "certificate.json")
    hashes = {name: row.result.get(name) for name in ("config_sha256", "weights_sha256")}
    return {
        "folder": folder.name,
        "status": row.status,
        "seed": row.value("seed"),
        "overrides": row.result.get("overrides", []),
        "metrics": row.metrics,
        "hashes": {**hashes, **{name: recorded[name] for name in HASHES if name in recorded}},
        "is_certified": bool(recorded),
        "verify": command_line(["task=verify", override("run", folder.name)]) if recorded else None,
    }


def _made_with(folder: Path) -> dict[str, Any]:
    environment = _read(folder / "environment.json")
    return {key: environment.get(key) for key in ("python", "platform", "packages", "device")}


def _read(path: Path) -> dict[str, Any]:
    """Read a file of the folder; empty if it is missing or damaged."""
    try:
        return run_folder.read_json(path)
    except ConfigError:
        return {}


_CERTIFIED = (
    "The run is certified: exact mode gives the same bits on Lightning, on Keras and in NumPy. In "
    "the folder of this card, this repeats it and prints `identical`, or what differs first."
)
_PATHS = (
    "It reads the data from {}, which is no part of the folder: a relative path begins where the "
    "command runs. Data with another hash is refused."
)
_NOT_CERTIFIED = (
    "Not certified: without trainer.precision=exact another machine may round differently, so only "
    "the config and the data can be compared by their hashes."
)


def _model_page(values: Mapping[str, Any]) -> str:
    config = values["config"]
    hashes = [(name, str(value)) for name, value in values["hashes"].items() if value]
    settings = [(key, _settings(config[key])) for key in _SHOWN if key in config]
    metrics = [(name, str(value)) for name, value in values["metrics"].items()]
    metrics += [(k, str(v)) for k, v in values["test"].items() if k.startswith("test/")]
    rates = [(name, f"{value:.6g}") for name, value in values["rates"].items()]
    return _page(
        "Model card",
        values,
        ("Metrics", _table(("metric", "value"), metrics)),
        ("Config", _table(("key", "value"), settings)),
        ("Rates that the optimizer applied", _table(("rate", "value"), rates)),
        ("Hashes", _table(("of", "SHA-256"), hashes)),
        ("How to check it", _verify_lines([values], _paths(config))),
    )


def _schedule_page(values: Mapping[str, Any]) -> str:
    header = ("rank", "group", "seeds", values["metric"], "95 % interval", "p")
    groups = [
        (
            str(group.get("rank")),
            str(group.get("label")),
            ", ".join(map(str, group.get("seeds") or [])),
            _number(group.get("mean")),
            " to ".join(map(_number, group.get("interval") or [])),
            _number(group.get("p")),
        )
        for group in values["groups"]
    ]
    jobs = [
        (job["folder"], job["status"], str(job["hashes"]["weights_sha256"] or ""))
        for job in values["jobs"]
    ]
    return _page(
        "Schedule card",
        values,
        ("Groups", _table(header, groups)),
        ("Jobs", _table(("job", "status", "SHA-256 of the weights"), jobs)),
        ("How to check it", _verify_lines(values["jobs"], values["paths"])),
    )


def _page(title: str, values: Mapping[str, Any], *sections: tuple[str, list[str]]) -> str:
    claim = [escape.markdown(str(line)) for line in values["claim"]]
    lines = [f"# {title}", "", *(f"- {line}" for line in claim), ""]
    if values.get("command"):
        lines += ["```bash", str(values["command"]).replace("\n", " "), "```", ""]
    for heading, body in sections:
        if body:
            lines += [f"## {heading}", "", *body, ""]
    made = {key: value for key, value in values["made_with"].items() if value}
    packages = ", ".join(f"{k} {v}" for k, v in (made.get("packages") or {}).items())
    lines += [escape.markdown(f"Made with Python {made.get('python')}, {packages}."), ""]
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [as_markdown([header, *rows], escape.markdown)] if rows else []


def _verify_lines(runs: Iterable[Mapping[str, Any]], paths: Sequence[str]) -> list[str]:
    commands = [str(run["verify"]) for run in runs if run["verify"]]
    if not commands:
        return [_NOT_CERTIFIED]
    named = f" {_PATHS.format(', '.join(escape.markdown(path) for path in paths))}" if paths else ""
    return [f"{_CERTIFIED}{named}", "", "```bash", *commands, "```"]


def _paths(config: Mapping[str, Any]) -> list[str]:
    """Return the files and folders with the data."""
    data = config.get("data", {})
    found = [data.get(key) for key in ("path", "val_path", "test_path") if data.get(key)]
    return [str(path) for each in found for path in (each if isinstance(each, list) else [each])]


def _settings(value: Any) -> str:
    """Write a section of the config in one line."""
    if not isinstance(value, Mapping):
        return ledger.show_cell(value)
    first = {key: value[key] for key in ("name", "path", "target") if key in value}
    cells = (f"{key}: {_plain(inner)}" for key, inner in {**first, **value}.items())
    text = ", ".join(cells)
    return text if len(text) <= 300 else f"{text[:297]}..."


def _plain(value: Any) -> str:
    """Write a value as in YAML's flow style."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_plain(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return ledger.show_cell(value)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value or "")
