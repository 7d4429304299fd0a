"""The first training step of a run tells what it took."""

import time
from types import SimpleNamespace

import pytest

from bcss_jax.common.progress import ProgressLine
from bcss_jax.training import epoch
from bcss_jax.training.epoch import LoopSettings, TrainingSession


@pytest.fixture
def session():
    return TrainingSession(0, SimpleNamespace(), SimpleNamespace(), {}, LoopSettings(1), SimpleNamespace(), "fold 0")


def slow_step(state, batch):
    time.sleep(0.1)
    return state + batch, {}


def test_the_first_step_says_what_the_start_took_and_the_second_nothing(session, capsys):
    line = ProgressLine("epoch 1", 2)
    assert session._take_step(slow_step, 3, line) == (3, {})
    assert capsys.readouterr().out.startswith("fold 0: first step after ")
    session._take_step(slow_step, 3, line)
    assert capsys.readouterr().out == ""


def test_a_long_compilation_is_announced(session, capsys, monkeypatch):
    monkeypatch.setattr(epoch, "LONG_COMPILE_SECONDS", 0.02)
    session._take_step(slow_step, 3, ProgressLine("epoch 1", 2))
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"fold 0: {epoch.LONG_COMPILE}" and "compiling 0.1" in second


def test_a_step_that_fails_is_not_announced_later(session, capsys, monkeypatch):
    monkeypatch.setattr(epoch, "LONG_COMPILE_SECONDS", 0.2)

    def failing_step(state, batch):
        raise ValueError("no step")

    with pytest.raises(ValueError, match="no step"):
        session._take_step(failing_step, 3, ProgressLine("epoch 1", 2))
    time.sleep(0.3)
    assert capsys.readouterr().out == ""
