"""
API keys: from the environment or `.env`, shown to nobody.

    keys = api_keys(config.providers, REPOSITORY_ROOT)
    keys["lab"].headers("Authorization")          # {"Authorization": "Bearer ..."}
    print(keys["lab"])                            # <key>
    keys["lab"].hide(error_text)                  # the text with the key, however escaped, as <key>

`.env` in the repository root holds NAME=value lines. It never overrides what the environment sets, is never
put into the environment, and a name in it that steers programs (PATH, LD_PRELOAD, HOME, ...) is an error.
"""

import os
import re
from collections.abc import Mapping
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote, urlsplit

from utils.config.providers import ProviderSpec
from utils.pipeline.errors import ConfigError

HIDDEN = "<key>"
SHORTEST_TELLING = 12
"""Shorter keys ("EMPTY", "none") are words that an answer may hold; longer ones are secrets."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STEERS_PROGRAMS = re.compile(
    r".*PATH|LD_.*|DYLD_.*|PYTHON.*|BASH_.*|GIT_.*|HOME|SHELL|USER|LOGNAME|PWD|OLDPWD|TMP|TEMP|TMPDIR|IFS|ENV"
    r"|PS[0-9]|PROMPT_COMMAND|.*_PROXY|SSL_CERT_.*",
    re.IGNORECASE,
)


class Key:
    """A secret, "" for none. Printing, formatting and pickling never show it."""

    def __init__(self, value: str = "") -> None:
        self._value = value

    def __repr__(self) -> str:
        return HIDDEN if self._value else "<no key>"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> tuple:
        raise TypeError("a key is not written anywhere")

    def headers(self, name: str) -> dict[str, str]:
        """The header that carries the key: `Authorization` says "Bearer <key>", others the bare key."""
        if not self._value:
            return {}
        return {name: f"Bearer {self._value}" if name.lower() == "authorization" else self._value}

    def hide(self, text: str) -> str:
        """The text with each occurrence of the key replaced, also percent-encoded, in JSON or in HTML."""
        return self._anyhow.sub(HIDDEN, text) if self._value else text

    def told_by(self, *texts: str) -> bool:
        """Whether a text holds the key, as it is or percent-encoded; words like "EMPTY" do not count."""
        if len(self._value) < SHORTEST_TELLING:
            return False
        return any(self._value in text or self._quoted in text for text in texts)

    @cached_property
    def _quoted(self) -> str:
        return quote(self._value, safe="")

    @cached_property
    def _anyhow(self) -> re.Pattern[str]:
        return re.compile("".join(_ways_to_write(character) for character in self._value))


def api_keys(
    providers: Mapping[str, ProviderSpec], root: Path, environment: Mapping[str, str] = os.environ
) -> dict[str, Key]:
    """
    The key of each provider, by the provider's name.

    `root` is the folder of `.env`. ConfigError when a host that is not loopback has no key, when the named
    variable is one that steers programs, when a key has characters that no header carries, or for a bad
    `.env`.
    """
    named = any(provider.api_key_env for provider in providers.values())
    known = {**read_env_file(root / ".env"), **environment} if named else {}
    return {name: _key_of(name, provider, known) for name, provider in providers.items()}


def read_env_file(path: Path) -> dict[str, str]:
    """NAME=value lines (`export`, quotes, comments allowed). ConfigError names the line, never the value."""
    if not path.exists():
        return {}
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__})", fix="NAME=value lines") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("export ").strip()
        if text and not text.startswith("#"):
            name, value = _assignment(text, f"{path}, line {number}")
            found[name] = value
    return found


def is_loopback(address: str) -> bool:
    """Whether the host of a URL is this machine, by name or number."""
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _key_of(name: str, provider: ProviderSpec, known: Mapping[str, str]) -> Key:
    variable = provider.api_key_env
    if _STEERS_PROGRAMS.fullmatch(variable):
        raise ConfigError(
            f"providers.{name}.api_key_env: {variable} holds no key",
            fix="name a variable of its own, such as LAB_API_KEY",
        )
    value = known.get(variable, "").strip() if variable else ""
    if not value and provider.kind == "openai" and not is_loopback(provider.base_url):
        raise ConfigError(
            f'provider "{name}" needs a key: '
            + (f"the environment variable {variable} is not set" if variable else "api_key_env names none"),
            fix=f"export {variable}=... or write it into .env"
            if variable
            else f"name the variable that holds it in providers.{name}.api_key_env",
        )
    if not all("!" <= character <= "~" for character in value):
        raise ConfigError(
            f"the key in {variable} holds a blank, a line break or a character outside ASCII",
            fix=f"copy the key again into {variable}",
        )
    return Key(value)


def _assignment(text: str, where: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not _NAME.fullmatch(name):
        raise ConfigError(f"{where} is not NAME=value", fix="one NAME=value per line; # begins a comment")
    if _STEERS_PROGRAMS.fullmatch(name):
        raise ConfigError(
            f"{where}: {name} steers programs and has no place there", fix="leave only keys in .env"
        )
    if quoted := re.fullmatch(r"""(["'])(.*?)\1\s*(#.*)?""", value):
        return name, quoted[2]
    return name, re.split(r"\s#", value, maxsplit=1)[0].strip()


def _ways_to_write(character: str) -> str:
    """A pattern for a character as it is or escaped: \\/, %2B, %252B, \\u002b, \\x2b, &#43;, &#x2b;."""
    code = ord(character)
    plain, hexadecimal = re.escape(character), f"(?i:{code:02x})"
    entities = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}
    named = f"|&{entities[character]};" if character in entities else ""
    return (
        rf"(?:%(?:25){{0,4}}{hexadecimal}|\\{{1,8}}u00{hexadecimal}|\\{{1,8}}x{hexadecimal}"
        rf"|&#0{{0,5}}{code};|&#[xX]0{{0,5}}{hexadecimal};{named}|\\{{0,8}}{plain})"
    )
