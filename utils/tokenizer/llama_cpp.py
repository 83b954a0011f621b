"""
Ids as llama.cpp gives them, from a vocabulary-only GGUF, in a child process: a bad vocabulary aborts the
process.

    >>> ids = encode_with_llama_cpp(folder, ["Hello world"])   # None where llama-cpp-python is not installed
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from utils.pipeline.errors import DataError, StageError
from utils.pipeline.hashing import REPOSITORY_ROOT
from utils.pipeline.tokenizer_files import MODEL_FILE, open_model
from utils.pipeline.tokenizer_identity import pieces_of, tokenizer_block
from utils.pipeline.tokenizer_model import model_settings

TIMEOUT_SECONDS = 300


def encode_with_llama_cpp(folder: Path, texts: list[str]) -> list[list[int]] | None:
    """
    Return llama.cpp's ids of texts as user text, or None without llama-cpp-python. DataError if llama.cpp
    fails.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        gguf_path = Path(scratch) / "vocabulary.gguf"
        write_vocabulary_gguf(folder, gguf_path)
        command = [sys.executable, "-m", "utils.tokenizer.llama_cpp", str(gguf_path)]
        try:
            child = subprocess.run(
                command,
                input=json.dumps(texts).encode(),
                capture_output=True,
                cwd=REPOSITORY_ROOT,
                timeout=TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise StageError(
                f"llama.cpp did not tokenise {len(texts):,} texts in {TIMEOUT_SECONDS} s",
                fix="rerun on a machine with less to do",
            ) from None
    if child.returncode:
        last = child.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise DataError(f"llama.cpp refuses this vocabulary (exit {child.returncode}): {' '.join(last)}")
    return json.loads(child.stdout)


def write_vocabulary_gguf(folder: Path, path: Path) -> None:
    """Write a GGUF that holds the tokenizer and no tensors."""
    from gguf import GGUFWriter

    model = (folder / MODEL_FILE).read_bytes()
    processor = open_model(model)
    pieces, special = pieces_of(processor), tokenizer_block(folder)["special_ids"]
    writer = GGUFWriter(path, "llama")
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece for piece, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([kind for _, _, kind in pieces])
    for name, add in (
        ("unk", writer.add_unk_token_id),
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if special[name] >= 0:
            add(special[name])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(model_settings(model).add_dummy_prefix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def main(gguf_path: str) -> None:
    """Child process: texts as JSON on stdin, ids as JSON on stdout."""
    from llama_cpp import Llama

    model = Llama(gguf_path, vocab_only=True, verbose=False)
    texts = json.load(sys.stdin)
    ids = [model.tokenize(text.encode(), add_bos=False, special=False) if text else [] for text in texts]
    json.dump(ids, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
