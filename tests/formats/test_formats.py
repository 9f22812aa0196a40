"""Layouts of codes: unpack(pack(x)) is x, places of single codes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from forge.core.errors import CheckpointError, IncompatibleError
from forge.formats.catalog import FORMATS, load_format
from forge.formats.contract import QuantizedWeight, Scheme
from forge.formats.packing import pack_columns, pack_rows, unpack_columns, unpack_rows

_LAYOUTS = tuple(row.name for row in FORMATS if row.kind == "codes")
_NUMPY = {"I16": np.int16, "I32": np.int32, "I64": np.int64, "F16": np.float16}


def make_weight(shape: tuple[int, int], scheme: Scheme, seed: int = 0) -> QuantizedWeight:
    """Return a weight of random codes; its scales span float16's subnormal numbers as well."""
    random = np.random.default_rng(seed)
    groups = (shape[0], shape[1] // scheme.group_size)
    codes = random.integers(0, scheme.num_codes, shape, dtype=np.uint8)
    scales = np.exp(random.uniform(np.log(1e-5 / 15), np.log(100), groups)).astype(np.float16)
    zeros = random.integers(0, scheme.num_codes, groups, dtype=np.uint8)
    if scheme.symmetric:
        zeros[:] = scheme.num_codes // 2
    return QuantizedWeight(codes, scales, zeros, scheme)


def assert_equal(one: QuantizedWeight, other: QuantizedWeight) -> None:
    """Compare two weights bit for bit."""
    assert one.scheme == other.scheme
    for name in ("codes_OI", "scales_OG", "zeros_OG"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype
        assert mine.flags.c_contiguous
        np.testing.assert_array_equal(mine, theirs)


@st.composite
def layouts_and_weights(draw: Callable[..., object]) -> tuple[str, QuantizedWeight]:
    name = str(draw(st.sampled_from(_LAYOUTS)))
    group_size = int(str(draw(st.sampled_from((32, 64, 128, 256)))))
    multiple = 64 // group_size if name == "awq-gemv_fast" and group_size < 64 else 1
    num_groups = multiple * int(str(draw(st.integers(1, 12))))
    num_out = 8 * int(str(draw(st.integers(1, 5))))
    scheme = Scheme(4, group_size, symmetric=bool(draw(st.booleans())))
    seed = int(str(draw(st.integers(0, 2**32))))
    return name, make_weight((num_out, group_size * num_groups), scheme, seed)


@settings(max_examples=150, deadline=None)
@given(layouts_and_weights())
def test_unpack_undoes_pack(case: tuple[str, QuantizedWeight]) -> None:
    name, weight = case
    layout = load_format(name)
    num_out, num_in = weight.codes_OI.shape
    packed = layout.pack(weight)
    planned = layout.parts((num_out, num_in), weight.scheme)
    assert [part.suffix for part in planned] == list(packed)
    for part in planned:
        assert packed[part.suffix].shape == part.shape
        assert packed[part.suffix].dtype == _NUMPY[part.dtype]
        assert packed[part.suffix].flags.c_contiguous
    shapes = {suffix: array.shape for suffix, array in packed.items()}
    assert layout.shape_of(shapes, weight.scheme) == (num_out, num_in)
    read = layout.unpack(packed, shape_OI=(num_out, num_in), scheme=weight.scheme)
    assert_equal(read, weight)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(_LAYOUTS),
    st.sampled_from((32, 64, 128)),
    st.booleans(),
    st.lists(st.sampled_from(("lm_head", "model.layers.0.mlp.gate")), unique=True),
)
def test_config_tells_the_scheme(
    name: str, group_size: int, symmetric: bool, modules: list[str]
) -> None:
    layout = load_format(name)
    scheme = Scheme(4, group_size, symmetric=symmetric)
    config = layout.quantization_config(scheme, modules)
    # AWQ's files hold zero points in any case, and its readers are told so.
    expected = Scheme(4, group_size, symmetric and not name.startswith("awq"))
    assert layout.scheme_of(config) == expected


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_words_hold_codes_lowest_first(bits: int) -> None:
    per_word = 32 // bits
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 2 * per_word), dtype=np.uint8)
    expected = np.zeros((3, 2), np.uint32)
    for row in range(3):
        for column in range(2 * per_word):
            word, place = divmod(column, per_word)
            expected[row, word] |= np.uint32(codes[row, column]) << np.uint32(place * bits)
    words = pack_columns(codes, bits)
    np.testing.assert_array_equal(words.view(np.uint32), expected)
    np.testing.assert_array_equal(unpack_columns(words, bits), codes)
    upright = np.ascontiguousarray(codes.T)
    np.testing.assert_array_equal(pack_rows(upright, bits).view(np.uint32), expected.T)
    np.testing.assert_array_equal(unpack_rows(np.ascontiguousarray(words.T), bits), upright)


def test_gemm_holds_columns_in_its_order() -> None:
    weight = _zeros((8, 32), group_size=32)
    for row in range(8):
        weight.codes_OI[row, 5] = row + 1
    word = int(load_format("awq-gemm").pack(weight)["qweight"].view(np.uint32)[5, 0])
    assert [word >> 4 * place & 15 for place in range(8)] == [1, 3, 5, 7, 2, 4, 6, 8]


def test_gemv_fast_holds_four_columns_a_word() -> None:
    weight = _zeros((8, 128), group_size=64)
    row, column = 6, 64 + 32 + 2 * 3 + 1 + 8 * 2  # half 1, b = 3, c = 1, a = 2
    weight.codes_OI[row, column] = 9
    packed = load_format("awq-gemv_fast").pack(weight)["qweight"].view(np.uint16)
    assert packed.shape == (2, 128)
    assert np.argwhere(packed).tolist() == [[1, 64 + 2 * 16 + 8 + 2 * 3 + 1]]
    assert packed.max() == 9 << 4 * 2


@pytest.mark.parametrize(
    ("group_size", "num_groups", "width"),
    [(128, 1, 1), (128, 9, 2), (64, 1, 2), (64, 17, 4), (32, 1, 4), (32, 33, 8), (256, 8, 1)],
)
def test_gemv_pads_zero_points(group_size: int, num_groups: int, width: int) -> None:
    shape = (8, group_size * num_groups)
    planned = {
        part.suffix: part.shape for part in load_format("gemv").parts(shape, Scheme(4, group_size))
    }
    assert planned["qzeros"] == (8, width)
    assert planned["scales"] == (8, 8 * width)


def _zeros(shape: tuple[int, int], group_size: int) -> QuantizedWeight:
    groups = (shape[0], shape[1] // group_size)
    return QuantizedWeight(
        np.zeros(shape, np.uint8),
        np.ones(groups, np.float16),
        np.zeros(groups, np.uint8),
        Scheme(4, group_size),
    )


@pytest.mark.parametrize(
    ("name", "shape", "scheme", "message"),
    [
        (
            "gemm",
            (64, 96),
            Scheme(4, 64),
            "do not divide into groups of 64; these sizes do: 16, 32",
        ),
        ("gemm", (64, 101), Scheme(4, 64), "no usual size does"),
        ("gemm", (63, 128), Scheme(4, 64), "output features in multiples of 8, and there are 63"),
        ("gemm", (64, 128), Scheme(3, 64), "AWQ GEMM holds 4 bits, not 3"),
        ("gemm", (64, 128), Scheme(4, 0), "groups of 0"),
        ("gemv", (64, 128), Scheme(4, 16), "groups of 32, 64, or a multiple of 128, not of 16"),
        ("gemv", (12, 128), Scheme(4, 32), "multiples of 8, and there are 12"),
        ("gemv_fast", (64, 96), Scheme(4, 32), "multiples of 64, and there are 96"),
        ("compressed-tensors", (64, 128), Scheme(5, 32), "4 or 8 bits, not 5"),
        ("gptq", (12, 128), Scheme(4, 32), "multiples of 8, and there are 12"),
        ("gptq", (16, 12), Scheme(4, 4), "multiples of 8, and there are 12"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, shape: tuple[int, int], scheme: Scheme, message: str
) -> None:
    with pytest.raises(IncompatibleError, match=message):
        load_format(name).parts(shape, scheme)


@pytest.mark.parametrize("name", _LAYOUTS)
def test_a_broken_weight_is_refused(name: str) -> None:
    layout = load_format(name)
    good = make_weight((16, 128), Scheme(4, 64))

    def changed(**arrays: NDArray[np.generic]) -> QuantizedWeight:
        values = {key: getattr(good, key) for key in ("codes_OI", "scales_OG", "zeros_OG")}
        return QuantizedWeight(**{**values, **arrays}, scheme=good.scheme)

    for key in ("codes_OI", "zeros_OG"):
        array = getattr(good, key).copy()
        array[-1, -1] = 16
        with pytest.raises(ValueError, match="does not fit into 4 bits"):
            layout.pack(changed(**{key: array}))
    for value in (np.nan, np.inf, -1.0):
        scales = good.scales_OG.copy()
        scales[3, 1] = value
        with pytest.raises(ValueError, match="finite and not negative"):
            layout.pack(changed(scales_OG=scales))
    with pytest.raises(ValueError, match="must be"):
        layout.pack(changed(zeros_OG=good.zeros_OG[:, :1]))
    with pytest.raises(ValueError, match="uint8"):
        layout.pack(changed(codes_OI=good.codes_OI.astype(np.int32)))
    with pytest.raises(ValueError, match="float16"):
        layout.pack(changed(scales_OG=good.scales_OG.astype(np.float32)))


@pytest.mark.parametrize("name", _LAYOUTS)
def test_foreign_parts_are_refused(name: str) -> None:
    layout = load_format(name)
    weight = make_weight((16, 128), Scheme(4, 64))
    packed = layout.pack(weight)
    scales = "weight_scale" if name == "compressed-tensors" else "scales"

    def unpack(parts: dict[str, NDArray[np.generic]]) -> QuantizedWeight:
        return layout.unpack(parts, shape_OI=(16, 128), scheme=weight.scheme)

    with pytest.raises(CheckpointError, match="missing or unknown: g_scale"):
        unpack({**packed, "g_scale": packed[scales]})
    with pytest.raises(CheckpointError, match=f"missing or unknown: {scales}"):
        unpack({key: array for key, array in packed.items() if key != scales})
    with pytest.raises(CheckpointError, match="should be float16"):
        unpack({**packed, scales: packed[scales].astype(np.float32)})
    with pytest.raises(CheckpointError, match="should be"):
        unpack({key: array[:-1] for key, array in packed.items()})
    with pytest.raises(CheckpointError, match="negative or not finite"):
        unpack({**packed, scales: np.full_like(packed[scales], np.nan)})


@pytest.mark.parametrize("version", ["gemv", "gemv_fast"])
@pytest.mark.parametrize("part", ["qzeros", "scales"])
def test_gemv_padding_must_be_zero(version: str, part: str) -> None:
    layout = load_format(version)
    weight = make_weight((16, 128), Scheme(4, 64))
    packed = {key: array.copy() for key, array in layout.pack(weight).items()}
    packed[part][-1, -1] = 1 if packed[part].dtype == np.float16 else -1
    with pytest.raises(CheckpointError, match="padding"):
        layout.unpack(packed, shape_OI=(16, 128), scheme=weight.scheme)


def test_gemv_fast_refuses_products_that_lose_the_zero_point() -> None:
    layout = load_format("gemv_fast")
    weight = make_weight((8, 64), Scheme(4, 64))
    weight.zeros_OG[:] = 15
    for scale in (0.0, 60000.0):
        weight.scales_OG[2, 0] = scale
        with pytest.raises(IncompatibleError, match="0 or too large"):
            layout.pack(weight)
    weight.scales_OG[2, 0], weight.zeros_OG[2, 0] = 0, 0
    read = layout.unpack(layout.pack(weight), shape_OI=(8, 64), scheme=weight.scheme)
    assert_equal(read, weight)
    parts = dict(layout.pack(weight))
    infinite = np.where(parts["qzeros"] != 0, np.float16(-np.inf), parts["qzeros"])
    with pytest.raises(CheckpointError, match="not -scale"):
        layout.unpack({**parts, "qzeros": infinite}, shape_OI=(8, 64), scheme=weight.scheme)
    parts["qzeros"] = parts["qzeros"] * np.float16(1.03)
    with pytest.raises(CheckpointError, match="not -scale"):
        layout.unpack(parts, shape_OI=(8, 64), scheme=weight.scheme)


@pytest.mark.parametrize("name", ["compressed-tensors", "gptq"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_eight_bits(name: str, symmetric: bool) -> None:
    layout = load_format(name)
    weight = make_weight((16, 64), Scheme(8, 32, symmetric=symmetric))
    read = layout.unpack(layout.pack(weight), shape_OI=(16, 64), scheme=weight.scheme)
    assert_equal(read, weight)


def test_compressed_tensors_fills_words_up() -> None:
    layout = load_format("compressed-tensors")
    weight = make_weight((13, 36), Scheme(4, 12))
    packed = layout.pack(weight)
    assert packed["weight_packed"].shape == (13, 5)
    assert packed["weight_zero_point"].shape == (2, 3)
    assert_equal(layout.unpack(packed, shape_OI=(13, 36), scheme=weight.scheme), weight)
    for part, mark in (("weight_packed", 1 << 16), ("weight_zero_point", 1 << 20)):
        changed = {key: array.copy() for key, array in packed.items()}
        changed[part][-1, -1] |= mark
        with pytest.raises(CheckpointError, match="not zero"):
            layout.unpack(changed, shape_OI=(13, 36), scheme=weight.scheme)
    changed = {**packed, "weight_shape": np.array([36, 13])}
    with pytest.raises(CheckpointError, match="weight_shape"):
        layout.unpack(changed, shape_OI=(13, 36), scheme=weight.scheme)


def test_gptq_stores_zero_points_by_its_versions() -> None:
    layout = load_format("gptq")
    weight = make_weight((8, 64), Scheme(4, 32, symmetric=True))
    packed = layout.pack(weight)
    assert layout.quantization_config(weight.scheme, [])["checkpoint_format"] == "gptq"
    assert (packed["qzeros"].view(np.uint32) == 0x77777777).all()
    weight = _zeros((8, 64), group_size=32)
    assert layout.quantization_config(weight.scheme, [])["checkpoint_format"] == "gptq_v2"
    assert not layout.pack(weight)["qzeros"].any()
    reordered = {**packed, "g_idx": packed["g_idx"][::-1].copy()}
    with pytest.raises(CheckpointError, match="reorders"):
        layout.unpack(reordered, shape_OI=(8, 64), scheme=Scheme(4, 32, symmetric=True))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("gemm", {"bits": 4}, "must state bits and group_size"),
        ("gemm", {"bits": 4, "group_size": 32, "zero_point": False}, "without zero points"),
        ("gptq", {"bits": 4, "group_size": 32, "sym": False}, "asymmetric ones in 'gptq'"),
        ("gptq", {"bits": 4, "group_size": -1}, "positive numbers"),
        ("compressed-tensors", {"config_groups": {}}, "exactly one config group"),
        ("compressed-tensors", {"config_groups": {"a": {}}}, "no weights"),
        ("compressed-tensors", {"config_groups": {"a": {"weights": {}}}}, "forge knows"),
    ],
)
def test_schemes_that_are_not_stated(name: str, config: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_format(name).scheme_of(config)


def test_autoawqs_old_words_for_the_scheme() -> None:
    config = {"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"}
    assert load_format("gemm").scheme_of(config) == Scheme(4, 64)
