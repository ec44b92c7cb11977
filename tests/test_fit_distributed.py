"""Training in two processes, as torchrun starts them, on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from linegate.errors import SettingsError
from linegate.settings import parse
from linegate_training.fit import fit
from linegate_training.fit_settings import FitSettings
from linegate_training.processes import World, choose_device, world
from simulators.small_training import Spots, spot_loss, spot_net, train_spots

TRAINING = Path(__file__).parent / "simulators" / "small_training.py"


def torchrun(run_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, str(TRAINING), str(run_dir), "--plain", *options], capture_output=True, text=True, timeout=200, check=False
    )


def test_two_processes_killed_and_resumed_end_with_one_net_that_of_a_single_process(tmp_path: Path) -> None:
    # Whichever of the two kills itself first, torchrun ends the other: epoch 4 of 6.
    killed = torchrun(tmp_path, "--kill-at-step", "21")
    assert killed.returncode != 0
    done = torchrun(tmp_path, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("resuming after epoch 3 of 6") == 1  # one process speaks
    results: list[dict[str, Any]] = [torch.load(tmp_path / f"result-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [result["resumed_after"] for result in results] == [3, 3]
    # Threads of the process group that outlive it can abort the process as it ends.
    assert not [name for result in results for name in result["threads"] if "gloo" in name]
    history = results[0]["history"]
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert [line["loss"] for line in results[1]["history"]] == [line["loss"] for line in history]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 6
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint.pt"]

    alone = train_spots(tmp_path / "alone", {}, plain=True)
    for name, value in alone.net.state_dict().items():
        assert torch.equal(results[0]["net"][name], results[1]["net"][name])
        # Sums in another order, and the gradients of a batch are the same.
        assert torch.allclose(results[0]["net"][name], value, atol=1e-4)
    assert [line["loss"] for line in history] == pytest.approx([line["loss"] for line in alone.history], abs=1e-4)


def test_a_batch_that_does_not_divide_among_the_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="batch = 16: does not divide among 3 processes"):
        fit(spot_net(), spot_loss, Spots(8), None, parse({}, FitSettings, "training"), tmp_path)


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert world() == World(0, 1, 0)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(SettingsError, match="start several processes with torchrun"):
        world()


def test_the_cpu_serves_any_number_of_processes() -> None:
    assert choose_device("cpu", World(1, 2, 1)) == torch.device("cpu")
