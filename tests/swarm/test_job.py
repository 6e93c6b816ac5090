"""A job file that cannot work is refused where it is read, in one sentence."""

import pytest

from swarm.job import Job, JobError, dump_job, parse_job


def test_a_written_job_reads_back_equal() -> None:
    job = Job(seed=7)
    assert parse_job(dump_job(job)) == job
    assert parse_job(dump_job(job)).digest == job.digest
    assert Job(seed=8).digest != job.digest


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[model]\npreset = 'huge'", "model.preset"),
        ("[inner]\nlearning = 1", "inner.learning: there is no such field"),
        ("[inner]\nclip_norm = inf", "inner.clip_norm"),
        ("[inner]\nbetas = [2.0, -1.0]", "inner.betas"),
        ("[pipeline]\nstages = 8", "pipeline.stages is over 7"),
        ("[pipeline]\nnodes = 2\ncells = 3", "pipeline.cells is larger than pipeline.nodes"),
        ("name = 'No Spaces'", "name"),
        ("[pipeline", "not valid TOML"),
    ],
)
def test_a_job_that_cannot_work_is_refused_in_one_sentence(text: str, reason: str) -> None:
    with pytest.raises(JobError, match=reason.replace("[", r"\[")) as refused:
        parse_job(text)
    assert "\n" not in str(refused.value).removesuffix("\n") or "TOML" in str(refused.value)
