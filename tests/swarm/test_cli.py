import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from swarm import cli
from swarm.daemon.options import UserError, explain
from swarm.job import JobError, load_job

COMMANDS = (
    ["demo"],
    ["coordinator", "init"],
    ["coordinator", "run"],
    ["invite"],
    ["revoke"],
    ["node"],
    ["status"],
    ["export"],
    ["simulate"],
    ["chaos"],
    ["bench", "throughput"],
    ["bench", "failover"],
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a person runs it."""
    code = "from swarm.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )


def sentence(*arguments: str) -> str:
    """The one line that a mistake earns."""
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_shows_an_example(command: list[str]) -> None:
    shown = CliRunner().invoke(cli.app, [*command, "--help"])
    assert shown.exit_code == 0
    assert f"Example: farflung {' '.join(command)}" in shown.output


FLOATS = (float, float | None)


def numbers(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every option of every command that takes a number with a point."""
    for name, each in getattr(command, "commands", {}).items():
        yield from numbers(each, (*words, name))
    kinds = get_type_hints(inspect.unwrap(command.callback)) if command.callback else {}
    yield from ((*words, each.opts[0]) for each in command.params if kinds.get(each.name) in FLOATS)


NUMBERS = tuple(numbers(typer.main.get_command(cli.app)))


def test_numbers_are_found_on_the_command_line() -> None:
    assert {("simulate", "--hours"), ("chaos", "--minutes"), ("invite", "--days")} < set(NUMBERS)


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("words", NUMBERS, ids=" ".join)
def test_every_number_that_a_person_gives_is_finite(words: tuple[str, ...], value: str) -> None:
    """Some went on for ever, others ended in a traceback."""
    refused = CliRunner().invoke(cli.app, [*words, value])
    assert refused.exit_code == 2
    assert f"Invalid value for '{words[-1]}'" in refused.output


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, swarm.cli; print({'torch', 'zmq', 'aiohttp', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_a_directory_where_nothing_runs_is_one_sentence(tmp_path: Path) -> None:
    assert "nothing runs in" in sentence("status", str(tmp_path))


def test_an_address_that_is_none_is_one_sentence() -> None:
    assert "host:port" in sentence("status", "--address", "here")


def test_a_device_that_is_none_is_one_sentence() -> None:
    assert "use cpu, cuda or cuda:N" in sentence("node", "--device", "tpu")


def test_cuda_without_cuda_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from swarm.daemon.process import check_device

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="use --device cpu"):
        check_device("cuda")


def test_a_malformed_job_file_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text("[pipeline]\nstages = 0\n")
    assert "pipeline.stages" in sentence("coordinator", "init", str(tmp_path / "run"), "--job", str(file))


def test_an_option_out_of_range_is_one_sentence(tmp_path: Path) -> None:
    assert "pipeline.nodes" in sentence("coordinator", "init", str(tmp_path / "run"), "--nodes", "0")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("node", "--threads", "0"), "'--threads'"),
        (("bench", "speed"), "No such command 'speed'"),
    ],
)
def test_a_mistyped_command_is_one_sentence(arguments: tuple[str, ...], reason: str) -> None:
    assert reason in sentence(*arguments)


def test_a_command_that_breaks_its_promise_keeps_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from swarm.daemon import coordinator

    monkeypatch.setattr(coordinator, "run_coordinator", lambda options: 7)
    monkeypatch.setattr(sys, "argv", ["farflung", "coordinator", "run", "run1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 7


def test_inviting_to_no_job_is_one_sentence(tmp_path: Path) -> None:
    assert "holds no job" in sentence("invite", str(tmp_path))


def test_revoking_nobody_is_one_sentence(tmp_path: Path) -> None:
    assert "holds no job" in sentence("revoke", str(tmp_path), "ab")


def test_text_that_is_not_there_is_one_sentence_and_makes_no_job(tmp_path: Path) -> None:
    missing, directory = tmp_path / "nowhere.txt", tmp_path / "run"
    assert str(missing) in sentence("coordinator", "init", str(directory), "--data", str(missing))
    assert not directory.exists()


def test_text_too_short_to_train_on_is_told_when_the_job_is_made(tmp_path: Path) -> None:
    text, directory = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("to be or not to be")
    told = sentence("coordinator", "init", str(directory), "--data", str(text))
    assert "too few for windows of 256" in told
    assert not directory.exists()


def test_a_job_and_its_invitations_come_from_the_command_line(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    done = run("coordinator", "init", str(directory), "--nodes", "4", "--cells", "2", "--seed", "7", "--json")
    made = json.loads(done.stdout)
    job = load_job(directory / "job.toml")
    assert (job.pipeline.nodes, job.pipeline.cells, job.seed) == (4, 2, 7)
    assert made["job"] == job.digest
    another = json.loads(run("invite", str(directory), "--json").stdout)["invitation"]
    assert another != made["invitation"]
    assert another.split(".")[0][:4] == made["invitation"].split(".")[0][:4]


def test_only_errors_meant_for_people_become_sentences() -> None:
    assert explain(JobError("a reason")) == "a reason"
    assert explain(FileNotFoundError(2, "No such file", "a.toml")) == "cannot use a.toml: No such file"
    assert explain(ValueError("a bug")) is None
    assert explain(OSError("a bug")) is None


def test_an_invitation_offers_no_role_that_nobody_would_believe(tmp_path: Path) -> None:
    found = run("invite", str(tmp_path), "--role", "coordinator")
    assert (found.returncode, "No such option: --role" in found.stderr) == (2, True)
