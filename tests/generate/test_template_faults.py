"""A template that fails only for what a model says: the run ends with its name, not with a traceback."""

import json

import pytest

from tests.generate.helpers import Session, small_document
from tests.generate.test_key_echo import stage_main
from utils.config.answers import VARIANTS, check_template
from utils.config.generate import GenerateConfig
from utils.config.providers import LimitsSpec
from utils.generate.templates import render
from utils.pipeline.errors import ConfigError, LockstepError
from utils.pipeline.stage import execute
from utils.pipeline.workspace import STAGES, Workspace

SLIPPING = "{{ prompt }}{% if prompt != 'prompt' %}{{ prompt.colour }}{% endif %}"
"""Refers to something that is not there, for any prompt but the one that templates are tried with."""
LISTING = "{{ subtopic }}{% if subtopic not in ('', 'subtopic') %}{{ 1 // 0 }}{% endif %} {{ count }}"


@pytest.mark.parametrize(
    ("step", "text"), [("prompts", LISTING), ("chosen", SLIPPING), ("rejected", SLIPPING)]
)
def test_the_run_ends_with_the_name_of_the_template(step, text, tmp_path):
    session, document = Session(tmp_path), small_document(pairs=4)
    document["templates"]["mine"] = {"user": text}
    document["datasets"]["pairs"]["templates"][step] = "mine"
    with pytest.raises(LockstepError, match=r"^templates\.mine cannot be filled: ") as told:
        session.run(document)
    assert told.value.exit_code == 2 and "the same command continues" in told.value.fix


def test_the_judges_template_is_named_too(tmp_path):
    session, document = Session(tmp_path), small_document(pairs=4)
    document["models"]["judge"] = {"provider": "teacher", "model": "teacher-judge"}
    document["judge"] = {"criteria": [{"name": "correct", "description": "Is it right?"}]}
    document["judge"]["template"] = "strict"
    document["templates"]["strict"] = {
        "system": "{% if response != 'response' %}{{ response.colour }}{% endif %}",
        "user": "{{ response }}",
    }
    document["datasets"]["pairs"]["judge"] = {"min_margin": 1}
    with pytest.raises(ConfigError, match=r"templates\.strict cannot be filled: .*colour"):
        session.run(document)


def test_the_stage_exits_with_two_and_its_fix_continues(tmp_path, capfd):
    workspace = Workspace(tmp_path, STAGES)
    document = small_document(chat=4)
    document["output"] = "data/toy/generated"
    document["templates"]["mine"] = {"user": SLIPPING}
    document["datasets"]["chat"]["templates"]["chosen"] = "mine"
    path = workspace.path("config/toy/10_generate.json")
    path.parent.mkdir(parents=True)
    codes = []
    for text in (SLIPPING, "{{ prompt }}"):
        document["templates"]["mine"] = {"user": text}
        path.write_text(json.dumps(document))
        argv = ["--config", str(path), *(["--force"] if codes else [])]
        codes.append(execute("10_generate", GenerateConfig, stage_main(), argv, workspace))
        printed = "".join(capfd.readouterr())
        assert "Traceback" not in printed and ("templates.mine cannot be filled" in printed) == (
            len(codes) == 1
        )
    assert codes == [2, 0]


def test_templates_are_tried_with_all_that_a_later_call_may_bring():
    """Every combination that a guard may ask for, and nothing that no call has."""
    limits = LimitsSpec()
    guarded = (
        "{% if exclude %}{{ exclude[0] }}{% if exclude | length > 1 %}{{ exclude[1] }}{% endif %}{% endif %}"
        "{% if is_retry and index %}{{ index - 1 }}{% endif %}{% if subtopic %}{{ subtopic[0] }}{% endif %}"
    )
    check_template("t", guarded, tuple(VARIANTS), limits)
    with pytest.raises(ValueError, match="with exclude = \\[\\], is_retry = True"):
        check_template("t", "{% if is_retry %}{{ exclude[0] }}{% endif %}", tuple(VARIANTS), limits)


def test_a_template_that_was_checked_can_be_filled():
    from utils.config.generate_templates import BUILT_IN

    said = render(BUILT_IN["answer"], {"prompt": "What is a cow?"})
    assert said == [{"role": "user", "content": "What is a cow?"}]
    with pytest.raises(ConfigError, match=r"^templates\.answer cannot be filled: 'prompt' is undefined"):
        render(BUILT_IN["answer"], {}, "templates.answer")
