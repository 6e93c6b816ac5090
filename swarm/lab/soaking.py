"""`scripts/soak`: many drawn worlds, one after another, and what to do about those that broke.

What a seed came to is kept under the commit that it was played with, so that an interrupted soak
goes on where it was. A seed that broke is printed with its sentence and the command that plays it
again up to just before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from swarm.lab.checkers import CHECKERS
from swarm.lab.simulate import LAST_EVENTS, whole_until_s, write_run
from swarm.lab.soak import CLASSES, Scenario, draw, play
from swarm.lab.world import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakOptions:
    """Which seeds to play and how. See `scripts/soak --help`.

    until_s: end every world there, to look at what comes before something breaks; 0: at its own end.
    commit: of the tree that is played, "" keeps nothing. out: where results are kept, and the
        events of worlds that broke; beside them, those of worlds that `until_s` ended.
    """

    seeds: int = 50
    first: int = 0
    jobs: int = 1
    classes: tuple[str, ...] = ()
    until_s: float = 0.0
    commit: str = ""
    out: Path = Path(".soak")

    @property
    def numbers(self) -> range:
        """The seeds."""
        return range(self.first, self.first + self.seeds)

    @property
    def cache(self) -> Path:
        """Where results of this commit are kept, one line of JSON a seed."""
        kind = "-".join(self.classes) or "all"
        return self.out / (self.commit or "uncommitted") / f"{kind}.jsonl"


def play_seed(seed: int, options: SoakOptions) -> dict[str, Any]:
    """Play one world: what it was, what broke, and the events before that."""
    scenario = draw(seed, options.classes)
    if options.until_s:
        until = replace(scenario.options, until_s=options.until_s)
        scenario = replace(scenario, options=until, cut_off=True)
    began = time.process_time()
    outcome = play(scenario)
    if outcome.broken or options.until_s:
        ended = f"-until-{options.until_s:g}" if options.until_s else ""
        write_run(outcome.events, options.out / f"seed-{seed}{ended}")
    return result(seed, scenario, outcome, time.process_time() - began)


def result(seed: int, scenario: Scenario, outcome: Outcome, cpu_s: float) -> dict[str, Any]:
    """What is kept of a seed."""
    last = [event.line() for event in outcome.events if event.kind != "progress"][-LAST_EVENTS:]
    return {
        "seed": seed,
        "broken": list(outcome.broken),
        "finished": outcome.finished,
        "hopeless": outcome.hopeless,
        "looked": dict(outcome.looked),
        "classes": list(scenario.classes),
        "nodes": scenario.options.nodes,
        "virtual_s": round(outcome.seconds, 1),
        "cpu_s": round(cpu_s, 2),
        "faults": sum(
            e.kind == "fault" and not str(e.fields["what"]).endswith(" ended") for e in outcome.events
        ),
        "last": last if outcome.broken else [],
    }


def render(found: dict[str, Any], classes: Sequence[str] = ()) -> str:
    """A seed that broke, for a person: the sentences, the last events, and how to play it again."""
    until = whole_until_s(found["virtual_s"])
    only = f" --classes {','.join(classes)}" if classes else ""
    lines = [
        f"seed {found['seed']} broke at {found['virtual_s']} virtual seconds ({', '.join(found['classes'])}):"
    ]
    lines += [f"  {sentence}" for sentence in found["broken"]]
    lines += [f"    {line[:200]}" for line in found["last"]]
    lines.append(f"  again: scripts/soak --seeds 1 --first {found['seed']}{only} --until {until:g}")
    return "\n".join(lines)


def summary(done: Sequence[dict[str, Any]]) -> str:
    """What came of all seeds: how much each checker saw, which worlds did not finish and why, which broke."""
    lines = []
    for name in (checker.__name__ for checker in CHECKERS):
        counts = [found["looked"].get(name, 0) for found in done]
        worlds = sum(count > 0 for count in counts)
        lines.append(f"{name} looked at {sum(counts):,} in {worlds} of {len(done)} worlds")
    unfinished = [found for found in done if not found["finished"]]
    lines += [
        f"seed {found['seed']} did not finish: {found['hopeless'] or (*found['broken'], 'it was ended')[0]}"
        for found in unfinished
    ]
    broken = ", ".join(str(found["seed"]) for found in done if found["broken"])
    virtual_h, cpu_s = (sum(found[key] for found in done) for key in ("virtual_s", "cpu_s"))
    lines.append(
        f"{len(done)} worlds, {virtual_h / 3600:.2f} virtual hours in {cpu_s:.0f} s of one core, "
        f"{sum(found['faults'] for found in done)} processes hit by faults; "
        f"unfinished: {', '.join(str(found['seed']) for found in unfinished) or 'none'}; "
        f"broken: {broken or 'none'}"
    )
    return "\n".join(lines)


def known(cache: Path) -> dict[int, dict[str, Any]]:
    """Results that are kept already; a line cut off by a kill is left out."""
    if not cache.exists():
        return {}
    found = {}
    for line in cache.read_text(encoding="utf-8").splitlines():
        try:
            one = json.loads(line)
        except ValueError:
            continue
        found[one["seed"]] = one
    return found


def soak(options: SoakOptions) -> Iterator[dict[str, Any]]:
    """Every result in the order of the seeds: kept, or played in this process or in `jobs` of its own."""
    keep = bool(options.commit) and not options.until_s
    before = known(options.cache) if keep else {}
    missing = [seed for seed in options.numbers if seed not in before]
    played = _in_children(missing, options) if options.jobs > 1 else _here(missing, options)
    for seed in options.numbers:
        if seed in before:
            yield before[seed]
            continue
        found = next(played)
        if keep:
            options.cache.parent.mkdir(parents=True, exist_ok=True)
            with options.cache.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
        yield found


def _here(seeds: Iterable[int], options: SoakOptions) -> Iterator[dict[str, Any]]:
    for seed in seeds:
        yield play_seed(seed, options)


def _in_children(seeds: Sequence[int], options: SoakOptions) -> Iterator[dict[str, Any]]:
    """Each job takes every so manyth seed and answers in lines, which are read in the order of the seeds.

    The processes are ended with this generator, also when it is left early.
    """
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "swarm.lab.soaking", "--answer", "--out", str(options.out)]
            + (["--classes", ",".join(options.classes)] if options.classes else [])
            + (["--until", str(options.until_s)] if options.until_s else [])
            + ["--only", ",".join(map(str, seeds[job :: options.jobs]))],
            stdout=subprocess.PIPE,
            text=True,
        )
        for job in range(min(options.jobs, len(seeds)))
    ]
    try:
        for index in range(len(seeds)):
            child = children[index % len(children)]
            assert child.stdout is not None
            line = child.stdout.readline()
            if not line:
                raise SystemExit(f"a job of the soak ended with code {child.wait()}: see above")
            yield json.loads(line)
    finally:
        for child in children:
            child.kill()
            child.communicate()


def _moment(text: str) -> float:
    """A virtual second after the start."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


def _parse(words: Sequence[str]) -> tuple[SoakOptions, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=50, help="how many worlds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--classes", default="", help=f"only these, by commas: {', '.join(CLASSES)}, liar")
    parser.add_argument("--until", type=_moment, default=0.0, help="end every world at this virtual second")
    parser.add_argument("--out", type=Path, default=Path(".soak"), help="where results are kept")
    parser.add_argument("--commit", default="", help="of the tree; without it nothing is kept")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    said = parser.parse_args(words)
    classes = tuple(name for name in said.classes.split(",") if name)
    unknown = sorted(set(classes) - {*CLASSES, "liar"})
    if unknown or min(said.seeds, said.jobs) < 1 or said.first < 0:
        what = (
            f"there is no class of faults named {unknown[0]}" if unknown else "seeds and jobs are at least 1"
        )
        parser.error(what)
    options = SoakOptions(
        seeds=said.seeds,
        first=said.first,
        jobs=said.jobs,
        classes=classes,
        until_s=said.until,
        commit=said.commit,
        out=said.out,
    )
    return options, said


def main(words: Sequence[str]) -> int:
    """Play the seeds; 1 if any broke."""
    options, said = _parse(words)
    if said.answer:
        for found in _here(map(int, said.only.split(",")), options):
            print(json.dumps(found), flush=True)  # noqa: T201 - the parent reads it
        return 0
    done: list[dict[str, Any]] = []
    for found in soak(options):
        done.append(found)
        if found["broken"]:
            print(render(found, options.classes), flush=True)  # noqa: T201 - a person is watching
    print(summary(done))  # noqa: T201 - a person is watching
    return 1 if any(found["broken"] for found in done) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
