"""Text to tokens, and token windows as a pure function of a position.

A corpus is the same on every node that finds the same text: documents are put in the order of
their hash, so names, folders and file systems do not matter, and the tail that is held out for
validation is a fair sample. `digest` proves that two nodes agree.

Byte tokens: a token is a byte of UTF-8, and 0, which text does not contain, ends a document.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from swarm.job import DataSection
from swarm.messages import first_name_of

BYTE_VOCAB = 256
END_OF_DOCUMENT = 0
"""The byte token between documents. Bytes 0 inside a document are dropped."""

VOCAB_MULTIPLE = 64
"""A tokenizer's vocabulary is rounded up to this: matrix kernels like it, spare ids stay unused."""

_END_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[EOS]")
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
Tokens = npt.NDArray[Any]


class DataError(ValueError):
    """Data that cannot be used. The text is one sentence for the person who named it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Tokens of a job, split once and for all.

    train, validation: one-dimensional uint8, uint16 or int32, never written to.
    vocab: token ids are below it. digest: hex BLAKE2b-128 of all tokens, the split and the vocab.
    """

    train: Tokens
    validation: Tokens
    vocab: int
    digest: str


# --- documents -------------------------------------------------------------------------------


def _library_files() -> list[Path]:
    """The .py files of Python's standard library, without tests and what depends on the machine."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        generated = parts[0].startswith(("config-", "_sysconfigdata")) or path.is_symlink()
        if not generated and _NOT_LIBRARY.isdisjoint(parts):
            found.append(path)
    return found


def _files(path: str) -> list[Path]:
    if path == "stdlib":
        return _library_files()
    where = Path(path).expanduser()
    if where.is_dir():
        return [file for file in where.rglob("*") if file.suffix in _READERS and file.is_file()]
    if where.is_file():
        return [where]
    return [file for name in glob.glob(str(where), recursive=True) if (file := Path(name)).is_file()]


def _read_text(path: Path) -> Iterator[bytes]:
    yield path.read_bytes()


def _read_jsonl(path: Path) -> Iterator[bytes]:
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise DataError(f"line {number} of {path} has no field `text` with text in it")
        yield row["text"].encode("utf-8", "replace")


def _read_parquet(path: Path) -> Iterator[bytes]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"reading {path} needs pyarrow; run: pip install 'farflung[parquet]'") from None
    file = parquet.ParquetFile(path)
    if "text" not in file.schema_arrow.names:
        raise DataError(f"{path} has no column `text`")
    column = file.read(columns=["text"]).column("text")
    for value in (value.as_py() for value in column if value.is_valid):
        if not isinstance(value, str):
            raise DataError(f"column `text` of {path} holds {column.type}, not text")
        yield value.encode("utf-8", "replace")


_READERS: dict[str, Callable[[Path], Iterable[bytes]]] = {
    ".txt": _read_text,
    ".py": _read_text,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def find_texts(data: DataSection) -> list[Path]:
    """The files of a job's text, unread. Raises DataError if there is none, or one cannot be read."""
    try:
        files = _files(data.path)
    except (OSError, RuntimeError, ValueError):  # a name too long, of nobody's home, with a zero in it
        files = []
    if not files:
        raise DataError(f"found no text at {data.path}; set data.path to a file, glob or directory")
    for path in files:
        if path.suffix not in _READERS:
            raise DataError(f"cannot read {path}: data.path takes {', '.join(_READERS)}")
        if not os.access(path, os.R_OK):
            raise DataError(f"cannot read {path}: Permission denied; check data.path")
    return files


def _documents(data: DataSection) -> list[bytes]:
    """All documents in the order of their hash. Raises DataError."""
    documents: list[bytes] = []
    for path in find_texts(data):
        try:
            documents += _READERS[path.suffix](path)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}; check data.path") from None
        except DataError:
            raise
        except (ValueError, NotImplementedError, RecursionError) as error:
            raise DataError(f"{path} is not valid {path.suffix[1:]}: {error}") from None
    if not documents:
        raise DataError(f"there are no documents in {data.path}; set data.path to text")
    documents.sort(key=lambda text: hashlib.blake2b(text, digest_size=16).digest())
    return documents


# --- tokens ----------------------------------------------------------------------------------


def _byte_tokens(documents: list[bytes]) -> tuple[Tokens, int]:
    ended = (part for text in documents for part in (text.replace(b"\0", b""), b"\0"))
    return np.frombuffer(b"".join(ended), dtype=np.uint8), BYTE_VOCAB


def _tokenizer_tokens(documents: list[bytes], name: str) -> tuple[Tokens, int]:
    """Tokens by a file of the `tokenizers` library, documents ended by its end token if it has one."""
    from tokenizers import Tokenizer

    if not Path(name).is_file():
        raise DataError(f"there is no tokenizer file {name}; set data.tokenizer to one or to bytes")
    try:
        tokenizer = Tokenizer.from_file(name)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise DataError(f"{name} is not a tokenizer file: {error}") from None
    ids, entries = 1 + max(tokenizer.get_vocab().values(), default=0), tokenizer.get_vocab_size()
    if ids > 2 * max(entries, VOCAB_MULTIPLE):
        raise DataError(f"{name} has ids up to {ids - 1} for {entries} tokens: number them without gaps")
    vocab = -(-ids // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    dtype = np.uint16 if vocab <= 1 << 16 else np.int32
    ends = [end for end in map(tokenizer.token_to_id, _END_NAMES) if end is not None][:1]
    texts = [text.decode("utf-8", "replace") for text in documents]
    try:
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise DataError(f"{name} cannot encode the text: {error}") from None
    return np.concatenate([np.array(each.ids + ends, dtype=dtype) for each in encoded]), vocab


def load_corpus(data: DataSection) -> Corpus:
    """Read, tokenize and split a job's text; under a second for the standard library.

    Raises DataError, one sentence, for what cannot be read or is too short to train on.
    """
    documents = _documents(data)
    bytewise = data.tokenizer == "bytes"
    tokens, vocab = _byte_tokens(documents) if bytewise else _tokenizer_tokens(documents, data.tokenizer)
    tokens.setflags(write=False)
    held_out = int(len(tokens) * data.held_out)
    if held_out <= data.sequence or len(tokens) - held_out <= data.sequence:
        raise DataError(
            f"{data.path} holds {len(tokens)} tokens, of which {held_out} are held out: too few for "
            f"windows of {data.sequence}; add text or lower data.sequence"
        )
    hashed = hashlib.blake2b(f"{vocab}/{held_out}/{tokens.dtype}".encode(), digest_size=16)
    hashed.update(tokens.data)
    cut = len(tokens) - held_out
    return Corpus(train=tokens[:cut], validation=tokens[cut:], vocab=vocab, digest=hashed.hexdigest())


# --- windows ---------------------------------------------------------------------------------


def window(
    corpus: Corpus, seed: int, cell: str, iteration: int, microbatch: int, sequences: int, length: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets, both int64 [sequences, length], of one microbatch of the training text.

    A pure function of its arguments: whoever takes a cell over draws what its predecessor
    would have drawn, and nothing about positions is ever stored. So does the cell of a job that
    was founded again.
    """
    position = f"{seed}/{first_name_of(cell)}/{iteration}/{microbatch}".encode()
    drawn = hashlib.shake_128(position).digest(8 * sequences)
    offsets = np.frombuffer(drawn, dtype="<u8") % np.uint64(len(corpus.train) - length)
    return _cut(corpus.train, offsets.astype(np.int64), length)


def validation_windows(corpus: Corpus, count: int, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, both int64 [count, length], evenly spread over the held-out text."""
    last = len(corpus.validation) - length - 1
    assert last >= 0, f"windows of {length} do not fit the held-out text"
    offsets = np.arange(count, dtype=np.int64) * last // max(1, count - 1)
    return _cut(corpus.validation, offsets, length)


def _cut(tokens: Tokens, offsets: npt.NDArray[np.int64], length: int) -> tuple[Tensor, Tensor]:
    rows = tokens[offsets[:, None] + np.arange(length + 1)].astype(np.int64)
    windows = torch.from_numpy(rows)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
