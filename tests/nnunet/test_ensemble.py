"""Ensembles: means of logits and of probabilities, one prediction at a time."""

import weakref

import numpy as np
import pytest

from bcss_jax.errors import DataError
from bcss_jax.nnunet import ensemble


def logits(count=3):
    return list(np.random.RandomState(0).standard_normal((count, 5, 6, 4)).astype(np.float32) * 3)


def test_folds_are_averaged_as_logits():
    np.testing.assert_allclose(ensemble.mean_of_folds(iter(logits())), np.mean(logits(), axis=0), rtol=1e-5)


def test_configurations_are_averaged_as_probabilities():
    exps = np.exp(np.asarray(logits(), np.float64))
    expected = (exps / exps.sum(-1, keepdims=True)).mean(0)
    result = ensemble.mean_of_configurations(iter(logits()))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    np.testing.assert_allclose(result.sum(-1), 1, rtol=1e-6)


def test_the_two_means_can_differ():
    surer = [np.float32([[[4, 0]]]), np.float32([[[0, 1.5]]]), np.float32([[[0, 1.5]]])]
    assert ensemble.mean_of_folds(surer).argmax() == 0 and ensemble.mean_of_configurations(surer).argmax() == 1


def test_configurations_are_nnunets(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    reference = pytest.importorskip("nnunetv2.ensembling.ensemble", reason="nnunetv2 is not installed")
    files = []
    for i, each in enumerate(logits()):
        files.append(str(tmp_path / f"{i}.npz"))
        np.savez(files[-1], probabilities=torch.softmax(torch.from_numpy(each.transpose(2, 0, 1)), 0).numpy())
    expected = reference.average_probabilities(files)
    np.testing.assert_allclose(ensemble.mean_of_configurations(logits()).transpose(2, 0, 1), expected, rtol=1e-5)


def test_large_logits_do_not_overflow():
    np.testing.assert_array_equal(ensemble.softmax(np.float32([[1e4, 0], [-1e30, 0]])), [[1, 0], [0, 1]])


def test_half_precision_is_summed_in_float32_and_inputs_do_not_change():
    np.testing.assert_array_equal(ensemble.mean_of_folds([np.full((2, 2, 1), 60000, np.float16)] * 4), 60000)
    kept = np.ones((1, 1, 2), np.float32)
    ensemble.mean_of_folds([kept, kept])
    np.testing.assert_array_equal(kept, np.ones((1, 1, 2)))


def test_memory_holds_only_the_sum_and_one_prediction():
    alive = []

    def predictions():
        for _ in range(4):
            array = np.ones((3, 3, 2), np.float32)
            alive.append(weakref.ref(array))
            assert sum(ref() is not None for ref in alive) <= 2
            yield array
            del array

    ensemble.mean_of_folds(predictions())


def test_predictions_that_cannot_be_averaged_are_refused():
    with pytest.raises(DataError, match=r"\(5, 6, 4\) and \(5, 6, 3\)"):
        ensemble.mean_of_folds([logits()[0], logits()[0][..., :3]])
    with pytest.raises(ValueError, match="no predictions"):
        ensemble.mean_of_folds([])
