"""Ray's metrics, made once a process; and what this process has asked of the object store.

Each node serves those of its workers in Prometheus's format. Ray puts ``ray_`` before every name.
Values come out up to 10 s later (Ray's ``metrics_report_interval_ms``), and a gauge that is not set
again is gone after 20 s more: between records that are further apart, a query sees it by
``last_over_time``.
"""

from functools import cache

from ray.util.metrics import Counter, Gauge, Histogram

from cellray.atlas.traffic import TRAFFIC

TRAFFIC_COUNTERS = {
    "requests": ("cellray_s3_requests_total", "Reads that were asked of the object store"),
    "retries": ("cellray_s3_retries_total", "Reads among them that were asked for again"),
    "bytes": ("cellray_s3_bytes_total", "Bytes that the object store has given"),
}


# Ray's metrics register when they are made, which an import must not do.
@cache
def gauge(name: str, meaning: str, tags: tuple[str, ...]) -> Gauge:
    """Give the gauge of a name."""
    return Gauge(name, meaning, tags)


@cache
def counter(name: str, meaning: str, tags: tuple[str, ...] = ()) -> Counter:
    """Give the counter of a name."""
    return Counter(name, meaning, tags)


@cache
def histogram(
    name: str, meaning: str, bounds: tuple[float, ...], tags: tuple[str, ...]
) -> Histogram:
    """Give the histogram of a name."""
    return Histogram(name, meaning, list(bounds), tags)


def publish_traffic() -> None:
    """Add what this process has asked of the object store since the last call."""
    for key, amount in TRAFFIC.take().items():
        if amount:
            counter(*TRAFFIC_COUNTERS[key]).inc(amount)
