"""Damage to any file of a checkpoint is found before it is used, and never hides the sound checkpoint beside it."""

import json
import random
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_checkpoints import abstract, assert_equal, at, new_state, save

from bcss_jax.errors import DataError, NumericalError
from bcss_jax.training import checkpoint, step_folder

# Written after the digests; nothing is read from them.
UNCHECKED = ("commit_success.txt",)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints: step 1 is the best, step 2 the latest."""
    folder = tmp_path_factory.mktemp("saved")
    save(folder, (1, 2), improved=(1,))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of `saved`."""
    shutil.copytree(saved, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def files(step):
    return sorted(p for p in step.rglob("*") if p.is_file() and p.relative_to(step).as_posix() not in UNCHECKED)


def messages(caplog):
    """Returns the lines of this program."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("bcss_jax")]


def flip(path, rng):
    """Flips a random bit of a file, but not of the time of the commit, which is written after the digests."""
    content = bytearray(path.read_bytes())
    places = range(8 * len(content))
    if path.name == "_CHECKPOINT_METADATA":
        places = range(8 * content.index(b'"commit_timestamp_nsecs"'))
    place = rng.choice(places)
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def test_every_flipped_bit_is_found(folder):
    rng, step, count = random.Random(0), folder / "2", 0
    assert step_folder.damage(step) is None
    for path in files(step):
        before = path.read_bytes()
        for _ in range(4 if before else 0):
            flip(path, rng)
            found = step_folder.damage(step)
            assert found and "\n" not in found, path
            item = path.relative_to(step).parts[0]
            # The digest of a file of the optimizer may be the damaged one.
            assert item in ("optimizer", "digests.json") or step_folder.damage(step, step_folder.WEIGHTS), path
            path.write_bytes(before)
            count += 1
    assert count > 100 and step_folder.damage(step) is None


@pytest.mark.parametrize("item", ("params", "rest", "optimizer", "about", "progress", "metrics"))
def test_a_damaged_item_gives_the_checkpoint_beside_it_and_one_line(folder, item, caplog):
    state, mesh = new_state()
    flip(max(files(folder / "2" / item), key=lambda path: path.stat().st_size), random.Random(1))
    trained = checkpoint.load_trained(folder, mesh, "latest")
    damaged = item != "optimizer"  # which is not read
    assert (trained.step, trained.which) == ((1, "best") if damaged else (2, "latest"))
    assert_equal(trained.params, at(state, trained.step).params)
    lines = messages(caplog)
    assert len(lines) == damaged and all("2: checkpoint cannot be read" in line for line in lines)
    assert all("the checkpoint of step 1 is taken instead" in line for line in lines)
    assert_equal(checkpoint.Checkpoints(folder).restore(abstract(state))[0], at(state, 1))
    assert not (folder / "2").exists()  # set aside


def test_a_damaged_best_checkpoint_gives_the_latest_under_its_own_name(folder):
    state, mesh = new_state()
    flip(folder / "1" / "about" / "metadata", random.Random(4))
    trained = checkpoint.load_trained(folder, mesh, "best")
    assert (trained.step, trained.which) == (2, "latest")
    assert_equal(trained.params, at(state, 2).params)


@pytest.mark.slow
def test_no_flipped_bit_is_restored(folder, tmp_path):
    rng, (state, mesh) = random.Random(2), new_state()
    for number, path in enumerate([path for path in files(folder / "2") if path.stat().st_size] * 3):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        flip(copy / path.relative_to(folder), rng)
        item = path.relative_to(folder / "2").parts[0]
        if item != "digests.json":  # the digest of a file of the optimizer may be the damaged one
            assert checkpoint.load_trained(copy, mesh, "latest").step == (2 if item == "optimizer" else 1), path
        assert_equal(checkpoint.Checkpoints(copy).restore(abstract(state))[0], at(state, 1))
        shutil.rmtree(copy)


def edit(about, change):
    """Changes the metadata of a checkpoint, as an editor would."""
    content = json.loads(about.read_text())
    change(content)
    about.write_text(json.dumps(content))


@pytest.mark.parametrize("change", (lambda about: about.update(k=2), lambda about: about.pop("k")))
def test_an_edited_description_is_damage(folder, change):
    edit(folder / "2" / "about" / "metadata", change)
    assert "about/metadata has another content" in step_folder.damage(folder / "2")


def test_added_missing_and_renamed_files_are_damage(folder):
    step = folder / "2"
    (step / "params" / "extra").write_text("x")
    assert step_folder.damage(step) == "params/extra was added"
    (step / "params" / "extra").rename(step / "note.txt")
    assert step_folder.damage(step) == "note.txt was added"
    (step / "note.txt").rename(step / ".DS_Store")  # of a desktop that looked into the folder
    assert step_folder.damage(step) is None
    data = max(files(step / "params"), key=lambda path: path.stat().st_size)
    data.rename(data.with_name("other"))
    assert "missing" in step_folder.damage(step) or "added" in step_folder.damage(step)


def test_lost_digests_are_damage_but_a_checkpoint_of_before_is_read_with_a_line(folder, caplog):
    state, mesh = new_state()
    (folder / "2" / "digests.json").unlink()
    assert step_folder.damage(folder / "2") == "digests.json is missing"
    edit(folder / "2" / "about" / "metadata", lambda about: about.pop("digests"))  # as earlier versions wrote it
    assert step_folder.damage(folder / "2") is None
    for _ in range(2):
        assert checkpoint.load_trained(folder, mesh, "latest").step == 2
    assert messages(caplog) == [
        f"{folder / '2'}: written by an earlier version, without digests: it is used, but not verified"
    ]


def half(step, kind):
    """Makes an entry for a step that is no sound checkpoint."""
    if kind == "empty":
        step.mkdir()
    elif kind == "file":
        step.write_text("x")
    elif kind == "link":
        step.symlink_to("nowhere")
    elif kind == "cut":
        (step / "params").mkdir(parents=True)
        (step / "about").mkdir()
    else:
        shutil.copytree(step.with_name("2"), step)
        {
            "no params": lambda: shutil.rmtree(step / "params"),
            "no about": lambda: shutil.rmtree(step / "about"),
            "no metrics": lambda: shutil.rmtree(step / "metrics"),
            "empty metrics": lambda: (step / "metrics" / "metrics").write_text(""),
            "text in metrics": lambda: (step / "metrics" / "metrics").write_text('{"improved_at": "9"}'),
            "NaN in metrics": lambda: (step / "metrics" / "metrics").write_text('{"improved_at": NaN}'),
            "list in metrics": lambda: (step / "metrics" / "metrics").write_text("[9]"),
        }[kind]()


KINDS = (
    "empty", "file", "link", "cut", "no params", "no about", "no metrics", "empty metrics", "text in metrics",
    "NaN in metrics", "list in metrics",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_half_checkpoint_does_not_hide_the_sound_one(folder, kind, caplog):
    state, mesh = new_state()
    half(folder / "12", kind)
    (folder / "13.orbax-checkpoint-tmp-1").mkdir()  # the rest of a save that was killed
    assert checkpoint.load_trained(folder, mesh, "latest").step == 2
    best = checkpoint.load_trained(folder, mesh, "best")
    assert (best.step, best.which) == (1, "best")
    assert "12: checkpoint cannot be read" in caplog.text
    assert checkpoint.read_record(folder) == {"n": 2}
    assert_equal(checkpoint.Checkpoints(folder).restore(abstract(state))[0], at(state, 2))


def test_one_given_step_is_read_or_refused(folder):
    _, mesh = new_state()
    assert checkpoint.load_trained(folder, mesh, step=2).step == 2
    flip(folder / "2" / "about" / "metadata", random.Random(3))
    with pytest.raises(DataError, match="2: checkpoint cannot be read"):
        checkpoint.load_trained(folder, mesh, step=2)


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_weights_that_are_not_finite_are_refused(tmp_path, value, caplog):
    state, mesh = new_state()
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(at(state, 1), {"n": 1}, {}, 1)
    broken = at(state, 2)
    broken.params["layers"][1]["bias"] = jnp.full_like(broken.params["layers"][1]["bias"], value)
    checkpoints.save(broken, {"n": 2}, {})
    checkpoints.close()
    with pytest.raises(NumericalError, match="2: params/layers/1/bias holds numbers that are not finite"):
        checkpoint.load_trained(tmp_path, mesh, "latest")
    assert_equal(checkpoint.Checkpoints(tmp_path).restore(abstract(state))[0], at(state, 1))
    assert "not finite" in caplog.text
