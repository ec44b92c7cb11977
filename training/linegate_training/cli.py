"""The commands that training adds to `linegate`; each is a module in `commands`."""

from __future__ import annotations

from typing import Any

from linegate_training.commands import bench, calibrate, compare, data, evaluate, export, retrain, train


def register(commands: Any) -> None:
    """Add the commands to the parser's subcommands."""
    for command in (train, evaluate, calibrate, export, retrain, compare, data, bench):
        command.register(commands)
