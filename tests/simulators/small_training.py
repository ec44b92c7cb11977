"""A training that takes a second: find the bright spot in noise. As a program it can be killed at a step and resumed."""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from linegate.settings import parse
from linegate_training.fit import FitResult, fit
from linegate_training.fit_settings import FitSettings


class Spots(Dataset[dict[str, Any]]):
    """`count` noisy images (3, 16, 16), every second with a bright spot, their noise new in each epoch."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.default_rng([self.seed, self.epoch, index])
        image = random.normal(0, 0.5, (3, 16, 16)).astype(np.float32)
        if index % 2:
            y, x = random.integers(0, 12, 2)
            image[:, y : y + 4, x : x + 4] += 1
        return {"name": f"part-{index:03d}.png", "image": torch.from_numpy(image), "label": torch.tensor(float(index % 2))}


class SpotNet(nn.Module):
    """Images (B, 3, 16, 16) → logits (B,)."""

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        between = nn.Identity() if plain else nn.Sequential(nn.BatchNorm2d(8), nn.Dropout(0.2))
        self.net = nn.Sequential(nn.Conv2d(3, 8, 5, 2), between, nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.net(image))
        return logits[:, 0]


def spot_net(seed: int = 0, plain: bool = False) -> SpotNet:
    """Return a net whose initial weights `seed` decides."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SpotNet(plain)


def spot_loss(net: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return the cross-entropy as `loss`, and the share of wrong answers."""
    logits = net(batch["image"])
    wrong = ((logits > 0) != (batch["label"] > 0.5)).float().mean()
    return {"loss": nn.functional.binary_cross_entropy_with_logits(logits, batch["label"]), "wrong": wrong}


def spot_validation(net: nn.Module) -> float:
    """Return the negative cross-entropy over other images."""
    items = [Spots(32, seed=1)[index] for index in range(32)]
    device = next(net.parameters()).device
    batch = {name: torch.stack([item[name] for item in items]).to(device) for name in ("image", "label")}
    return -float(spot_loss(net, batch)["loss"].detach())


def kill() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def press_control_c() -> None:
    """End the training as a person at the keyboard would."""
    raise KeyboardInterrupt


def train_spots(
    run_dir: Path, settings: dict[str, Any], at_step: int = 0, do: Callable[[], None] = press_control_c, **options: Any
) -> FitResult:
    """Train on 48 images, 8 a step; at step `at_step` of this process, if not 0, `do` what ends it."""
    steps = 0
    plain = options.pop("plain", False)

    def loss(net: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        nonlocal steps
        steps += 1
        if steps == at_step:
            do()
        return spot_loss(net, batch)

    values = {"epochs": 6, "batch": 8, "learning_rate": 0.01, "threads": 1, "checkpoint_every_s": 0, **settings}
    return fit(
        spot_net(plain=plain), loss, Spots(48), spot_validation, parse(values, FitSettings, "training"), run_dir, **options
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--kill-at-step", type=int, default=0)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    result = train_spots(given.run_dir, given.settings, given.kill_at_step, kill, plain=given.plain, resume=given.resume)
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    torch.save(
        {
            "threads": threads,
            "net": result.net.state_dict(),
            "history": list(result.history),
            "resumed_after": result.resumed_after,
        },
        given.run_dir / f"result-{os.environ.get('RANK', '0')}.pt",
    )
