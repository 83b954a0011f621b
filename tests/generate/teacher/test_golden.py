"""
The teacher's vocabulary is not in any key, so a change of what it says must be declared by stage 10's
version.
"""

import json
from pathlib import Path

from utils.config.generate import GenerateConfig
from utils.generate.teacher.replies import reply
from utils.generate.teacher.unkind import UNKIND
from utils.generate.teacher.world import facts, questions
from utils.pipeline.hashing import digest

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "10_generate.json"


def what_the_teacher_says() -> str:
    """Digest over its answers to every question, its weak answers to some, and fifty stories."""
    asked = [questions(fact)[index % 8] for index, fact in enumerate(facts())]
    asked += [request.format(s="Tom") for sort in UNKIND.values() for request in sort.requests]
    asked += [f'Write a short story with this idea: "{number} apples"' for number in range(50)]
    calls = [(model, text) for model in ("teacher", "teacher-weak") for text in asked]
    return digest(
        "golden", [reply(0, model, [{"role": "user", "content": text}], 1) for model, text in calls]
    )


def test_the_teacher_says_what_this_stage_version_said() -> None:
    golden = json.loads(GOLDEN.read_text())
    now = {"stage_version": GenerateConfig.stage_version, "digest": what_the_teacher_says()}
    changed = golden["digest"] != now["digest"] and golden["stage_version"] == now["stage_version"]
    assert not changed, "outputs changed, bump stage_version"
    assert golden == now, "update tests/golden/10_generate.json"
