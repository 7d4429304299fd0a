"""TensorFlow starts without its messages, and other lines on stderr stay."""

import subprocess
import sys

from helpers.absent_modules import without_modules
from helpers.paths import ROOT


def python(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_nothing_is_written_at_the_start():
    result = python("from bcss_jax.data.host_tensorflow import tf; tf.constant(1)")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_other_lines_are_kept_in_their_order():
    lines = [
        "2026-11-28 07:00:00.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.",
        "I0000 00:00:1795853815.797400    8817 port.cc:153] oneDNN custom operations are on.",
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "E0000 00:00:1795853815.797400    8817 cuda.cc:1] a true error",
        "what a library says",
    ]
    result = python(
        "import os; from bcss_jax.data import host_tensorflow\n"
        f"with host_tensorflow._without_noise(): os.write(2, {chr(10).join([*lines, '']).encode()!r})\n"
        "os.write(2, b'after')"
    )
    assert result.stderr == "\n".join([*lines[3:], "after"])


def test_training_without_tensorflow_is_one_line():
    code = without_modules(("tensorflow",)) + (
        "sys.argv = ['main', '--config=unet', '--workdir=' + sys.argv[1]]\n"
        "from bcss_jax.common import command\n"
        "from bcss_jax.commands import train\n"
        "sys.exit(train.main())"
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, folder]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1 and 'pip install "bcss_jax[train]"' in result.stderr
