"""
The offline teacher on a port of its own: a seeded OpenAI-compatible server for demos and for fault tests.

    python tools/teacher.py --port 8008 --seed 0 --faults 429:0.1:0.5,drop:0.05

Models: teacher, teacher-weak, teacher-judge, teacher-thinker. Faults, latency, a rate limit and a key that is
asked for: see --help.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere

from utils.generate.teacher.cli import main

if __name__ == "__main__":
    main()
