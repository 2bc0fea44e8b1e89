"""Both models against formulas written out here, and what must not change their output."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from geometry.cameras import Views, plucker
from model import ModelConfig, build_model
from model.lvsm import TokenizerConfig
from model.transformer import TransformerConfig, block_init_std
from tests.helpers import (
    MODELS,
    PLAIN,
    PUBLISHED,
    VARIANTS,
    class_name,
    random_cameras,
    random_views,
    small_config,
    small_model,
)
from tests.messages import refused


def layer_norm(x, weight):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * weight


def rms_norm(x, weight):
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5) * weight


def plain_attention(attn, x):
    """One head at a time, softmax written out."""
    c = attn.d_head
    q, k, v = (x @ attn.qkv.weight.T).split(x.shape[-1], dim=-1)
    heads = []
    for h in range(x.shape[-1] // c):
        one = slice(h * c, (h + 1) * c)
        queries, keys = rms_norm(q[..., one], attn.q_norm.weight), rms_norm(k[..., one], attn.k_norm.weight)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(c)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        heads.append(weights @ v[..., one])
    return torch.cat(heads, -1) @ attn.out.weight.T


def plain_block(block, x):
    x = x + plain_attention(block.attn, layer_norm(x, block.norm1.weight))
    hidden = layer_norm(x, block.norm2.weight) @ block.mlp.up.weight.T
    gelu = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + gelu @ block.mlp.down.weight.T


def plain_patches(maps, p):
    """[c, h, w] -> tokens, by loops: rows of patches, then rows and columns of a patch, channels last."""
    _, height, width = maps.shape
    tokens = []
    for top in range(0, height, p):
        for left in range(0, width, p):
            tokens.append(maps[:, top : top + p, left : left + p].permute(1, 2, 0).reshape(-1))
    return torch.stack(tokens)


def plain_image(tokens, p, height, width):
    image = torch.empty(3, height, width)
    for i, token in enumerate(tokens):
        top, left = p * (i // (width // p)), p * (i % (width // p))
        image[:, top : top + p, left : left + p] = token.view(p, p, 3).permute(2, 0, 1)
    return image


def plain_render(model, views, camera):
    """One scene, one target, every layer over every token."""
    p = model.head.patch_size
    maps = torch.cat([views.images * 2 - 1, plucker(views.cameras)], dim=1)
    inputs = torch.cat([plain_patches(m, p) for m in maps]) @ model.image_tokenizer.linear.weight.T
    target = plain_patches(plucker(camera), p) @ model.pose_tokenizer.linear.weight.T
    if hasattr(model, "latents"):
        x = torch.cat([model.latents, inputs])
        for block in model.encoder:
            x = plain_block(block, x)
        x = layer_norm(torch.cat([target, x[: len(model.latents)]]), model.input_norm.weight)
        for block in model.decoder:
            x = plain_block(block, x)
        tokens = x[: len(target)]
    else:
        x = layer_norm(torch.cat([inputs, target]), model.input_norm.weight)
        for block in model.transformer:
            x = plain_block(block, x)
        tokens = x[-len(target) :]
    pixels = torch.sigmoid(layer_norm(tokens, model.head.norm.weight) @ model.head.linear.weight.T)
    return plain_image(pixels, p, camera.height, camera.width)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_model_equals_the_formula(variant):
    model = small_model(variant)
    views, targets = random_views(2, 2), random_cameras(2, 3, seed=1)
    with torch.no_grad():
        renders = model(views, targets)
        for scene in range(2):
            for target in range(3):
                expected = plain_render(model, views[scene], targets[scene, target])
                torch.testing.assert_close(renders[scene, target], expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", MODELS)
def test_targets_never_see_one_another(variant):
    model, views = small_model(variant), random_views(1, 2)
    with torch.no_grad():
        together = model(views, random_cameras(1, 4, seed=1))
        alone = model(views, random_cameras(1, 4, seed=1)[:, 2:3])
    torch.testing.assert_close(together[:, 2:3], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", MODELS)
def test_order_of_inputs_does_not_matter(variant):
    model, views, targets = small_model(variant), random_views(1, 3), random_cameras(1, 1, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(model(views, targets), model(views[:, [2, 0, 1]], targets), atol=2e-6, rtol=0)


@pytest.mark.parametrize("variant", MODELS)
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_decoding_in_chunks_changes_nothing(variant, chunk):
    model, views, targets = small_model(variant), random_views(2, 2), random_cameras(2, 5, seed=1)
    with torch.no_grad():
        encoded = model.encode(views)
        whole, parts = model.decode(encoded, targets), model.decode(encoded, targets, max_views=chunk)
    torch.testing.assert_close(whole, parts, atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_last_block_shortcut_is_exact(variant):
    transformer = small_model(variant).get_submodule("transformer" if variant == "decoder_only" else "encoder")
    x = torch.randn(2, 11, 64, generator=torch.Generator().manual_seed(0))
    for queries in (slice(-4, None), slice(0, 5)):
        with torch.no_grad():
            torch.testing.assert_close(transformer(x, queries), transformer(x)[:, queries], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", [*VARIANTS, "prefix+prope"])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_activation_checkpointing_changes_no_gradient(variant, every):
    gradients = []
    for execution in (PLAIN, replace(PLAIN, grad_checkpoint_every=every)):
        model = small_model(variant, execution=execution).train()
        model(random_views(1, 2), random_cameras(1, 2, seed=1)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(g is not None for g in gradients[0])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("variant", MODELS)
def test_other_view_counts_and_image_shapes(variant):
    model = small_model(variant)
    with torch.no_grad():
        image = model(random_views(1, 5, height=8, width=12), random_cameras(1, 2, height=20, width=8))
    assert image.shape == (1, 2, 3, 20, 8)
    assert image.min() >= 0 and image.max() <= 1


def test_without_qk_norm_nothing_is_normalised():
    model = small_model("decoder_only", use_qk_norm=False)
    assert not any("q_norm" in name for name, _ in model.named_parameters())
    attn, x = model.transformer[0].attn, torch.randn(1, 5, 64)
    q, k, v = (t.view(1, 5, 2, 32).transpose(1, 2) for t in (x @ attn.qkv.weight.T).chunk(3, -1))
    expected = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(32), -1) @ v
    expected = expected.transpose(1, 2).reshape(1, 5, 64) @ attn.out.weight.T
    torch.testing.assert_close(attn(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("special", "depth", "expected"),
    [
        (True, True, [0.02 / math.sqrt(2 * (i + 1)) for i in range(4)]),
        (True, False, [0.02 / math.sqrt(2 * 4)] * 4),
        (False, True, [0.02] * 4),
    ],
)
def test_initial_spread_per_layer(special, depth, expected):
    torch.manual_seed(0)
    sizes = {"d": 256, "d_head": 64, "n_layer": 4, "special_init": special, "depth_init": depth}
    model = build_model(small_config("decoder_only", **sizes))
    for index, block in enumerate(model.transformer):
        assert block_init_std(TransformerConfig(**sizes), index, 4) == pytest.approx(expected[index])
        for linear in (block.attn.qkv, block.attn.out, block.mlp.up, block.mlp.down):
            assert linear.weight.std().item() == pytest.approx(expected[index], rel=0.03)
            assert abs(linear.weight.mean().item()) < 0.02 * 3 / 256
        assert (block.norm1.weight == 1).all() and (block.attn.q_norm.weight == 1).all()
    for part in (model.image_tokenizer, model.pose_tokenizer, model.head):
        assert part.linear.weight.std().item() == pytest.approx(0.02, rel=0.03)


def test_both_stacks_count_layers_from_zero_and_latents_are_truncated():
    torch.manual_seed(0)
    model = build_model(small_config("encoder_decoder", d=256, d_head=64, n_latent_vectors=200))
    for stack in (model.encoder, model.decoder):
        for index, block in enumerate(stack):
            std = 0.02 / math.sqrt(2 * (index + 1))
            assert block.attn.qkv.weight.std().item() == pytest.approx(std, rel=0.03)
    assert model.latents.std().item() == pytest.approx(0.02, rel=0.03)


def test_published_sizes():
    with torch.device("meta"):
        counts = {v: sum(p.numel() for p in build_model(ModelConfig(class_name(v))).parameters()) for v in PUBLISHED}
    # Written out: 24 blocks of 12 d² and norms, tokenizers of 9·64 and 6·64 channels, head of 3·64.
    block = 12 * 768**2 + 2 * 768 + 2 * 64
    ends = 768 * (9 * 64 + 6 * 64 + 3 * 64) + 2 * 768
    assert counts == {"decoder_only": 24 * block + ends, "encoder_decoder": 24 * block + ends + 3072 * 768}
    assert [round(count / 1e6) for count in counts.values()] == [171, 173]


@pytest.mark.parametrize("variant", MODELS)
def test_models_of_another_precision_run(variant):
    model, inputs, targets = small_model(variant), random_views(1, 2), random_cameras(1, 2, seed=1)
    expected = model(inputs, targets)
    cameras = (replace(c, c2w=c.c2w.double(), fxfycxcy=c.fxfycxcy.double()) for c in (inputs.cameras, targets))
    of_inputs, of_targets = cameras
    found = model.double()(Views(inputs.images.double(), of_inputs), of_targets)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast_stays_close():
    model, views, targets = small_model("decoder_only"), random_views(1, 2), random_cameras(1, 2, seed=1)
    with torch.no_grad():
        exact = model(views, targets)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(views, targets)
    assert F.l1_loss(rounded.float(), exact) < 0.01


def test_train_and_eval_return_the_model():
    model = small_model("decoder_only")
    assert model.train() is model and model.eval() is model


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"class_name": "model.Nope"}, "class_name is 'model.Nope'"),
        ({"image_tokenizer": TokenizerConfig(16, 4, 7)}, "image_tokenizer.in_channels is 7"),
        ({"image_tokenizer": TokenizerConfig(16, 8)}, "target_pose_tokenizer.patch_size"),
        ({"transformer": TransformerConfig(d=100)}, "transformer.d"),
        ({"transformer": TransformerConfig(n_layer=0)}, "transformer.n_layer"),
        ({"transformer": TransformerConfig(d=60, d_head=12, camera_encoding="prope")}, "transformer.d_head"),
        ({"rays": "camera"}, "rays is camera"),
        ({"rays": "none", "transformer": TransformerConfig(camera_encoding="none")}, "rays is none"),
    ],
)
def test_contradicting_sizes_are_named(change, culprit):
    values = {"image_tokenizer": TokenizerConfig(16, 4), "target_pose_tokenizer": TokenizerConfig(16, 4, 6)}
    with refused(culprit):
        build_model(ModelConfig(**(values | change)))


def test_views_turn_to_float_once():
    views = random_views(1, 2)
    stored = Views((views.images * 255).round().to(torch.uint8), views.cameras)
    torch.testing.assert_close(stored.to_float().images, stored.images / 255)
    assert stored.to_float().to_float().images.dtype == torch.float32
