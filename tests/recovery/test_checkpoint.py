import errno
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import recovery.checkpoint as checkpoint_module
from recovery.checkpoint import (
    CheckpointError,
    assemble,
    newest_checkpoint,
    newest_common,
    read_checkpoint,
    stage_directory,
    write_checkpoint,
)


def state(value):
    return {
        "weights": torch.full((5,), float(value)),
        "steps": torch.tensor(value),
        "half": torch.ones(3, dtype=torch.bfloat16),
    }


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_checkpoint_reads_back_as_written(tmp_path):
    path = write_checkpoint(tmp_path / "stage-3", 100, state(7), {"cell": "c0", "loss": 1.5})
    search = newest_checkpoint(tmp_path / "stage-3")
    assert (search.found.path, search.found.iteration) == (path, 100)
    assert search.found.meta == {"cell": "c0", "loss": 1.5}
    assert search.refused == ()
    read = read_checkpoint(search.found)
    assert read.keys() == state(7).keys()
    for name, tensor in state(7).items():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype


def test_views_of_one_flat_tensor_can_be_written(tmp_path):
    flat = torch.arange(6.0)
    write_checkpoint(tmp_path, 1, {"a": flat[:2], "b": flat[2:].reshape(2, 2).T}, {})
    read = read_checkpoint(newest_checkpoint(tmp_path).found)
    assert torch.equal(read["a"], flat[:2])
    assert torch.equal(read["b"], flat[2:].reshape(2, 2).T)


def test_only_the_newest_two_are_kept(tmp_path):
    for iteration in (90, 100, 110, 1_000_000):
        write_checkpoint(tmp_path, iteration, state(iteration), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "iter-000110-round-0",
        "iter-1000000-round-0",
    ]
    assert newest_checkpoint(tmp_path).found.iteration == 1_000_000


@pytest.mark.parametrize("file", ["tensors.safetensors", "manifest.json"])
def test_a_corrupted_checkpoint_is_refused_and_the_one_before_used(tmp_path, file):
    write_checkpoint(tmp_path, 1, state(1), {"cell": "c0"})
    newest = write_checkpoint(tmp_path, 2, state(2), {"cell": "c0"})
    flip_a_byte(newest / file)
    search = newest_checkpoint(tmp_path)
    assert search.found.iteration == 1
    assert [refused.path for refused in search.refused] == [newest]
    assert file in search.refused[0].reason


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "said": 3, "hash": ""}']
)
def test_a_manifest_of_any_shape_is_refused_not_raised(tmp_path, manifest):
    newest = write_checkpoint(tmp_path, 2, state(2), {})
    (newest / "manifest.json").write_text(manifest)
    search = newest_checkpoint(tmp_path)
    assert search.found is None
    assert len(search.refused) == 1


def test_a_checkpoint_without_its_tensors_is_refused(tmp_path):
    path = write_checkpoint(tmp_path, 2, state(2), {})
    (path / "tensors.safetensors").unlink()
    assert "cannot be read" in newest_checkpoint(tmp_path).refused[0].reason


def test_an_empty_or_missing_directory_has_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path).found is None
    assert newest_checkpoint(tmp_path / "nowhere").found is None


@pytest.mark.parametrize("step", ["os.fsync", "os.replace", "save_file", "json.dumps"])
@pytest.mark.parametrize("same_iteration", [False, True])
def test_a_full_disk_at_any_step_leaves_the_previous_checkpoint_whole(
    tmp_path, monkeypatch, step, same_iteration
):
    write_checkpoint(tmp_path, 1, state(1), {})
    calls_before_failure = 0
    while True:
        with monkeypatch.context() as patch:
            failed = _fail_after(patch, step, calls_before_failure)
            with suppress(CheckpointError):
                write_checkpoint(tmp_path, 1 if same_iteration else 2, state(2), {})
        if not failed:
            break
        search = newest_checkpoint(tmp_path)
        assert search.refused == ()
        assert read_checkpoint(search.found)["steps"].item() in (1, 2)
        assert not list(tmp_path.glob(".writing-*"))
        calls_before_failure += 1
    assert calls_before_failure > 0, f"{step} was never called"
    assert read_checkpoint(newest_checkpoint(tmp_path).found)["steps"].item() == 2


def test_a_checkpoint_that_cannot_be_written_says_why_in_a_sentence(tmp_path):
    (tmp_path / "stage-0").write_text("a file is in the way")
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*iter-000001-round-0: File exists"):
        write_checkpoint(tmp_path / "stage-0", 1, state(1), {})


def _fail_after(patch, step, calls):
    """Let `step` work `calls` times and then find the disk full. The list is empty until it did."""
    holder = checkpoint_module
    *owners, name = step.split(".")
    for owner in owners:
        holder = getattr(holder, owner)
    real, failed, made = getattr(holder, name), [], []

    def once(*args, **kwargs):
        if len(made) == calls and not failed:
            failed.append(step)
            raise OSError(28, "No space left on device")
        made.append(step)
        return real(*args, **kwargs)

    patch.setattr(holder, name, once)
    return failed


def test_a_crash_between_the_two_renames_loses_nothing(tmp_path):
    path = write_checkpoint(tmp_path, 5, state(5), {})
    os.replace(path, tmp_path / ".replaced-iter-000005-round-0")
    (tmp_path / ".writing-abc").mkdir()
    assert newest_checkpoint(tmp_path).found.iteration == 5
    write_checkpoint(tmp_path, 6, state(6), {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "iter-000005-round-0",
        "iter-000006-round-0",
    ]


def test_the_same_iteration_is_replaced(tmp_path):
    write_checkpoint(tmp_path, 5, state(5), {})
    write_checkpoint(tmp_path, 5, state(6), {})
    assert read_checkpoint(newest_checkpoint(tmp_path).found)["steps"].item() == 6
    assert [entry.name for entry in tmp_path.iterdir()] == ["iter-000005-round-0"]


def save(root, stage, *iterations, cell="c0"):
    for iteration in iterations:
        write_checkpoint(stage_directory(root, stage), iteration, state(iteration), {"cell": cell})


def test_a_model_is_assembled_from_several_nodes_at_the_newest_complete_iteration(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    save(a, 0, 10, 20)
    save(b, 1, 10, 20)
    save(b, 2, 10)
    save(c, 2, 10)
    assembly, refused = assemble([a, b, c], 3)
    assert assembly.iteration == 10
    assert [read_checkpoint(stage)["steps"].item() for stage in assembly.stages] == [10, 10, 10]
    assert refused == ()


def test_a_bad_copy_is_replaced_by_another_nodes(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    save(a, 0, 10)
    save(b, 0, 10)
    flip_a_byte(stage_directory(a, 0) / "iter-000010-round-0" / "tensors.safetensors")
    assembly, refused = assemble([a, b], 1)
    assert assembly.stages[0].path.is_relative_to(b)
    assert [entry.path.is_relative_to(a) for entry in refused] == [True]


def test_an_iteration_with_a_bad_stage_falls_back_to_the_one_before(tmp_path):
    save(tmp_path, 0, 10, 20)
    save(tmp_path, 1, 10, 20)
    flip_a_byte(stage_directory(tmp_path, 1) / "iter-000020-round-0" / "manifest.json")
    assembly, refused = assemble([tmp_path], 2)
    assert assembly.iteration == 10
    assert len(refused) == 1


def test_stages_of_two_cells_are_never_mixed(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    save(a, 0, 20, cell="c0")
    save(b, 1, 20, cell="c1")
    assert assemble([a, b], 2)[0] is None
    save(b, 0, 10, cell="c1")
    save(b, 1, 10, 20, cell="c1")
    assert assemble([a, b], 2)[0].iteration == 10


def test_the_manifest_is_plain_json_that_names_its_file(tmp_path):
    path = write_checkpoint(tmp_path, 3, state(3), {"cell": "c0"})
    said = json.loads((path / "manifest.json").read_text())["said"]
    assert said["iteration"] == 3
    assert list(said["files"]) == ["tensors.safetensors"]


def test_halves_of_later_iterations_never_cost_the_newest_whole_one(tmp_path):
    """A disk on which the second stage has no room any more."""
    meta = {"cell": "c0", "job": "j1"}

    def write(iteration, stages):
        protect = newest_common(tmp_path, (0, 1), "j1")
        for stage in stages:
            root = stage_directory(tmp_path, stage)
            write_checkpoint(root, iteration, state(iteration), meta, protect)

    for iteration, stages in ((40, (0, 1)), (50, (0, 1)), (100, (0,)), (150, (0,)), (200, (0,))):
        write(iteration, stages)
        found, refused = assemble([tmp_path], 2)
        assert (found.iteration, refused) == (min(iteration, 50), ())
    names = [path.name for path in sorted(stage_directory(tmp_path, 0).iterdir())]
    assert names == ["iter-000050-round-0", "iter-000200-round-0"], (
        "what is no part of a whole does not pile up"
    )
    write(250, (0, 1))
    assert assemble([tmp_path], 2)[0].iteration == 250


def test_what_stages_have_in_common_is_of_one_job_and_one_cell(tmp_path):
    for stage, iteration, cell, job in (
        *((0, 10, "c0", "j1"), (1, 10, "c0", "j1")),
        *((0, 20, "c0", "j1"), (1, 20, "c1", "j1")),
        *((0, 30, "c0", "j2"), (1, 30, "c0", "j2")),
    ):
        root = stage_directory(tmp_path, stage)
        write_checkpoint(root, iteration, state(1), {"cell": cell, "job": job}, protect=(10, 0))
    assert newest_common(tmp_path, (0, 1), "j1") == (10, 0)
    assert newest_common(tmp_path, (0, 1), "j2") == (30, 0)
    assert newest_common(tmp_path, (0, 1, 2), "j1") is None


def test_a_checkpoint_of_an_earlier_job_that_came_further_does_not_push_this_ones_out(tmp_path):
    for iteration in (900, 950):
        write_checkpoint(tmp_path, iteration, state(1), {"job": "j1"})
    path = write_checkpoint(tmp_path, 10, state(2), {"job": "j2"})
    assert path.exists()


def test_a_model_is_never_put_together_from_before_and_after_an_outer_round(tmp_path):
    """One node left after the round, the other wrote after the step of the same iteration."""
    one, other = tmp_path / "one", tmp_path / "other"

    def write(root, stage, iteration, rounds):
        value = 100 * rounds + iteration
        write_checkpoint(
            stage_directory(root, stage), iteration, state(value), {"cell": "c0", "round": rounds}
        )

    write(one, 0, 10, 1)
    write(one, 0, 10, 2)
    write(other, 1, 10, 1)
    found, _ = assemble([one, other], 2)
    assert (found.iteration, found.round) == (10, 1)
    assert [checkpoint.at for checkpoint in found.stages] == [(10, 1), (10, 1)]
    write(other, 1, 10, 2)
    found, _ = assemble([one, other], 2)
    assert (found.iteration, found.round) == (10, 2)
    assert newest_checkpoint(stage_directory(one, 0), 10, 1).found.meta["round"] == 1
    assert newest_checkpoint(stage_directory(one, 0), 10).found.meta["round"] == 2


def test_a_disk_that_fails_when_it_is_looked_through_is_refused_not_raised(tmp_path, monkeypatch):
    """A node, or the coordinator, goes on without its own copies."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    for root in (good, bad):
        write_checkpoint(stage_directory(root, 0), 3, state(3), {"cell": "c0", "job": "j1"})
    iterdir = Path.iterdir

    def failing(path):
        if bad in path.parents:
            raise OSError(errno.EIO, "Input/output error")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", failing)
    search = newest_checkpoint(stage_directory(bad, 0))
    assert search.found is None
    (refused,) = search.refused
    assert refused.reason == f"{stage_directory(bad, 0)} cannot be looked through: Input/output error"
    found, refusals = assemble([bad, good], 1)
    assert found.stages[0].path.is_relative_to(good)
    assert refusals == (refused,)
    assert newest_common(bad, (0,), "j1") is None
    with pytest.raises(CheckpointError, match="cannot be looked through"):
        write_checkpoint(stage_directory(bad, 0), 4, state(4), {})
