"""What a training found → a model package on the disk, measured and reported.

Rules kept here: no package without proof that the exported graph computes what training computed; numbers on the card come
from the package as it lies on the disk, through the line's own inspection; photographs go into the report alone.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import linegate
from linegate.infer import prepare
from linegate.package import (
    CARD_FILE,
    MODEL_FILE,
    PARITY_FILE,
    SPLIT_FILE,
    Dataset,
    InputSpec,
    Manifest,
    ModelPackage,
    Outputs,
    OutputSpec,
    Parity,
    ParitySamples,
    Thresholds,
    Training,
    write_package,
)
from linegate_training.calibrate import Aim, OperatingPoint, operating_point
from linegate_training.card import write_card
from linegate_training.data.parts import PartSet, Sample, digest_of, read_part, sha256_of
from linegate_training.evaluate import measure, summarise
from linegate_training.export import (
    HALF_TOLERANCE,
    LINE_TOLERANCE,
    MAP,
    SCORE,
    TOLERANCE,
    Arrays,
    ParityProof,
    parity_samples,
    prove,
    run_graph,
)
from linegate_training.metrics import image_auroc
from linegate_training.quantise import compare_speed, keep_if_better, rounding_difference
from linegate_training.report import write_report
from linegate_training.settings import TrainSettings

PARITY_PARTS = 32
"""Export is proved over this many calibration parts."""
LIBRARIES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "scikit-learn", "scipy", "opencv-python")
REPORT_FILE = "report.html"
_MEANINGS: Mapping[str, str] = {
    "class_scores": "probability of each defect class, if the part is defective",
    "class_map": "probability of each defect class at each place",
    "detections": "left, top, right, bottom in shares of the region of interest, score, class from 0",
}


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A graph with what it was proved and is calibrated with.

    `expected` computes in torch what the graph must give, by name of output; a graph that was made from another, as in int8,
    has none, and `proof` is the other's. The scores are of parts that the scoring model has not learned from; `held_out` says
    that it was this very model; where it was not, `caveat` says how else (nothing: cross-fitting). `subsets` are by name of
    sample, for `split.csv`.
    """

    model: bytes
    expected: Callable[[NDArray[np.uint8]], Arrays] | None
    labels: tuple[str, ...]
    good_scores: NDArray[np.float64]
    defect_scores: NDArray[np.float64]
    good_peaks: NDArray[np.float64]
    held_out: bool
    caveat: str
    subsets: Mapping[str, str]
    split_words: str
    calibrating: Sequence[Sample]
    score_meaning: str
    map_meaning: str
    aim: Aim
    map_threshold: float | None = None
    detection_threshold: float = 0.3
    precision: str = "fp32"
    precision_words: str = ""
    history: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    learned_words: str = ""
    proof: ParityProof | None = None


@dataclass(frozen=True, slots=True)
class Naming:
    """What a package is called, and the command that made it."""

    name: str
    version: str
    command: str


def pack(
    trained: Trained, parts: PartSet, spec: InputSpec, settings: TrainSettings, naming: Naming, out: Path, run_dir: Path | None
) -> ModelPackage:
    """Prove, calibrate, write and measure a package; the report goes to `run_dir`.

    Raises:
        ParityError: the graph computes other numbers than torch; nothing is written.
        DataError: an image or mask is wrong.
    """
    proof = trained.proof or proved(trained, spec, settings.threads)
    say(f"parity: torch and onnxruntime differ by {proof.score:.1e} in score, {proof.map:.1e} in map, {proof.parts} parts")

    point = operating_point(
        trained.good_scores, trained.defect_scores, trained.good_peaks, trained.aim,
        held_out=trained.held_out, parts=trained.split_words, caveat=trained.caveat,
    )  # fmt: skip
    say(point.words)
    samples = parity_samples(trained.model, spec.size_wh, settings.seed)
    digests = {sample.name: sha256_of(sample.path) for sample in parts.samples}
    manifest = _describe(trained, parts, spec, settings, naming, point, samples, digests)
    manifest = manifest.model_copy(
        update={
            "parity": _tolerances(trained, samples),
            "metrics": {"parity": asdict(proof), "export": trained.precision_words, "learned": trained.learned_words},
        }
    )
    files = {
        MODEL_FILE: trained.model,
        PARITY_FILE: samples.to_bytes(),
        SPLIT_FILE: split_csv(parts, trained.subsets, digests),
    }
    size_bytes = sum(map(len, files.values()))
    card = write_card(manifest, parts, naming.command, size_bytes)
    package = write_package(out, manifest, {**files, CARD_FILE: card.encode()})
    if parts.tests():
        # Through the line's own path, from the package as it lies on the disk.
        say("measuring on the test parts")
        measured = measure(package, parts, checked=True)
        manifest = manifest.model_copy(update={"metrics": {**manifest.metrics, "test": summarise(measured)}})
        card = write_card(manifest, parts, naming.command, size_bytes)
        package = write_package(out, manifest, {**files, CARD_FILE: card.encode()})
        if run_dir is not None:
            run_dir.mkdir(parents=True, exist_ok=True)
            write_report(run_dir / REPORT_FILE, measured, package, trained.history)
            say(f"report: {run_dir / REPORT_FILE}")
    return package


def proved(trained: Trained, spec: InputSpec, threads: int) -> ParityProof:
    """Compare the graph with torch over calibration parts.

    Raises:
        ParityError: they differ.
    """
    assert trained.expected is not None
    held = trained.calibrating[:PARITY_PARTS]
    frames = (prepare(*read_part(sample), spec)[0] for sample in held)
    progress = tqdm(frames, "parity", total=len(held), unit="part", disable=None)
    tolerance = HALF_TOLERANCE if trained.precision == "fp16" else TOLERANCE
    return prove(trained.expected, trained.model, progress, threads, tolerance)


def choose_precision(full: Trained, other: Trained, parts: PartSet, spec: InputSpec, threads: int) -> Trained:
    """Return the int8 version where it is as good on the test parts and faster, else the full one, with the reason."""
    speeds = compare_speed(full.model, other.model)
    tests = parts.tests()
    defective = np.array([sample.defective for sample in tests], bool)
    aurocs = []
    for model in (full.model, other.model):
        frames = (prepare(*read_part(sample), spec)[0] for sample in tqdm(tests, "precision", unit="part", disable=None))
        scores = run_graph(model, frames, threads)[SCORE] if tests else np.zeros(0)
        aurocs.append(image_auroc(scores.astype(np.float64), defective))
    choice = keep_if_better(aurocs[0], aurocs[1], speeds)
    say(choice.reason)
    return replace(other if choice.kept else full, precision_words=choice.reason)


def _tolerances(trained: Trained, samples: ParitySamples) -> Parity:
    if trained.precision != "int8":
        share = LINE_TOLERANCE if trained.precision == "fp32" else HALF_TOLERANCE
        score = share * max(1.0, float(np.abs(samples.scores).max()))
        return Parity(score_tolerance=score, map_tolerance=share * max(1.0, float(np.abs(samples.maps).max())))
    # Steps may round either way on another processor, and what stands behind them follows: twice what was seen here.
    seen = rounding_difference(trained.model, [one[np.newaxis] for one in samples.pixels])
    others = [value for name, value in seen.items() if name not in (SCORE, MAP)]
    return Parity(
        score_tolerance=max(2.0 * seen[SCORE], 0.01),
        map_tolerance=max(2.0 * seen[MAP], 0.01),
        other_tolerance=max(2.0 * max(others, default=0.0), 0.01),
    )


def _describe(
    trained: Trained, parts: PartSet, spec: InputSpec, settings: TrainSettings, naming: Naming, point: OperatingPoint,
    samples: ParitySamples, digests: Mapping[str, str],
) -> Manifest:  # fmt: skip
    """Return `package.json` but for parity, metrics and the digests of files."""
    now = datetime.now(UTC).replace(microsecond=0)
    thresholds = point.thresholds("linegate train", now, settings.min_region_share, trained.map_threshold)
    update: dict[str, Any] = {"detection": trained.detection_threshold}
    if trained.map_threshold is not None:
        update["map"] = trained.map_threshold
    thresholds = Thresholds.model_validate({**thresholds.model_dump(), **update})
    counts = {"train": 0, "calibration": 0, **Counter(trained.subsets.values())}
    others = {
        name: OutputSpec(name=name, shape=(1, *values.shape[1:]), meaning=_MEANINGS[name])
        for name, values in samples.others.items()
    }
    versions = {library: _version(library) for library in LIBRARIES}
    return Manifest(
        name=naming.name,
        version=naming.version,
        task="typed" if "class_scores" in others else "anomaly",
        labels=trained.labels,
        created_at=now,
        input=spec,
        outputs=Outputs(
            score=OutputSpec(name=SCORE, shape=(1,), meaning=trained.score_meaning),
            map=OutputSpec(name=MAP, shape=(1, *samples.maps.shape[1:]), meaning=trained.map_meaning),
            **others,
        ),
        thresholds=thresholds,
        dataset=Dataset(
            name=parts.name, digest=digest_of(digests.items()), licence=parts.licence, source=parts.source,
            split={"data_set": parts.split, "good_parts": trained.split_words, **counts, "test": len(parts.tests())},
        ),
        training=Training(
            settings=settings.model_dump(mode="json"), seed=settings.seed, code_version=linegate.__version__,
            libraries={"python": platform.python_version(), **versions},
        ),
        metrics={},
        parity=Parity(score_tolerance=1.0, map_tolerance=1.0),
        files={MODEL_FILE: "0" * 64, PARITY_FILE: "0" * 64, CARD_FILE: "0" * 64},
    )  # fmt: skip


def split_csv(parts: PartSet, subsets: Mapping[str, str], digests: Mapping[str, str]) -> bytes:
    """Return `split.csv`: name, sha256, subset and label of every image of the data set."""
    rows = [
        f"{_quoted(sample.name)},{digests[sample.name]},{subsets.get(sample.name, sample.subset)},{_quoted(sample.label)}"
        for sample in parts.samples
    ]
    return ("\n".join(["name,sha256,subset,label", *rows]) + "\n").encode()


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def say(text: str) -> None:
    """Tell the person at the terminal; standard output stays for programs."""
    print(text, file=sys.stderr, flush=True)


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
