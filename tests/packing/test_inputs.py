from types import SimpleNamespace

import numpy as np
import pytest

from utils.packing.inputs import MixedInputs, PackedData, check_row_tokens, epochs_of, short_names
from utils.pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["data/demo/packed"], ["packed"]),
        (["data/a/packed", "data/b/packed"], ["a/packed", "b/packed"]),
        (["data/raw/a.txt", "data/raw/b.txt"], ["a.txt", "b.txt"]),
        (["packed", "data/packed"], ["packed", "data/packed"]),
        (["data/x", "data/x"], ["data/x (0)", "data/x (1)"]),
    ],
)
def test_names_are_as_short_as_they_can_be_told_apart(paths, names):
    assert short_names(paths) == names


def test_epochs_follow_the_weights():
    data = SimpleNamespace(names=["books", "web"], weights=[3.0, 1.0], sizes=[(100, 32), (400, 32)])
    assert epochs_of(data, 800) == pytest.approx({"books": 6.0, "web": 0.5})


def test_inputs_of_one_folder_name_are_told_apart_and_counted():
    opened = [SimpleNamespace(num_rows=rows) for rows in (10, 40)]
    inputs = [SimpleNamespace(manifest=SimpleNamespace(output_digest=digest)) for digest in "ab"]
    entries = [
        SimpleNamespace(path=f"data/{name}/sft", weight=weight) for name, weight in (("x", 3), ("y", 1))
    ]
    mixed = MixedInputs(opened, inputs, entries, seed=0, batch_rows=8)
    assert mixed.epochs(steps=10) == {"x/sft": 6.0, "y/sft": 0.5}
    assert mixed.describe(steps=10) == (
        "x/sft 6.00 epochs of 10 rows (weight 3, 75.00 % of the rows), "
        "y/sft 0.50 epochs of 40 rows (weight 1, 25.00 % of the rows)"
    )
    mixed.mixture.next_step()
    assert mixed.drawn(mixed.mixture.cursor()) == {
        "x/sft": {"weight": 3, "rows_drawn": 6, "share": 0.75},
        "y/sft": {"weight": 1, "rows_drawn": 2, "share": 0.25},
    }


def test_packed_datasets_are_described_with_weight_and_share():
    data = SimpleNamespace(names=["books", "web"], weights=[3.0, 1.0], sizes=[(100, 32), (400, 32)])
    line = PackedData.describe(data, epochs_of(data, 800))
    assert line.startswith("books 6.00 epochs of 100 rows (weight 3, 75.00 % of the rows), web 0.50 epochs")


def test_a_row_holds_one_id_more_than_its_inputs() -> None:
    check_row_tokens(np.array([5, 257]), 256, "sft")
    with pytest.raises(
        ConfigError, match='"row_tokens": 255 is below the longest item of sft, which has 257 ids'
    ) as refused:
        check_row_tokens(np.array([5, 257]), 255, "sft")
    assert "at least 256" in refused.value.fix
