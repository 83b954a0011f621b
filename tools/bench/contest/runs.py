"""
One run of the optimizer contest: a model from a seed, rows in an order from the same seed, one optimizer.

    result = train(RunSpec("F", seed=0, rate=4e-3), FORMS["cpu"])
    result["val_loss"], result["series"]["eta"]

Loss, head, groups, schedule, clipping and update are the product's own; only the rule differs between arms.
Deterministic on a CPU; clocks are in `seconds` and `step_ms` alone.
"""

import hashlib
import math
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kernels.linear_cross_entropy import LossSums, Signals
from tools.bench.contest.arms import Form, RunSpec
from tools.bench.text import Rows, one_document_each, story_rows
from tools.bench.turns import versions
from utils.config.architecture import Architecture
from utils.config.training import EntropyConfig, OptimizerConfig, PerplexityConfig, ScheduleConfig
from utils.models.llama import build_llama, initialise
from utils.models.presets import load_architecture
from utils.optim.groups import build_optimizer, parameter_groups
from utils.optim.schedule import Schedule
from utils.optim.velvet import Velvet
from utils.packing.dataset import PackedDataset
from utils.pipeline.hashing import canonical_json, sha256_hex
from utils.pipeline.workspace import REPOSITORY
from utils.training.gradients import GradientStep, SignalStep, Totals
from utils.training.loss import HeadOptions, NextTokenLoss, mean_loss
from utils.training.state import trainable_parameters

BYTES = Architecture(
    family="llama", hidden_size=64, num_layers=2, num_heads=1, num_kv_heads=1, head_dim=64, ffn_size=192,
    context_length_tokens=1024, rope_theta=10000.0, norm_epsilon=1e-5, tie_embeddings=True,
    reference_vocab_size=256, declared_parameters=123_200,
)  # fmt: skip
NUM_STORIES, VAL_STORIES = 1500, 300
MOST_REPEATS = 4
MAX_NORM = 1.0
CURVE_POINTS, CURVE_ROWS, FINAL_ROWS = 10, 64, 512


class Data(NamedTuple):
    """Training and held-out rows [n, T + 1], rows of the head, UTF-8 bytes per target (0: not known)."""

    train: np.ndarray
    val: np.ndarray
    vocab_size: int
    bytes_per_target: float


@lru_cache(maxsize=2)
def load_data(form: Form) -> Data:
    """Bytes of the teacher's stories from fixed seeds, or the rows of a packed dataset."""
    if form.packed:
        splits = [PackedDataset(REPOSITORY.path(form.packed), split) for split in ("train", "val")]
        train, val = (np.asarray(each.rows(np.arange(each.num_rows)).tokens) for each in splits)
        return Data(train, val, splits[0].vocab_size, 0.0)
    train, val = (story_rows(*each, form.row_tokens) for each in ((NUM_STORIES, 0), (VAL_STORIES, 1)))
    return Data(train, val, 256, 1.0)


def row_order(form: Form, seed: int, num_rows: int) -> np.ndarray:
    """Rows of every step [steps, batch]; a row comes again only when all have come."""
    needed = form.steps * form.batch_rows
    epochs = math.ceil(needed / num_rows)
    if epochs > MOST_REPEATS:
        raise SystemExit(f"{num_rows:,} rows would be seen {epochs} times; give --data with more rows")
    random_ = np.random.default_rng([seed, 7])
    order = np.concatenate([random_.permutation(num_rows) for _ in range(epochs)])[:needed]
    return order.reshape(form.steps, form.batch_rows)


def train(spec: RunSpec, form: Form, replay: Sequence[Sequence[float]] = ()) -> dict:
    """Run to the end (or to `spec.share` of it); the result is JSON."""
    if form.device == "cpu":
        torch.set_num_threads(1)
    data = load_data(form)
    model = build_model(spec, form, data.vocab_size)
    digest = hashlib.sha256(b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters()))
    order = row_order(form, spec.seed, len(data.train))
    step = Contestant(spec, form, model, replay)
    settings = step.settings() | {"batch_rows": order.shape[1], "row_tokens": form.row_tokens}
    held_out = [one_document_each(data.val[:CURVE_ROWS])]
    series: dict[str, list] = {name: [] for name in ("loss", "eta", "s", "b", "grad_norm", "optimizer_ms")}
    curve, steps, started = [], round(spec.share * form.steps), time.perf_counter()
    evaluating = 0.0
    for number in range(steps):
        for name, value in step(number, one_document_each(data.train[order[number]])).items():
            series[name].append(value)
        if (number + 1) % max(1, form.steps // CURVE_POINTS) == 0 or number + 1 == steps:
            paused = time.perf_counter()
            loss = mean_loss(model, held_out, precision=step.precision)
            curve.append([(number + 1) * form.batch_rows * form.row_tokens, loss])
            evaluating += time.perf_counter() - paused
    seconds = time.perf_counter() - started - evaluating
    final = mean_loss(
        model, [one_document_each(data.val[CURVE_ROWS : CURVE_ROWS + FINAL_ROWS])], precision=step.precision
    )
    return {
        "val_loss": final if math.isfinite(final) else 1e9,
        "bits_per_byte": final / math.log(2) / data.bytes_per_target if data.bytes_per_target else None,
        "curve": curve,
        "series": series,
        "skips": sum(each is None for each in series["grad_norm"]),
        "spikes": _spikes(series["loss"]),
        "seconds": seconds,
        "step_ms": statistics.median(series["optimizer_ms"]),
        "eta_integral": sum(each for each in series["eta"] if each is not None),
        "peak_bytes": _peak_bytes(form),
        "init_sha256": digest.hexdigest(),
        "data_sha256": hashlib.sha256(order.tobytes() + data.train.tobytes()).hexdigest(),
        "settings": settings,
        "settings_sha256": sha256_hex(canonical_json(settings)),
        "config_sha256": sha256_hex(canonical_json([asdict(form), asdict(spec), settings, step.config()])),
        "versions": versions(torch.device(form.device)),
    }


def build_model(spec: RunSpec, form: Form, vocab_size: int) -> nn.Module:
    """Initial weights from the seed alone: the same for every arm."""
    shape = BYTES if form.architecture == "bytes" else load_architecture(form.architecture, REPOSITORY)
    model = build_llama(shape, vocab_size, {"bos": -1, "eos": -1, "pad": -1})
    initialise(model, shape, spec.seed)
    return model.to(form.device).train()


class Contestant:
    """One optimizer step of an arm; `replay` are the (eta, b) that arm C repeats."""

    def __init__(
        self, spec: RunSpec, form: Form, model: nn.Module, replay: Sequence[Sequence[float]]
    ) -> None:
        from utils.training.precision import Precision

        self.precision = Precision("bf16" if form.device == "cuda" else "fp32", form.device)
        self._model, self._replay, self._now = model, replay, (0.0, 0.0)
        self._config = config = optimizer_config(spec)
        self._loss = NextTokenLoss(HeadOptions(config.follows_entropy))
        self._shape = ScheduleConfig(
            kind=spec.schedule, warmup_steps=form.warmup_steps, decay_fraction=0.3, final_fraction=0.1
        )
        self._schedule = Schedule.of(self._shape, spec.rate, form.steps, spec.beta2)
        self._optimizer = optimizer = self._build_optimizer(spec, config)
        kind = SignalStep if isinstance(optimizer, Velvet) else GradientStep
        parameters, scaler = trainable_parameters(model), self.precision.scaler()
        limit = config.max_gradient_norm
        self._step = kind(model, optimizer, parameters, scaler, None, limit, lambda: False)

    def settings(self) -> dict[str, object]:
        """What has to be the same for all arms, as this one has it."""
        groups = {group["label"]: group["names"] for group in self._optimizer.param_groups}
        return {
            "precision": self.precision.name,
            "max_gradient_norm": self._config.max_gradient_norm,
            "warmup_steps": self._schedule.warmup_steps,
            "groups_sha256": sha256_hex(canonical_json(groups)),
        }

    def config(self) -> dict[str, dict]:
        """The product's configs behind this arm."""
        parts = {"optimizer": self._config, "schedule": self._shape}
        return {name: each.model_dump(mode="json") for name, each in parts.items()}

    def __call__(self, number: int, rows: Rows) -> dict[str, float | None]:
        with self.precision.autocast():
            sums = self._loss(self._model, rows)
        (sums.loss_sum / sums.count).backward()
        rate = self._schedule(number)
        if self._replay:
            rate, beta1 = self._replay[number]
            self._now = (1.0, beta1)
        started = time.perf_counter()
        totals = self._totals(sums)
        warming = number < self._schedule.warmup_steps and not self._replay
        update = self._step.update(totals, rate, warming)
        norm = math.nan if update.skipped else float(update.norm)
        taken = 1e3 * (time.perf_counter() - started)
        said = {"eta": rate, "s": 1.0, "b": None} | update.numbers
        said |= {"grad_norm": norm, "loss": totals.loss, "optimizer_ms": taken}
        names = ("loss", "eta", "s", "b", "grad_norm", "optimizer_ms")
        return {name: float(said[name]) if _finite(said[name]) else None for name in names}

    def _totals(self, sums: LossSums) -> Totals:
        """What the loop would have summed over micro-batches and processes."""
        loss = sums.loss_sum.detach().double()
        followed = (torch.as_tensor(each).to(loss.device, torch.float64).detach() for each in sums.signals)
        return Totals(loss / sums.count, {}, Signals(*followed), [])

    def _build_optimizer(self, spec: RunSpec, config: OptimizerConfig) -> torch.optim.Optimizer:
        if spec.arm == "H":
            return MuonAndAdamW(self._model, config, spec.rate)
        if spec.arm != "C":
            return build_optimizer(self._model, config, spec.rate)
        groups = parameter_groups(self._model, config.weight_decay, config.decay_embeddings)
        vocab_size = self._model.config.vocab_size
        return Velvet(groups, config, spec.rate, vocab_size, controls=lambda *_: self._now)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan 2024) on the matrices between embedding and head, AdamW on everything else, one rate."""

    def __init__(self, model: nn.Module, config: OptimizerConfig, rate: float) -> None:
        groups = parameter_groups(model, config.weight_decay, config.decay_embeddings)
        super().__init__(groups, {"lr": rate})
        hidden, rest = ([g for g in groups if (g["label"] == "decay") is wanted] for wanted in (True, False))
        matrices = [each for group in hidden for each in group["params"]]
        others = [each for group in rest for each in group["params"]]
        self._parts = [
            torch.optim.Muon(
                matrices, lr=rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=rate, betas=config.betas, eps=config.epsilon, weight_decay=0.0),
        ]

    @torch.no_grad()
    def step(self) -> None:
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            part.step()


def optimizer_config(spec: RunSpec) -> OptimizerConfig:
    """The product's config of an arm; controls at their defaults."""
    follows = spec.arm in "CDEF"
    return OptimizerConfig(
        kind="velvet" if follows else "adamw",
        betas=(spec.beta1, spec.beta2),
        weight_decay=spec.weight_decay,
        max_gradient_norm=MAX_NORM,
        entropy=EntropyConfig(enabled=spec.arm in "DF"),
        perplexity=PerplexityConfig(enabled=spec.arm in "EF"),
    )


def _finite(value: float | Tensor | None) -> bool:
    return value is not None and math.isfinite(value)


def _spikes(losses: Sequence[float | None]) -> int:
    """Steps whose loss is half again the median of the 20 before."""
    known = [math.inf if each is None else each for each in losses]
    return sum(known[i] > 1.5 * statistics.median(known[i - 20 : i]) for i in range(20, len(known)))


def _peak_bytes(form: Form) -> int:
    if form.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
