"""What real processes cannot be made to suffer, and why: said before anything starts."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from swarm.daemon.options import UserError
from swarm.lab.faults import (
    ClockSkew,
    Corrupt,
    Crash,
    Cut,
    Fault,
    Noise,
    Partition,
    Restart,
    SlowLink,
    selectors_of,
)
from swarm.lab.selectors import hits_nobody

OF_THE_NETWORK = (Cut, Partition, SlowLink, Noise)


def refuse_impossible(
    faults: Sequence[Fault], *, nodes: int, stages: int, because: str, regions: Collection[str] = ()
) -> None:
    """Raise UserError for what real processes cannot be made to suffer.

    stages: of the job. because: why there is no emulated network, empty if there is one. regions: with
    a node in them.
    """
    for fault in faults:
        silent = isinstance(fault, Crash | Restart) and fault.silent
        if (isinstance(fault, OF_THE_NETWORK) or silent) and because:
            what = f"a silent {fault.kind}" if silent else f"the fault {fault.kind!r}"
            raise UserError(f"{what} needs the emulated network, but {because}")
        if isinstance(fault, Corrupt):
            why = "real bytes are under TCP's checksums and under encryption"
            raise UserError(f"the fault 'corrupt' is for `farflung simulate`: {why}")
        if isinstance(fault, ClockSkew):
            why = "all processes here share this machine's clock"
            raise UserError(f"the fault 'clock_skew' is for `farflung simulate`: {why}")
        for selector in selectors_of(fault):
            why = hits_nobody(selector, nodes=nodes, stages=stages, regions=regions)
            if why:
                raise UserError(why)
