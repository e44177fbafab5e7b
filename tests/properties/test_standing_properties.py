"""The Pareto front against its definition."""

from hypothesis import given
from hypothesis import strategies as st

from cellray.evaluation.standing import pareto_front

POINTS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=12)


@given(points=POINTS, lower=st.booleans())
def test_the_front_holds_each_point_that_no_other_beats(points, lower):
    sign = 1 if lower else -1
    front = pareto_front([c for c, _ in points], [s for _, s in points], lower=lower)
    chosen = [points[n] for n in front]
    beaten = {
        (cost, score)
        for cost, score in points
        for other, theirs in points
        if (other, theirs) != (cost, score) and other <= cost and sign * theirs <= sign * score
    }
    assert sorted(chosen) == sorted({*points} - beaten)
    assert [cost for cost, _ in chosen] == sorted(cost for cost, _ in chosen)
