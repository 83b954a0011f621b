"""
What `deterministic` costs on this GPU, measured before the first step.

    tell_cost_of_determinism(trainer)        # logs one line; the manifest's `run` keeps the factor

A micro-batch of the run is computed with torch's switch on and off. The workspace of cuBLAS and the form of
attention stay as they are: both were settled before the process used the GPU.
"""

import torch

from utils.training.loop import Trainer
from utils.training.loss import LossModel
from utils.training.rehearsal import Rehearsal


def tell_cost_of_determinism(trainer: Trainer) -> None:
    """
    Log the cost and hand it to the manifest; nothing to do without the key, or on a CPU. Leaves no trace in
    the run.
    """
    config, machine = trainer.config, trainer.machine
    if not config.deterministic or machine.device.type != "cuda":
        return
    if machine.sharded:  # the pass would need the wrapped model, and where memory ran out others would wait
        trainer.stage.log("deterministic", "its cost is not measured with sharded weights")
        return
    model = LossModel(trainer.model, trainer.loss, machine.precision, config.document_attention)
    factor = cost_of_determinism(Rehearsal(model, trainer.rows, machine), trainer.execution.micro_rows)
    if factor is None:
        trainer.stage.log("deterministic", "its cost is not measured: no memory for a further pass")
        return
    trainer.stage.log("deterministic", f"a micro-batch takes {factor:.2f} times as long as without")
    trainer.stage.run_info(deterministic_cost=round(factor, 3))


def cost_of_determinism(rehearsal: Rehearsal, rows: int) -> float | None:
    """Time of a micro-batch of `rows` over its time without the switch, which is on again afterwards."""
    found = {}
    try:
        with rehearsal.without_trace():
            for switch in (True, False):
                torch.use_deterministic_algorithms(switch)
                found[switch] = rehearsal.seconds(rows)
    finally:
        torch.use_deterministic_algorithms(True)
    return None if None in found.values() else found[True] / found[False]
