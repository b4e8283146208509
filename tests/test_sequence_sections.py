"""A trained encoder's parameters as sections: what rounding to 8 bits may cost, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from cloud.sequence_sections import sequence_sections
from tests.encoders import float_parameters


def test_codes_times_scales_are_the_parameters_within_half_a_step():
    given = float_parameters(30, seed=1)
    given["E"][3] = 0
    found = sequence_sections(given)
    steps = found["sequence_scale"][:, None]
    assert (np.abs(found["sequence_codes"] * steps - given["E"]) <= steps * 0.5001).all()
    assert found["sequence_scale"][3] == 0 and not found["sequence_codes"][3].any()
    for at, name in enumerate(("Wq", "Wk", "Wv", "Wo")):
        steps = found["sequence_attention_scale"][at]
        assert (np.abs(found["sequence_attention"][at] * steps - given[name]) <= steps * 0.5001).all()
    for name, part in (("W1", "feed_in"), ("W2", "feed_out")):
        steps = found[f"sequence_{part}_scale"]
        assert (np.abs(found[f"sequence_{part}"] * steps - given[name]) <= steps * 0.5001).all()
        assert np.abs(found[f"sequence_{part}"]).max() == 127
    for name, part in (("B", "bias"), ("S", "success"), ("R", "distance"), ("norms", "norms"), ("b1", "feed_in_bias")):
        assert (found[f"sequence_{part}"] == given[name]).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"E": None}, "E is missing"),
        ({"W3": np.zeros(3)}, "W3 is unknown"),
        ({"W1": np.zeros((64, 64))}, r"expected W1 of shape \(64, 128\), got \(64, 64\)"),
        ({"B": np.zeros(31)}, r"expected B of shape \(30,\), got \(31,\)"),
        ({"R": np.full((64, 8), np.nan)}, "expected finite numbers in R"),
    ],
)
def test_what_is_no_encoder_is_refused_by_name(change, said):
    given = float_parameters(30, seed=2) | change
    with pytest.raises(ValueError, match=said):
        sequence_sections({name: array for name, array in given.items() if array is not None})
