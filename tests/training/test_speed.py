import pytest
import torch

from utils.training.speed import Speed, measure_gemm, stated_peak


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", None),
        ("NVIDIA GeForce RTX 4080", None),
    ],
)
def test_the_stated_peak_of_a_gpu_by_its_whole_name(name, peak):
    assert stated_peak(name) == peak


def test_shares_are_flops_per_second_over_what_the_device_can_do():
    speed = Speed(flops_per_token=2e6, gemm=4e12, peak=16e12)
    assert speed.shares(1e6) == {"gemm_fraction": 0.5, "mfu": 0.125}
    assert Speed(2e6, 4e12, None).shares(1e6) == {"gemm_fraction": 0.5}


def test_the_measured_product_is_of_this_machine():
    found = measure_gemm(torch.device("cpu"), torch.float32, seconds=0.05)
    assert 1e8 < found < 1e14


def test_the_measurement_leaves_the_random_state_of_the_run_alone():
    before = torch.get_rng_state()
    measure_gemm(torch.device("cpu"), torch.bfloat16, seconds=0.0)
    assert torch.equal(torch.get_rng_state(), before)
