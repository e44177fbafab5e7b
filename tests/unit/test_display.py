"""What a stage of the work looks like."""

import io
import math

import pytest
from rich.console import Console

from cellray.display import Stage, bar, block, duration, plain, sparkline

FACTS = {
    "epoch": 3,
    "epochs": 30,
    "train_loss": 0.4123456,
    "validation_loss": 0.4251234,
    "cells_per_s": 10_300.4,
    "feed_wait_share": 0.041,
}


def train(*updates):
    """Make a stage that began at 100 s; each update is (seconds, done, facts)."""
    stage = Stage("train", 100.0)
    for now, done, facts in updates:
        stage.update(done, 1000, facts, now)
    return stage


def drawn(renderable, width):
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(renderable)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_line_tells_all_that_is_known():
    stage = train((100, 0, {}), (120, 100, FACTS), (130, 120, FACTS))
    assert plain(stage, 130) == (
        "train 120/1,000 steps · epoch 3/30 · loss 0.4123 · validation 0.4251, best 0.4251 · "
        "10,300 cells/s · feed wait 4% · ETA 7 min"  # 880 steps at 2 a second
    )


def test_a_line_leaves_out_what_is_not_known():
    stage = train((101, 10, {"train_loss": 0.5}))
    assert plain(stage, 101) == "train 10/1,000 steps · loss 0.5"
    assert plain(train((101, 0, {})), 101) == "train 0/1,000 0%"


def test_the_last_line_says_how_long_it_took():
    assert plain(train((110, 500, {}), (300, 1000, {})), 400) == (
        "train 1,000/1,000 100% · 2.63 steps/s · took 3 min"
    )


def test_the_remaining_time_is_of_the_late_rate_and_runs_down():
    # Twenty seconds of start-up, then 10 steps a second.
    stage = train((100, 0, {}), *((120 + i, 10 * i, {}) for i in range(11)))
    assert stage.rate() == pytest.approx(10)
    assert stage.remaining(130) == pytest.approx(90)
    assert stage.remaining(150) == pytest.approx(70)
    assert stage.remaining(1e6) == 0
    assert stage.elapsed(150) == 50


def test_the_start_up_is_in_no_estimate():
    assert train((100, 0, {}), (130, 1, {})).remaining(130) is None  # no 8 hours
    sweep = Stage("sweep", 100)
    for now, done in ((100, 0), (160, 2)):  # of trials it is a small part, and they are few
        sweep.update(done, 10, {}, now)
    assert sweep.remaining(160) == pytest.approx(240)


def test_the_rate_does_not_hang_on_how_often_calls_come():
    fine = train(*((100 + i / 100, i, {}) for i in range(900)))
    assert fine.rate() == pytest.approx(100, rel=0.01)
    assert len(fine._marks) <= 30
    # Old marks fall out: what counts is the last half minute.
    slower = train(*((100 + i, i, {}) for i in range(100)), *((199 + i, 99, {}) for i in range(60)))
    assert slower.rate() is None


def test_a_stage_that_is_resumed_or_goes_back_keeps_a_sane_rate():
    resumed = train((100, 500, {}), (110, 520, {}), (115, 530, {}))
    assert resumed.rate() == pytest.approx(2)
    begin, again = (100, 0, {}), (140, 300, FACTS)
    failed = train(begin, (110, 600, FACTS), again, (150, 310, FACTS), (160, 320, FACTS))
    assert failed.rate() == pytest.approx(1)
    assert len(failed.losses) == 4


def test_a_fact_stays_until_it_is_said_anew():
    stage = train((101, 1, FACTS), (102, 2, {"train_loss": 0.3}))
    assert stage.told() == {
        "epoch": "3/30",
        "loss": "0.3",
        "validation": "0.4251, best 0.4251",
    }
    stage.update(3, 1000, {"validation_loss": 0.5, "train_loss": math.nan}, 103)
    assert stage.told()["validation"] == "0.5, best 0.4251"
    assert stage.told()["loss"] == "nan"
    assert list(stage.losses) == [0.4123456, 0.3]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_block_is_as_wide_as_the_terminal_has_room(width):
    updates = [(120 + i, 100 + i, FACTS | {"train_loss": 40.0 - i}) for i in range(40)]
    lines = drawn(block(train((100, 0, {}), *updates), 200, width, trend=True), width)
    assert len(lines) == 5
    assert len(lines[0]) == min(width, 100)
    assert max(map(len, lines)) <= min(width, 100)
    assert lines[0].startswith("train  ")
    assert lines[0].endswith(" 14%")
    text = "\n".join(" ".join(line.split()) for line in lines)
    for fact in (
        "epoch 3/30 step 139/1,000",
        "validation 0.4251, best 0.4251",
        "speed 10,300 cells/s feed wait 4%",
        "elapsed 1:40 ETA 13:40",  # 861 steps at one a second, 41 s after the last call
    ):
        assert fact in text
    trend = [sign for sign in text if sign in "▁▂▃▄▅▆▇█"]
    assert len(trend) == min(width - 50, 32)
    assert trend == sorted(trend, reverse=True)


def test_a_narrow_terminal_gets_a_fact_a_line():
    lines = drawn(block(train((101, 1, FACTS)), 101, 40, trend=True), 40)
    assert len(lines) == 9
    assert max(map(len, lines)) <= 40
    assert lines[4].split() == ["validation", "0.4251,", "best", "0.4251"]


def test_the_block_does_not_move_while_facts_come_in():
    empty = drawn(block(train((101, 0, {"epoch": 1})), 101, 80, trend=False), 80)
    full = drawn(block(train((101, 1, FACTS)), 101, 80, trend=False), 80)
    assert len(empty) == len(full)
    assert [line.find("validation") for line in empty] == [line.find("validation") for line in full]
    assert empty[2].split() == ["loss", "-", "validation", "-"]


def test_a_terminal_without_the_signs_gets_no_trend():
    lines = drawn(block(train((101, 1, FACTS), (102, 2, FACTS)), 102, 80, trend=False), 80)
    assert "".join(lines[1:]).isascii()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_bar_fits_and_lines_up(width):
    stage = Stage("write layers/spliced", 100.0)
    for now, done in ((100.0, 0), (101.0, 25_000), (110.0, 250_000)):
        stage.update(done, 1_000_000, {}, now)
    (line,) = drawn(bar(stage, 110.0, width, label=20), width)
    assert len(line) <= width
    assert line.startswith("write layers/spliced" if width >= 80 else "write layers/")
    assert ("250,000/1,000,000" if width >= 60 else "25%") in line
    assert line.endswith("ETA 0:30")
    assert ("25,000 cells/s" in line) == (width >= 80)
    stage.update(1_000_000, 1_000_000, {}, 142.0)
    (line,) = drawn(bar(stage, 150.0, width, label=20), width)
    assert line.endswith("took 0:42")


def test_nothing_to_do_is_done():
    stage = Stage("read", 1.0)
    stage.update(0, 0, {}, 1.0)
    assert plain(stage, 2.0) == "read 0/0 · took 0 s"
    assert drawn(bar(stage, 2.0, 80, label=4), 80)[0].endswith("took 0:00")


def test_a_sparkline_goes_from_the_lowest_to_the_highest():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3.0, -1.0, 1.0]) == "█▁▅"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (5399, "90 min"),
        (5400, "1 h 30 min"),
        (3 * 3600 + 59.6 * 60, "4 h 0 min"),
        (1e7, "2,777 h 47 min"),
    ],
)
def test_durations_are_said_as_people_do(seconds, text):
    assert duration(seconds) == text
