"""The live table of the demo and its last words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from swarm.lab.headlines import HOWS
from swarm.lab.processes import RealSwarm
from swarm.lab.tally import NodeRow, Tally

COLUMNS = ("process", "cell", "stages", "status", "iteration", "sent", "memory")
"""With a cell of the longest name 80 columns hold them."""
RATE_WINDOW_S = 10.0
LINES = 8
"""Headlines below the table: with eight nodes all of it fits a terminal of 24 lines."""
STYLES = {
    "serving": "cyan",
    "training": "green",
    "finished": "bold green",
    "killed": "bold red",
    "ended": "red",
    "left": "dim",
}
GONE = ("killed", "ended", "left")


class Screen:
    """Draws a tally. It holds no numbers of its own."""

    def __init__(self, iterations: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self._iterations = iterations

    def table(self, swarm: RealSwarm, tally: Tally, headlines: Sequence[str] = ()) -> RenderableType:
        """The nodes, below them the totals, and what happened last."""
        table = Table(*COLUMNS, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in table.columns[-3:]:
            column.justify = "right"
            column.no_wrap = True
        for name, child in swarm.children.items():
            row = tally.nodes.get(child.node, NodeRow())
            status = _status(name, swarm, row)
            cells = (
                name,
                row.cell,
                " ".join(map(str, row.stages)),
                f"[{STYLES.get(status, 'yellow')}]{status}[/]",
                str(row.iteration or ""),
                megabytes(row.bytes_sent),
                megabytes(row.memory_bytes),
            )
            table.add_row(*cells, style="dim" if status in GONE else "")
        told = Text("\n".join(headlines[-LINES:]), style="dim", no_wrap=True, overflow="ellipsis")
        return Group(table, Text(self._totals(tally), style="bold"), told)

    def _totals(self, tally: Tally) -> str:
        loss = f"{tally.loss:.2f}" if tally.loss is not None else "-"
        speed = tally.tokens_per_s(last_s=RATE_WINDOW_S)
        return (
            f"iteration {tally.iteration}/{self._iterations}  loss {loss}  {speed:,.0f} tokens/s  "
            f"sent {megabytes(tally.bytes_sent) or '-'}  round {tally.rounds}  "
            f"recoveries {len(tally.recoveries)}"
        )

    def print_summary(self, summary: dict[str, Any], seconds: float) -> None:
        """What a person remembers of the run."""
        say = self.console.print
        say(f"validation loss {summary['loss_first']:.3f} -> {summary['loss_last']:.3f}", highlight=False)
        say(f"{summary['iterations']} iterations in {seconds:.0f} s, {summary['tokens_per_s']:,.0f} tokens/s")
        say(f"killed: {', '.join(summary['killed']) or 'nobody'}")
        for recovery in summary["recoveries"]:
            source = HOWS.get(recovery["how"], recovery["how"])
            say(f"stage {recovery['stage']} came back from {source} in {recovery['seconds']:.1f} s")
        say(f"the model is in {summary['checkpoint']}, its story in run.jsonl beside it")


def _status(name: str, swarm: RealSwarm, row: NodeRow) -> str:
    if name in swarm.killed and name not in swarm.alive:
        return "killed"
    if name not in swarm.alive and row.status not in ("finished", "left"):
        return "ended"
    return "serving" if name == "coordinator" and row.status == "joining" else row.status


def megabytes(count: int) -> str:
    """Bytes for a person; empty for none."""
    return f"{count / 1e6:,.{int(count < 1e9)}f} MB" if count else ""
