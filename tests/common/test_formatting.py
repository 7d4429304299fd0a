from bcss_jax.common.formatting import format_interval, format_score, format_table_score


def test_scores_have_fixed_decimals_and_unknown_ones_a_sign():
    assert (format_score(0.12345), format_score(None), format_score(0.5, 1)) == ("0.1235", "n/a", "0.5")
    assert (format_table_score(0.83449), format_table_score(None), format_table_score(12.345, 1)) == (
        "0.834",
        "–",
        "12.3",
    )
    assert (format_interval(0.81, 0.8346), format_interval(None, None)) == ("0.810 to 0.835", "–")
