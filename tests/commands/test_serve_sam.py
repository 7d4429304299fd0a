"""The command that serves SAM to QuPath starts, answers, ends, and refuses what is no SAM."""

import http.client
import json
import re
import signal
import subprocess
import sys

import numpy as np
from helpers.paths import ROOT
from helpers.prompted_slide import sam_file
from helpers.segment_command import one_line
from safetensors.numpy import save_file

from bcss_jax.commands import serve_sam


def test_it_serves_until_it_is_asked_to_stop(tmp_path):
    model = sam_file(tmp_path / "tiny.safetensors")
    command = [sys.executable, "-m", "bcss_jax.serve_sam", f"--model={model}", "--port=0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline()
            port = int(re.fullmatch(r"tiny.safetensors: enter http://127.0.0.1:(\d+)/sam/ in QuPath's.*\n", said)[1])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/sam/weights/?type=vit_b")
            assert json.loads(connection.getresponse().read())[0]["name"] == "tiny.safetensors"
            connection.close()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


def test_other_weights_are_refused(tmp_path, capsys):
    save_file({"encoder.weight": np.zeros((3, 3), np.float32)}, tmp_path / "unet.safetensors")
    assert serve_sam.main([f"--model={tmp_path / 'unet.safetensors'}", "--port=0"]) == 3
    assert "unet.safetensors: expected" in one_line(capsys)
    assert serve_sam.main([f"--model={tmp_path / 'none.pth'}", "--port=0"]) == 3
    assert serve_sam.main(["--port=0"]) == 2
