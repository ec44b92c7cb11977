"""The processes that train together, as `torchrun` starts them, and the device that each one has.

Rules kept here: without `torchrun` there is one process and no process group; a device that was asked for and is not
there is an error, never the CPU in its place. Gradients are averaged here, in one go after the backward pass, and not by
DistributedDataParallel, which wants the net's `forward` to be what a loss calls and warns of parameters that it leaves out.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch import distributed as dist

from linegate.errors import SettingsError

WAIT = timedelta(hours=4)
"""How long the others wait while the first process validates; one that dies is noticed by torchrun."""


@dataclass(frozen=True, slots=True)
class World:
    """This process (`rank` of `size`, `local_rank` on its machine)."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that validates, writes and prints."""
        return self.rank == 0


def world() -> World:
    """Return which of how many processes this is, from the environment that `torchrun` sets.

    Raises:
        SettingsError: a variable is missing or no number.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    try:
        rank, size, local_rank = (int(os.environ[name]) for name in names)
    except (KeyError, ValueError) as error:
        raise SettingsError(f"{', '.join(names)}: {error}: start several processes with torchrun, which sets them") from error
    return World(rank, size, local_rank)


def choose_device(name: str, here: World) -> torch.device:
    """Return the device that the setting `device` names: auto, cpu, cuda (one GPU a process) or cuda:<index>.

    Raises:
        SettingsError: no GPU, or not this one, where one was asked for.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    if count == 0:
        raise SettingsError(f'device = "{name}": this machine has no GPU that torch can use: set device = "cpu" or "auto"')
    if ":" in name:
        index = int(name.partition(":")[2])
        if here.size > 1:
            raise SettingsError(f'device = "{name}": {here.size} processes train, one GPU each: set device = "cuda"')
    else:
        index = here.local_rank
    if index >= count:
        raise SettingsError(f'device = "{name}": GPU {index} was asked for, this machine has {count}, counted from 0')
    return torch.device("cuda", index)


@contextmanager
def joined(here: World, device: torch.device) -> Iterator[None]:
    """Hold the process group that gradients and decisions travel through; nothing where there is one process."""
    if here.size == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Its functions take the process group of the time of their import as a default, and so would keep it, and gloo's
    # threads, for ever: these then abort, now and then, a process that has done its work (seen with torch 2.13).
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def from_first(values: list[float], here: World, device: torch.device) -> list[float]:
    """Return the numbers that the first process holds."""
    if here.size == 1:
        return values
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return [float(value) for value in shared.tolist()]


def mean_of_all(values: list[float], here: World, device: torch.device) -> list[float]:
    """Return the means of the numbers over all processes."""
    if here.size == 1:
        return values
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(shared)
    return [float(value) / here.size for value in shared.tolist()]


def state_from_first(net: nn.Module, here: World) -> None:
    """Give every process the weights and buffers of the first."""
    if here.size > 1:
        for tensor in net.state_dict().values():
            if isinstance(tensor, Tensor):
                dist.broadcast(tensor, 0)


def share_gradients(parameters: Sequence[Tensor], here: World) -> None:
    """Give every process the mean of all gradients; a parameter that no process used keeps none."""
    if here.size == 1:
        return
    used = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=parameters[0].device)
    gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
    together = torch.cat([used, *[gradient.flatten().float() for gradient in gradients]])
    dist.all_reduce(together)
    used, *means = torch.split(together, [len(parameters), *[parameter.numel() for parameter in parameters]])
    for parameter, mean, count in zip(parameters, means, used.tolist(), strict=True):
        parameter.grad = (mean / here.size).to(parameter.dtype).view_as(parameter) if count else None
