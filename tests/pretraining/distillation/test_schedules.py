import numpy as np
import pytest
from helpers.references import foundation_case

from bcss_jax.pretraining.distillation.schedules import cosine, make_schedules, warmed_up

SETTINGS = dict(
    epochs=10,
    epoch_steps=7,
    learning_rate=0.0005 * 64 / 256,
    final_learning_rate=1e-6,
    warmup_epochs=3,
    weight_decay=0.04,
    final_weight_decay=0.4,
    momentum=0.996,
    teacher_temperature=0.07,
    first_teacher_temperature=0.04,
    teacher_warmup_epochs=3,
    frozen_last_layer_epochs=1,
)


@pytest.fixture(scope="module")
def reference():
    return foundation_case("schedules")


def assert_is(ours, reference, name):
    entry, _, _, outputs = reference
    assert entry["outputs"][name]["shape"] == list(ours.shape)
    np.testing.assert_allclose(ours, outputs[name], rtol=2e-7, atol=1e-12)  # stored in float32
    assert abs(ours.mean() - entry["outputs"][name]["full_mean"]) < 1e-12
    assert abs(np.abs(ours).sum() - entry["outputs"][name]["full_abs_sum"]) < 1e-12


def test_schedules_of_the_first_version(reference):
    ours = make_schedules(**SETTINGS)
    assert_is(ours.learning_rate, reference, "v1_lr")
    assert_is(ours.weight_decay, reference, "v1_wd")
    assert_is(ours.momentum, reference, "v1_momentum")
    assert_is(ours.teacher_temperature[::7], reference, "v1_teacher_temp")
    assert (ours.teacher_temperature.reshape(10, 7) == ours.teacher_temperature[::7, None]).all()
    assert ours.trains_last_layer.tolist() == [0] * 7 + [1] * 63


def test_schedules_of_the_second_version(reference):
    ours = make_schedules(**{**SETTINGS, "learning_rate": 0.004, "momentum": 0.992}, version=2)
    assert_is(ours.learning_rate, reference, "v2_lr")
    assert_is(ours.last_layer_learning_rate, reference, "v2_last_layer_lr")
    assert_is(ours.momentum, reference, "v2_momentum")
    assert_is(ours.teacher_temperature[:21], reference, "v2_teacher_temp")
    assert (ours.teacher_temperature[21:] == 0.07).all()
    assert (ours.trains_last_layer == 1).all()


def test_a_warm_up_may_be_longer_than_the_training():
    np.testing.assert_array_equal(cosine(1, 0, 3, 5), [0, 0.5, 1])
    np.testing.assert_array_equal(warmed_up(0, 1, 2, 9), [0, 1])


def test_values_of_a_step():
    values = make_schedules(**SETTINGS).at(6)
    assert values["trains_last_layer"] == 0
    assert all(isinstance(value, np.float32) for value in values.values())
    assert values["learning_rate"] == np.float32(make_schedules(**SETTINGS).learning_rate[6])
