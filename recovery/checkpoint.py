"""State to disk and back, one directory per stage, so that any node writes what it holds.

    DIR/stage-3/iter-000100-round-2/tensors.safetensors
                                    manifest.json     what it is, and the hash of every file

One iteration may be written twice: after its step, and again after the outer round that follows, by
whoever leaves then or at the end of a job. Those are two states, which never stand for one another.

A checkpoint appears under its name only when all of it is on the disk; whatever is found wrong
later is refused by hash and the one before it is used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 1
KEPT_BESIDES = 1
"""Checkpoints of a stage that are kept besides the one just written."""
_TENSORS = "tensors.safetensors"
_MANIFEST = "manifest.json"
_WRITING, _REPLACED = ".writing-", ".replaced-"
_NAMED = re.compile(rf"(?:{re.escape(_REPLACED)})?iter-(\d{{1,15}})-round-(\d{{1,15}})")

Meta = Mapping[str, int | float | str]
"""What is said of a checkpoint. `round` (0 if it is missing): outer rounds that its state has seen."""
At = tuple[int, int]
"""(iteration, round): what a state was written after; the larger is the newer."""


class CheckpointError(Exception):
    """A checkpoint that could not be written or read. The text is one sentence that says why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose hashes were right when it was found."""

    path: Path
    at: At
    meta: Meta

    @property
    def iteration(self) -> int:
        """Optimizer steps that its state has seen."""
        return self.at[0]


@dataclass(frozen=True, slots=True)
class Refused:
    """A checkpoint that is not used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Search:
    """What was found, None if nothing is whole, and what was passed over on the way to it."""

    found: Checkpoint | None
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True)
class Assembly:
    """A whole model: one checkpoint per stage, all of one iteration and round of one cell."""

    iteration: int
    round: int
    stages: tuple[Checkpoint, ...]


def stage_directory(root: Path, stage: int) -> Path:
    """Where the checkpoints of a stage are."""
    return root / f"stage-{stage}"


def write_checkpoint(
    directory: Path,
    iteration: int,
    tensors: Mapping[str, Tensor],
    meta: Meta,
    protect: At | None = None,
) -> Path:
    """Write a checkpoint into a stage's directory and keep one besides: `protect`, or else the newest.

    Atomic: written and synced under another name, then renamed, so neither a crash nor a full
    disk leaves half of it or harms an older one. A directory has one writer at a time. A
    checkpoint of the same iteration and round is replaced. protect: `newest_common` of the stages that are
    written together, asked before the first; a stage alone cannot know that the others of its
    newest iterations were never written. Raises CheckpointError.
    """
    at = (iteration, _round(meta))
    target = directory / f"iter-{at[0]:06d}-round-{at[1]}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(directory)
        draft = directory / f"{_WRITING}{target.name}"
        draft.mkdir()
        try:
            _fill(draft, iteration, tensors, meta)
            _put_in_place(draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        others = [entry for entry in _candidates(directory) if entry[1] != target]
        for _, old in sorted(others, key=lambda entry: entry[0] != protect)[KEPT_BESIDES:]:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write checkpoint {target}: {_why(error)}") from error
    return target


def newest_common(root: Path, stages: Iterable[int], job: str) -> At | None:
    """The newest iteration and round of which all these stages have a checkpoint of one cell of this job.

    What a whole would be made of, going by the manifests: tensors are not looked at.
    """
    common: set[tuple[At, str]] | None = None
    for stage in stages:
        found = set()
        for at, path in _listed(stage_directory(root, stage), {}):
            with suppress(CheckpointError):  # what cannot be read is not there
                _, meta, _ = _read_manifest(path)
                if meta.get("job") == job:
                    found.add((at, str(meta.get("cell", ""))))
        common = found if common is None else common & found
    return max((at for at, _ in common or ()), default=None)


def newest_checkpoint(directory: Path, iteration: int | None = None, rounds: int | None = None) -> Search:
    """The newest whole checkpoint of a stage, of this iteration and after so many rounds where given.

    Those with a wrong hash are refused, with reasons.
    """
    refused: dict[Path, Refused] = {}
    for at, path in _listed(directory, refused):
        if iteration not in (None, at[0]) or rounds not in (None, at[1]):
            continue
        try:
            return Search(_verified(path), tuple(refused.values()))
        except CheckpointError as error:
            refused[path] = Refused(path, str(error))
    return Search(None, tuple(refused.values()))


def read_checkpoint(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU. Raises CheckpointError."""
    try:
        return load_file(checkpoint.path / _TENSORS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read checkpoint {checkpoint.path}: {_why(error)}") from error


def assemble(roots: Sequence[Path], stages: int) -> tuple[Assembly | None, tuple[Refused, ...]]:
    """The newest iteration and round of which every stage is somewhere under `roots`, whole.

    roots are the checkpoint directories of any number of nodes. Stages are put together only
    within one cell (`meta["cell"]`), because cells differ between rounds. Returns None if nothing
    is complete, and in either case what was refused on the way.
    """
    refused: dict[Path, Refused] = {}
    copies = _copies_by_cell(roots, stages, refused)
    every = {(at, cell) for at, cell, _ in copies}
    for at, cell in sorted(every, key=lambda key: (-key[0][0], -key[0][1], key[1])):
        chosen = (_first_whole(copies.get((at, cell, s), ()), refused) for s in range(stages))
        whole = tuple(checkpoint for checkpoint in chosen if checkpoint is not None)
        if len(whole) == stages:
            return Assembly(*at, whole), tuple(refused.values())
    return None, tuple(refused.values())


def _copies_by_cell(
    roots: Sequence[Path], stages: int, refused: dict[Path, Refused]
) -> dict[tuple[At, str, int], list[Path]]:
    """Candidates by (iteration and round, cell, stage); their tensors are not looked at yet."""
    copies: dict[tuple[At, str, int], list[Path]] = {}
    for stage in range(stages):
        for at, path in (c for root in roots for c in _listed(stage_directory(root, stage), refused)):
            try:
                _, meta, _ = _read_manifest(path)
            except CheckpointError as error:
                refused[path] = Refused(path, str(error))
                continue
            copies.setdefault((at, str(meta.get("cell", "")), stage), []).append(path)
    return copies


def _listed(directory: Path, refused: dict[Path, Refused]) -> list[tuple[At, Path]]:
    """`_candidates`; a directory that cannot be looked through has none, and is among the refused."""
    try:
        return _candidates(directory)
    except CheckpointError as error:
        refused[directory] = Refused(directory, str(error))
        return []


def _first_whole(paths: Iterable[Path], refused: dict[Path, Refused]) -> Checkpoint | None:
    for path in paths:
        try:
            return _verified(path)
        except CheckpointError as error:
            refused[path] = Refused(path, str(error))
    return None


def _fill(draft: Path, iteration: int, tensors: Mapping[str, Tensor], meta: Meta) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, draft / _TENSORS)
    said = {"iteration": iteration, "meta": dict(meta), "files": {_TENSORS: _file_hash(draft / _TENSORS)}}
    manifest = {"format": FORMAT, "said": said, "hash": _said_hash(said)}
    (draft / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in (draft / _TENSORS, draft / _MANIFEST, draft):
        _sync(path)


def _put_in_place(draft: Path, target: Path) -> None:
    """Rename the draft to its name; an older checkpoint of that name steps aside first."""
    if target.exists():
        os.replace(target, target.with_name(_REPLACED + target.name))
    os.replace(draft, target)
    _sync(target.parent)
    shutil.rmtree(target.with_name(_REPLACED + target.name), ignore_errors=True)


def _clear_leftovers(directory: Path) -> None:
    """Remove what a crash left half done, and put back what it had moved aside."""
    for path in directory.glob(f"{_WRITING}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob(f"{_REPLACED}*"):
        home = path.with_name(path.name.removeprefix(_REPLACED))
        if home.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.replace(path, home)


def _candidates(directory: Path) -> list[tuple[At, Path]]:
    """(iteration and round, path) of what is named so, newest first; one moved aside comes last.

    Raises CheckpointError if the disk does not say what there is; a directory that is none has nothing.
    """
    try:
        paths = list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be looked through: {_why(error)}") from error
    named = ((_NAMED.fullmatch(path.name), path) for path in paths)
    return sorted((((int(match[1]), int(match[2])), path) for match, path in named if match), reverse=True)


def _round(meta: Meta) -> int:
    return int(meta.get("round", 0))


def _read_manifest(path: Path) -> tuple[At, Meta, dict[str, str]]:
    """(iteration and round, meta, hash of each file). Raises CheckpointError if it is not as written."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {manifest['format']!r}, this version reads {FORMAT}")
        said = manifest["said"]
        if manifest["hash"] != _said_hash(said):
            raise CheckpointError(f"{path / _MANIFEST} does not match its own hash")
        meta = dict(said["meta"])
        return (int(said["iteration"]), _round(meta)), meta, dict(said["files"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path / _MANIFEST} cannot be read: {_why(error)}") from error


def _verified(path: Path) -> Checkpoint:
    at, meta, files = _read_manifest(path)
    if set(files) != {_TENSORS}:
        raise CheckpointError(f"{path / _MANIFEST} names other files than {_TENSORS}")
    try:
        found = _file_hash(path / _TENSORS)
    except OSError as error:
        raise CheckpointError(f"{path / _TENSORS} cannot be read: {_why(error)}") from error
    if found != files[_TENSORS]:
        raise CheckpointError(f"{path / _TENSORS} does not match its hash")
    return Checkpoint(path, at, meta)


def _said_hash(said: Mapping[str, object]) -> str:
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=32).hexdigest()


def _file_hash(path: Path) -> str:
    digest = blake2b(digest_size=32)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Have a file, or a directory's names, on the disk and not only in memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
