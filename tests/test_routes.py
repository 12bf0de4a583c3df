"""Which kernels MLX's Metal backend takes for a candidate, on any machine."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import decomposed_problems, problems

from autoconv.algorithms import Candidate, candidates, find
from autoconv.algorithms._calls import Convolution2D, Product
from autoconv.model.routes import Route, Routed, launches_of, route, routed
from autoconv.problem import Kind, Problem
from autoconv.sweep import packaged_workloads, read_workload

RULE = Problem.parse((1, 8, 32, 32, 128), (128, 3, 3, 3, 128), "bfloat16", padding=(0, 1, 1))
"""What MLX's fixed rule decomposes, into 2D convolutions that just take Winograd: 128 + 128 channels."""

LONG = replace(RULE, input_shape=(1, 18, 32, 32, 128))
"""The same with 16 output frames."""

LAYER = Convolution2D(images=4, size=(32, 32), channels=128, outputs=128, kernel=(3, 3), result=(32, 32))
"""It just takes Winograd: 128 + 128 channels and 4 * 32 * 32 positions."""


def of(problem: Problem, name: str = "native") -> Routed:
    candidate = find(name, problem, "metal")
    assert candidate is not None, name
    found = routed(problem, candidate)
    assert found is not None
    return found


# 3D convolutions


def test_the_fixed_rule_decomposes_into_convolutions_that_are_routed_by_themselves() -> None:
    found = of(RULE)
    assert (found.route, found.kernel) == (Route.KD_DECOMPOSITION, Route.WINOGRAD_2D)
    convolutions, sums = found.launches
    assert (convolutions.route, convolutions.count) == (Route.WINOGRAD_2D, 3)
    # In turn, in the output's dtype: each of two sums reads two results and writes one.
    assert (sums.route, sums.flops, sums.scratch_bytes) == (Route.KD_DECOMPOSITION, 0, 2 * 3 * RULE.output_bytes)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"input_shape": (2, 8, 32, 32, 128)}, Route.IMPLICIT_GEMM_3D),
        ({"weight_shape": (128, 7, 3, 3, 128)}, Route.KD_DECOMPOSITION),
        ({"weight_shape": (128, 8, 3, 3, 128)}, Route.IMPLICIT_GEMM_3D),
        ({"stride": (2, 1, 1)}, Route.IMPLICIT_GEMM_3D),
        ({"stride": (1, 2, 2)}, Route.KD_DECOMPOSITION),
        ({"dilation": (2, 1, 1)}, Route.IMPLICIT_GEMM_3D),
        ({"dilation": (1, 2, 2)}, Route.KD_DECOMPOSITION),
        ({"padding_low": (1, 1, 1)}, Route.IMPLICIT_GEMM_3D),
        ({"padding_high": (1, 1, 1)}, Route.KD_DECOMPOSITION),  # the rule does not look at it
        ({"input_dilation": (1, 1, 2)}, Route.EXPLICIT_GEMM),
        ({"input_dilation": (2, 1, 1), "stride": (2, 1, 1)}, Route.EXPLICIT_GEMM),
        ({"input_shape": (1, 8, 32, 32, 120), "weight_shape": (128, 3, 3, 3, 120)}, Route.IMPLICIT_GEMM_3D),
        ({"input_shape": (1, 8, 32, 32, 112), "weight_shape": (128, 3, 3, 3, 112)}, Route.KD_DECOMPOSITION),
        ({"weight_shape": (3, 3, 3, 3, 128)}, Route.KD_DECOMPOSITION),  # an RGB head
        ({"weight_shape": (16, 3, 3, 3, 128)}, Route.KD_DECOMPOSITION),
        ({"weight_shape": (17, 3, 3, 3, 128)}, Route.IMPLICIT_GEMM_3D),
        ({"flip": True}, Route.KD_DECOMPOSITION),
        ({"groups": 2, "weight_shape": (128, 3, 3, 3, 64)}, Route.REFUSED),
    ],
    ids=str,
)
def test_each_condition_of_a_3d_convolution(change: dict[str, object], expected: Route) -> None:
    changed = replace(RULE, **change)  # type: ignore[arg-type]
    assert of(changed).route is expected
    assert route(changed) is expected


@pytest.mark.parametrize(
    ("channels", "outputs", "wide_channels", "wide_outputs"),
    [(128, 128, 128, 128), (120, 128, 128, 128), (128, 120, 128, 128), (4, 8, 16, 16), (16, 8, 16, 8)],
)
def test_channels_out_of_step_are_padded_to_sixteens(
    channels: int, outputs: int, wide_channels: int, wide_outputs: int
) -> None:
    problem = Problem.parse((2, 8, 32, 32, channels), (outputs, 3, 3, 3, channels), "float16", padding=1)
    (launch,) = of(problem).launches
    assert launch.route is Route.IMPLICIT_GEMM_3D
    assert launch.flops == 2 * 2 * 8 * 32 * 32 * 27 * wide_channels * wide_outputs
    assert (launch.scratch_bytes > 0) == ((channels, outputs) != (wide_channels, wide_outputs))
    # The input is read and written again where its channels are padded, the result where those of the output are.
    copies = (channels + wide_channels) * (channels != wide_channels) + wide_outputs - outputs
    assert launch.scratch_bytes == 2 * 8 * 32 * 32 * copies * 2


def test_an_input_dilation_unfolds_the_input_with_its_zeros() -> None:
    (launch,) = of(replace(RULE, input_dilation=(1, 2, 2))).launches
    assert launch.route is Route.EXPLICIT_GEMM
    assert launch.scratch_bytes == 2 * (6 * 63 * 63) * 27 * 128 * 2  # written and read


# 2D convolutions


def test_a_layer_just_takes_winograd() -> None:
    assert route(LAYER) is Route.WINOGRAD_2D


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"flip": True}, Route.IMPLICIT_GEMM_2D),
        ({"kernel": (1, 3)}, Route.IMPLICIT_GEMM_2D),
        ({"kernel": (5, 5)}, Route.IMPLICIT_GEMM_2D),
        ({"stride": (1, 2)}, Route.IMPLICIT_GEMM_2D),
        ({"dilation": (2, 1)}, Route.IMPLICIT_GEMM_2D),
        ({"channels": 112, "outputs": 160}, Route.IMPLICIT_GEMM_2D),
        ({"channels": 160, "outputs": 112}, Route.IMPLICIT_GEMM_2D),
        ({"channels": 96}, Route.IMPLICIT_GEMM_2D),
        ({"channels": 96, "outputs": 160}, Route.WINOGRAD_2D),
        ({"channels": 224, "outputs": 32}, Route.WINOGRAD_2D),
        ({"size": (32, 31)}, Route.IMPLICIT_GEMM_2D),
        ({"images": 3}, Route.IMPLICIT_GEMM_2D),
        ({"images": 1, "size": (64, 64)}, Route.WINOGRAD_2D),
        ({"input_dilation": (1, 2)}, Route.GENERAL_GEMM_2D),
        ({"input_dilation": (1, 2), "flip": True}, Route.GENERAL_GEMM_2D),
        ({"channels": 4}, Route.IMPLICIT_GEMM_2D),
        ({"outputs": 3}, Route.IMPLICIT_GEMM_2D),
        # Out of step: padded at stride 1 with nine taps and enough positions, where the outputs are in step.
        ({"channels": 5}, Route.IMPLICIT_GEMM_2D),
        ({"channels": 5, "stride": (2, 2)}, Route.GENERAL_GEMM_2D),
        ({"channels": 5, "kernel": (3, 1)}, Route.GENERAL_GEMM_2D),
        ({"channels": 5, "outputs": 17}, Route.GENERAL_GEMM_2D),
        ({"outputs": 17}, Route.GENERAL_GEMM_2D),
        ({"channels": 5, "images": 1, "result": (16, 16)}, Route.IMPLICIT_GEMM_2D),
        ({"channels": 5, "images": 1, "result": (16, 15)}, Route.EXPLICIT_GEMM),
        ({"images": 1, "result": (2, 2), "input_dilation": (2, 2)}, Route.GENERAL_GEMM_2D),
        ({"images": 1, "result": (2, 2), "input_dilation": (2, 2), "outputs": 8}, Route.EXPLICIT_GEMM),
        # Groups never take Winograd.
        ({"groups": 2, "channels": 512, "outputs": 512}, Route.IMPLICIT_GEMM_2D),
        ({"groups": 2, "channels": 10}, Route.EXPLICIT_GEMM),
        ({"groups": 2, "input_dilation": (2, 2)}, Route.EXPLICIT_GEMM),
        ({"groups": 128}, Route.DEPTHWISE_2D),
        ({"groups": 128, "kernel": (7, 7), "stride": (2, 2)}, Route.DEPTHWISE_2D),
        ({"groups": 128, "kernel": (8, 7)}, Route.IMPLICIT_GEMM_2D),
        ({"groups": 128, "stride": (3, 1)}, Route.IMPLICIT_GEMM_2D),
        ({"groups": 128, "dilation": (2, 2)}, Route.IMPLICIT_GEMM_2D),
        ({"groups": 24, "channels": 24, "outputs": 24}, Route.IMPLICIT_GEMM_2D),
        ({"groups": 128, "outputs": 256}, Route.IMPLICIT_GEMM_2D),
    ],
    ids=str,
)
def test_each_condition_of_a_2d_convolution(change: dict[str, object], expected: Route) -> None:
    assert route(replace(LAYER, **change)) is expected  # type: ignore[arg-type]


def test_winograd_needs_its_scratch_in_three_quarters_of_the_working_set() -> None:
    # Values of 36 tiles an image, 8 x 8 each, the padded image and the transformed weight, in elements.
    values, image, weight = 64 * 36 * (128 + 128), (6 * 6 + 2) ** 2 * 128, 64 * 128 * 128
    operands = 2 * 4 * 32 * 32 * 128
    for images, expected in ((4, Route.WINOGRAD_2D), (1, Route.WINOGRAD_2D), (0.99, Route.IMPLICIT_GEMM_2D)):
        elements = operands + weight + images * (values + image)
        assert route(LAYER, item_bytes=2, working_set=2 * elements * 4 / 3 + 1) is expected
        assert route(LAYER, item_bytes=4, working_set=2 * elements * 4 / 3 + 1) is Route.IMPLICIT_GEMM_2D


def test_a_part_of_the_images_is_worth_it_from_32_rows_of_the_product() -> None:
    # Four tiles an image: 7 images are 28 rows, 8 are 32.
    layer = replace(LAYER, images=64, size=(12, 12), result=(12, 12))
    values, image, weight, operands = 64 * 4 * 256, 14 * 14 * 128, 64 * 128 * 128, 64 * 2 * 144 * 128
    for images, expected in ((7, Route.IMPLICIT_GEMM_2D), (8, Route.WINOGRAD_2D)):
        elements = operands + weight + images * (values + image)
        assert route(layer, item_bytes=4, working_set=4 * elements * 4 / 3 + 1) is expected


def test_winograds_product_has_five_times_fewer_flops_and_its_values_are_moved() -> None:
    (launch,) = launches_of(replace(LAYER, size=(36, 36), result=(36, 36)), 2)
    assert 2 * 4 * 36 * 36 * 9 * 128 * 128 / launch.flops == 36 * 9 / 64
    # About 3.7 times the input (MLX issue 3979), and moved more than once.
    assert launch.scratch_bytes > 2 * 3.5 * (4 * 36 * 36 * 128 * 2)


def test_an_implicit_gemm_under_an_input_dilation_steps_over_the_zeros() -> None:
    whole, apart = replace(LAYER, outputs=144, stride=(2, 1)), replace(LAYER, kernel=(4, 4), input_dilation=(2, 2))
    (of_whole,), (of_apart,) = launches_of(whole, 2), launches_of(apart, 2)
    assert of_whole.route is Route.IMPLICIT_GEMM_2D
    assert of_apart.route is Route.GENERAL_GEMM_2D
    assert of_apart.flops == 2 * 4 * 32 * 32 * 128 * 128 * 16 // 4


@pytest.mark.parametrize(("channels", "depth"), [(1, 16), (2, 32), (3, 48), (4, 48), (16, 144), (17, 288)])
def test_few_channels_share_a_step_of_the_implicit_gemm(channels: int, depth: int) -> None:
    (launch,) = launches_of(replace(LAYER, channels=channels, outputs=64), 4)
    assert launch.flops == 2 * 4096 * 64 * depth


def test_products_are_products_unless_mlx_unfolds_for_them() -> None:
    assert route(Product(32, 32, 32)) is Route.MATMUL
    assert route(Product(32, 32, 32, unfolded=True)) is Route.EXPLICIT_GEMM
    (launch,) = launches_of(Product(3, 33, 10, batch=5), 4)
    assert (launch.flops, launch.bytes) == (2 * 5 * 32 * 64 * 10, 5 * 4 * (3 * 10 + 10 * 33 + 3 * 33))


# Candidates

WAN = Problem.parse((1, 6, 240, 416, 96), (96, 3, 3, 3, 96), "bfloat16", padding=(0, 1, 1))
"""Layers of Wan 2.1's decoder."""


@pytest.mark.parametrize(
    ("problem", "name", "expected", "kernel"),
    [
        # The rule never asks whether Winograd will run: 96 + 96 < 256, and three frames on the channels are enough.
        (WAN, "native", Route.KD_DECOMPOSITION, Route.IMPLICIT_GEMM_2D),
        (WAN, "kd_decomposition(sum=float32)", Route.IMPLICIT_GEMM_2D, None),
        (WAN, "depth_concat(edges=split)", Route.WINOGRAD_2D, None),
        (WAN, "depth_winograd(tile=2)", Route.IMPLICIT_GEMM_2D, None),
        (RULE, "implicit_gemm", Route.IMPLICIT_GEMM_3D, None),
        (RULE, "kd_decomposition(sum=float32)", Route.WINOGRAD_2D, None),
        # One frame of 32 x 32 a tile is too few positions, four are enough.
        (RULE, "depth_winograd(tile=4)", Route.IMPLICIT_GEMM_2D, None),
        (LONG, "depth_winograd(tile=4)", Route.WINOGRAD_2D, None),
        # Depth padding keeps MLX from Winograd, and not the decomposition.
        (replace(RULE, padding_low=(1, 1, 1)), "native", Route.IMPLICIT_GEMM_3D, None),
        (replace(RULE, padding_low=(1, 1, 1)), "kd_decomposition(sum=float32)", Route.WINOGRAD_2D, None),
        # A flipped convolution never takes Winograd; the same with the kernel turned around does.
        (replace(RULE, flip=True), "native", Route.KD_DECOMPOSITION, Route.IMPLICIT_GEMM_2D),
        (replace(RULE, flip=True), "turned_kernel", Route.KD_DECOMPOSITION, Route.WINOGRAD_2D),
        (replace(RULE, flip=True), "kd_decomposition(sum=float32)", Route.WINOGRAD_2D, None),
        # MLX's input gradients are flipped; of a strided convolution they are unfolded, and the 2D kernel steps over.
        (replace(RULE, kind=Kind.INPUT_GRADIENT), "native", Route.IMPLICIT_GEMM_3D, None),
        (replace(RULE, stride=(2, 2, 2), kind=Kind.INPUT_GRADIENT), "native", Route.EXPLICIT_GEMM, None),
        (
            replace(RULE, stride=(2, 2, 2), kind=Kind.INPUT_GRADIENT),
            "kd_decomposition(sum=float32)",
            Route.GENERAL_GEMM_2D,
            None,
        ),
        (replace(RULE, kind=Kind.WEIGHT_GRADIENT), "native", Route.EXPLICIT_GEMM, None),
        (Problem.parse((1, 8, 32, 32, 128), (128, 1, 1, 1, 128)), "matmul", Route.MATMUL, None),
        (replace(RULE, weight_shape=(128, 3, 1, 1, 128), padding_low=(0, 0, 0), padding_high=(0, 0, 0)),
         "depth_conv2d", Route.IMPLICIT_GEMM_2D, None),
        (LONG, "kd_decomposition(frames=4,sum=float32)", Route.WINOGRAD_2D, None),
        (LONG, "kd_decomposition(frames=3,sum=float32)", Route.IMPLICIT_GEMM_2D, None),
        (RULE, "native(frames=3)", Route.KD_DECOMPOSITION, Route.IMPLICIT_GEMM_2D),  # 3 * 32 * 32 positions
        (Problem.parse((1, 9, 64, 64, 3), (96, 3, 3, 3, 3), "float16"), "kd_decomposition(sum=float32)",
         Route.IMPLICIT_GEMM_2D, None),
        (Problem.parse((1, 9, 64, 64, 96), (96, 3, 3, 3, 96), "float16"),
         "kd_decomposition(channels=32,sum=float32)", None, None),
        (Problem.parse((1, 9, 64, 64, 120), (136, 3, 3, 3, 120), "float16"),
         "kd_decomposition(channels=32,sum=float32)", Route.WINOGRAD_2D, None),
        (Problem.parse((1, 9, 64, 64, 120), (136, 3, 3, 3, 120), "float16"),
         "kd_decomposition(sum=float32)", Route.GENERAL_GEMM_2D, None),
    ],
    ids=str,
)  # fmt: skip
def test_candidates_reach_the_kernels_that_they_are_there_for(
    problem: Problem, name: str, expected: Route | None, kernel: Route | None
) -> None:
    if expected is None:  # nothing to pad
        assert find(name, problem, "metal") is None
        return
    found = of(problem, name)
    assert (found.route, found.kernel) == (expected, kernel or expected)


def test_the_working_set_tells_whether_a_candidates_winograd_fits() -> None:
    candidate = find("kd_decomposition(sum=float32)", RULE, "metal")
    assert candidate is not None
    for working_set, expected in ((1e9, Route.WINOGRAD_2D), (1e6, Route.IMPLICIT_GEMM_2D)):
        found = routed(RULE, candidate, working_set)
        assert found is not None
        assert found.route is expected


def test_shares_tell_the_work_by_its_kernel() -> None:
    assert of(RULE).shares == {Route.WINOGRAD_2D: 1.0, Route.KD_DECOMPOSITION: 0.0}
    padded = replace(LONG, padding_low=(1, 1, 1), padding_high=(1, 1, 1))
    shares = of(padded, "depth_concat(edges=split)").shares
    # Of the 18 output frames two see padding, each convolved by itself: too few positions.
    assert set(shares) == {Route.WINOGRAD_2D, Route.IMPLICIT_GEMM_2D}
    assert sum(shares.values()) == pytest.approx(1.0)


def test_an_algorithm_that_does_not_say_what_it_asks_has_no_route() -> None:
    silent = candidates(RULE, "metal")[0]
    silent = Candidate(replace(silent.algorithm, calls=None))
    assert routed(RULE, silent) is None


@settings(max_examples=100)
@given(st.one_of(problems(kinds=tuple(Kind)), decomposed_problems()))
def test_every_candidate_has_a_route_and_does_the_work(problem: Problem) -> None:
    for candidate in candidates(problem, "metal"):
        calls = candidate.calls(problem, "metal")
        found = routed(problem, candidate)
        assert (found is None) == (not calls), candidate.name
        if found is None:
            continue
        assert all(min(launch.bytes, launch.scratch_bytes, launch.flops) >= 0 for launch in found.launches)
        assert all(launch.count >= 1 and launch.steps >= 1 for launch in found.launches), candidate.name
        if found.kernel is not Route.GENERAL_GEMM_2D:  # which leaves out the zeros of an input dilation
            done = sum(launch.flops * launch.count for launch in found.launches)
            assert done >= candidate.cost(problem, "metal").flops * (1 - 1e-6), candidate.name


# Networks, as the sweep's workloads have them


def share(name: str, routes: set[Route]) -> float:
    """Share of a workload's FLOPs whose native call takes one of the routes."""
    layers = read_workload(packaged_workloads()[name])
    flops = [layer.count * layer.problem.flops for layer in layers]
    return math.fsum(f for f, layer in zip(flops, layers, strict=True) if of(layer.problem).route in routes) / sum(
        flops
    )


@pytest.mark.parametrize("name", ["nnunet", "monai", "unet3d", "svd_unet"])
def test_networks_with_depth_padding_never_meet_the_fixed_rule(name: str) -> None:
    assert share(name, {Route.KD_DECOMPOSITION}) < 0.04


@pytest.mark.parametrize("name", ["wan21", "wan22", "ltx", "cogvideox", "open_sora"])
def test_causal_video_autoencoders_meet_it_nearly_everywhere(name: str) -> None:
    assert share(name, {Route.KD_DECOMPOSITION}) > 0.99


def test_two_fifths_of_wan_are_decomposed_without_winograd() -> None:
    layers = [each for each in read_workload(packaged_workloads()["wan21"]) if "decode" in each.part]
    flops = {each: each.count * each.problem.flops for each in layers}
    without = [each for each in layers if of(each.problem).kernel is Route.IMPLICIT_GEMM_2D]
    assert 0.37 < sum(flops[each] for each in without) / sum(flops.values()) < 0.42
    # Stacked, those of 96 channels reach it, but where all frames' stack is too large to be addressed.
    wide = [each.problem for each in without if each.problem.weight_shape == (96, 3, 3, 3, 96)]
    stacked = [problem for problem in wide if find("depth_concat(edges=split)", problem, "metal")]
    assert {of(problem, "depth_concat(edges=split)").kernel for problem in stacked} == {Route.WINOGRAD_2D}
    assert all(problem.input_shape[1] > 8 for problem in wide if problem not in stacked)
