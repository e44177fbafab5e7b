"""Losses that must not change unseen. ``python -m tests.golden.losses`` writes them anew."""

import json
from pathlib import Path

import torch
from tests.contracts.groups import SMALLEST, make, train

FILE = Path(__file__).with_name("losses.json")


def compute(pair):
    """Train one process for twenty steps."""
    learner = make(pair)
    losses, _ = train(learner, learner, slice(None), sparse=False)
    return losses.tolist()


if __name__ == "__main__":
    torch.set_num_threads(1)
    losses = {"-".join(pair): compute(pair) for pair in SMALLEST}
    FILE.write_text(json.dumps(losses, indent=1) + "\n")
