"""The config of stage 20: refusals, external data, and profiles that know their evaluation sets."""

import json
from pathlib import Path

import pytest

from utils.config.corpus import LANGUAGES, CorpusConfig
from utils.config.evaluate import EvaluateConfig
from utils.pipeline.config import load_config, semantic_view
from utils.pipeline.errors import ConfigError
from utils.pipeline.external import EVALUATION
from utils.pipeline.workspace import REPOSITORY, STAGES, Workspace

BOOKS = {"name": "books", "kind": "local", "paths": ["data/raw/*"]}
WEB = {"name": "web", "kind": "hub", "id": "me/web"}
EXAM = {"name": "exam", "paths": ["raw/eval/*.txt"]}
PROFILES = sorted(path.parent.name for path in (REPOSITORY.root / "config").glob("*/20_prepare_corpus.json"))


def config(**changes: object) -> CorpusConfig:
    return CorpusConfig.model_validate({"output": "data/x/corpus", "sources": [BOOKS]} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": [BOOKS, BOOKS]}, 'two sources are called "books"'),
        ({"decontaminate": {"against": [EXAM, EXAM]}}, 'two evaluation sets are called "exam"'),
        (
            {"sources": [BOOKS | {"rules": {"word_length": 3}}]},
            '"word_length" needs a pair such as .3, 10., or "off"',
        ),
        ({"sources": [BOOKS | {"rules": {"top_2gram": [0, 1]}}]}, '"top_2gram" needs one number, or "off"'),
        ({"sources": [BOOKS | {"weight": 2}]}, "a weight other than 1 needs budget.tokens"),
        ({"budget": {"count": "tokenizer"}}, 'budget.count "tokenizer" and inputs.tokenizer need each other'),
        ({"language": {"keep": ["english"]}}, 'no language is called "english"; there are: ace, af, am'),
        ({"executor": {"kind": "dask", "address": "10.0.0.1"}}, '"10.0.0.1" is no address such as'),
        ({"executor": {"kind": "inline", "workers": 2}}, '"workers" is read by kind "local" only; leave it'),
        ({"executor": {"kind": "dask", "address": "tcp://a:1", "workers": 0}}, 'with kind "dask"'),
        (
            {"inputs": {"generated": "data/x"}},
            'no source is of kind "generated": leave "inputs.generated" out',
        ),
        ({"budget": {"on_shortfall": "error"}}, "budget.on_shortfall is not read without budget.tokens"),
        ({"language": {"min_confidence": 0.9}}, "language.min_confidence is not read without language.keep"),
        ({"language": {"on_unknown": "keep"}}, "language.on_unknown is not read without language.keep"),
        *(
            (
                {"deduplicate": {"near": False, key: 1}},
                f"deduplicate.{key} is not read without deduplicate.near",
            )
            for key in ("ngram_words", "similarity", "bands", "rows", "seed")
        ),
        ({"sources": [WEB | {"id": "a/b/c"}]}, "should match pattern"),
    ],
)
def test_refusals(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (BOOKS | {"feilds": {}}, 'unknown key "sources[0].feilds" (did you mean "fields"?)'),
        (WEB | {"splitt": ""}, 'unknown key "sources[0].splitt" (did you mean "split"?)'),
        (BOOKS | {"fields": {"txt": ""}}, 'unknown key "sources[0].fields.txt" (did you mean "text"?)'),
        (BOOKS | {"weight": 0}, '"sources[0].weight": input should be greater than 0'),
        (
            BOOKS | {"preset": "proze"},
            '"sources[0].preset": "proze" is unknown (did you mean "prose"?); known: web, prose, short',
        ),
        (BOOKS | {"preset": 1}, "\"sources[0].preset\": input should be 'web', 'prose' or 'short'"),
        (
            BOOKS | {"rules": {"top2gram": 0.2}},
            '"sources[0].rules.top2gram": "top2gram" is unknown (did you mean "top_2gram"?)',
        ),
        (
            BOOKS | {"rules": {"top_2gram": "on"}},
            '"sources[0].rules.top_2gram": input should be a valid number or a valid array '
            "or 'off', this is \"on\"",
        ),
        ({"kind": "local", "paths": ["x"]}, '"sources[0].name": field required'),
    ],
)
def test_a_mistake_is_told_as_the_file_has_it(tmp_path: Path, source: dict, message: str):
    """Without the names of the branches that a value was tried against."""
    (tmp_path / "20.json").write_text(json.dumps({"output": "data/x/corpus", "sources": [source]}))
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "20.json", CorpusConfig, Workspace(tmp_path, STAGES))
    assert str(error.value) == f"20.json: {message}"


@pytest.mark.parametrize(
    ("changes", "stands"),
    [
        ({"split": {"val_fraction": 0.1, "min_val_documents": 1}}, True),
        ({"shards": {"target_mebibytes": 1, "compression": "gzip"}}, True),
        ({"deduplicate": {"similarity": 0.9}}, True),
        ({"sources": [BOOKS | {"max_removed_fraction": 1, "rules": {"word_length": [2, 12]}}]}, True),
        ({"split": {"by": "document"}}, False),
        ({"deduplicate": {"near": False}}, False),
        ({"budget": {"tokens": 1}}, False),
        ({"seed": 1}, False),
        ({"sources": [BOOKS]}, False),
    ],
)
def test_what_was_read_stands_as_long_as_rows_are_what_they_were(changes: dict, stands: bool):
    workspace = Workspace(Path("/nowhere"), STAGES)
    plain = {"sources": [BOOKS | {"rules": {"word_length": [2, 12]}}]}
    before = json.loads(json.dumps(semantic_view(config(**plain), workspace)))
    assert CorpusConfig.only_adds(before, semantic_view(config(**(plain | changes)), workspace)) == stands


def test_a_budget_looks_at_duplicates_while_it_reads():
    views = [
        semantic_view(
            config(budget={"tokens": 9}, deduplicate={"similarity": s}), Workspace(Path("/"), STAGES)
        )
        for s in (0.8, 0.9)
    ]
    assert not CorpusConfig.only_adds(*views)


def test_the_languages_are_those_of_the_model():
    from utils.corpus.language import _model

    assert sorted(set(_model().languages)) == LANGUAGES


def test_rules_take_numbers_pairs_and_off():
    rules = {"word_length": [2, 20], "top_2gram": 0.5, "stop_words": "off", "line_rules": 500}
    assert config(sources=[BOOKS | {"rules": rules}]).sources[0].rules["word_length"] == (2, 20)


def test_external_data_by_kind(tmp_path: Path):
    for name in ("data/raw/a.txt", "raw/eval/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("text")
    sources = [BOOKS, WEB | {"revision": "v1"}, {"name": "code", "kind": "docstrings", "packages": ["json"]}]
    found = config(sources=sources, decontaminate={"against": [EXAM]}).external_sources(
        Workspace(tmp_path, STAGES)
    )
    assert [(one.name, one.kind) for one in found] == [
        ("books", "local"), ("web", "hub"), ("code", "docstrings"), ("evaluation.exam", EVALUATION),
    ]  # fmt: skip
    web = found[1]
    assert (web.id, web.requested_revision, web.is_floating) == ("me/web, train", "v1", True)
    assert web.at("a" * 40).parts == ("me/web", "", "train", "a" * 40)


def test_stage_100_names_the_files_that_it_measures_on(tmp_path: Path):
    """What `held_out_sources` names must be a source of its own, or nothing would be compared."""
    (tmp_path / "a.txt").write_text("text")
    inputs = dict.fromkeys(("base", "corpus", "sft_data", "preference_data"), "x")
    document = {"output": "data/x/evaluation", "inputs": inputs, "perplexity": {"texts": ["*.txt"]}}
    measured = EvaluateConfig.model_validate(document)
    names = [source.name for source in measured.external_sources(Workspace(tmp_path, STAGES))]
    assert names == list(EvaluateConfig.held_out_sources)


def unguarded_texts(folder: Path, workspace: Workspace) -> set[str]:
    """What stage 100 of a profile measures on though its corpus is not kept clean of it."""
    corpus = load_config(folder / "20_prepare_corpus.json", CorpusConfig, workspace).config
    evaluation = load_config(folder / "100_evaluate.json", EvaluateConfig, workspace).config
    kept_clean = {path for one in corpus.decontaminate.against for path in one.paths}
    return set(evaluation.perplexity.texts) - kept_clean


def test_a_profile_that_measures_on_texts_needs_them_in_its_corpus_config(tmp_path: Path):
    """No shipped profile has texts of its own: what is asked of them is shown here to ask something."""
    workspace = Workspace(tmp_path, STAGES)
    corpus = {"output": "data/x/corpus", "sources": [BOOKS], "decontaminate": {"against": [EXAM]}}
    (tmp_path / "20_prepare_corpus.json").write_text(json.dumps(corpus))
    inputs = dict.fromkeys(("base", "corpus", "sft_data", "preference_data"), "x")
    for texts, unguarded in ((EXAM["paths"], set()), ([*EXAM["paths"], "raw/b.txt"], {"raw/b.txt"})):
        measured = {"output": "data/x/evaluation", "inputs": inputs, "perplexity": {"texts": texts}}
        (tmp_path / "100_evaluate.json").write_text(json.dumps(measured))
        assert unguarded_texts(tmp_path, workspace) == unguarded


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_keep_their_corpus_clean_of_what_they_measure_on(profile: str):
    assert not unguarded_texts(REPOSITORY.root / "config" / profile, REPOSITORY)


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_name_commits_of_the_hub(profile: str):
    path = REPOSITORY.root / "config" / profile / "20_prepare_corpus.json"
    sources = load_config(path, CorpusConfig, REPOSITORY).config.sources
    assert [source.name for source in sources if source.kind == "hub" and len(source.revision) != 40] == []
