"""The texts of --help and --schema."""

import json
import textwrap
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema
from pydantic_core.core_schema import ModelSchema, PlainValidatorFunctionSchema

from runner.config.callbacks import NamedCallback
from runner.config.conf_folder import choices, groups
from runner.config.explain import sections
from runner.config.remarks import of_sections
from runner.config.schema import Config
from runner.section import SECTION, Section

_COLUMNS = 100
_HELP = """\
Twinrun trains one config on Lightning or on Keras, with the same result on both.

Groups (GROUP=CHOICE):
{groups}

Commands:
  python -m runner schedule=cosine optimizer.lr=3e-4   train
  python -m runner -m schedule=cosine,linear seed=0,1  one job per combination, then the comparison
  python -m runner task=preview (or describe)          draw the rates (describe the data)
  python -m runner task=find_lr                        find a first learning rate
  python -m runner task=evaluate run=FOLDER            metrics of a finished run on the test split
  python -m runner task=predict run=FOLDER data.path=FILE   new rows (task=export: a model file)
  python -m runner task=verify run=FOLDER              repeat an exact run (task=card: a card of it)
  python -m runner task=twin model=twin ...            are two models of your own the same model
  python -m runner task=compare 'runs=[A,B]'           which run is best (forecast: final losses)
  python -m runner task=list (or clean)                all runs; what of them can be removed
  python -m runner resume=FOLDER                       resume an interrupted run, or extend one

All keys and values: python -m runner --cfg job (add overrides to see their effect)
Your own choices: --config-dir FOLDER. A JSON schema for editors: --schema. Hydra: --hydra-help."""


def help_text(config_dir: str | None) -> str:
    """List the groups with their choices, the commands, and where to find more."""
    lines = []
    for group in groups(config_dir):
        text = f"{f'{group}:':<16}{', '.join(choices(group, config_dir))}"
        lines += textwrap.wrap(
            text, _COLUMNS, initial_indent="  ", subsequent_indent=" " * 18, break_on_hyphens=False
        )
    return _HELP.format(groups="\n".join(lines))


def schema_text() -> str:
    """Make a JSON schema (draft 2020-12) of a config, for editors.

    The description of a key is its remark in conf/. No key is required, since a file in
    --config-dir sets only some of them. A section without a `name` is valid if any choice accepts
    its keys.
    """
    schema = _for_files(Config.model_json_schema(schema_generator=_WithRemarks))
    schema["properties"]["callbacks"]["items"]["anyOf"] += [{"enum": [*sections(NamedCallback)]}]
    schema["properties"] |= {
        "layer_defaults": {"type": "object"},
        "experiment": {"type": ["string", "null"]},
        "defaults": {"type": "array"},
        "hydra": {"type": "object"},
    }
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps({**head, **schema}, indent=1)


class _WithRemarks(GenerateJsonSchema):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._begun: set[type[Section]] = set()

    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        described = super().model_schema(schema)
        for key, words in of_sections().get(schema["cls"], {}).items():
            if key in described["properties"]:
                described["properties"][key]["description"] = words
        return described

    def function_plain_schema(self, schema: PlainValidatorFunctionSchema) -> JsonSchemaValue:
        """Describe a section of a OneOf, which pydantic has not prepared yet."""
        section: type[Section] = schema["metadata"][SECTION]
        section.model_rebuild()
        core: Any = section.__pydantic_core_schema__
        if section in self._begun:  # a layer may contain layers
            core = core_schema.definition_reference_schema(core["ref"])
        self._begun.add(section)
        return self.generate_inner(core)


def _for_files(node: Any) -> Any:
    """Remove required keys, pydantic's titles and OpenAPI's discriminators from a schema. Own code
    keeps `_target_` required: without it any keys would pass for its arguments."""
    if isinstance(node, list):
        return [_for_files(item) for item in node]
    if not isinstance(node, dict):
        return node
    schema = {"anyOf" if key == "oneOf" else key: value for key, value in node.items()}
    schema.pop("discriminator", None)
    needed = schema.pop("required", [])
    if "_target_" in needed and schema.get("additionalProperties"):  # else it takes any keys
        schema["required"] = ["_target_"]
    if isinstance(schema.get("title"), str):
        del schema["title"]
    return {
        key: {name: _for_files(item) for name, item in value.items()}
        if key in ("properties", "$defs")
        else _for_files(value)
        for key, value in schema.items()
    }
