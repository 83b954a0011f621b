"""Every misuse of the config is refused before the first request, with a message that says what to write."""

import copy
import json
import sys

import pytest

from tests.generate.helpers import Session, small_document
from utils.config.answers import JUDGE_VARIABLES, sample_variables
from utils.config.generate import GenerateConfig
from utils.generate.teacher.process import offline_teacher
from utils.pipeline.config import Section, load_config
from utils.pipeline.errors import ConfigError
from utils.pipeline.workspace import REPOSITORY

GOOD = {
    "output": "data/x/generated",
    "main_topic": "animals",
    "datasets": {"pairs": {"mode": "dpo", "rows": 10, "num_subtopics": 2, "templates": {"prompts": "t"}}},
    "providers": {"api": {"base_url": "https://api.example.com/v1", "api_key_env": "EXAMPLE_KEY"}},
    "models": {
        "main": {"provider": "api", "model": "big"},
        "rejected": {"provider": "api", "model": "small"},
        "judge": {"provider": "api", "model": "big"},
    },
    "templates": {"t": {"user": "Write {{ count }} of {{ subtopic }}{{ prompt }}."}},
}
RUBRIC = {"criteria": [{"name": "correct", "description": "Is it right?"}]}


def changed(*changes: tuple[str, object]) -> dict:
    """The good config with values at dotted paths; None removes a key."""
    document = copy.deepcopy(GOOD)
    for path, value in changes:
        *parents, last = path.split(".")
        place = document
        for name in parents:
            place = place.setdefault(name, {})
        if value is None:
            del place[last]
        else:
            place[last] = value
    return document


def load(document: dict, tmp_path) -> GenerateConfig:
    path = tmp_path / "10_generate.json"
    path.write_text(json.dumps(document))
    return load_config(path, GenerateConfig, REPOSITORY).config


def test_the_good_config_is_good(tmp_path):
    assert load(GOOD, tmp_path).datasets["pairs"].rows == 10


@pytest.mark.parametrize("profile", ["smoke", "demo", "local"])
def test_profiles_load(profile):
    path = REPOSITORY.path(f"config/{profile}/10_generate.json")
    config = load_config(path, GenerateConfig, REPOSITORY).config
    modes = {"stories": "text", "chat": "sft", "pairs": "dpo", "manners": "dpo"}
    assert {name: spec.mode for name, spec in config.datasets.items()} == modes
    assert config.output == f"data/{profile}/generated"


D = "datasets.pairs"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("temprature", 1)], 'unknown key "temprature"'),
        (
            [("models.main.temprature", 1)],
            'unknown key "models.main.temprature" (did you mean "temperature"?)',
        ),
        ([(f"{D}.modes", "dpo")], 'did you mean "mode"'),
        ([(f"{D}.mode", "dpo2")], '"dpo2" is unknown (did you mean "dpo"?)'),
        ([(f"{D}.rows", 0)], "give either rows or num_prompts_per_subtopic"),
        ([(f"{D}.num_prompts_per_subtopic", 3)], "give either rows or num_prompts_per_subtopic"),
        ([(f"{D}.num_subtopics", 11)], "11 subtopics for 10 rows: some would stay empty"),
        (
            [(f"{D}.rows", 0), (f"{D}.num_subtopics", 0), (f"{D}.num_prompts_per_subtopic", 3)],
            "num_prompts_per_subtopic needs num_subtopics or topics_file",
        ),
        (
            [(f"{D}.rows", 2_000_000)],
            "2,000,000 is more than limits.max_rows = 1,000,000; raise that to mean it",
        ),
        (
            [(f"{D}.rows", 20_000), (f"{D}.num_subtopics", 20_000)],
            "20,000 is more than limits.max_subtopics = 10,000",
        ),
        ([("main_topic", None)], "give main_topic, topics_file or prompts_file"),
        ([("topics_file", "a"), ("prompts_file", "b")], "topics_file has no effect beside prompts_file"),
        ([("prompts_file", "b")], f"{D}.num_subtopics has no effect beside prompts_file"),
        (
            [("prompts_file", "b"), (f"{D}.num_subtopics", 0)],
            f"{D}.templates.prompts: this dataset has no such step",
        ),
        (
            [(f"{D}.mode", "sft"), (f"{D}.templates.rejected", "t")],
            "mode sft does not read templates.rejected",
        ),
        ([(f"{D}.mode", "sft"), (f"{D}.rejected_model", "main")], "mode sft does not read rejected_model"),
        ([(f"{D}.mode", "sft"), (f"{D}.conversational", True)], "mode sft does not read conversational"),
        ([(f"{D}.sft_format", "alpaca")], "mode dpo does not read sft_format"),
        ([(f"{D}.templates.chosen", "story")], 'there is no template "story" (there are: subtopics, ideas,'),
        ([(f"{D}.main_model", "best")], 'there is no model "best" (there are: main, rejected, judge)'),
        (
            [("models.rejected", None)],
            'rejected_model: there is no model "rejected" (there are: main, judge)',
        ),
        ([("models.main.provider", "nobody")], 'there is no provider "nobody" (there are: api)'),
        ([("models.main.extra_body", {"seed": 1})], "extra_body.seed: this field of a request has a key"),
        *(
            ([("models.main.extra_body", {name: None})], f"extra_body.{name}: this field of a request has")
            for name in ("stop", "top_k", "min_p", "response_format", "max_completion_tokens")
        ),
        ([("templates.more", {"user": "x"})], "templates.more: no dataset uses it"),
        ([("templates.judge", {"user": "x"})], "templates.judge: no dataset uses it"),
        ([("judge", RUBRIC)], "judge: no dataset is judged; give one a threshold, or leave this out"),
        ([("judge.num_judges", 3)], "judge: no dataset is judged"),
        (
            [(f"{D}.rows", 900_000), (f"{D}.num_subtopics", 0)],
            "num_subtopics (one for 25 rows unless given): 36,000 is more than limits.max_subtopics = 10,000",
        ),
        ([("models.main.timeout_seconds", 0)], "greater than 0"),
        ([("providers.api.base_url", "")], 'base_url must be an http(s) address, not ""'),
        ([("providers.api.base_url", "https://me:secret@x/v1")], "must not carry credentials"),
        (
            [("providers.api.kind", "offline-teacher")],
            "an offline teacher takes no base_url and no api_key_env",
        ),
        ([("providers.api.faults", "429:1")], "faults are for the offline teacher only"),
        ([("providers.api.headers", {"X-API-Key": "1"})], "a key belongs into the environment"),
        ([("providers.api.api_key_env", "sk-abc123")], "and never the key itself"),
        (
            [("budget.max_cost", 1)],
            "budget.max_cost has no effect: give models.main, models.rejected a prompt_price",
        ),
        ([("datasets.log", {"mode": "text", "rows": 3})], "a dataset cannot be called log"),
        ([("providers.api.max_in_flight", 5000)], "5,000 is more than limits.max_in_flight = 4,096"),
        (
            [("templates.t.user", "About {{ subject }}")],
            'there is no variable "subject" (there are: main_topic,',
        ),
        ([("templates.t.user", "{{ response }}")], 'there is no variable "response"'),
        (
            [("templates.t.user", "Tell me about {{ subtopic }}"), (f"{D}.templates.chosen", "t")],
            "templates.t does not use {{ prompt }}, so the answers of datasets.pairs would",
        ),
        ([("templates.t.user", "{{ prompt")], "templates.t.user: unexpected end of template"),
        ([("templates.t.user", "{{ prompt | shout }}")], "No filter named 'shout'"),
        ([("templates.t.user", "{{ prompt.colour }}")], "has no attribute 'colour'"),
        ([("templates.t.user", "{{ prompt.__class__ }}")], "templates.t.user:"),
        (
            [("templates.t.user", "{% if is_retry %}{{ prompt.colour }}{% endif %}")],
            "has no attribute 'colour' (with is_retry = True)",
        ),
        ([("templates.t.user", "Not {{ exclude[0] }}.")], "has no element 0 (with exclude = [])"),
        (
            [("templates.t.user", "{% if exclude | length > 1 %}{{ exclude.first }}{% endif %}")],
            "has no attribute 'first' (with exclude = ['known', 'more', 'most'])",
        ),
        ([("templates.t.user", "{{ 5 // (count - 1) }}")], "by zero (with count = 1)"),
        ([("templates.t.system", "x" * 60_000)], "60,000 is more than limits.max_template_bytes = 51,200"),
        ([("datasets", {})], "at least 1 item"),
        (
            [("judge", RUBRIC), (f"{D}.judge.min_chosen", 6)],
            "min_chosen: 6 is outside the rubric's range 1 to 5",
        ),
        (
            [("judge", RUBRIC), (f"{D}.judge.min_margin", -5)],
            "min_margin: -5 is outside the rubric's range -4 to 4",
        ),
        (
            [("judge", RUBRIC), (f"{D}.mode", "sft"), (f"{D}.judge.min_margin", 1)],
            "min_margin: this mode has no rejected answer",
        ),
        ([(f"{D}.mode", "mo_dpo"), ("judge.criteria", [])], "judge.criteria: say what the judge scores"),
        (
            [("judge", RUBRIC), (f"{D}.mode", "mo_dpo"), ("models.judge", None)],
            'judge.model: there is no model "judge"',
        ),
        ([("duplicates.rows", 0)], "greater than 0"),
        ([("validation.must_match", "(")], '"(" is not a regular expression'),
        ([("refill.entries_per_call", 0)], "greater than or equal to 1"),
    ],
)
def test_misuse_is_refused(changes, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(changed(*changes), tmp_path)
    assert message.lower() in str(caught.value).lower() and caught.value.exit_code == 2


def test_every_variable_has_a_sample():
    assert tuple(sample_variables()) == JUDGE_VARIABLES


def test_built_in_templates_that_are_used_are_part_of_the_config(tmp_path):
    loaded = load(GOOD, tmp_path)
    assert set(loaded.templates) == {"t", "subtopics", "answer"}
    assert loaded.template("pairs", "chosen").user == "{{ prompt }}"


def test_where_how_fast_and_for_how_much_is_no_part_of_the_result(tmp_path):
    """Address, key, limits and deadlines are runtime: moving an endpoint makes no dataset stale."""
    fast = changed(
        ("providers.api.base_url", "http://127.0.0.1:1/v1"),
        ("providers.api.max_in_flight", 7),
        ("providers.api.api_key_env", "OTHER"),
        ("models.main.timeout_seconds", 1),
        ("models.main.stream", True),
        ("models.main.prompt_price", 3.5),
        ("journal.drain_seconds", 1),
        ("budget.max_cost", 7),
    )
    path = tmp_path / "10_generate.json"
    views = []
    for document in (GOOD, fast, changed(("models.main.temperature", 0.5))):
        path.write_text(json.dumps(document))
        views.append(load_config(path, GenerateConfig, REPOSITORY).semantic)
    assert views[0] == views[1] != views[2]


# what only asks for more

OTHER = {"mode": "sft", "rows": 5}
NEW_TEMPLATE = {"templates": {"chosen": "new"}}


@pytest.mark.parametrize(
    ("changes", "adds"),
    [
        ([], True),
        ([(f"{D}.rows", 11)], True),
        ([(f"{D}.rows", 9)], False),
        ([(f"{D}.rows", 12), (f"{D}.num_subtopics", 4)], True),
        ([(f"{D}.rows", 11), (f"{D}.num_subtopics", 4)], False),
        ([(f"{D}.num_subtopics", 1)], False),
        ([("datasets.other", OTHER)], True),
        ([("datasets.other", OTHER), ("models.more", {"provider": "api", "model": "x"})], True),
        ([(f"{D}.mode", "kto")], False),
        ([(f"{D}.templates.prompts", "prompts"), ("templates", None)], False),
        ([(f"{D}.conversational", True), (f"{D}.also_parquet", True), (f"{D}.include_id", False)], True),
        ([("models.main.temperature", 0.5)], False),
        ([("models.judge.temperature", 0.5)], False),
        ([("templates.t.user", "other {{ prompt }}")], False),
        ([("datasets.other", OTHER | NEW_TEMPLATE), ("templates.new", {"user": "{{ prompt }}"})], True),
        ([("seed", 1)], False),
        ([("main_topic", "plants")], False),
        ([("refill.max_refill_rounds", 9)], True),
        ([("refill.max_refill_rounds", 1)], False),
        ([("refill.entries_per_call", 9)], False),
        ([("validation.min_words", 2)], False),
        ([("duplicates.rows", 0.5)], False),
        ([("datasets.other", OTHER | {"judge": {"min_chosen": 2}}), ("judge", RUBRIC)], True),
        ([("judge", RUBRIC), (f"{D}.judge.min_margin", 1)], False),
    ],
)
def test_what_only_asks_for_more_is_told_from_what_changes(changes, adds, tmp_path):
    views = []
    for document in (GOOD, changed(*changes)):
        path = tmp_path / "10_generate.json"
        path.write_text(json.dumps(document))
        views.append(load_config(path, GenerateConfig, REPOSITORY).semantic)
    assert GenerateConfig.only_adds(*views) == adds


def test_the_rubric_is_free_as_long_as_nobody_was_judged():
    spec = {"mode": "dpo", "rows": 1, "num_subtopics": 1, "num_prompts_per_subtopic": 0}
    plain, judged = spec, spec | {"judge": {"min_chosen": 3.0}}
    for dataset, adds in ((plain, True), (judged, False)):
        before = {"datasets": {"d": dataset}, "judge": {"num_judges": 1}}
        after = {"datasets": {"d": dataset, "e": judged}, "judge": {"num_judges": 3}}
        assert GenerateConfig.only_adds(before, after) == adds


# nothing is read and ignored


def sections(kind: type[Section]) -> set[type[Section]]:
    """A section class and all that its fields lead to."""
    from utils.pipeline.config_errors import sections_in

    found = {kind}
    for info in kind.model_fields.values():
        for inner in sections_in(info.annotation):
            found |= sections(inner)
    return found


READ_BEFORE = {
    ("GenerateConfig", "output"),  # by the stage runner
    ("LimitsSpec", "max_in_flight"),  # when the config is loaded: see the refusals above
    ("LimitsSpec", "max_template_bytes"),
}


def varied(tmp_path, url: str) -> list[GenerateConfig]:
    """Configs that use everything: all kinds of datasets, files, a judge, faults, the built-in teacher."""
    (tmp_path / "topics.txt").write_text("cows\ndogs\n")
    (tmp_path / "prompts.txt").write_text("What does a cow say?\nWhat does a dog say?\nWhat is red?\n")
    judged = small_document(stories=4, chat=6, pairs=6)
    judged["datasets"]["pairs"] |= {"mode": "mo_dpo", "judge": {"min_chosen": 2, "pairwise": True}}
    judged["models"]["judge"] = {"provider": "teacher", "model": "teacher-judge"}
    judged["judge"] = {"criteria": [{"name": "correct", "description": "Is it right?"}]}
    prompts = small_document(chat=2) | {"prompts_file": str(tmp_path / "prompts.txt")}
    prompts["datasets"]["chat"] |= {"num_subtopics": 0, "templates": {}}
    topics = small_document(chat=0) | {"topics_file": str(tmp_path / "topics.txt")}
    topics["datasets"]["chat"] |= {"num_prompts_per_subtopic": 1, "num_subtopics": 2, "templates": {}}
    prompts["templates"] = topics["templates"] = {}
    for document in (judged, prompts, topics):
        document["providers"]["teacher"] = {"base_url": url}
        for model in document["models"].values():
            model |= {"stream": True, "max_backoff_seconds": 0.01}
    documents = (judged, prompts, topics, small_document(chat=2))
    return [GenerateConfig.model_validate(document) for document in documents]


def test_every_key_is_read_by_the_code_that_generates(tmp_path, monkeypatch):
    seen: set[tuple[str, str]] = set()
    plain = Section.__getattribute__

    def noting(self: Section, name: str) -> object:
        reader = sys._getframe(1).f_globals["__name__"]
        if name in type(self).model_fields and reader.startswith(("utils.generate", "utils.config")):
            seen.add((type(self).__name__, name))
        return plain(self, name)

    with offline_teacher(0, "500:0.3,length:0.2,score-prose:0.5") as url:
        configs = varied(tmp_path, url)
        monkeypatch.setattr(Section, "__getattribute__", noting)
        for number, configured in enumerate(configs):
            Session(tmp_path / str(number)).run_config(configured)
    keys = {(kind.__name__, name) for kind in sections(GenerateConfig) for name in kind.model_fields}
    assert keys - seen - READ_BEFORE == set()


def test_a_key_in_the_place_of_its_name_is_not_repeated(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(changed(("providers.api.api_key_env", "sk-abc123")), tmp_path)
    assert "sk-abc123" not in caught.value.report()
