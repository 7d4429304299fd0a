"""Lists of slides on clusters: the SLURM script, the Kubernetes Job, and shards that end at the same time."""

import csv
import fcntl
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from helpers.paths import ROOT

from bcss_jax.commands import segment
from bcss_jax.errors import ConfigError, DataError, PartialError, Preempted, StorageError
from bcss_jax.slides.batch import batch_summary
from bcss_jax.slides.batch.slide_folder import write_failure
from bcss_jax.slides.batch.slide_list import Entry, shard_of

SCRIPT, JOB = ROOT / "launch" / "slurm_slides.sh", ROOT / "launch" / "gke_slides.yaml"
STUB = '#!/bin/bash\nprintf "%s\\n" "$0" "$@" >>"$CALLS/$(basename "$0")"\n'


@pytest.fixture
def cluster(tmp_path):
    """Runs the script as SLURM does, with stand-ins for srun, scontrol and Python that record their arguments."""
    programs, root, calls = tmp_path / "bin", tmp_path / "repository", tmp_path / "calls"
    for folder in (programs, root / ".venv" / "bin", calls):
        folder.mkdir(parents=True)
    # srun removes its own options, runs the rest and returns the exit code.
    run = 'while [[ $1 == --* ]]; do shift; done\n"$@"\n'
    for path, action in (
        (programs / "srun", run),
        (programs / "scontrol", ""),
        (root / ".venv" / "bin" / "python", "exit $CODE\n"),
    ):
        path.write_text(STUB + action)
        path.chmod(0o755)

    def submit(*arguments, code=0, **variables):
        copy = tmp_path / "slurm_script"  # SLURM runs a copy in its spool folder
        shutil.copy(SCRIPT, copy)
        variables = {"SLURM_SUBMIT_DIR": str(root), "SLURM_CPUS_PER_TASK": "8", **variables}
        environment = {"PATH": f"{programs}:/usr/bin:/bin", "CALLS": str(calls), "CODE": str(code), **variables}
        result = subprocess.run(
            ["bash", copy, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30
        )
        found = {path.name: path.read_text().splitlines()[1:] for path in calls.iterdir()}
        for path in calls.iterdir():
            path.unlink()
        return result, found

    return submit


def of_task(number, count, **others):
    return {
        "SLURM_ARRAY_JOB_ID": "77",
        "SLURM_ARRAY_TASK_ID": str(number),
        "SLURM_ARRAY_TASK_COUNT": str(count),
        **others,
    }


def entries(count=11):
    return [Entry(f"slide{number}.svs") for number in range(count)]


def test_the_array_covers_the_list_once(cluster):
    taken = []
    for number in range(3):
        result, calls = cluster("--checkpoint=runs/a b", "--slides=list.csv", "--output=out", **of_task(number, 3))
        assert result.returncode == 0, result.stderr
        assert calls["srun"][0] == "--cpus-per-task=8" and "scontrol" not in calls
        assert calls["python"][:2] == ["-m", "bcss_jax.segment"]
        args = segment._parser().parse_args(calls["python"][2:])
        assert args.checkpoint == [Path("runs/a b")] and str(args.slides) == "list.csv"
        taken += shard_of(entries(), args.shard)
    assert sorted(taken) == sorted(entries())


@pytest.mark.parametrize("code", [0, 1, 2, 3, 5, 6, 75])
def test_only_a_task_that_was_stopped_is_queued_again(cluster, code):
    result, calls = cluster("--slides=list.csv", code=code, **of_task(2, 4))
    assert result.returncode == code
    assert calls.get("scontrol") == (["requeue", "77_2"] if code == 75 else None)


def test_without_an_array_nothing_is_computed(cluster):
    result, calls = cluster("--slides=list.csv")
    assert result.returncode and "sbatch --array=0-7 launch/slurm_slides.sh" in result.stderr and not calls
    result, calls = cluster("--slides=list.csv", SLURM_SUBMIT_DIR="", **of_task(0, 1))
    assert result.returncode and "sbatch from the repository" in result.stderr and not calls


def test_an_array_that_does_not_start_at_zero_is_refused(cluster):
    _, calls = cluster("--checkpoint=a", "--slides=list.csv", "--output=out", **of_task(4, 4))
    args = segment._parser().parse_args(calls["python"][2:])
    with pytest.raises(ConfigError, match="from 0 to n-1"):
        shard_of(entries(), args.shard)


def test_the_script_is_bash_that_can_be_run():
    assert os.access(SCRIPT, os.X_OK)
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    shellcheck = shutil.which("shellcheck")
    if shellcheck:
        subprocess.run([shellcheck, SCRIPT], check=True)
    options = [line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert (
        "--requeue" in options and "--signal=USR1@120" in options
    )  # segment.py handles the signal as a request to stop


# Kubernetes.


@pytest.fixture(scope="module")
def job():
    (document,) = yaml.safe_load_all(JOB.read_text())
    return document


def action_of(job, code=None, condition=None):
    """Returns what Kubernetes does with a failed pod: the first matching rule; without one it counts as a failure."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes and code is not None:
            assert codes["operator"] == "In"
            if code in codes["values"]:
                return rule["action"]
        if any(each == {"type": condition, "status": "True"} for each in rule.get("onPodConditions", ())):
            return rule["action"]
    return "Count"


def test_kubernetes_accepts_the_rules_of_the_job(job):
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    # Kubernetes refuses failure policies for pods that restart, and FailIndex without a limit for each index.
    assert pod["restartPolicy"] == "Never" and spec["backoffLimitPerIndex"] >= 1 and "backoffLimit" not in spec
    (container,) = pod["containers"]
    for rule in spec["podFailurePolicy"]["rules"]:
        assert len(rule.keys() & {"onExitCodes", "onPodConditions"}) == 1
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container["name"] and 0 not in rule["onExitCodes"]["values"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_a_failed_pod_is_retried_or_not_by_its_exit_code(job):
    assert {action_of(job, error.exit_code) for error in (ConfigError, DataError)} == {"FailJob"}
    assert action_of(job, PartialError.exit_code) == "FailIndex"
    assert action_of(job, Preempted.exit_code) == "Ignore" == action_of(job, condition="DisruptionTarget")
    # A full disk, a crash, or too little memory: the pod is restarted a few times.
    assert {action_of(job, code) for code in (StorageError.exit_code, 1, 134, 137, 139)} == {"Count"}


def test_the_pods_cover_the_list_once(job):
    spec = job["spec"]
    assert spec["completions"] == spec["parallelism"]
    (container,) = spec["template"]["spec"]["containers"]
    assert [each["name"] for each in container["env"]] == ["JOB_COMPLETION_INDEX"]
    assert container["command"][:3] == ["python", "-m", "bcss_jax.segment"]
    taken = []
    for index in range(spec["completions"]):
        command = [each.replace("$(JOB_COMPLETION_INDEX)", str(index)) for each in container["command"][3:]]
        taken += shard_of(entries(20), segment._parser().parse_args(command).shard)
    assert sorted(taken) == sorted(entries(20))


# Shards that write one summary.csv.


FAIL_AND_WRITE_TABLE = """
import sys, time
from pathlib import Path
from bcss_jax.errors import DataError
from bcss_jax.slides.batch import batch_summary
from bcss_jax.slides.batch.slide_folder import write_failure
from bcss_jax.slides.batch.slide_list import Entry, shard_of

output, shard = Path(sys.argv[1]), sys.argv[2]
entries = [Entry(output / f"slide{number}.svs") for number in range(20)]
(output / f"ready{shard[0]}").touch()
while len(list(output.glob("ready*"))) < 4:
    time.sleep(0.01)
for entry in shard_of(entries, shard):
    folder = output / entry.slide.stem
    folder.mkdir()
    write_failure(folder, DataError(f"{entry.slide.name}: of no use"))
    batch_summary.write_table(output, entries, several=False)
"""


def test_shards_that_end_at_the_same_time_lose_no_rows(tmp_path):
    processes = [
        subprocess.Popen([sys.executable, "-c", FAIL_AND_WRITE_TABLE, tmp_path, f"{number}/4"], cwd=ROOT)
        for number in range(4)
    ]
    assert [process.wait(60) for process in processes] == [0] * 4
    with open(tmp_path / "summary.csv", newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["failed"] * 20
    assert sorted(path.name for path in tmp_path.glob(".summary*")) == [".summary.lock"]


def test_a_shard_waits_for_another_one_that_writes_the_table(tmp_path):
    """The table includes what the other shard has finished meanwhile."""
    with open(tmp_path / ".summary.lock", "a") as lock, ThreadPoolExecutor(1) as thread:
        fcntl.flock(lock, fcntl.LOCK_EX)
        written = thread.submit(batch_summary.write_table, tmp_path, [Entry(Path("a.svs"))], several=False)
        with pytest.raises(TimeoutError):
            written.result(0.3)
        (tmp_path / "a").mkdir()
        write_failure(tmp_path / "a", DataError("of no use"))
        fcntl.flock(lock, fcntl.LOCK_UN)
        written.result(10)
    assert "a.svs,,failed,of no use" in (tmp_path / "summary.csv").read_text()
