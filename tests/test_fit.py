"""The training loop: the same numbers again, killed and resumed; bad input in one line; progress and logs."""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from linegate.errors import DataError, LinegateError, SettingsError
from linegate.settings import parse
from linegate_training import progress
from linegate_training.checkpoints import CHECKPOINT_FILE, FORMAT, read_checkpoint, write_checkpoint
from linegate_training.fit import FitResult, batches_of, fit, rate_factor
from linegate_training.fit_settings import FitSettings
from linegate_training.processes import World
from linegate_training.steps import average_into
from simulators.small_training import Spots, spot_loss, spot_net, spot_validation, train_spots

TRAINING = Path(__file__).parent / "simulators" / "small_training.py"


def run_training(run_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TRAINING), str(run_dir), *options], capture_output=True, text=True, timeout=100, check=False
    )


def settings(**values: Any) -> FitSettings:
    return parse({"epochs": 2, "batch": 8, "threads": 1, "warmup_epochs": 0, **values}, FitSettings, "training")


def same(one: FitResult, other: FitResult) -> bool:
    there = other.net.state_dict()
    return all(torch.equal(value, there[name]) for name, value in one.net.state_dict().items())


def numbers(history: Any) -> list[dict[str, float]]:
    """Return what was computed, without what a clock told."""
    return [{key: value for key, value in line.items() if key not in ("images_per_s", "left_s")} for line in history]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[FitResult, Path]:
    run_dir = tmp_path_factory.mktemp("trained")
    return train_spots(run_dir, {}), run_dir


def test_training_on_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image to train on"):
        fit(spot_net(), spot_loss, Spots(0), None, settings(), tmp_path)


def test_training_learns_and_keeps_the_best_epoch(trained: tuple[FitResult, Path]) -> None:
    result, _ = trained
    validations = [line["validation"] for line in result.history]
    assert result.history[-1]["loss"] < 0.8 * result.history[0]["loss"]
    assert result.validation == max(validations) == validations[result.kept_epoch - 1]
    assert spot_validation(result.net) == pytest.approx(result.validation, abs=1e-6)
    assert not result.net.training


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(trained: tuple[FitResult, Path], tmp_path: Path) -> None:
    again = train_spots(tmp_path / "again", {})
    assert same(again, trained[0])
    assert numbers(again.history) == numbers(trained[0].history)
    assert not same(train_spots(tmp_path / "other", {"seed": 1}), again)


def test_loading_in_processes_of_their_own_changes_no_number(trained: tuple[FitResult, Path], tmp_path: Path) -> None:
    assert same(train_spots(tmp_path, {"workers": 2}), trained[0])


def test_a_training_killed_twice_and_resumed_gives_the_very_numbers_of_one_that_was_not(
    trained: tuple[FitResult, Path], tmp_path: Path
) -> None:
    # Six steps an epoch: killed in epoch 3, then again in epoch 5.
    assert run_training(tmp_path, "--kill-at-step", "15").returncode == -signal.SIGKILL
    (tmp_path / f".{CHECKPOINT_FILE}.part").write_bytes(b"half of a checkpoint")
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    killed_again = run_training(tmp_path, "--resume", "--kill-at-step", "14")
    assert killed_again.returncode == -signal.SIGKILL
    assert "resuming after epoch 2 of 6" in killed_again.stderr
    result = train_spots(tmp_path, {}, resume=True)
    assert result.resumed_after == 4
    assert same(result, trained[0])
    assert numbers(result.history) == numbers(trained[0].history)
    assert numbers(map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())) == numbers(result.history)


def test_resuming_before_the_first_checkpoint_begins_and_after_the_last_epoch_only_loads(
    trained: tuple[FitResult, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train_spots(tmp_path, {}, resume=True)
    assert "nothing to resume yet" in capsys.readouterr().err
    again = train_spots(tmp_path, {}, resume=True, at_step=1)
    assert (again.resumed_after, again.kept_epoch) == (6, first.kept_epoch)
    assert same(first, again)
    assert same(first, trained[0])


def test_a_new_training_does_not_leave_the_checkpoint_of_an_old_one(tmp_path: Path) -> None:
    train_spots(tmp_path, {"epochs": 1})
    with pytest.raises(KeyboardInterrupt):
        train_spots(tmp_path, {"epochs": 1}, at_step=2)
    assert not (tmp_path / CHECKPOINT_FILE).exists()


def test_training_stops_early_when_validation_no_longer_improves(tmp_path: Path) -> None:
    found = iter([0.5, 0.7, 0.6, 0.7, 0.9])
    result = fit(spot_net(), spot_loss, Spots(8), lambda net: next(found), settings(epochs=5, patience=2), tmp_path)
    # Epoch 4 is no better than 2, but it has learned for longer: it is kept.
    assert (result.epochs, result.stopped_early, result.kept_epoch, result.validation) == (4, True, 4, 0.7)
    again = fit(spot_net(), spot_loss, Spots(8), lambda net: 1.0, settings(epochs=5, patience=2), tmp_path, resume=True)
    assert (again.epochs, again.stopped_early) == (4, True)


def test_without_validation_the_last_epoch_is_kept(tmp_path: Path) -> None:
    result = fit(spot_net(), spot_loss, Spots(8), None, settings(), tmp_path)
    assert (result.kept_epoch, result.validation) == (2, None)


class Broken(Spots):
    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        return item | {"image": item["image"] / 0} if index == 5 else item


def test_a_loss_that_is_nan_stops_with_the_images_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"epoch 1, step \d: the loss is nan in the batch of .*part-005\.png") as caught:
        fit(spot_net(), spot_loss, Broken(16), None, settings(batch=4), tmp_path)
    assert "(not finite in themselves: part-005.png)" in str(caught.value)
    assert len(re.findall(r"part-\d+", str(caught.value))) == 5
    assert not (tmp_path / CHECKPOINT_FILE).exists()


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path: Path) -> None:
    net = spot_net()
    before = [value.clone() for value in net.parameters()]
    with pytest.raises(DataError, match=r"the gradient is (nan|inf) in the batch of part-"):
        fit(net, lambda net, batch: (net(batch["image"]) * 0).abs().sqrt().mean(), Spots(8), None, settings(), tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(before, net.parameters(), strict=True))


def test_a_validation_that_is_nan_stops_with_the_epoch_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="epoch 1: the validation is nan"):
        fit(spot_net(), spot_loss, Spots(8), lambda net: math.nan, settings(), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused(device: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f'device = "{device}": this machine has no GPU'):
        fit(spot_net(), spot_loss, Spots(8), None, settings(device=device), tmp_path)


def greedy_loss(net: nn.Module, batch: dict[str, Any]) -> Tensor:
    count = len(batch["image"])
    if count > 5:
        torch.empty(count << 50)  # the allocator's own error
    return spot_loss(net, batch)["loss"]


def greedy_gpu_loss(net: nn.Module, batch: dict[str, Any]) -> Tensor:
    if len(batch["image"]) > 5:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return spot_loss(net, batch)["loss"]


@pytest.mark.parametrize("loss", [greedy_loss, greedy_gpu_loss])
def test_out_of_memory_says_the_batch_that_fits(loss: Any, tmp_path: Path) -> None:
    with pytest.raises(LinegateError, match=r"^out of memory at batch 32: 4 fits: set batch = 4$"):
        fit(spot_net(), loss, Spots(32), None, settings(batch=32), tmp_path)


def test_where_not_even_one_image_fits_no_batch_is_named(tmp_path: Path) -> None:
    def loss(net: nn.Module, batch: dict[str, Any]) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(LinegateError, match="no smaller one was seen to fit"):
        fit(spot_net(), loss, Spots(8), None, settings(), tmp_path)


def test_out_of_memory_in_validation_is_told_apart(tmp_path: Path) -> None:
    def validate(net: nn.Module) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(LinegateError, match="epoch 1: out of memory while validating"):
        fit(spot_net(), spot_loss, Spots(8), validate, settings(), tmp_path)


def test_an_error_of_another_kind_is_not_taken_for_want_of_memory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit(
            spot_net(),
            lambda net, batch: (batch["image"][0, 0] @ torch.ones(3, 3)).mean(),
            Spots(8),
            None,
            settings(),
            tmp_path,
        )


def test_a_checkpoint_of_other_settings_or_data_is_refused_with_the_difference(tmp_path: Path) -> None:
    train_spots(tmp_path, {"epochs": 1}, about={"data": "1a2b"})
    with pytest.raises(LinegateError, match=r"learning_rate 0\.01 there and 0\.02 here"):
        train_spots(tmp_path, {"epochs": 1, "learning_rate": 0.02}, about={"data": "1a2b"}, resume=True)
    with pytest.raises(LinegateError, match="data 1a2b there and 3c4d here"):
        train_spots(tmp_path, {"epochs": 1}, about={"data": "3c4d"}, resume=True)
    # Where and how it runs may change.
    train_spots(tmp_path, {"epochs": 1, "workers": 1, "device": "cpu"}, about={"data": "1a2b"}, resume=True)


def test_a_checkpoint_of_another_net_is_refused(tmp_path: Path) -> None:
    train_spots(tmp_path, {"epochs": 1})
    with pytest.raises(LinegateError, match="of another net"):
        train_spots(tmp_path, {"epochs": 1}, plain=True, resume=True)


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT_FILE
    torch.save({"format": FORMAT + 1, "facts": {}, "state": {}}, path)
    with pytest.raises(LinegateError, match=f"format version {FORMAT + 1}, this Linegate resumes version {FORMAT}"):
        train_spots(tmp_path, {}, resume=True)


class Opens:
    def __reduce__(self) -> Any:
        return eval, ("1 + 1",)


@pytest.mark.parametrize("content", [b"", b"torn", pickle.dumps(Opens())])
def test_a_torn_checkpoint_and_one_that_carries_code_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(content)
    with pytest.raises(LinegateError, match="cannot be read") as caught:
        train_spots(tmp_path, {}, resume=True)
    assert "\n" not in str(caught.value)
    write_checkpoint(path, {"a": 1}, {"net": torch.ones(2000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LinegateError, match="cannot be read"):
        read_checkpoint(path, {"a": 1})
    flipped = bytearray(whole)
    flipped[whole.index(torch.ones(8).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(LinegateError, match="is damaged"):
        read_checkpoint(path, {"a": 1})


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_too(precision: str, tmp_path: Path) -> None:
    result = train_spots(tmp_path, {"epochs": 4, "precision": precision})
    assert result.history[-1]["loss"] < 0.9 * result.history[0]["loss"]
    assert all(value.dtype != torch.bfloat16 for value in result.net.state_dict().values())


def test_the_average_of_weights_is_that_counted_by_hand() -> None:
    mean, net = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    net.weight.data.fill_(3.0)
    assert net.num_batches_tracked is not None
    net.num_batches_tracked.fill_(7)
    average_into(mean, net, 0.75)
    assert float(mean.weight.detach()) == 0.75 * 1 + 0.25 * 3
    assert mean.num_batches_tracked is not None
    assert int(mean.num_batches_tracked) == 7


def test_a_net_chooses_its_own_rates_and_frozen_weights_stay(tmp_path: Path) -> None:
    net = spot_net()
    net.net.requires_grad_(False)
    before = [value.clone() for value in net.net.parameters()]
    slow = net.head.bias.detach().clone()
    groups = [{"params": [net.head.weight, *net.net.parameters()]}, {"params": [net.head.bias], "lr": 1e-9}]
    net.parameter_groups = lambda learning_rate: groups  # type: ignore[assignment]
    fit(net, spot_loss, Spots(16), None, settings(learning_rate=0.1), tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(before, net.net.parameters(), strict=True))
    assert torch.allclose(slow, net.head.bias, atol=1e-6)


def test_an_epoch_shows_every_image_once_and_processes_share_it_without_overlap() -> None:
    whole = batches_of(10, 5, seed=0, epoch=1)
    assert sorted(chain(*whole)) == list(range(10))
    assert batches_of(10, 5, seed=0, epoch=2) != whole == batches_of(10, 5, seed=0, epoch=1)
    assert [len(batch) for batch in batches_of(7, 4, seed=0, epoch=1)] == [4, 4]
    assert set(chain(*batches_of(3, 8, seed=0, epoch=1))) == {0, 1, 2}
    both = [batches_of(12, 6, seed=3, epoch=4, here=World(rank, 2)) for rank in (0, 1)]
    together = batches_of(12, 6, seed=3, epoch=4)
    assert [one + other for one, other in zip(*both, strict=True)] == together


def test_weights_draw_images_in_proportion() -> None:
    shares = [9.0] * 10 + [1.0] * 90
    drawn = [index for epoch in range(50) for index in chain(*batches_of(100, 10, 0, epoch, weights=shares))]
    assert sum(index < 10 for index in drawn) / len(drawn) == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match="weights must be 4 numbers"):
        batches_of(4, 2, 0, 1, weights=[1.0, 1.0, -1.0, 1.0])


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    shape = settings(epochs=11, warmup_epochs=1)
    factors = [rate_factor(epochs, shape) for epochs in (0, 0.5, 1, 6, 11)]
    assert factors == pytest.approx([0.01, 0.505, 1, 0.505, 0.01])
    assert rate_factor(10, settings(epochs=11, schedule="constant")) == 1


def test_unknown_settings_are_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(SettingsError, match="unknown key 'learning_rat': did you mean 'learning_rate'"):
        parse({"learning_rat": 1.0}, FitSettings, "training")
    with pytest.raises(SettingsError, match="warmup_epochs 9 is more than epochs 2"):
        settings(warmup_epochs=9)
    with pytest.raises(SettingsError, match="device"):
        settings(device="gpu")


def test_plain_lines_with_rate_and_remaining_time_go_where_no_terminal_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    result = train_spots(tmp_path, {"epochs": 2})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 * (6 + 1)
    assert re.fullmatch(r"epoch 1/2: loss [\d.]+, [\d.]+ images/s, \d+ s left", lines[0])
    assert re.fullmatch(r"epoch 2/2 done: loss [\d.]+, validation -[\d.]+, [\d.]+ images/s, 0 s left", lines[-1])
    assert {"epoch", "loss", "wrong", "validation", "learning_rate", "images_per_s", "left_s"} == set(result.history[0])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_goes_to_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    train_spots(tmp_path, {"epochs": 2})
    assert re.search(r"epoch 2/2: 100%.* 96/96 \[.*image/s, loss [\d.]+, validation", screen.getvalue())


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1:00 min"), (185, "3:05 min"), (3723, "1:02:03 h")])
def test_times_are_told_as_people_read_them(seconds: float, text: str) -> None:
    assert progress.clock(seconds) == text


def test_tensorboard_holds_each_epoch_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(KeyboardInterrupt):
        train_spots(tmp_path, {"log": "tensorboard"}, at_step=9)
    with pytest.raises(KeyboardInterrupt):  # epochs 2 and 3 are logged, but in no checkpoint
        train_spots(tmp_path, {"log": "tensorboard", "checkpoint_every_s": 1e6}, at_step=15, resume=True)
    result = train_spots(tmp_path, {"log": "tensorboard"}, resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = events.Scalars("loss")
    assert [point.step for point in points] == [1, 2, 3, 4, 5, 6]
    assert [point.value for point in points] == pytest.approx([line["loss"] for line in result.history], rel=1e-6)


def test_mlflow_goes_on_in_the_run_that_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(KeyboardInterrupt):
        train_spots(tmp_path, {"log": "mlflow"}, at_step=9)
    with pytest.raises(KeyboardInterrupt):  # epochs 2 and 3 are logged, but in no checkpoint
        train_spots(tmp_path, {"log": "mlflow", "checkpoint_every_s": 1e6}, at_step=15, resume=True)
    result = train_spots(tmp_path, {"log": "mlflow"}, resume=True)
    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("linegate")
    (run,) = client.search_runs([experiment.experiment_id])
    points = client.get_metric_history(run.info.run_id, "loss")
    assert {point.step: point.value for point in points} == {line["epoch"]: line["loss"] for line in result.history}
    assert run.data.metrics["loss"] == pytest.approx(result.history[-1]["loss"])
    assert run.data.params["batch"] == "8"
    assert run.info.status == "FINISHED"


def test_a_log_whose_library_is_missing_names_the_package(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['tensorboard'] = None; from pathlib import Path\n"
        "from linegate.errors import LinegateError\nfrom linegate_training.tracking import open_tracker\n"
        "try: open_tracker('tensorboard', Path(sys.argv[1]), 1, {})\nexcept LinegateError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "needs tensorboard, which is not installed: pip install tensorboard" in done.stdout
