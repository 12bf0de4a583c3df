"""What a chunked decode's causal convolutions take: `autoconv.nn.CausalConv3d` beside frames that are joined, padded
and given to `mx.conv3d`, in turns.

The chunks are those in which decoders get them: one frame first, then a few at a time. Time is that of all chunks of a
stream; memory the most that a chunk takes beyond its frames, its cache and its output. Each shape is tuned first,
unless the database tells of it; `--policy off` compares without.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import mlx.core as mx

import autoconv
import autoconv.nn
import autoconv.settings

Chunk = Callable[[mx.array, mx.array | None], tuple[mx.array, mx.array]]

LAYERS = (
    ("Wan 2.1, 384 channels", (60, 104), 384, 384, (1, 1, 1, 1), "zeros", "zeros"),
    ("Wan 2.1, 384 channels, upsampled", (120, 208), 384, 384, (1, 2, 2, 2), "zeros", "zeros"),
    ("Wan 2.1, 192 channels", (240, 416), 192, 192, (1, 4, 4, 4), "zeros", "zeros"),
    ("Wan 2.1, 96 channels", (480, 832), 96, 96, (1, 4, 4, 4), "zeros", "zeros"),
    ("LTX, 512 channels", (64, 96), 512, 512, (9, 8, 8), "first", "zeros"),
    ("HunyuanVideo, 256 channels", (256, 256), 256, 256, (9, 8), "first", "replicate"),
    ("for a CPU, 32 channels", (32, 32), 32, 32, (1, 1, 4, 4), "zeros", "zeros"),
    ("for a CPU, 32 channels, replicate", (32, 32), 32, 32, (1, 1, 4, 4), "first", "replicate"),
    ("for a CPU, 16 channels, long", (32, 32), 16, 16, (33, 32), "first", "zeros"),
)
"""(name, height and width, input and output channels, frames of each chunk, depth and spatial padding), 3x3x3."""


def joined(weight: mx.array, depth: str, spatial: str) -> Chunk:
    """The same by one array of cache and frames, and a padded copy of it."""
    around = [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)]

    def chunk(x: mx.array, cache: mx.array | None) -> tuple[mx.array, mx.array]:
        if cache is None:
            cache = mx.zeros_like(x[:, :1]) if depth == "zeros" else x[:, :1]
            cache = mx.repeat(cache, 2, axis=1)
        frames = mx.concatenate([cache, x], axis=1)
        kept = mx.contiguous(frames[:, -2:])
        if spatial == "zeros":
            return mx.conv3d(frames, weight, padding=(0, 1, 1)), kept
        return mx.conv3d(mx.pad(frames, around, mode="edge"), weight), kept

    return chunk


def stream(chunk: Chunk, video: Sequence[mx.array]) -> tuple[float, int]:
    """(seconds of all chunks, most bytes beyond operands and output in one)."""
    cache, most, seconds = None, 0, 0.0
    for x in video:
        mx.synchronize()
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        start = time.perf_counter()
        y, kept = chunk(x, cache)
        mx.eval(y, kept)
        mx.synchronize()
        seconds += time.perf_counter() - start
        most = max(most, mx.get_peak_memory() - before - y.nbytes)
        cache = kept
        del y, kept
    return seconds, most


def error(first: Chunk, second: Chunk, video: Sequence[mx.array]) -> float:
    """Relative L2 distance of what both compute, over the whole stream."""
    caches: list[mx.array | None] = [None, None]
    apart = size = 0.0
    for x in video:
        found = []
        for place, chunk in enumerate((first, second)):
            y, caches[place] = chunk(x, caches[place])
            found.append(y.astype(mx.float32))
        apart += float(mx.square(found[0] - found[1]).sum())
        size += float(mx.square(found[1]).sum())
    return float((apart / size) ** 0.5)


@click.command()
@click.option("--dtype", default="bfloat16", show_default=True, type=click.Choice(["float16", "bfloat16", "float32"]))
@click.option("--max-gflop", type=float, default=1e6, help="Leave out layers whose stream takes more.")
@click.option("--turns", default=7, show_default=True)
@click.option("--policy", default="measure", show_default=True)
@click.option("--database", type=click.Path(path_type=Path), help="Default: the user's own.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures to this file.")
def main(dtype: str, max_gflop: float, turns: int, policy: str, database: Path | None, file: Path | None) -> None:
    """Time layers over chunked streams."""
    rows = []
    with autoconv.using(policy=policy), autoconv.using(database=database or autoconv.settings.current().database):
        for name, (height, width), channels, outputs, chunks, depth, spatial in LAYERS:
            if 2 * 27 * channels * outputs * height * width * sum(chunks) > max_gflop * 1e9:
                continue
            layer = autoconv.nn.CausalConv3d(
                channels, outputs, 3, padding=1, bias=False,
                depth_padding=depth, spatial_padding=spatial,  # type: ignore[arg-type]
            )  # fmt: skip
            layer.set_dtype(getattr(mx, dtype))
            video = [mx.random.normal((1, frames, height, width, channels), getattr(mx, dtype)) for frames in chunks]
            mx.eval(layer.parameters(), video)
            ways = (layer.chunk, joined(layer.weight, depth, spatial))
            wrong = error(*ways, video)  # a first run as well
            samples = [[stream(way, video) for way in ways] for _ in range(turns)]
            ours, theirs = (statistics.median(s for s, _ in found) for found in zip(*samples, strict=True))
            mine, other = (max(m for _, m in found) for found in zip(*samples, strict=True))
            print(
                f"{name}, chunks {'+'.join(map(str, chunks))}, {depth}, {spatial}: {ours * 1e3:.2f} ms beside "
                f"{theirs * 1e3:.2f} ms joined, {theirs / ours:.2f}x; {mine / 1e6:.1f} MB beside {other / 1e6:.1f} MB, "
                f"{mine / max(1, other):.2f}x; apart by {wrong:.1e}",
                flush=True,
            )
            rows.append({
                "layer": name, "chunks": chunks, "depth": depth, "spatial": spatial, "dtype": dtype, "s": ours,
                "joined_s": theirs, "bytes": mine, "joined_bytes": other, "apart": wrong,
            })  # fmt: skip
    if file:
        file.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
