"""What an adapter block may say, and what it means when it says little."""

import pytest
from pydantic import ValidationError

from utils.config.adapter import AdapterConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "dense", "active_ranks": 2}, 'active_ranks belong to kind "fly"'),
        ({"kind": "dense", "balance": "off", "density": 0.5}, 'density, balance belong to kind "fly"'),
        ({"kind": "fly", "dropout": 0.1}, 'dropout belongs to kind "dense"'),
        ({"kind": "fly", "rank": 4, "active_ranks": 5}, "active_ranks 5 of rank 4"),
        ({"kind": "fly", "targets": []}, "at least 1 item"),
    ],
)
def test_configs_that_contradict_themselves(fields, message):
    with pytest.raises(ValidationError, match=message):
        AdapterConfig(**fields)


def test_defaults():
    dense, fly = AdapterConfig(kind="dense"), AdapterConfig(kind="fly")
    assert (dense.num_ranks, dense.scale, dense.num_active_ranks) == (16, 2.0, 16)
    assert (fly.num_ranks, fly.scale, fly.num_active_ranks, fly.row_density) == (32, 2.0, 8, 0.25)
    assert (fly.score, fly.offset_step) == ("magnitude", 1e-3)
