"""Docstrings of installed code: in source order, of every file, in an order that names alone decide."""

import warnings

import pytest

from utils.corpus.docstrings import docstrings_of, installed_files

MODULE = b'''"""Module."""
class A:
    """Class A
    goes on."""
    def f(self):
        "f"
        async def inner(): "inner"
def g():
    """g"""
'''


def test_docstrings_in_source_order_without_indentation():
    assert docstrings_of(MODULE) == "Module.\n\nClass A\ngoes on.\n\nf\n\ninner\n\ng"
    assert docstrings_of(b"x = 1") == ""
    for broken in (b"def (", b"\x00", b"# coding: nonsense\n", b"(" * 5_000):
        with pytest.raises(ValueError):
            docstrings_of(broken)


def test_warnings_are_silenced():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert docstrings_of(b'"""\\d is no escape."""\nx = 1 is 1') == "\\d is no escape."


def test_installed_files_are_ordered_and_limited_to_packages():
    names = [file.name for file in installed_files(["json", "email"])]
    assert names == sorted(names)
    assert {name.split("/")[0] for name in names} == {"json", "email"}
    assert "json/decoder.py" in names
    zstandard = [file.name for file in installed_files(["zstandard"])]
    assert zstandard and all(name.startswith("zstandard/") for name in zstandard)


def test_everything_installed_is_the_standard_library_then_distributions_by_name():
    names = [file.name for file in installed_files([])]
    assert len(names) > 3_000
    standard = names.index("zipimport.py")
    assert "json/decoder.py" in names[:standard]
    assert names.index("ftfy/__init__.py") > standard
    assert not any("site-packages" in name for name in names)
