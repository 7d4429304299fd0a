"""The first training step says what the start took."""

from bcss_jax.common.startup import start_clock


def test_the_line_names_the_parts_in_their_order(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(start_clock.time, "perf_counter", lambda: now[0])
    start_clock.begin()
    clock = start_clock.current()
    for seconds, part in ((3.0, "imports"), (1.0, "data"), (0.5, "compiling"), (1.25, "data"), (0.25, "step")):
        now[0] += seconds
        clock.lap(part)
    assert clock.line() == "first step after 6.0 s: imports 3.0, data 2.2, compiling 0.5, step 0.2"


def test_each_training_has_its_own_clock():
    first = start_clock.take()
    assert start_clock.current() is not first
