"""Where keys come from, and that they go nowhere."""

import copy
import html
import json
import os
import pickle
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.config.providers import ProviderSpec
from utils.generate.keys import Key, api_keys, is_loopback, read_env_file
from utils.pipeline.errors import ConfigError

SECRET = "sk-planted/0123+456=789<&>\"'x"


def far(**changes: object) -> ProviderSpec:
    return ProviderSpec(**{"base_url": "https://api.example.com/v1", "api_key_env": "LAB_KEY"} | changes)


def near(**changes: object) -> ProviderSpec:
    return ProviderSpec(**{"base_url": "http://127.0.0.1:8000/v1"} | changes)


def authorization(key: Key) -> str:
    return key.headers("Authorization").get("Authorization", "")


def test_the_environment_wins_over_the_file(tmp_path):
    (tmp_path / ".env").write_text("LAB_KEY=from-file\nOTHER_KEY=only-file\n")
    providers = {"a": far(), "b": far(api_key_env="OTHER_KEY")}
    keys = api_keys(providers, tmp_path, {"LAB_KEY": "from-environment"})
    assert authorization(keys["a"]) == "Bearer from-environment"
    assert authorization(keys["b"]) == "Bearer only-file"
    assert "OTHER_KEY" not in os.environ, "the file is never put into the environment"


def test_an_empty_variable_is_set_all_the_same(tmp_path):
    (tmp_path / ".env").write_text("LAB_KEY=from-file\n")
    with pytest.raises(ConfigError, match="LAB_KEY is not set"):
        api_keys({"a": far()}, tmp_path, {"LAB_KEY": ""})


@pytest.mark.parametrize(
    "spec", [near(), near(base_url="http://localhost:1/v1"), near(base_url="http://[::1]:1/v1")]
)
def test_a_loopback_host_needs_no_key(spec, tmp_path):
    assert not api_keys({"a": spec}, tmp_path, {})["a"]


def test_an_offline_teacher_needs_no_key(tmp_path):
    assert not api_keys({"a": ProviderSpec(kind="offline-teacher")}, tmp_path, {})["a"]


def test_a_loopback_host_that_names_a_variable_may_do_without_it(tmp_path):
    assert not api_keys({"a": near(api_key_env="LAB_KEY")}, tmp_path, {})["a"]
    assert api_keys({"a": near(api_key_env="LAB_KEY")}, tmp_path, {"LAB_KEY": "x"})["a"]


@pytest.mark.parametrize(
    "url", ["https://api.example.com/v1", "http://10.0.0.2/v1", "http://localhost.example.com/v1"]
)
def test_a_far_host_without_a_key_is_refused(url, tmp_path):
    with pytest.raises(ConfigError, match='provider "lab" needs a key.*LAB_KEY is not set') as caught:
        api_keys({"lab": far(base_url=url)}, tmp_path, {})
    assert "export LAB_KEY=..." in caught.value.fix and caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="needs a key: api_key_env names none") as caught:
        api_keys({"lab": far(base_url=url, api_key_env="")}, tmp_path, {})
    assert caught.value.fix == "name the variable that holds it in providers.lab.api_key_env"


@pytest.mark.parametrize("value", ["two words", "line\nbreak", "t\u00e4st", "tab\tstop", "nul\0"])
def test_a_key_that_no_header_carries_is_refused_and_not_shown(value, tmp_path):
    with pytest.raises(ConfigError, match="the key in LAB_KEY holds a blank") as caught:
        api_keys({"lab": far()}, tmp_path, {"LAB_KEY": value})
    assert value not in caught.value.report()


def test_blanks_around_a_key_do_not_count(tmp_path):
    assert authorization(api_keys({"lab": far()}, tmp_path, {"LAB_KEY": " abc\n"})["lab"]) == "Bearer abc"


@pytest.mark.parametrize("name", ["PATH", "HOME", "LD_PRELOAD", "PYTHONPATH", "SHELL"])
def test_variables_that_steer_programs_hold_no_keys(name, tmp_path):
    with pytest.raises(ConfigError, match=f"api_key_env: {name} holds no key"):
        api_keys({"lab": far(api_key_env=name)}, tmp_path, dict(os.environ) | {name: "/usr/bin"})


# .env


def env_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / ".env"
    path.write_text(text)
    return path


def test_a_file_of_keys(tmp_path):
    text = """\ufeff# keys of the lab
A=1
 export B = two
C="quoted # not a comment" # a comment
D='single'
E=plain # a comment
F=has#hash
G=
H="open
I=a=b=c

LAB_PATHWAY=7
"""
    assert read_env_file(env_file(tmp_path, text)) == {
        "A": "1",
        "B": "two",
        "C": "quoted # not a comment",
        "D": "single",
        "E": "plain",
        "F": "has#hash",
        "G": "",
        "H": '"open',
        "I": "a=b=c",
        "LAB_PATHWAY": "7",
    }


def test_no_file_is_no_keys(tmp_path):
    assert read_env_file(tmp_path / ".env") == {}


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "DYLD_INSERT_LIBRARIES",
        "HOME",
        "SHELL",
    ]
    + ["NODE_PATH", "BASH_ENV", "IFS", "GIT_SSH_COMMAND", "HTTPS_PROXY", "path", "TMPDIR"],
)
def test_names_that_steer_programs_are_refused(name, tmp_path):
    path = env_file(tmp_path, f"LAB_KEY=abc\nexport {name}=/somewhere/secret\n")
    with pytest.raises(ConfigError, match=rf"\.env, line 2: {name} steers programs") as caught:
        api_keys({"lab": far()}, path.parent, {})
    assert "secret" not in caught.value.report()


@pytest.mark.parametrize(
    "line", ["sk-secret", "=sk-secret", "A B=sk-secret", "9A=sk-secret", "A-B=sk-secret"]
)
def test_a_line_that_is_no_assignment_is_refused_and_not_shown(line, tmp_path):
    with pytest.raises(ConfigError, match="line 1 is not NAME=value") as caught:
        read_env_file(env_file(tmp_path, line))
    assert "secret" not in caught.value.report()


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / ".env").write_bytes(b"A=\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_env_file(tmp_path / ".env")
    (tmp_path / "folder" / ".env").mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_env_file(tmp_path / "folder" / ".env")


def test_the_file_is_not_read_when_no_provider_names_a_variable(tmp_path):
    env_file(tmp_path, "PATH=/x")
    assert not api_keys({"a": near()}, tmp_path, {})["a"]


# secrecy


def test_headers():
    assert Key("abc").headers("Authorization") == {"Authorization": "Bearer abc"}
    assert Key("abc").headers("authorization") == {"authorization": "Bearer abc"}
    assert Key("abc").headers("api-key") == {"api-key": "abc"}
    assert Key("").headers("Authorization") == {}


def test_a_key_is_not_shown_and_not_written():
    key = Key(SECRET)
    assert SECRET not in f"{key} {key!r} {[key]} { ({'a': key}) }" and str(key) == "<key>"
    assert repr(Key()) == "<no key>" and key and not Key()
    for write in (pickle.dumps, copy.copy, json.dumps):
        with pytest.raises(TypeError):
            write(key)


WAYS = {
    "as it is": lambda text: text,
    "percent": lambda text: quote(text, safe=""),
    "percent, all of it": lambda text: "".join(f"%{ord(c):02x}" for c in text),
    "percent twice": lambda text: quote(quote(text, safe=""), safe=""),
    "json": json.dumps,
    "json in json": lambda text: json.dumps(json.dumps(text)),
    "json, slashes escaped": lambda text: json.dumps(text).replace("/", "\\/"),
    "json, numbers": lambda text: "".join(f"\\u{ord(c):04X}" for c in text),
    "repr": lambda text: repr("\u00e9" + text),
    "python bytes": lambda text: "".join(f"\\x{ord(c):02x}" for c in text),
    "html": html.escape,
    "html, numbers": lambda text: "".join(f"&#{ord(c)};" for c in text),
    "html, hexadecimal": lambda text: "".join(f"&#x{ord(c):X};" for c in text),
    "mixed": lambda text: "".join(f"%{ord(c):02X}" if i % 2 else c for i, c in enumerate(text)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_key_is_hidden_however_it_is_written(way):
    text = f"bad key {way(SECRET)}, sorry {way(SECRET)}"
    hidden = Key(SECRET).hide(text)
    assert hidden.count("<key>") == 2 and "planted" not in hidden and hidden.startswith("bad key ")
    assert Key("").hide(text) == text


@given(
    st.text(alphabet=[chr(code) for code in range(33, 127)], min_size=8, max_size=40),
    st.sampled_from([*WAYS]),
)
def test_any_key_is_hidden(secret, way):
    hidden = Key(secret).hide(f"[{WAYS[way](secret)}]")
    assert hidden.count("<key>") == 1 and set(hidden.replace("<key>", "")) <= set("[]\"'\\\u00e9")


@pytest.mark.parametrize("text", ["\\" * 60_000, "%25" * 20_000, "&#000" * 12_000, "sk-planted/" * 6_000])
def test_hiding_takes_no_long_time(text):
    started = time.monotonic()
    assert Key(SECRET).hide(text) == text and time.monotonic() - started < 2


def test_an_answer_that_tells_the_key_is_known():
    key = Key(SECRET)
    assert key.told_by(f"it is {SECRET}.") and key.told_by(f"?key={quote(SECRET, safe='')}")
    assert not key.told_by("it is a secret")
    assert not Key("EMPTY").told_by("the box is EMPTY") and not Key().told_by("anything")


@pytest.mark.parametrize(
    "url, near",
    [("http://localhost/v1", True), ("http://127.8.9.1:80", True), ("http://[::1]/", True)]
    + [
        ("http://localhost.evil.com", False),
        ("http://10.0.0.1", False),
        ("https://api.x.com", False),
        ("", False),
    ],
)
def test_loopback_hosts(url, near):
    assert is_loopback(url) is near
