"""Event files of TensorBoard that cannot be written are an error of one line."""

import numpy as np
import pytest

from bcss_jax.errors import StorageError
from bcss_jax.training.tensorboard import TensorBoard


def test_events_that_cannot_be_written_are_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="tensorboard: cannot be written .*; check space and permissions") as caught:
        TensorBoard(tmp_path / "file" / "tensorboard", active=True)
    assert len(str(caught.value).splitlines()) == 1
    writer = TensorBoard(tmp_path / "file" / "tensorboard", active=False)
    writer.write_scalars(1, {"loss": 0.5})
    writer.write_image(1, "samples", np.zeros((4, 4, 3), np.uint8))
    writer.close()
