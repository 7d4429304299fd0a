import numpy as np

from bcss_jax.slides.tissue.blank_slide import is_blank


def test_only_a_slide_that_is_white_everywhere_is_blank():
    thumbnail = np.full((40, 50, 3), 255, np.uint8)
    assert is_blank(thumbnail)
    thumbnail[3, 4] = (255, 200, 230)
    assert not is_blank(thumbnail)
    assert not is_blank(np.full((40, 50, 3), 243, np.uint8))  # glass
