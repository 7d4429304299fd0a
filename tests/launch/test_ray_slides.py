"""Slides on a local Ray cluster of two workers, where one worker is killed. Skipped if Ray is not installed."""

import contextlib
import csv
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.slides_small import tissue_picture
from helpers.trained_small import write_run
from PIL import Image

from bcss_jax.commands import export, segment
from bcss_jax.errors import Preempted
from bcss_jax.slides.batch.overwrite_journal import OverwriteJournal
from bcss_jax.slides.batch.slide_folder import status_of
from bcss_jax.slides.batch.slide_list import Entry

SCRIPT = ROOT / "launch" / "ray_slides.py"
WITHOUT_RAY = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ray":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
runpy.run_path(sys.argv[1], run_name="__main__")
"""
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
PIXELS = {"killed": 1400, "stopped": 1400, "small": 100}  # of the slides' sides
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


def test_without_ray_the_error_names_what_to_install():
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stderr == "error: needs Ray; install it with pip install -e '.[ray]'\n"


# A batch on the cluster.


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    path = folder / "small.jaxexport"
    assert export.main([f"--checkpoint={write_run(folder / 'small')}", f"--output={path}"]) == 0
    return path


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """The list: three slides and a missing one."""
    folder = tmp_path_factory.mktemp("slides")
    for seed, (name, size) in enumerate(PIXELS.items()):
        Image.fromarray(tissue_picture(size, size, seed)[0]).save(folder / f"{name}.png")
    (folder / "list.csv").write_text("slide,mpp\n" + "".join(f"{name}.png,0.5\n" for name in [*PIXELS, "missing"]))
    return folder / "list.csv"


def start(slides, artifact, output):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, SCRIPT, f"--slides={slides}", "--workers=2", "--"]
    command += [f"--checkpoint={artifact}", f"--output={output}", "--tissue=all", "--readers=1"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(found, what, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = found()
        if value:
            return value
        time.sleep(0.05)
    pytest.fail(f"waited {seconds} s for {what}")


def process_at_work_on(folder):
    """Returns the process that segments a slide once it has computed a part of it."""
    rows = list((folder / ".work" / "labels").glob("*"))
    holder = re.match(r"process (\d+) on ", (folder / ".lock").read_text()) if rows else None
    return int(holder.group(1)) if holder and not (folder / "summary.json").exists() else None


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def gone(pid):
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def listening(driver):
    """Returns the addresses at which the driver and its children wait for connections."""
    psutil = pytest.importorskip("psutil")
    found = set()
    for process in [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            found |= {each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN}
    return found


@pytest.fixture(scope="module")
def batch(slides, artifact, tmp_path_factory):
    """The outcome after one worker was killed, and the process of another one was asked to stop."""
    output = tmp_path_factory.mktemp("results") / "out"
    driver = start(slides, artifact, output)
    try:
        segmenting = wait_for(lambda: process_at_work_on(output / "killed"), "the first slide to be at work")
        addresses = listening(driver)
        worker = parent_of(segmenting)
        name = Path(f"/proc/{worker}/cmdline").read_text()
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: gone(segmenting), "the segmenting process to end with its worker", seconds=10)
        stopped = wait_for(lambda: process_at_work_on(output / "stopped"), "the second slide to be at work")
        os.kill(stopped, signal.SIGTERM)
        out, err = driver.communicate(timeout=240)
    finally:
        driver.kill()
    return {"output": output, "code": driver.returncode, "out": out, "err": err, "worker": name, "addresses": addresses}


@needs_ray
def test_no_slide_is_lost_with_a_killed_worker(batch):
    assert batch["worker"].startswith("ray::")  # a worker was killed
    assert batch["code"] == 6, batch["err"]  # for the missing slide
    for name in PIXELS:
        assert status_of(batch["output"] / name).name == "done"
        assert len(re.findall(rf"^\d/4 {name}\.png \(", batch["out"], re.M)) == 1  # each slide is done once
    assert "3 of 4 slides done" in batch["out"]


@needs_ray
def test_a_missing_slide_is_tried_once_and_named(batch):
    assert batch["err"].count("missing.png: expected a file") == 1 and "1 of 4 slides failed" in batch["err"]
    with open(batch["output"] / "summary.csv", newline="") as file:
        rows = {Path(row["slide"]).stem: row for row in csv.DictReader(file)}
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(PIXELS, "done") | {"missing": "failed"}
    assert "No such file" in rows["missing"]["reason"]


@needs_ray
def test_the_results_equal_those_of_a_single_process(batch, slides, artifact, tmp_path):
    alone = [f"--checkpoint={artifact}", f"--output={tmp_path}", "--tissue=all", "--readers=1", "--mpp=0.5"]
    assert segment.main([*alone, f"--slide={slides.parent / 'killed.png'}"]) == 0
    for name in ("labels.ome.tif", "regions.geojson"):
        assert (batch["output"] / "killed" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


@needs_ray
def test_other_machines_cannot_reach_the_cluster(batch):
    assert batch["addresses"] and batch["addresses"] <= set(LOOPBACK)


@needs_ray
def test_finished_slides_are_not_computed_again(batch, slides, artifact):
    before = {path: path.stat().st_mtime_ns for path in batch["output"].glob("*/labels.ome.tif")}
    assert len(before) == 3
    driver = start(slides, artifact, batch["output"])
    out, _ = driver.communicate(timeout=240)
    assert driver.returncode == 6 and out.count("done before") == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


@needs_ray
def test_a_request_to_stop_ends_all_processes(slides, artifact, tmp_path):
    driver = start(slides, artifact, tmp_path / "out")
    try:
        segmenting = wait_for(lambda: process_at_work_on(tmp_path / "out" / "killed"), "the first slide to be at work")
        driver.send_signal(signal.SIGTERM)
        _, err = driver.communicate(timeout=60)
    finally:
        driver.kill()
    assert driver.returncode == 75, err
    assert re.search(r"^note: stopped with \d slides not done; the same command resumes from there$", err, re.M)
    wait_for(lambda: gone(segmenting), "the segmenting process to end", seconds=10)
    with open(tmp_path / "out" / "summary.csv", newline="") as file:
        assert "pending" in [row["status"] for row in csv.DictReader(file)]


# Without a cluster: one task, and the command line.


@pytest.fixture
def ray_slides():
    """The script as a module."""
    pytest.importorskip("ray")
    spec = importlib.util.spec_from_file_location("ray_slides", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ends_with(ray_slides, tmp_path, monkeypatch):
    """Runs a task with a stand-in process that ends in a given way."""

    def run(how, said=""):
        program = tmp_path / "python"
        program.write_text(f"#!/bin/bash\necho 'a line'\necho '{said}' >&2\n{how}\n")
        program.chmod(0o755)
        monkeypatch.setattr(ray_slides.sys, "executable", str(program))
        return ray_slides._segment(["--slide=a.svs"], str(tmp_path), False)

    return run


@pytest.mark.parametrize("code", [1, 2, 3, 5, 6])
def test_a_slide_that_fails_is_not_retried(ends_with, code):
    assert ends_with(f"exit {code}", "error: a.svs: damaged") == (code, "error: a.svs: damaged")


def test_a_slide_that_is_done_or_crashes(ends_with):
    assert ends_with("exit 0") == (0, "a line")
    assert ends_with("kill -SEGV $$") == (-signal.SIGSEGV, "ended by SIGSEGV")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("exit 75", "note: stopped"),
        ("kill -TERM $$", ""),
        ("exit 5", "error: out/a: in use by process 7 on host; wait"),
    ],
)
def test_a_slide_that_was_stopped_or_is_in_use_is_retried(ray_slides, ends_with, monkeypatch, how, said):
    monkeypatch.setattr(ray_slides.time, "sleep", lambda _: None)
    with pytest.raises(InterruptedError):
        ends_with(how, said)


def test_a_crash_is_recorded_for_the_summary(ray_slides, tmp_path, capsys):
    crashed = ray_slides.Outcome(-11, "ended by SIGSEGV")
    ray_slides._report(Entry(Path("a.svs")), crashed, "1/1", tmp_path, False)
    assert status_of(tmp_path / "a") == ("failed", None, "ended by SIGSEGV")
    assert json.loads((tmp_path / "a" / "failure.json").read_text())["exit_code"] == 3
    assert capsys.readouterr().err == "1/1 a.svs: ended by SIGSEGV\n"
    # A failure that segment has written itself is kept.
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "failure.json").write_text(json.dumps({"reason": "no mpp", "exit_code": 3}))
    ray_slides._report(Entry(Path("b.svs")), ray_slides.Outcome(3, "error: other"), "1/1", tmp_path, False)
    assert status_of(tmp_path / "b").reason == "no mpp"


@pytest.mark.parametrize(
    ("own", "others", "code", "said"),
    [
        (["--workers=2"], ["--checkpoint=a"], 2, "options after --: --output is missing"),
        (["--workers=2"], ["--output={tmp}/out"], 2, "options after --: --checkpoint is missing"),
        (
            ["--workers=2"],
            ["--checkpoint=a", "--output={tmp}/out", "--slide=b"],
            2,
            "--slide applies to a single slide",
        ),
        (
            ["--workers=2"],
            ["--checkpoint=a", "--output={tmp}/out", "--shard=0/2"],
            2,
            "--shard applies to a single slide",
        ),
        (["--workers=2"], ["--checkpoint=a", "--output={tmp}/out", "--tissue=a.geojson"], 2, "use the column tissue"),
        (["--workers=2"], ["--checkpoint=a", "--output={tmp}/out", "--tissue", "a.png"], 2, "use the column tissue"),
        (["--workers=2"], ["--checkpoint=a", "--output"], 2, "options after --: "),
        (["--workers=0"], ["--checkpoint=a", "--output={tmp}/out"], 2, "--workers=0: must be a whole number"),
        (["--workers=2", "--gpus=nan"], ["--checkpoint=a", "--output={tmp}/out"], 2, "--gpus=nan: must be"),
        ([], ["--checkpoint=a", "--output={tmp}/out"], 2, "no cluster is given"),
        (["--workers=2", "--slides={tmp}/none.csv"], ["--checkpoint=a", "--output={tmp}/out"], 3, "none.csv: expected"),
        (
            ["--workers=2"],
            ["--checkpoint=a", "--output={tmp}/file/out"],
            2,
            "expected a folder for what is written, found a file",
        ),
    ],
)
def test_bad_input(ray_slides, tmp_path, capsys, monkeypatch, own, others, code, said):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_slides.ray, "init", lambda **_: pytest.fail("started a cluster"))
    (tmp_path / "file").touch()
    (tmp_path / "list.csv").write_text("slide\na.svs\n")
    arguments = [f"--slides={tmp_path / 'list.csv'}", *own, "--", *others]
    assert ray_slides.main([each.replace("{tmp}", str(tmp_path)) for each in arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


@pytest.mark.parametrize("region", (["--truth_region=0,0,9,9"], ["--truth_region", "0,0,9,9"]))
def test_a_region_is_scored_if_there_is_a_ground_truth(ray_slides, tmp_path, monkeypatch, region):
    asked = []

    def outcomes(entries, tasks, *_):
        asked.extend(tasks)
        return iter([(entry, ray_slides.Outcome(0, "said")) for entry in entries])

    (tmp_path / "list.csv").write_text("slide,truth,tissue,name\na.svs,a.png,t.png,\nb.svs,,,case b\n")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_slides, "_cluster", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(ray_slides, "_outcomes", outcomes)
    options = ["--checkpoint=x", *region, f"--output={tmp_path / 'o'}", "--tissue=all"]
    assert ray_slides.main([f"--slides={tmp_path / 'list.csv'}", "--workers=2", "--", *options]) == 0
    common = ["--checkpoint=x", f"--output={tmp_path / 'o'}", "--tissue=all"]
    of_a = {"slide": "a.svs", "tissue": "t.png", "truth": "a.png"}
    of_a = [f"--{name}={tmp_path / value}" for name, value in of_a.items()]
    assert asked == [
        [*common, *of_a, "--truth_region=0,0,9,9"],
        [*common, f"--slide={tmp_path / 'b.svs'}", "--name=case b"],
    ]
    for task in asked:  # segment accepts the options
        segment._parser().parse_args(task)


@pytest.mark.parametrize("several", (False, True))
def test_slides_overwritten_before_a_stop_are_not_overwritten_again(ray_slides, tmp_path, monkeypatch, several):
    """Instead of a cluster, the first slide is done, then the driver is stopped."""
    folders = [tmp_path / "o" / "a" / model for model in ("x", "y")] if several else [tmp_path / "o" / "a"]
    for folder in folders:
        (folder / ".work").mkdir(parents=True)
    stop = True

    def outcomes(entries, *_):
        yield entries[0], ray_slides.Outcome(0, "said")
        if stop:
            raise Preempted("stopped")
        yield entries[1], ray_slides.Outcome(3, "failed")

    (tmp_path / "list.csv").write_text("slide\na.svs\nb.svs\n")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_slides, "_cluster", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(ray_slides, "_outcomes", outcomes)
    options = [f"--checkpoint={'x,y' if several else 'x'}", f"--output={tmp_path / 'o'}"]
    command = [f"--slides={tmp_path / 'list.csv'}", "--workers=2", "--", *options]

    def cleared(name):
        return [OverwriteJournal.of_slide(tmp_path / "o", name).is_cleared(folder) for folder in folders]

    assert ray_slides.main(command) == 75 and not any(cleared("a"))
    assert ray_slides.main([*command, "--overwrite"]) == 75
    assert all(cleared("a")) and not list((tmp_path / "o").glob(".overwrite-slide-b"))
    stop = False
    assert ray_slides.main([*command, "--overwrite"]) == 6 and not list((tmp_path / "o").glob(".overwrite-*"))


def test_settings_that_fit_no_slide_end_with_2(ray_slides, tmp_path, monkeypatch, capsys):
    """Instead of a cluster, every task ends immediately."""
    (tmp_path / "list.csv").write_text("slide\na.svs\nb.svs\n")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_slides, "_cluster", lambda _: contextlib.nullcontext())
    arguments = [
        f"--slides={tmp_path / 'list.csv'}",
        "--workers=2",
        "--",
        "--checkpoint=x",
        f"--output={tmp_path / 'o'}",
    ]
    for codes, expected in (((2, 2), 2), ((2, 0), 6), ((3, 3), 6), ((75, 0), 75), ((75, 1), 6), ((0, 0), 0)):
        ended = lambda entries, *_, codes=codes: iter(  # noqa: E731
            zip(entries, [ray_slides.Outcome(code, "said") for code in codes], strict=True)
        )
        monkeypatch.setattr(ray_slides, "_outcomes", ended)
        assert ray_slides.main(arguments) == expected
        assert (tmp_path / "o" / "summary.csv").exists()
    assert capsys.readouterr().out.count("slides done") == 6
