"""
Every gate passes on the right file and fails on each planted mistake.

The checkpoint is trained: with random weights a missing permutation passes the logit gate of a small model.
"""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.export.test_gguf_write import copy_with
from tests.export.tiny_model import CHATML
from utils.export import gguf_write
from utils.export.gguf_convert import Evidence
from utils.export.gguf_quantize import quantize_gguf
from utils.export.gguf_reader import reader_gate
from utils.export.gguf_verify import (
    LlamaCpp,
    chat_gate,
    divergence_gate,
    greedy_gate,
    logit_gate,
    token_gate,
)
from utils.export.gguf_vocab import Vocabulary
from utils.export.gguf_write import Description, write_gguf
from utils.export.merge import divergence
from utils.pipeline.errors import StageError


@pytest.fixture(scope="module")
def files(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One right file of each type."""
    folder = tmp_path_factory.mktemp("gguf")
    paths = {name: folder / f"model-{name}.gguf" for name in ("f32", "f16", "bf16", "q8_0", "q4_k_m")}
    for name in ("f32", "f16", "bf16", "q8_0"):
        write_gguf(tiny, paths[name], name, Description("tiny"))
    quantize_gguf(paths["f16"], paths["q4_k_m"], "q4_k_m", timeout_seconds=60)
    return paths


@pytest.mark.parametrize("file_type", ["f32", "f16", "bf16", "q8_0", "q4_k_m"])
def test_right_files_pass_reader_and_divergence(
    files: dict, tiny: Path, evidence: Evidence, llama: LlamaCpp, file_type: str
) -> None:
    read = reader_gate(files[file_type], tiny)
    assert read["tensors"] == 20
    assert read["rederived"] == (
        3 if file_type == "q4_k_m" else 11
    )  # one of each kind that has a stored form
    measured = divergence_gate(files[file_type], file_type, evidence.sequences, evidence.logits, llama)
    assert measured["top1_agreement"] > 0.98
    assert measured["perplexity"] == pytest.approx(measured["checkpoint_perplexity"], rel=0.02)


def test_f32_logits_equal_the_checkpoints(files: dict, evidence: Evidence, llama: LlamaCpp) -> None:
    assert logit_gate(files["f32"], evidence.sequences, evidence.logits, llama)["max_logit_difference"] < 1e-4


def test_rounding_moves_a_coarser_type_further(files: dict, evidence: Evidence, llama: LlamaCpp) -> None:
    kl = [
        divergence_gate(files[name], name, evidence.sequences, evidence.logits, llama)["mean_kl"]
        for name in ("f16", "q8_0", "q4_k_m")
    ]
    assert kl[0] < kl[1] < kl[2]


def test_token_ids_are_equal_on_texts_and_torture_list(
    files: dict, evidence: Evidence, llama: LlamaCpp
) -> None:
    found = token_gate(files["q4_k_m"], evidence.texts, evidence.encode, evidence.bos, llama)
    assert found == {"texts": 200 + 29, "differing": 0}


def test_chat_prompts_are_equal(files: dict, evidence: Evidence, llama: LlamaCpp) -> None:
    found = chat_gate(files["f16"], evidence.conversations, evidence.prompt_ids, evidence.bos, llama)
    assert found["conversations"] == 9


def test_greedy_answers_are_equal(files: dict, evidence: Evidence, llama: LlamaCpp) -> None:
    found = greedy_gate(
        files["f16"], evidence.prompts, evidence.answers, evidence.gaps, evidence.stop_ids, llama
    )
    assert found["equal"] + found["unclear"] == 6
    assert found["equal"] >= 4


def test_divergence_is_kl_in_nats() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    assert divergence(np.log(p) + 3, np.log(q) - 1)[0] == pytest.approx(0.25 * np.log(2))


class TestPlantedMistakes:
    """Each builds a file with one mistake and names the gates that must refuse it."""

    @pytest.fixture
    def wrong(self, tmp_path: Path) -> Path:
        return tmp_path / "wrong.gguf"

    def refused_by_reader(self, wrong: Path, tiny: Path, message: str) -> None:
        with pytest.raises(StageError, match=message):
            reader_gate(wrong, tiny)

    def refused_by_logits(self, wrong: Path, evidence: Evidence, llama: LlamaCpp) -> None:
        with pytest.raises(StageError, match="logits differ from the checkpoint's"):
            logit_gate(wrong, evidence.sequences, evidence.logits, llama)

    def test_no_permutation(
        self, wrong: Path, tiny: Path, evidence: Evidence, llama: LlamaCpp, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gguf_write, "interleave_rotary", lambda weight, heads: weight)
        write_gguf(tiny, wrong, "f32", Description("tiny"))
        self.refused_by_reader(wrong, tiny, "attn_[qk].weight holds .* values that are not the checkpoint's")
        self.refused_by_logits(wrong, evidence, llama)

    def test_key_heads_permuted_as_query_heads(
        self, wrong: Path, tiny: Path, evidence: Evidence, llama: LlamaCpp, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = gguf_write.interleave_rotary
        monkeypatch.setattr(gguf_write, "interleave_rotary", lambda weight, heads: right(weight, 4))
        write_gguf(tiny, wrong, "f32", Description("tiny"))
        self.refused_by_reader(wrong, tiny, "attn_k.weight holds")
        self.refused_by_logits(wrong, evidence, llama)

    def test_swapped_gate_and_up(
        self, wrong: Path, tiny: Path, evidence: Evidence, llama: LlamaCpp, tmp_path: Path
    ) -> None:
        weights = load_file(tiny / "model.safetensors")
        names = [f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up")]
        swapped = {names[0]: weights[names[1]], names[1]: weights[names[0]]}
        write_gguf(copy_with(tiny, tmp_path / "model", tensors=swapped), wrong, "f32", Description("tiny"))
        self.refused_by_logits(wrong, evidence, llama)

    @pytest.mark.parametrize(
        ("config", "key"),
        [
            ({"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, "llama.rope.freq_base"),
            ({"rms_norm_eps": 1e-2}, "llama.attention.layer_norm_rms_epsilon"),
        ],
    )
    def test_wrong_number_in_a_key(
        self,
        wrong: Path,
        tiny: Path,
        evidence: Evidence,
        llama: LlamaCpp,
        tmp_path: Path,
        config: dict,
        key: str,
    ) -> None:
        write_gguf(copy_with(tiny, tmp_path / "model", config=config), wrong, "f32", Description("tiny"))
        self.refused_by_reader(wrong, tiny, f"{key} is .*, config.json says")
        self.refused_by_logits(wrong, evidence, llama)

    def test_dropped_tensor(self, wrong: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        right = gguf_write.plan_tensors
        monkeypatch.setattr(gguf_write, "plan_tensors", lambda *given: right(*given)[:-1])
        write_gguf(tiny, wrong, "f32", Description("tiny"))
        self.refused_by_reader(wrong, tiny, r"tensors \['output_norm.weight'\] differ")

    def test_template_with_an_extra_newline(
        self, wrong: Path, tiny: Path, evidence: Evidence, llama: LlamaCpp, tmp_path: Path
    ) -> None:
        folder = copy_with(tiny, tmp_path / "model")
        (folder / "chat_template.jinja").write_text(
            CHATML.replace("<|im_start|>assistant\\n' }}{% endif", "<|im_start|>assistant\\n\\n' }}{% endif")
        )
        write_gguf(folder, wrong, "f32", Description("tiny"))
        with pytest.raises(StageError, match="the chat prompt of 1 messages differs"):
            chat_gate(wrong, evidence.conversations, evidence.prompt_ids, evidence.bos, llama)

    def test_second_bos(
        self, wrong: Path, tiny: Path, evidence: Evidence, llama: LlamaCpp, tmp_path: Path
    ) -> None:
        folder = copy_with(tiny, tmp_path / "model")
        (folder / "chat_template.jinja").write_text("{{ bos_token }}" + CHATML)
        write_gguf(folder, wrong, "f32", Description("tiny"))
        doubled = lambda messages: [1, *evidence.prompt_ids(messages)]  # noqa: E731 - as if training had it too
        with pytest.raises(StageError, match="has BOS 2 times"):
            chat_gate(wrong, evidence.conversations, doubled, evidence.bos, llama)

    def test_other_tokenizer(self, wrong: Path, tiny: Path, evidence: Evidence, llama: LlamaCpp) -> None:
        write_gguf(tiny, wrong, "f32", Description("tiny"))
        shifted = lambda texts: [[*ids, 7] if ids else ids for ids in map(list, evidence.encode(texts))]  # noqa: E731
        with pytest.raises(StageError, match="token ids of 22. of 229 texts differ"):
            token_gate(wrong, evidence.texts, shifted, evidence.bos, llama)

    def test_wrong_piece(self, wrong: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        right = gguf_write.read_vocabulary

        def swapped(folder: Path, end_of_turn: str) -> Vocabulary:
            vocabulary = right(folder, end_of_turn)
            vocabulary.pieces[300:302] = vocabulary.pieces[301:299:-1]
            return vocabulary

        monkeypatch.setattr(gguf_write, "read_vocabulary", swapped)
        write_gguf(tiny, wrong, "f32", Description("tiny"))
        self.refused_by_reader(wrong, tiny, "its pieces are not those of tokenizer.model")

    def test_damaged_quantised_values(
        self, files: dict, wrong: Path, tiny: Path, evidence: Evidence, llama: LlamaCpp
    ) -> None:
        from gguf import GGUFReader

        wrong.write_bytes(files["q4_k_m"].read_bytes())
        for tensor in GGUFReader(wrong, "r+").tensors:
            if "ffn_down" in tensor.name:
                tensor.data[:] = tensor.data[::-1].copy()
        with pytest.raises(StageError, match="mean KL to the checkpoint is .* \\(limit 0.03 for q4_k_m\\)"):
            divergence_gate(wrong, "q4_k_m", evidence.sequences, evidence.logits, llama)

    def test_another_greedy_answer(self, files: dict, evidence: Evidence, llama: LlamaCpp) -> None:
        answers = [[*answer] for answer in evidence.answers]
        answers[2][1] += 1
        clear = [[9.0] * len(answer) for answer in answers]
        with pytest.raises(
            StageError, match="greedy answer 2 differs at token 1 where the checkpoint's choice is clear"
        ):
            greedy_gate(files["f16"], evidence.prompts, answers, clear, evidence.stop_ids, llama)
