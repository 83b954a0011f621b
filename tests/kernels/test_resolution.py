"""Kernels that are wrong in one way or another, and what a run makes of them."""

import importlib
import json

import pytest
import torch

from kernels import era, linear_cross_entropy, moe, velvet_update
from kernels.resolution import check_agreement, checked_dtypes, resolve_kernel
from tests.training.toy_stage import run, write_config
from utils.models.vesper import VesperConfig, VesperForCausalLM

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAUNCHES = [
    (linear_cross_entropy, "linear_cross_entropy_triton", "launch_rows"),
    (era, "era_triton", "launch_forward"),
    (era, "era_triton", "launch_backward"),
    (moe, "moe_triton", "launch_products"),
    (moe, "moe_triton", "launch_weight_products"),
    (velvet_update, "velvet_update_triton", "launch_update"),
]


def plant_tripled(monkeypatch, module, launch, dtype):
    """From here on a launch makes three times what it should, in this dtype only."""
    file = importlib.import_module(f"kernels.{module}")
    right = getattr(file, launch)

    def wrong(*given, **named):
        found = right(*given, **named)
        made = found if isinstance(found, tuple) else (found,)
        if launch == "launch_update":
            made = [slot.parameter for slot in given[0]]
        if launch == "launch_rows":  # the gradient lies over the logits
            made = given[:1]
        for tensor in made:
            if tensor.dtype == dtype:
                tensor.mul_(3)
        return found

    monkeypatch.setattr(file, launch, wrong)


@pytest.mark.parametrize(("kernel", "module", "launch"), LAUNCHES, ids=[each[2] for each in LAUNCHES])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_kernel_that_is_wrong_in_one_dtype_is_found_out(kernel, module, launch, dtype, monkeypatch, device):
    plant_tripled(monkeypatch, module, launch, dtype)
    monkeypatch.setattr(f"{kernel.__name__}.checked_dtypes", lambda _: (dtype,))
    with pytest.raises(ArithmeticError, match=f"differs from torch by .* in {str(dtype)[6:]}"):
        kernel.self_check(device.type)


def test_every_dtype_of_the_device_is_checked(monkeypatch):
    assert set(checked_dtypes("cpu")) == set(DTYPES)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert torch.bfloat16 not in checked_dtypes("cuda")


def test_agreement_is_a_unit_in_the_last_place():
    exact = torch.linspace(-4, 4, 99, dtype=torch.float64)
    for dtype in DTYPES:
        found = exact.to(dtype)
        check_agreement("k", [found], [exact])
        with pytest.raises(ArithmeticError, match="k differs from torch by"):
            check_agreement("k", [found * (1 + 3 * torch.finfo(dtype).eps) + 2e-5], [exact])
        with pytest.raises(ArithmeticError, match="differs from torch by nan"):
            check_agreement("k", [found * torch.nan], [exact])


@pytest.mark.parametrize("region", [torch.no_grad, torch.inference_mode])
def test_a_kernel_may_be_used_first_where_there_are_no_gradients(region, monkeypatch, device):
    monkeypatch.setattr(era, "checked_dtypes", lambda _: (torch.float32,))
    resolve_kernel.cache_clear()
    with region():
        assert era.resolution("triton", device.type).implementation == "triton"


# in a run -----------------------------------------------------------------------------------------------


@pytest.fixture
def tripled_k2(monkeypatch):
    """K2 with bf16 gradients three times too large."""
    plant_tripled(monkeypatch, "linear_cross_entropy_triton", "launch_rows", torch.bfloat16)
    resolve_kernel.cache_clear()
    yield
    resolve_kernel.cache_clear()


def as_if_on_cuda(monkeypatch, device):
    """ "auto" chooses as on CUDA; the check runs where it can."""

    def check(_):
        linear_cross_entropy.self_check(device.type)

    monkeypatch.setattr(
        linear_cross_entropy,
        "resolve_kernel",
        lambda kernel, asked, *_: resolve_kernel(kernel, asked, "cuda", check),
    )


def test_auto_falls_back_with_a_warning_and_the_reason_in_the_manifest(
    tmp_path, capsys, monkeypatch, tripled_k2, device
):
    as_if_on_cuda(monkeypatch, device)
    write_config(tmp_path, steps=2)
    assert run(tmp_path) == 0
    reason = "ArithmeticError: linear_cross_entropy differs from torch by 2 in bfloat16"
    warning = f"kernel linear_cross_entropy: torch instead of Triton ({reason})"
    assert capsys.readouterr().out.count(warning) == 1
    manifest = json.loads((tmp_path / "checkpoints/toy/manifest.json").read_text())
    expected = {"asked": "auto", "resolved": "torch", "reason": reason}
    assert manifest["run"]["rates"]["kernels"] == {"linear_cross_entropy": expected}


def test_triton_asked_for_and_wrong_ends_the_stage(tmp_path, capsys, tripled_k2):
    write_config(tmp_path, steps=2, kernels="triton")
    assert run(tmp_path) == 4
    message = 'kernel linear_cross_entropy: "triton" cannot run: ArithmeticError'
    assert message in capsys.readouterr().err


# experts on GPUs ----------------------------------------------------------------------------------------


def as_capable_as(monkeypatch, capability):
    """A process that sees a GPU on which every check passes."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    for kernel in (era, moe):
        monkeypatch.setattr(kernel, "self_check", lambda _: None)


@pytest.mark.parametrize(
    ("asked", "capability", "dtype", "form", "reason"),
    [
        ("auto", (9, 0), torch.bfloat16, "grouped", "grouped_mm is native on CUDA 9.0"),
        ("auto", (8, 0), torch.bfloat16, "triton", "agrees with torch on cuda"),
        ("auto", (9, 0), torch.float32, "triton", "agrees with torch on cuda"),
        ("triton", (9, 0), torch.bfloat16, "triton", "agrees with torch on cuda"),
        ("torch", (9, 0), torch.bfloat16, "grouped", "asked for"),
        ("auto", (9, 0), torch.float64, "loop", "a loop over experts for torch.float64"),
    ],
)
def test_the_manifest_names_the_product_of_experts_that_runs(
    asked, capability, dtype, form, reason, monkeypatch
):
    as_capable_as(monkeypatch, capability)
    cuda = torch.device("cuda")
    said = moe.resolution(asked, cuda, dtype).record()
    assert said["reason"] == reason and (said["resolved"] == "triton") == (form == "triton")
    assert moe._form(asked, cuda, dtype) == form


def test_a_model_says_what_runs_in_the_region_it_is_asked_in(monkeypatch):
    as_capable_as(monkeypatch, (9, 0))
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    model = VesperForCausalLM(VesperConfig(**sizes, **heads, **experts))
    monkeypatch.setattr(VesperForCausalLM, "device", torch.device("cuda"))
    assert [each.implementation for each in model.choose_kernels("auto")] == ["triton", "triton"]
    # without a GPU torch refuses the region itself
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.bfloat16)
    assert [each.implementation for each in model.choose_kernels("auto")] == ["triton", "torch"]


def test_a_run_asks_its_model_in_the_region_that_it_trains_in(tmp_path, monkeypatch):
    seen = []

    def kernels_of(*_):
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return ()

    monkeypatch.setattr("utils.training.loop.kernels_of", kernels_of)
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        folder.mkdir()
        write_config(folder, steps=1, precision=precision)
        assert run(folder) == 0
    assert seen == [torch.float32, torch.bfloat16]
