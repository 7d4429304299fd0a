import argparse

import numpy as np
import pytest

from bcss_jax.common.ranges import Range


def test_only_finite_numbers_of_the_range_are_in_it():
    share, count = Range(0, 1, above=True, below=True), Range(1, 100, whole=True)
    assert 0.5 in share and np.float32(0.5) in share and 1 in count and np.int64(100) in count
    for value in (0, 1, 2.0, -1, float("nan"), float("inf"), None, "0.5", True, [0.5]):
        assert value not in share
    for value in (0, 101, 10**400, 1.0, float("nan"), None, "1", True):
        assert value not in count
    assert 0 in Range(0, 1) and 1 in Range(0, 1)


def test_the_range_is_text_for_a_message():
    assert str(Range(0, 1000.0, above=True)) == "above 0 to 1000"
    assert str(Range(1, 2**20, whole=True)) == "a whole number from 1 to 1048576"
    assert str(Range(0, 1, below=True)) == "from 0 to below 1"


@pytest.mark.parametrize("text", ["", "nan", "inf", "-inf", "1e400", "1001", "0", "x\ny", "9" * 5000])
def test_an_option_out_of_its_range_is_refused_in_one_line(text):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        Range(0, 1000, above=True).parse(text)
    assert str(error.value).endswith(": must be above 0 to 1000") and "\n" not in str(error.value)
    with pytest.raises(argparse.ArgumentTypeError):
        Range(1, 1000, whole=True).parse(text)
    assert Range(0, 1000, above=True).parse("0.25") == 0.25 and Range(1, 9, whole=True).parse("7") == 7
