"""All ranks end after the same step, whichever of them hears first."""

import time
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from tests.contracts.groups import spawn

from cellray.train.stopping import LOOK_SECONDS, MOST_STEPS, Agreement

CPU = torch.device("cpu")


def in_rank(rank, after):
    """Take steps of a millisecond, in lockstep, until the agreement ends them."""
    begun = time.monotonic()
    heard = []

    def asked():
        assert rank == 0
        heard.append(time.monotonic() - begun)
        return heard[-1] > after

    ends = Agreement(asked, rank=rank, device=CPU)
    for step in range(1, 100_000):
        time.sleep(0.001 * (1 + rank))
        dist.all_reduce(torch.ones(1))
        if ends(step):
            return step, len(heard), time.monotonic() - begun
    raise AssertionError


def test_ranks_of_different_pace_end_after_the_same_step():
    first, second, third = spawn(3, in_rank, 2 * LOOK_SECONDS)
    assert first[0] == second[0] == third[0]
    assert second[1] == third[1] == 0
    assert first[2] < 2 * LOOK_SECONDS + 30  # a busy machine has slow steps


@pytest.mark.parametrize(("pace", "expected"), [(0.1, 5), (2.0, 1), (1e-9, MOST_STEPS)])
def test_looks_come_about_every_half_second(pace, expected):
    """Steps of a tenth of a second are looked at in sixes, of two seconds one by one."""
    now, looks = [0.0], []

    def asked():
        looks.append(step)
        return False

    ends = Agreement(asked, rank=0, device=CPU, clock=lambda: now[0])
    for step in range(1, 3_000):
        now[0] += pace
        assert not ends(step)
    between = {later - sooner for sooner, later in pairwise(looks)}
    assert between <= {expected, expected + 1}
