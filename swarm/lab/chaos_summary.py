"""What came of a run under faults: the figures a person looks at first, and the verdict of every check"""

from __future__ import annotations

from collections import Counter
from typing import Any

from swarm.lab.chaos_checks import NOT_JUDGED, false_deaths, judge
from swarm.lab.chaos_evidence import Evidence
from swarm.lab.chaos_player import Player
from swarm.lab.tally import Commit, Tally, longest_gap_s
from swarm.lab.wan_shaper import LATE_S


def summarize(run: Evidence, player: Player, began: float) -> dict[str, Any]:
    """The fields of `farflung chaos --json`.

    iterations: of the cell that came furthest. losses: training losses of the first commit of all
    and of that cell's last; commits that counted no token (their number is `empty`) have none.
    longest_gap_s: between two commits of whichever cells. missed: faults of the script that hit nobody.
    """
    tally = Tally()
    tally.add(run.story)
    commits = sorted(tally.commits.values(), key=lambda commit: commit.time)
    furthest = _furthest(commits)
    killed = [str(event["name"]) for event in run.story if event.get("what") == "killed"]
    verdicts = judge(run)
    falsely = false_deaths(run)
    return {
        "seconds": round(run.judged_at - began, 1),
        "iterations": max((commit.iteration for commit in furthest), default=0),
        "cells": dict(sorted(Counter(commit.cell for commit in commits).items())),
        "loss_first": next((commit.loss for commit in commits if commit.tokens), None),
        "loss_last": next((commit.loss for commit in reversed(furthest) if commit.tokens), None),
        "empty": sum(not commit.tokens for commit in commits),
        "tokens": sum(commit.tokens for commit in commits),
        "longest_gap_s": round(longest_gap_s(commit.time for commit in commits), 1),
        "faults": dict(player.begun),
        "missed": player.not_happened(),
        "kills": len(killed),
        "killed": dict(sorted(Counter(killed).items())),
        "recoveries": tally.recoveries,
        "refounded": len(run.refoundings),
        "false_deaths": len(falsely),
        "falsely": falsely,
        "checks": {name: verdict.as_map() for name, verdict in verdicts.items()},
        "not_judged": [f"{name.replace('_', ' ')}: {why}" for name, why in NOT_JUDGED.items()],
        "broken": [sentence for verdict in verdicts.values() for sentence in verdict.broken],
    }


def _furthest(commits: list[Commit]) -> list[Commit]:
    """The commits, by time, of the cell with the highest iteration."""
    if not commits:
        return []
    cell = max(commits, key=lambda commit: commit.iteration).cell
    return [commit for commit in commits if commit.cell == cell]


def render(found: dict[str, Any]) -> str:
    """The summary for a person."""
    kills = ", ".join(f"{count} of {name}" for name, count in found["killed"].items()) or "nobody"
    sources = Counter(recovery["how"] for recovery in found["recoveries"])
    slowest = max((recovery["seconds"] or 0.0 for recovery in found["recoveries"]), default=0.0)
    recovered = ", ".join(f"{count} by {how}" for how, count in sources.items()) or "none"
    lines = [
        f"{found['iterations']} iterations in {found['seconds']:.0f} s, {found['tokens']:,} tokens;"
        f" training loss {found['loss_first']} -> {found['loss_last']}",
        f"{found['kills']} killed: {kills}; longest gap without a commit {found['longest_gap_s']:.1f} s",
        f"stages recovered: {recovered}; the slowest in {slowest:.1f} s",
        f"false deaths: {found['false_deaths']}",
        *([_carried(found["packets"])] if "packets" in found else []),
        *(f"DID NOT HAPPEN: {sentence}" for sentence in found["missed"]),
        *(f"  {_verdict(verdict)}  {name.replace('_', ' ')}" for name, verdict in found["checks"].items()),
        *(f"  not judged  {sentence}" for sentence in found["not_judged"]),
        *(f"BROKEN: {sentence}" for sentence in found["broken"]),
        f"the story is in {found['out']}/run.jsonl, the nodes' logs are beside it",
    ]
    return "\n".join(lines)


def _carried(packets: dict[str, int]) -> str:
    """What the emulated network carried, and how far it was not what it was told to be."""
    delivered, late = packets["delivered"], packets["late"]
    share = late / max(1, delivered)
    behind = f"{share:.2%} over {1000 * LATE_S:g} ms late, the latest by {packets['latest_ms']} ms"
    return f"emulated network: {delivered:,} packets carried, {behind}"


def _verdict(verdict: dict[str, Any]) -> str:
    if "not_checked" in verdict:
        return f"not checked ({verdict['not_checked']})"
    return f"{'held  ' if verdict['held'] else 'BROKEN'} ({verdict['looked_at']})"
