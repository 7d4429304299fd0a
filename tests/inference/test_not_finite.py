"""Output that is not finite ends a command with exit 4, and is never taken for a class."""

import jax
import numpy as np
import pytest
from helpers.segment_command import call, one_line
from helpers.slides_small import tissue_picture
from helpers.trained_small import write_run
from PIL import Image

from bcss_jax.commands import export
from bcss_jax.evaluation.image_counts import count_pixels
from bcss_jax.inference.predict import log_probabilities_from_logits, mean_log_probabilities
from bcss_jax.labels import SCHEMES

SCHEME = SCHEMES["tumor_stroma"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with finite weights whose logits overflow."""

    def overflow(params):
        for name in ("kernel", "bias"):
            params["outc"][name] = params["outc"][name] * 0 + np.float32(3.4e38)

    return write_run(tmp_path_factory.mktemp("runs") / "broken", change=overflow)


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("channel", range(3))
def test_a_logit_that_is_not_finite_makes_its_pixel_not_finite(value, channel):
    logits = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    sound = np.asarray(log_probabilities_from_logits(SCHEME, logits))
    logits[1, 2, 3, channel] = value
    broken = np.array(log_probabilities_from_logits(SCHEME, logits))
    assert np.isnan(broken[1, 2, 3]).all()
    broken[1, 2, 3] = sound[1, 2, 3]
    np.testing.assert_array_equal(broken, sound)
    # It shows in an ensemble too.
    joined = mean_log_probabilities([jax.numpy.asarray(sound), log_probabilities_from_logits(SCHEME, logits)])
    truth, positions = np.ones((2, 4, 4), np.uint8), np.zeros((2, 1), np.int32)
    assert count_pixels(SCHEME, joined, truth, positions)["finite"].tolist() == [True, False]


def test_segment_ends_with_4_at_the_first_slide(run, tmp_path, capsys):
    for name in "ab":
        Image.fromarray(tissue_picture(60, 70)[0]).save(tmp_path / f"{name}.png")
    (tmp_path / "list.csv").write_text("slide,mpp\na.png,0.5\nb.png,0.5\n")
    for number, slides in enumerate(
        ([f"--slides={tmp_path / 'list.csv'}"], [f"--slide={tmp_path / 'a.png'}", "--mpp=0.5"])
    ):
        output = tmp_path / f"out{number}"
        assert call(f"--checkpoint={run}", *slides, "--tissue=all", "--readers=1", f"--output={output}") == 4
        line = one_line(capsys)
        assert "a.png: window at x=" in line and "the output of broken is not finite" in line
        assert not list(output.rglob("labels.ome.tif"))


def test_export_ends_with_4_and_writes_nothing(run, tmp_path, capsys):
    assert export.main([f"--checkpoint={run}", f"--output={tmp_path / 'unet.jaxexport'}"]) == 4
    assert "the output for noise is not finite" in one_line(capsys)
    assert not list(tmp_path.iterdir())
