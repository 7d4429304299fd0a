"""Progress is a bar on a terminal and few lines elsewhere."""

import contextlib

import pytest

from bcss_jax.common import progress
from bcss_jax.common.progress import ProgressLine


@pytest.fixture
def clock(monkeypatch):
    """A clock in seconds; tests set it."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def lines_of(clock, capsys, *, total: int, seconds_each: float, first: float = 0.0, **settings) -> list[str]:
    """Returns what work prints whose first step takes `first` seconds more than the others."""
    line = ProgressLine("work", total, **settings)
    clock[0] += first
    for done in range(line._done + 1, total + 1):
        clock[0] += seconds_each
        line.update(done, "loss 1")
    line.close()
    return capsys.readouterr().out.splitlines()


def test_work_of_less_than_a_minute_prints_nothing_into_a_pipe(clock, capsys):
    assert lines_of(clock, capsys, total=59, seconds_each=1.0) == []


def test_work_of_two_minutes_prints_a_start_a_middle_and_an_end(clock, capsys):
    start, middle, end = lines_of(clock, capsys, total=120, seconds_each=1.0)
    assert start == "work 6/120  1.00/s, 1:54 left, loss 1"
    assert middle == "work 60/120  1.00/s, 1:00 left, loss 1"
    assert end == "work 120/120  in 2:00"


def test_a_day_of_work_prints_a_line_each_half_hour(clock, capsys):
    assert 45 < len(lines_of(clock, capsys, total=24 * 60, seconds_each=60.0)) < 60


def test_the_remaining_time_leaves_out_the_first_step_which_compiles(clock, capsys):
    assert lines_of(clock, capsys, total=20, seconds_each=1.0, first=25.0) == []


def test_a_resumed_run_counts_the_work_of_this_session(clock, capsys):
    assert "1.00/s, 1:34 left" in lines_of(clock, capsys, total=200, seconds_each=1.0, done=100)[0]


def test_every_update_is_printed_if_asked_for(clock, capsys):
    assert len(lines_of(clock, capsys, total=7, seconds_each=0.1, first_seconds=0.0)) == 7


def test_other_processes_print_nothing(clock, capsys):
    assert lines_of(clock, capsys, total=500, seconds_each=1.0, enabled=False) == []


class Shell:
    """IPython's shell in a notebook, as far as a display of progress uses it."""

    kernel, execution_count = object(), 3


@pytest.fixture
def shown(monkeypatch):
    """The contents of the displays of a notebook; each is a list, whose last item is what is seen."""
    displays = []

    class Handle:
        def __init__(self, content):
            self.contents = [content.data]
            displays.append(self.contents)

        def update(self, content):
            self.contents.append(content.data)

    ipython = pytest.importorskip("IPython")
    monkeypatch.setattr(ipython, "get_ipython", lambda: Shell)
    monkeypatch.setattr(ipython.display, "display", lambda content, display_id: Handle(content))
    monkeypatch.setattr(progress, "_line", None)
    monkeypatch.setattr(Shell, "execution_count", 3)
    return displays


def test_a_notebook_has_one_display_for_all_work_of_a_cell(shown, capsys, monkeypatch):
    monkeypatch.setattr(progress, "NOTEBOOK_SECONDS", 0)
    for label in ("epoch <1>", "epoch 2"):
        with contextlib.closing(ProgressLine(label, 10)) as line:
            for done in range(1, 11):
                line.update(done, "loss 0.5")
            line.print("a row of the table")
    (contents,) = shown
    assert len(contents) == 22 and "epoch &lt;1&gt; 5/10" in contents[4] and "loss 0.5" in contents[4]
    assert "epoch 2: ended after 0:00" in contents[-1] and "<progress" not in contents[-1]
    assert 'value="1.0000"' in contents[-2]
    assert capsys.readouterr().out == "a row of the table\n" * 2
    monkeypatch.setattr(Shell, "execution_count", 4)
    with contextlib.closing(ProgressLine("in the next cell", 10)) as line:
        line.update(1)
    assert len(shown) == 2


def test_a_notebook_is_not_redrawn_at_every_step(shown):
    with contextlib.closing(ProgressLine("epoch", 1000)) as line:
        for done in range(1, 1001):
            line.update(done)
    (contents,) = shown
    assert len(contents) < 10 and "epoch: ended after" in contents[-1]
