"""
Which base an adapter stands on, and the refusal to put it on another.

    recorded = recorded_base(manifest)                 # role, folder and digest that stage 70 or 90 trained
    on refuse_other_base("110_merge_lora", recorded.output_digest, base_manifest.output_digest)
"""

from __future__ import annotations

from utils.pipeline.errors import UpstreamError
from utils.pipeline.guards import GUARDS
from utils.pipeline.manifest import InputRecord, Manifest


def recorded_base(manifest: Manifest) -> InputRecord:
    """
    The input that holds the adapter's frozen weights, as stage 70 or 90 recorded it in
    `metrics.adapter_base`.
    """
    recorded = manifest.metrics.get("adapter_base", {})
    for record in manifest.inputs:
        if record.role == recorded.get("role") and record.output_digest == recorded.get("output_digest"):
            return record
    raise UpstreamError(
        f"the adapter of {manifest.stage} records no base", fix="train it again with this program"
    )


def refuse_other_base(who: str, recorded: str, found: str) -> None:
    """UpstreamError (G25) unless the output digest `found` is the one that the adapter was trained on."""
    verdict = GUARDS["G25"](recorded, found)
    if verdict is not None:
        raise UpstreamError(
            f"{who} cannot start: {verdict}",
            fix="name the base that the adapter was trained on, or train the adapter again on this one",
            verdict=verdict.kind,
            component=verdict.component,
        )
