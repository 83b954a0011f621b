"""
Does a changed config of stage 10 only ask for more? Then every row that was accepted still stands.

    adds_only({"datasets": {"chat": {"mode": "sft", "rows": 100}}}, {"datasets": {"chat": {..., "rows":
    200}}}) # True
"""

from collections.abc import Mapping

from utils.config.answers import FilterSpec

COUNTS = ("rows", "num_subtopics", "num_prompts_per_subtopic")
WRITTEN = (
    "sft_format",
    "conversational",
    "reasoning",
    "include_topic_columns",
    "include_id",
    "also_parquet",
)
"""Keys of a dataset that say how its rows are written, not what they are."""
MAY_GAIN = ("providers", "models", "templates")


def adds_only(before: Mapping, after: Mapping) -> bool:
    """Compare two semantic views: what was there is the same, or more of it is asked for."""
    datasets_before, datasets_after = before["datasets"], after["datasets"]
    judge_is_free = not any(_is_judged(spec) for spec in datasets_before.values())
    for key in before.keys() | after.keys():
        then, now = before.get(key), after.get(key)
        if key == "datasets":
            same = _each_stands(datasets_before, datasets_after)
        elif key in MAY_GAIN:
            same = all((now or {}).get(name) == value for name, value in (then or {}).items())
        elif key == "refill":
            same = _is_as_patient(then, now)
        else:
            same = then == now or (key == "judge" and judge_is_free)
        if not same:
            return False
    return True


def _each_stands(before: Mapping, after: Mapping) -> bool:
    return all(name in after and _grows(spec, after[name]) for name, spec in before.items())


def _grows(before: Mapping, after: Mapping) -> bool:
    """A dataset with at least as many rows and subtopics, and a row for each subtopic that came."""
    what = (set(before) | set(after)) - {*COUNTS, *WRITTEN}
    if any(before.get(key) != after.get(key) for key in what):
        return False
    if bool(before["rows"]) != bool(after["rows"]):
        return False
    more = {name: after[name] - before[name] for name in COUNTS}
    rows = more["rows"] if after["rows"] else more["num_subtopics"]
    return all(count >= 0 for count in more.values()) and rows >= more["num_subtopics"]


def _is_as_patient(before: Mapping, after: Mapping) -> bool:
    return dict(before) | {"max_refill_rounds": 0} == dict(after) | {"max_refill_rounds": 0} and (
        before["max_refill_rounds"] <= after["max_refill_rounds"]
    )


def _is_judged(spec: Mapping) -> bool:
    return spec["mode"] == "mo_dpo" or FilterSpec.model_validate(spec.get("judge", {})).active
