"""
Every call into llama.cpp, made in a process of its own.

llama.cpp ends its process on errors (`GGML_ASSERT`, `abort`) and may run without end, so each task is a child
with a time limit, and whatever happens there becomes one sentence here. Requests and replies are JSON; logits
travel as .npy.

    run_child("tokenize", {"model": "model-f16.gguf", "texts": ["Hi"], "special": False, "bos": False},
    60)["ids"]
"""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from utils.pipeline.errors import StageError

ROOT = Path(__file__).resolve().parents[2]


def run_child(task: str, request: dict, timeout_seconds: float) -> dict:
    """
    Run one task of TASKS in a child process; StageError with one sentence when it fails, aborts or hangs.
    """
    with TemporaryDirectory() as scratch:
        reply = Path(scratch) / "reply.json"
        command = [sys.executable, "-m", "utils.export.llama_child", task, str(reply)]
        try:
            child = subprocess.run(
                command,
                cwd=ROOT,
                input=json.dumps(request).encode(),
                capture_output=True,
                timeout=timeout_seconds,
            )
        except subprocess.TimeoutExpired:
            raise StageError(
                f"llama.cpp did not finish {task} within {timeout_seconds:g} s and was stopped",
                fix="raise llama_timeout_seconds, or look whether the machine is short of memory",
            ) from None
        if child.returncode != 0 or not reply.exists():
            raise StageError(
                f"llama.cpp failed in {task}: {_reason(child)}", fix=f"the file was {request['model']}"
            )
        return json.loads(reply.read_text(encoding="utf-8"))


def _reason(child: subprocess.CompletedProcess) -> str:
    lines = [line.strip() for line in child.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    telling = [
        line for line in lines if "error" in line.lower() or "ASSERT" in line or "exception" in line.lower()
    ]
    last = (telling or lines or ["it said nothing"])[-1][:300]
    if child.returncode < 0:
        return f"the process was ended by {signal.Signals(-child.returncode).name}; {last}"
    return last


def quantize(request: dict) -> dict:
    """`source` (F32, F16 or BF16) -> `model` as `file_type`, a number of llama.cpp's LLAMA_FTYPE enum."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = request["file_type"]
    params.nthread = request["threads"]
    code = llama_cpp.llama_model_quantize(
        request["source"].encode(), request["model"].encode(), ctypes.byref(params)
    )
    if code:
        raise RuntimeError(f"error: llama_model_quantize returned {code}")
    return {}


def tokenize(request: dict) -> dict:
    """Token ids of `texts`; `special` parses control marks, `bos` adds what the file's policy adds."""
    llama = _open(request | {"context_tokens": 64})
    encoded = [text.encode("utf-8") for text in request["texts"]]
    return {
        "ids": [llama.tokenize(text, add_bos=request["bos"], special=request["special"]) for text in encoded]
    }


def chat(request: dict) -> dict:
    """Prompt ids of `conversations` as llama-cpp-python's own chat call makes them."""
    llama = _open(request | {"context_tokens": 64})
    prompts: list[list[int]] = []

    def take_prompt(prompt: list[int], **_: object) -> None:
        prompts.append(list(prompt))
        raise PromptTaken

    llama.create_completion = take_prompt
    for messages in request["conversations"]:
        try:
            llama.create_chat_completion(messages=messages)
        except PromptTaken:
            continue
    return {"ids": prompts}


class PromptTaken(Exception):
    """Ends a chat call once its prompt is known."""


def logits(request: dict) -> dict:
    """Logits of `sequences` with an F32 key/value cache, joined over tokens into `output` (.npy, fp32)."""
    llama = _open(request, logits_all=True)
    rows = []
    for ids in request["sequences"]:
        llama.reset()
        llama.eval(ids)
        rows.append(np.array(llama.scores[: len(ids)], dtype=np.float32))
    np.save(request["output"], np.concatenate(rows))
    return {"tokens": sum(map(len, rows))}


def greedy(request: dict) -> dict:
    """The `max_tokens` most likely next tokens of each prompt, ending after a token of `stop`."""
    llama = _open(request, logits_all=True)
    answers = []
    for prompt in request["prompts"]:
        llama.reset()
        llama.eval(prompt)
        answer: list[int] = []
        while len(answer) < request["max_tokens"]:
            answer.append(int(np.argmax(llama.scores[llama.n_tokens - 1])))
            if answer[-1] in request["stop"]:
                break
            llama.eval(answer[-1:])
        answers.append(answer)
    return {"ids": answers}


TASKS: dict[str, Callable[[dict], dict]] = {
    "quantize": quantize,
    "tokenize": tokenize,
    "chat": chat,
    "logits": logits,
    "greedy": greedy,
}


def _open(request: dict, **options: bool):
    from llama_cpp import GGML_TYPE_F32, Llama

    return Llama(
        model_path=request["model"],
        n_ctx=request.get("context_tokens", 0),
        n_threads=request.get("threads", 1),
        n_threads_batch=request.get("threads", 1),
        type_k=GGML_TYPE_F32,
        type_v=GGML_TYPE_F32,
        verbose=False,
        **options,
    )


def main() -> None:
    task, reply = sys.argv[1:]
    answer = TASKS[task](json.load(sys.stdin))
    Path(reply).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
