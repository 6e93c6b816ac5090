import shutil
from pathlib import Path

import pytest
import torch

from recovery.checkpoint import stage_directory, write_checkpoint
from swarm.daemon.harvest import export_run, gather, validation_losses
from swarm.daemon.options import UserError
from swarm.job import Job, dump_job
from swarm.pipeline.model import demo, init_parameters, parameter_names

STAGES = 2


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run of two nodes, one stage each, that saved iterations 1 and 2, and what 2 must give."""
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 200)
    job = Job.model_validate(
        {"pipeline": {"stages": STAGES}, "data": {"path": str(text), "sequence": 64}, "seed": 3}
    )
    (tmp_path / "run" / "job").mkdir(parents=True)
    (tmp_path / "run" / "job" / "job.toml").write_text(dump_job(job))
    config = demo(256)
    whole = init_parameters(config, seed=4)
    for stage in range(STAGES):
        root = stage_directory(tmp_path / "run" / "nodes" / f"node-{stage}" / "checkpoints", stage)
        flat = torch.cat([whole[name].flatten() for name in parameter_names(config, STAGES, stage)])
        for iteration, scale in ((1, 0.5), (2, 1.0)):
            write_checkpoint(root, iteration, {"parameters": flat * scale}, {"cell": "c0"})
    return tmp_path / "run", whole


def test_stages_of_several_nodes_become_one_model(run: tuple[Path, dict[str, torch.Tensor]]) -> None:
    found = gather(run[0])
    assert found.iteration == 2
    assert found.parameters.keys() == run[1].keys()
    assert all(torch.equal(found.parameters[name], value) for name, value in run[1].items())


def test_an_iteration_that_lacks_a_stage_is_passed_over(run: tuple[Path, dict[str, torch.Tensor]]) -> None:
    file = next(run[0].rglob("stage-1/iter-000002-*/*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    found = gather(run[0])
    assert found.iteration == 1
    assert len(found.passed_over) == 1
    assert "passed over iteration 2: " in found.passed_over[0]
    assert "does not match its hash" in found.passed_over[0]


def test_an_iteration_of_which_a_stage_was_never_saved_is_named(
    run: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    assert gather(run[0]).passed_over == ()
    shutil.rmtree(next(run[0].rglob("stage-1/iter-000002-*")))
    told = gather(run[0]).passed_over
    assert told == ("passed over iteration 2: not every stage of one cell was saved",)


def test_a_manifest_that_nests_too_deeply_is_passed_over(run: tuple[Path, dict[str, torch.Tensor]]) -> None:
    next(run[0].rglob("stage-1/iter-000002-*/manifest.json")).write_text("[" * 100_000)
    assert gather(run[0]).iteration == 1


def test_a_run_becomes_a_hugging_face_directory(
    run: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    assert export_run(run[0], tmp_path / "model").iteration == 2
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert modes["config.json"] == modes["model.safetensors"] == modes["tokenizer.json"]


def test_the_first_loss_is_that_of_the_untrained_model(run: tuple[Path, dict[str, torch.Tensor]]) -> None:
    first, last = validation_losses(run[0])
    assert first == pytest.approx(5.55, abs=0.3)
    assert last != first


def test_nothing_to_gather_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no job\.toml"):
        gather(tmp_path)
    (tmp_path / "job.toml").write_text(dump_job(Job()))
    with pytest.raises(UserError, match="no iteration of which every stage was saved"):
        gather(tmp_path)
