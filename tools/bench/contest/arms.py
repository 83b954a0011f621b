"""
The arms of the optimizer contest, what each may try, and how large a contest is.

    form = FORMS["cpu"]
    trials("F", form)                  # one RunSpec per point of the grid, on the tuning seed

Every arm has the same number of trials over the same grid, or, where its question is another one (G), as many
on a grid of its own. B and C have no controls of their own: their trials follow from F's.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product

from utils.pipeline.hashing import canonical_json, sha256_hex

PROTOCOL = 2
"""Of what a run computes and keeps; 2 added settings, config digest and versions to each result."""
TUNING_SEED = 1000
"""Trials use this one, finals count from 0: no seed that chose a setting judges it."""

ARMS = {
    "A": "AdamW",
    "B": "AdamW, learning rate times the mean of F's s",
    "C": "AdamW's equations replaying F's (eta, b) of another seed",
    "D": "Velvet, entropy only",
    "E": "Velvet, perplexity only",
    "F": "Velvet",
    "G": "AdamW, schedule and beta1 tuned",
    "H": "Muon on hidden matrices, AdamW elsewhere",
}
TUNED = ("A", "D", "E", "F", "H")
"""Arms that search the grid by themselves."""
SCHEDULES, BETAS1 = ("cosine", "wsd"), (0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Form:
    """A contest: model, tokens per run, grid, seeds. `halving`: half the trials stop after a quarter."""

    name: str
    architecture: str
    tokens: int
    batch_rows: int
    row_tokens: int
    rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    betas2: tuple[float, ...]
    device: str
    halving: bool = False
    num_seeds: int = 5
    packed: str = ""

    @property
    def steps(self) -> int:
        return self.tokens // (self.batch_rows * self.row_tokens)

    @property
    def warmup_steps(self) -> int:
        """The same for every arm: a tenth, at most 2,000."""
        return max(1, min(2000, self.steps // 10))


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides one run, apart from the form."""

    arm: str
    seed: int
    rate: float
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    schedule: str = "cosine"
    replayed: str = ""  # key of the run whose (eta, b) are replayed
    share: float = 1.0  # of the steps that are run

    def key(self, form: Form) -> str:
        """Names the run in the journal."""
        return sha256_hex(canonical_json([PROTOCOL, asdict(form), asdict(self)]))[:24]


def _rates(first: float, ratio: float) -> tuple[float, ...]:
    return tuple(first * ratio**power for power in range(7))


FORMS = {
    "cpu": Form("cpu", "bytes", 500_000, 16, 128, _rates(1e-3, 2.0), (0.1,), (0.95,), "cpu"),
    "gpu": Form("gpu", "tiny", 126_000_000, 64, 1024, _rates(3e-4, 1.8), (0.0, 0.01, 0.1), (0.95, 0.999),
                "cuda", halving=True),
    "gpu_full": Form("gpu_full", "small", 503_000_000, 128, 1024, _rates(3e-4, 1.8), (0.0, 0.01, 0.1),
                     (0.95, 0.999), "cuda", halving=True),
}  # fmt: skip


def trials(arm: str, form: Form) -> list[RunSpec]:
    """The grid of an arm that searches it by itself."""
    points = product(form.rates, form.weight_decays, form.betas2)
    return [RunSpec(arm, TUNING_SEED, rate, decay, beta2=beta2) for rate, decay, beta2 in points]


def schedule_trials(found: list[RunSpec], form: Form) -> Iterator[RunSpec]:
    """
    G's own grid around A's settings, best first: schedule x beta1, over as many settings as A's number of
    trials allows.
    """
    count = len(trials("A", form))
    grid = [
        replace(base, arm="G", schedule=schedule, beta1=beta1)
        for base in found
        for schedule, beta1 in product(SCHEDULES, BETAS1)
    ]
    yield from grid[:count]


def boosted(spec: RunSpec, mean_factor: float) -> RunSpec:
    """B's run beside one of F."""
    return replace(spec, arm="B", rate=spec.rate * mean_factor)


def replaying(spec: RunSpec, logged_key: str) -> RunSpec:
    """C's run of the setting of F that was logged under this key."""
    return replace(spec, arm="C", replayed=logged_key)
