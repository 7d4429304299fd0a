"""The command `python -m bcss_jax.models`."""

import pytest

from bcss_jax.models import __main__ as sizes


def test_help_and_unknown_options_measure_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sizes, "print_table", lambda: pytest.fail("measured"))
    with pytest.raises(SystemExit) as ended:
        sizes.main(["--help"])
    assert ended.value.code == 0 and "python -m bcss_jax.models" in capsys.readouterr().out
    assert sizes.main(["--nework=unet"]) == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --nework=unet; see --help\n"
