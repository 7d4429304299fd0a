"""python -m bcss_jax.view: its messages and exit codes."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from helpers.paths import ROOT
from helpers.viewer_small import blobs, write_result

from bcss_jax.commands import _address, view


@pytest.fixture
def out(tmp_path):
    write_result(tmp_path / "out/a", tmp_path / "a.png", 80, 60, blobs(60, 80))
    return tmp_path / "out"


@contextlib.contextmanager
def running(*arguments, says="open"):
    """A process that serves, and the lines until the one with `says`."""
    command = [sys.executable, "-m", "bcss_jax.view", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"LC_ALL": "C"}
    )
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if says in line:
                break
        yield process, "".join(lines)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def failure(capsys, *arguments):
    code = view.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    return code, said.err


def test_it_prints_the_address_serves_and_ends_with_ctrl_c(out):
    (out.parent / "a.png").unlink()  # a result without its slide needs no readers
    with running(out) as (process, said):
        found = re.search(r"1 result: open http://127\.0\.0\.1:(\d+)/ \(Ctrl-C ends\)\n", said)
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
        connection.request("GET", "/result/out/a")  # the connection stays open, as that of a browser
        answer = connection.getresponse()
        assert answer.status == 200 and b"a.png" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        assert process.stdout.read() == ""
        connection.close()


def test_another_site_cannot_send_requests(out):
    with running(out, "--port=0") as (_, said):
        port = int(re.search(r":(\d+)/", said)[1])
        for host, status in (("evil.example", 400), (f"localhost:{port}", 307)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/", headers={"Host": host})
            assert connection.getresponse().status == status
            connection.close()


def test_listening_for_other_machines_is_a_warning(out):
    with running(out, "--host=0.0.0.0", "--port=0") as (_, said):
        assert said.startswith("warning: --host=0.0.0.0: everyone who can reach this machine can see these slides\n")


def test_a_taken_port_is_an_error_of_one_line(out, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, said = failure(capsys, out, f"--port={port}")
    assert code == 5 and f"127.0.0.1, port {port}: cannot be used (Address already in use)" in said


def test_without_a_port_the_next_free_one_is_used(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr(_address, "PORT", taken)
        with _address.listening("127.0.0.1", None) as found:
            assert taken < found.getsockname()[1] < taken + _address.TRIED_PORTS


@pytest.mark.parametrize("port", ["-1", "65536", "eighty", ""])
def test_an_invalid_port_is_refused(out, capsys, port):
    assert failure(capsys, out, f"--port={port}")[0] == 2


def test_an_address_of_another_machine_is_refused(out, capsys):
    assert failure(capsys, out, "--host=no such host")[0] == 2
    assert failure(capsys, out, "--host=192.0.2.1", "--port=0")[0] == 5  # reserved for documentation


def test_a_folder_without_results(tmp_path, capsys):
    code, said = failure(capsys, tmp_path)
    assert code == 3 and "expected results of slides (summary.json), found none; segment a slide first" in said
    code, said = failure(capsys, tmp_path / "nothing")
    assert code == 3 and "expected a folder" in said


def test_slides_are_searched_for_in_another_folder(out, tmp_path):
    (tmp_path / "cluster/case").mkdir(parents=True)
    (tmp_path / "a.png").rename(tmp_path / "cluster/case/a.png")
    with running(out, "--port=0", f"--slides={tmp_path / 'cluster'}") as (_, said):
        connection = http.client.HTTPConnection("127.0.0.1", int(re.search(r":(\d+)/", said)[1]), timeout=60)
        connection.request("GET", "/result/out/a")
        page = connection.getresponse().read().decode()
        assert f"Shown from {tmp_path}/cluster/case/a.png" in page and "over white" not in page
        connection.request("GET", "/result/out/a/slide/7/0_0.jpg")
        assert connection.getresponse().read().startswith(b"\xff\xd8\xff")
        connection.close()


def test_a_missing_folder_of_slides_is_refused(out, capsys):
    code, said = failure(capsys, out, f"--slides={out / 'nothing'}")
    assert code == 3 and "nothing: expected a folder with slides (No such file or directory); check the path" in said
    code, said = failure(capsys, out, f"--slides={out / 'a/summary.json'}")
    assert code == 3 and "summary.json: expected a folder with slides (Not a directory)" in said


def test_unknown_settings_are_refused(capsys):
    assert failure(capsys)[0] == 2
    assert failure(capsys, "out", "--prot=1")[0] == 2


def test_the_viewer_imports_neither_jax_nor_tensorflow():
    heavy = {"jax", "flax", "tensorflow", "torch", "cv2"}
    script = f"import sys, bcss_jax.commands.view; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout == "[]\n", result.stderr
