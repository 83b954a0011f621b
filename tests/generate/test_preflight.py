"""The look at a provider before the first paid call."""

import json
import time
from dataclasses import dataclass, field

import pytest

from tests.generate.providers import GOOD, KEY, Answer, Provider, body, drop, good, model, slow, status
from utils.config.providers import ModelSpec, ProviderSpec
from utils.generate.errors import Draining
from utils.generate.keys import Key
from utils.generate.preflight import preflight, trial_body
from utils.generate.reply import Reply
from utils.pipeline.errors import ConfigError, LockstepError, StageError

MOO = Reply("moo", "", "stop", 2, 1)


def listing(*names: str) -> Answer:
    return body(json.dumps({"data": [{"id": name} for name in names]}))


@dataclass
class Config:
    providers: dict[str, ProviderSpec]
    used_models: dict[str, ModelSpec]


@dataclass
class Look:
    """A preflight against a script: what it gave and what it logged."""

    provider: Provider
    models: dict[str, ModelSpec] = field(default_factory=lambda: {"main": model()})
    told: list[tuple[str, str]] = field(default_factory=list)
    key: str = KEY

    def run(self, **more: object) -> dict[str, Reply]:
        with self.provider.in_thread() as url:
            spec = ProviderSpec(base_url=url, api_key_env="PLANTED", headers={"X-Project": "moo"})
            config = Config({"p": spec}, self.models)
            return preflight(config, {"p": Key(self.key)}, {"p": url}, self.log, **more)

    def log(self, event: str, text: str, level: str = "info", **fields: object) -> None:
        assert event == "preflight" and fields["provider"] == "p"
        self.told.append((level, text))


def refusal(provider: Provider, models: dict[str, ModelSpec] | None = None) -> LockstepError:
    look = Look(provider, models or {"main": model()})
    with pytest.raises(LockstepError) as caught:
        look.run()
    assert "planted" not in caught.value.report()
    return caught.value


def test_one_get_and_one_call_for_each_model():
    look = Look(Provider(good, models=listing("m", "n")), {"main": model(), "judge": model(model="n")})
    assert look.run() == {"main": MOO, "judge": MOO}
    assert look.told == [("info", 'provider "p" answers: m, n')]
    paths = [seen.path for seen in look.provider.seen]
    assert paths == ["/v1/models", "/v1/chat/completions", "/v1/chat/completions"]
    for seen in look.provider.seen:
        assert seen.headers["Authorization"] == f"Bearer {KEY}" and seen.headers["X-Project"] == "moo"


def test_a_model_under_two_names_is_called_once():
    look = Look(Provider(good, models=listing("m")), {"main": model(), "rejected": model(temperature=0)})
    assert look.run() == {"main": MOO} and look.provider.calls == 1


def test_the_call_asks_for_one_token_with_the_sampling_of_real_ones():
    spec = model(
        temperature=0.5, top_k=7, max_tokens_field="max_completion_tokens", extra_body={"think": False}
    )
    assert trial_body(spec) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Say yes."}],
        "max_completion_tokens": 1,
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 7,
        "think": False,
    }
    assert "top_k" not in trial_body(model()) and trial_body(model())["max_tokens"] == 1


def test_an_offline_teacher_and_an_unused_provider_are_not_asked():
    config = Config(
        {"t": ProviderSpec(kind="offline-teacher"), "u": ProviderSpec(base_url="http://127.0.0.1:9/v1")},
        {"main": model(provider="t")},
    )
    assert preflight(config, {}, {}, lambda *_, **__: None) == {}


@pytest.mark.parametrize(
    "models", [status(404), status(403), body("not json"), body('{"data": []}'), body("[]")]
)
def test_a_missing_list_of_models_is_a_warning(models):
    look = Look(Provider(good, models=models))
    assert look.run() == {"main": MOO}
    assert [level for level, _ in look.told] == ["warning", "info"] and "lists no models" in look.told[0][1]


def test_a_model_that_answers_unlisted_is_a_warning():
    look = Look(Provider(good, models=listing("other")))
    assert look.run() == {"main": MOO}
    assert look.told[0] == ("warning", 'models.main: provider "p" answers as "m", which it does not list')


def test_an_unknown_model_is_named_with_what_there_is():
    error = refusal(
        Provider(status(404, "no such model"), models=listing("gpt-big", "llama-3-8b", "x")),
        {"judge": model(model="llama-3-8B")},
    )
    assert isinstance(error, ConfigError) and error.exit_code == 2
    assert str(error) == 'models.judge: provider "p" refuses a call of "llama-3-8B": HTTP 404 no such model'
    assert error.fix == "correct models.judge; it lists llama-3-8b and 2 more"


def test_a_refused_request_is_an_error_of_the_config():
    text = f"max_tokens is not supported, use max_completion_tokens, {KEY}"
    error = refusal(Provider(status(400, text), models=listing("m")))
    assert isinstance(error, ConfigError) and error.fix == "correct models.main"
    assert str(error).endswith("HTTP 400 max_tokens is not supported, use max_completion_tokens, <key>")


def test_a_model_that_thinks_longer_than_one_token_is_there():
    text = "Could not finish the message because max_tokens or model output limit was reached."
    look = Look(Provider(status(400, text), models=listing("m")))
    assert look.run() == {"main": Reply("", "", "length", 0, 0)}


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_key_stops_the_run(code):
    error = refusal(Provider(status(code), models=status(code)))
    assert isinstance(error, StageError) and error.fix == "check the environment variable PLANTED"
    assert str(error) == f'provider "p" refuses the key: HTTP {code} no, <key>'


@pytest.mark.parametrize(
    "trouble", [status(500), status(429, Retry_After="0"), drop, body("{broken"), slow(3)]
)
def test_passing_troubles_are_waited_for(trouble):
    look = Look(Provider(trouble, trouble, good, models=listing("m")), {"main": model(timeout_seconds=0.5)})
    assert look.run() == {"main": MOO} and look.provider.calls == 3


def test_patience_ends():
    error = refusal(Provider(status(503), models=listing("m")), {"main": model(max_retries=1)})
    assert isinstance(error, StageError) and error.exit_code == 4
    assert str(error) == 'provider "p" does not answer for model "m": HTTP 503 no, <key>'


def test_a_pause_ends_with_the_run():
    look = Look(Provider(status(503, Retry_After="60"), models=listing("m")))
    started = time.monotonic()
    with pytest.raises(Draining):
        look.run(stopping=lambda: time.monotonic() > started + 0.3)
    assert time.monotonic() - started < 10


def test_nobody_there_is_said_at_once():
    config = Config({"p": ProviderSpec(base_url="http://127.0.0.1:9/v1")}, {"main": model()})
    with pytest.raises(
        StageError, match='provider "p" at http://127.0.0.1:9/v1 cannot be reached: '
    ) as caught:
        preflight(config, {"p": Key(KEY)}, {"p": "http://127.0.0.1:9/v1"}, lambda *_, **__: None)
    assert "check base_url" in caught.value.fix


def test_no_proxy_and_no_password_comes_from_the_environment(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    look = Look(Provider(good, models=listing("m")))
    assert look.run() == {"main": MOO}
    assert look.provider.seen[0].headers["Authorization"] == f"Bearer {KEY}"


def test_a_redirection_is_not_followed():
    elsewhere = Provider(body(GOOD))
    with elsewhere.in_thread() as url:
        provider = Provider(status(307, Location=f"{url}/chat/completions"), models=listing("m"))
        assert "HTTP 307" in str(refusal(provider))
    assert elsewhere.seen == []
