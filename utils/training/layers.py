"""
Two ways to run the decoder's layers that leave names, weights and results as they are.

    recompute_layers(model)      # keep the inputs of each layer; the backward pass computes the rest again
    compile_layers(model)        # training passes run compiled, everything else as before
    restore_layers(model)        # not compiled any more

Samples and validation have shapes of their own and would be compiled once for each, so only training passes
run compiled.
"""

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from utils.training.loss import causal_model

BACKEND = "inductor"


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of the decoder, through a PEFT wrapper."""
    return causal_model(model).get_decoder().layers


def recompute_layers(model: nn.Module) -> None:
    """
    Activation checkpointing (Chen 2016, arXiv 1604.06174), a layer at a time; random state is the same the
    second time. Counts of routers and adapters are taken in the first pass only.
    """
    for layer in decoder_layers(model):
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.gradient_checkpointing = True


def compile_layers(model: nn.Module) -> None:
    """Compile each layer in place for fixed shapes, at its first training pass."""
    for layer in decoder_layers(model):
        layer.compile(backend=BACKEND, dynamic=False)
        layer._compiled_call_impl = partial(_call, layer, layer._compiled_call_impl)


def restore_layers(model: nn.Module) -> None:
    """Undo `compile_layers`."""
    for layer in decoder_layers(model):
        layer._compiled_call_impl = None


def _call(layer: nn.Module, compiled: Callable, *args: object, **kwargs: object) -> object:
    return (compiled if layer.training else layer._call_impl)(*args, **kwargs)
