"""The job file: what must be the same everywhere, and nothing else.

`job.toml` is parsed once into a frozen `Job`; its digest is compared at join. What a node
may choose alone (address, device, data directory) is `NodeOptions`, not here.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

PRESET_LAYERS = {"demo": 6, "125m": 12, "1b": 22, "7b": 32}
"""Layers of each preset of `swarm.pipeline.model`, which a job file is checked against without torch."""


PLAN_HOPS_MAX = 8192
"""Microbatches times stages that one plan can name: with 70 bytes each it stays below a header's 1 MiB."""


ROSTER_NAMES_MAX = 1024
"""Holders over all stages of a cell: a record names them and who contributed, in one message."""
ROW_MAX = 256
"""Holders of one stage."""
GENESIS_NAMES_MAX = 3000
"""Holders in the rosters of all founding records: 67 bytes each, they travel as one notice of 256 KiB."""
GENESIS_CELL_NAMES = 10
"""What the rest of a founding record, and its signature, take of these, in names."""


def row_max(stages: int) -> int:
    """Holders that a stage of such a job can have."""
    return min(ROW_MAX, ROSTER_NAMES_MAX // stages)


class JobError(ValueError):
    """A job that cannot be used. The text is one sentence for the person who wrote it."""


class Section(BaseModel):
    """Base of all sections: frozen, and an unknown field is a mistake, not ignored.

    Strict: `true` is no number, and 0 is no `false`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class ModelSection(Section):
    """What is trained.

    preset: a size by name: "demo" (1.3 M parameters), "125m", "1b", "7b".
    """

    preset: Literal["demo", "125m", "1b", "7b"] = "demo"


class DataSection(Section):
    """Where tokens come from. Every node must find the same text.

    path: "stdlib" (the source of Python's standard library), a file, glob or directory of
        .txt, .py, .jsonl (field `text`) or .parquet (column `text`).
    tokenizer: "bytes", or a tokenizer file of the `tokenizers` library.
    sequence: tokens of one training window. Longer costs memory per microbatch.
    held_out: share of the text kept for validation, never trained on.
    """

    path: str = "stdlib"
    tokenizer: str = "bytes"
    sequence: Annotated[int, Field(ge=8, le=1 << 17)] = 256
    held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.05


class PipelineSection(Section):
    """How the model is cut and how work flows.

    stages: stage 0 (the ends) and stages - 1 body stages; 1 means no cut.
    cells: groups of nodes that hold every stage and meet in outer rounds.
    nodes: how many nodes the coordinator waits for before the first iteration.
    microbatch: sequences that flow together. Larger fills a device, costs activations.
    microbatches: per data node and iteration; the batch is their product.
    in_flight: microbatches a data node keeps on their way. More hides latency, costs memory.
    hop_codec: "raw" is exact, "bf16" halves the bytes of a hop, "int8" quarters them.
    """

    stages: Annotated[int, Field(ge=1, le=256)] = 4
    cells: Annotated[int, Field(ge=1, le=4096)] = 1
    nodes: Annotated[int, Field(ge=1, le=65_536)] = 1
    microbatch: Annotated[int, Field(ge=1, le=4096)] = 4
    microbatches: Annotated[int, Field(ge=1, le=4096)] = 8
    in_flight: Annotated[int, Field(ge=1, le=256)] = 4
    hop_codec: Literal["raw", "bf16", "int8"] = "raw"


ITERATIONS_MAX = 1 << 31
"""More than anybody will wait for, and every message and file has room for the number."""
Share = Annotated[float, Field(ge=0, lt=1)]


class InnerSection(Section):
    """The optimizer of every iteration.

    lr: peak learning rate. schedule: "constant"; "wsd" (warm up, hold, decay linearly over the
    last fifth); "cosine" (to a tenth). warmup: iterations of linear rise.
    clip_norm: limit of the global gradient norm over all stages. iterations: when to stop.
    """

    optimizer: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0, le=1)] = 3e-3
    schedule: Literal["constant", "wsd", "cosine"] = "wsd"
    warmup: Annotated[int, Field(ge=0, le=ITERATIONS_MAX)] = 10
    betas: Annotated[tuple[Share, Share], Field(strict=False)] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.1
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    iterations: Annotated[int, Field(ge=1, le=ITERATIONS_MAX)] = 2000


class OuterSection(Section):
    """How cells meet.

    method: "diloco" (the mean of all cells' outer gradients moves the anchor) or "none".
    optimizer: how it moves: "nesterov" (DiLoCo's) or "heavy_ball" (Polyak's, no look-ahead).
    every: iterations between rounds (H). Larger sends less and lets cells drift further.
    lr, momentum: of the outer optimizer (DiLoCo, arXiv 2311.08105).
    """

    method: Literal["none", "diloco"] = "diloco"
    optimizer: Literal["nesterov", "heavy_ball"] = "nesterov"
    every: Annotated[int, Field(ge=1, le=ITERATIONS_MAX)] = 50
    lr: Annotated[float, Field(gt=0, le=2)] = 0.7
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9


class RecoverySection(Section):
    """What to do about loss.

    policy: "auto" takes the best source there is; "checkfree" always rebuilds from neighbours.
    checkpoint_every: iterations between checkpoints on disk.
    plus_copies: neighbours of the ends keep a copy of embedding, final norm and head.
    """

    policy: Literal["auto", "checkfree"] = "auto"
    checkpoint_every: Annotated[int, Field(ge=1, le=ITERATIONS_MAX)] = 100
    plus_copies: bool = True


class Job(Section):
    """One training run. `name` and `seed` make two equal recipes two different runs."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,47}$")] = "demo"
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    pipeline: PipelineSection = PipelineSection()
    inner: InnerSection = InnerSection()
    outer: OuterSection = OuterSection()
    recovery: RecoverySection = RecoverySection()

    @model_validator(mode="after")
    def _cells_need_nodes(self) -> Job:
        if self.pipeline.nodes > 1 and self.pipeline.cells > self.pipeline.nodes:
            raise ValueError("pipeline.cells is larger than pipeline.nodes")
        return self

    @model_validator(mode="after")
    def _stages_need_layers(self) -> Job:
        most = PRESET_LAYERS[self.model.preset] + 1
        if self.pipeline.stages > most:
            raise ValueError(f"pipeline.stages is over {most}, the ends and one for each layer of the model")
        return self

    @model_validator(mode="after")
    def _a_plan_fits_a_message(self) -> Job:
        if self.pipeline.microbatches * self.pipeline.stages > PLAN_HOPS_MAX:
            raise ValueError(f"pipeline.microbatches times pipeline.stages is more than {PLAN_HOPS_MAX}")
        return self

    @model_validator(mode="after")
    def _rosters_fit_into_records(self) -> Job:
        cells, stages = self.pipeline.cells, self.pipeline.stages
        most = cells * stages * row_max(stages)
        if self.pipeline.nodes > most:
            holders = f"{row_max(stages)} holders of each of {stages} stages in each of {cells} cells"
            raise ValueError(f"pipeline.nodes is over {most}, which is {holders}")
        cells = min(cells, self.pipeline.nodes)
        names = max(self.pipeline.nodes, cells * stages) + GENESIS_CELL_NAMES * cells
        if names > GENESIS_NAMES_MAX:
            what = "pipeline.nodes, or cells times stages, plus 10 for each cell"
            raise ValueError(f"{what}, is over the {GENESIS_NAMES_MAX} names that a founding can hold")
        return self

    @property
    def digest(self) -> str:
        """Hex BLAKE2b-128 of the canonical job: equal digests mean equal jobs."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def parse_job(text: str, where: str = "job.toml") -> Job:
    """Parse the text of a job file. Raises JobError with one sentence."""
    try:
        return Job.model_validate(tomllib.loads(text))
    except ValidationError as error:  # a ValueError, too
        raise JobError(f"{where}: {what_is_wrong(error)}") from None
    except ValueError as error:
        raise JobError(f"{where} is not valid TOML: {error}") from None
    except RecursionError:
        raise JobError(f"{where} is not valid TOML: it nests too deeply") from None


_NEEDS = {
    "extra_forbidden": "there is no such field",
    "int_type": "needs a whole number",
    "int_parsing_size": "is too large",
    "float_type": "needs a number",
    "bool_type": "needs true or false",
    "string_type": "needs text in quotes",
    "string_pattern_mismatch": "needs 1 to 48 of the characters a-z, 0-9 and -, the first no -",
    "finite_number": "needs a finite number",
    "literal_error": "needs {expected}",
    "greater_than_equal": "needs at least {ge}",
    "greater_than": "needs more than {gt}",
    "less_than_equal": "needs at most {le}",
    "less_than": "needs less than {lt}",
    "tuple_type": "needs two numbers, as [0.9, 0.95]",
    "too_long": "needs two numbers, as [0.9, 0.95]",
    "missing": "needs two numbers, as [0.9, 0.95]",
    "model_type": "needs fields of its own, below a line [{class_name}]",
    "value_error": "{error}",
}
"""What a field needs, by the kind of the error. Only the two betas can be too many or missing."""


def what_is_wrong(error: ValidationError) -> str:
    """The first mistake as a field and what it needs, in words of a person who never saw a library."""
    first = error.errors(include_url=False)[0]
    place = first["loc"][:-1] if first["type"] == "missing" else first["loc"]
    field = ".".join(str(part) for part in place) or "the job"
    context = {**first.get("ctx", {}), "class_name": field}
    return f"{field}: {_NEEDS[first['type']].format(**context) if first['type'] in _NEEDS else first['msg']}"


def load_job(path: Path) -> Job:
    """Read and parse a job file. Raises JobError with one sentence."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise JobError(f"cannot read {path}: it is not UTF-8 text") from None
    except OSError as error:
        raise JobError(f"cannot read {path}: {error.strerror}") from None
    return parse_job(text, str(path))


def dump_job(job: Job) -> str:
    """The job as TOML, every value written out, parsed back to an equal job."""
    fields = job.model_dump(mode="json")
    lines = [f"{key} = {_toml(value)}" for key, value in fields.items() if not isinstance(value, dict)]
    for section, values in fields.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]"]
            lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    # JSON text is TOML text for the scalars and flat lists a job consists of.
    return json.dumps(value)
