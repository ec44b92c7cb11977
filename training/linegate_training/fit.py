"""The training loop of every net that learns by gradient descent, reading from top to bottom.

Rules kept here: what is computed is a function of settings, data and epoch alone, so a training that was killed and
resumed gives the numbers of one that was not (exactly so on the CPU); a loss or gradient that is not finite stops with the
images named; only the first process validates, writes and prints. Which net, loss, data and validation is left to the
caller; how processes find each other to `processes`, files to `checkpoints`, the display to `progress` and `tracking`.

Random numbers are seeded anew at each epoch from seed, epoch and process, so a checkpoint, always between epochs, needs no
states of generators, and more processes or another number of loading workers resume it just as well.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from linegate.errors import DataError, LinegateError, SettingsError
from linegate_training.checkpoints import CHECKPOINT_FILE, read_checkpoint, write_checkpoint
from linegate_training.fit_settings import MAY_CHANGE, FitSettings
from linegate_training.processes import World, choose_device, from_first, joined, mean_of_all, state_from_first, world
from linegate_training.progress import Progress
from linegate_training.steps import (
    Batch,
    Loss,
    NotFiniteError,
    average_into,
    choose_precision,
    deterministic,
    fitting_batch,
    is_out_of_memory,
    parameter_groups,
    seed_all,
    take_step,
    to_device,
)
from linegate_training.tracking import open_tracker

Fact: TypeAlias = str | int | float | bool | None

LOG_FILE: Final = "log.jsonl"
FINAL_RATE: Final = 0.01
"""Share of the learning rate that the cosine ends at."""
NAMES_TOLD: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class FitResult:
    """What came of a training; `net` is the one given, on the CPU, in evaluation mode, with the weights that were kept."""

    net: nn.Module
    epochs: int
    kept_epoch: int
    validation: float | None
    """Of the weights kept; None without validation."""
    stopped_early: bool
    resumed_after: int
    """Epochs that an earlier process had done; 0: none."""
    history: tuple[dict[str, float], ...]
    """The lines of log.jsonl."""


def fit(
    net: nn.Module,
    loss: Loss,
    train_data: Dataset[Any],
    validate: Callable[[nn.Module], float] | None,
    settings: FitSettings,
    run_dir: Path,
    *,
    resume: bool = False,
    about: Mapping[str, Fact] | None = None,
    weights: Sequence[float] | None = None,
    collate: Callable[[list[Any]], Batch] = default_collate,
    describe_batch: Callable[[Batch], str] | None = None,
) -> FitResult:
    """Train `net` in place and return it with the weights kept.

    Items of `train_data` are dicts of tensors with a "name"; if it has `set_epoch(epoch)`, that is called before each
    epoch, counted from 1. `loss` gets the net and a batch on the device and returns a mean over its images, or a dict of
    such with "loss". `validate` gets the averaged net on the device in evaluation mode; higher is better. `about` are plain
    facts (digest of the data, name of the net) that a resumed checkpoint must agree in. `weights` (one an image) draw images
    with replacement in proportion. A net with `parameter_groups(learning_rate)` chooses its own groups for AdamW.

    Raises:
        SettingsError: there is no such device, or the batch does not divide among the processes.
        DataError: there is no image, or loss, gradient or validation is not finite; the text names the images.
        LinegateError: out of memory (the text names a batch that fits), or a checkpoint of something else.
    """
    here = world()
    device = choose_device(settings.device, here)
    if settings.batch % here.size:
        raise SettingsError(f"batch = {settings.batch}: does not divide among {here.size} processes: set a multiple of them")
    images = len(cast(Sized, train_data))
    if images == 0:
        raise DataError("no image to train on: add images")
    steps = math.ceil(images / settings.batch)
    facts: dict[str, Fact] = settings.model_dump(exclude=set(MAY_CHANGE)) | dict(about or {}) | {"images": images}
    checkpoint = run_dir / CHECKPOINT_FILE
    run_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(settings.threads)

    with contextlib.ExitStack() as stack:
        stack.enter_context(joined(here, device))
        stack.enter_context(deterministic(device))
        net.to(device)
        optimizer = torch.optim.AdamW(parameter_groups(net, settings))
        rates = [group["lr"] for group in optimizer.param_groups]
        precision = choose_precision(settings, device)
        autocast = torch.autocast(device.type, precision, enabled=precision is not torch.float32)
        scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)

        done, best, best_epoch, worse, history, stopped = 0, -math.inf, 0, 0, list[dict[str, float]](), False
        best_state: dict[str, Tensor] | None = None
        averaged_state: dict[str, Tensor] | None = None
        if resume and checkpoint.exists():
            state = read_checkpoint(checkpoint, facts)
            try:
                net.load_state_dict(state["net"])
                optimizer.load_state_dict(state["optimizer"])
            except (RuntimeError, ValueError) as error:
                raise LinegateError(f"{checkpoint}: the checkpoint is of another net: delete it to train this one") from error
            scaler.load_state_dict(state["scaler"])
            done, best, best_epoch, worse = state["epoch"], state["best"], state["best_epoch"], state["worse"]
            best_state, averaged_state = state["best_state"], state["averaged"]
            history, stopped = state["history"], state["stopped"]
        elif here.first:
            checkpoint.unlink(missing_ok=True)  # else a run killed early would be resumed from another one's checkpoint
        resumed_after = done
        state_from_first(net, here)
        averaged = copy.deepcopy(net).requires_grad_(False).eval()
        if averaged_state is not None:
            averaged.load_state_dict(averaged_state)
        if here.first:
            (run_dir / LOG_FILE).write_text("".join(json.dumps(line) + "\n" for line in history), encoding="utf-8")
            if resume:
                print(f"resuming after epoch {done} of {settings.epochs}" if done else "nothing to resume yet: beginning",
                      file=sys.stderr, flush=True)  # fmt: skip
        kind = settings.log if here.first else "none"
        tracker = stack.enter_context(contextlib.closing(open_tracker(kind, run_dir, done + 1, facts)))
        progress = Progress(settings.epochs, steps * settings.batch, done * steps * settings.batch, shown=here.first)
        stack.enter_context(contextlib.closing(progress))
        written_at = time.monotonic()

        while done < settings.epochs and not stopped:
            epoch = done + 1
            seed_all(settings.seed, epoch, here.rank)
            if hasattr(train_data, "set_epoch"):
                train_data.set_epoch(epoch)
            batches = batches_of(images, settings.batch, settings.seed, epoch, here, weights)
            loader = DataLoader(
                train_data, batch_sampler=batches, num_workers=settings.workers, collate_fn=collate,
                pin_memory=device.type == "cuda", generator=torch.Generator().manual_seed(settings.seed + epoch),
            )  # fmt: skip
            net.train()
            sums: dict[str, float] = defaultdict(float)
            factor = 1.0
            begun = time.monotonic()
            for step, (indices, batch) in enumerate(zip(batches, loader, strict=True)):
                factor = rate_factor(epoch - 1 + step / steps, settings)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                exhausted = False
                try:
                    batch = to_device(batch, device)
                    values = take_step(net, loss, batch, optimizer, scaler, autocast, settings.gradient_clip, here)
                except NotFiniteError as error:
                    named = (describe_batch or names_of)(batch)
                    raise DataError(
                        f"epoch {epoch}, step {step + 1}: {error} in the batch of {named}: look at these images, or lower "
                        f"learning_rate ({settings.learning_rate:g})"
                    ) from None
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    exhausted = True
                if exhausted:  # outside of `except`, whose traceback would keep the memory
                    del batch
                    fitting = fitting_batch(net, loss, train_data, indices, collate, device, optimizer, autocast)
                    raise LinegateError(_out_of_memory(settings.batch, fitting * here.size))
                taken = (epoch - 1) * steps + step + 1
                # Short memory at first, or the average would hold on to the initial weights.
                average_into(averaged, net, min(settings.ema_decay, taken / (9 + taken)))
                for name, value in values.items():
                    sums[name] += value
                progress.step(epoch, settings.batch, values["loss"])
            seconds = time.monotonic() - begun
            means = mean_of_all([value / steps for value in sums.values()], here, device)
            record = dict(zip(sums, means, strict=True))

            done = epoch
            validation = None
            if validate is not None and (epoch % settings.validate_every == 0 or epoch == settings.epochs):
                found = _validated(validate, averaged, epoch) if here.first else 0.0
                validation = from_first([found], here, device)[0]
                worse = 0 if validation > best else worse + settings.validate_every
                stopped = 0 < settings.patience <= worse and epoch < settings.epochs
                # Of equals the later one: it has learned for longer.
                if validation >= best:
                    best, best_epoch = validation, epoch
                    best_state = {name: value.detach().cpu().clone() for name, value in averaged.state_dict().items()}
            last = stopped or done == settings.epochs
            progress.epoch_done(epoch, record["loss"], validation, last)
            record |= {"learning_rate": settings.learning_rate * factor, "images_per_s": steps * settings.batch / seconds}
            record |= {} if validation is None else {"validation": validation}
            tracker.log(epoch, record)
            history.append({"epoch": epoch, **record, "left_s": 0.0 if last else progress.pace().left_s})
            if here.first:
                with (run_dir / LOG_FILE).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(history[-1]) + "\n")
                if last or time.monotonic() - written_at >= settings.checkpoint_every_s:
                    write_checkpoint(checkpoint, facts, {
                        "epoch": done, "net": net.state_dict(), "averaged": averaged.state_dict(),
                        "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), "best": best,
                        "best_epoch": best_epoch, "best_state": best_state, "worse": worse, "stopped": stopped,
                        "history": history,
                    })  # fmt: skip
                    written_at = time.monotonic()

        keeps_best = settings.keep == "best" and best_state is not None
        net.load_state_dict(best_state if keeps_best and best_state is not None else averaged.state_dict())
        state_from_first(net, here)
        seed_all(settings.seed, settings.epochs + 1, here.rank)  # what comes next does not depend on where this was resumed
    kept_epoch = best_epoch if keeps_best else done
    kept_validation = best if keeps_best else history[-1].get("validation")
    net.to("cpu").eval()
    return FitResult(net, done, kept_epoch, kept_validation, stopped, resumed_after, tuple(history))


def batches_of(
    images: int, batch: int, seed: int, epoch: int, here: World | None = None, weights: Sequence[float] | None = None
) -> list[list[int]]:
    """Return the image numbers of each of this process's batches: a function of seed and epoch, all batches full.

    The last batch is filled up with the epoch's first images, so normalisation never meets a batch of one.
    """
    here = here or World()
    generator = np.random.default_rng([seed, epoch])
    if weights is None:
        order = generator.permutation(images)
    else:
        shares = np.asarray(weights, dtype=np.float64)
        if shares.shape != (images,) or not np.isfinite(shares).all() or shares.min() < 0 or shares.sum() <= 0:
            raise ValueError(f"weights must be {images} numbers of 0 or more, not all 0")
        order = generator.choice(images, size=images, p=shares / shares.sum())
    share = batch // here.size
    rows = np.resize(order, (math.ceil(images / batch), batch))[:, here.rank * share : (here.rank + 1) * share]
    return cast("list[list[int]]", rows.tolist())


def rate_factor(epochs_done: float, settings: FitSettings) -> float:
    """Return the share of the learning rate after `epochs_done` (broken) epochs: linear warm-up, then the schedule.

    The cosine is that of Loshchilov and Hutter, SGDR, 2017, without restarts.
    """
    if epochs_done < settings.warmup_epochs:
        return FINAL_RATE + (1 - FINAL_RATE) * epochs_done / settings.warmup_epochs
    if settings.schedule == "constant":
        return 1.0
    share = (epochs_done - settings.warmup_epochs) / (settings.epochs - settings.warmup_epochs)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * share))


def names_of(batch: Batch) -> str:
    """Return which images a batch holds, and which of them hold values that are not finite."""
    names = [str(name) for name in batch.get("name", ())]
    broken = {
        names[row]
        for value in batch.values()
        if isinstance(value, Tensor) and value.is_floating_point() and len(value) == len(names)
        for row in (~torch.isfinite(value.flatten(1) if value.ndim > 1 else value[:, None])).any(1).nonzero()[:, 0].tolist()
    }
    more = f" and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else ""
    told = f"{', '.join(names[:NAMES_TOLD])}{more}"
    return f"{told} (not finite in themselves: {', '.join(sorted(broken))})" if broken else told


def _validated(validate: Callable[[nn.Module], float], averaged: nn.Module, epoch: int) -> float:
    averaged.eval()
    try:
        with torch.no_grad():
            found = float(validate(averaged))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise LinegateError(f"epoch {epoch}: out of memory while validating: validate in smaller batches") from error
    if not math.isfinite(found):
        raise DataError(f"epoch {epoch}: the validation is {found}: look at the validation images, good and defective")
    return found


def _out_of_memory(batch: int, fitting: int) -> str:
    if fitting:
        return f"out of memory at batch {batch}: {fitting} fits: set batch = {fitting}"
    return f"out of memory at batch {batch}, and no smaller one was seen to fit: train on smaller images, or free memory"
