"""Nodes that found different texts do not train together, and the person is told."""

from dataclasses import replace
from pathlib import Path

from cell_world import Cells, run_cells, small_job

from swarm.daemon.bridge import Failed
from transport.wire import Body


def test_a_node_with_another_text_does_not_enter_and_says_why(tmp_path: Path) -> None:
    job = small_job(tmp_path, inner={"iterations": 20}, pipeline={"nodes": 2, "stages": 2})
    said: list[Body] = []

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[0].iteration >= 2)
        stranger = cells.add()
        setup, send = stranger.half.setup, stranger.half._bridge.send
        stranger.half.setup = replace(setup, corpus=replace(setup.corpus, digest="ab" * 16))
        stranger.send = lambda body: (said.append(body), send(body))[1]  # type: ignore[method-assign]
        await cells.until(stranger.task.done)
        stranger.left = True
        await cells.finish()
        assert not stranger.cell

    run_cells(job, tmp_path, 2, scenario)
    (failed,) = [body for body in said if isinstance(body, Failed)]
    assert failed.reason.startswith(f"the text at {job.data.path} is not the job's")
