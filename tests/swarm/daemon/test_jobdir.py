"""A job directory is made once, keeps its keys private, and notices when the job is edited."""

import socket
import stat
from pathlib import Path

import pytest

from swarm.daemon.admission import Ledger
from swarm.daemon.jobdir import grant_again, init_job, make_invitation, open_job, revoke
from swarm.daemon.options import UserError
from swarm.daemon.revoking import RevokedList
from swarm.events import wall_time
from swarm.job import Job, load_job
from transport.identity import CERTIFICATE_DAYS, DAY_S, check_certificate
from transport.invitation import parse_invitation

JOB = Job(name="mine")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    directory = tmp_path / "job"
    init_job(directory, job=JOB, host="127.0.0.1", lobby_port=0)
    return directory


def test_a_job_directory_opens_as_it_was_made(made: Path) -> None:
    job = open_job(made)
    assert job.job == JOB == load_job(made / "job.toml")
    assert job.lobby == f"tcp://127.0.0.1:{job.lobby_port}"
    assert open_job(made).identity == job.identity


def test_the_port_of_the_lobby_is_chosen_once_and_free(made: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", open_job(made).lobby_port))


def test_a_named_port_is_kept(tmp_path: Path) -> None:
    init_job(tmp_path, job=JOB, host="2001:db8::1", lobby_port=5670)
    assert open_job(tmp_path).lobby == "tcp://[2001:db8::1]:5670"
    assert make_invitation(tmp_path).lobby == ("tcp://[2001:db8::1]:5670",)


def test_the_coordinator_is_a_certified_member(made: Path) -> None:
    job = open_job(made)
    certificate = check_certificate(
        job.certificate, job=JOB.digest, root_public=job.root_key, now_wall=wall_time()
    )
    assert (certificate.node, certificate.role) == (job.identity.node, "coordinator")
    assert certificate.not_after - certificate.not_before == CERTIFICATE_DAYS * DAY_S


def test_keys_are_for_their_owner_alone(made: Path) -> None:
    for name in ("root.json", "keys.json", "identity.json"):
        assert stat.S_IMODE((made / name).stat().st_mode) == 0o600
    assert "Move this file offline" in (made / "root.json").read_text()


def test_nothing_needs_the_root_key_once_the_job_is_made(made: Path) -> None:
    (made / "root.json").unlink()
    assert parse_invitation(make_invitation(made).text).root_key == open_job(made).root_key


def test_the_root_key_lets_the_run_key_go_on_from_wherever_it_is_kept(made: Path, tmp_path: Path) -> None:
    before, kept = open_job(made).authority, tmp_path / "safe.json"
    (made / "root.json").rename(kept)
    until = grant_again(made, kept, days=200)
    after = open_job(made).authority
    assert after.granted.not_after == int(until) > before.granted.not_after
    assert open_job(made).grant_ends_soon(until - 15 * DAY_S) == ""
    assert "for 13 more days" in open_job(made).grant_ends_soon(until - 13 * DAY_S)
    assert after.granted.run_key == before.granted.run_key, "certificates that it signed stay good"
    init_job(tmp_path / "other", job=Job(name="other"), host="127.0.0.1", lobby_port=0)
    for root, days, why in (
        (tmp_path / "other" / "root.json", 90, "of another job"),
        (kept, 4000, "at most 366 days"),
        (made / "root.json", 90, "root.json"),
    ):
        with pytest.raises(UserError, match=why):
            grant_again(made, root, days=days)


def test_invitations_are_signed_with_the_terms_that_were_asked_for(made: Path) -> None:
    invitation = parse_invitation(make_invitation(made, days=2, uses=5).text)
    assert (invitation.job, invitation.role, invitation.uses) == (JOB.digest, "worker", 5)
    assert abs(invitation.not_after - wall_time() - 2 * DAY_S) < 60
    assert invitation.jti != make_invitation(made).jti


def test_an_invitation_never_outlives_the_run_key(made: Path) -> None:
    assert make_invitation(made, days=3650).not_after == open_job(made).authority.granted.not_after


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"days": 0}, "lasts more than 0"),
        ({"days": float("nan")}, "lasts more than 0"),
        ({"uses": 0}, "at least 1"),
    ],
)
def test_impossible_terms_are_answered_with_a_sentence(made: Path, terms: dict, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make_invitation(made, **terms)


def test_a_second_job_in_the_same_directory_is_refused(made: Path) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    with pytest.raises(UserError, match="already holds a job"):
        init_job(made, job=JOB, host="127.0.0.1", lobby_port=0)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "*", "", "a b", "x/y"])
def test_a_host_nobody_can_dial_is_refused_before_anything_is_written(tmp_path: Path, host: str) -> None:
    with pytest.raises(UserError, match="not an address others can dial"):
        init_job(tmp_path / "job", job=JOB, host=host, lobby_port=0)
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("host", ["999.999.1.1", "a..b", "x" * 300])
def test_a_host_that_does_not_resolve_is_refused_before_anything_is_written(
    tmp_path: Path, host: str
) -> None:
    with pytest.raises(UserError, match="neither an address nor a name that resolves"):
        init_job(tmp_path / "job", job=JOB, host=host, lobby_port=0)
    assert not (tmp_path / "job").exists()


def test_a_directory_that_holds_something_else_gets_no_job(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is not empty: a job needs a directory of its own"):
        init_job(tmp_path, job=JOB, host="127.0.0.1", lobby_port=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_invitation_to_the_directory_of_a_node_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "membership").write_bytes(b"")
    with pytest.raises(UserError, match="is a node's: name the directory of the job"):
        make_invitation(tmp_path)


def test_an_unwritable_directory_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to"):
        init_job(tmp_path / "file" / "job", job=JOB, host="127.0.0.1", lobby_port=0)


def test_an_edited_job_is_refused(made: Path) -> None:
    path = made / "job.toml"
    path.write_text(path.read_text().replace("stages = 4", "stages = 2"))
    with pytest.raises(UserError, match="was changed after the job was made"):
        open_job(made)


FILES = ["keys.json", "job.toml", "ledger.json", "identity.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_one_sentence(made: Path, name: str) -> None:
    (made / name).unlink()
    with pytest.raises(UserError, match=str(made)):
        open_job(made).ledger()
    assert not (made / name).exists()


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_sentence(made: Path, name: str) -> None:
    (made / name).write_bytes(b"\xff not this")
    with pytest.raises(UserError, match=name):
        open_job(made).ledger()


def test_the_ledger_survives_and_leaves_no_scratch_file(made: Path) -> None:
    job = open_job(made)
    invitation = make_invitation(made)
    ledger = job.ledger().after(invitation, job.identity.node)
    job.keep_ledger(ledger)
    assert open_job(made).ledger() == ledger
    assert not [path for path in made.iterdir() if path.name.startswith(".")]


def test_revocations_reach_a_job_that_is_already_open(made: Path) -> None:
    job = open_job(made)
    assert job.revoked() == frozenset()
    invitation = make_invitation(made)
    assert revoke(made, invitation.text) == invitation.jti
    assert revoke(made, "cd" * 32) == "cd" * 32
    assert job.revoked() == {invitation.jti, "cd" * 32}
    assert RevokedList(job, [].append).nodes() == {"cd" * 32}


@pytest.mark.parametrize("name", ["", "node1", "cd" * 31, "CD" * 32])
def test_only_ids_can_be_revoked(made: Path, name: str) -> None:
    with pytest.raises(UserError, match="copy it from `status`"):
        revoke(made, name)
    assert open_job(made).revoked() == frozenset()


def test_an_invitation_that_was_altered_cannot_be_revoked(made: Path) -> None:
    with pytest.raises(UserError, match="cut off or altered"):
        revoke(made, make_invitation(made).text[:-9])


def test_the_beginning_of_an_id_names_the_only_node_it_fits(made: Path) -> None:
    nodes = ("ab" * 32, "ab" + "cd" * 31, "ef" * 32)
    open_job(made).keep_ledger(Ledger({"1" * 16: nodes}, 3))
    assert revoke(made, "ef") == nodes[2]
    with pytest.raises(UserError, match=r"begins 2 ids \(abababababab, abcdcdcdcdcd\)"):
        revoke(made, "ab")
    assert revoke(made, "abc") == nodes[1]
    assert RevokedList(open_job(made), [].append).nodes() == set(nodes[1:])


def test_a_coordinator_does_not_revoke_itself(made: Path) -> None:
    with pytest.raises(UserError, match="stop it instead"):
        revoke(made, open_job(made).identity.node[:10])


def test_a_damaged_list_of_the_revoked_is_one_sentence(made: Path) -> None:
    (made / "revoked.json").write_text('["ab"')
    with pytest.raises(UserError, match=r"revoked\.json cannot be read"):
        open_job(made).revoked()
