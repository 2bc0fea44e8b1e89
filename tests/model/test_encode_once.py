"""Prefix attention, the cross-attending decoder and PRoPE against formulas written out here, gradients included."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, rms_norm

from geometry.cameras import camera_rays, plucker
from geometry.relative import inverse_projections, projections
from model import ModelConfig, build_model, decoding_flops, encoding_flops, lvsm
from model.execution import ExecutionConfig, apply_execution
from model.lvsm import TokenizerConfig
from model.transformer import TransformerConfig
from tests import flash4, quack
from tests.helpers import MODELS, random_cameras, random_views, small_model

P = 4


def patches(maps):
    """[v c h w] -> [v n p*p*c], channels last inside a patch."""
    v, c, h, w = maps.shape
    cut = maps.reshape(v, c, h // P, P, w // P, P).permute(0, 2, 4, 3, 5, 1)
    return cut.reshape(v, -1, P * P * c)


class Turns:
    """The matrices [n c c] that turn whole heads of the tokens of some views, or the identity for tokens without."""

    def __init__(self, cameras=None, tokens=0, c=32):
        if cameras is None:
            self.p = self.inverse = self.place = torch.eye(c).expand(tokens, c, c)
            return
        rows, columns = cameras.height // P, cameras.width // P
        p, inverse, place = [], [], []
        for view in range(len(cameras.c2w)):
            for row in range(rows):
                for column in range(columns):
                    p.append(torch.block_diag(*[projections(cameras)[view]] * (c // 8), torch.eye(c // 2)))
                    back = inverse_projections(cameras)[view]
                    inverse.append(torch.block_diag(*[back] * (c // 8), torch.eye(c // 2)))
                    rotations = [self.rotation(index, c // 8) for index in (column, row)]
                    place.append(torch.block_diag(torch.eye(c // 2), *rotations))
        self.p, self.inverse, self.place = (torch.stack(m) for m in (p, inverse, place))

    @staticmethod
    def rotation(index, angles):
        a = index * 100 ** (-torch.arange(angles) / angles)
        return torch.cat(
            [torch.cat([a.cos().diag(), a.sin().diag()], 1), torch.cat([-a.sin().diag(), a.cos().diag()], 1)]
        )

    def join(self, other):
        both = object.__new__(Turns)
        for name in ("p", "inverse", "place"):
            setattr(both, name, torch.cat([getattr(self, name), getattr(other, name)]))
        return both


def turned(matrices, heads):
    """[n c c] times [h n c]."""
    return torch.einsum("nij,hnj->hni", matrices, heads)


def split(x):
    return x.view(len(x), -1, 32).transpose(0, 1)


def keys_values(module, k, v, turns):
    k = rms_norm(split(k), (32,), module.k_norm.weight, 1e-5)
    v = split(v)
    return [turned(turns.inverse @ turns.place, t) for t in (k, v)] if turns else [k, v]


def attention(module, q, k, v, turns):
    q = rms_norm(split(q), (32,), module.q_norm.weight, 1e-5)
    if turns:
        q = turned(turns.p.mT @ turns.place, q)
    weights = torch.softmax(q @ k.mT / math.sqrt(32), -1)
    result = weights @ v
    if turns:
        result = turned(turns.place.mT @ turns.p, result)
    return result.transpose(0, 1).flatten(1) @ module.out.weight.T


def norm(module, x):
    return layer_norm(x, (64,), module.weight, eps=1e-5)


def mlp(block, x):
    return gelu(norm(block.norm2, x) @ block.mlp.up.weight.T) @ block.mlp.down.weight.T


def self_block(block, x, turns, prefix=None, scale=1.0):
    """One block over tokens [n d], which also see the keys and values `prefix`; returns its own as well."""
    q, k, v = (norm(block.norm1, x) @ block.attn.qkv.weight.T).chunk(3, -1)
    own = keys_values(block.attn, k, v, turns)
    k, v = own if prefix is None else (torch.cat([a, b], 1) for a, b in zip(prefix, own, strict=True))
    x = x + scale * attention(block.attn, q, k, v, turns)
    return x + mlp(block, x), own


def cross_block(block, t, z, own, theirs):
    a = 1 / math.sqrt(2)
    q, k, v = (norm(block.norm1, t) @ block.attn.qkv.weight.T).chunk(3, -1)
    t = t + a * attention(block.attn, q, *keys_values(block.attn, k, v, own), own)
    k, v = (norm(block.norm_context, z) @ block.cross.kv.weight.T).chunk(2, -1)
    q = norm(block.norm_cross, t) @ block.cross.q.weight.T
    t = t + a * attention(block.cross, q, *keys_values(block.cross, k, v, theirs), own)
    return t + a * mlp(block, t)


def plain_render(model, views, camera, rays=plucker):
    """One scene, one target [1]."""
    encoded = model.camera_encoding == "prope"
    inputs = torch.cat([views.images * 2 - 1, rays(views.cameras)], 1)
    x = patches(inputs).flatten(0, 1) @ model.image_tokenizer.linear.weight.T
    t = patches(rays(camera)).flatten(0, 1) @ model.pose_tokenizer.linear.weight.T
    of_inputs, of_target = (Turns(cameras) if encoded else None for cameras in (views.cameras, camera))
    kind = type(model).__name__
    if kind == "EncoderDecoder":
        latents = Turns(tokens=len(model.latents)) if encoded else None
        x, both = torch.cat([model.latents, x]), encoded and latents.join(of_inputs)
        for block in model.encoder:
            x, _ = self_block(block, x, both)
        x, both = torch.cat([t, x[: len(model.latents)]]), encoded and of_target.join(latents)
        x = norm(model.input_norm, x)
        for block in model.decoder:
            x, _ = self_block(block, x, both)
        t = x[: len(t)]
    elif kind == "DecoderOnly":
        x, both = norm(model.input_norm, torch.cat([x, t])), encoded and of_inputs.join(of_target)
        for block in model.transformer:
            x, _ = self_block(block, x, both)
        t = x[-len(t) :]
    elif kind == "Prefix":
        x, t = norm(model.input_norm, x), norm(model.input_norm, t)
        for block in model.transformer:
            x, prefix = self_block(block, x, of_inputs)
            t, _ = self_block(block, t, of_target, prefix)
    else:
        z, t = norm(model.input_norm, x), norm(model.input_norm, t)
        for block in model.encoder:
            z, _ = self_block(block, z, of_inputs)
        for block in model.decoder:
            t = cross_block(block, t, z, of_target, of_inputs)
    pixels = torch.sigmoid(norm(model.head.norm, t) @ model.head.linear.weight.T)
    h, w = camera.height // P, camera.width // P
    return pixels.view(h, w, P, P, 3).permute(4, 0, 2, 1, 3).reshape(3, h * P, w * P)


@pytest.mark.parametrize("name", MODELS)
def test_renders_and_gradients_are_those_of_the_formula(name):
    model = small_model(name)
    views, targets = random_views(2, 2, height=8, width=12), random_cameras(2, 2, height=8, width=12, seed=1)
    found = model(views, targets)
    expected = torch.stack(
        [torch.stack([plain_render(model, views[s], targets[s, t : t + 1]) for t in range(2)]) for s in range(2)]
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    parameters = dict(model.named_parameters())
    ours, theirs = (torch.autograd.grad((r * weight).sum(), parameters.values()) for r in (found, expected))
    for key, a, b in zip(parameters, ours, theirs, strict=True):
        assert (a - b).norm() < 1e-4 * b.norm() + 1e-5, key


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("name", ["prefix+prope", "cross+prope"])
def test_what_is_computed_again_changes_no_gradient(name, every):
    gradients = []
    for execution in (ExecutionConfig(0, 1.0, compile="off"), ExecutionConfig(every, 0.3, compile="off")):
        model = apply_execution(small_model(name), execution).train()
        model(random_views(1, 2), random_cameras(1, 3, seed=1)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def moved(cameras, turn, shift, scale=1.0):
    """The same cameras in a world that was turned, shifted and scaled."""
    c2w = cameras.c2w.clone()
    c2w[..., :3, :3] = turn @ c2w[..., :3, :3]
    c2w[..., :3, 3] = scale * (c2w[..., :3, 3] @ turn.T) + shift
    return replace(cameras, c2w=c2w)


@pytest.mark.parametrize("rays", ["camera", "none"])
# The latents of the encoder-decoder stand in the world.
@pytest.mark.parametrize("name", ["decoder_only+prope", "prefix+prope", "cross+prope"])
def test_a_rigid_change_of_the_world_changes_no_render(name, rays):
    model = small_model(name, rays=rays)
    views, targets = random_views(1, 2), random_cameras(1, 2, seed=1)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    turn = turn * turn.det()
    shift = torch.tensor([0.3, -0.5, 0.2])

    def render(scale):
        there = [moved(cameras, turn, shift, scale) for cameras in (views.cameras, targets)]
        return model(replace(views, cameras=there[0]), there[1])

    with torch.no_grad():
        here = model(views, targets)
        torch.testing.assert_close(render(1.0), here, atol=1e-5, rtol=0)
        assert (render(1.5) - here).abs().max() > 1e-3


def test_with_rays_in_the_world_it_does():
    model = small_model("prefix+prope")
    views, targets = random_views(1, 2), random_cameras(1, 2, seed=1)
    shift = torch.tensor([0.3, -0.5, 0.2])
    there = [moved(cameras, torch.eye(3), shift) for cameras in (views.cameras, targets)]
    with torch.no_grad():
        assert (model(replace(views, cameras=there[0]), there[1]) - model(views, targets)).abs().max() > 1e-3


def test_rays_in_the_cameras_frame():
    cameras = random_cameras(1, 2)
    found = camera_rays(cameras)
    assert (found[:, :, :3] == 0).all()
    fx, fy, cx, cy = cameras.fxfycxcy[0, 1].tolist()
    expected = torch.tensor([(7.5 - cx) / fx, (2.5 - cy) / fy, 1.0])
    torch.testing.assert_close(found[0, 1, 3:, 2, 7], expected / expected.norm())


@pytest.mark.parametrize("name", ["prefix", "cross"])
def test_a_scene_is_encoded_without_its_targets(name):
    """What `encode` keeps is all that `decode` reads, layer by layer."""
    model = small_model(name)
    encoded = model.encode(random_views(2, 3))
    assert len(encoded.layers) == (3 if name == "prefix" else 2)
    assert {tuple(t.shape) for kv in encoded.layers for t in kv} == {(2, 2, 3 * 24, 32)}


def test_arithmetic_of_the_published_size():
    """TFLOP of a scene of 2 inputs and 6 targets, and of one more frame of 2, 4 and 8 inputs."""
    prefix = ModelConfig("prefix")
    d, n = 768, 1024
    block = 24 * d * d
    encoding = 23 * (block * 2 * n + 4 * (2 * n) ** 2 * d) + 4 * d * d * 2 * n
    assert encoding_flops(prefix, 2).forward == encoding
    for inputs, expected in ((2, 0.58), (4, 0.73), (8, 1.04)):
        frame = 24 * (block * n + 4 * n * (inputs + 1) * n * d)
        assert decoding_flops(prefix, inputs).forward == frame
        assert frame / 1e12 == pytest.approx(expected, abs=0.01)
    assert (encoding + 6 * decoding_flops(prefix, 2).forward) / 1e12 == pytest.approx(4.48, rel=0.01)
    cross = ModelConfig("cross")
    encoding = 12 * (block * 2 * n + 4 * (2 * n) ** 2 * d) + 12 * 4 * d * d * 2 * n
    assert encoding_flops(cross, 2).forward == encoding
    assert decoding_flops(cross, 2).forward == 12 * (2 * 14 * d * d * n + 4 * n * 3 * n * d)


@pytest.mark.parametrize(("layers", "d", "patch", "millions"), [((16, 32), 768, 8, 416.1), ((6, 6), 384, 16, 26.5)])
def test_published_sizes_of_the_cross_attending_decoder(layers, d, patch, millions):
    sizes = TransformerConfig(d=d, encoder_n_layer=layers[0], decoder_n_layer=layers[1])
    cfg = ModelConfig("cross", TokenizerConfig(256, patch, 9), TokenizerConfig(256, patch, 6), sizes)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build_model(cfg).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.002)


def test_all_linear_layers_of_the_cross_attending_decoder_are_drawn_alike():
    torch.manual_seed(0)
    model = build_model(replace(ModelConfig("cross"), transformer=TransformerConfig(256, 64, 3, 3, 4)))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert {block.scale for block in model.decoder} == {0.5}


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["torch", "quack"])
@pytest.mark.parametrize("variant", MODELS)
def test_frames_after_one_another_are_those_of_the_scene(monkeypatch, joins, variant, kernel):
    """Whatever a frame leaves behind, and the scene keeps what it holds."""
    package = quack.install(monkeypatch)
    model = quack.use(small_model(variant), kernel).eval()
    encoded, targets = model.encode(random_views(2, 3)), random_cameras(2, 2, seed=1)
    expected = model.decode(encoded, targets)
    prepared = model.prepare_frames(encoded[1], targets[1:, :1])
    joins.clear()
    package.calls.clear()
    for index in (0, 1, 0):
        found = model.decode(prepared, targets[1:, index : index + 1])
        torch.testing.assert_close(found, expected[1:, index : index + 1], rtol=1e-4, atol=1e-5)
    assert not joins
    if (variant, kernel) == ("prefix", "quack"):
        assert package.calls["head_norm_epilogue"] == 3 * 3
    torch.testing.assert_close(model.decode(encoded, targets), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_frames_of_several_scenes_or_targets_or_of_large_scenes_are_not_prepared(monkeypatch):
    model = small_model("prefix").eval()
    scene, target = model.encode(random_views(1, 2)), random_cameras(1, 1)
    for scenes, targets in ((1, 2), (2, 1), (2, 2)):
        encoded = model.encode(random_views(scenes, 2))
        assert model.prepare_frames(encoded, random_cameras(scenes, targets)) is encoded
    prepared = model.prepare_frames(scene, target)
    monkeypatch.setattr(lvsm, "_LARGEST_CACHE", prepared.nbytes)
    assert model.prepare_frames(scene, target).nbytes == prepared.nbytes
    monkeypatch.setattr(lvsm, "_LARGEST_CACHE", prepared.nbytes - 1)
    assert model.prepare_frames(scene, target) is scene


@torch.no_grad()
@pytest.mark.parametrize(("shape", "size"), [((1, 2), {}), ((1, 1), {"height": 8}), ((1, 1), {"width": 32})])
def test_frames_of_another_size_than_was_prepared_are_refused(shape, size):
    model = small_model("prefix").eval()
    prepared = model.prepare_frames(model.encode(random_views(1, 2)), random_cameras(1, 1))
    with pytest.raises(ValueError, match="24 tokens"):
        model.decode(prepared, random_cameras(*shape, **size))


@torch.no_grad()
@pytest.mark.parametrize("method", ["encode", "target_tokens"])
def test_a_variant_that_encodes_otherwise_has_no_frames_prepared(method):
    model = small_model("prefix").eval()
    inherited = getattr(type(model), method)
    model.__class__ = type("Other", (type(model),), {method: lambda self, *args: inherited(self, *args)})
    encoded = model.encode(random_views(1, 2))
    assert model.prepare_frames(encoded, random_cameras(1, 1)) is encoded


@torch.no_grad()
def test_frames_attend_by_the_kernel_that_was_named(monkeypatch):
    package = flash4.install(monkeypatch)
    model = flash4.use(small_model("prefix"), "fa4").eval()
    prepared = model.prepare_frames(model.encode(random_views(1, 2)), random_cameras(1, 1))
    package.calls.clear()
    model.decode(prepared, random_cameras(1, 1))
    assert package.calls["forward"] == 3
