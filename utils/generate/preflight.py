"""
A look at every API before the first paid call: is it there, does it take the key, does it know the models?

    replies = preflight(config, keys, addresses, log)      # {"main": Reply(...)}: what the look itself used

Costs one GET for each `openai` provider and one call of one output token for each of its models that the run
uses, the calls of a provider side by side; offline teachers are part of the program and are not asked.
Synchronous: stage 10 does it in a thread, beside its first calls for lists.
"""

import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

import requests

from utils.config.providers import ModelSpec, ProviderSpec
from utils.generate.budget import Budget
from utils.generate.errors import BrokenReply, Draining
from utils.generate.journal import Journal
from utils.generate.keys import Key
from utils.generate.reply import Reply, read_reply
from utils.generate.retry import Failure, asked_pause_seconds, pause_seconds, verdict_on
from utils.pipeline.errors import ConfigError, LockstepError, StageError
from utils.pipeline.hashing import sha256_hex

STEP = "preflight"
"""Its name in the accounts."""
CONNECT_SECONDS = 10.0
LIST_SECONDS = 30.0
LOOK_SECONDS = 0.2
EXCERPT_BYTES, EXCERPT_CHARACTERS = 64 * 1024, 300
THOUGHT_TOO_LONG = "output limit was reached"
"""How some models that think first refuse to answer within one token: a sign of life all the same."""


class Asked(Protocol):
    """The part of a config that says whom to ask."""

    @property
    def providers(self) -> Mapping[str, ProviderSpec]: ...

    @property
    def used_models(self) -> Mapping[str, ModelSpec]: ...


def preflight(
    config: Asked,
    keys: Mapping[str, Key],
    addresses: Mapping[str, str],
    log: Callable[..., None],
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Reply]:
    """
    What each test call gave, by the name of the model in the config.

    ConfigError (exit 2) for a model or a request that a provider refuses, StageError for one that cannot be
    reached, does not answer or refuses the key; Draining when `stopping` became true.
    """
    replies: dict[str, Reply] = {}
    for name, provider in config.providers.items():
        models = {key: model for key, model in config.used_models.items() if model.provider == name}
        if provider.kind == "openai" and models:
            look = _Look(name, addresses[name], keys[name], provider, log, stopping)
            replies |= look.at(models)
    return replies


def note_preflight(
    replies: Mapping[str, Reply], models: Mapping[str, ModelSpec], journal: Journal, budget: Budget
) -> None:
    """The test calls were paid for like any other: they stand in the journal, in usage and in cost."""
    for name, reply in replies.items():
        journal.add_reply(sha256_hex(f"{STEP}\n{name}".encode())[:32], name, STEP, reply)
        budget.charge(models[name].provider, name, STEP, reply)


def trial_body(model: ModelSpec) -> dict[str, object]:
    """A request for one token, with the sampling fields of real ones, so that a refusal of those shows."""
    sampling = {"temperature": model.temperature, "top_p": model.top_p, model.max_tokens_field: 1}
    sampling |= {name: value for name in ("top_k", "min_p") if (value := getattr(model, name))}
    messages = [{"role": "user", "content": "Say yes."}]
    return model.extra_body | {"model": model.model, "messages": messages} | sampling


@dataclass
class _Look:
    """One provider under examination."""

    name: str
    address: str
    key: Key
    provider: ProviderSpec
    log: Callable[..., None]
    stopping: Callable[[], bool]

    def at(self, models: Mapping[str, ModelSpec]) -> dict[str, Reply]:
        """The reply of each model that no other entry names already."""
        listed = self._listed()
        distinct: dict[str, str] = {}
        for key, model in models.items():
            distinct.setdefault(model.model, key)
        with ThreadPoolExecutor(len(distinct)) as threads:
            tried = {key: threads.submit(self._try, key, models[key], listed) for key in distinct.values()}
            replies = {key: future.result() for key, future in tried.items()}
        self.log("preflight", f'provider "{self.name}" answers: {", ".join(distinct)}', provider=self.name)
        return replies

    def _listed(self) -> list[str]:
        """Names of the models that the provider lists; [] with a warning when it does not say."""
        try:
            response = self._send("GET", "/models", LIST_SECONDS)
        except (requests.RequestException, OSError) as error:
            raise StageError(
                f'provider "{self.name}" at {self.address} cannot be reached: {self._told(error)}',
                fix="check base_url, the network and the service; the same command starts again",
            ) from None
        names = [self._told(name) for name in _names_in(response)]
        if not names:
            text = f'provider "{self.name}" lists no models (HTTP {response.status_code} for /models)'
            self.log("preflight", text, level="warning", provider=self.name)
        return names

    def _try(self, key: str, model: ModelSpec, listed: list[str]) -> Reply:
        """One call, with the patience of any call."""
        rng = random.Random(key)
        for attempt in range(model.max_retries + 1):
            outcome = self._ask(model)
            if isinstance(outcome, Reply):
                self._compare(key, model, listed)
                return outcome
            if not outcome.retry:
                raise self._refusal(key, model, outcome, listed)
            if attempt < model.max_retries:
                self._wait(pause_seconds(attempt, outcome.asked_seconds, model.max_backoff_seconds, rng))
        raise StageError(
            f'provider "{self.name}" does not answer for model "{model.model}": '
            f"{outcome.reason} {outcome.excerpt}",
            fix="try again later; the same command starts again",
        )

    def _ask(self, model: ModelSpec) -> Reply | Failure:
        try:
            response = self._send("POST", "/chat/completions", model.timeout_seconds, trial_body(model))
        except (requests.RequestException, OSError) as error:
            return Failure("transport", self._told(error), retry=True)
        status, text = response.status_code, response.content[:EXCERPT_BYTES].decode("utf-8", "replace")
        told = self._told(text)
        if status == 400 and THOUGHT_TOO_LONG in text:
            return Reply("", "", "length", 0, 0)
        if verdict_on(status) == "good":
            try:
                reply = read_reply(response.content)
            except BrokenReply:
                return Failure("broken_reply", told, retry=True, status=status)
            if self.key.told_by(*reply.texts):
                raise StageError(
                    f'provider "{self.name}" repeats the key in a reply of "{model.model}"',
                    fix="ask another server: replies are kept, and a key must never be written down",
                )
            return reply
        asked = asked_pause_seconds(status, response.headers)
        return Failure(f"HTTP {status}", told, verdict_on(status) == "retry", status, asked)

    def _refusal(self, key: str, model: ModelSpec, failure: Failure, listed: list[str]) -> LockstepError:
        said = f"{failure.reason} {failure.excerpt}"
        if verdict_on(failure.status) == "forbidden":
            variable = self.provider.api_key_env
            return StageError(
                f'provider "{self.name}" refuses the key: {said}',
                fix=f"check the environment variable {variable}"
                if variable
                else f"name the variable that holds it in providers.{self.name}.api_key_env",
            )
        near = get_close_matches(model.model, listed, n=3, cutoff=0.4) or listed[:3]
        rest = f" and {len(listed) - len(near):,} more" if len(listed) > len(near) else ""
        known = f"; it lists {', '.join(near)}{rest}" if near and model.model not in listed else ""
        return ConfigError(
            f'models.{key}: provider "{self.name}" refuses a call of "{model.model}": {said}',
            fix=f"correct models.{key}{known}{self._doubtful_address(failure)}",
        )

    def _doubtful_address(self, failure: Failure) -> str:
        """A hint, where a 404 may come from an address that is not the root of an API."""
        if failure.status != 404 or self.address.rstrip("/").endswith("/v1"):
            return ""
        return f", or providers.{self.name}.base_url: it usually ends in /v1"

    def _compare(self, key: str, model: ModelSpec, listed: list[str]) -> None:
        if listed and model.model not in listed:
            text = f'models.{key}: provider "{self.name}" answers as "{model.model}", which it does not list'
            self.log("preflight", text, level="warning", provider=self.name)

    def _send(
        self, method: str, path: str, seconds: float, body: dict[str, object] | None = None
    ) -> requests.Response:
        headers = self.provider.headers | self.key.headers(self.provider.api_key_header)
        timeout = (min(CONNECT_SECONDS, seconds), seconds)
        url = self.address.rstrip("/") + path
        with requests.Session() as session:
            session.trust_env = False  # no proxy and no password from the environment or ~/.netrc
            return session.request(
                method, url, json=body, headers=headers, timeout=timeout, allow_redirects=False
            )

    def _told(self, what: object) -> str:
        """One short line, without the key."""
        return " ".join(self.key.hide(str(what)).split())[:EXCERPT_CHARACTERS]

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.stopping():
                raise Draining
            time.sleep(min(left, LOOK_SECONDS))


def _names_in(response: requests.Response) -> list[str]:
    try:
        return [entry["id"] for entry in response.json()["data"]] if response.status_code == 200 else []
    except (ValueError, KeyError, TypeError):
        return []
