from types import SimpleNamespace

import pytest

from utils.packing.inputs import epochs_of, short_names


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
