"""Makes the reference pages from what they describe: the schema, conf/ and the docstrings.

The defaults and the remarks beside them are those of conf/; types and limits are those of the
schema; formulas are those of the docstrings.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import runner
from runner.components.layers import Layer
from runner.config.callbacks import NamedCallback
from runner.config.conf_folder import CALLBACKS, CONF, choices
from runner.config.explain import sections
from runner.config.remarks import remarks
from runner.config.schema import Config
from runner.section import keys

# group -> what its page says first
GROUPS = {
    "schedule": "The rate of every update. `lr` in a formula is `optimizer.lr`.",
    "optimizer": "The optimizer and its base rate; the formulas hold on every backend.",
    "data": "The data set.",
    "loss": "What is minimised.",
}


def write(folder: Path) -> None:
    """Write all pages; a page that is as it was keeps its time."""
    folder.mkdir(exist_ok=True)
    for name, text in pages().items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """File name -> Markdown."""
    found = {"keys.md": _keys_page(), "layers.md": _layers_page(), "python.md": _python_page()}
    found["callbacks.md"] = _callbacks_page()
    return {**found, **{f"{group}.md": _group_page(group) for group in GROUPS}}


def _keys_page() -> str:
    """Every key that does not depend on a choice."""
    lines = ["# Keys", "", "Every key can be set on the command line, `KEY=VALUE`.", ""]
    schema = Config.model_json_schema()
    for name in keys(Config):
        if name in (*GROUPS, "model"):
            page = "layers" if name == "model" else name
            lines += _heading(name), f"One of the choices of [{name}]({page}.md).", ""
            continue
        prop = schema["properties"][name]
        inner = _section(prop, schema)
        beside = remarks("trainer", "default") if name == "trainer" else remarks("", "config")
        if inner is None:
            lines += _entry(name, prop, beside.get(name), schema)
            continue
        for key, value in inner["properties"].items():
            where = key if name == "trainer" else f"{name}.{key}"
            lines += _entry(f"{name}.{key}", value, beside.get(where), schema)
    return "\n".join(lines) + "\n"


def _group_page(group: str) -> str:
    annotation = keys(Config)[group].rebuild_annotation()
    members = sections(annotation)
    lines = [f"# {group.capitalize()}", "", GROUPS[group], ""]
    for choice in choices(group):
        beside = remarks(group, choice)
        kind = beside["name"][0]
        lines += [f"## `{group}={choice}`", ""]
        if kind != choice:
            lines += [f"`{kind}` with other values.", ""]
        lines += _choice(members[kind], "name", f"{group}.", beside)
    return "\n".join(lines)


def _layers_page() -> str:
    lines = ["# Layers", "", "`model.layers` is a list of these, in order.", ""]
    beside = remarks("layer_defaults", "default")
    for name, section in sections(Layer).items():
        own = {key: beside.get(f"{name}.{key}") for key in keys(section)}
        lines += [f"## `layer: {name}`", "", *_choice(section, "layer", "", own)]
    return "\n".join(lines)


def _callbacks_page() -> str:
    lines = ["# Callbacks", "", "`callbacks` is a list of these, or of their names.", ""]
    for name, section in sections(NamedCallback).items():
        lines += [f"## `callback: {name}`", ""]
        lines += _choice(section, "callback", "", remarks(CALLBACKS, name))
    return "\n".join(lines)


def _choice(section: Any, tag: str, prefix: str, beside: Mapping[str, Any]) -> list[str]:
    """A choice's docstring, and its keys but for the one that names it."""
    schema = section.model_json_schema()
    lines = _docstring(section)
    for key, prop in _properties(schema).items():
        inner = _section(prop, schema) if prefix else None
        for name, value in (inner or {}).get("properties", {}).items():
            lines += _item(f"{prefix}{key}.{name}", value, beside.get(f"{key}.{name}"), schema)
        if key != tag and inner is None:
            lines += _item(f"{prefix}{key}", prop, beside.get(key), schema)
    return [*lines, ""]


def _python_page() -> str:
    lines = ["# Python", ""]
    for name in runner.__all__:
        thing = getattr(runner, name)
        lines += [f"## `runner.{name}`", ""]
        lines += _fenced(f"{name}{_signature(thing)}", "python")
        lines += _docstring(thing)
        if inspect.isclass(thing):
            for member, value in vars(thing).items():
                text = inspect.getdoc(value)
                is_shown = not member.startswith("_") and (
                    callable(value) or isinstance(value, property) or hasattr(value, "attrname")
                )
                if is_shown and text:
                    call = _signature(value) if callable(value) else ""
                    lines += [f"### `{name}.{member}{call}`", "", *_fenced(text, "text")]
    return "\n".join(lines) + "\n"


def _signature(thing: Any) -> str:
    if isinstance(thing, type) and issubclass(thing, BaseException):
        return ""  # made by the program
    return str(inspect.signature(thing)).replace("runner.", "")


def _chosen() -> dict[str, str]:
    """Group -> the choice of the defaults list."""
    text = (CONF / "config.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^  - (\w+): (\w+)$", text, flags=re.MULTILINE))


def _heading(key: str) -> str:
    return f"## `{key}`\n"


def _entry(
    key: str, prop: Mapping[str, Any], remark: tuple[str, str] | None, schema: Any
) -> list[str]:
    default, words = remark or (_chosen().get(key, ""), "")
    lines = [_heading(key), f"{_type(prop, schema)}; default `{default or 'null'}`.", ""]
    return [*lines, *([_sentence(words), ""] if words else [])]


def _item(
    key: str, prop: Mapping[str, Any], remark: tuple[str, str] | None, schema: Any
) -> list[str]:
    default, words = remark or ("", "")
    said = f"default `{default}`" if default and default != "???" else "no default"
    return [
        f"- `{key}`: {_type(prop, schema)}; {said}" + (f". {_sentence(words)}" if words else "")
    ]


def _sentence(words: str) -> str:
    """A remark of conf/ as Markdown."""
    return re.sub(r"([*_<>\[\]|])", r"\\\1", words)


def _docstring(thing: Any) -> list[str]:
    text = inspect.getdoc(thing) or ""
    return _fenced(text, "text") if text else []


def _fenced(text: str, language: str) -> list[str]:
    return [f"```{language}", *text.splitlines(), "```", ""]


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of a section; of one that holds its own kind, the schema is a reference."""
    return (_section(schema, schema) or schema).get("properties", {})


def _section(prop: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """The section that a key holds; None if it holds a value."""
    for part in (prop, *prop.get("anyOf", ())):
        found = schema.get("$defs", {}).get(part.get("$ref", "").rpartition("/")[2], {})
        if "properties" in found:
            return found
    return None


def _type(prop: Mapping[str, Any], schema: Any) -> str:
    return " or ".join(dict.fromkeys(_types(prop, schema))) or "a value"


def _types(prop: Mapping[str, Any], schema: Any) -> Iterator[str]:
    if "anyOf" in prop or "oneOf" in prop:
        for part in (*prop.get("anyOf", ()), *prop.get("oneOf", ())):
            yield from _types(part, schema)
    elif "enum" in prop or "const" in prop:
        yield ", ".join(f"`{value}`" for value in prop.get("enum", [prop.get("const")]))
    elif "$ref" in prop:
        yield "a section"
    elif prop.get("type") == "array":
        yield f"a list of {_type(prop.get('items', {}), schema)}"
    elif prop.get("type") in _WORDS:
        yield _WORDS[prop["type"]] + _limits(prop)


_WORDS = {
    "integer": "an integer",
    "number": "a number",
    "string": "text",
    "boolean": "`true` or `false`",
    "null": "`null`",
    "object": "a group of keys",
}
_SIGNS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def _limits(prop: Mapping[str, Any]) -> str:
    limits = [
        f"{sign} {prop[name]:g}"
        for name, sign in _SIGNS.items()
        if name in prop and abs(prop[name]) < 2**62
    ]
    return f" {' and '.join(limits)}" if limits else ""
