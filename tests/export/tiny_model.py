"""
A small trained Llama with its tokenizer: the checkpoint that export and serving tests stand on.

It is trained for some seconds, because with random weights attention is near uniform and a GGUF without the
rotary permutation passes for a right one (X21). Grouped key heads make the query and key permutations differ.

    folder = build_tiny_model(tmp_path)      # config.json, model.safetensors, tokenizer set,
    chat_template.jinja
"""

import io
import json
import random
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch

RESERVED = ["<|im_start|>", "<|im_end|>", *[f"<|reserved_{i}|>" for i in range(14)]]
CONTEXT = 128
CHATML = (
    "{{ bos_token }}{%- for message in messages %}\n"
    "{%- if message.role == 'assistant' %}\n"
    "{{- '<|im_start|>assistant\\n' }}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
    "{{- '\\n' }}\n"
    "{%- else %}\n"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ANIMALS = ["fox", "cat", "owl", "hen", "bear", "frog", "wolf", "mole"]
COLOURS = ["red", "blue", "green", "gold", "grey", "black", "white", "brown"]
PLACES = ["barn", "lake", "wood", "mill", "cave", "hill", "road", "well"]


def stories(count: int, seed: int = 0) -> list[str]:
    """Small texts whose ends repeat their beginnings, so that attention has something to learn."""
    chance = random.Random(seed)
    texts = []
    for _ in range(count):
        animal, colour, place = chance.choice(ANIMALS), chance.choice(COLOURS), chance.choice(PLACES)
        number = chance.randint(2, 99)
        texts.append(
            f"The {colour} {animal} lives at the {place}. It is {number} days old.\n"
            f"Who lives at the {place}? The {colour} {animal}. "
            f"How old is the {animal}? It is {number} days old."
        )
    return texts


def conversations(count: int, seed: int = 1) -> list[list[dict[str, str]]]:
    """Questions with one right answer each."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        animal, colour = chance.choice(ANIMALS), chance.choice(COLOURS)
        question = f"The {animal} is {colour}. What colour is the {animal}?"
        rows.append(
            [{"role": "user", "content": question}, {"role": "assistant", "content": f"It is {colour}."}]
        )
    return rows


def train_tokenizer(folder: Path, texts: list[str], vocab_size: int = 512, **overrides: object) -> None:
    """The recipe of data.md D29-D31, written out here so that these tests need no other room."""
    import sentencepiece

    lines = [line for text in texts for line in text.split("\n") if line]
    buffer = io.BytesIO()
    recipe = {
        "model_type": "bpe",
        "vocab_size": vocab_size,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "character_coverage": 0.9995,
        "max_sentencepiece_length": 16,
        "control_symbols": RESERVED,
        "pad_id": 3,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=buffer, **{**recipe, **overrides}
    )
    (folder / "tokenizer.model").write_bytes(buffer.getvalue())


def write_tokenizer_json(folder: Path) -> None:
    """`tokenizer.json` equal to tokenizer.model (D33): every split of a piece into two pieces is a merge."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    model = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    pieces = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    merges = []
    for piece, piece_id in pieces.items():
        if model.is_control(piece_id) or model.is_byte(piece_id) or model.is_unknown(piece_id):
            continue
        for cut in range(1, len(piece)):
            left, right = pieces.get(piece[:cut]), pieces.get(piece[cut:])
            if left is not None and right is not None:
                merges.append((-model.get_score(piece_id), left, right, (piece[:cut], piece[cut:])))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=pieces,
            merges=[merge[-1] for merge in sorted(merges)],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = [piece for piece, i in pieces.items() if model.is_control(i) or model.is_unknown(i)]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "LlamaTokenizer",
                "add_bos_token": False,
                "add_eos_token": False,
                "add_prefix_space": False,
                "legacy": False,
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "pad_token": "<pad>",
            }
        )
    )


def chat_ids(model, messages: list[dict[str, str]], prompt: bool = False) -> list[int]:
    """ChatML ids with control ids inserted by id, so that user text cannot forge a turn."""
    start, end, newline = (model.piece_to_id(piece) for piece in ("<|im_start|>", "<|im_end|>", "<0x0A>"))
    ids = [model.bos_id()]
    for message in messages:
        ids += [start, *model.encode(f"{message['role']}\n{message['content']}"), end, newline]
    return ids + [start, *model.encode("assistant\n")] if prompt else ids


def train_weights(rows: list[list[int]], vocab_size: int, steps: int, tie: bool) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=tie,
        bos_token_id=1,
        eos_token_id=[2, 5],
        pad_token_id=3,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), fused=True)
    chance = np.random.default_rng(0)
    width = max(map(len, rows))
    table = torch.tensor([row + [3] * (width - len(row)) for row in rows])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 10, (steps - step) / 20)
        batch = table[torch.from_numpy(chance.choice(len(rows), 12, replace=False))]
        labels = batch.masked_fill(batch == 3, -100)
        model(input_ids=batch, attention_mask=(batch != 3).long(), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@cache
def tiny_model(tie: bool = True, steps: int = 100) -> Path:
    """The trained folder, built once per process; read only."""
    torch.set_num_threads(1)
    return build_tiny_model(Path(mkdtemp(prefix="tiny-model-")), tie=tie, steps=steps)


def build_tiny_model(folder: Path, tie: bool = True, steps: int = 100) -> Path:
    from sentencepiece import SentencePieceProcessor

    texts, chats = stories(400), conversations(200)
    train_tokenizer(
        folder, texts + [m["content"] for chat in chats for m in chat] + ["user assistant system"] * 50
    )
    write_tokenizer_json(folder)
    tokenizer = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    rows = [[1, *tokenizer.encode(text), 2][:CONTEXT] for text in texts] + [
        chat_ids(tokenizer, c) for c in chats
    ]
    model = train_weights(rows, tokenizer.get_piece_size(), steps, tie)
    model.generation_config.eos_token_id = [2, 5]
    model.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    return folder
