"""The predictor gives the reference's masks, whatever prompts are filled up to, and compiles once for that."""

import jax
import numpy as np
import pytest
from flax import nnx
from helpers.references import FOUNDATION, foundation_case
from helpers.sam_tiny import DECODER, picture, sam_tiny

from bcss_jax.errors import ConfigError, DataError, NumericalError
from bcss_jax.models.sam.architecture import HieraForm
from bcss_jax.models.sam.sam2 import Sam2
from bcss_jax.prompting import Predictor, predictor

POINTS, LABELS, BOX = [[30, 20], [70, 40]], [1, 0], [10, 5, 90, 50]


@pytest.fixture(scope="module")
def tiny():
    foundation_case("sam_tiny_pre_post")  # skips where it is missing
    predictor = Predictor(sam_tiny())
    predictor.set_image(picture(30, 60, 100))
    return predictor


def close(actual, expected, bar=3e-4):
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < bar * expected.std(), np.abs(actual - expected).max() / expected.std()


def test_predictions_are_those_of_the_reference(tiny):
    expected = np.load(FOUNDATION / "outputs" / "sam_tiny_pre_post.npz")
    found = tiny.predict(POINTS, LABELS, BOX, logits=True)
    close(found.masks[:, ::2, ::2], expected["predict_logits"])
    close(found.scores, expected["predict_iou"])
    close(found.low_res, expected["predict_low"])
    again = tiny.predict([[30, 20]], [1], mask=found.low_res[:1], multimask=False, logits=True)
    close(again.masks[:, ::2, ::2], expected["predict_again_logits"])
    np.testing.assert_allclose(again.scores, expected["predict_again_iou"], rtol=3e-4)
    masks = tiny.predict([[30, 20]], [1], mask=found.low_res[0], multimask=False).masks
    assert masks.dtype == bool and (masks == (again.masks > 0)).all()


def test_both_kinds_of_predictions_come_from_one_decoding(tiny):
    for given in ((POINTS, LABELS), (POINTS, LABELS, BOX), (None, None, BOX)):
        several, one = tiny.predict_both(*given)
        for found, multimask in ((several, True), (one, False)):
            expected = tiny.predict(*given, multimask=multimask, logits=True)
            for actual, wanted in zip(found, expected, strict=True):
                np.testing.assert_allclose(actual, wanted, atol=1e-5)


def test_features_of_an_earlier_image_are_taken(tiny):
    first = tiny.predict(POINTS, LABELS, logits=True)
    again = predictor.Predictor(tiny.model)
    again.set_features(tiny.features, 60, 100)
    np.testing.assert_array_equal(again.predict(POINTS, LABELS, logits=True).masks, first.masks)


@nnx.jit
def decoded(model, features, points, labels, boxes, masks):
    return model.select(model.decode(features, model.tokens(points, labels, boxes), masks), multimask=True)


@pytest.mark.parametrize(
    "prompt", ["points", "all", *(pytest.param(x, marks=pytest.mark.slow) for x in ("box", "mask"))]
)
def test_what_prompts_are_filled_up_with_changes_nothing(tiny, prompt):
    model, rs = tiny.model, np.random.RandomState(4)
    points, labels = rs.uniform(0, 60, (3, 5, 2)), rs.randint(0, 2, (3, 5))
    boxes = np.array([[5, 6, 40, 50], [0, 0, 100, 60], [30, 30, 50, 45]])
    masks = 3 * rs.standard_normal((3, 40, 40)).astype(np.float32)
    given = dict(points=(points, labels, None, None), box=(None, None, boxes, None), mask=(None, None, None, masks))
    given = given.get(prompt, (points, labels, boxes, masks))
    found = tiny.predict(*given)
    points, labels, boxes, masks = given
    points = points if points is None else tiny._frame.to_network(points)
    boxes = boxes if boxes is None else tiny._frame.to_network(boxes.reshape(-1, 2, 2)).reshape(-1, 4)
    plain = decoded(model, tiny.features, points, labels, boxes, masks)
    close(found.low_res, np.asarray(plain.masks), 1e-4)
    close(found.scores, np.asarray(plain.scores), 1e-4)


def test_clicks_and_prompts_share_compiled_functions(tiny):
    rs = np.random.RandomState(5)
    tiny.predict(rs.uniform(0, 60, (4, 8, 2)), np.ones((4, 8)))
    tiny.predict([[1, 2]], [1])
    compiled = predictor._decode._cache_size()
    for count in range(1, 9):
        tiny.predict(rs.uniform(0, 60, (count, 2)), np.ones(count))
    tiny.predict(rs.uniform(0, 60, (3, 2, 2)), np.ones((3, 2)), multimask=False)
    assert predictor._decode._cache_size() == compiled


def test_the_embedding_is_kept(tiny, monkeypatch):
    monkeypatch.setattr(predictor, "_encode", lambda *_: pytest.fail("encoded again"))
    first, second = (tiny.predict(POINTS, LABELS).low_res for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_sam2_takes_the_same_prompts():
    model = Sam2(HieraForm(16, 1, (1, 1, 1, 1), (3,), windows=(4, 4, 4, 2), table=3), DECODER, image_size=64)
    found = Predictor(model)
    found.set_image(picture(1, 50, 90))
    several = found.predict([POINTS, [[1, 2], [3, 4]]], [[1, 0], [1, 1]], [BOX, [0, 0, 90, 50]])
    assert several.masks.shape == (2, 3, 50, 90) and several.low_res.shape == (2, 3, 16, 16)
    one = found.predict(POINTS, LABELS, BOX, multimask=False)
    assert one.masks.shape == (1, 50, 90) and np.abs(one.low_res).max() <= 32


@pytest.mark.parametrize(
    "prompt, says",
    [
        (dict(), "found no prompt"),
        (dict(points=[[1, 2]]), "a label for each point"),
        (dict(points=[[1, 2]], labels=[1, 0]), "expected labels those of the points"),
        (dict(points=[[1, 2]], labels=[2]), "labels are 1 (inside), 0 (outside) or -1 (no point), not 2"),
        (dict(points=[[1, 61]], labels=[1]), "(1, 61) lies outside of the image of 100x60 pixels"),
        (dict(points=[[np.nan, 1]], labels=[1]), "not finite"),
        (dict(points=[1, 2], labels=[1]), "expected points (N, 2) or (P, N, 2)"),
        (dict(points=np.empty((0, 2)), labels=[]), "expected points (N, 2) or (P, N, 2)"),
        (dict(points=[["a", "b"]], labels=[1]), "expected points (N, 2)"),
        (dict(box=[50, 10, 20, 30]), "does not lie in the image"),
        (dict(box=[200, 10, 220, 30]), "does not lie in the image"),
        (dict(box=[1, 2, 3]), "expected box (4,) or (P, 4)"),
        (dict(mask=np.zeros((10, 10))), "expected mask (40, 40)"),
        (dict(points=np.ones((2, 1, 2)), labels=np.ones((2, 1)), box=[[0, 0, 9, 9]] * 3), "2 of points, 2 of labels"),
    ],
)
def test_prompts_that_cannot_be_meant_are_refused_in_one_line(tiny, prompt, says):
    with pytest.raises(DataError) as error:
        tiny.predict(**prompt)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_images_of_another_kind_and_prompts_without_one_are_refused(tiny):
    empty = Predictor(tiny.model)
    with pytest.raises(ConfigError, match="call set_image first"):
        empty.predict(POINTS, LABELS)
    for image in (np.zeros((60, 100)), np.zeros((60, 100, 3)), np.zeros((60, 100, 4), np.uint8)):
        with pytest.raises(DataError, match="RGB uint8"):
            empty.set_image(image)


def test_an_answer_that_is_not_finite_is_no_empty_mask(tiny):
    tiny.predict(POINTS, LABELS)
    damaged = Predictor(tiny.model)
    features = jax.tree.map(lambda array: array * np.nan, tiny.features)
    damaged.set_features(features, 60, 100)
    with pytest.raises(NumericalError, match="not finite"):
        damaged.predict(POINTS, LABELS)
