"""
Velvet: AdamW with two global scalars that follow the run.

The learning rate follows the entropy of the predictions, the horizon of the momentum their perplexity. Of
step t, from all micro-batches and processes and before its update: ce = nats per target, h = entropy per
target / ln V. Both are averaged, a_t = rho a_(t-1) + (1 - rho) x, x^ = a_t / (1 - rho^t), and

    s_t   = clamp(h^ / h0, low, high)                           eta_t = schedule(t) s_t
    b_t   = clamp(1 - (1 - beta1) clamp((e^(ce^) / P0)^kappa, 1/2, 2), 1/2, b_max)
    q_t   = q_(t-1) b_t,  q_0 = 1

During the warm-up s = 1 and b = beta1 while the averages already run. The update itself is in
kernels/velvet_update.py; m / (1 - q_t) is the exact correction for any sequence of b, and Adam's for a
constant one. With both controls off this is AdamW (Kingma 2014, Loshchilov 2019); the controls are ours, and
docs/velvet.md says what a comparison found.

    optimizer = Velvet(groups, config.optimizer, learning_rate=1e-3, vocab_size=4096)
    loss.backward()
    optimizer.step(Signals(nll_sum, entropy_sum, num_targets), warming=step < warmup_steps)
    optimizer.report()["eta"]

Clipping is a factor on the device that the update reads; a norm or a signal that is not finite leaves all
state bit-identical and counts as skipped.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.linear_cross_entropy import Signals
from kernels.resolution import Asked
from kernels.velvet_update import UpdateScalars, gradient_norm, implementation_for, velvet_update
from utils.config.training import SLOWEST_BETA1, OptimizerConfig
from utils.optim.shards import full_tensor, local, shard_like, sum_over_shards
from utils.pipeline.errors import ConfigError, StageError

CLIP_EPSILON = 1e-6
LOW_PRECISION = (torch.bfloat16, torch.float16)
MEASURED = ("grad_norm", "eta", "s", "b", "entropy", "skipped")

Controls = Callable[[Tensor, Tensor], tuple[Tensor | float, Tensor | float]]


@dataclass(frozen=True)
class FollowPredictions:
    """(ce^, h^) -> (s, b), as above; a control that is off gives 1, or beta1."""

    config: OptimizerConfig

    def __call__(self, nats: Tensor, fraction: Tensor) -> tuple[Tensor | float, Tensor | float]:
        entropy, perplexity = self.config.entropy, self.config.perplexity
        factor, beta1 = 1.0, self.config.betas[0]
        if entropy.enabled:
            factor = (fraction / entropy.target_fraction).clamp(*entropy.bounds)
        if perplexity.enabled:
            ratio = torch.exp(perplexity.exponent * (nats - math.log(perplexity.baseline)))
            beta1 = (1 - (1 - beta1) * ratio.clamp(0.5, 2)).clamp(SLOWEST_BETA1, self.config.largest_beta1)
        return factor, beta1


class RunState(NamedTuple):
    """The scalars of a run, fp64 on the device; `step` counts updates, so skipped steps are not in it."""

    step: Tensor
    decayed: Tensor  # q: the product of all b
    nats: Tensor
    fraction: Tensor
    factor: Tensor
    beta1: Tensor
    skipped: Tensor


class Velvet(torch.optim.Optimizer):
    """
    The update rule above over `groups` (utils/optim/groups.py).

    State, including the scalars, is made at the first step, on the device and in the shards that the
    parameters then have. `controls` replaces the two controls, for replays and tests. ConfigError for a
    vocabulary without entropy; StageError names a parameter without a gradient.
    """

    _step_supports_amp_scaling = True  # GradScaler leaves scale and found_inf to `step`
    state_by_name = True

    def __init__(
        self,
        groups: Iterable[dict],
        config: OptimizerConfig,
        learning_rate: float,
        vocab_size: int,
        implementation: Asked = "auto",
        controls: Controls | None = None,
    ) -> None:
        if learning_rate < 0:
            raise ConfigError(f'"optimizer.learning_rate": {learning_rate} is below 0')
        if vocab_size < 2:
            raise ConfigError(f'"optimizer.kind": velvet needs a vocabulary above 1 entry, not {vocab_size}')
        super().__init__(groups, {"lr": learning_rate})
        self.config, self._log_vocab, self._asked = config, math.log(vocab_size), implementation
        self._controls = controls or FollowPredictions(config)
        self.run: RunState | None = None
        self._measured: Tensor | None = None
        self._masks: list[Tensor | None] | None = None

    @torch.no_grad()
    def step(self, signals: Signals, warming: bool = False) -> None:
        """One update with what this step's predictions say, or none at all where something is not finite."""
        members = self._members()
        self._create_state(members)
        parameters = [each.parameter for each in members]
        device = local(parameters[0]).device
        implementation = implementation_for(self._asked, device.type)
        gradients = [local(each.grad) for each in parameters]
        scale = _scalar(getattr(self, "grad_scale", None), 1.0, device)
        norm = sum_over_shards(parameters, gradients, _squares(implementation)).sqrt() / scale
        known = signals if self.config.follows_entropy else signals._replace(entropy_sum=0.0)
        signal = torch.stack([_scalar(each, 0.0, device) for each in known])
        skip = ~(norm.isfinite() & signal.isfinite().all() & (signal[2] > 0))
        skip = skip | (_scalar(getattr(self, "found_inf", None), 0.0, device) != 0)
        advanced = self._advance(signal, warming)
        counted = self.run._replace(skipped=self.run.skipped + 1)
        scalars = self._scalars(advanced, norm, scale, skip)
        self.run = RunState(*torch.where(skip, torch.stack(counted), torch.stack(advanced)).unbind())
        velvet_update(
            [local(each) for each in parameters],
            gradients,
            *([self._local_state(each, kind) for each in parameters] for kind in ("m", "v")),
            masters=[self._local_state(each, "master") for each in parameters],
            masks=self._masks,
            decay=[each.decays for each in members],
            scalars=scalars,
            implementation=implementation,
        )
        entropy = signal[1] / signal[2] / self._log_vocab
        self._measured = torch.stack(
            [norm, scalars[0], advanced.factor, advanced.beta1, entropy, skip.double()]
        )

    def measured(self) -> dict[str, Tensor]:
        """
        Of the last step, on the device: grad_norm, eta, s, b, entropy (a share of ln V, where it is followed)
        and skipped.
        """
        found = dict(zip(MEASURED, self._measured.unbind(), strict=True))
        return found if self.config.follows_entropy else {k: v for k, v in found.items() if k != "entropy"}

    def report(self) -> dict[str, float]:
        """What was measured, as numbers. Waits for the device."""
        return {name: float(value) for name, value in self.measured().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """
        m/<name>, v/<name>, master/<name> as full tensors, run (the scalars) and config (a digest); empty
        before the first step.
        """
        if self.run is None:
            return {}
        tensors = {"run": torch.stack(self.run), "config": self._digest()}
        for each in self._named():
            for kind, value in self.state[each.parameter].items():
                tensors[f"{kind}/{each.name}"] = full_tensor(value).detach()
        return tensors

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take a state back, dtypes as saved, whatever the order. ValueError names what does not fit."""
        self.state.clear()
        self.run = None
        if not tensors:
            return
        rest = dict(tensors)
        run, digest = rest.pop("run"), rest.pop("config")
        if not torch.equal(digest.cpu(), self._digest()):
            raise ValueError("this state belongs to an optimizer with other settings")
        members = self._named()
        for each in members:
            for kind in _kinds(each.parameter):
                self.state[each.parameter][kind] = _taken(rest, f"{kind}/{each.name}", each.parameter)
        if rest:
            raise ValueError(f"tensor {min(rest)} belongs to no parameter")
        self.run = RunState(*run.to(local(members[0].parameter).device).unbind())

    def _named(self) -> list["Member"]:
        return [
            Member(name, parameter, mask, group["weight_decay"] > 0)
            for group in self.param_groups
            for name, parameter, mask in zip(group["names"], group["params"], group["masks"], strict=True)
        ]

    def _members(self) -> list["Member"]:
        members = self._named()
        for each in members:
            if each.parameter.grad is None:
                raise StageError(f"{each.name} gets no gradient: it is cut off from the loss")
        return members

    def _create_state(self, members: list["Member"]) -> None:
        if self._masks is None:
            self._masks = [
                None if each.mask is None else local(shard_like(each.mask, each.parameter))
                for each in members
            ]
        if self.run is not None:
            return
        for each in members:
            state, parameter = self.state[each.parameter], each.parameter
            high = torch.promote_types(parameter.dtype, torch.float32)
            state |= {kind: torch.zeros_like(parameter, dtype=high) for kind in ("m", "v")}
            if "master" in _kinds(parameter):
                state["master"] = parameter.detach().to(high, copy=True)
        device = local(members[0].parameter).device
        start = {"decayed": 1.0, "factor": 1.0, "beta1": self.config.betas[0]}
        values = [start.get(name, 0.0) for name in RunState._fields]
        self.run = RunState(*torch.tensor(values, dtype=torch.float64, device=device).unbind())

    def _local_state(self, parameter: Tensor, kind: str) -> Tensor | None:
        value = self.state[parameter].get(kind)
        return None if value is None else local(value)

    def _advance(self, signal: Tensor, warming: bool) -> RunState:
        """The scalars after this step, if it is taken."""
        run, rho = self.run, self.config.smoothing
        step, nats = run.step + 1, signal[0] / signal[2]
        by_loss = self.config.entropy.source == "loss"
        fraction = (nats if by_loss else signal[1] / signal[2]) / self._log_vocab
        averages = [rho * old + (1 - rho) * new for old, new in ((run.nats, nats), (run.fraction, fraction))]
        factor, beta1 = 1.0, self.config.betas[0]
        if not warming:
            factor, beta1 = self._controls(*(each / (1 - rho**step) for each in averages))
        factor, beta1 = (_scalar(each, 0.0, nats.device) for each in (factor, beta1))
        return RunState(step, run.decayed * beta1, *averages, factor, beta1, run.skipped)

    def _scalars(self, run: RunState, norm: Tensor, scale: Tensor, skip: Tensor) -> Tensor:
        _, beta2 = self.config.betas
        return UpdateScalars(
            eta=self.param_groups[0]["lr"] * run.factor,
            beta1=run.beta1,
            beta2=beta2,
            epsilon=self.config.epsilon,
            weight_decay=self.config.weight_decay,
            first_correction=1 / (1 - run.decayed),
            second_correction=(1 - beta2**run.step).rsqrt(),
            clip=(self.config.max_gradient_norm / (norm + CLIP_EPSILON)).clamp(max=1) / scale,
            skip=skip,
            step=run.step,
        ).packed(norm.device)

    def _digest(self) -> Tensor:
        """SHA-256 of everything that decides how the scalars move."""
        said = f"{self.config.model_dump_json(exclude={'learning_rate'})} {self._log_vocab!r}"
        return torch.frombuffer(bytearray(hashlib.sha256(said.encode()).digest()), dtype=torch.uint8)


class Member(NamedTuple):
    """A parameter in its group."""

    name: str
    parameter: Tensor
    mask: Tensor | None
    decays: bool


def _kinds(parameter: Tensor) -> tuple[str, ...]:
    return ("m", "v", "master") if parameter.dtype in LOW_PRECISION else ("m", "v")


def _squares(implementation: str) -> Callable[[list[Tensor]], Tensor]:
    return lambda gradients: gradient_norm(gradients, implementation).square()


def _scalar(value: Tensor | float | None, default: float, device: torch.device) -> Tensor:
    """fp64, 0-dimensional, on the device; a number is written there by a kernel, without a wait."""
    number = default if value is None else value
    if isinstance(number, Tensor):
        return number.detach().to(device, torch.float64).reshape(())
    return torch.full((), number, dtype=torch.float64, device=device)


def _taken(tensors: dict[str, Tensor], name: str, parameter: Tensor) -> Tensor:
    """The tensor of this name, removed from `tensors`, laid out as the parameter is."""
    if name not in tensors:
        raise ValueError(f"tensor {name} is missing")
    tensor = tensors.pop(name)
    if tensor.shape != parameter.shape:
        raise ValueError(f"tensor {name} is {tuple(tensor.shape)}, not {tuple(parameter.shape)}")
    return shard_like(tensor, parameter)
