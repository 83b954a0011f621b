"""
How fast, how lean and how exact is generation, against the ideal rate, threads over `requests`, the `openai`
client, and itself without a judge?

    python tools/bench/generate.py                   # every claim, about five minutes
    python tools/bench/generate.py --only levels     # rate | levels | judge | memory

The endpoint is the offline teacher in a process of its own, with a fixed latency. Each claim runs the stage
as a user does, a whole command in a new process, and counts all of it: start, checks, calls, files, manifest.
The share of the ideal rate alone is taken from the first call to the last reply.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.pipeline.environment import host_class
from utils.pipeline.workspace import REPOSITORY

FOLDER = "data/bench"
QUESTION = "Please tell me something about thing number {} in the big red box."
LOGGED = {"journal": {"log_requests": True}}
GO_TOOL_SECONDS = 4.13
"""What a Go program of the same kind needs for `levels` (1,024 rows, 256 in flight, 0.5 s a call)."""


@contextmanager
def endpoint(latency_ms: int) -> Iterator[str]:
    """The teacher in its own process; yields its base URL."""
    command = [sys.executable, "tools/teacher.py", "--port", "0", "--exit-with-stdin"]
    child = subprocess.Popen(
        [*command, "--latency-ms", str(latency_ms)],
        cwd=REPOSITORY.root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield json.loads(child.stdout.readline())["base_url"]
    finally:
        child.stdin.close()
        child.wait(10)


def config(base_url: str, in_flight: int, **more: object) -> dict:
    """A stage-10 config with one provider and three models."""
    models = {"main": "teacher", "rejected": "teacher-weak", "judge": "teacher-judge"}
    return {
        "output": f"{FOLDER}/generated",
        "providers": {"bench": {"base_url": base_url, "max_in_flight": in_flight}},
        "models": {
            name: {"provider": "bench", "model": model, "seed": 0, "max_output_tokens": 4000}
            for name, model in models.items()
        },
    } | more


def run_stage(settings: dict, *arguments: str) -> tuple[float, int]:
    """Seconds of the whole command and its peak resident set in bytes; the artifact stays for the next."""
    folder = REPOSITORY.path(FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    command = [sys.executable, "scripts/10_generate.py", "--config", f"{FOLDER}/config.json", *arguments]
    started = time.perf_counter()
    child = subprocess.Popen(command, cwd=REPOSITORY.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        sys.exit(f"the stage failed:\n{output.decode()}")
    return seconds, usage.ru_maxrss * 1024


def questions(count: int) -> str:
    """A prompts file with that many different prompts."""
    path = REPOSITORY.path(f"{FOLDER}/prompts.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(QUESTION.format(number) for number in range(count)) + "\n")
    return f"{FOLDER}/prompts.txt"


def bench_rate(rows: int = 10_240, in_flight: int = 1024, seconds: float = 1.0) -> bool:
    """Rows per second at 1,024 calls in flight against an endpoint that takes a second."""
    with endpoint(int(seconds * 1000)) as base_url:
        settings = config(base_url, in_flight, prompts_file=questions(int(rows * 1.02)), **LOGGED)
        whole, _ = run_stage(settings | {"datasets": {"chat": {"mode": "sft", "rows": rows}}}, *FRESH)
        taken = first_call_to_last_reply()
        peers = {
            "threads over requests": _timed(lambda: threads_over_requests(base_url, rows, in_flight)),
            "openai client": _timed(lambda: asyncio.run(openai_client(base_url, rows, in_flight))),
        }
    ideal = rows / in_flight * seconds
    print(
        f"rate      {rows:,} rows in {taken:.1f} s from the first call to the last reply, "
        f"{ideal / taken:.2f} of the ideal rate (target 0.85)\n"
        f"          {whole:.1f} s for the whole command with its preflight, {ideal / whole:.2f}"
    )
    for name, peer in peers.items():
        print(f"          {name} {peer:.1f} s, {peer / whole:.1f} times the whole command (target 3)")
    return ideal / taken >= 0.85 and min(peers.values()) / whole >= 3


def bench_levels(rows: int = 1024, in_flight: int = 256, latency_ms: int = 500) -> bool:
    """1,024 sft rows with their topics and prompts."""
    datasets = {"chat": {"mode": "sft", "rows": rows, "num_subtopics": 32}}
    with endpoint(latency_ms) as base_url:
        settings = config(base_url, in_flight, main_topic="the small world of children", **LOGGED)
        settings["datasets"] = datasets
        taken, between = min((run_stage(settings, *FRESH)[0], first_call_to_last_reply()) for _ in range(3))
    print(
        f"levels    {rows:,} rows with topics and prompts: {taken:.2f} s (target 3.3; Go {GO_TOOL_SECONDS})\n"
        f"          {between:.2f} s of it from the first call to the last reply; two lists and the waves of "
        f"rows are {(2 + rows / in_flight) * latency_ms / 1000:.2f} s"
    )
    return taken <= 3.3


def first_call_to_last_reply() -> float:
    """Seconds between the two in the run that ended last."""
    path = REPOSITORY.path(f"{FOLDER}/generated/log/requests.jsonl")
    calls = [json.loads(line) for line in path.open()]
    return max(call["seconds"] for call in calls) - min(call["seconds"] - call["took"] for call in calls)


def bench_judge(rows: int = 64, in_flight: int = 64, latency_ms: int = 200) -> bool:
    """Pairs with and without the judge's filter."""
    rubric = {"criteria": [{"name": "correct", "description": "Is everything true?"}]}
    plain = {"mode": "dpo", "rows": rows, "num_subtopics": 8}
    judged = plain | {"judge": {"min_margin": 0.5}}
    with endpoint(latency_ms) as base_url:
        settings = config(base_url, in_flight, main_topic="the small world of children")
        without, with_judge = (
            min(run_stage(settings | {"datasets": {"pairs": dataset}} | more, *FRESH)[0] for _ in range(3))
            for dataset, more in ((plain, {}), (judged, {"judge": rubric}))
        )
    ratio = with_judge / without
    print(
        f"judge     {rows} pairs: {without:.2f} s, judged {with_judge:.2f} s, ratio {ratio:.2f} (target 1.8)"
    )
    return ratio <= 1.8


def bench_memory(rows: int = 100_000) -> bool:
    """Peak memory at 100,000 rows, and how soon their journal is read again."""
    with endpoint(0) as base_url:
        settings = config(base_url, 256, prompts_file=questions(rows + 1000))
        first, peak = run_stage(settings | {"datasets": {"chat": {"mode": "sft", "rows": rows}}}, *FRESH)
        run_stage(settings | {"datasets": {"chat": {"mode": "sft", "rows": rows + 1}}})
    events = [json.loads(line) for line in REPOSITORY.path(f"{FOLDER}/generated/log/events.jsonl").open()]
    resumed = next(event["seconds"] for event in reversed(events) if event["event"] == "journal")
    print(f"memory    {rows:,} rows in {first:.0f} s, peak {peak / 1e6:.0f} MB (target 300)")
    print(f"resume    {rows:,} rows read from the journal in {resumed:.1f} s (target 3)")
    return peak < 300e6 and resumed < 3


def threads_over_requests(base_url: str, calls: int, num_threads: int) -> None:
    """The synchronous way: a thread per call in flight, each with a session of its own."""
    import requests

    numbers: SimpleQueue[int] = SimpleQueue()
    for number in range(calls):
        numbers.put(number)

    def work() -> None:
        with requests.Session() as session:
            while True:
                try:
                    number = numbers.get_nowait()
                except Empty:
                    return
                session.post(
                    f"{base_url}/chat/completions", json=_body(number), timeout=120
                ).raise_for_status()

    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def openai_client(base_url: str, calls: int, in_flight: int) -> None:
    """The vendor's asynchronous client, with as many connections as calls in flight."""
    import httpx2
    from openai import AsyncOpenAI

    limits = httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    places = asyncio.Semaphore(in_flight)
    http = httpx2.AsyncClient(limits=limits, timeout=120)
    async with AsyncOpenAI(base_url=base_url, api_key="none", http_client=http) as client:

        async def one(number: int) -> None:
            async with places:
                await client.chat.completions.create(**_body(number))

        await asyncio.gather(*(one(number) for number in range(calls)))


def _body(number: int) -> dict:
    return {
        "model": "teacher",
        "messages": [{"role": "user", "content": QUESTION.format(number)}],
        "max_tokens": 4000,
    }


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


FRESH = ("--force", "--resume", "never")
CLAIMS = {"rate": bench_rate, "levels": bench_levels, "judge": bench_judge, "memory": bench_memory}


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/bench/generate.py", description=__doc__.splitlines()[1])
    parser.add_argument("--only", choices=CLAIMS, help="measure one claim")
    only = parser.parse_args().only
    try:
        held = [claim() for name, claim in CLAIMS.items() if only in (None, name)]
    finally:
        shutil.rmtree(REPOSITORY.path(FOLDER), ignore_errors=True)
    print(f"{sum(held)} of {len(held)} claims hold; {host_class()}")
    return 0 if all(held) else 4


if __name__ == "__main__":
    sys.exit(main())
