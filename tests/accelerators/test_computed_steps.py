"""The rows of `compile_for --all --write`: kept as they come, with the reason where a network fails."""

import dataclasses
from concurrent.futures.process import BrokenProcessPool

import pytest

from bcss_jax import models
from bcss_jax.accelerators import network_table
from bcss_jax.accelerators.computed_steps import (
    FILE,
    REMAT,
    ComputedStep,
    Key,
    Line,
    Row,
    code_digest,
    read_rows,
    write_row,
)  # fmt: skip
from bcss_jax.accelerators.network_table import compute_step, memory_line, print_table
from bcss_jax.accelerators.roofline import Roofline
from bcss_jax.accelerators.steps import STEPS, Memory
from bcss_jax.accelerators.targets import TARGETS
from bcss_jax.errors import DataError

STEP = ComputedStep(
    2, Memory(10**9, 10**6, 2 * 10**9), 10**10, 1e12, Roofline(0.1, 0.2, 0.25), 12.0, {"train": Line(1e8, 1e7)}
)


class Process:
    """Stands for the process in which the compiler runs."""

    def __init__(self, *_):
        self.network = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, function, target, key, every_step):
        assert function is compute_step and every_step
        self.network = key.network
        return self

    def result(self):
        if self.network == "nnunet":
            raise RuntimeError("INTERNAL: no tiles\nmore lines")
        if self.network == "transunet":
            raise BrokenProcessPool("ended")
        return STEP


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.setattr(network_table, "ProcessPoolExecutor", Process)
    monkeypatch.setattr(network_table, "describe_devices", lambda target, devices: [])
    monkeypatch.setattr(models, "MODELS", {name: None for name in ("nnunet", "transunet", "unet")})


def test_a_network_that_fails_leaves_its_row_and_a_second_command_goes_on(compiler, tmp_path, capsys, monkeypatch):
    file = tmp_path / "rows.json"
    print_table(TARGETS["t4"], 1, "float16", 128, 224, file)
    first = capsys.readouterr().out
    assert "| `nnunet` | INTERNAL: no tiles | " in first
    assert "| `transunet` | the compiler ends the process | " in first
    assert (
        "| `unet` | 64 (`--config.micro_batches=2`) | 3.0 of 11.7 GB | 10 GB | 1.0 | 250 (100, 200) | 512 | 12 s |"
        in first
    )
    assert {row.key.network: row.reason for row in read_rows(file)} == {
        "nnunet": "INTERNAL: no tiles", "transunet": "the compiler ends the process", "unet": "",
    }  # fmt: skip
    monkeypatch.setattr(network_table, "_compute", lambda *_, **__: pytest.fail("computed again"))
    print_table(TARGETS["t4"], 1, "float16", 128, 224, file)
    assert capsys.readouterr().out == first


def test_rows_are_read_as_they_were_written(tmp_path):
    file = tmp_path / "rows.json"
    row = Row(Key("t4", 1, "unet", "float16", 128, 224), STEP, "", "0.10.2", "abc")
    write_row(row, file)
    write_row(dataclasses.replace(row, key=dataclasses.replace(row.key, network="nnunet"), step=None), file)
    write_row(dataclasses.replace(row, code=code_digest()), file)
    found = read_rows(file)
    assert [each.key.network for each in found] == ["nnunet", "unet"] and found[1].step == STEP
    assert not row.is_current()


@pytest.mark.parametrize("text", ["{", "{}", '{"rows": [{"key": {}}]}', "[]"])
def test_another_file_is_not_replaced(text, tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(text)
    with pytest.raises(DataError, match="rows.json: expected rows of compile_for --all --write"):
        write_row(Row(Key("t4", 1, "unet", "float16", 128, 224), None, "x", "", ""), file)
    assert file.read_text() == text


def test_the_memory_of_other_batches():
    line = memory_line(Memory(1000, 8, 392), 4, gradients=0.5)
    assert line == Line(1500, 100) and line.fixed + 4 * line.per_image >= 1400


def test_the_rows_of_the_package():
    for row in read_rows():
        assert row.key.target in TARGETS and row.key.network in models.MODELS
        assert bool(row.reason) == (row.step is None)
        if row.step:
            assert row.step.memory.total() <= TARGETS[row.key.target].usable
            assert set(row.step.memory_lines) - {REMAT} == set(STEPS)
            assert all(line.fixed >= 0 and line.per_image > 0 for line in row.step.memory_lines.values())
    assert FILE.parent.name == "accelerators"
