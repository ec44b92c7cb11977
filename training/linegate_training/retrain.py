"""A data set version and a champion → a candidate, and whether it may go to the line: reading from top to bottom.

Rules kept here: a candidate learns from the version's train split by the same code as `linegate train`; what the frame is cut
to, the arithmetic and the promise stay those of the champion unless asked otherwise; a candidate whose export fails parity is
a verdict of no-go. Learning is left to `train`, measuring to `compare`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from linegate.comparison import Comparison
from linegate.dataset_version import Version
from linegate.errors import LinegateError, ParityError
from linegate.package import ModelPackage
from linegate_training.compare import Compared, Judge, compare, refused
from linegate_training.comparison_page import remove_comparison, write_comparison
from linegate_training.data.versions import parts_of
from linegate_training.gate import GateSettings
from linegate_training.packaging import Naming
from linegate_training.progress import heard_by
from linegate_training.progress_file import StepFile
from linegate_training.settings import TrainSettings
from linegate_training.steps import is_out_of_memory
from linegate_training.train import LEARNED, train

CANDIDATE: Final = "candidate"
"""The candidate's package lies in the run's folder under this name."""
_KEPT: Final = ("roi_xyxy", "precision", "false_reject_rate", "augment")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is retrained, from what and how; `run_dir` gets the candidate, the report and the comparison."""

    version: Path
    champion: ModelPackage
    run_dir: Path
    naming: Naming
    settings: TrainSettings
    gate: GateSettings
    recent: int
    threads: int


def retrain(plan: Plan, steps: StepFile) -> Comparison | None:
    """Train a candidate, compare it with the champion, write both into the run's folder, and return the comparison.

    Of several processes (torchrun) all but the first return None.

    Raises:
        DataError: the version was changed, or has too little to learn from or to measure on.
        LinegateError: memory ran out.
        PackageError: the champion cannot be run here.
    """
    steps.begin("data", "checking the data set version")
    remove_comparison(plan.run_dir)
    version = Version.load(plan.version)
    parts_of(version, to_learn=False)  # nothing to measure on is found out before an hour of training, not after it
    parts = parts_of(version)
    Judge(plan.champion)  # so is a champion that does not run here

    def heard(share: float, text: str) -> None:
        if text == LEARNED:
            steps.begin("export", text)
        else:
            steps.within(share, text)

    learned, defects = len(parts.goods()), len(parts.defects())
    steps.begin("train", f"learning from {learned} good and {defects} defective images")
    try:
        with heard_by(heard):
            candidate = train(parts, plan.run_dir / CANDIDATE, plan.naming, plan.settings, plan.run_dir)
    except ParityError as error:
        comparison = refused(plan.champion, version, parts.tests(), plan.gate, str(error), recent=plan.recent)
        return write_comparison(plan.run_dir, Compared(comparison, Judge(plan.champion), None, ()))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The loop itself names a batch that fits; here it was something else.
        raise LinegateError(_out_of_memory(plan.settings)) from error
    if candidate is None:
        return None
    steps.begin("compare", f"comparing with {plan.champion.reference} on {len(parts.tests())} frozen images")
    compared = compare(
        plan.champion, candidate, version, parts, plan.gate, plan.recent, threads=plan.threads, tell=steps.within
    )
    return write_comparison(plan.run_dir, compared)


def kept_settings(champion: ModelPackage) -> Mapping[str, Any]:
    """Return the settings that a candidate takes over from the champion where nothing else is asked for."""
    recorded = champion.manifest.training.settings
    return {key: recorded[key] for key in _KEPT if recorded.get(key) is not None}


def next_version(version: str) -> str:
    """Return the version of the package that follows: 1.0.3 gives 1.1.0.

    >>> next_version("1.0.3-rc.1")
    '1.1.0'
    """
    major, minor = version.split(".")[:2]
    return f"{major}.{int(minor) + 1}.0"


def _out_of_memory(settings: TrainSettings) -> str:
    mend = f"set batch below {settings.batch} or patch_images below {settings.patch_images} (--settings), or a smaller --size"
    return f"out of memory while the candidate was made: {mend}"
