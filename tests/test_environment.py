"""An environment's identity holds what times depend on, and nothing that changes without them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoconv import environment
from autoconv.environment import Environment, mlx_settings

ROOT = Path(__file__).resolve().parent.parent
CPU = mx.Device(mx.cpu)

METAL: dict[str, str | int] = {
    "backend": "metal",
    "device": "Apple M4 Max",
    "architecture": "applegpu_g16s",
    "mlx": "0.32.4",
    "MLX_ENABLE_TF32": "0",
    "macos": "26",
    "gpu_cores": 40,
    "working_set": 115448725504,
}

names = st.text(st.characters(codec="ascii", categories=["Lu", "Ll", "Nd"]), min_size=1, max_size=6)
identities = st.dictionaries(names, st.one_of(names, st.integers(0, 99)), max_size=5)


# Identity


@pytest.mark.parametrize("field", METAL)
def test_each_field_of_the_identity_changes_the_id(field: str) -> None:
    known = Environment(METAL)
    value = METAL[field]
    other = value + 1 if isinstance(value, int) else value + "x"
    assert Environment({**METAL, field: other}).id != known.id
    assert Environment({name: METAL[name] for name in METAL if name != field}).id != known.id


@given(identities, identities)
def test_equal_identities_and_no_others_share_an_id(one: dict[str, str | int], other: dict[str, str | int]) -> None:
    assert (Environment(one).id == Environment(other).id) == (one == other)
    assert Environment(dict(reversed(one.items()))).id == Environment(one).id


@given(identities)
def test_an_id_is_sixteen_hexadecimal_digits(identity: dict[str, str | int]) -> None:
    found = Environment(identity).id
    assert len(found) == 16
    assert int(found, 16) >= 0
    assert found == found.lower()


@given(identities, st.integers(0, 2**40))
def test_circumstances_and_memory_change_nothing(circumstances: dict[str, str | int], memory: int) -> None:
    plain, same = Environment(METAL), Environment(METAL, circumstances, memory)
    assert same.id == plain.id
    assert same == plain


def test_it_prints_what_people_know_it_by() -> None:
    assert str(Environment(METAL)) == "Apple M4 Max (metal, MLX 0.32.4)"


# MLX's variables


def test_defaults_and_foreign_variables_are_ignored() -> None:
    assert mlx_settings({"MLX_ENABLE_TF32": "1", "MLX_METAL_FAST_SYNCH": "0", "MLX_USE_CUDA_GRAPHS": "1"}) == {}
    assert mlx_settings({"PATH": "/bin", "AUTOCONV_POLICY": "off", "MLX_HOME": "x", "MY_MLX_CONV_A": "1"}) == {}
    assert mlx_settings({}) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLX_ENABLE_TF32", "0"),
        ("MLX_DISABLE_COMPILE", "1"),
        ("MLX_BFS_MAX_WIDTH", "20"),
        ("MLX_MAX_OPS_PER_BUFFER", "50"),
        ("MLX_MAX_MB_PER_BUFFER", "50"),
        ("MLX_METAL_FAST_SYNCH", "1"),
        ("MLX_METAL_GPU_ARCH", "applegpu_g13s"),
        ("MLX_USE_CUDA_GRAPHS", "0"),
        ("MLX_CONV_3D_MAX_DEPTH", "7"),
        ("MLX_CONV_", ""),
    ],
)
def test_variables_that_change_times_are_kept(name: str, value: str) -> None:
    assert mlx_settings({"HOME": "/", name: value}) == {name: value}


@given(st.dictionaries(st.one_of(names, names.map("MLX_{}".format), names.map("MLX_CONV_{}".format)), names))
def test_every_conv_variable_counts_and_the_order_does_not(environ: dict[str, str]) -> None:
    found = mlx_settings(environ)
    assert found.items() <= environ.items()
    assert {name for name in environ if name.startswith("MLX_CONV_")} == set(found)
    assert list(found) == sorted(found)


# This machine


def here() -> list[mx.Device]:
    return [CPU, mx.default_device()]


@pytest.mark.parametrize("device", here(), ids=str)
def test_this_devices_identity_is_complete(device: mx.Device) -> None:
    found = environment.of(device)
    assert found.backend == ("cpu" if device.type == mx.cpu else "metal" if mx.metal.is_available() else "cuda")
    assert found.identity["mlx"] == importlib.metadata.version("mlx")
    assert found.identity["device"] not in {"", "unknown"}
    assert found.memory_bytes > 2**28
    if found.backend == "metal":
        assert int(found.identity["working_set"]) > 2**28
        assert str(found.identity["macos"]).isdigit()
    assert environment.of(device) is found


@pytest.mark.parametrize("device", here(), ids=str)
def test_nothing_in_it_is_a_path(device: mx.Device) -> None:
    found = environment.of(device)
    texts = [str(value) for value in (*found.identity.values(), *found.circumstances.values())]
    assert [text for text in texts if re.search(r"(^|\W)/\w", text)] == []


@pytest.mark.skipif(platform.system() != "Linux", reason="elsewhere the BLAS is the system's")
def test_the_blas_of_the_cpu_is_named() -> None:
    identity = environment.of(CPU).identity
    assert str(identity["blas"]).startswith("lib")
    assert ".so" in str(identity["blas"])
    assert int(identity["blas_threads"]) >= 1


def id_elsewhere(**variables: str) -> str:
    """The CPU's id in a new process."""
    code = "import mlx.core as mx; from autoconv import environment; print(environment.of(mx.Device(mx.cpu)).id)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_another_process_finds_the_same_id_unless_mlx_is_set_otherwise() -> None:
    known = environment.of(CPU).id
    assert id_elsewhere(AUTOCONV_POLICY="off", PYTHONHASHSEED="1") == known
    assert id_elsewhere(MLX_CONV_SOMETHING="1") != known


# Memory


@pytest.mark.parametrize("device", here(), ids=str)
def test_free_memory_is_some_of_the_memory(device: mx.Device) -> None:
    found = environment.of(device)
    assert 0 <= environment.free_bytes(found) <= found.memory_bytes


@pytest.mark.parametrize(("active", "free"), [(0, 900), (100, 800), (900, 0), (5000, 0)])
def test_free_memory_is_what_is_not_active_less_a_tenth(
    active: int, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "get_active_memory", lambda: active)
    assert environment.free_bytes(Environment({"backend": "metal"}, memory_bytes=1000)) == free
    assert environment.free_bytes(Environment({"backend": "cpu"}, memory_bytes=1000)) == free


@pytest.mark.parametrize(
    ("release", "number"),
    [
        ("6.18.44-custom-build7", "6.18.44"),
        ("25.1.0", "25.1.0"),
        ("5.15.0-91-generic", "5.15.0"),
        ("rolling", "rolling"),
    ],
)
def test_of_the_system_s_release_the_number_alone_is_kept(release: str, number: str) -> None:
    assert environment._number_of(release) == number
