"""The cases of the fuzz: sound inputs of every kind, what is done to them, and the script that reads them."""

import functools
import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

import data.evaluation_index
import inference
import preprocess_data
import setup
import train
from data.importers import __main__ as importers
from data.scene import Scene, read_scene
from data.writing import ImportResult, NewScene, SceneWriter
from model.function import Function
from tests.captures import transforms, write_colmap, write_json
from tests.fuzz_damage import (
    ALIASES,
    IMAGES,
    JSON_VALUES,
    NUMBERS,
    OTHERS,
    POSTSCRIPT,
    TEXTS,
    YAML_VALUES,
    damage_bytes,
    damage_field,
    damage_file,
    damage_tree,
    damage_word,
    image_bytes,
    json_text,
    repeat_key,
)
from tests.helpers import write_toy_set
from tests.raw import write_cameras, write_film, write_stills
from utils.sections import flatten, leaves

SIZE = (48, 32)
FRAMES = 6
SCENES = ("scene0", "scene1")
# With this seed, the first batch reads all frames but one of both scenes. Paths are relative to the case's folder, the
# working directory.
CONFIG = """model:
  class_name: model.LVSM_scene_decoder_only.Images2LatentScene
  image_tokenizer: {image_size: 16, patch_size: 8, in_channels: 9}
  target_pose_tokenizer: {image_size: 16, patch_size: 8, in_channels: 6}
  transformer: {d: 16, d_head: 16, n_layer: 1}
training:
  dataset_path: set/full_list.txt
  checkpoint_dir: new
  num_views: 3
  num_input_views: 2
  num_target_views: 1
  view_selector: {min_frame_dist: 4, max_frame_dist: 5}
  batch_size_per_gpu: 4
  num_workers: 0
  num_threads: 1
  train_steps: 1
  warmup: 0
  lr: 1.0e-3
  use_amp: false
  perceptual_loss_weight: 0
  grad_checkpoint_every: 0
  print_every: 1
  seed: 28
inference:
  metrics: [psnr]
  view_idx_file_path: index.json
  render_video_config: {num_frames: 2}
inference_out_dir: out
"""
INDEX = {name: {"context": [0, 5], "target": [1, 2, 3, 4]} for name in SCENES}


class Bomb:
    """Pickles as a call that leaves a file behind, if anybody executes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


# Sound inputs


def write_inputs(folder: Path) -> None:
    """Sound inputs of every kind."""
    write_toy_set(folder / "set", len(SCENES), FRAMES)
    (folder / "index.json").write_text(json.dumps(INDEX))
    shutil.copy(folder / "set" / "metadata" / "scene0.json", folder / "cameras.json")
    write_chunk_files(folder)
    write_raw_files(folder / "raw")
    (folder / "config.yaml").write_text(CONFIG)


def write_runs(folder: Path) -> None:
    """What training and evaluation make of them; `folder` is the working directory."""
    for script, arguments in (train_door("training.checkpoint_dir=run"), evaluate_door()):
        script(arguments)
    shutil.copytree(folder / "run", folder / "weights")


def write_chunk_files(folder: Path) -> None:
    """The toy scenes as two chunks of clips."""
    split = folder / "chunks" / "train"
    split.mkdir(parents=True)
    index = {}
    for number, name in enumerate(SCENES):
        file = f"{number:06d}.torch"
        torch.save(
            [clip_record(folder / "set" / "metadata" / f"{name}.json", f"{name}{extra}") for extra in "ab"],
            split / file,
        )
        index |= {f"{name}{extra}": file for extra in "ab"}
    (split / "index.json").write_text(json.dumps(index))


def write_raw_files(base: Path) -> None:
    """A clip whose frames are images and one of a video, as raw RealEstate10K has them."""
    times = range(0, 40 * FRAMES, 40)
    for name in SCENES:
        write_cameras(base, name, times, name)
    write_stills(base / "frames" / SCENES[0], times)
    write_film(base / "videos" / f"{SCENES[1]}.mp4", times)


def clip_record(metadata: Path, key: str) -> dict[str, Any]:
    """A scene as a record of a chunk."""
    scene = read_scene(metadata)
    cameras = np.zeros((len(scene), 18), dtype=np.float32)
    cameras[:, :4] = scene.fxfycxcy / np.array([*SIZE, *SIZE])
    cameras[:, 6:] = scene.w2c[:, :3].reshape(-1, 12)
    images = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in scene.image_paths if path]
    timestamps = torch.arange(len(scene)) * 33_000
    return {"url": "", "timestamps": timestamps, "cameras": torch.from_numpy(cameras), "images": images, "key": key}


# The scripts


Door = tuple[Callable[[Any], Any], list[str]]


def train_door(*more: str) -> Door:
    return train.main, ["--config", "config.yaml", *more]


def resume_door() -> Door:
    return train_door("training.checkpoint_dir=run", "training.train_steps=2")


def evaluate_door(*more: str) -> Door:
    return inference.main, ["--config", "config.yaml", "training.checkpoint_dir=run", *more]


def preprocess_door(*more: str, base: str = "chunks") -> Door:
    paths = ["--base_path", base, "--output_dir", "scenes", "--mode", "train", "--num_processes", "1"]
    return preprocess_data.main, [*paths, *more]


def import_door(rng: random.Random) -> Door:
    extras = rng.choice([(), ("--no_check",), ("--no_check",), ("--no_check", "--pack")])
    return importers.main, ["capture", "--output_dir", "scenes/train", *extras]


def index_door() -> Door:
    distances = ["--targets", "1", "--min_frame_dist", "4", "--max_frame_dist", "5"]
    return data.evaluation_index.main, ["--scenes", "set/full_list.txt", "--output", "made.json", *distances]


def compare_door() -> Door:
    return inference.main, ["--compare", "out", "other", "--output", "compared"]


def read_set_door(rng: random.Random) -> Door:
    """One of the scripts that read scenes."""
    return rng.choice(
        [
            train_door(),
            train_door("training.image_resize=fast"),
            evaluate_door(),
            evaluate_door("inference.allow_missing=true"),
            index_door(),
        ]
    )


# Kinds of cases: each damages `folder`, says how, and names the script


@dataclass
class Case:
    """A seed's random numbers, the folder of its input, and what was done to that."""

    rng: random.Random
    folder: Path
    damage: list[str] = field(default_factory=list)

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    def canary(self) -> Path:
        return self.folder / "canary"

    def do(self, *actions: Callable[[], str]) -> None:
        """One to three times one of the actions."""
        for _ in range(self.rng.choice([1, 1, 1, 1, 2, 3])):
            self.damage.append(self.rng.choice(actions)())

    def spoil_bytes(self, path: Path) -> Callable[[], str]:
        def action() -> str:
            if not path.is_file() or path.is_symlink():
                return "nothing"
            content, words = damage_bytes(path.read_bytes(), self.rng)
            path.write_bytes(content)
            return f"{words} in {path.suffix}"

        return action

    def spoil_field(self, path: Path) -> Callable[[], str]:
        """Damage one number of a binary file, or one word of a text."""

        def action() -> str:
            if not path.is_file() or path.is_symlink():
                return "nothing"
            damage = damage_field if path.suffix == ".bin" else damage_word
            content, words = damage(path.read_bytes(), self.rng)
            path.write_bytes(content)
            return f"{words} in {path.name}"

        return action

    def spoil_file(self, path: Path, links: bool = True) -> Callable[[], str]:
        def action() -> str:
            if not path.is_file() or path.is_symlink():
                return "nothing"
            outside = self.folder / "outside" if links else None
            return f"{damage_file(path, self.rng, outside)} for {path.suffix}"

        return action

    def spoil_json(self, path: Path) -> Callable[[], str]:
        def action() -> str:
            if not path.is_file() or path.is_symlink():
                return "nothing"
            try:
                holder = [json.loads(path.read_bytes())]
            except (ValueError, RecursionError):
                return "nothing"
            if self.rng.random() < 0.1:
                text, words = repeat_key(json.dumps(holder[0]), self.rng)
            else:
                words = damage_tree(holder, self.rng, JSON_VALUES)
                text = json_text(holder[0])
            path.write_bytes(text.encode(errors="surrogatepass"))
            return words

        return action

    def spoil_tensors(self, path: Path) -> Callable[[], str]:
        def action() -> str:
            if not path.is_file() or path.is_symlink():
                return "nothing"
            try:
                holder = [torch.load(path, weights_only=True)]
            except Exception:  # damaged before
                return "nothing"
            values = (
                NUMBERS | OTHERS | TEXTS | {"bomb": Bomb(self.canary()), "class": Case, "list in lists": _deep(300)}
            )
            try:
                words = damage_tree(holder, self.rng, values)
                torch.save(holder[0], path)
            except Exception:  # what cannot be made or stored cannot arrive
                return "nothing"
            return words

        return action

    def spoil_header(self, path: Path) -> Callable[[], str]:
        """Damage the JSON at the beginning of a safetensors file, or that in its metadata."""

        def action() -> str:
            if not path.is_file() or path.is_symlink():
                return "nothing"
            content = path.read_bytes()
            end = 8 + int.from_bytes(content[:8], "little")
            try:
                header = json.loads(content[8:end])
                function = [json.loads(header["__metadata__"]["function"])]
            except (ValueError, LookupError, TypeError, RecursionError):  # damaged before
                return "nothing"
            if self.rng.random() < 0.5:
                words = damage_tree(function, self.rng, JSON_VALUES)
                header["__metadata__"]["function"] = json_text(function[0])
                text = json.dumps(header)
            else:
                holder = [header]
                words = damage_tree(holder, self.rng, JSON_VALUES)
                text = json_text(holder[0])
            path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + content[end:])
            return f"{words} in its header"

        return action


def _deep(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def chunk_case(case: Case) -> Door:
    first, second = sorted(case.path("chunks", "train").glob("*.torch"))
    if case.rng.random() < 0.3:
        case.path("chunks", "train", "index.json").unlink()
        case.damage.append("no index")
    if case.rng.random() < 0.1:
        shutil.copy(first, second)
        case.damage.append("clips twice")
    case.do(*[case.spoil_tensors(first)] * 3, case.spoil_bytes(first), case.spoil_file(first))
    return preprocess_door(*case.rng.choice([(), (), ("--image_format", "png")]))


def chunk_index_case(case: Case) -> Door:
    path = case.path("chunks", "train", "index.json")
    case.do(case.spoil_json(path), case.spoil_json(path), case.spoil_bytes(path), case.spoil_file(path))
    return preprocess_door()


def chunk_image_case(case: Case) -> Door:
    path = case.path("chunks", "train", "000000.torch")
    records = torch.load(path)
    frames = records[0]["images"]
    numbers = range(len(frames)) if case.rng.random() < 0.3 else [case.rng.randrange(len(frames))]
    content, words = odd_image(frames[0].numpy().tobytes(), case.rng)
    for number in numbers:
        frames[number] = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)
    torch.save(records, path)
    case.damage.append(words)
    return preprocess_door(*case.rng.choice([(), ("--image_format", "png")]))


def raw_case(case: Case) -> Door:
    text = case.path("raw", "train", f"{case.rng.choice(SCENES)}.txt")
    video = case.path("raw", "videos", f"{SCENES[1]}.mp4")
    image = sorted(case.path("raw", "frames", SCENES[0]).iterdir())[1]
    bytes_or_file = [spoil(path) for path in (text, video, image) for spoil in (case.spoil_bytes, case.spoil_file)]
    case.do(*[case.spoil_field(text)] * 3, *[case.spoil_bytes(video)] * 2, *bytes_or_file)
    return preprocess_door(*case.rng.choice([(), (), ("--pack",), ("--list_missing",)]), base="raw")


def image_case(case: Case) -> Door:
    frames = sorted(case.path("set", "images").glob("*/*.jpg"))
    frames = frames if case.rng.random() < 0.3 else [case.rng.choice(frames)]
    if case.rng.random() < 0.2:
        state = case.rng.getstate()
        for frame in frames:
            case.rng.setstate(state)
            words = case.spoil_file(frame)()
    else:
        content, words = odd_image(frames[0].read_bytes(), case.rng)
        for frame in frames:
            frame.write_bytes(content)
    case.damage.append(words)
    return read_set_door(case.rng)


def odd_image(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """An image of another kind, a program for printers, one that claims to be large, or damaged bytes."""
    choice = rng.random()
    if choice < 0.45:
        name = rng.choice(sorted(IMAGES))
        return image_bytes(name, SIZE), name
    if choice < 0.5:
        return POSTSCRIPT, "postscript"
    if choice < 0.6:
        changed = bytearray(data)
        place = changed.find(b"\xff\xc0") + 5
        side = rng.choice([0, 1, 5000, 65000])
        changed[place : place + 4] = bytes([side >> 8, side & 255]) * 2
        return bytes(changed), f"claims {side} pixels a side"
    return damage_bytes(data, rng)


def scene_case(case: Case) -> Door:
    path = case.path("set", "metadata", "scene0.json")
    case.do(
        case.spoil_json(path),
        case.spoil_json(path),
        case.spoil_json(path),
        case.spoil_bytes(path),
        case.spoil_file(path),
    )
    return read_set_door(case.rng)


def packed_case(case: Case) -> Door:
    path = case.path("set", "metadata", "scene0.json")
    scene = read_scene(path)
    images = [image.read_bytes() for image in sorted(case.path("set", "images", "scene0").iterdir())]
    new = NewScene(scene.name, images.__getitem__, scene.fxfycxcy, scene.w2c)
    SceneWriter(case.path("set"), packed=True).write(new, ImportResult())
    tar = case.path("set", "images", "scene0.tar")
    case.do(*[case.spoil_json(path)] * 3, *[case.spoil_bytes(tar)] * 2, case.spoil_file(tar))
    return read_set_door(case.rng)


def colmap_case(case: Case) -> Door:
    scene, names = write_capture_images(case)
    binary = case.rng.random() < 0.5
    folder = case.path("capture", "sparse", "0")
    write_colmap(folder, binary, names=names, size=SIZE, w2c=scene.w2c, parameters=scene.fxfycxcy[0])
    path = folder / f"{case.rng.choice(['cameras', 'images', 'images'])}{'.bin' if binary else '.txt'}"
    case.do(*[case.spoil_field(path)] * 4, *[case.spoil_bytes(path)] * 2, case.spoil_file(path), spoil_image(case))
    return import_door(case.rng)


def transforms_case(case: Case) -> Door:
    scene, names = write_capture_images(case)
    fx, fy, cx, cy = scene.fxfycxcy[0].tolist()
    lens = {"w": SIZE[0], "h": SIZE[1], "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "k1": 0.01}
    record = transforms([f"images/{name}" for name in names], scene.w2c, **lens)
    path = write_json(case.path("capture", "transforms.json"), record)
    case.do(*[case.spoil_json(path)] * 4, case.spoil_bytes(path), case.spoil_file(path), spoil_image(case))
    return import_door(case.rng)


def write_capture_images(case: Case) -> tuple[Scene, list[str]]:
    """The images of a toy scene as those of a capture; the scene and their names."""
    scene = read_scene(case.path("set", "metadata", "scene0.json"))
    shutil.copytree(case.path("set", "images", "scene0"), case.path("capture", "images"))
    return scene, [path.name for path in scene.image_paths if path]


def spoil_image(case: Case) -> Callable[[], str]:
    """Put an odd image, or something else, in the place of one of a capture."""
    path = case.rng.choice(sorted(case.path("capture", "images").iterdir()))

    def action() -> str:
        if case.rng.random() < 0.3 or not path.is_file():
            return case.spoil_file(path)()
        content, words = odd_image(path.read_bytes(), case.rng)
        path.write_bytes(content)
        return words

    return action


def list_case(case: Case) -> Door:
    path = case.path("set", "full_list.txt")

    def line() -> str:
        if not path.is_file() or path.is_symlink():
            return "nothing"
        lines = path.read_bytes().splitlines() or [b""]
        values = TEXTS | {
            "comment": "# mine",
            "space": "  metadata/scene0.json\t",
            "again": "metadata/scene0.json",
            "other way": "./metadata/../metadata/scene0.json",
            "list itself": "full_list.txt",
            "image": "images/scene0/00000.jpg",
            "folder": "metadata",
            "quoted": '"metadata/scene0.json"',
            "link": "linked/scene0.json",
        }
        name = case.rng.choice(sorted(values))
        text = values[name].encode(errors="surrogatepass")
        place = case.rng.randrange(len(lines))
        if case.rng.random() < 0.5:
            lines.insert(place, text)
        else:
            lines[place] = text
        path.write_bytes(case.rng.choice([b"\n", b"\n", b"\r\n", b"\r"]).join(lines))
        return f"line: {name}"

    case.do(line, line, line, case.spoil_bytes(path), case.spoil_file(path))
    return read_set_door(case.rng)


def index_case(case: Case) -> Door:
    path = case.path("index.json")
    case.do(
        case.spoil_json(path),
        case.spoil_json(path),
        case.spoil_json(path),
        case.spoil_bytes(path),
        case.spoil_file(path),
    )
    if case.rng.random() < 0.2:
        validation = ["validation_path=set/full_list.txt", "validation_index=index.json", "validate_every=1"]
        return train_door(*(f"training.{text}" for text in validation))
    return evaluate_door(*case.rng.choice([(), ("inference.allow_missing=true",), ("inference.nearest_input=true",)]))


def training_state_case(case: Case) -> Door:
    path = next(case.path("run").glob("ckpt_*.pt"))
    case.do(*[case.spoil_tensors(path)] * 4, case.spoil_bytes(path), case.spoil_file(path))
    return resume_door()


def weights_case(case: Case) -> Door:
    source = next(case.path("weights").glob("ckpt_*.pt"))
    path = case.path("given", case.rng.choice(["weights.pt", "weights.pt", "weights.safetensors"]))
    path.parent.mkdir()
    write_weights(source, path, case.rng)
    tensors = case.spoil_tensors(path) if path.suffix == ".pt" else case.spoil_header(path)
    case.do(*[tensors] * 4, case.spoil_bytes(path), case.spoil_file(path))
    if case.rng.random() < 0.5:
        return evaluate_door(f"training.checkpoint_dir=given/{path.name}")
    return train_door(f"training.resume_ckpt=given/{path.name}", "training.reset_training_state=true")


def write_weights(source: Path, path: Path, rng: random.Random) -> None:
    """Weights in one of the forms in which they are passed around."""
    weights = torch.load(source)["model"]
    if path.suffix == ".safetensors":
        save_file(weights, path, metadata={"function": json.dumps(asdict(Function("decoder_only")))})
        return
    prefix = rng.choice(["", "", "module.", "_orig_mod.", "module._orig_mod."])
    weights = {prefix + name: value for name, value in weights.items()}
    torch.save(rng.choice([{"model": weights}, {"model": weights}, {"state_dict": weights}, weights]), path)


def run_folder_case(case: Case) -> Door:
    """A run goes on in a folder whose other files are damaged."""
    files = sorted(path for path in case.path("run").rglob("*") if path.is_file() and path.suffix != ".pt")
    path = case.rng.choice(files)
    # Whoever links a log elsewhere means it.
    case.do(case.spoil_bytes(path), case.spoil_file(path, links=False))
    case.damage.append(path.name)
    return resume_door()


def yaml_case(case: Case) -> Door:
    path = case.path("config.yaml")
    text = path.read_text()
    choice = case.rng.random()
    if choice < 0.15:
        case.do(case.spoil_bytes(path), case.spoil_file(path))
    elif choice < 0.2:
        path.write_text(ALIASES + text)
        case.damage.append("aliases of aliases")
    else:
        places = [match for match in re.finditer(r"(\w+): ([^{}\n,]+)", text) if "[" not in match[0]]
        place = case.rng.choice(places)
        name = case.rng.choice(sorted(YAML_VALUES))
        path.write_text(f"{text[: place.start(2)]}{YAML_VALUES[name]}{text[place.end(2) :]}")
        case.damage.append(f"{name} @ {place[1]}")
    return config_door(case, train_door if case.rng.random() < 0.5 else evaluate_door)


def override_case(case: Case) -> Door:
    overrides = []
    for _ in range(case.rng.choice([1, 1, 1, 2])):
        key = case.rng.choice(sorted(path for path, _ in leaves(setup.Config)))
        name = case.rng.choice(sorted(YAML_VALUES))
        case.damage.append(f"{name} @ {key}")
        form = case.rng.choice(["{}={}", "{}={}", "{}={}", "{} = {}", "{}", "{}==", "--{}={}", "{}x={}", "{}={}]"])
        overrides.append(form.format(key, YAML_VALUES[name]))
    return config_door(case, train_door if case.rng.random() < 0.5 else evaluate_door, *overrides)


# Keys whose large values are sound, but nothing for a test: then reading the configuration is all.
_SIZES = {
    "train_steps": 4,
    "image_size": 64,
    "image_sizes": 64,
    "patch_size": 64,
    "d": 64,
    "n_layer": 4,
    "num_views": 6,
    "batch_size_per_gpu": 16,
    "total_batch_size": 16,
    "grad_accum_steps": 4,
    "num_workers": 0,
    "num_frames": 8,
}
# What reaches out for weights or compilers.
_REACHING = ("perceptual_loss_weight", "lpips_loss_weight", "metrics", "compile")


def config_door(case: Case, door: Callable[..., Door], *overrides: str) -> Door:
    """The script; only as far as the configuration if that asks for much."""
    script, arguments = door(*overrides)

    @functools.wraps(script)
    def run(argv: list[str]) -> None:
        config, _ = setup.load_config(argv)
        if _is_small(config):
            script(argv)
        else:
            case.damage.append("(only read)")

    return run, arguments


def _is_small(config: Any) -> bool:
    values = _values(config)
    usual = _values(setup.build_config(yaml.safe_load(CONFIG)))
    large = any(number > limit for key, limit in _SIZES.items() for number in _numbers(values[key]))
    reaching = any(values[key] != usual[key] for key in _REACHING)
    return not large and not reaching and not any("hf://" in str(value) for found in values.values() for value in found)


def _numbers(value: Any) -> Iterator[Any]:
    """What stands in lists, or in lists of lists."""
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    else:
        yield value


def _values(config: Any) -> dict[str, list[Any]]:
    """All values of a configuration by the last part of their keys."""
    found: dict[str, list[Any]] = {}
    for key, _ in leaves(setup.Config):
        value = functools.reduce(dict.__getitem__, key.split("."), flatten(config))
        found.setdefault(key.rsplit(".", 1)[-1], []).append(value)
    return found


def finished_case(case: Case) -> Door:
    """An evaluation goes on in a folder whose files are damaged."""
    files = [case.path("out", "scene0", "metrics.json")] * 3 + [case.path("out", "results.json")]
    path = case.rng.choice(files)
    others = [path for path in sorted(case.path("out").rglob("*")) if path.is_file() and path.suffix != ".json"]
    case.do(
        *[case.spoil_json(path)] * 4,
        case.spoil_bytes(path),
        case.spoil_file(path),
        case.spoil_file(case.rng.choice(others)),
    )
    return evaluate_door()


def compare_case(case: Case) -> Door:
    shutil.copytree(case.path("out"), case.path("other"))
    path = case.path("other", case.rng.choice(["results.json", "results.json", "scene0/metrics.json"]))
    case.do(*[case.spoil_json(path)] * 4, case.spoil_bytes(path), case.spoil_file(path))
    return compare_door()


def cameras_case(case: Case) -> Door:
    path = case.path("cameras.json")
    case.do(*[case.spoil_json(path)] * 4, case.spoil_bytes(path), case.spoil_file(path))
    video = ["traj_type=through", "cameras_path=cameras.json"]
    return evaluate_door("inference.render_video=true", *(f"inference.render_video_config.{text}" for text in video))


def loss_weights_case(case: Case) -> Door:
    """Weights of LPIPS' and the perceptual loss' networks, which no test has: all must be refused."""
    folder = case.path("torch", "hub", "checkpoints")
    folder.mkdir(parents=True)
    lpips = case.rng.random() < 0.5
    path = folder / ("vgg16-397923af.pth" if lpips else "imagenet-vgg-verydeep-19.mat")
    torch.save(case.rng.choice([Bomb(case.canary()), {"features.0.weight": torch.zeros(64, 3, 3, 3)}, {}]), path)
    if case.rng.random() < 0.3:
        path.write_bytes(pickle.dumps(Bomb(case.canary())))
    case.do(case.spoil_bytes(path), case.spoil_file(path), lambda: "foreign")
    if lpips:
        return evaluate_door("inference.metrics=[lpips]")
    return train_door("training.perceptual_loss_weight=0.5")


KINDS = {
    "chunk": chunk_case,
    "chunk index": chunk_index_case,
    "chunk image": chunk_image_case,
    "raw clip": raw_case,
    "image": image_case,
    "scene": scene_case,
    "packed scene": packed_case,
    "COLMAP model": colmap_case,
    "transforms.json": transforms_case,
    "list": list_case,
    "evaluation index": index_case,
    "training state": training_state_case,
    "weights": weights_case,
    "run folder": run_folder_case,
    "YAML": yaml_case,
    "override": override_case,
    "finished evaluation": finished_case,
    "comparison": compare_case,
    "saved cameras": cameras_case,
    "loss weights": loss_weights_case,
}


# Cases at fault by design, by negative seeds


def _start_program(argv: list[str]) -> None:
    os.system("true")


def _raise(argv: list[str]) -> None:
    raise KeyError("by design")


def _die(argv: list[str]) -> None:
    os.kill(os.getpid(), 11)


PLANTED = {"planted program": _start_program, "planted traceback": _raise, "planted death": _die}
KINDS |= {name: lambda case, script=script: (script, []) for name, script in PLANTED.items()}


def choose_kind(seed: int) -> str:
    """The kind of a seed's case: each in turn, and from -3 to -1 the planted ones."""
    return (
        list(PLANTED)[seed] if seed < 0 else sorted(KINDS.keys() - PLANTED.keys())[seed % (len(KINDS) - len(PLANTED))]
    )
