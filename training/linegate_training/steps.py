"""One step of a training: forward, backward, update, average; and what can go wrong in it.

Rules kept here: nothing that is not finite reaches the weights; out of memory is told apart from all other errors, and
answered with a batch that was seen to fit.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from linegate_training.fit_settings import FitSettings
from linegate_training.processes import World, share_gradients

Batch: TypeAlias = dict[str, Any]
Loss: TypeAlias = Callable[[nn.Module, Batch], Tensor | Mapping[str, Tensor]]

OUT_OF_MEMORY = (
    "out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "bad_alloc",
    "could not create a primitive",
)  # fmt: skip
"""What torch's allocators, and oneDNN's, say of the CPU and of GPUs, where they raise no OutOfMemoryError."""


class NotFiniteError(Exception):
    """A loss or gradient is nan or infinite; the text says which."""


def losses_of(net: nn.Module, loss: Loss, batch: Batch) -> dict[str, Tensor]:
    """Return what the loss gives, by name; the one to learn from is `loss`."""
    found = loss(net, batch)
    return dict(found) if isinstance(found, Mapping) else {"loss": found}


def take_step(
    net: nn.Module, loss: Loss, batch: Batch, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
    autocast: AbstractContextManager[Any], clip: float, here: World,
) -> dict[str, float]:  # fmt: skip
    """Learn from one batch, of which each process has its share, and return this process's losses by name.

    Raises:
        NotFiniteError: a loss or the gradient is nan or infinite; the weights are as they were.
    """
    optimizer.zero_grad(set_to_none=True)
    with autocast:
        losses = losses_of(net, loss, batch)
    values = dict(zip(losses, torch.stack([value.detach().float() for value in losses.values()]).tolist(), strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            raise NotFiniteError(f"the {'loss' if name == 'loss' else f'loss {name!r}'} is {value}")
    torch.autograd.backward(scaler.scale(losses["loss"]))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    share_gradients(parameters, here)
    scaler.unscale_(optimizer)
    norm = float(nn.utils.clip_grad_norm_(parameters, clip or math.inf))
    if not scaler.is_enabled() and not math.isfinite(norm):
        raise NotFiniteError(f"the gradient is {norm}")
    scaler.step(optimizer)  # leaves out a step whose fp16 gradient overflowed, and scales the next one less
    scaler.update()
    if scaler.is_enabled() and scaler.get_scale() < 1:
        raise NotFiniteError('the gradient overflows fp16 at any scale: set precision = "fp32";')
    return values


def average_into(averaged: nn.Module, net: nn.Module, decay: float) -> None:
    """Move the exponential moving average one step: averaged = decay · averaged + (1 − decay) · net; counters are copied."""
    with torch.no_grad():
        floats, currents = [], []
        for mean, current in zip(averaged.state_dict().values(), net.state_dict().values(), strict=True):
            if mean.is_floating_point():
                floats.append(mean)
                currents.append(current)
            else:
                mean.copy_(current)
        if floats:
            torch._foreach_lerp_(floats, currents, 1 - decay)


def parameter_groups(net: nn.Module, settings: FitSettings) -> list[dict[str, Any]]:
    """Return what the optimiser moves and how fast: the net's own groups, or all with no decay on biases and norms."""
    own = getattr(net, "parameter_groups", None)
    if callable(own):
        groups: list[dict[str, Any]] = [dict(group) for group in own(settings.learning_rate)]
        for group in groups:
            group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
        groups = [group for group in groups if group["params"]]
    else:
        learned = [parameter for parameter in net.parameters() if parameter.requires_grad]
        matrices = {"params": [parameter for parameter in learned if parameter.ndim > 1]}
        vectors = {"params": [parameter for parameter in learned if parameter.ndim <= 1], "weight_decay": 0.0}
        groups = [group for group in (matrices, vectors) if group["params"]]
    if not groups:
        raise ValueError("the net has no parameter that requires a gradient")
    return [{"lr": settings.learning_rate, "weight_decay": settings.weight_decay, **group} for group in groups]


def choose_precision(settings: FitSettings, device: torch.device) -> torch.dtype:
    """Return the type that the setting `precision` names on this device."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if settings.precision != "auto":
        return named[settings.precision]
    if device.type == "cpu":
        return torch.float32
    # Emulated bf16 is slower than fp32.
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def seed_all(seed: int, epoch: int, rank: int) -> None:
    """Seed Python's, numpy's and torch's generators, on all devices, for an epoch of a process."""
    one, two, three = np.random.SeedSequence([seed, epoch, rank]).generate_state(3).tolist()
    random.seed(one)
    np.random.seed(two)
    torch.manual_seed(three)


def only_deterministic(wanted: bool = True) -> None:
    """Allow only algorithms that give the same numbers each time."""
    torch.use_deterministic_algorithms(wanted)
    # torch would fill all memory before use, which costs a tenth of a step and helps only who reads what nobody wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Compute the same numbers twice, on the CPU; on GPUs that costs speed, and some operations have no such form."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    only_deterministic(device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on the device."""
    return {name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for name, value in batch.items()}


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)


def fitting_batch(
    net: nn.Module, loss: Loss, train_data: Dataset[Any], indices: Sequence[int], collate: Callable[[list[Any]], Batch],
    device: torch.device, optimizer: torch.optim.Optimizer, autocast: AbstractContextManager[Any],
) -> int:  # fmt: skip
    """Return how many of the images fit, by halving their number and taking a step; 0: not even one.

    The weights move: only for a training that has failed.
    """
    size = len(indices) // 2
    while size:
        optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            batch = to_device(collate([train_data[index] for index in indices[:size]]), device)
            with autocast:
                total = losses_of(net, loss, batch)["loss"]
            torch.autograd.backward(total)
            optimizer.step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        except ValueError:  # batch normalisation refuses a single value
            return 0
        else:
            return size
        size //= 2
    return 0
