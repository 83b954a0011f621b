"""Sharded models made from the meta device, part by part, against those of a single process."""

import json

import pytest

from tests.training import materialised
from tests.training.ranks import SHARDED, run_ranks

MOE = {"num_experts": 3, "experts_per_token": 2}
DENSE = {"kind": "dense", "rank": 1, "train_base": True}
FLY = {"kind": "fly", "rank": 8, "active_ranks": 2}
SHAPES = {
    "tied": {},
    "untied": {"tie_embeddings": False},
    "mixtral": {"moe": MOE},
    "vesper_moe": {"family": "vesper", "moe": MOE},
    "vesper_fly": {"family": "vesper", "adapter": FLY},
    "vesper_dense": {"family": "vesper", "adapter": DENSE},
    "vesper_moe_dense": {"family": "vesper", "moe": MOE, "adapter": DENSE | {"train_base": False}},
    "vesper_moe_fly": {"family": "vesper", "moe": MOE, "adapter": FLY | {"train_base": True}},
}


@pytest.mark.slow
def test_two_processes_make_the_model_of_one_and_never_hold_it_whole(tmp_path):
    shapes = {name: {"num_layers": 3} | changes for name, changes in SHAPES.items()}
    (tmp_path / "toy.json").write_text(json.dumps(shapes))
    said = run_ranks(tmp_path, program=materialised.__file__, **SHARDED)
    assert [said.splitlines().count(f"the same: {name}") for name in SHAPES] == [2] * len(SHAPES)
