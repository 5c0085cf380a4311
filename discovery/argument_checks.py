"""Checks of what `argparse` lets through, before anything is read: counts below those that make sense."""

import argparse

from discovery.errors import ArgumentError


def check_counts(args: argparse.Namespace, *names: str, least: int = 1) -> None:
    """ArgumentError if one of these flags is given and below `least`."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < least:
            raise ArgumentError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def check_reading(args: argparse.Namespace) -> None:
    """ArgumentError for flags of `input_arguments` that would have nothing read; those the command has not are none."""
    names = ("max_tokens", "read_tokens", "batch_tokens", "contexts_per_shard", "contexts_per_buffer")
    check_counts(args, *(name for name in names if hasattr(args, name)))
