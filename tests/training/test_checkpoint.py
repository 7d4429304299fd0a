"""The latest and the best checkpoint are kept, survive damage and restarts, and are restored onto other devices."""

import dataclasses
import resource
import sys

import jax
import numpy as np
import pytest
from helpers.tiny_checkpoints import abstract, assert_equal, at, new_state, save

from bcss_jax.common import command
from bcss_jax.errors import DataError, StorageError
from bcss_jax.training import checkpoint


def test_latest_and_best_are_kept_across_restarts(tmp_path):
    save(tmp_path, (1, 2, 3), improved=(1, 2))
    assert checkpoint.Checkpoints(tmp_path).steps() == [2, 3]
    save(tmp_path, (4, 5))
    assert checkpoint.Checkpoints(tmp_path).steps() == [2, 5]
    save(tmp_path, (6, 7), improved=(6,))
    assert checkpoint.Checkpoints(tmp_path).steps() == [6, 7]


def test_round_trip_is_exact(tmp_path):
    save(tmp_path, (5,))
    state, _ = new_state()
    got, progress, metadata = checkpoint.Checkpoints(tmp_path).restore(abstract(state))
    assert_equal(got, at(state, 5))
    assert jax.tree.structure(got) == jax.tree.structure(state)
    described = {"format_version": checkpoint.FORMAT_VERSION, "digests": "sha256"}
    assert progress == {"n": 5} and metadata == {"k": 1, **described}


def test_a_saved_state_is_not_overwritten_when_it_is_donated(tmp_path):
    state, _ = new_state()
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    expected = jax.device_get(jax.tree.map(np.copy, jax.device_get(at(state, 3))))
    live = at(state, 3)
    checkpoints.save(live, {}, {})
    for _ in range(3):
        live = overwrite(live)
    checkpoints.wait()
    got, _, _ = checkpoints.restore(state)  # arrays give shapes as well
    assert_equal(got, expected)


def test_best_and_latest_load_without_optimizer_and_config_file(tmp_path):
    save(tmp_path, (1, 2, 3), improved=(2,))
    state, mesh = new_state()
    for which, number in (("best", 2), ("latest", 3)):
        trained = checkpoint.load_trained(tmp_path, mesh, which)
        assert trained.step == number
        assert_equal(trained.params, at(state, number).params)
        assert jax.tree.structure(trained.params) == jax.tree.structure(state.params)  # list positions stay numbers
        assert_equal(trained.model_state, at(state, number).model_state)


@pytest.mark.parametrize("before, after", ((1, 8), (8, 1), (8, 2)))
def test_restores_onto_another_number_of_devices(tmp_path, before, after):
    state, _ = new_state(jax.devices()[:before])
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(at(state, 4), {}, {})
    checkpoints.close()
    other, mesh = new_state(jax.devices()[:after])
    got, _, _ = checkpoint.Checkpoints(tmp_path).restore(abstract(other))
    assert_equal(got, at(state, 4))
    assert all(len(x.devices()) == after for x in jax.tree.leaves(got))
    assert all(len(x.devices()) == after for x in jax.tree.leaves(checkpoint.load_trained(tmp_path, mesh).params))


def test_a_model_without_batch_statistics(tmp_path):
    state, mesh = new_state()
    state = dataclasses.replace(state, model_state={})
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(at(state, 1), {}, {}, 1)
    checkpoints.wait()
    got, _, _ = checkpoints.restore(abstract(state))
    assert got.model_state == {} and checkpoint.load_trained(tmp_path, mesh).model_state == {}
    assert_equal(got, at(state, 1))


def test_saving_a_step_twice_raises(tmp_path):
    save(tmp_path, (1,))
    with pytest.raises(AssertionError, match="saved one step twice"):
        save(tmp_path, (1,))


def damage(folder):
    """Cuts every file in half."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_latest_checkpoint_falls_back_to_the_one_before(tmp_path, caplog):
    save(tmp_path, (1, 2), improved=(1,))
    damage(tmp_path / "2" / "params")
    state, _ = new_state()
    checkpoints = checkpoint.Checkpoints(tmp_path)
    got, progress, _ = checkpoints.restore(abstract(state))
    assert progress == {"n": 1}
    assert_equal(got, at(state, 1))
    assert "2: checkpoint cannot be read" in caplog.text
    assert len(list(tmp_path.glob("damaged-*-2"))) == 1  # set aside, not deleted
    checkpoints.save(at(state, 2), {"n": 22}, {})  # the run reaches that step again
    checkpoints.close()
    assert checkpoint.Checkpoints(tmp_path).restore(abstract(state))[1] == {"n": 22}


def test_no_readable_checkpoint_is_one_error(tmp_path):
    save(tmp_path, (1,))
    damage(tmp_path / "1")
    state, mesh = new_state()
    with pytest.raises(DataError, match="cannot be read"):
        checkpoint.load_trained(tmp_path, mesh)
    with pytest.raises(DataError, match="none of the checkpoints"):
        checkpoint.Checkpoints(tmp_path).restore(abstract(state))


def test_no_checkpoint(tmp_path):
    state, mesh = new_state()
    assert checkpoint.Checkpoints(tmp_path / "new").restore(abstract(state)) is None
    with pytest.raises(DataError, match="no such folder"):
        checkpoint.load_trained(tmp_path / "missing", mesh)
    with pytest.raises(DataError, match="holds no checkpoint"):
        checkpoint.load_trained(tmp_path, mesh)


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    here = checkpoint.FORMAT_VERSION
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", here + 1)
    save(tmp_path, (1,))
    monkeypatch.undo()
    with pytest.raises(DataError, match=f"format {here + 1}, this program reads {here}; update"):
        checkpoint.load_trained(tmp_path, new_state()[1])


def test_the_remains_of_a_killed_save_are_removed(tmp_path):
    save(tmp_path, (1,))
    (tmp_path / "7.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "7.orbax-checkpoint-tmp" / "half").write_text("x")
    checkpoints = checkpoint.Checkpoints(tmp_path)
    assert checkpoints.steps() == [1]
    checkpoints.save(at(new_state()[0], 2), {}, {})  # waits for the removal, which runs in the background
    checkpoints.close()
    assert not list(tmp_path.glob("*tmp*"))


def test_a_folder_that_cannot_be_created_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="checkpoints cannot be kept here"):
        checkpoint.Checkpoints(tmp_path / "file" / "checkpoints")


def test_a_save_that_finds_no_space_is_one_error_and_prints_nothing(tmp_path, monkeypatch, capfd):
    """As on a full disk, no file gets longer than a few bytes."""
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    command.log_progress()
    save(tmp_path, (1,))
    checkpoints, (state, _) = checkpoint.Checkpoints(tmp_path), new_state()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(StorageError, match="checkpoint not saved .*; the one before it is kept"):
            checkpoints.save(at(state, 2), {}, {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not printed and "Traceback" not in capfd.readouterr().err
    restored = checkpoint.Checkpoints(tmp_path).restore(abstract(state))
    assert restored is not None and int(restored[0].step) == 1
