"""What the code has and the docs lack fails the build."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from linegate import comparison, dataset_version, errors
from linegate.stages import Reason
from linegate_edge.commands import COMMANDS, Answer, AnswerReason, Confirmation
from linegate_edge.message import StateMessage, VerdictMessage, topics
from linegate_edge.metrics import Metrics
from linegate_edge.review.commands import STATUS
from linegate_edge.settings import FolderSource, OpenCVSource, RecipeSettings, StationSettings, ViewSettings
from linegate_edge.source_settings import AravisSource, GenicamSource
from linegate_training.gate import GateSettings
from linegate_training.progress_file import Step

ROOT = Path(__file__).parents[1]
TRAINING = (ROOT / "training" / "README.md").read_text(encoding="utf-8")
EDGE = (ROOT / "edge" / "README.md").read_text(encoding="utf-8")


def leaf_fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the dotted names of all fields, `[]` for those in a list."""
    names = []
    for name, field in model.model_fields.items():
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
        models = [item for item in inner if isinstance(item, type) and issubclass(item, BaseModel)]
        if not models:
            names.append(prefix + name)
        for item in models:
            names += leaf_fields(item, f"{prefix}{name}{'[]' if item is not field.annotation else ''}.")
    return names


@pytest.mark.parametrize("name", leaf_fields(VerdictMessage) + leaf_fields(StateMessage))
def test_every_field_of_a_message_is_documented(name: str) -> None:
    assert f"`{name}`" in EDGE


SOURCES = (FolderSource, OpenCVSource, AravisSource, GenicamSource)


def setting_keys() -> list[str]:
    keys = [f"[[source]] {key}" for source in SOURCES for key in source.model_fields]
    keys += [f"[recipes.NAME] {key}" for key in RecipeSettings.model_fields if key != "views"]
    keys.append("[plant_codes] CLASS")
    keys += [f"[recipes.NAME.views.VIEW] {key}" for key in ViewSettings.model_fields]
    for section, field in StationSettings.model_fields.items():
        if section not in ("source", "recipes", "plant_codes"):
            models: tuple[Any, ...] = getattr(field.annotation, "__args__", None) or (field.annotation,)
            keys += [f"[{section}] {key}" for model in models for key in model.model_fields]
    return list(dict.fromkeys(keys))


@pytest.mark.parametrize("key", setting_keys())
def test_every_setting_is_documented(key: str) -> None:
    assert f"`{key}`" in EDGE


def test_no_setting_is_documented_that_is_not_there() -> None:
    documented = set(re.findall(r"^\| `(\[+[\w.]+\]+ \w+)`", EDGE, re.MULTILINE))
    assert documented == set(setting_keys())


def fields_of(module: ModuleType) -> list[str]:
    """Return the names of all fields of all models that a module defines."""
    models = [item for item in vars(module).values() if isinstance(item, type) and issubclass(item, BaseModel)]
    return sorted({name for model in models if model.__module__ == module.__name__ for name in model.model_fields})


@pytest.mark.parametrize("name", fields_of(dataset_version))
def test_every_field_of_a_data_set_version_is_documented(name: str) -> None:
    assert f"`{name}`" in TRAINING.partition("### What reviewers said")[2].partition("\n### ")[0]


@pytest.mark.parametrize("name", fields_of(comparison))
def test_every_field_of_a_comparison_is_documented(name: str) -> None:
    assert f"`{name}`" in TRAINING.partition("### Retrain, compare, gate")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", GateSettings.model_fields)
def test_every_rule_of_the_gate_is_documented_with_its_default(name: str) -> None:
    row = next(line for line in TRAINING.splitlines() if line.startswith("| `") and f"`{name}`" in line.split("|")[1])
    names, defaults = row.split("|")[1], row.split("|")[2].split(", ")
    default = GateSettings.model_fields[name].default
    told = defaults[names.split(", ").index(next(one for one in names.split(", ") if f"`{name}`" in one))].strip()
    assert told == (str(default).lower() if isinstance(default, bool) else f"{default:g}")


@pytest.mark.parametrize("step", get_args(Step))
def test_every_step_of_a_retraining_is_documented(step: str) -> None:
    assert f"`{step}`" in TRAINING


@pytest.mark.parametrize("family", sorted(family.name for family in Metrics().registry.collect()))
def test_every_metric_is_documented(family: str) -> None:
    assert re.search(rf"`{family}(_total)?[`{{]", EDGE)


@pytest.mark.parametrize(
    "name", sorted({*COMMANDS, *(name for model in (*COMMANDS.values(), Answer) for name in model.model_fields)})
)
def test_every_command_and_every_field_of_commands_and_answers_is_documented(name: str) -> None:
    section = EDGE.partition("\n### Commands\n")[2].partition("\n### ")[0]
    assert f"`{name}`" in section


@pytest.mark.parametrize("name", leaf_fields(Confirmation))
def test_every_field_of_a_confirmation_is_documented(name: str) -> None:
    assert f"`{name}`" in EDGE


@pytest.mark.parametrize("reason", list(AnswerReason))
def test_every_reason_of_an_answer_is_documented_with_its_http_status(reason: AnswerReason) -> None:
    assert f"\n| `{reason}` | {STATUS[reason]} |" in EDGE


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_documented(reason: Reason) -> None:
    assert f"`{reason}`" in EDGE


@pytest.mark.parametrize("topic", topics("{topic}").values())
def test_every_topic_is_documented(topic: str) -> None:
    assert f"`{topic}`" in EDGE


def test_the_error_tree_is_drawn_whole() -> None:
    drawn = set(re.findall(r"\b([A-Z]\w+Error)\b", str(errors.__doc__)))
    there = {name for name, item in vars(errors).items() if isinstance(item, type) and issubclass(item, Exception)}
    assert drawn == there


PAGES = sorted(path for path in ROOT.glob("**/*.md") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_room_has_a_readme() -> None:
    for room in ("inspect", "training", "models", "edge", "tests"):
        assert (ROOT / room / "README.md").is_file()
