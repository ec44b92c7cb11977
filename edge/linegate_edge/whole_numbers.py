"""Whole numbers on the command line, with their bounds told in one line."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """Return a number of things, from 1.

    Raises:
        ArgumentTypeError: it is none.
    """
    return _whole_number(text, 1, 1_000_000_000)


def workers(text: str) -> int:
    """Return a number of threads, 0 for as many as there are cores.

    Raises:
        ArgumentTypeError: it is none.
    """
    return _whole_number(text, 0, 256)


def port(text: str) -> int:
    """Return a TCP port, 0 for a free one.

    Raises:
        ArgumentTypeError: it is none.
    """
    return _whole_number(text, 0, 65_535)


def _whole_number(text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text!r}")
    return number
