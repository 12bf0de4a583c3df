"""Random convolutions such as real networks make, for sweeps and for training.

A layer is drawn in three steps: its family, by the shares below; everything but its size, by the family's row; a cost,
log-uniform between 0.01 GFLOP and the caller's bound. The grid of its outputs is then the largest that costs no more.
Where there is none, or it costs less than half of what was drawn, or takes over 6 GB or 2^31-1 elements in an array,
the last two steps are done again. So every family spreads over the costs that it reaches: depthwise layers stay light,
deep layers of video decoders get heavy.

| family     |  % | kernel                          | stride          | padding            | channels    | grid      |
| ---------- | -: | ------------------------------- | --------------- | ------------------ | ----------- | --------- |
| video      | 22 | 3x3x3                           | 1               | none 2/3, 0x1x1    | wide        | video     |
| volume     | 16 | 3x3x3                           | 1               | 1                  | narrow      | VVC       |
| ends       | 10 | 3x3x3                           | 1               | as video or volume | few to many | video 60% |
| factorised | 10 | 1x3x3 45%, 3x1x1 45%, 5x1x1     | 1               | same; depth none   | wide, odd   | clip 60%  |
| pointwise  |  9 | 1x1x1                           | 1 80%, 1x2x2, 2 | none               | 4 to 2048   | any       |
| strided    |  9 | 3x3x3, 1x3x3, 2x2x2, 3x1x1      | 2, 1x2x2, 2x1x1 | 1, same or none    | by network  | any       |
| stems      |  5 | 7x7x7, 5x7x7, 3x7x7, 1x7x7      | 1x2x2 60%, 2, 1 | same               | 1-4 to 8-64 | CCV       |
| patches    |  4 | 1x2x2 to 16x16x16               | the kernel      | none               | 1-48, -5120 | all four  |
| grouped    |  5 | 3x3x3 60%, 5x1x1, 5x5x5, 7x7x7  | 1 75%, 1x2x2    | same               | 16 to 1024  | CCV       |
| dilated    |  3 | 3x3x3 70%, 1x3x3, 3x1x1         | 1               | same               | narrow      | VVC       |
| deep       |  4 | 5 to 9 deep, 1, 3 or 5 wide     | 1               | same; depth none   | narrow, 8   | any       |
| asymmetric |  3 | 3x3x3, 2x2x2, 7x7x7             | 1, 2, 1x2x2     | low is not high    | 3 to 512    | video, clip |

"Same" keeps a length at stride 1. VVC is volumes, and clips for a third of them or so; CCV the reverse; "any" is video,
clip or volume, each as often. Grouped layers are depthwise in seven of ten cases, else of 2 to 32 groups. Dilated ones
stand 2 (half), 3, 4 or 8 apart, often in height and width alone.

| family     | what makes such layers                                                                           |
| ---------- | ------------------------------------------------------------------------------------------------ |
| video      | blocks of causal video VAEs, which pad and cache frames before the call: Wan, CogVideoX, LTX     |
| volume     | 3D U-Nets of volumes, nnU-Net, SegResNet; C3D and R3D over clips                                 |
| ends       | first and last layers of both: one modality, RGB, its 2x2 patches (12, 48), latents (4, 16, 48)  |
| factorised | R(2+1)D (with its odd inner widths), S3D, SlowFast; temporal layers of Stable Video Diffusion    |
| pointwise  | shortcuts, bottlenecks, projections, the quantisers around a VAE's latent                        |
| strided    | what halves: encoders of nnU-Net, V-Net, ResNets and VAEs                                        |
| stems      | first layers of I3D, R3D, SlowFast, MedicalNet                                                   |
| patches    | embeddings of diffusion transformers, ViViT, VideoMAE, UNETR, Qwen-VL                            |
| grouped    | X3D, CSN, MedNeXt, ResNeXt                                                                       |
| dilated    | HighRes3DNet, pyramids of dilated layers, temporal networks                                      |
| deep       | long temporal filters: what a threshold on the kernel's depth has to be right about              |
| asymmetric | causal padding left to the call; TensorFlow's SAME, which halves with one zero behind            |

| channels | C_in and C_out                                                                                     |
| -------- | -------------------------------------------------------------------------------------------------- |
| wide     | 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768 or 1024                                        |
| narrow   | 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384 or 512                                             |
| few      | 1, 3, 4, 12, 16 or 48, at the one end or the other as often                                        |

Of a pair both are the same in 60% or more; else one is twice or thrice the other, where a network widens, narrows or
joins a skip.

| grid    | N              | output frames                          | output frame                                     |
| ------- | -------------- | -------------------------------------- | ------------------------------------------------ |
| video   | 1              | 1 30%, 2-4 35%, 5-8 15%, 9-40 20%      | 16:9, 26:15, 3:2, 4:3, 1:1, 9:16; 4 to 1088 high |
| clip    | 1 50%, 2, 4, 8 | 1, 2, 4, 8, 14, 16, 25 or 32           | square 70%, else as video; 4 to 256 high         |
| volume  | 1 60%, 2, 4    | height times 1 50%, 1/4-3/4 40%, 5/4-2 | square 70%, else 3/4-5/4; 4 to 256 high          |
| patches | up to 65536    | 1                                      | 1x1: every patch is an item of the batch         |

Heights and widths are multiples of 1, 2, 4 or 8, as after so many halvings. An input is as long as its output needs;
one that the call pads and strides over is a multiple of the stride. All are forward, without input dilation. Nothing
here is fitted to measurements or to the packaged workloads: the shares give each kind of kernel its turn, where counts
of calls would give nearly all to two.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

from autoconv.problem import ITEM_BYTES, Problem, Triple, dilated
from autoconv.sweep.workload import Layer

MAX_GFLOP = 3000.0
"""Default of the most GFLOP of a layer."""

MIN_GFLOP = 0.01
"""Least cost that is drawn; below, a launch is all there is to measure."""

MAX_BYTES = 6 * 10**9
"""Most bytes of input, weight and output together: what a machine of 16 GB can time beside a candidate's workspace."""

TRIES = 2000
"""Draws within a family before another takes its place, which a tiny bound and a long list may come to."""

FAMILIES = 50
"""Families that are so tried for one layer."""

SHARES = {
    "video": 22,
    "volume": 16,
    "ends": 10,
    "factorised": 10,
    "pointwise": 9,
    "strided": 9,
    "stems": 5,
    "patches": 4,
    "grouped": 5,
    "dilated": 3,
    "deep": 4,
    "asymmetric": 3,
}
"""Families and the percentage of layers that each gets."""

_Sizes: TypeAlias = tuple[int, int, int, int]
_T = TypeVar("_T")

_ONE: Triple = (1, 1, 1)
_NONE: Triple = (0, 0, 0)
_HALF_FRAME: Triple = (1, 2, 2)
_HALF: Triple = (2, 2, 2)
_WIDE = (64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)
_NARROW = (16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 512)
_FEW = (1, 3, 4, 12, 16, 48)
_RATIOS = {16 / 9: 35, 26 / 15: 20, 3 / 2: 15, 4 / 3: 10, 1.0: 10, 9 / 16: 10}
_STEPS = {1: 20, 2: 25, 4: 25, 8: 30}


def random_layers(
    count: int, seed: int = 0, *, max_gflop: float = MAX_GFLOP, dtypes: Sequence[str] | None = None
) -> list[Layer]:
    """`count` random layers, no problem twice; the module's docstring tells how they are distributed.

    The same arguments give the same layers in every process and with every version of Python, and fewer of them are
    the first of more.

    Args:
        count: How many.
        seed: Other seeds give other layers.
        max_gflop: Most GFLOP of a layer; at least 0.01.
        dtypes: What the dtype is drawn from, evenly. Default: float32, float16 and bfloat16.

    Returns:
        Layers of the network "random", whose `part` is the family and whose `layer` is `{seed}-{index}`.

    Raises:
        ValueError: `max_gflop` is under 0.01 or not finite, `count` is negative or more than there are such layers, or
            a dtype is none that MLX convolves.
    """
    chosen = ("float32", "float16", "bfloat16") if dtypes is None else tuple(dtypes)
    if not chosen or any(dtype not in ITEM_BYTES for dtype in chosen):
        msg = f"dtypes must be one or more of {', '.join(ITEM_BYTES)}, not {chosen}"
        raise ValueError(msg)
    if not MIN_GFLOP <= max_gflop < math.inf:
        msg = f"max_gflop must be at least {MIN_GFLOP} and finite, not {max_gflop}"
        raise ValueError(msg)
    if count < 0:
        msg = f"count must be at least 0, not {count}"
        raise ValueError(msg)
    found: dict[Problem, Layer] = {}
    for index in range(count):
        family, problem = _draw(_Chance(f"{seed}-{index}"), max_gflop * 1e9, chosen, found)
        found[problem] = Layer("random", family, f"{seed}-{index}", 1, problem, "")
    return list(found.values())


class _Chance:
    """Random choices that are the same in every version of Python.

    `random.Random` seeds itself with a str's SHA-512, whatever PYTHONHASHSEED is; of its methods `random` alone is
    promised to give the same numbers for ever.
    """

    def __init__(self, seed: str) -> None:
        self._next = random.Random(seed).random

    def likely(self, share: float) -> bool:
        """True in this share of cases."""
        return self._next() < share

    def pick(self, options: Sequence[_T]) -> _T:
        """One of them, each as likely."""
        return options[int(self._next() * len(options))]

    def weigh(self, options: Mapping[_T, float]) -> _T:
        """One of them, as likely as its weight says."""
        left = self._next() * sum(options.values())
        for option, weight in options.items():
            left -= weight
            if left < 0:
                return option
        return option

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high."""
        return low + int(self._next() * (high - low + 1))

    def within(self, low: float, high: float) -> float:
        """A number between, as likely anywhere."""
        return low + self._next() * (high - low)

    def spread(self, low: float, high: float) -> float:
        """A number between, log-uniform."""
        return low * math.exp(math.log(high / low) * self._next())


@dataclass(frozen=True, slots=True)
class _Grid:
    """The outputs that a layer may have: `sizes` of a length is (N, OD, OH, OW), each growing with it or constant."""

    lengths: range
    sizes: Callable[[int], _Sizes]


@dataclass(frozen=True, slots=True)
class _Form:
    """A convolution but for its size."""

    channels: int
    outputs: int
    grid: _Grid
    kernel: Triple = (3, 3, 3)
    stride: Triple = _ONE
    low: Triple = _NONE
    high: Triple = _NONE
    dilation: Triple = _ONE
    groups: int = 1

    def flops(self, length: int) -> int:
        """Floating-point operations at a length of its grid."""
        taps = math.prod(self.kernel) * self.channels // self.groups
        return 2 * math.prod(self.grid.sizes(length)) * self.outputs * taps

    def problem(self, length: int, dtype: str) -> Problem:
        """The problem at a length of its grid."""
        batch, *outputs = self.grid.sizes(length)
        sizes = [
            _input_size(*axis)
            for axis in zip(outputs, self.kernel, self.stride, self.low, self.high, self.dilation, strict=True)
        ]
        return Problem.parse(
            (batch, *sizes, self.channels),
            (self.outputs, *self.kernel, self.channels // self.groups),
            dtype,
            stride=self.stride,
            padding=(self.low, self.high),
            dilation=self.dilation,
            groups=self.groups,
        )


def _input_size(output: int, kernel: int, stride: int, low: int, high: int, dilation: int) -> int:
    """What an axis needs for its output, rounded up to a multiple of the stride where the call pads it."""
    least = (output - 1) * stride + dilated(kernel, dilation) - low - high
    return least + (-least % stride if low + high else 0)


def _draw(
    chance: _Chance, max_flops: float, dtypes: Sequence[str], taken: Mapping[Problem, Layer]
) -> tuple[str, Problem]:
    """A family, and a problem of it that is not taken."""
    least = min(MIN_GFLOP * 1e9, max_flops / 2)
    for _ in range(FAMILIES):
        family = chance.weigh(SHARES)
        for _ in range(TRIES):
            dtype = chance.pick(dtypes)
            target = chance.spread(least, max_flops)
            problem = _fitted(_FORMS[family](chance), target, dtype)
            if problem is not None and problem not in taken:
                return family, problem
    msg = f"no layer of at most {max_flops / 1e9} GFLOP is left that is not one of the {len(taken)} drawn already"
    raise ValueError(msg)


def _fitted(form: _Form, target: float, dtype: str) -> Problem | None:
    """The largest problem of this form at no more than a cost, None where it would not be near that or is too large."""
    fitting = bisect_right(form.grid.lengths, target, key=form.flops)
    if not fitting:
        return None
    length = form.grid.lengths[fitting - 1]
    if form.flops(length) < target / 2:
        return None
    problem = form.problem(length, dtype)
    return problem if problem.bytes <= MAX_BYTES and problem.addressable else None


def _lengths(step: int, longest: int) -> range:
    return range(max(4, step), longest + 1, step)


def _multiple(size: float, step: int) -> int:
    """The multiple of a step nearest to a size, at least one."""
    return max(1, int(size / step + 0.5)) * step


def _video(chance: _Chance) -> _Grid:
    low, high = chance.weigh({(1, 1): 30, (2, 4): 35, (5, 8): 15, (9, 40): 20})
    frames, ratio, step = chance.whole(low, high), chance.weigh(_RATIOS), chance.weigh(_STEPS)
    return _Grid(_lengths(step, 1088), lambda length: (1, frames, length, _multiple(length * ratio, step)))


def _clip(chance: _Chance) -> _Grid:
    batch = chance.weigh({1: 50, 2: 20, 4: 15, 8: 15})
    frames, step = chance.pick((1, 2, 4, 8, 14, 16, 25, 32)), chance.weigh(_STEPS)
    ratio = 1.0 if chance.likely(0.7) else chance.weigh(_RATIOS)
    return _Grid(_lengths(step, 256), lambda length: (batch, frames, length, _multiple(length * ratio, step)))


def _volume(chance: _Chance) -> _Grid:
    batch, step = chance.weigh({1: 60, 2: 25, 4: 15}), chance.weigh(_STEPS)
    low, high = chance.weigh({(1.0, 1.0): 50, (0.25, 0.75): 40, (1.25, 2.0): 10})
    depth, width = chance.within(low, high), 1.0 if chance.likely(0.7) else chance.within(0.75, 1.25)
    return _Grid(
        _lengths(step, 256),
        lambda length: (batch, _multiple(length * depth, 1), length, _multiple(length * width, step)),
    )


def _patches(_chance: _Chance) -> _Grid:
    return _Grid(range(1, 65537), lambda length: (length, 1, 1, 1))


def _any(chance: _Chance) -> _Grid:
    return chance.pick((_video, _clip, _volume))(chance)


def _clip_or_volume(chance: _Chance, clips: float) -> _Grid:
    return _clip(chance) if chance.likely(clips) else _volume(chance)


def _pair(chance: _Chance, among: Sequence[int]) -> tuple[int, int]:
    """(C_in, C_out)."""
    channels = chance.pick(among)
    first, second = chance.weigh({(1, 1): 60, (1, 2): 15, (2, 1): 20, (3, 1): 5})
    most = first * second
    if channels % most or channels // most < among[0]:
        return channels, channels
    return channels // most * first, channels // most * second


def _same(kernel: Triple, dilation: Triple = _ONE) -> Triple:
    """The padding at either end that keeps an axis as long as it is, for odd kernels."""
    return (
        (dilated(kernel[0], dilation[0]) - 1) // 2,
        (dilated(kernel[1], dilation[1]) - 1) // 2,
        (dilated(kernel[2], dilation[2]) - 1) // 2,
    )


def _padded(form: _Form, padding: Triple) -> _Form:
    return replace(form, low=padding, high=padding)


def _causal(chance: _Chance, form: _Form) -> _Form:
    """A 3x3x3 form as causal networks call it: padded in depth before, in height and width before or by the call."""
    return form if chance.likely(2 / 3) else _padded(form, (0, 1, 1))


def _draw_video(chance: _Chance) -> _Form:
    return _causal(chance, _Form(*_pair(chance, _WIDE), _video(chance)))


def _draw_volume(chance: _Chance) -> _Form:
    return _Form(*_pair(chance, _NARROW), _clip_or_volume(chance, 0.3), low=_ONE, high=_ONE)


def _draw_ends(chance: _Chance) -> _Form:
    of_video = chance.likely(0.6)
    few, many = chance.pick(_FEW), chance.pick(_WIDE if of_video else _NARROW)
    channels, outputs = (few, many) if chance.likely(0.5) else (many, few)
    if of_video:
        return _causal(chance, _Form(channels, outputs, _video(chance)))
    return _Form(channels, outputs, _clip_or_volume(chance, 0.3), low=_ONE, high=_ONE)


def _draw_factorised(chance: _Chance) -> _Form:
    kernel = chance.weigh({(1, 3, 3): 45, (3, 1, 1): 45, (5, 1, 1): 10})
    of_clips = chance.likely(0.6)
    if chance.likely(0.3):  # R(2+1)D keeps the parameters of a full kernel, so its inner widths are odd
        inner = chance.pick(((64, 45), (64, 144), (128, 230), (128, 288), (256, 460), (256, 576), (512, 921)))
        channels, outputs = inner if kernel[0] == 1 else inner[::-1]
    else:
        channels, outputs = _pair(chance, (*_WIDE, 1280))
    form = _Form(channels, outputs, _clip(chance) if of_clips else _video(chance), kernel)
    if kernel[0] > 1 and not of_clips and chance.likely(0.7):
        return form
    return _padded(form, _same(kernel))


def _draw_pointwise(chance: _Chance) -> _Form:
    among = (4, 8, 16, 24, 32, 48, 54, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
    channels = chance.pick(among)
    outputs = channels if chance.likely(0.3) else chance.pick(among)
    stride = chance.weigh({_ONE: 80, _HALF_FRAME: 12, _HALF: 8})
    return _Form(channels, outputs, _any(chance), _ONE, stride)


def _draw_strided(chance: _Chance) -> _Form:
    kind = chance.weigh({"volume": 30, "halving": 15, "clip": 25, "vae": 20, "time": 10})
    if kind == "volume":
        return _padded(_Form(*_pair(chance, _NARROW), _volume(chance), stride=_HALF), _ONE)
    if kind == "halving":
        return _Form(*_pair(chance, _NARROW), _volume(chance), _HALF, _HALF)
    if kind == "clip":
        kernel = chance.pick(((3, 3, 3), (1, 3, 3)))
        stride = _HALF if kernel[0] == 3 and chance.likely(0.5) else _HALF_FRAME
        return _padded(_Form(*_pair(chance, _NARROW), _clip(chance), kernel, stride), _same(kernel))
    if kind == "vae":
        return _Form(*_pair(chance, _WIDE), _video(chance), stride=chance.pick((_HALF, _HALF_FRAME)))
    return _Form(*_pair(chance, _WIDE), _video(chance), (3, 1, 1), (2, 1, 1))


def _draw_stems(chance: _Chance) -> _Form:
    kernel = chance.pick(((7, 7, 7), (5, 7, 7), (3, 7, 7), (1, 7, 7)))
    stride = chance.weigh({_HALF_FRAME: 60, _HALF: 25, _ONE: 15})
    channels, outputs = chance.weigh({1: 25, 2: 10, 3: 55, 4: 10}), chance.pick((8, 16, 24, 32, 48, 64))
    return _padded(_Form(channels, outputs, _clip_or_volume(chance, 0.7), kernel, stride), _same(kernel))


def _draw_patches(chance: _Chance) -> _Form:
    cases: tuple[tuple[Callable[[_Chance], _Grid], tuple[Triple, ...], tuple[int, ...]], ...] = (
        (_video, ((1, 2, 2), (2, 2, 2), (1, 4, 4)), (4, 16, 48)),
        (_clip, ((2, 16, 16), (1, 16, 16), (2, 8, 8), (3, 7, 7)), (3,)),
        (_volume, ((16, 16, 16), (8, 8, 8), (4, 4, 4), (2, 2, 2)), (1, 2, 4)),
        (_patches, ((2, 14, 14), (2, 16, 16), (1, 14, 14)), (3,)),
    )
    grid, kernels, inputs = chance.pick(cases)
    kernel = chance.pick(kernels)
    outputs = chance.pick((48, 96, 192, 384, 768, 1024, 1152, 1280, 1536, 3072, 5120))
    return _Form(chance.pick(inputs), outputs, grid(chance), kernel, kernel)


def _draw_grouped(chance: _Chance) -> _Form:
    kernel = chance.weigh({(3, 3, 3): 60, (5, 1, 1): 10, (5, 5, 5): 15, (7, 7, 7): 15})
    stride = _HALF_FRAME if chance.likely(0.25) else _ONE
    grid = _clip_or_volume(chance, 2 / 3)
    if chance.likely(0.7):
        channels = groups = chance.pick((16, 24, 32, 54, 64, 108, 128, 216, 256, 432, 512))
    else:
        channels, groups = chance.pick((64, 128, 256, 512, 1024)), chance.pick((2, 4, 8, 32))
    return _padded(_Form(channels, channels, grid, kernel, stride, groups=groups), _same(kernel))


def _draw_dilated(chance: _Chance) -> _Form:
    kernel = chance.weigh({(3, 3, 3): 70, (1, 3, 3): 15, (3, 1, 1): 15})
    apart = chance.weigh({2: 50, 3: 10, 4: 30, 8: 10})
    dilation: Triple = (
        apart if kernel[0] > 1 and (kernel[1] == 1 or chance.likely(0.6)) else 1,
        apart if kernel[1] > 1 else 1,
        apart if kernel[2] > 1 else 1,
    )
    form = _Form(*_pair(chance, _NARROW), _clip_or_volume(chance, 0.4), kernel, dilation=dilation)
    return _padded(form, _same(kernel, dilation))


def _draw_deep(chance: _Chance) -> _Form:
    depth, side = chance.pick((5, 6, 7, 8, 9)), chance.weigh({1: 20, 3: 65, 5: 15})
    form = _Form(*_pair(chance, (8, *_NARROW)), _any(chance), (depth, side, side))
    whole = depth % 2 and chance.likely(0.5)  # an even kernel has no padding that keeps the length
    return _padded(form, ((depth - 1) // 2 if whole else 0, (side - 1) // 2, (side - 1) // 2))


def _draw_asymmetric(chance: _Chance) -> _Form:
    kind = chance.weigh({"causal": 50, "same": 30, "even": 10, "stem": 10})
    if kind == "causal":
        return _Form(*_pair(chance, (32, *_WIDE[:9])), _video(chance), low=(2, 1, 1), high=(0, 1, 1))
    if kind == "same":  # what halves an even axis by SAME: one zero, behind
        stride = chance.pick((_HALF, _HALF_FRAME))
        before, behind = ((0, 0, 0), (1, 1, 1)) if stride == _HALF else ((1, 0, 0), (1, 1, 1))
        return _Form(*_pair(chance, _NARROW), _clip(chance), stride=stride, low=before, high=behind)
    if kind == "even":
        return _Form(*_pair(chance, _NARROW), _clip(chance), _HALF, low=_NONE, high=_ONE)
    return _Form(3, chance.pick((32, 64)), _clip(chance), (7, 7, 7), _HALF, low=_HALF, high=(3, 3, 3))


_FORMS: dict[str, Callable[[_Chance], _Form]] = {
    "video": _draw_video,
    "volume": _draw_volume,
    "ends": _draw_ends,
    "factorised": _draw_factorised,
    "pointwise": _draw_pointwise,
    "strided": _draw_strided,
    "stems": _draw_stems,
    "patches": _draw_patches,
    "grouped": _draw_grouped,
    "dilated": _draw_dilated,
    "deep": _draw_deep,
    "asymmetric": _draw_asymmetric,
}
