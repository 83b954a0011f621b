"""The toy chain, for the tests of tools/pipeline.py."""

from tests.pipeline.conftest import built_root, fresh_toy, no_fsync, toy  # noqa: F401
