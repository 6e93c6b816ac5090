"""An invitation is one line that survives being pasted, and nothing else does."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.identity import Identity, RunKeyGrant, SigningKey, sign_grant
from transport.invitation import (
    Invitation,
    InvitationError,
    InvitationTerms,
    parse_invitation,
    sign_invitation,
)

JOB, OTHER_JOB = "ab" * 16, "cd" * 16
RNG = random.Random(5)
ROOT, RUN, STRANGER = (SigningKey.create(RNG) for _ in range(3))
LOBBY = Identity.create(RNG)


def invite(run: SigningKey = RUN, root: SigningKey = ROOT, job: str = JOB) -> Invitation:
    granted = RunKeyGrant(job=JOB, job_name="demo", run_key=RUN.public_key, not_after=2_000_000_000)
    terms = InvitationTerms(
        job=job,
        job_name="demo",
        jti="12" * 8,
        role="worker",
        uses=2,
        not_after=1_900_000_000,
        lobby=("tcp://192.0.2.1:5670", "tcp://[2001:db8::1]:5670"),
        lobby_key=LOBBY.curve_public,
        root_key=ROOT.public_key,
        grant=sign_grant(root, granted),
    )
    return sign_invitation(run, terms)


TEXT = invite().text


def test_an_invitation_is_one_url_safe_line() -> None:
    assert TEXT.startswith("farflung1:")
    assert set(TEXT) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_:")
    assert len(TEXT) < 2000


def test_a_pasted_invitation_reads_as_issued() -> None:
    assert parse_invitation(f"  {TEXT}\n") == invite()
    assert parse_invitation(TEXT).text == TEXT


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no invitation was given"),
        ("  \n", "no invitation was given"),
        ("hello", "this is not an invitation"),
        (TEXT.removeprefix("farflung1:"), "this is not an invitation"),
        ("farflung1:", "cut off or altered"),
        (TEXT[:-40], "cut off or altered"),
        (TEXT + "é", "cut off or altered"),
        (TEXT + "A" * 8192, "cut off or altered"),
        (invite(root=STRANGER).text, "cut off or altered"),
        (invite(run=STRANGER).text, "signature does not fit"),
        (invite(job=OTHER_JOB).text, "signature does not fit"),
    ],
)
def test_each_wrong_text_is_answered_with_a_sentence(text: str, reason: str) -> None:
    with pytest.raises(InvitationError, match=reason):
        parse_invitation(text)


@given(st.integers(min_value=0, max_value=len(TEXT) - 1), st.characters())
def test_no_altered_character_goes_unnoticed(at: int, char: str) -> None:
    altered = TEXT[:at] + char + TEXT[at + 1 :]
    # Surrounding white space is forgiven, so only a change inside counts.
    if altered.strip() != TEXT:
        with pytest.raises(InvitationError):
            parse_invitation(altered)


@given(st.text(max_size=200))
def test_arbitrary_text_raises_only_the_declared_error(text: str) -> None:
    for candidate in (text, "farflung1:" + text):
        with pytest.raises(InvitationError):
            parse_invitation(candidate)
