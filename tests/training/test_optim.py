import math

import pytest
import torch

from tests.helpers import small_model
from tests.messages import refused
from training.optim import OptimConfig, build_optimizer, clip_and_step, lr_at
from utils.sections import check_values, flatten


def test_published_schedule():
    cfg = OptimConfig()
    assert lr_at(0, cfg) == 0
    assert lr_at(1500, cfg) == pytest.approx(2e-4)
    assert lr_at(3000, cfg) == pytest.approx(4e-4)
    middle = 3000 + (100_000 - 3000) // 2
    assert lr_at(middle, cfg) == pytest.approx(2e-4)
    quarter = 3000 + (100_000 - 3000) // 4
    assert lr_at(quarter, cfg) == pytest.approx(4e-4 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert lr_at(100_000, cfg) == pytest.approx(0, abs=1e-12)


def test_other_schedules():
    linear = OptimConfig(lr=1.0, warmup=10, train_steps=110, scheduler_type="linear")
    assert [lr_at(s, linear) for s in (5, 10, 60, 110)] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    constant = OptimConfig(lr=1.0, warmup=10, train_steps=110, scheduler_type="constant")
    assert [lr_at(s, constant) for s in (5, 10, 109)] == pytest.approx([0.5, 1.0, 1.0])
    with refused("scheduler_type", "'step'", "cosine, linear, constant"):
        check_values(OptimConfig, flatten(OptimConfig()) | {"scheduler_type": "step"})


def test_only_norms_go_without_decay():
    model = small_model("encoder_decoder")
    decayed, plain = build_optimizer(model, OptimConfig()).param_groups
    assert decayed["weight_decay"] == 0.05 and plain["weight_decay"] == 0
    names = {id(p): name for name, p in model.named_parameters()}
    assert all("norm" in names[id(p)] for p in plain["params"])
    assert not any("norm" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def plain_adamw(w, gradients, cfg, lr):
    """AdamW (Loshchilov & Hutter) written out."""
    m = v = torch.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        m, v = cfg.beta1 * m + (1 - cfg.beta1) * g, cfg.beta2 * v + (1 - cfg.beta2) * g * g
        w = w * (1 - lr * cfg.weight_decay)
        w = w - lr * (m / (1 - cfg.beta1**t)) / ((v / (1 - cfg.beta2**t)).sqrt() + 1e-8)
    return w


def updates(gradients, cfg):
    layer = torch.nn.Linear(3, 2, bias=False)
    torch.nn.init.ones_(layer.weight)
    optimizer = build_optimizer(layer, cfg)
    outcomes = []
    for gradient in gradients:
        layer.weight.grad = gradient.clone()
        outcomes.append(clip_and_step(optimizer, layer.parameters(), 0.1, cfg))
    return layer.weight.detach(), outcomes


def test_updates_follow_adamw_with_clipping():
    gradients = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    cfg = OptimConfig(grad_clip_norm=1.5, allowed_gradnorm_factor=100.0)
    weight, outcomes = updates(gradients, cfg)
    clipped = [g * min(1.0, 1.5 / (g.norm().item() + 1e-6)) for g in gradients]
    torch.testing.assert_close(weight, plain_adamw(torch.ones(2, 3), clipped, cfg, 0.1))
    assert [norm.item() for norm, _ in outcomes] == pytest.approx([g.norm().item() for g in gradients])
    assert not any(skipped for _, skipped in outcomes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 100.0])
def test_a_bad_update_leaves_no_trace(bad):
    good = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0)) * 0.3
    cfg = OptimConfig()
    spoiled, outcomes = updates([good[0], torch.full((2, 3), bad), good[1], good[2]], cfg)
    clean, _ = updates(list(good), cfg)
    assert [bool(skipped) for _, skipped in outcomes] == [False, True, False, False]
    assert torch.equal(spoiled, clean)
