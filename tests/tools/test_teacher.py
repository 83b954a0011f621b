"""tools/teacher.py: the server on a port of its own."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import requests

TOOL = Path(__file__).resolve().parents[2] / "tools" / "teacher.py"


def start(*options: str) -> tuple[subprocess.Popen, str]:
    server = subprocess.Popen(
        [sys.executable, TOOL, "--port", "0", *options], stdout=subprocess.PIPE, text=True, cwd="/"
    )
    return server, json.loads(server.stdout.readline())["base_url"]


def test_it_serves_and_leaves_on_ctrl_c():
    server, url = start("--seed", "4", "--faults", "429:1")
    body = {"model": "teacher", "messages": [{"role": "user", "content": "What does an owl say?"}]}
    answers = [requests.post(f"{url}/chat/completions", json=body, timeout=10) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [429, 429, 429, 200]
    assert answers[0].headers["Retry-After"] == "0"
    assert answers[3].json()["choices"][0]["message"]["content"] == "An owl says hoot."
    server.send_signal(signal.SIGINT)
    assert server.wait(10) == 130


def test_a_fault_that_does_not_exist_is_refused():
    refused = subprocess.run([sys.executable, TOOL, "--faults", "418:1"], capture_output=True, text=True)
    assert refused.returncode == 2 and 'error: unknown fault "418"' in refused.stderr
    assert "Traceback" not in refused.stderr
