"""A problem has one key however it is written, the sizes that MLX says, and MLX's errors for what is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import decomposed_problems, problems

from autoconv.problem import ITEM_BYTES, MAX_ELEMENTS, Kind, Problem

any_problem = st.one_of(problems(tuple(ITEM_BYTES), tuple(Kind)), decomposed_problems())

INPUT, WEIGHT = (1, 9, 9, 9, 4), (6, 3, 3, 3, 4)
BASE = Problem.parse(INPUT, WEIGHT)

CHANGES: list[dict[str, Any]] = [
    {"input_shape": (2, 9, 9, 9, 4)},
    {"input_shape": (1, 8, 9, 9, 4)},
    {"input_shape": (1, 9, 8, 9, 4)},
    {"input_shape": (1, 9, 9, 8, 4)},
    {"weight_shape": (4, 3, 3, 3, 4)},
    {"weight_shape": (6, 2, 3, 3, 4)},
    {"weight_shape": (6, 3, 2, 3, 4)},
    {"weight_shape": (6, 3, 3, 2, 4)},
    {"input_shape": (1, 9, 9, 9, 2), "weight_shape": (6, 3, 3, 3, 2)},
    {"groups": 2, "weight_shape": (6, 3, 3, 3, 2)},
    {"flip": True},
    *({"dtype": dtype} for dtype in ITEM_BYTES if dtype != "float32"),
    *({"kind": kind} for kind in Kind if kind is not Kind.FORWARD),
    *(
        {name: tuple(2 if axis == changed else same for axis in range(3))}
        for name, same in (
            ("stride", 1),
            ("padding_low", 0),
            ("padding_high", 0),
            ("dilation", 1),
            ("input_dilation", 1),
        )
        for changed in range(3)
    ),
]


def mlx_output_shape(input: Sequence[int], weight: Sequence[int], dtype: str = "float32", **arguments: Any) -> Any:
    """The output's shape by MLX itself, whose result is not evaluated; its errors where it has any."""
    if "dilation" in arguments:
        arguments["kernel_dilation"] = arguments.pop("dilation")
    zeros = [mx.zeros(shape, getattr(mx, dtype)) for shape in (input, weight)]
    return mx.conv_general(zeros[0], zeros[1], **arguments).shape


# Keys


@given(any_problem)
def test_a_key_is_read_back(problem: Problem) -> None:
    assert Problem.from_key(problem.key) == problem
    assert "\n" not in problem.key


@given(any_problem, any_problem)
def test_equal_problems_and_no_others_share_a_key(one: Problem, other: Problem) -> None:
    assert (one.key == other.key) == (one == other)


def test_changing_anything_changes_the_key() -> None:
    changed = [replace(BASE, **change) for change in CHANGES]
    assert {name for change in CHANGES for name in change} == {field.name for field in fields(Problem)}
    assert len({problem.key for problem in [BASE, *changed]}) == 1 + len(changed)


@given(any_problem, st.data())
def test_what_is_no_key_is_refused(problem: Problem, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(problem.key) - 1))
    text = problem.key[:at] + data.draw(st.text(max_size=2)) + problem.key[at + 1 :]
    try:
        read = Problem.from_key(text)
    except ValueError:
        return
    assert read.key == text


@pytest.mark.parametrize(
    "broken",
    [
        "",
        BASE.key + " ",
        BASE.key.upper(),
        BASE.key.replace("x1,", "x01,"),
        BASE.key.replace("x1,", "x\N{ARABIC-INDIC DIGIT ONE},"),
        BASE.key.replace("s1,1,1", "s1"),
        BASE.key.replace("s1,1,1", "s0,1,1"),
        BASE.key.replace("float32", "int32"),
        BASE.key.replace("forward", "backward"),
        BASE.key.replace("g1", "g5"),
        BASE.key.replace("x1,9,9,9,4", "x1,9,9,9"),
    ],
)
def test_keys_with_a_fault_are_refused(broken: str) -> None:
    assert broken != BASE.key
    with pytest.raises(ValueError, match=r".+"):
        Problem.from_key(broken)


@given(
    st.sampled_from(["stride", "padding", "dilation", "input_dilation"]),
    st.integers(1, 3),
    st.sampled_from([list, tuple]),
)
def test_forms_that_mean_the_same_share_a_key(name: str, value: int, sequence: Callable[[Any], Any]) -> None:
    forms: list[Any] = [value, [value], sequence([value] * 3), np.int64(value), sequence([np.int32(value)] * 3)]
    if value == 1:
        forms += [True, sequence([True, 1, np.uint8(1)])]
    if name == "padding":
        forms += [sequence([[value] * 3, (value,) * 3]), ([value], (value, value, value))]
    keys = {Problem.parse(sequence(INPUT), sequence(WEIGHT), **{name: form}).key for form in forms}
    assert len(keys) == 1
    assert keys != {BASE.key} or (name != "padding" and value == 1)


def test_numbers_of_other_types_become_ints() -> None:
    groups, dtype = np.int64(2), "float32"
    problem = Problem.parse(np.array(INPUT), np.array([6, 3, 3, 3, 2]), dtype, groups=groups, flip=True)  # type: ignore[arg-type]
    assert problem == Problem.parse(INPUT, (6, 3, 3, 3, 2), groups=2, flip=True)
    assert {type(size) for size in (*problem.input_shape, *problem.weight_shape, problem.groups)} == {int}
    with pytest.raises(TypeError, match="flip"):  # MLX takes no other truth for it
        Problem.parse(INPUT, (6, 3, 3, 3, 2), groups=2, flip=np.True_)  # type: ignore[arg-type]


def test_arguments_that_cannot_act_are_kept() -> None:
    # One output frame, then one tap: the stride and the dilation change no number, but choose MLX's kernel.
    one_frame = Problem.parse((1, 3, 4, 4, 2), (2, 3, 3, 3, 2), stride=(2, 1, 1))
    one_tap = Problem.parse((1, 3, 4, 4, 2), (2, 1, 3, 3, 2), dilation=(2, 1, 1))
    assert one_frame.output_shape[1] == 1
    assert (one_frame.stride, one_tap.dilation) == ((2, 1, 1), (2, 1, 1))
    assert one_frame.key != replace(one_frame, stride=(1, 1, 1)).key
    assert one_tap.key != replace(one_tap, dilation=(1, 1, 1)).key


def test_a_problem_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        BASE.groups = 2  # type: ignore[misc]


# Sizes


@given(st.one_of(problems(max_groups=1), decomposed_problems()))
def test_the_outputs_shape_is_mlxs(problem: Problem) -> None:
    assert problem.output_shape == mlx_output_shape(
        problem.input_shape,
        problem.weight_shape,
        stride=problem.stride,
        padding=(problem.padding_low, problem.padding_high),
        dilation=problem.dilation,
        input_dilation=problem.input_dilation,
        flip=problem.flip,
    )


def test_work_and_bytes_are_counted() -> None:
    problem = Problem.parse((1, 3, 4, 4, 2), (5, 3, 3, 3, 2), "float16", padding=1)
    # 3x4x4x5 outputs of 3x3x3x2 products each, and an addition for each product.
    assert problem.flops == 240 * 54 * 2
    assert (problem.input_bytes, problem.weight_bytes, problem.output_bytes) == (96 * 2, 270 * 2, 240 * 2)
    assert problem.bytes == (96 + 270 + 240) * 2
    grouped = Problem.parse((1, 3, 4, 4, 2), (4, 3, 3, 3, 1), "float64", padding=1, groups=2)
    assert grouped.flops == 192 * 27 * 2
    assert grouped.weight_bytes == 108 * 8


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_an_items_bytes_are_mlxs(dtype: str) -> None:
    assert replace(BASE, dtype=dtype).item_bytes == getattr(mx, dtype).size


def test_addressable_ends_where_32_bits_do() -> None:
    point, limit = (1, 1, 1, 1, 1), int(np.iinfo(np.int32).max)
    assert limit == MAX_ELEMENTS
    assert Problem.parse((1, 1, 1, limit, 1), point).addressable
    assert not Problem.parse((1, 1, 1, limit + 1, 1), point, stride=2).addressable
    assert Problem.parse(point, (limit, 1, 1, 1, 1)).addressable
    assert not Problem.parse((1, 1, 1, 1, 2**16), (2**15, 1, 1, 1, 2**16)).addressable
    # A small input and weight, and an output that is not: 2^16 rows of 2^15 and one, most of them padding.
    assert not Problem.parse((1, 1, 1, 2**16, 1), point, padding=([0, 0, 0], [0, 2**15, 0])).addressable


# Errors


@pytest.mark.parametrize(
    "arguments",
    [
        *({"stride": value} for value in (0, -1, (1, 2), (1, 1, 1, 1), 1.5, "1", None, (1, 1.5, 1), {1: 2}, "abc")),
        *({"padding": value} for value in ((1, 2), (1, 1, 1, 1), 1.0, None, "abc", ([1, 1, 1],), ([0, 0, 0], 1))),
        *({"padding": value} for value in (([1, 1], [1, 1, 1]), ([1] * 3, [1] * 3, [1] * 3), (["a"] * 3, [1] * 3))),
        *({"dilation": value} for value in (0, -1, (1, 2), 2.5, None, 5, (1, 1, 5))),
        *({"input_dilation": value} for value in (0, -2, (1, 1, 1, 1), 0.5, None)),
        *({"groups": value} for value in (0, -1, 2, 4, 1.5, None)),
        *({"input": shape} for shape in ((9, 9, 9, 4), (1, 9, 9, 9, 9, 4), (1, 9, 9, 9, 3), (1, 2, 9, 9, 4))),
        *({"input": shape} for shape in ((1, 0, 9, 9, 4), (1, 9, 9, 9, 8))),
        *({"weight": shape} for shape in ((3, 3, 3, 4), (1, 6, 3, 3, 3, 4), (6, 3, 3, 10, 4), (6, 3, 3, 3, 2))),
        {"groups": 4, "weight": (6, 3, 3, 3, 1)},
        *({"dtype": dtype} for dtype in ("int32", "uint8", "bool_", "complex64")),
    ],
    ids=str,
)
def test_errors_have_the_type_of_mlxs(arguments: dict[str, Any]) -> None:
    arguments = dict(arguments)
    operands = [arguments.pop("input", INPUT), arguments.pop("weight", WEIGHT), arguments.pop("dtype", "float32")]
    with pytest.raises((TypeError, ValueError)) as of_mlx:
        mlx_output_shape(*operands, **arguments)
    with pytest.raises((TypeError, ValueError)) as ours:
        Problem.parse(*operands, **arguments)
    assert ours.type is of_mlx.type
    assert str(ours.value).startswith("[conv] ") or ours.type is TypeError


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"stride": 0}, "stride"),
        ({"padding": (1, 2)}, "padding"),
        ({"dilation": "x"}, "kernel dilation"),
        ({"input_dilation": 0}, "input dilation"),
        ({"groups": 0}, "groups"),
        ({"dtype": "int32"}, "int32"),
        ({"groups": 5}, "divisible by groups"),
    ],
)
def test_errors_say_what_is_wrong(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises((TypeError, ValueError), match=named):
        Problem.parse(INPUT, WEIGHT, **arguments)


# For people


def test_a_problem_prints_its_sizes_and_what_is_not_the_default() -> None:
    assert str(BASE) == "1x9x9x9x4 * 6x3x3x3x4, float32"
    everything = Problem.parse(
        INPUT, (6, 3, 3, 3, 2), "bfloat16", stride=2, padding=([2, 1, 1], [0, 1, 1]), dilation=(1, 2, 1),
        input_dilation=3, groups=2, flip=True, kind=Kind.WEIGHT_GRADIENT,
    )  # fmt: skip
    assert str(everything) == (
        "1x9x9x9x4 * 6x3x3x3x2, bfloat16, stride 2, padding 2x1x1:0x1x1, dilation 1x2x1, input dilation 3, "
        "groups 2, flipped, weight gradient"
    )
    assert str(replace(BASE, padding_low=(1, 1, 1), padding_high=(1, 1, 1))).endswith("float32, padding 1")


def test_changing_anything_shows_in_print() -> None:
    changed = [replace(BASE, **change) for change in CHANGES]
    assert len({str(problem) for problem in [BASE, *changed]}) == 1 + len(changed)
