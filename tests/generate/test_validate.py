"""Every check has its reason by name, and the defaults drop no good answer."""

import json
import re
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from utils.config.answers import ValidationSpec
from utils.generate.reply import Reply
from utils.generate.validate import answer_text, fault_of, normalised, too_similar, words

DATA = Path(__file__).parent / "data"
GOOD = [
    pytest.param(text, id=f"{kind}-{number}")
    for kind, texts in json.loads((DATA / "good_answers.json").read_text()).items()
    for number, text in enumerate(texts)
]
REFUSALS = json.loads((DATA / "refusals.json").read_text())
ENGLISH = (
    "The old man walked down to the harbour every morning and looked at the boats, because his brother had "
    "once sailed away on one of them and had promised to come back before the winter."
)
GERMAN = (
    "Der alte Mann ging jeden Morgen zum Hafen hinunter und sah sich die Schiffe an, weil sein Bruder einst "
    "auf einem davon fortgefahren war und versprochen hatte, vor dem Winter zu kommen."
)
CHINESE = "\u4ece\u524d\u6709\u4e00\u53ea\u5c0f\u72d0\u72f8\u4f4f\u5728\u6cb3\u8fb9"
CODE = "\n".join(f"x{n} = [{n}, {n + 1}]; y{n} += x{n}[0] * {n};  // {n} -> {n * n}" for n in range(12))
PATTERNS = ["x", r"\d{3}-\d{4}"]


def reply(content: str, finish_reason: str = "stop") -> Reply:
    return Reply(content, "", finish_reason, 10, 10)


def fault(content: str, side: str = "chosen", finish_reason: str = "stop", **spec: object) -> str:
    return fault_of(reply(content, finish_reason), ValidationSpec.model_validate(spec), side)


def test_there_are_two_hundred_good_answers():
    assert len({param.values[0] for param in GOOD}) >= 200


@pytest.mark.parametrize("text", GOOD)
def test_defaults_drop_no_good_answer(text):
    assert fault(text) == ""
    assert fault(text, "rejected") == ""


@pytest.mark.parametrize("text", REFUSALS, ids=range(len(REFUSALS)))
def test_refusals_are_caught_unless_switched_off_or_rejected(text):
    assert fault(text) == "refusal"
    assert fault(text.upper()) == "refusal"
    assert fault(text.replace("'", "\u2019")) == "refusal"
    assert fault(text, "rejected") == ""
    assert fault(text, refusals=False) == ""


def test_a_refusal_later_in_an_answer_is_none():
    assert fault("It opens at nine. I'm sorry, but I can't help with that.") == ""


def test_more_beginnings_may_count_as_refusals():
    patterns = {"refusal_patterns": ["lo siento", r"no\s+comment\b"]}
    assert fault("**Lo siento**, no puedo.", **patterns) == "refusal"
    assert fault("No  comment.", **patterns) == "refusal"
    assert fault("She had no comment. Lo siento.", **patterns) == ""
    assert fault("No comment.", refusals=False, **patterns) == ""


@given(st.text(alphabet="iI'm sorry,but can't help as an ai.\n*", max_size=700))
@settings(max_examples=200)
def test_looking_for_refusals_never_raises(text):
    assert fault(text) in ("", "refusal", "empty")


@pytest.mark.parametrize(
    "opening", ["sorry ", "i understand ", "thank you ", "as a ", "my apologies ", "i cannot ", "no, "]
)
def test_looking_for_refusals_takes_no_time(opening):
    began = time.process_time()
    for _ in range(20):
        fault(opening * 2000)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("content", "finish_reason", "spec", "reason"),
    {
        "nothing": ("", "stop", {}, "empty"),
        "blanks": (" \n\t", "stop", {}, "empty"),
        "what nobody sees": ("\u200b\ufeff \u200d", "stop", {}, "empty"),
        "filtered": ("Well", "content_filter", {}, "content_filter"),
        "filtered, nothing left": ("", "content_filter", {}, "content_filter"),
        "truncated": ("Well", "length", {}, "truncated"),
        "truncated, accepted": ("Well", "length", {"accept_truncated": True}, ""),
        "truncated to nothing, accepted": ("", "length", {"accept_truncated": True}, "empty"),
        "another end": ("Well", "", {}, ""),
        "too short": ("four", "stop", {"min_characters": 5}, "too_short"),
        "short enough": ("fours", "stop", {"min_characters": 5}, ""),
        "blanks around do not count": (" four ", "stop", {"min_characters": 5}, "too_short"),
        "too long": ("fourss", "stop", {"max_characters": 5}, "too_long"),
        "long enough": ("fours", "stop", {"max_characters": 5}, ""),
        "too few words": ("one two", "stop", {"min_words": 3}, "too_few_words"),
        "enough words": ("one two three", "stop", {"min_words": 3}, ""),
        "too many words": ("one two three four", "stop", {"max_words": 3}, "too_many_words"),
        "few words": ("one two three", "stop", {"max_words": 3}, ""),
        "enough Chinese": ("\u5317\u4eac\u5f88\u5927\u3002", "stop", {"min_words": 4}, ""),
        "too much Chinese": ("\u5317\u4eac\u5f88\u5927\u3002", "stop", {"max_words": 3}, "too_many_words"),
        "forbidden": ("call 555-1234 now", "stop", {"forbidden_patterns": PATTERNS}, "forbidden_pattern"),
        "not forbidden": ("call me", "stop", {"forbidden_patterns": PATTERNS}, ""),
        "no match": ("blue", "stop", {"must_match": r"\d"}, "no_match"),
        "match": ("blue 1", "stop", {"must_match": r"\d"}, ""),
        "a word without end": ("go " * 40, "stop", {}, "repetitive"),
        "a word without end, short": ("go " * 39, "stop", {}, ""),
        "a word without end, unchecked": ("go " * 40, "stop", {"max_repetition": 1}, ""),
        "a sentence without end": ("I like it very much. " * 10, "stop", {}, ""),
        "sentence without end, strict": ("I like it. " * 16, "stop", {"max_repetition": 0.2}, "repetitive"),
        "a character without end": ("\u54c8" * 40, "stop", {}, "repetitive"),
        "another language": (GERMAN, "stop", {"languages": ["en"]}, "language"),
        "a language of two": (GERMAN, "stop", {"languages": ["en", "de"]}, ""),
        "the language": (ENGLISH, "stop", {"languages": ["en"]}, ""),
        "another language, too short to tell": ("Der alte Mann ging.", "stop", {"languages": ["en"]}, ""),
        "code around the language": (f"```\n{GERMAN}\n```\n{ENGLISH}", "stop", {"languages": ["en"]}, ""),
        "code without a fence": (CODE, "stop", {"languages": ["en"]}, ""),
        "only code": (f"```\n{GERMAN}", "stop", {"languages": ["en"]}, ""),
    }.values(),
)  # fmt: skip
def test_each_check_has_its_reason(content, finish_reason, spec, reason):
    assert fault(content, finish_reason=finish_reason, **spec) == reason


def test_a_rejected_answer_need_not_match_but_must_keep_to_the_rest():
    assert fault("blue", "rejected", must_match=r"\d") == ""
    assert fault("blue", "rejected", forbidden_patterns=["blue"]) == "forbidden_pattern"
    assert fault("", "rejected") == "empty"
    assert fault("go " * 40, "rejected") == "repetitive"
    assert fault("blue", "rejected", finish_reason="length") == "truncated"


def test_an_answer_is_kept_without_blanks_around_it():
    assert answer_text(reply("\n four \n")) == "four"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("languages", ["en", "xx"], '"xx" is no language that can be told'),
        ("forbidden_patterns", ["("], '"\\(" is not a regular expression'),
        ("refusal_patterns", ["["], '"\\[" is not a regular expression'),
    ],
)
def test_what_cannot_be_checked_is_refused(key, value, message):
    with pytest.raises(ValidationError, match=message):
        ValidationSpec.model_validate({key: value})


def test_the_language_model_is_loaded_only_when_languages_are_set():
    program = (
        "import sys\n"
        "from utils.config.answers import ValidationSpec\n"
        "from utils.generate.reply import Reply\n"
        "from utils.generate.validate import fault_of\n"
        "fault_of(Reply('one ' * 30, '', 'stop', 1, 1), ValidationSpec())\n"
        "assert 'py3langid' not in sys.modules\n"
        "fault_of(Reply('one ' * 30, '', 'stop', 1, 1), ValidationSpec(languages=['en']))\n"
        "assert 'py3langid' in sys.modules\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("one two  three\n", 3),
        ("caf\u00e9 au lait", 3),
        ("\u5317\u4eac is big", 4),
        ("\u306f\u3044", 2),
        ("\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4", 2),
        ("\u0e14\u0e35", 2),
        ("", 0),
    ],
)
def test_words_are_counted_in_every_script(text, number):
    assert len(words(text)) == number


@pytest.mark.parametrize(
    ("chosen", "rejected", "most", "same"),
    [
        ("Four.", "four", 0.9, True),
        ("Four.", " FOUR!", 1.0, True),
        ("Four.", "Five.", 0.9, False),
        (ENGLISH, ENGLISH.replace("winter", "spring"), 0.9, True),
        (ENGLISH, ENGLISH.replace("winter", "spring"), 1.0, False),
        (ENGLISH, ENGLISH.replace("morning", "day").replace("brother", "son"), 0.9, False),
        (ENGLISH, ENGLISH.replace("morning", "day").replace("brother", "son"), 0.6, True),
        (ENGLISH, GERMAN, 0.1, False),
        (CHINESE, CHINESE.replace("\u6cb3", "\u5c71"), 0.5, True),
        ("a", "b", 0.01, False),
    ],
)  # fmt: skip
def test_a_rejected_answer_must_differ(chosen, rejected, most, same):
    spec = ValidationSpec(max_similarity=most)
    assert too_similar(chosen, rejected, spec) is same
    assert too_similar(rejected, chosen, spec) is same


PUNCTUATION = re.compile(
    r"""[!"#%&'()*,\-./:;?@\[\\\]_{}\u00a1\u00a7\u00ab\u00b6\u00b7\u00bb\u00bf\u2010-\u2027\u2030-\u205e"""
    r"""\u3001-\u3003\u3008-\u3011]"""
)


@given(st.text(max_size=40) | st.text(alphabet="aB1 !-_.\u00df\u00c4\uff21\u3002\u2019\n\x1c", max_size=40))
@settings(max_examples=500)
def test_normalising_is_nfkc_case_blanks_and_punctuation(text):
    folded = re.sub(r"(?<![\w)])-(?=\d)", "\u2212", unicodedata.normalize("NFKC", text).casefold())
    assert normalised(text) == (" ".join(PUNCTUATION.sub("", folded).split()) or " ".join(folded.split()))


def test_texts_of_punctuation_alone_stay_apart():
    assert normalised("?!") == "?!" != normalised("!?")


@pytest.mark.bench
def test_checks_take_less_than_thirty_microseconds():
    answer = reply(" ".join(ENGLISH.split() * 3)[:560])
    spec = ValidationSpec()
    began = time.perf_counter()
    for _ in range(2000):
        fault_of(answer, spec)
    assert (time.perf_counter() - began) / 2000 < 30e-6


def test_the_sign_of_a_number_is_no_punctuation() -> None:
    assert normalised("16 minus 17 is -1.") != normalised("16 minus 17 is 1.")
    assert normalised("It is -1.") == normalised("It is \u22121")
    assert normalised("pages 3-7, well-known") == normalised("pages 37 wellknown")
