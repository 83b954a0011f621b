import math
import weakref

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.linear_cross_entropy import (
    chunk_rows,
    kept_rows,
    linear_cross_entropy,
    reference_linear_cross_entropy,
    resolution,
)
from kernels.linear_cross_entropy_torch import chunk_buffers, torch_rows
from kernels.linear_cross_entropy_triton import launch_rows
from tests.training.toy_stage import CountingRows, toy_model
from utils.training.loss import NextTokenLoss, scored_rows

SHAPES = [(1, 5, 8), (5, 123, 123), (37, 1031, 64), (300, 4096, 256)]


def problem(rows, vocab, width, ignored="some", dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab, width, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    if ignored == "some":
        targets[1::3] = -100
    if ignored == "few":
        targets[-1:] = -100 if rows > 20 else targets[-1:]
    if ignored == "all":
        targets[:] = -100
    return hidden, weight, targets


@pytest.mark.parametrize("ignored", ["none", "few", "some"])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_equal_torch(shape, ignored):
    hidden, weight, targets = problem(*shape, ignored)
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    sums = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(sums.loss_sum, expected, rtol=1e-6, atol=1e-6)
    assert sums.count == (targets != -100).sum()
    ours = torch.autograd.grad(sums.loss_sum * 0.25, (hidden, weight))
    theirs = torch.autograd.grad(expected * 0.25, (hidden, weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_row_weights_scale_loss_gradient_and_count():
    hidden, weight, targets = problem(37, 91, 16)
    weights = torch.rand(37)
    ours, reference = (
        f(hidden, weight, targets, weights) for f in (linear_cross_entropy, reference_linear_cross_entropy)
    )
    torch.testing.assert_close(ours.loss_sum, reference.loss_sum)
    assert float(ours.count) == pytest.approx(float(weights[targets != -100].sum()))
    for mine, other in zip(
        torch.autograd.grad(ours.loss_sum, (hidden, weight)),
        torch.autograd.grad(reference.loss_sum, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_gradcheck_in_double_precision():
    hidden, weight, targets = problem(70, 7, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets).loss_sum, (hidden, weight)
    )


def test_all_targets_ignored_gives_finite_zeros():
    hidden, weight, targets = problem(9, 11, 4, "all")
    sums = linear_cross_entropy(hidden, weight, targets)
    gradients = torch.autograd.grad(sums.loss_sum, (hidden, weight))
    assert sums.loss_sum == 0 and sums.count == 0
    assert all((each == 0).all() for each in gradients)


@pytest.mark.parametrize("logits", [lambda z: z.index_fill(1, torch.tensor([0]), 80.0), lambda z: z - 1e4])
def test_extreme_logits_stay_finite(logits):
    """A head of the identity turns hidden states into logits."""
    hidden = logits(torch.zeros(6, 6)).requires_grad_()
    sums = linear_cross_entropy(hidden, torch.eye(6), torch.tensor([1, 2, 3, 4, 5, 0]))
    (gradient,) = torch.autograd.grad(sums.loss_sum, hidden)
    assert torch.isfinite(sums.loss_sum) and torch.isfinite(gradient).all()


def test_uniform_logits_cost_ln_vocabulary():
    sums = linear_cross_entropy(torch.zeros(10, 4), torch.randn(50, 4), torch.arange(10))
    assert float(sums.loss_sum / sums.count) == pytest.approx(math.log(50), abs=1e-6)


def test_chunks_do_not_change_the_sum(monkeypatch):
    hidden, weight, targets = problem(300, 64, 16)
    one = linear_cross_entropy(hidden, weight, targets)
    monkeypatch.setattr("kernels.linear_cross_entropy.chunk_rows", lambda *_: 7)
    many = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(one.loss_sum, many.loss_sum, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(one.loss_sum, weight),
        torch.autograd.grad(many.loss_sum, weight),
        rtol=1e-5,
        atol=1e-5,
    )


def test_frozen_head_gets_no_gradient():
    hidden, weight, targets = problem(12, 9, 4)
    sums = linear_cross_entropy(hidden, weight.detach(), targets)
    (gradient,) = torch.autograd.grad(sums.loss_sum, hidden)
    assert gradient.abs().sum() > 0


def test_autocast_multiplies_in_bf16_and_returns_fp32_gradients():
    hidden, weight, targets = problem(64, 100, 32)
    exact = linear_cross_entropy(hidden, weight, targets).loss_sum
    with torch.autocast("cpu", torch.bfloat16):
        rough = linear_cross_entropy(hidden, weight, targets).loss_sum
    assert rough != exact and rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=2e-2, atol=0)
    assert {each.dtype for each in torch.autograd.grad(rough, (hidden, weight))} == {torch.float32}


def test_chunk_rows_follow_the_device():
    assert chunk_rows(4096, 256, "cpu") == 256 and chunk_rows(4096, 16, "cpu") == 64
    assert chunk_rows(32768, 768, "cuda") == 8192


def entropy_by_hand(hidden, weight, targets):
    logits = (hidden @ weight.T).double()
    return torch.distributions.Categorical(logits=logits).entropy()[targets != -100].sum()


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("ignored", ["none", "few", "some", "all"])
@pytest.mark.parametrize("shape", SHAPES[:3] + [(70, 4099, 48)])
def test_loss_entropy_z_and_gradients_equal_the_definition(shape, ignored, implementation, device):
    given = [each.detach().to(device).requires_grad_() for each in problem(*shape)[:2]]
    targets = problem(*shape, ignored)[2].to(device)
    ours = linear_cross_entropy(
        *given, targets, z_loss=1e-3, with_entropy=True, implementation=implementation
    )
    twin = reference_linear_cross_entropy(*given, targets, z_loss=1e-3)
    for name in ("loss_sum", "entropy_sum", "z_sum", "count"):
        torch.testing.assert_close(getattr(ours, name), getattr(twin, name), rtol=2e-6, atol=2e-5)
    expected = entropy_by_hand(*given, targets)
    torch.testing.assert_close(ours.entropy_sum.double(), expected, rtol=2e-6, atol=2e-5)
    assert not ours.entropy_sum.requires_grad and not ours.z_sum.requires_grad
    gradients = [torch.autograd.grad(each.loss_sum * 0.5, given) for each in (ours, twin)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_forms_agree_with_the_definition(dtype, device):
    """One rounding of the row gradient, one of the product: two units in the last place of the largest."""
    hidden, weight, targets = (each.to(device) for each in problem(37, 1031, 64))
    given = [(0.2 * each.detach()).to(dtype).requires_grad_() for each in (hidden, weight)]
    sums = [
        linear_cross_entropy(*given, targets, with_entropy=True, implementation=each)
        for each in ("torch", "triton")
    ]
    torch.testing.assert_close(sums[0].loss_sum, sums[1].loss_sum, rtol=1e-6, atol=0)
    torch.testing.assert_close(sums[0].entropy_sum, sums[1].entropy_sum, rtol=1e-6, atol=0)
    doubled = [each.detach().double().requires_grad_() for each in given]
    exact = torch.autograd.grad(reference_linear_cross_entropy(*doubled, targets).loss_sum, doubled)
    for each in sums:
        for mine, theirs in zip(torch.autograd.grad(each.loss_sum, given), exact, strict=True):
            assert mine.dtype == dtype
            allowed = 2 * torch.finfo(dtype).eps * float(theirs.abs().max())
            torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=allowed)


ROW_SHAPES = [(1, 1), (5, 123), (37, 1031), (128, 256), (3, 4099)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def row_gradient(form, logits, labels, shares):
    """d loss / d logits of a form of the row pass, in the dtype of the logits."""
    if form == "triton":
        logits = logits.clone()
        launch_rows(logits, labels, shares, 1e-3, graded=True)
        return logits
    chunk = chunk_buffers(len(logits), logits.T, torch.float32, on_torch=True)
    chunk.logits.copy_(logits)
    return torch_rows(chunk, labels, shares, 1e-3, with_entropy=True, graded=True).gradient


@pytest.mark.parametrize("form", ["torch", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROW_SHAPES, ids=str)
def test_the_gradient_of_a_row_is_the_exact_one_rounded_once(shape, dtype, form, device):
    generator = torch.Generator().manual_seed(shape[1])
    logits = (3 * torch.randn(shape, generator=generator)).to(device, dtype)
    labels = torch.randint(0, shape[1], shape[:1], generator=generator).to(device)
    shares = torch.rand(shape[0], generator=generator).to(device)
    exact = logits.double().requires_grad_()
    z = exact.logsumexp(1)
    loss = (F.cross_entropy(exact, labels, reduction="none") + 1e-3 * z.square()) * shares
    (expected,) = torch.autograd.grad(loss.sum(), exact)
    found = row_gradient(form, logits, labels, shares)
    assert found.dtype == dtype
    half_a_unit = 0.51 * torch.finfo(dtype).eps
    rounding = max(half_a_unit, 2e-6)  # in fp32 the arithmetic is what counts
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=3e-7)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("view", ["transposed", "sliced"])
def test_layouts_of_hidden_states_and_weight(view, implementation, device):
    def lay_out(tensor):
        if view == "transposed":
            return tensor.t().contiguous().t()
        wide = torch.full([n + 6 for n in tensor.shape], torch.nan, device=device)
        wide[3:-3, 3:-3] = tensor
        return wide[3:-3, 3:-3]

    hidden, weight, targets = (each.detach().to(device) for each in problem(37, 123, 65))
    found = []
    for given in ([hidden, weight], [lay_out(hidden), lay_out(weight)]):
        leaves = [each.requires_grad_() for each in given]
        sums = linear_cross_entropy(*leaves, targets, with_entropy=True, implementation=implementation)
        found.append((sums.loss_sum, sums.entropy_sum, *torch.autograd.grad(sums.loss_sum, leaves)))
    assert not given[0].is_contiguous() and not given[1].is_contiguous()
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


class Waits(TorchDispatchMode):
    """Operators for which the host has to wait for the device."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = name == "index" and any(
            each is not None and each.dtype == torch.bool for each in args[1] or ()
        )
        self.seen += [name] if name in self.NAMES or masks else []
        return function(*args, **(kwargs or {}))


def test_with_the_rows_to_keep_given_nothing_waits_and_no_bit_changes():
    hidden, weight, targets = problem(300, 1031, 64)
    given, found = (hidden, weight, targets), []
    for kept_K in (None, kept_rows(targets != -100)):
        with Waits() as waits:
            sums = linear_cross_entropy(*given, kept_K=kept_K, with_entropy=True, implementation="torch")
            found.append((sums.loss_sum, sums.entropy_sum, *torch.autograd.grad(sums.loss_sum, given[:2])))
        assert bool(waits.seen) == (kept_K is None), waits.seen
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_rows_are_kept_where_it_pays():
    scored = torch.ones(100, dtype=torch.bool)
    assert kept_rows(scored) is None
    scored[:4] = False
    assert kept_rows(scored) is None
    scored[:10] = False
    assert kept_rows(scored).tolist() == list(range(10, 100))
    assert kept_rows(scored[:0]).tolist() == []


@pytest.mark.gpu
@pytest.mark.parametrize("hint", [False, True])
def test_nothing_waits_for_the_device(hint):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    hidden, weight, targets = (each.detach().cuda() for each in problem(300, 1031, 64))
    leaves, kept_K = [hidden.requires_grad_(), weight.requires_grad_()], None
    if hint:
        kept_K = kept_rows(targets != -100)

    def once():
        linear_cross_entropy(*leaves, targets, kept_K=kept_K, with_entropy=True).loss_sum.backward()

    once()
    torch.cuda.set_sync_debug_mode("error")
    try:
        once()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_without_gradients_only_the_sums_are_made(implementation, device):
    given = [each.detach().to(device) for each in problem(37, 1031, 64)]
    with torch.no_grad():
        sums = linear_cross_entropy(*given, with_entropy=True, implementation=implementation)
    torch.testing.assert_close(sums.loss_sum, reference_linear_cross_entropy(*given).loss_sum)


def test_row_kernel_touches_nothing_but_its_rows(device):
    wide = torch.full((5, 300), torch.nan, device=device)
    wide[1:4, :123] = torch.randn(3, 123)
    view, expected = wide[1:4, :123], wide[1:4, :123].softmax(1)
    labels, shares = torch.tensor([0, 5, 122], device=device), torch.tensor([1.0, 0.0, 2.0], device=device)
    nll, entropy, normaliser = launch_rows(view, labels, shares, 0.0, graded=True)
    assert all(torch.isfinite(each).all() for each in (nll, entropy, normaliser))
    torch.testing.assert_close(
        view, shares[:, None] * (expected - torch.nn.functional.one_hot(labels, 123)), rtol=1e-5, atol=1e-6
    )
    wide[1:4, :123] = torch.nan
    assert wide.isnan().all()


def test_gradcheck_with_z_loss_in_double_precision():
    hidden, weight, targets = problem(70, 7, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, z_loss=0.1, with_entropy=True).loss_sum,
        (hidden, weight),
    )


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_entropy_of_uniform_certain_and_extreme_logits(implementation, device):
    def entropy(logits):
        width = logits.shape[1]
        eye, targets = (
            torch.eye(width, device=device),
            torch.zeros(len(logits), dtype=torch.long, device=device),
        )
        sums = linear_cross_entropy(
            logits.to(device), eye, targets, with_entropy=True, implementation=implementation
        )
        assert torch.isfinite(sums.loss_sum)
        return float(sums.entropy_sum) / len(logits)

    assert entropy(torch.zeros(6, 50)) == pytest.approx(math.log(50), rel=1e-6)
    assert entropy(torch.full((6, 50), -1e4)) == pytest.approx(math.log(50), rel=1e-6)
    assert entropy(torch.zeros(6, 50).index_fill(1, torch.tensor([3]), 80.0)) == pytest.approx(0, abs=1e-6)
    for scale in (1e-3, 1.0, 30.0, 1e4):
        assert 0 <= entropy(scale * torch.randn(9, 77)) <= math.log(77) * (1 + 1e-6)


def test_entropy_does_not_change_the_loss_or_its_gradient():
    hidden, weight, targets = problem(300, 1031, 64, "few")
    found = []
    for with_entropy in (False, True):
        sums = linear_cross_entropy(hidden, weight, targets, with_entropy=with_entropy)
        found.append((sums.loss_sum, *torch.autograd.grad(sums.loss_sum, (hidden, weight))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_chunk_bytes_bound_the_logits_and_change_nothing():
    hidden, weight, targets = problem(300, 64, 16)
    found = [
        linear_cross_entropy(hidden, weight, targets, with_entropy=True, chunk_bytes=each)
        for each in ("auto", 64 * 4 * 7, 1)
    ]
    for other in found[1:]:
        torch.testing.assert_close(other.loss_sum, found[0].loss_sum, rtol=1e-6, atol=0)
        torch.testing.assert_close(other.entropy_sum, found[0].entropy_sum, rtol=1e-6, atol=0)


class Products(TorchDispatchMode):
    """How many matrix products were made inside."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "mm" in function.__name__
        return function(*args, **(kwargs or {}))


def test_evaluation_multiplies_only_for_the_logits():
    hidden, weight, targets = problem(300, 64, 128, "none")
    with torch.no_grad(), Products() as products:
        linear_cross_entropy(hidden, weight, targets)
    assert products.count == math.ceil(300 / chunk_rows(64, 128, "cpu"))
    with Products() as products:
        linear_cross_entropy(hidden, weight, targets)
    assert products.count == 3 * math.ceil(300 / chunk_rows(64, 128, "cpu"))


class LiveBytes(TorchDispatchMode):
    """The most bytes that storages made inside held at once, those of `given` apart."""

    def __init__(self, *given):
        super().__init__()
        self.now, self.peak = 0, 0
        self.known = {each.untyped_storage()._cdata for each in given}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor) and each.untyped_storage()._cdata not in self.known:
                self._count(each.untyped_storage())
        return result

    def _count(self, storage):
        address, size = storage._cdata, storage.nbytes()
        self.known.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone():
            self.known.discard(address)
            self.now -= size

        weakref.finalize(storage, gone)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_memory_is_bounded_by_chunks_and_the_gradients(with_entropy, kind, implementation, monkeypatch):
    """The interpreter cannot run while storages are watched, and the row kernel makes none but three rows."""
    rows, vocab, width, chunk = 4096, 2048, 32, 128 * 2048 * 4
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    hidden, weight, targets = problem(rows, vocab, width, "none", dtype)
    kernel = "kernels.linear_cross_entropy_triton.launch_rows"
    resolution(implementation, "cpu")
    monkeypatch.setattr(kernel, lambda logits, *_: tuple(torch.zeros(len(logits)) for _ in range(3)))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast")
    with autocast, LiveBytes(hidden, weight, targets) as live:
        linear_cross_entropy(
            hidden,
            weight,
            targets,
            with_entropy=with_entropy,
            chunk_bytes=chunk,
            implementation=implementation,
        )
    bound = hidden.element_size() * rows * width + 4 * vocab * width
    bound += (3 if implementation == "torch" else 1) * chunk
    bound += 2 * vocab * width if kind == "autocast" else 0
    small = 64 * rows  # labels, weights and sums of rows
    assert live.peak <= bound + small < 4 * rows * vocab / 4


def test_the_loop_finds_the_scored_rows_on_the_host_for_a_gpu():
    loss, batch = NextTokenLoss(), CountingRows(length=12).rows(range(4))
    scored = loss.trained(batch).flatten()
    assert scored.float().mean() < 0.95
    assert scored_rows(loss, batch, torch.device("cpu")) is None  # a CPU looks itself
    found = scored_rows(loss, batch, torch.device("meta"))
    assert found.device.type == "meta" and found.shape == (int(scored.sum()),)
    there = batch._replace(tokens=batch.tokens.to("meta"))
    assert scored_rows(loss, there, torch.device("meta")) is None  # nobody can say without a wait
    whole = batch._replace(document=torch.zeros_like(batch.document))
    assert scored_rows(loss, whole, torch.device("meta")) is None  # all count


def test_the_loss_of_a_batch_is_the_same_with_the_rows_given(monkeypatch):
    model, batch, loss = toy_model(), CountingRows(length=12).rows(range(4)), NextTokenLoss()
    kept_K, seen = kept_rows(loss.trained(batch).flatten()), []

    def given(hidden_ND, *rest, **options):
        seen.append(options["kept_K"])
        return linear_cross_entropy(hidden_ND, *rest, **options)

    monkeypatch.setattr("utils.training.loss.linear_cross_entropy", given)
    plain = loss(model, batch)
    monkeypatch.setattr("utils.training.loss.scored_rows", lambda *_: kept_K)
    hinted = loss(model, batch)
    assert seen == [None, kept_K]
    assert torch.equal(plain.loss_sum, hinted.loss_sum) and plain.count == hinted.count == len(kept_K)
