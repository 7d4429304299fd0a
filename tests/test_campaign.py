"""A short campaign of bad input and damage; the whole tables are slow. Kills and signals run by the command only."""

import os
import subprocess
import sys

import pytest
from helpers.paths import ROOT


def campaign(folder, *options):
    command = [sys.executable, ROOT / "benchmarks" / "campaign", f"--output={folder}", *options]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device, as for users
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    return (folder / "campaign.md").read_text()


@pytest.mark.slow
def test_a_short_campaign_is_survived(tmp_path):
    table = campaign(tmp_path, "--parts=contract,readings,links,mutations,checkpoints", "--rounds=6")
    for part in ("contract", "readings", "links", "mutations of tile.png", "damaged checkpoints"):
        assert f"| {part} | 6 | 6 |" in table


@pytest.mark.slow
def test_the_whole_tables_and_many_mutations_are_survived(tmp_path):
    campaign(tmp_path, "--parts=contract,readings,links,mutations,checkpoints", "--rounds=200")
