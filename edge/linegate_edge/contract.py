"""The contract with the MES as documents: JSON Schema for each message, AsyncAPI 3 for the topics.

Rules kept here: all of it is made from the message types that the station itself uses, so it cannot say anything else; the
same version always gives the same text; the schemas of what the station says leave room for fields to come (contract 2),
those of what it takes are closed. Copies stand in `edge/contract/`, and a test holds them to this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, models_json_schema
from pydantic_core.core_schema import TupleSchema

from linegate.errors import SettingsError
from linegate_edge.commands import COMMANDS, Answer, Confirmation
from linegate_edge.contract_examples import EXAMPLES
from linegate_edge.message import SCHEMA_VERSION, StateMessage, VerdictMessage, topics

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
ASYNCAPI_FILE: Final = "asyncapi.json"
_ADDRESS: Final = "{enterprise}/{site}/{area}/{line}/{station}"
_SPOKEN: Final[Mapping[str, type[BaseModel]]] = {"verdict": VerdictMessage, "state": StateMessage, "answer": Answer}
_TAKEN: Final[Mapping[str, type[BaseModel]]] = {"confirmation": Confirmation}


class _Generator(GenerateJsonSchema):
    """Writes a tuple of one kind as an array of fixed length, which every draft of JSON Schema understands."""

    def tuple_schema(self, schema: TupleSchema) -> JsonSchemaValue:
        written = super().tuple_schema(schema)
        kinds = written.get("prefixItems")
        if kinds and all(kind == kinds[0] for kind in kinds):
            del written["prefixItems"]
            written["items"] = kinds[0]
        return written


@cache
def documents() -> Mapping[str, str]:
    """Return the documents by their file names, as JSON text."""
    files = {f"{name}.schema.json": _schema_file(name, model) for name, model in {**_SPOKEN, **_TAKEN}.items()}
    files["command.schema.json"] = _command_file()
    files[ASYNCAPI_FILE] = _asyncapi()
    return {name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in sorted(files.items())}


def write_documents(folder: Path) -> list[Path]:
    """Write the documents into a folder, which is made where needed, and return their paths.

    Raises:
        SettingsError: the folder cannot be written to.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in documents().items():
            path = folder / name
            temporary = path.with_suffix(".part")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
            written.append(path)
    except OSError as error:
        raise SettingsError(f"{folder}: the contract cannot be written here: {error.strerror}") from error
    return written


# -- JSON Schema ------------------------------------------------------------------------------------------------------


def _schema_file(name: str, model: type[BaseModel]) -> dict[str, Any]:
    mode: JsonSchemaMode = "serialization" if name in _SPOKEN else "validation"
    schema = model.model_json_schema(mode=mode, schema_generator=_Generator)
    if name in _SPOKEN:
        _open(schema)
    return {"$schema": DIALECT, "$id": _id(name), **schema, "examples": EXAMPLES[name]}


def _command_file() -> dict[str, Any]:
    template = "#/$defs/{model}"
    pairs: list[tuple[type[BaseModel], Literal["validation"]]] = [(model, "validation") for model in COMMANDS.values()]
    _, schemas = models_json_schema(pairs, ref_template=template, schema_generator=_Generator)
    kinds = [{"$ref": template.format(model=model.__name__)} for model in COMMANDS.values()]
    examples = [example for name in COMMANDS for example in EXAMPLES[name]]
    return {
        "$schema": DIALECT,
        "$id": _id("command"),
        "title": "Command",
        "description": "What a MES may ask of a station.",
        "oneOf": kinds,
        "$defs": schemas["$defs"],
        "examples": examples,
    }


def _id(name: str) -> str:
    return f"urn:linegate:vision:v1:{name}"


def _open(node: Any) -> None:
    """Let objects have fields that are not known yet: one may be added within a schema version."""
    if isinstance(node, dict):
        if node.get("additionalProperties") is False:
            del node["additionalProperties"]
        for value in node.values():
            _open(value)
    elif isinstance(node, list):
        for value in node:
            _open(value)


# -- AsyncAPI ---------------------------------------------------------------------------------------------------------


def _asyncapi() -> dict[str, Any]:
    spoken, taken = _definitions(_SPOKEN, "serialization"), _definitions({**_TAKEN, **COMMANDS}, "validation")
    _open(spoken)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Linegate station",
            "version": SCHEMA_VERSION,
            "description": "A verdict for every part: what a station says over MQTT, and what it may be told.",
            "license": {"name": "Apache-2.0"},
        },
        "id": "urn:linegate:vision:v1",
        "defaultContentType": "application/json",
        "channels": _channels(),
        "operations": _operations(),
        "components": {
            "messages": {name: _message(name, model) for name, model in {**_SPOKEN, **_TAKEN, **COMMANDS}.items()},
            "schemas": dict(sorted({**taken, **spoken}.items())),
        },
    }


def _definitions(models: Mapping[str, type[BaseModel]], mode: JsonSchemaMode) -> dict[str, Any]:
    pairs = [(model, mode) for model in models.values()]
    template = "#/components/schemas/{model}"
    _, schemas = models_json_schema(pairs, ref_template=template, schema_generator=_Generator)
    definitions: dict[str, Any] = schemas["$defs"]
    return definitions


def _channels() -> dict[str, Any]:
    levels = [level.strip("{}") for level in _ADDRESS.split("/")]
    parameters = {level: {"description": f"Level {number} of [station] topic."} for number, level in enumerate(levels, 1)}
    spoken = {"verdict": ["verdict"], "state": ["state"], "command": list(COMMANDS), "answer": ["answer", "confirmation"]}
    texts = {
        "verdict": "One message a part, in sequence order; it may come twice, with the same verdict_id.",
        "state": "On connecting, on a change, every 10 seconds, and by the station's last will.",
        "command": "Commands to the station; each is answered.",
        "answer": "The station's answers, and the MES's confirmations of verdicts.",
    }
    return {
        role: {
            "address": address,
            "description": texts[role],
            "parameters": parameters,
            "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in spoken[role]},
        }
        for role, address in topics(_ADDRESS).items()
    }


def _operations() -> dict[str, Any]:
    def operation(action: str, role: str, messages: list[str], summary: str, *, retain: bool = False) -> dict[str, Any]:
        return {
            "action": action,
            "channel": {"$ref": f"#/channels/{role}"},
            "summary": summary,
            "messages": [{"$ref": f"#/channels/{role}/messages/{name}"} for name in messages],
            "bindings": {"mqtt": {"qos": 1, "retain": retain, "bindingVersion": "0.2.0"}},
        }

    command = operation("receive", "command", list(COMMANDS), "The station does a command, once, and answers it.")
    command["reply"] = {
        "channel": {"$ref": "#/channels/answer"},
        "messages": [{"$ref": "#/channels/answer/messages/answer"}],
    }
    return {
        "sendVerdict": operation("send", "verdict", ["verdict"], "The station tells its verdict of a part."),
        "sendState": operation("send", "state", ["state"], "The station tells how it is.", retain=True),
        "receiveCommand": command,
        "receiveConfirmation": operation("receive", "answer", ["confirmation"], "The MES has verdicts for good."),
    }


def _message(name: str, model: type[BaseModel]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "name": name,
        "title": model.__name__,
        "summary": " ".join(str(model.__doc__).split()),
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
        "examples": [{"payload": example} for example in EXAMPLES[name]],
    }
    if name in COMMANDS or name == "answer":
        message["correlationId"] = {
            "description": "Over MQTT 5 the correlation data are echoed as well.",
            "location": "$message.payload#/command_id",
        }
    return message
