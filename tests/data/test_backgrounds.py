"""Images with alpha: what stands behind transparent parts, before anything is resized, and their masks."""

import numpy as np
import pytest
import torch
from PIL import Image

from data import packing
from data.dataset import DataConfig, EvaluationDataset, TrainingDataset, ViewLoader, collate_by_shape
from data.scene import read_scene
from data.transforms import BACKGROUNDS, on_background, open_image, plan_crop
from data.views import Selection
from data.writing import NewScene
from tests.helpers import write_toy_scene, write_toy_set
from tests.scenes import import_scenes

# All frames of the toy scenes, wherever they stand.
VIEWS = {"view_sampler": "any", "num_views": 6, "num_target_views": 4}


def training_set(path, seed=0, fast=False, **changes):
    return TrainingDataset(ViewLoader(DataConfig(dataset_path=str(path), **VIEWS | changes), 16, 4, fast), seed)


def composite(image, color):
    """What the formula gives, rounded to 8 bits."""
    rgba = np.asarray(image).astype(np.float64)
    weight = rgba[..., 3:] / 255
    return Image.fromarray(np.rint(rgba[..., :3] * weight + np.array(color) * (1 - weight)).astype(np.uint8))


@pytest.mark.parametrize("color", [*BACKGROUNDS.values(), (7, 130, 201)], ids=str)
def test_every_colour_and_alpha_by_the_formula(color):
    shades, alphas = np.meshgrid(np.arange(256), np.arange(256))
    image = Image.fromarray(np.stack([shades, shades, shades, alphas], -1).astype(np.uint8))
    np.testing.assert_array_equal(np.asarray(on_background(image, color)), np.asarray(composite(image, color)))


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("square", [True, False])
def test_images_are_put_on_the_background_then_resized(tmp_path, background, square):
    scene = read_scene(write_toy_scene(tmp_path, "a", 3, alpha=True))
    cfg = DataConfig(background=background, square_crop=square)
    read = ViewLoader(cfg, 16, 4, with_masks=True)(scene, Selection([0, 2], [1]))
    crop = plan_crop(48, 32, 16, 4, square)
    for image, mask, frame in zip(read.views.images, read.masks, (0, 2, 1), strict=True):
        stored = Image.open(scene.image_path(frame))
        expected = np.asarray(crop.image(composite(stored, BACKGROUNDS[background])))
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
        later = composite(crop.image(stored), BACKGROUNDS[background])
        assert (np.asarray(later) != expected).any()
        np.testing.assert_array_equal(mask.numpy(), np.asarray(crop.image(stored.getchannel("A"))))


@pytest.mark.parametrize("background", [*BACKGROUNDS, "random"])
@pytest.mark.parametrize("fast", [True, False])
def test_images_without_alpha_are_untouched(tmp_path, background, fast):
    path = write_toy_set(tmp_path)
    for number in range(3):
        before, after = (training_set(path, fast=fast, **cfg)[number] for cfg in ({}, {"background": background}))
        assert all(map(torch.equal, before.tensors(), after.tensors()))
        assert after.masks is None


def clear_set(root):
    """Toy scenes that are transparent all over: only the background is left of them."""
    path = write_toy_set(root, alpha=True)
    for image in (root / "images").glob("*/*.png"):
        Image.new("RGBA", (48, 32), (1, 2, 3, 0)).save(image)
    return path


@pytest.mark.parametrize("fast", [True, False])
def test_a_random_background_is_one_of_the_sample_and_follows_from_seed_and_number(tmp_path, fast):
    path = clear_set(tmp_path)
    colors = []
    for seed in (3, 4):
        for number in (0, 1, 7, 1):
            images = training_set(path, seed, fast, background="random")[number].views.images
            color = np.random.default_rng([seed, 3, number]).integers(256, size=3)
            assert (images == torch.from_numpy(color)[:, None, None]).all()
            colors.append(tuple(color))
    assert len(set(colors)) == 6


def test_a_random_background_leaves_the_views_as_they_are(tmp_path):
    path = write_toy_set(tmp_path, alpha=True)
    for number in range(4):
        white, colored = (training_set(path, background=name)[number] for name in ("white", "random"))
        assert white.scenes == colored.scenes and torch.equal(white.frames, colored.frames)
        assert torch.equal(white.targets, colored.targets) and not torch.equal(white.views.images, colored.views.images)


def test_fast_resizing_puts_on_the_same_background(tmp_path):
    path = write_toy_set(tmp_path, alpha=True)
    exact, fast = (training_set(path, fast=fast, background="random")[5].views.images.int() for fast in (False, True))
    assert (exact - fast).abs().max() <= 2


def test_masks_are_read_where_asked_for_and_where_there_is_alpha(tmp_path):
    paths = [write_toy_scene(tmp_path, name, 4, alpha=name != "plain") for name in ("a", "plain", "b")]
    mixed = tmp_path / "images" / "b" / "00001.png"
    Image.open(mixed).convert("RGB").save(mixed)
    load = ViewLoader(DataConfig(), 16, 4, with_masks=True)
    read = EvaluationDataset(load, [(path, Selection([0, 1], [2, 3])) for path in paths])
    with_alpha, without = collate_by_shape([read[number] for number in range(3)])
    assert (with_alpha.scenes, without.scenes) == (["a", "b"], ["plain"])
    assert without.masks is None and with_alpha.masks.shape == (2, 4, 16, 16)
    whole = (with_alpha.masks == 255).flatten(2).all(-1)
    assert whole.tolist() == [[False] * 4, [False, True, False, False]]
    assert torch.equal(with_alpha.target_masks(), with_alpha.masks[:, 2:])
    assert ViewLoader(DataConfig(), 16, 4)(read_scene(paths[0]), Selection([0], [1])).masks is None


def test_packed_scenes_keep_alpha(tmp_path):
    loose = write_toy_set(tmp_path / "loose", alpha=True)
    packing.main([str(loose), "--output_dir", str(tmp_path / "packed"), "--num_processes", "1"])
    for number in range(3):
        paths = (loose, tmp_path / "packed" / "full_list.txt")
        one, other = (training_set(path, background="random")[number] for path in paths)
        assert all(map(torch.equal, one.tensors(), other.tensors()))


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_written_scenes_keep_alpha(tmp_path, image_format):
    scene = read_scene(write_toy_scene(tmp_path / "from", "a", 3, alpha=True))
    images = [path.read_bytes() for path in scene.image_paths]
    import_scenes(tmp_path / "to", [NewScene("a", images.__getitem__, scene.fxfycxcy, scene.w2c)], image_format)
    written = read_scene(tmp_path / "to" / "metadata" / "a.json")
    for number, image in enumerate(images):
        with open_image(image) as before, open_image(written.image_path(number)) as after:
            assert after.mode == "RGBA"
            np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
        assert image_format == "png" or written.image_path(number).read_bytes() == image
