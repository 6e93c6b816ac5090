import math
import struct
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transport.codecs import CODECS, DTYPES, INT8_BLOCK, CodecError, decode, encode, encoded_bytes
from transport.wire import TensorSpec

FLOATS = ("float32", "bfloat16", "float16")
shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple)
finite = st.floats(-(2.0**100), 2.0**100, width=32)
largest = torch.finfo(torch.float32).max
EDGES = (65504.0, -65504.0, 65519.0, largest, -largest, torch.finfo(torch.bfloat16).max, 1e-45, 6e-8)
LARGEST_SCALE = struct.pack("<f", torch.nextafter(torch.tensor(largest / 127), torch.tensor(0.0)).item())
REFUSALS = ("values are not finite", "a scale is negative", "a level is -128")
LARGEST = struct.pack("<f", largest), b"\x7f\x7f", b"\x7b\xff", b"\x80" * 4, b"\xff\xff\x7f\x7f"
hostile = st.one_of(
    st.binary(min_size=512, max_size=512),
    st.lists(st.one_of(st.sampled_from(LARGEST), st.binary(min_size=4, max_size=4)), min_size=1).map(
        b"".join
    ),
)
"""Anything, and runs of what is largest in some dtype."""


def round_trip(tensor: torch.Tensor, codec: str) -> torch.Tensor:
    spec, buffer = encode("x", tensor, codec)
    # Through bytes: what arrives is read-only and shares nothing with the sender.
    return decode(spec, bytes(buffer))


def allowed_error(x: torch.Tensor, codec: str) -> torch.Tensor:
    """Elementwise bound on |decoded - x|."""
    if codec == "raw":
        return torch.zeros_like(x)
    if codec == "bf16":
        return x.abs() * 2.0**-8 + 1e-37
    flat = torch.nn.functional.pad(x.reshape(-1), (0, -x.numel() % INT8_BLOCK))
    absmax = flat.view(-1, INT8_BLOCK).abs().amax(1, keepdim=True)
    bound = (absmax * (0.5001 / 127) + 1e-37).expand(-1, INT8_BLOCK)
    return bound.reshape(-1)[: x.numel()].view(x.shape)


@pytest.mark.parametrize("codec", CODECS)
class TestEveryCodec:
    @given(values=st.lists(finite, max_size=300))
    def test_error_is_bounded(self, codec, values):
        x = torch.tensor(values, dtype=torch.float32)
        assert ((round_trip(x, codec) - x).abs() <= allowed_error(x, codec)).all()

    @given(shape=shapes, dtype=st.sampled_from(FLOATS))
    def test_shape_and_dtype_come_back_and_bytes_are_as_announced(self, codec, shape, dtype):
        x = torch.ones(shape, dtype=DTYPES[dtype])
        spec, buffer = encode("x", x, codec)
        assert memoryview(buffer).nbytes == spec.nbytes == encoded_bytes(shape, dtype, codec)
        y = decode(spec, buffer)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)

    @pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e-44])
    def test_zero_constant_and_tiny_blocks_survive(self, codec, value):
        x = torch.full((3, 100), value)
        assert torch.allclose(round_trip(x, codec), x, rtol=1e-6, atol=1e-40)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("where", [0, 128, 299])
    def test_sender_refuses_what_is_not_finite(self, codec, value, where):
        x = torch.zeros(300)
        x[where] = value
        with pytest.raises(CodecError, match="finite"):
            encode("x", x, codec)

    @pytest.mark.parametrize("excess", [-1, 1, 1 << 40])
    def test_wrong_declared_size_is_refused(self, codec, excess):
        # model_construct: what a spec would be if the wire's own check were missing.
        nbytes = encoded_bytes((64,), "float32", codec)
        spec = TensorSpec.model_construct(
            name="x", shape=(64,), dtype="float32", codec=codec, nbytes=nbytes + excess
        )
        with pytest.raises(CodecError, match="declares"):
            decode(spec, bytes(nbytes))

    def test_buffer_of_another_size_is_refused(self, codec):
        spec, buffer = encode("x", torch.ones(64), codec)
        with pytest.raises(CodecError, match="has"):
            decode(spec, bytes(buffer)[:-1])

    @given(
        data=hostile, shape=st.sampled_from([(512,), (128,), (2, 64), (1,)]), dtype=st.sampled_from(FLOATS)
    )
    def test_any_bytes_decode_to_finite_values_or_are_refused(self, codec, data, shape, dtype):
        nbytes = encoded_bytes(shape, dtype, codec)
        spec = TensorSpec(name="x", shape=shape, dtype=dtype, codec=codec, nbytes=nbytes)
        try:
            assert torch.isfinite(decode(spec, (data * (nbytes // len(data) + 1))[:nbytes])).all()
        except CodecError as error:
            assert str(error) in REFUSALS  # noqa: PT017 - refusal is one of two right answers

    @given(
        values=st.lists(st.one_of(st.floats(width=16), st.sampled_from(EDGES)), max_size=200),
        dtype=st.sampled_from(FLOATS),
    )
    def test_what_is_encoded_at_all_comes_back_finite(self, codec, values, dtype):
        x = torch.tensor(values, dtype=torch.float32).to(DTYPES[dtype])
        try:
            spec, buffer = encode("x", x, codec)
        except CodecError as error:
            assert "finite" in str(error)  # noqa: PT017 - refusal is one of two right answers
            return
        assert torch.isfinite(decode(spec, bytes(buffer))).all()

    @given(shape=st.lists(st.integers(0, 1 << 40), min_size=1, max_size=6).map(tuple))
    def test_huge_shapes_are_refused_before_allocation(self, codec, shape):
        spec = TensorSpec.model_construct(name="x", shape=shape, dtype="float32", codec=codec, nbytes=0)
        if math.prod(shape) > 0:
            with pytest.raises(CodecError):
                decode(spec, b"")
        else:
            try:
                assert decode(spec, b"").shape == shape
            except CodecError as error:
                assert "beyond" in str(error)  # noqa: PT017 - empty, but its strides overflow

    def test_non_contiguous_and_scalar_tensors_travel(self, codec):
        x = torch.arange(12.0).view(3, 4).t()
        assert torch.allclose(round_trip(x, codec), x, atol=0.05)
        assert round_trip(torch.tensor(2.0), codec).item() == 2.0

    def test_tensors_that_need_gradients_travel(self, codec):
        assert round_trip(torch.ones(4, requires_grad=True), codec).requires_grad is False


def test_raw_shares_memory_both_ways():
    x = torch.zeros(4)
    spec, buffer = encode("x", x, "raw")
    y = decode(spec, buffer)
    x[2] = 5.0
    assert y.tolist() == [0.0, 0.0, 5.0, 0.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_raw_is_exact_for_every_dtype(dtype):
    x = torch.arange(100).to(DTYPES[dtype])
    assert torch.equal(round_trip(x, "raw"), x)


def test_read_only_buffers_decode_without_a_warning():
    spec, buffer = encode("x", torch.ones(4), "raw")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(spec, memoryview(bytes(buffer))).sum() == 4


def test_unaligned_buffers_decode():
    x = torch.randn(300, generator=torch.Generator().manual_seed(0))
    spec, buffer = encode("x", x, "raw")
    assert torch.equal(decode(spec, memoryview(b"." + bytes(buffer))[1:]), x)


def test_int8_quarters_and_bf16_halves_the_bytes():
    sizes = {codec: encoded_bytes((4, 256, 128), "float32", codec) for codec in CODECS}
    assert sizes == {"raw": 524_288, "bf16": 262_144, "int8": 135_168}


def test_int8_outlier_spoils_only_its_own_block():
    x = torch.full((2 * INT8_BLOCK,), 0.01)
    x[0] = 1000.0
    y = round_trip(x, "int8")
    assert y[1] == 0
    assert torch.allclose(y[INT8_BLOCK:], x[INT8_BLOCK:])


def test_int8_is_stable_when_encoded_again():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    once = round_trip(x, "int8")
    assert torch.allclose(round_trip(once, "int8"), once, rtol=1e-6)


def test_largest_floats_do_not_overflow_in_int8():
    x = torch.tensor([largest, -largest, 0.0])
    assert torch.allclose(round_trip(x, "int8"), x, rtol=1e-6)


def test_largest_floats_round_to_infinity_in_bf16_and_are_refused():
    with pytest.raises(CodecError, match="finite"):
        encode("x", torch.tensor([largest]), "bf16")


def int8_spec(dtype="float32"):
    return TensorSpec(name="x", shape=(2,), dtype=dtype, codec="int8", nbytes=6)


def test_an_int8_level_that_no_encoder_writes_is_refused():
    """-128 times the largest scale that passes is minus infinity."""
    with pytest.raises(CodecError, match="-128"):
        decode(int8_spec(), LARGEST_SCALE + b"\x80\x00")
    assert torch.isfinite(decode(int8_spec(), LARGEST_SCALE + b"\x81\x7f")).all()


@pytest.mark.parametrize("scale", [-1.0, -0.0, -1e-45])
def test_a_negative_int8_scale_is_refused(scale):
    with pytest.raises(CodecError, match="negative"):
        decode(int8_spec(), struct.pack("<f", scale) + b"\x01\x01")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_int8_values_too_large_for_their_dtype_are_refused(dtype):
    with pytest.raises(CodecError, match="finite"):
        decode(int8_spec(dtype), LARGEST_SCALE + b"\x7f\x7f")


def test_bf16_values_too_large_for_float16_are_refused_at_both_ends():
    spec = TensorSpec(name="x", shape=(1,), dtype="float16", codec="bf16", nbytes=2)
    with pytest.raises(CodecError, match="finite"):
        decode(spec, b"\x80\x47")  # 65536
    with pytest.raises(CodecError, match="finite"):
        encode("x", torch.tensor([65504.0], dtype=torch.float16), "bf16")


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_lossy_codecs_refuse_integers(codec):
    with pytest.raises(CodecError, match="does not encode"):
        encode("x", torch.arange(4), codec)


def test_unknown_codec_and_dtype_are_refused():
    with pytest.raises(CodecError, match="unknown codec"):
        encode("x", torch.ones(1), "zip")
    with pytest.raises(CodecError, match="does not travel"):
        encode("x", torch.ones(1, dtype=torch.float64), "raw")
    with pytest.raises(CodecError, match="unknown dtype"):
        encoded_bytes((1,), "float64", "raw")
