"""Windows and pixels that the mask of a slide's tissue asks for."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bcss_jax.slides.grid import Grid
from bcss_jax.slides.tissue.tissue_mask import Tissue
from bcss_jax.slides.windows import windows_of


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_windows_with_tissue_in_their_cell_are_chosen(height, width, rows, columns, seed):
    mask = np.random.default_rng(seed).random((rows, columns)) < 0.1
    tissue = Tissue(mask, Grid(width, height, 0.25, (1.0, 1.0)))
    windows = windows_of(height, width, 8, 0.25)
    chosen = tissue.windows(windows)
    whole = tissue.pixels(0, height, 0, width)
    assert whole.shape == (height, width)
    for row in range(windows.rows):
        for column in range(windows.columns):
            top, left = row * windows.stride, column * windows.stride
            cell = whole[top : top + windows.stride, left : left + windows.stride]
            # A mask that is finer than the grid may have tissue between the pixels that the grid samples.
            assert chosen[row, column] or not cell.any()
            if rows <= height and columns <= width:
                assert chosen[row, column] == cell.any()
