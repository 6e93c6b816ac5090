"""A picture of a run: loss, live nodes and throughput over virtual time, with the faults marked.

Needs matplotlib (extra `plot`), which nothing else does; so it is imported where it is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.daemon.options import UserError
from swarm.events import Event

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 60
"""Of throughput, over the whole run."""
SMOOTH = 8
"""Iterations that the bold line of a loss is the mean of."""
SUFFIXES = (".png", ".svg", ".pdf")
INK, FAULT = "#333333", "#c0392b"
GONE = ("crash", "restart")
CELLS_NAMED_MAX = 8
"""Cells in the legend; the others are drawn and not named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What is drawn. Times in virtual seconds.

    losses: by cell, (time, loss of an iteration, None without tensors or if it counted no token).
    live: (time, worker nodes that run from then on).
    tokens: (begin, end, tokens) of every committed iteration of all cells. faults: (time, what) as
        they began. iterations: of the cell that came furthest.
    """

    losses: dict[str, list[tuple[float, float | None]]]
    live: list[tuple[float, int]]
    tokens: list[tuple[float, float, int]]
    faults: list[tuple[float, str]]
    iterations: int


def story(events: Sequence[Event]) -> Story:
    """What the events of a run say of it."""
    losses: dict[str, list[tuple[float, float | None]]] = {}
    tokens: list[tuple[float, float, int]] = []
    faults: list[tuple[float, str]] = []
    for event in events:
        if event.kind == "committed":
            loss = event.fields["loss"] if event.fields["tokens"] else None
            losses.setdefault(event.fields["cell"], []).append((event.time, loss))
            begun = max(0.0, event.time - event.fields["seconds"])
            tokens.append((begun, event.time, event.fields["tokens"]))
        elif event.kind == "fault" and not event.fields["what"].endswith(" ended"):
            faults.append((event.time, event.fields["what"]))
    furthest = max((e.fields["iteration"] for e in events if e.kind == "committed"), default=0)
    return Story(losses=losses, live=list(_live(events)), tokens=tokens, faults=faults, iterations=furthest)


def _live(events: Sequence[Event]) -> Iterator[tuple[float, int]]:
    """How many workers run, at every moment at which that changes."""
    workers, running = set[str](), set[str]()
    for event in events:
        before = len(running)
        if event.kind == "started" and event.fields["role"] == "worker":
            workers.add(event.node)
            running.add(event.node)
        elif event.kind == "left" or (event.kind == "fault" and event.fields["what"] in GONE):
            running.discard(event.node)
        if len(running) != before:
            yield event.time, len(running)


def per_second(tokens: Sequence[tuple[float, float, int]], seconds: float, bins: int) -> list[float]:
    """Tokens per second in each of so many equal parts of the run, spread evenly over an iteration.

    None at all of a run that ended as it began.
    """
    if not seconds:
        return [0.0] * bins
    width = seconds / bins
    sums = [0.0] * bins
    for begin, end, count in tokens:
        lasted = max(end - begin, width / 1000)
        first, last = (min(bins - 1, int(time / width)) for time in (begin, end))
        for part in range(first, last + 1):
            overlap = min(begin + lasted, (part + 1) * width) - max(begin, part * width)
            sums[part] += max(0.0, overlap) * count / lasted / width
    return sums


def smoothed(losses: Sequence[float]) -> list[float]:
    """The mean of each value and those before it, `SMOOTH` at most."""
    before = [losses[max(0, end - SMOOTH) : end] for end in range(1, len(losses) + 1)]
    return [sum(some) / len(some) for some in before]


def check_plot(path: Path) -> None:
    """Say now, not after minutes of simulation, that a picture cannot be drawn. Raises UserError."""
    if find_spec("matplotlib") is None:
        raise UserError(
            "--plot needs matplotlib: `bash scripts/setup plot` in a clone, else the extra `plot` of farflung"
        )
    if path.suffix not in SUFFIXES:
        raise UserError(f"--plot {path}: the name of a picture ends in {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--plot {path}: there is no directory {path.absolute().parent}")


def plot_run(events: Sequence[Event], seconds: float, path: Path) -> None:
    """Draw three panels over virtual time into a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    told = story(events)
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    loss, live, speed = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [2, 1, 1]})
    _draw_losses(loss, told)
    _draw_live(live, told, seconds)
    _draw_speed(speed, told, seconds)
    for axes in (loss, live, speed):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        for time, _ in told.faults:
            axes.axvline(time, color=FAULT, alpha=0.35, linewidth=0.8)
    loss.set_xlim(0, seconds or 1.0)
    figure.align_ylabels()
    speed.set_xlabel("virtual time (s)")
    figure.suptitle(_title(told, seconds), x=0.01, ha="left", fontsize=11, color=INK)
    figure.savefig(path, dpi=150)


def _title(told: Story, seconds: float) -> str:
    counts = Counter(what for _, what in told.faults)
    faults = ", ".join(f"{what.replace('_', ' ')} {count}" for what, count in sorted(counts.items()))
    done = f"{told.iterations} iterations in {seconds:,.0f} virtual seconds"
    return f"{done}; faults (red lines): {faults or 'none'}"


def _draw_losses(axes: Axes, told: Story) -> None:
    known = {c: [(at, loss) for at, loss in points if loss is not None] for c, points in told.losses.items()}
    for number, (cell, points) in enumerate((c, points) for c, points in known.items() if points):
        times, losses = zip(*points, strict=True)
        name = f"cell {cell}" if number < CELLS_NAMED_MAX else None
        (line,) = axes.plot(times, smoothed(losses), linewidth=1.6, label=name)
        axes.plot(times, losses, linewidth=0.7, alpha=0.35, color=line.get_color())
    axes.set_ylabel(f"training loss (nats per token)\nbold: mean of {SMOOTH} iterations")
    if told.losses and not any(known.values()):
        absent = "no losses: the tensors were left out"
        axes.text(0.5, 0.5, absent, transform=axes.transAxes, ha="center", color=INK)
        axes.set_yticks([])
    elif told.losses:
        axes.legend(frameon=False, fontsize=9, loc="upper right")


def _draw_live(axes: Axes, told: Story, seconds: float) -> None:
    points = [*told.live, (seconds, told.live[-1][1])] if told.live else []
    times, counts = [time for time, _ in points], [count for _, count in points]
    axes.step(times, counts, where="post", color=INK, linewidth=1.2)
    axes.set_ylim(0, ceil(1.1 * max(counts, default=1)) + 0.5)
    axes.set_ylabel("live nodes")


def _draw_speed(axes: Axes, told: Story, seconds: float) -> None:
    edges = [seconds * bin_ / BINS for bin_ in range(BINS + 1)]
    axes.stairs(per_second(told.tokens, seconds, BINS), edges, fill=True, color="#4c78a8", alpha=0.8)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("tokens per second")
