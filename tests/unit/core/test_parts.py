from typing import Annotated

import pytest
from pydantic import Field

from cellray.core.errors import CellrayError
from cellray.core.parts import Part, build_part, check_part


def mask(n_genes: int, *, fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5, seed: int = 0):
    return n_genes, fraction, seed


TABLE = {"mask": mask}


def test_a_part_is_built_from_its_settings_and_context():
    assert build_part("view", TABLE, Part(name="mask", fraction=0.25), 7) == (7, 0.25, 0)


def test_defaults_are_filled_in():
    assert check_part("view", TABLE, Part(name="mask")) == {"fraction": 0.5, "seed": 0}


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Part(name="masc"), "unknown view 'masc'; did you mean 'mask'?"),
        (Part(name="mask", fracton=0.2), "takes no 'fracton'; did you mean 'fraction'?"),
        (Part(name="mask", fraction=1), "'fraction': Input should be less than 1 (got 1)"),
        (Part(name="mask", n_genes=3), "takes no 'n_genes'"),
    ],
)
def test_what_the_entry_does_not_take_is_refused(part, words):
    with pytest.raises(CellrayError) as caught:
        check_part("view", TABLE, part)
    assert words in str(caught.value)


def test_building_what_is_not_there_is_refused_as_well():
    with pytest.raises(CellrayError, match="unknown view 'masc'"):
        build_part("view", TABLE, Part(name="masc"), 7)
