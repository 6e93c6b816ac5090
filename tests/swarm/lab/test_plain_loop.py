from pathlib import Path

import pytest

from swarm.job import Job
from swarm.lab.bench import run_yardstick
from swarm.lab.plain_loop import plain_losses


@pytest.fixture
def job(tmp_path: Path) -> Job:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 300)
    return Job.model_validate(
        {
            "data": {"path": str(text), "sequence": 32},
            "pipeline": {"microbatch": 2, "microbatches": 2},
            "inner": {"iterations": 8, "warmup": 2},
        }
    )


def test_the_plain_loop_learns(job: Job) -> None:
    losses = list(plain_losses(job))
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.5


def test_the_same_job_gives_the_same_losses(job: Job) -> None:
    again = [list(plain_losses(job))[:3] for _ in range(2)]
    assert again[0] == again[1]


def test_the_yardstick_is_measured_in_a_process_of_its_own(job: Job) -> None:
    speed = run_yardstick(job)
    assert 0 < speed["tokens_per_s"] <= 1.2 * speed["tokens_per_cpu_s"]
