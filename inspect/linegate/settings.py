"""Settings files → typed, frozen settings, with one clear line for each mistake.

Rules kept here: an unknown key is an error that names the nearest known one; a wrong type is never coerced; a relative
path is taken from the folder of the file that names it.
"""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from linegate.errors import SettingsError


class Settings(BaseModel):
    """Base of all settings: frozen, strict, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


SettingsT = TypeVar("SettingsT", bound=BaseModel)


def load_toml(path: Path, model: type[SettingsT]) -> SettingsT:
    """Return the settings in the TOML file at `path`.

    Raises:
        SettingsError: the file is missing, is no TOML, or does not fit `model`; the text names file and key.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such settings file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error
    return parse(values, model, str(path), context={"folder": path.parent})


def parse(values: object, model: type[SettingsT], where: str, *, context: dict[str, Any] | None = None) -> SettingsT:
    """Return `values` as `model`; `where` opens the message of the error.

    Raises:
        SettingsError: a key is unknown or missing, or a value is of a wrong type or out of range.
    """
    try:
        return model.model_validate(values, context=context)
    except ValidationError as error:
        raise SettingsError(f"{where}: {describe(error, model)}") from error


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the mistakes of a validation in one line, each with its key and the nearest known one."""
    return "; ".join(_describe_one(detail, model) for detail in error.errors(include_url=False))


def _describe_one(detail: Any, model: type[BaseModel]) -> str:
    location = tuple(str(step) for step in detail["loc"])
    key = ".".join(location) or "the file"
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"known keys: {', '.join(sorted(known))}"
        return f"unknown key '{key}': {hint}"
    if kind == "union_tag_not_found":
        return f"key '{key}.{detail['ctx']['discriminator'].strip(chr(39))}' is missing"
    if kind == "union_tag_invalid":
        context = detail["ctx"]
        name = context["discriminator"].strip(chr(39))
        return f"key '{key}.{name}': expected one of {context['expected_tags']}, got '{context['tag']}'"
    if kind == "missing":
        return f"key '{key}' is missing"
    value = repr(detail["input"])
    shown = value if len(value) <= 60 else value[:57] + "..."
    text = detail["msg"].removeprefix("Value error, ")
    return f"key '{key}': {text[:1].lower() + text[1:]}, got {shown}"


def _keys_at(model: type[BaseModel], location: tuple[str, ...]) -> list[str]:
    """Return the keys known at `location`, following nested models, unions, lists and mappings."""
    models = [model]
    for step in location:
        inner: list[type[BaseModel]] = []
        for current in models:
            field = current.model_fields.get(step)
            # A step that is no field names a list index, a mapping key or a union's member: stay at this model.
            inner += _models_in(field.annotation) if field is not None else [current]
        models = inner or models
    return [name for current in models for name in current.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation) is not None:
        return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]
    return []
