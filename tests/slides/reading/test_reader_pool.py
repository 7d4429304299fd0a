import concurrent.futures
import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
from helpers.paths import ROOT
from helpers.slide_files import own_grid, picture, tiled
from PIL import Image

from bcss_jax.errors import DataError
from bcss_jax.slides.grid import Grid, grid_of
from bcss_jax.slides.reading import reader_pool, reader_process, reader_workers
from bcss_jax.slides.reading.backend import Level
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.reading.reader_process import ReaderFailed, ReaderProcess, ReaderTimedOut


@pytest.fixture(scope="module")
def pixels():
    return picture(301, 203)


@pytest.fixture(scope="module")
def path(tmp_path_factory, pixels):
    return tiled(tmp_path_factory.mktemp("slides") / "a.tif", pixels, levels=2)


def process_ids(pool):
    return [reader.process.pid for reader in pool._workers._processes]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def have_ended(pids, seconds=10.0):
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(alive(pid) for pid in pids)


@contextlib.contextmanager
def every_process_gets(number):
    """Sends a signal to each process just before each request."""
    ask = ReaderProcess.ask

    def after_signal(reader, *arguments):
        reader.process.send_signal(number)
        return ask(reader, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReaderProcess, "ask", after_signal)
        yield


def test_blocks_come_from_several_processes(path, pixels):
    with ReaderPool(path, 2) as pool:
        info = pool.info
        assert (info.path, info.format, info.width, info.height) == (path, "generic-tiff", 301, 203)
        assert (info.mpp, info.bounds) == ((0.25, 0.25), None)
        assert info.levels == (Level(301, 203, 1.0), Level(151, 102, 2.0))
        assert info.tiles == ((64, 64), (64, 64))
        grid = own_grid(info)
        boxes = [(x, y, min(50, 301 - x), min(50, 203 - y)) for y in range(0, 203, 50) for x in range(0, 301, 50)]
        for _ in range(3):
            futures = [pool.submit(grid, *box) for box in boxes]
            for (x, y, width, height), future in zip(boxes, futures, strict=True):
                block = future.result(timeout=30)
                assert block.unreadable is None
                np.testing.assert_array_equal(block.pixels, pixels[y : y + height, x : x + width])
        assert len(process_ids(pool)) == 2
        pids = process_ids(pool)
    assert have_ended(pids, 0)


def test_numpy_numbers_are_accepted(path):
    with ReaderPool(path, 1) as pool:
        grid = Grid(np.int64(301), np.int64(203), np.float32(0.25), (np.float64(1), np.float64(1)))
        assert pool.submit(grid, *np.array([3, 4, 50, 60])).result().pixels.shape == (60, 50, 3)


def test_blocks_outside_the_grid_are_refused(path):
    with ReaderPool(path, 1) as pool:
        with pytest.raises(ValueError, match="does not lie in a grid of 301x203"):
            pool.submit(own_grid(pool.info), 300, 0, 2, 1)
    with pytest.raises(ValueError):
        ReaderPool(path, 0)


def test_an_image_is_decoded_by_one_process_only(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with ReaderPool(tmp_path / "a.png", 4) as pool:
        futures = [pool.submit(own_grid(pool.info), x, 0, 100, 100) for x in range(200)]
        for x, future in enumerate(futures):
            np.testing.assert_array_equal(future.result().pixels, pixels[:100, x : x + 100])
        assert len(process_ids(pool)) == 1


# Thumbnails.


@pytest.mark.parametrize("max_side", [1, 10, 77, 150, 301, 1000])
def test_a_thumbnail_has_the_slides_shape(path, pixels, max_side):
    with ReaderPool(path, 1) as pool:
        thumbnail = pool.thumbnail(max_side).pixels
    shrink = max(1, 301 / max_side)
    assert thumbnail.shape == (max(1, round(203 / shrink)), max(1, round(301 / shrink)), 3)
    expected = Image.fromarray(pixels).resize(thumbnail.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(thumbnail.astype(int) - np.asarray(expected)).mean() < 25


def test_a_level_slightly_smaller_than_a_thumbnail_is_used_without_resampling(path, pixels):
    with ReaderPool(path, 1) as pool:
        largest, half = (max(level[:2]) for level in pool.info.levels[:2])
        sides = {asked: max(pool.thumbnail(asked).pixels.shape) for asked in (half + 20, half, half - 1, largest - 1)}
    assert sides == {half + 20: half, half: half, half - 1: half - 1, largest - 1: largest - 1}


def test_a_thumbnail_is_made_in_pieces(path, pixels, monkeypatch):
    with ReaderPool(path, 2) as pool:
        whole = pool.thumbnail(120).pixels
        monkeypatch.setattr(reader_pool, "THUMBNAIL_SOURCE", 20)
        submit, sizes = pool.submit, []
        monkeypatch.setattr(pool, "submit", lambda grid, *box: sizes.append(box[2:]) or submit(grid, *box))
        in_pieces = pool.thumbnail(120).pixels
    assert len(sizes) == 6  # whole tiles, 64 pixels of the level of half the size
    assert np.abs(in_pieces.astype(int) - whole).max() <= 1


def test_the_thumbnail_of_a_large_slide_without_a_pyramid_takes_little_memory(tmp_path):
    side, tile = 12_288, 2048
    pixels = picture(tile, tile)
    corners = {(0, 0), (3, 4), (5, 5)}
    tiles = (pixels if divmod(n, side // tile) in corners else None for n in range((side // tile) ** 2))
    path = tmp_path / "flat.tif"
    tifffile.imwrite(
        path, tiles, shape=(side, side, 3), dtype=np.uint8, tile=(tile, tile), photometric="rgb", compression="deflate"
    )
    with ReaderPool(path, 1) as pool:
        thumbnail = pool.thumbnail(120).pixels
        with open(f"/proc/{process_ids(pool)[0]}/status") as file:
            peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024
    expected = np.full((120, 120), 255.0)
    for row, column in corners:
        expected[row * 20 : row * 20 + 20, column * 20 : column * 20 + 20] = pixels.mean()
    apart = np.abs(thumbnail.mean(axis=-1) - expected)
    assert apart.mean() < 2 and (apart[expected == 255] == 0).all()  # missing tiles are white
    assert peak < 300, "MiB; the slide has 432"


# What a process imports and what it is limited to.


def test_the_process_imports_no_heavy_library_and_bounds_its_memory(path):
    code = (
        "import sys, bcss_jax.slides.reading.reader_main, bcss_jax.slides.reading.openslide_backend\n"
        "print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    loaded = set(result.stdout.split())
    assert "openslide" in loaded, result.stderr
    assert not loaded & {"jax", "tensorflow", "matplotlib", "scipy", "cv2", "zarr", "tifffile"}
    with ReaderPool(path, 1) as pool:
        pid = process_ids(pool)[0]
        assert resource.prlimit(pid, resource.RLIMIT_AS)[0] < 4 * 2**30
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)


def test_a_block_that_needs_too_much_memory_gives_one_error(path):
    with ReaderPool(path, 1) as pool:
        huge = grid_of(301, 203, (0.25, 0.25), 0.0005)
        with pytest.raises(DataError, match=r"a\.tif: .*too little memory"):
            pool.submit(huge, 0, 0, 100_000, 100_000).result()
        assert pool.submit(own_grid(pool.info), 0, 0, 9, 9).result().unreadable is None


# Crashes and hangs.


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_tried_again_in_a_fresh_process(path, pixels, number):
    with ReaderPool(path, 1) as pool:
        (pid,) = process_ids(pool)
        os.kill(pid, signal.SIGSTOP)  # so that it is certainly working when it dies
        future = pool.submit(own_grid(pool.info), 7, 8, 90, 80)
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)
        np.testing.assert_array_equal(future.result(timeout=30).pixels, pixels[8:88, 7:97])
        assert process_ids(pool) != [pid]


def test_two_crashes_give_one_error_and_the_next_block_is_read(path, pixels):
    with ReaderPool(path, 1) as pool:
        with every_process_gets(signal.SIGSEGV):
            with pytest.raises(DataError) as error:
                pool.submit(grid_of(301, 203, (0.25, 0.25), 0.5), 10, 20, 30, 40).result(timeout=60)
        assert str(error.value).startswith(
            f"{path}: expected a slide that can be read at x=20, y=40 (60x80 pixels of level 0), "
            "found that the reader process died (SIGSEGV) (tried 2 times)"
        )
        block = pool.submit(own_grid(pool.info), 7, 8, 90, 80).result(timeout=30)
        np.testing.assert_array_equal(block.pixels, pixels[8:88, 7:97])


def test_closing_a_pool_wakes_threads_that_wait_for_blocks(path):
    pool = ReaderPool(path, 1)
    os.kill(*process_ids(pool), signal.SIGSTOP)
    _, *queued = (pool.submit(own_grid(pool.info), 0, 0, 9, 9) for _ in range(4))
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        waited_for = executor.submit(lambda: len(list(concurrent.futures.as_completed(queued, timeout=20))))
        pool.close()
        assert waited_for.result() == 3 and all(future.cancelled() for future in queued)


def test_a_process_that_hangs_is_killed_and_replaced(path, pixels):
    with ReaderPool(path, 1, timeout_s=1.0) as pool:
        (pid,) = process_ids(pool)
        os.kill(pid, signal.SIGSTOP)
        block = pool.submit(own_grid(pool.info), 7, 8, 90, 80).result(timeout=30)
        np.testing.assert_array_equal(block.pixels, pixels[8:88, 7:97])
        assert have_ended([pid])


def test_hanging_twice_gives_one_error(path, monkeypatch):
    monkeypatch.setattr(reader_process, "START_SECONDS", 0.5)
    with ReaderPool(path, 1, timeout_s=30) as pool:
        pool._workers._timeout_s = 0.5
        with every_process_gets(signal.SIGSTOP):
            with pytest.raises(DataError, match=r"no answer within 0\.5 s \(tried 2 times\)"):
                pool.submit(own_grid(pool.info), 0, 0, 9, 9).result(timeout=30)
        assert not process_ids(pool)


@contextlib.contextmanager
def opening_timeouts():
    """Collects the ids of the processes that were started, and the seconds that each had to open the slide."""
    ask, seen = ReaderProcess.ask, []

    def noted(reader, request, timeout_s):
        if "open" in request:
            seen.append((reader.process.pid, timeout_s))
        return ask(reader, request, timeout_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReaderProcess, "ask", noted)
        yield seen


def test_opening_that_hangs_is_not_tried_again(path, monkeypatch):
    monkeypatch.setattr(reader_workers, "OPENING_SECONDS", 0.5)
    with opening_timeouts() as seen, every_process_gets(signal.SIGSTOP):
        with pytest.raises(DataError) as error:
            ReaderPool(path, 2)
    assert str(error.value).startswith(
        f"{path}: expected a slide that can be read, found that the reader process gave no answer within 0.5 s "
        "(tried once); fetch"
    )
    assert [seconds for _, seconds in seen] == [0.5] and have_ended([pid for pid, _ in seen])


def test_opening_takes_less_than_the_half_minute_that_a_damaged_slide_may_take(path, monkeypatch):
    with opening_timeouts() as seen:
        with ReaderPool(path, 1), ReaderPool(path, 1, timeout_s=3.0):
            pass
    assert [seconds for _, seconds in seen] == [25.0, 3.0]


def test_a_process_that_does_not_start_is_tried_again(path, monkeypatch):
    start, starts = ReaderProcess.wait_ready, []

    def once_late(reader):
        starts.append(reader)
        if len(starts) == 1:
            raise ReaderTimedOut("no answer within 120 s")
        start(reader)

    monkeypatch.setattr(ReaderProcess, "wait_ready", once_late)
    with ReaderPool(path, 1) as pool:
        assert pool.info.width == 301 and len(starts) == 2


def test_a_crash_while_opening_gives_one_error(path, monkeypatch):
    start = ReaderProcess.wait_ready

    def crash(reader):
        start(reader)
        reader.process.send_signal(signal.SIGBUS)

    monkeypatch.setattr(ReaderProcess, "wait_ready", crash)
    with pytest.raises(DataError, match=r"a\.tif: expected a slide that can be read, found .*SIGBUS.*tried 2 times"):
        ReaderPool(path, 2)


def test_the_error_quotes_the_last_line_on_stderr():
    reader = ReaderProcess()
    try:
        reader.wait_ready()
        reader.process.stdin.write(b"no JSON\n")
        with pytest.raises(
            ReaderFailed, match=r"died \(exit code 1\), saying 'json\.decoder\.JSONDecodeError: Expecting"
        ):
            reader.ask({}, 10.0)
    finally:
        reader.kill()


def test_an_invalid_answer_raises_where_the_block_is_awaited(path, monkeypatch):
    with ReaderPool(path, 1) as pool:
        (pid,) = process_ids(pool)
        monkeypatch.setattr(ReaderProcess, "ask", lambda *_: ({}, memoryview(b"")))
        with pytest.raises(KeyError):
            pool.submit(own_grid(pool.info), 0, 0, 9, 9).result(timeout=30)
        assert have_ended([pid])


# No process is left running.


def test_closing_ends_all_processes_and_threads_immediately(path):
    pool = ReaderPool(path, 2)
    grid = own_grid(pool.info)
    futures = [pool.submit(grid, 0, 0, 200, 200) for _ in range(2000)]
    futures[1].result()
    pids, threads = process_ids(pool), list(pool._workers._threads)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # so that they cannot finish all blocks, however slow this test is
    pool.close()
    pool.close()
    assert have_ended(pids, 0) and not any(thread.is_alive() for thread in threads)
    assert all(future.done() for future in futures)
    with pytest.raises(concurrent.futures.CancelledError):
        futures[-1].result()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(grid, 0, 0, 1, 1)


def test_a_forgotten_pool_ends_its_processes(path):
    pool = ReaderPool(path, 1)
    pids = process_ids(pool)
    assert all(alive(pid) for pid in pids)
    del pool
    gc.collect()
    assert have_ended(pids)


PARENT = """
import sys
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.reading.reader_pool import ReaderPool
pool = ReaderPool(sys.argv[1], 2)
grid = Grid(301, 203, 0.25, (1.0, 1.0))
futures = [pool.submit(grid, 0, 0, 301, 203) for _ in range(2000)]
futures[10].result()
print(*(reader.process.pid for reader in pool._workers._processes), flush=True)
if sys.argv[2] == "wait":
    futures[-1].result()
"""


@pytest.mark.parametrize("end", ["killed", "interrupted", "left"])
def test_no_process_outlives_its_parent(path, end):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(path), "leave" if end == "left" else "wait"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    if end != "left":
        assert all(alive(pid) for pid in pids)
        parent.send_signal(signal.SIGKILL if end == "killed" else signal.SIGINT)
    parent.communicate(timeout=30)
    assert have_ended(pids)
