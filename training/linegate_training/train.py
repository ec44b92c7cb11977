"""Photographs of parts → a model package: which regime, which input, what is learned, reading from top to bottom.

Rules kept here: without a defect to learn from, good parts alone decide; test parts are never learned from; the same seed
gives the same graph. Learning is left to `good_parts` and `learn`, writing to `packaging`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from linegate.errors import DataError, SettingsError
from linegate.infer import prepare
from linegate.package import InputSpec, ModelPackage
from linegate_training.augment import augmenter, recipe_from
from linegate_training.calibrate import Aim
from linegate_training.commands.export import SETTINGS_FILE, TRAINED_FILE
from linegate_training.data.duplicates import find_groups, note_leaks
from linegate_training.data.parts import (
    PartSet,
    Sample,
    check_different,
    check_masks,
    check_sizes,
    image_sizes,
    label_regions,
    read_mask,
    read_part,
    sha256_of,
)
from linegate_training.data.splits import Split, split_goods, split_learning
from linegate_training.export import INPUT, MAP, SCORE, Arrays, frame_example, run_graph, to_onnx
from linegate_training.good_parts import MIN_GOODS, extract, fit, learn_guard, session_extractor, torch_extractor
from linegate_training.graphs import FeatureSession, assemble
from linegate_training.learn import learn, read_learned, write_learned
from linegate_training.learn_settings import LearnSettings
from linegate_training.models.good_only import MAP_SCALE, FeatureNet, GoodOnlyNet
from linegate_training.packaging import Naming, Trained, choose_precision, pack, proved, say
from linegate_training.processes import world
from linegate_training.progress import tell
from linegate_training.quantise import CALIBRATION_FRAMES, quantise, to_half
from linegate_training.risk import Costs
from linegate_training.settings import STRIDE_PX, TrainSettings
from linegate_training.steps import only_deterministic

USUAL_PX = 256
SMALLEST_PX = 8.0
"""A defect that is narrower in the input leaves little in features at stride 4."""
SQUARE = 1.25
"""Parts whose aspect differs from a square by less are seen as squares."""
LONGEST = 4
"""The longer side of the input is at most so many times the shorter."""
STATISTICS, PLACES = "statistics", "places"
LEAST_LOGIT = -1.5
"""Odds of about one in five, under which no part fails unless a defective one scores so low: heads are so sure of parts like
those they learned from that the promise alone would fail every part that differs a little."""
ESCAPE_RATE = 0.01
"""What is asked for where there are defective parts alone."""
PROMISE_PARTS = 299
"""Good parts that a promise of 1 % with 95 % confidence takes."""

LEARNED = "learned; proving and measuring the package"
"""What those who listen are told when there is nothing more to learn."""
_LOGIT = "logit of being defective: 0 is even odds"
_FRESH = "calibrate on fresh parts (`linegate calibrate`) for an exact promise."
_ALSO_VALIDATED = f"About, for some of these parts also chose among the weights: {_FRESH}"
_ALSO_LEARNED = f"The model has learned from these very parts, so nothing here is a promise: {_FRESH}"


def train(
    parts: PartSet,
    out: Path,
    naming: Naming,
    settings: TrainSettings,
    run_dir: Path | None = None,
    ignore: Path | None = None,
    resume: bool = False,
    trained: Path | None = None,
) -> ModelPackage | None:
    """Learn from `parts`, write the package to `out` and return it; the report goes to `run_dir`.

    Of several processes (torchrun) the first does what is not learning by steps; the others return None.

    Defective parts to learn from are learned from, unless `settings.instant`. `resume` goes on with what an interrupted
    training left in `run_dir`; with `trained`, a net that an earlier training left is exported as it is. `ignore` is a mask
    over the region of interest, of any size: what is not 0 in it is not looked at.

    Raises:
        DataError: there are too few parts, or an image or mask is wrong.
        ParityError: the export computes other numbers than torch; nothing is written.
    """
    first = world().first
    if run_dir is not None and first:
        write_settings(run_dir, settings)
    torch.set_num_threads(settings.threads)
    only_deterministic()
    check_sizes(parts.samples, parts.name)
    check_masks([*parts.goods(), *parts.defects(), *parts.tests()], parts.name)
    note_leaks(parts)
    if parts.defects() and not settings.instant:
        if ignore is not None:
            raise SettingsError("--ignore: is only for learning from good parts so far: leave it out, or use --roi")
        spec = InputSpec(size_wh=working_size([*parts.goods(), *parts.defects()], settings), roi_xyxy=settings.roi_xyxy)
        result = learn_parts(parts, spec, settings, run_dir or Path("runs") / naming.name, resume, trained)
    elif first:
        found = len(parts.goods())
        if found < MIN_GOODS:
            raise DataError(f"{parts.name}: {found} good images, at least {MIN_GOODS} are needed (better 100): add more")
        spec = InputSpec(size_wh=working_size(parts.goods(), settings), roi_xyxy=settings.roi_xyxy)
        result = learn_goods(parts, spec, settings, ignore)
    else:
        result = None
    if result is None:
        return None
    if settings.precision == "fp16":
        result = replace(result, model=to_half(result.model), precision="fp16")
    tell(1.0, LEARNED)
    return pack(result, parts, spec, settings, naming, out, run_dir)


def learn_goods(parts: PartSet, spec: InputSpec, settings: TrainSettings, ignore: Path | None) -> Trained:
    """Learn from the good parts alone, in int8 where that is asked for and pays."""
    goods = parts.goods()
    check_different([sha256_of(sample.path) for sample in goods], parts.name, "good images")
    groups = find_groups(goods)
    split = split_goods(
        groups.ids, settings.seed, settings.calibration_share, settings.cross_fit_below, settings.cross_fit_folds,
        groups.words,
    )  # fmt: skip
    say(f"{parts.name}: {split.words}")
    keep = None if ignore is None else read_ignore(ignore, spec)
    trained = learn_good_parts(goods, split, spec, settings, keep)
    if settings.precision == "int8":
        quantised = learn_good_parts(goods, split, spec, settings, keep, int8=True)
        trained = choose_precision(trained, quantised, parts, spec, settings.threads)
    return trained


def write_settings(run_dir: Path, settings: TrainSettings) -> None:
    """Keep the settings of a run beside what comes of it.

    Raises:
        SettingsError: the folder cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / SETTINGS_FILE).write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--run-dir {run_dir}: cannot be written ({error.strerror}): name another folder") from error


def learn_parts(
    parts: PartSet, spec: InputSpec, settings: TrainSettings, run_dir: Path, resume: bool, trained_file: Path | None
) -> Trained | None:
    """Learn from good and defective parts, or from defective ones of several classes; or take what was learned before.

    All processes of torchrun learn; all but the first return None.
    """
    samples = [*parts.goods(), *parts.defects()]
    classes = tuple(sorted({sample.label for sample in parts.defects()}))
    groups = find_groups(samples)
    shares = (settings.validation_share, settings.validation_share)
    split = split_learning([sample.label for sample in samples], groups.ids, settings.seed, *shares, groups.words)
    say(f"{parts.name}: {split.words}")
    for note in split.notes:
        say(f"note: {parts.name}: {note}")
    history: Sequence[Mapping[str, float]] = ()
    if trained_file is None:
        learned = learn(samples, split, classes, spec, learn_settings(settings, spec), run_dir, resume)
        if not world().first:
            return None
        net, history, learned_words = learned.net, learned.history, learned.words
        for note in learned.notes:
            say(f"note: {parts.name}: {note}")
        thresholds = learned.thresholds
        known = [index for index in split.fit if samples[index].label == "good"]
        defects = sum(samples[index].defective for index in split.fit)
        own = [groups.ids[index] for index in known]
        net.guard = learn_guard(net, [samples[index] for index in known], own, defects, spec, settings)
        write_learned(net, thresholds, run_dir / TRAINED_FILE)
    else:
        net, thresholds = read_learned(trained_file)
        learned_words = "learned in an earlier run, whose weights these are"
        if net.shape.size_wh != spec.size_wh or net.shape.classes != len(classes):
            raise SettingsError(f"{trained_file}: is of other data (input {net.shape.size_wh}, {net.shape.classes} classes)")
    say(f"{parts.name}: {learned_words}")
    model = to_onnx(net, [frame_example(spec.size_wh)], [INPUT], net.output_names)

    def expected(pixels: NDArray[np.uint8]) -> Arrays:
        with torch.inference_mode():
            values = net(torch.from_numpy(pixels))
        return {name: value.numpy() for name, value in zip(net.output_names, values, strict=True)}

    # Parts that chose the weights calibrate too where the others are too few for a promise.
    exact = [index for index in split.calibration if not samples[index].defective]
    enough = len(exact) >= PROMISE_PARTS
    chosen = [*split.calibration, *(() if enough else split.validation)] or list(split.fit)
    calibrating = [samples[index] for index in sorted(chosen)]
    trained = Trained(
        model=model,
        expected=expected,
        labels=("good", *classes),
        good_scores=np.zeros(0),
        defect_scores=np.zeros(0),
        good_peaks=np.zeros(0),
        held_out=enough,
        caveat=_ALSO_VALIDATED if split.validation or split.calibration else _ALSO_LEARNED,
        subsets={sample.name: split.subset(index) for index, sample in enumerate(samples)},
        split_words=split.words,
        calibrating=calibrating,
        score_meaning=_LOGIT if net.guard is None else f"{_LOGIT}, plus {net.guard.weight:.2f} x the distance from good parts",
        map_meaning="logit of being defective, at each place of 4 pixels",
        aim=_aim(calibrating, settings),
        map_threshold=thresholds.map,
        detection_threshold=thresholds.detection,
        history=history,
        learned_words=learned_words,
    )
    trained = scored(trained, spec, settings.threads)
    if settings.precision == "int8":
        frames = [
            prepare(*read_part(samples[index]), spec)[0] for index in split.fit[:: max(1, len(split.fit) // CALIBRATION_FRAMES)]
        ]
        proof = proved(trained, spec, settings.threads)
        quantised = replace(trained, model=quantise(model, frames), expected=None, proof=proof, precision="int8")
        quantised = scored(quantised, spec, settings.threads)
        trained = choose_precision(trained, quantised, parts, spec, settings.threads)
    return trained


def learn_settings(settings: TrainSettings, spec: InputSpec) -> LearnSettings:
    """Return the settings of learning from defects, with the seed, threads and recipe of the whole training.

    `images_shown` counts images of the usual size: of larger ones fewer are shown, in the same time.
    """
    share = USUAL_PX * USUAL_PX / (spec.size_wh[0] * spec.size_wh[1])
    shown = round(settings.learn.images_shown * min(1.0, share))
    fitting = settings.learn.fit.model_copy(update={"seed": settings.seed, "threads": settings.threads})
    return settings.learn.model_copy(update={"fit": fitting, "augment": recipe_from(settings.augment), "images_shown": shown})


def scored(trained: Trained, spec: InputSpec, threads: int) -> Trained:
    """Return the same with the scores of its calibration parts, and the good ones' greatest map values, from its graph."""
    frames = (prepare(*read_part(sample), spec)[0] for sample in trained.calibrating)
    outputs = run_graph(trained.model, frames, threads)
    defective = np.array([sample.defective for sample in trained.calibrating], bool)
    scores, peaks = outputs[SCORE].astype(np.float64), outputs[MAP].astype(np.float64).max((1, 2))
    return replace(trained, good_scores=scores[~defective], defect_scores=scores[defective], good_peaks=peaks[~defective])


def _aim(calibrating: Sequence[Sample], settings: TrainSettings) -> Aim:
    goods = sum(not sample.defective for sample in calibrating)
    if goods < 2:
        # Nothing tells what good parts look like: all that looks like a defect fails, until `linegate calibrate` has seen some.
        enough = len(calibrating) - goods >= 2
        return Aim(escape_rate=ESCAPE_RATE, confidence=settings.confidence) if enough else Aim(threshold=0.0)
    if settings.operating_point == "accuracy":
        share = min(max(1.0 - goods / len(calibrating), 0.01), 0.99)
        return Aim(costs=Costs(1.0, 1.0, share))
    return Aim(settings.false_reject_rate, confidence=settings.confidence, at_least=LEAST_LOGIT)


def working_size(samples: Sequence[Sample], settings: TrainSettings) -> tuple[int, int]:
    """Return the input's width and height: the longer side follows the usual aspect of the photographs.

    The shorter side is `size_px`, or `USUAL_PX` and as much more, to the double, as the smallest marked defects need: nine of
    ten must be `SMALLEST_PX` across. Multiples of the backbone's stride; parts that are nearly square are seen as squares.
    """
    roi = settings.roi_xyxy or (0.0, 0.0, 1.0, 1.0)
    sizes = np.array(image_sizes(samples), float) * (roi[2] - roi[0], roi[3] - roi[1])
    aspect = float(np.median(sizes[:, 0] / sizes[:, 1]))
    long = min(max(aspect, 1 / aspect), LONGEST)
    short = settings.size_px
    if short is None:
        across = [defect_px(sample) / side for sample, side in zip(samples, sizes.min(1), strict=True) if sample.defective]
        marked = [share for share in across if share > 0]
        wanted = SMALLEST_PX / float(np.percentile(marked, 10)) if marked else 0.0
        short = int(np.clip(np.ceil(wanted / STRIDE_PX) * STRIDE_PX, USUAL_PX, 2 * USUAL_PX))
        if short > USUAL_PX:
            say(f"defects are small against the part: the input's shorter side is {short} pixels instead of {USUAL_PX}")
    if long < SQUARE:
        return short, short
    longer = round(short * long / STRIDE_PX) * STRIDE_PX
    return (longer, short) if aspect > 1 else (short, longer)


def defect_px(sample: Sample) -> float:
    """Return the root of the area of a part's largest marked defect, in pixels of the image; 0 where none is marked."""
    if sample.boxes:
        return max(math.sqrt((box.xyxy[2] - box.xyxy[0]) * (box.xyxy[3] - box.xyxy[1])) for box in sample.boxes)
    if sample.mask is None:
        return 0.0
    areas = np.bincount(label_regions(read_mask(sample, image_sizes([sample])[0])).ravel())[1:]
    return math.sqrt(areas.max()) if len(areas) else 0.0


def read_ignore(path: Path, spec: InputSpec) -> NDArray[np.bool_]:
    """Return what is looked at (H, W), from a mask over the region of interest.

    Raises:
        DataError: the mask cannot be read, or leaves nothing to look at.
    """
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise DataError(f"{path}: the ignore mask cannot be read: save it as 8-bit grey PNG")
    shrunk = cv2.resize((mask != 0).astype(np.uint8) * 255, spec.size_wh, interpolation=cv2.INTER_AREA)
    keep: NDArray[np.bool_] = shrunk == 0
    if keep.mean() < 0.01:
        raise DataError(f"{path}: the ignore mask leaves {keep.mean():.1%} of the part to look at: mark less")
    return keep


def learn_good_parts(
    goods: Sequence[Sample],
    split: Split,
    spec: InputSpec,
    settings: TrainSettings,
    keep: NDArray[np.bool_] | None = None,
    int8: bool = False,
) -> Trained:
    """Learn from good parts alone; with `int8` the backbone is quantised first, and the head fitted to what it then says."""
    net = FeatureNet(spec.size_wh, keep)
    vary = None
    if len(goods) < settings.vary_below:
        vary = augmenter(recipe_from(settings.augment), settings.seed)
    features_graph = b""
    extractor = torch_extractor(net)
    if int8:
        features_graph = to_onnx(net, [frame_example(spec.size_wh)], [INPUT], [STATISTICS, PLACES])
        chosen = np.random.default_rng(settings.seed).permutation(len(goods))[:CALIBRATION_FRAMES]
        features_graph = quantise(features_graph, (prepare(*read_part(goods[index]), spec)[0] for index in sorted(chosen)))
        extractor = session_extractor(FeatureSession(features_graph, settings.threads))
    fitted = fit(extract(extractor, goods, spec, settings, vary), split, settings)
    if int8:
        width = int(fitted.head.whole.mean.shape[0])
        channels, height, breadth = (int(size) for size in fitted.head.place_mean.shape[1:])
        examples = [torch.zeros((1, width)), torch.zeros((1, channels, height, breadth))]
        model = assemble(features_graph, to_onnx(fitted.head, examples, [STATISTICS, PLACES], [SCORE, MAP]))
    else:
        model = to_onnx(GoodOnlyNet(net, fitted.head), [frame_example(spec.size_wh)], [INPUT], [SCORE, MAP])

    def expected(pixels: NDArray[np.uint8]) -> Arrays:
        statistics, places = extractor(pixels)
        with torch.inference_mode():
            score, anomaly_map = fitted.head(torch.from_numpy(statistics), torch.from_numpy(places))
        return {SCORE: score.numpy(), MAP: anomaly_map.numpy()}

    return Trained(
        model=model,
        expected=expected,
        labels=("good", "defect"),
        good_scores=fitted.scores,
        defect_scores=np.zeros(0),
        good_peaks=fitted.peaks,
        held_out=not split.refit,
        caveat="",
        subsets={sample.name: split.subset(index) for index, sample in enumerate(goods)},
        split_words=split.words,
        calibrating=[goods[index] for _, indices in split.rounds for index in indices],
        score_meaning="distance from good parts: 0 typical, 1 exceeded by a tenth",
        map_meaning=f"the cube root of the score, shared out over cells of 16 pixels, drawn {MAP_SCALE} times finer",
        aim=Aim(settings.false_reject_rate, confidence=settings.confidence),
        precision="int8" if int8 else "fp32",
    )
