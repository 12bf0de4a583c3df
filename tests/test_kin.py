"""Kin: which environments are near enough for what won in one to be tried in the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoconv.kin import MAY_DIFFER, are_kin, differences

MAC: dict[str, object] = {
    "backend": "metal",
    "device": "Apple M4 Max",
    "architecture": "applegpu_g16s",
    "mlx": "0.32.4",
    "macos": "26",
    "gpu_cores": 40,
    "working_set": 115448725504,
}

identities = st.dictionaries(st.sampled_from([*MAC, "blas", "MLX_ENABLE_TF32"]), st.integers(0, 2))


@pytest.mark.parametrize("name", sorted(MAC))
def test_kin_differ_in_versions_cores_and_memory_alone(name: str) -> None:
    assert are_kin(MAC, {**MAC, name: "another"}) == (name in MAY_DIFFER)


def test_nobody_is_kin_to_itself_or_to_who_has_other_settings() -> None:
    assert not are_kin(MAC, dict(MAC))
    assert not are_kin(MAC, {**MAC, "mlx": "0.33.0", "MLX_ENABLE_TF32": "0"})


@given(identities, identities)
def test_kinship_is_mutual(one: dict[str, object], other: dict[str, object]) -> None:
    assert are_kin(one, other) == are_kin(other, one)


@given(identities, identities)
def test_differences_name_every_part_that_differs_and_no_other(
    one: dict[str, object], other: dict[str, object]
) -> None:
    said = differences(one, other).split(", ") if one != other else []
    wanted = {name for name in {*one, *other} if one.get(name) != other.get(name)}
    assert len(said) == len(wanted)
    for name in wanted:
        text = f"{MAY_DIFFER.get(name, name)} {one.get(name, 'none')} rather than {other.get(name, 'none')}"
        assert text in said
