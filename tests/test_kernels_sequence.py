"""The kernels of the sequence encoder: every instruction set against the definition in float64, and against each other."""

from __future__ import annotations

import numpy as np
import pytest

from omega_edge._simd import Kernels, isa_names
from tests.encoders import encode, float_parameters, model_of, quantised

TITLES = 50
TOLERANCE = 1e-5
"""Of a state whose numbers are up to 4: some hundred roundings of 6e-8 each, of sums of 64 and 128."""
LENGTHS = (1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 33, 63, 64, 65)
"""Beside the ends: 4, the states multiplied at a time; 16, the events; 65, where the oldest is seen only when one is gone."""


@pytest.fixture(params=isa_names())
def isa(request) -> Kernels:
    return Kernels(request.param)


def drawn_events(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, TITLES, count).astype(np.uint32), rng.integers(0, 2, count).astype(np.uint8)


def states_of(isa: Kernels, model: tuple, rows: np.ndarray, success: np.ndarray, left: int) -> np.ndarray:
    events, out = np.full((len(rows), 192), np.nan, np.float32), np.full((1 + left, 64), np.nan, np.float32)
    isa.sequence_events(model, rows, success, events)
    isa.sequence_states(model, events, out)
    return out


@pytest.mark.parametrize("count", LENGTHS)
def test_states_are_the_definition_s_with_and_without_each_event(isa, count):
    sections = quantised(float_parameters(TITLES, seed=count))
    rows, success = drawn_events(count, count)
    found = states_of(isa, model_of(sections), rows, success, min(count, 64))
    np.testing.assert_allclose(found[0], encode(sections, rows, success), rtol=0, atol=TOLERANCE)
    if count == 1:
        assert not found[1].any()
    for event in range(min(count, 64) if count > 1 else 0):
        expected = encode(sections, np.delete(rows, event), np.delete(success, event))
        np.testing.assert_allclose(found[1 + event], expected, rtol=0, atol=TOLERANCE, err_msg=f"without {event}")


def test_inputs_keys_and_values_are_the_definition_s(isa):
    sections = quantised(float_parameters(TITLES, seed=3))
    part = {name.removeprefix("sequence_"): array.astype(np.float64) for name, array in sections.items()}
    rows, success = drawn_events(4, 19)
    events = np.empty((19, 192), np.float32)
    isa.sequence_events(model_of(sections), rows, success, events)
    x = part["input_scale"] * (part["codes"][rows] * part["scale"][rows, None] + part["success"][success])
    y = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-6) * part["norms"][0]
    expected = [x, *(y @ (part["attention"][at] * part["attention_scale"][at]) for at in (1, 2))]
    np.testing.assert_allclose(events, np.concatenate(expected, axis=1), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("spread", [60.0, 1e5])
def test_where_one_event_has_all_the_weight_those_without_it_are_exact_too(isa, spread):
    # The others' powers would all be 0 under the greatest logit of all: 0 / 0 without the event that has it.
    parameters = float_parameters(TITLES, seed=5)
    parameters["R"] = (np.random.default_rng(6).standard_normal((64, 8)) * spread).astype(np.float32)
    parameters["Wk"] *= 30
    sections = quantised(parameters)
    rows, success = drawn_events(7, 20)
    found = states_of(isa, model_of(sections), rows, success, 20)
    for event in range(20):
        expected = encode(sections, np.delete(rows, event), np.delete(success, event))
        # A logit of some thousands is rounded to 1e-4 of a unit, and so is the weight that it gives.
        np.testing.assert_allclose(found[1 + event], expected, rtol=0, atol=0.05, err_msg=f"without {event}")


@pytest.mark.parametrize("count", [1, 13, 64, 65])
def test_all_instruction_sets_and_batches_give_the_same_bits(count):
    model = model_of(quantised(float_parameters(TITLES, seed=8)))
    rows, success = drawn_events(9, count)
    together = [states_of(Kernels(name), model, rows, success, min(count, 64)) for name in isa_names()]
    for states in together:
        assert states.tobytes() == together[-1].tobytes()
    kernels, events = Kernels(), np.empty((count, 192), np.float32)
    for at in range(count):
        kernels.sequence_events(model, rows[at : at + 1], success[at : at + 1], events[at : at + 1])
    whole = np.empty((1, 64), np.float32)
    kernels.sequence_states(model, events, whole)
    assert whole[0].tobytes() == together[-1][0].tobytes()


def test_powers_of_e_are_exact_over_their_whole_range(isa):
    # The newest event's value is 0, all its logits are; the other's are the bias x of its head. Head 0 has x = 0, so the
    # others' output over its own is 2 e^x / (1 + e^x), whatever the norms make of both.
    parameters = {name: np.zeros_like(array) for name, array in float_parameters(2, seed=1).items()}
    parameters["E"][1] = parameters["norms"][:] = parameters["input_scale"][:] = 1
    parameters["Wv"][:, :8] = 127 / 64
    parameters["Wo"][:8, :8] = np.eye(8)
    x = np.concatenate([-np.geomspace(1e-8, 86.9, 2051), [-0.0, -np.log(2) / 2, -87.1, -1e4, -1e30]]).astype(np.float32)
    found = np.empty(0)
    for start in range(0, len(x), 7):
        some = np.resize(x[start : start + 7], 7)
        parameters["R"][1, 1:] = some
        out = states_of(isa, model_of(quantised(parameters)), np.uint32([0, 1]), np.uint8([0, 0]), 0)[0].astype(float)
        ratio = out[1:8] / out[0]
        found = np.append(found, (ratio / (2 - ratio))[: len(x) - start])
    expected = np.where(x < -87, 0, np.exp(x.astype(float)))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)


def test_a_title_without_an_embedding_and_an_outcome_of_any_number(isa):
    parameters = float_parameters(TITLES, seed=10)
    parameters["E"][7] = 0
    sections = quantised(parameters)
    found = states_of(isa, model_of(sections), np.uint32([7, 3]), np.uint8([255, 0]), 0)
    np.testing.assert_allclose(found[0], encode(sections, [7, 3], [1, 0]), rtol=0, atol=TOLERANCE)


class TestArguments:
    MODEL = model_of(quantised(float_parameters(TITLES, seed=11)))

    def events(self, count: int) -> np.ndarray:
        return np.zeros((count, 192), np.float32)

    def changed(self, at: int, array: object) -> tuple:
        return self.MODEL[:at] + (array,) + self.MODEL[at + 1 :]

    def test_a_row_past_the_table_is_refused(self, isa):
        with pytest.raises(ValueError, match=r"rows\[1\]: expected a row of the table"):
            isa.sequence_events(self.MODEL, np.uint32([0, TITLES]), np.uint8([1, 1]), self.events(2))

    @pytest.mark.parametrize("at", range(13))
    def test_each_array_of_another_shape_or_dtype_is_refused(self, isa, at):
        array = self.MODEL[at]
        wider = np.zeros((*array.shape[:-1], array.shape[-1] + 32), array.dtype)
        with pytest.raises(ValueError, match=r"expected (length|64 dimensions)"):
            isa.sequence_states(self.changed(at, wider), self.events(2), np.zeros((1, 64), np.float32))
        with pytest.raises(TypeError, match=r"expected (int8|float32)"):
            isa.sequence_events(
                self.changed(at, array.astype(np.float64)), np.uint32([0]), np.uint8([1]), self.events(1)
            )

    @pytest.mark.parametrize("model", [(), MODEL[:-1], (*MODEL, 1.0)])
    def test_a_model_of_another_length_is_refused(self, isa, model):
        with pytest.raises(ValueError, match="unpack"):
            isa.sequence_states(model, self.events(2), np.zeros((1, 64), np.float32))

    @pytest.mark.parametrize("count", [0, 66])
    def test_no_event_and_more_than_are_held_are_refused(self, isa, count):
        with pytest.raises(ValueError, match=f"events: expected 1 to 65 events, got {count}"):
            isa.sequence_states(self.MODEL, self.events(count), np.zeros((1, 64), np.float32))

    @pytest.mark.parametrize(("events", "states"), [(2, 0), (2, 4), (65, 66)])
    def test_more_states_than_events_of_the_window_are_refused(self, isa, events, states):
        with pytest.raises(ValueError, match=f"out: expected 1 to {min(events, 64) + 1} states.*got {states}"):
            isa.sequence_states(self.MODEL, self.events(events), np.zeros((states, 64), np.float32))

    def test_an_output_that_is_an_input_too_is_refused(self, isa):
        shared = np.zeros(65 * 192, np.float32)
        with pytest.raises(ValueError, match="shares memory"):
            isa.sequence_states(self.MODEL, shared.reshape(65, 192), shared[:64].reshape(1, 64))
