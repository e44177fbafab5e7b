"""Collectives of gradients and parameters: how long they take, and how DDP makes them smaller."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_collectives import (
    DefaultAllGather,
    DefaultReduceScatter,
)
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

POWERSGD_RANK = 4
"""Of the matrices that PowerSGD sends; Vogels et al. 2019 take 2 for images and 4 for text."""
POWERSGD_START = 10
"""Steps with whole gradients before it: they shrink fast at first, and DDP orders its buckets."""

Moment = Any
"""Seconds of the host, or a CUDA event."""
Hook = Callable[[Any, GradBucket], Future[Tensor]]


class CommClock:
    """How long collectives were under way, whatever else went on meanwhile.

    Collectives that overlap count once. Waiting for a slower rank counts, since the collective is
    not done before that rank has come. On CUDA events note the times, so that nothing waits until
    `lap` is called.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[Moment, Moment]] = []

    def start(self, device: torch.device) -> Callable[[], None]:
        """Note the start of a collective; call what is returned when it is done."""
        begin = _now(device)
        return lambda: self._spans.append((begin, _now(device)))

    def lap(self) -> float:
        """Give the seconds since the last lap in which a collective was under way."""
        spans, self._spans = self._spans, []
        if not spans:
            return 0.0
        first = spans[0][0]
        return _covered((_seconds(first, begin), _seconds(first, end)) for begin, end in spans)


def _now(device: torch.device) -> Moment:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(first: Moment, moment: Moment) -> float:
    if isinstance(first, torch.cuda.Event):
        moment.synchronize()
        return float(first.elapsed_time(moment)) / 1000
    return float(moment - first)


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Give the length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def send_gradients(
    module: DistributedDataParallel, compression: str, clock: CommClock | None = None
) -> None:
    """Let DDP average gradients, whole or compressed, under a clock if there is one.

    What PowerSGD left out of a gradient it adds to the next one. That memory is no part of a
    checkpoint: a run that resumes sends whole gradients for `POWERSGD_START` steps again.
    """
    state: Any = None
    if compression == "powersgd":
        state = PowerSGDState(
            process_group=None,
            matrix_approximation_rank=POWERSGD_RANK,
            start_powerSGD_iter=POWERSGD_START,
            # A matrix of zeros has no direction, and would be divided by its norm.
            orthogonalization_epsilon=1e-8,
        )
    hook = HOOKS[compression]
    module.register_comm_hook(state, hook if clock is None else _timed(hook, clock))


def _timed(hook: Hook, clock: CommClock) -> Hook:
    def run(state: Any, bucket: GradBucket) -> Future[Tensor]:  # noqa: ANN401 - the hook's own
        stop = clock.start(bucket.buffer().device)

        def done(future: Future[Tensor]) -> Tensor:
            stop()
            return future.value()

        sent: Future[Tensor] = hook(state, bucket).then(done)
        return sent

    return run


def _powersgd(state: PowerSGDState, bucket: GradBucket) -> Future[Tensor]:
    sent = powerSGD_hook(state, bucket)
    if not bucket.buffer().is_cuda:
        # Its later collectives start in gloo's threads when the earlier ones end, which is at
        # another moment on each rank: without waiting they would mix with the backward pass's.
        sent.wait()
    return sent


HOOKS: dict[str, Hook] = {
    "none": default_hooks.allreduce_hook,
    "powersgd": _powersgd,
    "bfloat16": default_hooks.bf16_compress_hook,
}


def time_shards(modules: Iterable[FSDPModule], clock: CommClock) -> None:
    """Let FSDP2 gather parameters and scatter gradients under a clock."""
    for module in modules:
        module.set_custom_all_gather(_AllGather(clock))
        module.set_custom_reduce_scatter(_ReduceScatter(clock))


class _AllGather(DefaultAllGather):
    """torch's own, between two looks at the clock."""

    def __init__(self, clock: CommClock) -> None:
        self.clock = clock

    def __call__(self, output_tensor: Tensor, *args: Any, **kwargs: Any) -> dist.Work | None:  # noqa: ANN401 - as torch calls it
        stop = self.clock.start(output_tensor.device)
        work = super().__call__(output_tensor, *args, **kwargs)
        stop()
        return work


class _ReduceScatter(DefaultReduceScatter):
    """torch's own, between two looks at the clock."""

    def __init__(self, clock: CommClock) -> None:
        self.clock = clock

    def __call__(self, output_tensor: Tensor, *args: Any, **kwargs: Any) -> dist.Work:  # noqa: ANN401 - as torch calls it
        stop = self.clock.start(output_tensor.device)
        work = super().__call__(output_tensor, *args, **kwargs)
        stop()
        return work
