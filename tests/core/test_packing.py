"""bf16 and int8: what one message loses, and that nothing is lost over time."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rfast_zmq.core.packing import BLOCK, PACKINGS, Packer, pack, packed_bytes, unpack
from rfast_zmq.errors import UsageError
from rfast_zmq.settings import Settings

SIZES = st.one_of(st.integers(1, 20), st.sampled_from([255, 256, 257, 512, 700]))
PACKED = [p for p in PACKINGS if p != "float32"]


@st.composite
def vectors(draw: st.DrawFn) -> Tensor:
    size, seed = draw(SIZES), draw(st.integers(0, 2**31))
    exponent = draw(st.integers(-30, 30))
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=random) * 2.0**exponent
    zeros = draw(st.sampled_from([0.0, 0.5, 1.0]))
    return torch.where(torch.rand(size, generator=random) < zeros, 0.0, values)


@pytest.mark.parametrize("packing", PACKED)
@given(values=vectors())
def test_a_message_is_off_by_at_most_half_a_step(packing: str, values: Tensor) -> None:
    packed = pack(values, packing)
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_bytes(len(values), packing)
    off = (unpack(packed, len(values), packing) - values).abs()
    if packing == "bf16":
        assert bool((off <= values.abs() * 2**-8).all())
    else:
        for block, of_block in zip(values.split(BLOCK), off.split(BLOCK), strict=True):
            assert float(of_block.max()) <= float(block.abs().max()) / 127 * 0.501


def test_the_bytes_are_those_of_the_page() -> None:
    """As docs/wire.md says them, read by other means."""
    values = torch.linspace(-3, 5, 300)
    packed = pack(values, "int8").numpy().tobytes()
    scales = struct.unpack("<2f", packed[:8])
    codes = np.frombuffer(packed[8:], np.int8)
    assert scales == pytest.approx([float(values[255]) / 127, 5 / 127])
    found = codes * np.repeat(scales, 256)[:300]
    assert found == pytest.approx(values.numpy(), abs=5 / 127 / 2 * 1.01)
    words = np.frombuffer(pack(torch.tensor([1.0, -2.5, 3.14159]), "bf16").numpy().tobytes(), "<u2").astype("<u4") << 16
    assert words.view("<f4").tolist() == [1.0, -2.5, 3.140625]


@pytest.mark.parametrize("tiny", [0.0, 1e-44, 1e-38])
def test_what_is_too_small_for_a_scale_becomes_zero_and_stays_finite(tiny: float) -> None:
    found = unpack(pack(torch.tensor([tiny, -tiny, 0.0]), "int8"), 3, "int8")
    assert bool((found.abs() <= 2 * tiny).all())


@pytest.mark.parametrize("packing", PACKED)
@given(values=st.lists(vectors(), min_size=1, max_size=1), times=st.integers(2, 12))
def test_over_time_no_more_is_lost_than_in_one_message(packing: str, values: list[Tensor], times: int) -> None:
    """Σ said = Σ meant, but for the error of the last: also where a coordinate is below a step each time."""
    packer, meant, heard = Packer(packing), torch.zeros(0), torch.zeros(0)
    for k in range(times):
        new = values[0] * (1 + 0.1 * k)
        packed, said = packer.say("a", new)
        assert torch.equal(said, unpack(packed, len(new), packing))
        torch.testing.assert_close(packer.off["a"], said - new, rtol=0, atol=0)
        meant = new.double() if k == 0 else meant + new.double()
        heard = said.double() if k == 0 else heard + said.double()
    largest = float(values[0].abs().max()) * (1 + 0.1 * times)
    assert float((heard - meant).abs().max()) <= largest / 100 + 1e-30


def test_the_same_tensor_again_is_said_as_it_was_and_one_that_came_as_it_came() -> None:
    packer, values = Packer("int8"), torch.randn(300)
    first = packer.say("a", values)
    for again in (packer.say("a", values), packer.say("a", values.clone())):
        assert again[0] is first[0]
        assert again[1] is first[1]
    packed = pack(values, "int8")
    heard = unpack(packed, 300, "int8")
    packer.came("b", heard, packed)
    assert packer.say("b", heard)[0] is packed
    assert packer.say("b", heard)[1] is heard


def test_keys_have_errors_of_their_own() -> None:
    packer = Packer("int8")
    small = torch.tensor([1.0, 0.003])
    alone = [packer.say("a", small.clone())[1] for _ in range(4)]
    other = Packer("int8")
    mixed = []
    for _ in range(4):
        mixed.append(other.say("a", small.clone())[1])
        other.say("b", torch.tensor([5.0, -0.02]))
    assert all(torch.equal(x, y) for x, y in zip(alone, mixed, strict=True))


def test_an_unknown_packing_is_refused() -> None:
    with pytest.raises(UsageError, match="--wire fp4: one of float32, bf16, int8"):
        Settings(wire="fp4")


@pytest.mark.parametrize("packing", PACKED)
def test_what_once_was_too_large_is_forgotten(packing: str) -> None:
    packer = Packer(packing)
    for huge in (3.4e38, float("inf"), float("nan")):
        packer.say("a", torch.tensor([huge, 1.0]))
        for _ in range(3):
            _, said = packer.say("a", torch.rand(2) + 1)
        assert bool(torch.isfinite(said).all())
    assert bool(torch.isfinite(unpack(pack(torch.tensor([3.4e38]), packing), 1, packing)).all())
