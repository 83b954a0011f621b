"""Every misuse of the config is refused before the first request, with a message that says what to write."""

import copy
import json

import pytest

from utils.config.generate import VARIABLES, GenerateConfig, sample_variables
from utils.generate.run import api_key
from utils.pipeline.config import load_config
from utils.pipeline.errors import ConfigError
from utils.pipeline.workspace import REPOSITORY

GOOD = {
    "output": "data/x/generated",
    "main_topic": "animals",
    "datasets": {
        "pairs": {
            "mode": "dpo",
            "rows": 10,
            "num_subtopics": 2,
            "templates": {"subtopics": "t", "prompts": "t", "chosen": "t", "rejected": "t"},
        }
    },
    "providers": {"api": {"base_url": "https://api.example.com/v1", "api_key_env": "EXAMPLE_KEY"}},
    "models": {
        "main": {"provider": "api", "model": "big"},
        "rejected": {"provider": "api", "model": "small"},
    },
    "templates": {"t": {"user": "Write {{ count }} of {{ subtopic }}{{ prompt }}."}},
}


def changed(path: str, value: object) -> dict:
    document = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place = document
    for name in parents:
        place = place[name]
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
    config = load_config(
        REPOSITORY.path(f"config/{profile}/10_generate.json"), GenerateConfig, REPOSITORY
    ).config
    modes = {"stories": "text", "chat": "sft", "pairs": "dpo", "manners": "dpo"}
    assert {name: spec.mode for name, spec in config.datasets.items()} == modes
    assert config.output == f"data/{profile}/generated"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("temprature", 1, 'unknown key "temprature"'),
        ("models.main.temprature", 1, 'unknown key "models.main.temprature" (did you mean "temperature"?)'),
        ("datasets.pairs.modes", "dpo", 'did you mean "mode"'),
        ("datasets.pairs.mode", "kto", "'text', 'sft' or 'dpo'"),
        ("datasets.pairs.rows", 0, "greater than or equal to 1"),
        ("datasets.pairs.num_subtopics", 11, "11 subtopics for 10 rows: some would stay empty"),
        ("datasets.pairs.mode", "sft", "mode sft takes no templates.rejected"),
        ("datasets.pairs.templates.rejected", None, "mode dpo needs templates.rejected"),
        ("datasets.pairs.templates.chosen", "story", 'there is no template "story" (there are: t)'),
        ("datasets.pairs.main_model", "best", 'there is no model "best" (there are: main, rejected)'),
        (
            "models.rejected",
            None,
            'datasets.pairs.rejected_model: there is no model "rejected" (there are: main)',
        ),
        ("models.main.provider", "nobody", 'there is no provider "nobody" (there are: api)'),
        ("providers.api.base_url", "", 'base_url must be an http(s) address, not ""'),
        ("providers.api.base_url", "https://me:secret@x/v1", "must not carry credentials"),
        ("providers.api.kind", "offline-teacher", "an offline teacher takes no base_url and no api_key_env"),
        (
            "templates.t.user",
            "About {{ subject }}",
            'templates.t.user: there is no variable "subject" (there are: main_topic,',
        ),
        ("templates.t.user", "{{ prompt", "templates.t.user: unexpected end of template"),
        ("templates.t.user", "{{ prompt | shout }}", "No filter named 'shout'"),
        ("templates.t.user", "{{ prompt.colour }}", "has no attribute 'colour'"),
        ("templates.t.user", "{{ prompt.__class__ }}", "templates.t.user:"),
        ("templates.t.system", "x" * 60_000, "at most 51200 characters"),
        ("datasets", {}, "at least 1 item"),
    ],
)
def test_misuse_is_refused(path, value, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(changed(path, value), tmp_path)
    assert message.lower() in str(caught.value).lower() and caught.value.exit_code == 2


def test_a_missing_key_is_refused_for_a_host_that_is_not_this_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("EXAMPLE_KEY", raising=False)
    provider = load(GOOD, tmp_path).providers["api"]
    with pytest.raises(ConfigError, match="EXAMPLE_KEY is not set"):
        api_key("api", provider)
    monkeypatch.setenv("EXAMPLE_KEY", "sk-1")
    assert api_key("api", provider) == "sk-1"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_this_machine_needs_no_key(host, tmp_path):
    document = changed("providers.api", {"base_url": f"http://{host}:8008/v1"})
    assert api_key("api", load(document, tmp_path).providers["api"]) == ""


def test_every_variable_has_a_sample():
    assert tuple(sample_variables()) == VARIABLES


def test_where_and_how_fast_is_no_part_of_the_result(tmp_path):
    """Address, key, limits and deadlines are runtime: moving an endpoint makes no dataset stale."""
    fast = copy.deepcopy(GOOD)
    fast["providers"]["api"] |= {
        "base_url": "http://127.0.0.1:1/v1",
        "max_in_flight": 7,
        "api_key_env": "OTHER",
    }
    fast["models"]["main"] |= {"timeout_seconds": 1, "max_retries": 1, "max_backoff_seconds": 1}
    fast["journal"] = {"drain_seconds": 1}
    path = tmp_path / "10_generate.json"
    views = []
    for document in (GOOD, fast, changed("models.main.temperature", 0.5)):
        path.write_text(json.dumps(document))
        views.append(load_config(path, GenerateConfig, REPOSITORY).semantic)
    assert views[0] == views[1] != views[2]
