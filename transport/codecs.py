"""Tensor codecs: how a tensor becomes the bytes of one message buffer, and back.

`encode` declares what it made in a `TensorSpec`; `decode` believes nothing of a spec until
its size has been checked against its shape. Decoded tensors may be views of the received
buffer, so whoever gets one never writes to it.

A codec is one entry in `CODECS`: the size of its output, an encoder and a decoder.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from transport.wire import ITEM_BYTES, Buffer, DType, TensorSpec

INT8_BLOCK = 128
"""Consecutive values that share one scale. Smaller follows outliers closer, costs more bytes."""

DTYPES: dict[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int32": torch.int32,
    "int64": torch.int64,
}
DTYPE_NAMES: dict[torch.dtype, DType] = {dtype: name for name, dtype in DTYPES.items()}


class CodecError(ValueError):
    """A tensor that cannot be sent, or a buffer that is not what its spec declares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """One way to encode.

    nbytes: (n, bytes of one value) to exact encoded size, for sender and receiver alike.
    encode: flat contiguous CPU tensor [n] to the flat tensor whose memory travels.
    decode: buffer of that size, n and dtype to flat tensor [n].
    lossy: takes floating point only.

    encode and decode raise CodecError for values that are not finite in the tensor's own dtype.
    What one encoder may write every decoder takes: `encode` refuses what would not come back.
    """

    nbytes: Callable[[int, int], int]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Buffer, int, torch.dtype], Tensor]
    lossy: bool


def encoded_bytes(shape: Sequence[int], dtype: str, codec: str) -> int:
    """Exact size of an encoded tensor. Raises CodecError for what no buffer can be."""
    known = CODECS.get(codec)
    if known is None:
        raise CodecError(f"unknown codec {codec[:32]!r}")
    if dtype not in DTYPES:
        raise CodecError(f"unknown dtype {dtype[:32]!r}")
    if known.lossy and not DTYPES[dtype].is_floating_point:
        raise CodecError(f"{codec} does not encode {dtype}")
    # Torch computes strides of an empty tensor too, and they must fit 64 bits.
    if prod(max(size, 1) for size in shape) >= 1 << 60:
        raise CodecError("shape is beyond any memory")
    return known.nbytes(prod(shape), ITEM_BYTES[dtype])


def encode(name: str, tensor: Tensor, codec: str) -> tuple[TensorSpec, Buffer]:
    """Encode a finite tensor of any device under `name`; raw CPU memory is shared, not copied.

    Whoever sends shared memory leaves it alone until it has been sent. Raises CodecError for an
    unknown codec, a dtype the codec does not take, and values that are not finite.
    """
    dtype = DTYPE_NAMES.get(tensor.dtype)
    if dtype is None:
        raise CodecError(f"{name}: {tensor.dtype} does not travel")
    shape = tuple(tensor.shape)
    nbytes = encoded_bytes(shape, dtype, codec)
    encoded = CODECS[codec].encode(tensor.detach().cpu().contiguous().view(-1))
    buffer: memoryview = encoded.view(torch.uint8).numpy().data
    assert buffer.nbytes == nbytes, f"{codec} made {buffer.nbytes} bytes, not {nbytes}"
    return TensorSpec(name=name, shape=shape, dtype=dtype, codec=codec, nbytes=nbytes), buffer


def decode(spec: TensorSpec, buffer: Buffer) -> Tensor:
    """The tensor of a received buffer, on the CPU, not to be written to; raw shares its memory.

    Raises CodecError, before anything is allocated, unless codec, shape, dtype, declared and
    actual bytes agree, and then for values that are not finite or that no `encode` writes.
    """
    nbytes = encoded_bytes(spec.shape, spec.dtype, spec.codec)
    actual = memoryview(buffer).nbytes
    if not nbytes == spec.nbytes == actual:
        raise CodecError(f"{spec.name}: needs {nbytes} bytes, declares {spec.nbytes}, has {actual}")
    dtype = DTYPES[spec.dtype]
    if nbytes == 0:
        return torch.empty(spec.shape, dtype=dtype)
    return CODECS[spec.codec].decode(buffer, prod(spec.shape), dtype).view(spec.shape)


def _check_finite(flat: Tensor) -> None:
    if flat.numel() and flat.is_floating_point():
        # One pass and no temporary, unlike isfinite().all(); NaN makes both ends NaN.
        low, high = flat.aminmax()
        if not (isfinite(low.item()) and isfinite(high.item())):
            raise CodecError("values are not finite")


# --- raw and bf16 ----------------------------------------------------------------------------


def _encode_raw(flat: Tensor) -> Tensor:
    _check_finite(flat)
    return flat


def _decode_raw(buffer: Buffer, count: int, dtype: torch.dtype) -> Tensor:
    flat = torch.frombuffer(buffer, dtype=dtype, count=count)
    _check_finite(flat)
    return flat


def _encode_bf16(flat: Tensor) -> Tensor:
    # Checked after rounding: the largest float32 values round to infinity, and the largest
    # float16 values to a bfloat16 that is infinity to their receiver.
    encoded = _encode_raw(flat.to(torch.bfloat16))
    _narrowed(encoded, flat.dtype)
    return encoded


def _decode_bf16(buffer: Buffer, count: int, dtype: torch.dtype) -> Tensor:
    return _narrowed(_decode_raw(buffer, count, torch.bfloat16), dtype)


def _narrowed(flat: Tensor, dtype: torch.dtype) -> Tensor:
    """Finite values in another dtype, checked again where they may have become too large for it."""
    converted = flat.to(dtype)
    if torch.finfo(dtype).max < torch.finfo(flat.dtype).max:
        _check_finite(converted)
    return converted


# --- int8: [scales float32, one per block][values int8] --------------------------------------


def _blocks(count: int) -> int:
    return -(-count // INT8_BLOCK)


def _as_blocks(flat: Tensor) -> Tensor:
    """float32 [blocks, INT8_BLOCK], a fresh tensor only where the last block needs zeros."""
    missing = _blocks(flat.numel()) * INT8_BLOCK - flat.numel()
    flat = F.pad(flat, (0, missing)) if missing else flat
    return flat.to(torch.float32).view(-1, INT8_BLOCK)


def _encode_int8(flat: Tensor) -> Tensor:
    """Absolute maximum of a block to 127, round to nearest: the error is at most half a scale."""
    values = _as_blocks(flat)
    scales = torch.linalg.vector_norm(values, ord=torch.inf, dim=1).div_(127)
    if not torch.isfinite(scales).all():
        raise CodecError("values are not finite")
    # The division may have rounded up, and then 127 scales of the largest float overflow.
    overflows = torch.isinf(scales * 127)
    scales = torch.where(overflows, torch.nextafter(scales, torch.zeros_like(scales)), scales)
    # A block of zeros (or of numbers too small for a scale) divides by one and stays zero.
    divisors = torch.where(scales == 0, 1.0, scales)[:, None]
    levels = (values / divisors).round_().clamp_(-127, 127).to(torch.int8)
    return torch.cat((scales.view(torch.uint8), levels.view(-1)[: flat.numel()].view(torch.uint8)))


def _decode_int8(buffer: Buffer, count: int, dtype: torch.dtype) -> Tensor:
    blocks = _blocks(count)
    scales = torch.frombuffer(buffer, dtype=torch.float32, count=blocks)
    _check_finite(scales * 127)
    if torch.signbit(scales).any():
        raise CodecError("a scale is negative")
    levels = torch.frombuffer(buffer, dtype=torch.int8, count=count, offset=4 * blocks)
    if levels.min().item() < -127:
        raise CodecError("a level is -128")
    values = _as_blocks(levels) * scales[:, None]
    return _narrowed(values.view(-1)[:count], dtype)


CODECS: dict[str, Codec] = {
    "raw": Codec(
        nbytes=lambda count, item: count * item,
        encode=_encode_raw,
        decode=_decode_raw,
        lossy=False,
    ),
    "bf16": Codec(
        nbytes=lambda count, _item: count * 2,
        encode=_encode_bf16,
        decode=_decode_bf16,
        lossy=True,
    ),
    "int8": Codec(
        nbytes=lambda count, _item: 4 * _blocks(count) + count,
        encode=_encode_int8,
        decode=_decode_int8,
        lossy=True,
    ),
}


def _spend_read_only_warning() -> None:
    """Torch warns once per process that a buffer is read-only. Nobody writes to ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.frombuffer(b"0", dtype=torch.uint8)


_spend_read_only_warning()
