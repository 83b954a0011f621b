"""Files of topics, prompts and texts to leave out: what is read, and what is refused."""

import gzip
import json

import pytest
import zstandard

from tests.generate.helpers import config
from utils.generate.given import PROMPTS_PER_BLOCK, Given, PromptsFile
from utils.pipeline.errors import ConfigError
from utils.pipeline.workspace import REPOSITORY

WITHOUT_LISTS = {"dataset": {"templates": {}}, "num_subtopics": 0, "templates": {}}


def given(tmp_path, name: str, text: str, key: str, **more: object) -> Given:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return Given.read(config(rows=2, **WITHOUT_LISTS, **{key: str(tmp_path / name)}, **more), REPOSITORY)


def test_nothing_is_given_by_default():
    found = Given.read(config(), REPOSITORY)
    assert (found.topics, found.prompts, found.excluded, found.digests()) == ([], None, [], {})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("topics.txt", "\ufeffcows\n\n  dogs \nCOWS.\n"),
        ("topics.jsonl", '{"subtopic": "cows"}\n{"subtopic": "dogs", "more": 1}\n\n{"subtopic": "Cows"}'),
    ],
)
def test_topics_are_lines_without_repetitions(tmp_path, name, text):
    assert given(tmp_path, name, text, "topics_file").topics == ["cows", "dogs"]


def test_topics_leave_out_what_is_excluded(tmp_path):
    (tmp_path / "excluded.txt").write_text("Dogs!\n")
    limits = {"subtopics": 0.8, "exclude_file": str(tmp_path / "excluded.txt")}
    assert given(tmp_path, "topics.txt", "cows\ndogs\n", "topics_file", duplicates=limits).topics == ["cows"]


def test_prompts_are_read_block_by_block(tmp_path):
    lines = [
        {"prompt": f"prompt {n}", "subtopic": f"s{n}"} if n % 2 else {"prompt": f"prompt {n}"}
        for n in range(250)
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)))
    file = PromptsFile(path)
    assert (file.num_prompts, file.num_blocks) == (250, 2)
    read = [prompt for number in range(2) for prompt in file.block(number)]
    assert [prompt.text for prompt in read] == [f"prompt {n}" for n in range(250)]
    assert [prompt.subtopic for prompt in read[:2]] == ["", "s1"] and len(file.block(0)) == PROMPTS_PER_BLOCK


@pytest.mark.parametrize(
    ("key", "name", "text", "message"),
    [
        ("topics_file", "topics.txt", "\n \n", "holds no subtopic"),
        ("prompts_file", "prompts.txt", "", "holds no prompt"),
        ("prompts_file", "prompts.jsonl", '{"question": "?"}', 'line 1 is unfit: it has no text in "prompt"'),
        ("prompts_file", "prompts.jsonl", '{"prompt": "?"}\n{', "line 2 is unfit: "),
        ("prompts_file", "prompts.jsonl", '{"prompt": "?", "subtopic": 3}', '"subtopic" is no text'),
        ("topics_file", "topics.jsonl", '["cows"]', 'it has no text in "subtopic"'),
    ],
)
def test_files_that_do_not_fit_are_refused_with_the_line(tmp_path, key, name, text, message):
    with pytest.raises(ConfigError, match=message):
        given(tmp_path, name, text, key)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "topics.txt").write_bytes(b"cows\n\xff\xfe\n")
    with pytest.raises(ConfigError, match="topics.txt, line 2 is unfit"):
        Given.read(config(rows=2, **WITHOUT_LISTS, topics_file=str(tmp_path / "topics.txt")), REPOSITORY)


def packed(path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else zstandard.compress(data))


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_packed_files_are_read_like_plain_ones(tmp_path, suffix):
    prompts = [{"prompt": f"prompt {n}"} for n in range(450)]
    packed(tmp_path / f"prompts.jsonl.{suffix}", "\n".join(map(json.dumps, prompts)).encode())
    packed(tmp_path / f"topics.txt.{suffix}", b"cows\ndogs\n")
    file = PromptsFile(tmp_path / f"prompts.jsonl.{suffix}")
    assert (file.num_prompts, file.num_blocks) == (450, 3)
    assert [prompt.text for prompt in file.block(2)] == [f"prompt {n}" for n in range(400, 450)]
    topics = config(rows=2, **WITHOUT_LISTS, topics_file=str(tmp_path / f"topics.txt.{suffix}"))
    assert Given.read(topics, REPOSITORY).topics == ["cows", "dogs"]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_packed_file_that_was_cut_short_is_refused_with_its_last_line(tmp_path, suffix):
    path = tmp_path / f"prompts.txt.{suffix}"
    packed(path, b"".join(b"%d %x\n" % (n, hash(str(n)) & 0xFFFFFFFF) for n in range(200_000)))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ConfigError, match=r"is damaged after line \d+,\d+"):
        PromptsFile(path)


def test_a_packed_line_that_is_unfit_is_named_by_its_number(tmp_path):
    packed(tmp_path / "prompts.jsonl.gz", b'{"prompt": "a"}\n\n{"prompt": 3}\n')
    with pytest.raises(ConfigError, match="line 3 is unfit"):
        PromptsFile(tmp_path / "prompts.jsonl.gz")


def test_more_subtopics_than_the_file_has_are_refused(tmp_path):
    (tmp_path / "topics.txt").write_text("cows\ndogs\nCows\n")
    wanted = config(rows=5, num_subtopics=3, topics_file=str(tmp_path / "topics.txt"))
    with pytest.raises(ConfigError, match="num_subtopics: 3 are wanted, and .* has 2 different ones"):
        Given.read(wanted, REPOSITORY)


def test_counts_that_follow_from_the_file_keep_to_the_limits(tmp_path):
    (tmp_path / "topics.txt").write_text("cows\ndogs\n")
    dataset = {"num_prompts_per_subtopic": 10, "templates": {}}
    wanted = config(
        rows=0,
        num_subtopics=0,
        dataset=dataset,
        templates={},
        topics_file=str(tmp_path / "topics.txt"),
        limits={"max_rows": 19},
    )
    with pytest.raises(ConfigError, match="20 by .* is more than limits.max_rows = 19"):
        Given.read(wanted, REPOSITORY)


def test_digests_change_with_the_content(tmp_path):
    first = given(tmp_path, "topics.txt", "cows\n", "topics_file").digests()
    second = given(tmp_path, "topics.txt", "dogs\n", "topics_file").digests()
    assert set(first) == {"topics"} and first != second
