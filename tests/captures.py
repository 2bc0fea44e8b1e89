"""Captures as other programs leave them: a procedural room seen by every kind of lens, written in every format."""

import functools
import json
import struct
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from data.importers.__main__ import main
from data.scene import Scene, read_scene
from data.synthetic import Pinhole, make_path, make_scene, render

SIZE = (64, 48)
NAMES = ("view_2.png", "view_10.png", "view_11.png")
# COLMAP's number of every camera model that is read, and parameters for images of `SIZE`.
LENSES = {
    "SIMPLE_PINHOLE": (0, [60.0, 32, 24]),
    "PINHOLE": (1, [60.0, 58, 33, 23.5]),
    "SIMPLE_RADIAL": (2, [60.0, 32, 24, -0.1]),
    "RADIAL": (3, [60.0, 32, 24, 0.08, -0.03]),
    "OPENCV": (4, [60.0, 58, 31, 24.5, -0.12, 0.03, 0.004, -0.006]),
    "OPENCV_FISHEYE": (5, [50.0, 51, 32, 24, 0.05, -0.02, 0.01, -0.004]),
    "FULL_OPENCV": (6, [60.0, 58, 32, 24, 0.1, 0.02, -0.003, 0.005, 0.01, 0.15, 0.01, 0.02]),
    "SIMPLE_RADIAL_FISHEYE": (8, [50.0, 32, 24, 0.03]),
    "RADIAL_FISHEYE": (9, [50.0, 32, 24, -0.03, 0.01]),
    "SIMPLE_FISHEYE": (14, [50.0, 32, 24]),
    "FISHEYE": (15, [50.0, 52, 31, 25]),
}
LENSES = {name: (number, [float(value) for value in values]) for name, (number, values) in LENSES.items()}
PINHOLE = LENSES["PINHOLE"][1]
_ONE_FOCAL_LENGTH = (0, 2, 3, 8, 9, 14)
# A picture of all that any of these lenses sees, so soft that 64 pixels hold it.
_WIDE = np.array([280.0, 280, 320, 240])
_SOFTNESS = 12.0


@dataclass(frozen=True)
class Room:
    """Wide soft pictures of a room and their w2c."""

    pictures: list[np.ndarray]
    w2c: np.ndarray


@functools.cache
def room() -> Room:
    made = make_scene(0, texel=0.03)
    c2w, _ = make_path(made, 0, frames=len(NAMES), speed=0.2)
    wide = [render(made.faces, Pinhole(pose, _WIDE, 640, 480), supersample=1) for pose in c2w]
    soft = [cv2.GaussianBlur(picture.astype(np.float32), (0, 0), _SOFTNESS) for picture in wide]
    return Room(soft, np.linalg.inv(c2w))


def pixel_centres() -> np.ndarray:
    across, down = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)
    return np.stack([across, down], axis=-1).reshape(-1, 2)


def seen(picture: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """What is seen along rays through points at depth 1 [h w, 2]."""
    place = (rays * _WIDE[:2] + _WIDE[2:] - 0.5).astype(np.float32).reshape(SIZE[1], SIZE[0], 2)
    return cv2.remap(picture, place[..., 0], place[..., 1], cv2.INTER_CUBIC)


def pinhole_image(view: int, fxfycxcy) -> np.ndarray:
    rays = (pixel_centres() - fxfycxcy[2:]) / np.asarray(fxfycxcy)[:2]
    return np.round(seen(room().pictures[view], rays)).clip(0, 255).astype(np.uint8)


def focal(model: str, parameters) -> np.ndarray:
    """fx, fy, cx, cy."""
    return np.array([parameters[0], *parameters[:3]] if LENSES[model][0] in _ONE_FOCAL_LENGTH else parameters[:4])


def project(model: str, parameters, rays: np.ndarray) -> np.ndarray:
    """COLMAP's formulas, one by one, of the points at depth 1 to pixels."""
    f = focal(model, parameters)
    k = list(parameters[3 if LENSES[model][0] in _ONE_FOCAL_LENGTH else 4 :])
    u, v = rays.T
    r2 = u**2 + v**2
    if "FISHEYE" in model:
        theta = np.arctan(np.sqrt(r2))
        k = k + [0] * (4 - len(k))
        bent = theta * (1 + k[0] * theta**2 + k[1] * theta**4 + k[2] * theta**6 + k[3] * theta**8)
        scale = np.where(r2 > 0, bent / np.sqrt(np.maximum(r2, 1e-30)), 1)
        x = u * scale
        y = v * scale
    else:
        k1, k2, p1, p2, k3, k4, k5, k6 = k + [0] * (8 - len(k))
        radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
        x = u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u**2)
        y = v * radial + 2 * p2 * u * v + p1 * (r2 + 2 * v**2)
    return np.stack([f[0] * x + f[2], f[1] * y + f[3]], axis=-1)


def unproject(model: str, parameters, pixels: np.ndarray) -> np.ndarray:
    """The points at depth 1 that `project` shows at pixels (Newton's method with measured slopes)."""
    f = focal(model, parameters)
    rays = (pixels - f[2:]) / f[:2]
    for _ in range(8):
        here = project(model, parameters, rays)
        step = 1e-6
        slopes = np.stack([(project(model, parameters, rays + e) - here) / step for e in np.eye(2) * step], axis=-1)
        rays = rays + np.linalg.solve(slopes, (pixels - here)[..., None])[..., 0]
    assert abs(project(model, parameters, rays) - pixels).max() < 1e-6
    return rays


@functools.cache
def lens_image(view: int, model: str) -> np.ndarray:
    """What a lens shows of the room."""
    rays = unproject(model, LENSES[model][1], pixel_centres())
    return np.round(seen(room().pictures[view], rays)).clip(0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, form: str = "png", **options) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def write_images(folder: Path, model: str = "PINHOLE", names=NAMES, form: str = "png", **options) -> list[bytes]:
    """Images of the room of one lens; gives their bytes."""
    contents = []
    for view, name in enumerate(names):
        contents.append(encoded(lens_image(view, model), form, **options))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents[-1])
    return contents


def quaternion(w2c: np.ndarray) -> list[float]:
    x, y, z, w = Rotation.from_matrix(w2c[:3, :3]).as_quat()
    return [w, x, y, z]


def write_colmap(folder: Path, binary=True, model="PINHOLE", names=NAMES, size=SIZE, w2c=None, parameters=None) -> Path:
    """A sparse model of one camera, number 7, some points in the file; gives its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    number = LENSES[model][0] if model in LENSES else model
    parameters = LENSES[model][1] if parameters is None else parameters
    poses = room().w2c if w2c is None else w2c
    if binary:
        head = struct.pack("<QIiQQ", 1, 7, number, *size)
        (folder / "cameras.bin").write_bytes(head + struct.pack(f"<{len(parameters)}d", *parameters))
        images = struct.pack("<Q", len(names))
        for i, name in enumerate(names):
            images += struct.pack("<I7dI", i + 1, *quaternion(poses[i]), *poses[i][:3, 3], 7)
            images += name.encode() + b"\0" + struct.pack("<Q", 2) + struct.pack("<ddq", 1.5, 2.5, -1) * 2
        (folder / "images.bin").write_bytes(images)
    else:
        values = " ".join(map(repr, map(float, parameters)))
        (folder / "cameras.txt").write_text(f"# cameras\n7 {model} {size[0]} {size[1]} {values}\n")
        lines = ["# images"]
        for i, name in enumerate(names):
            numbers = [*quaternion(poses[i]), *poses[i][:3, 3]]
            lines += [f"{i + 1} {' '.join(repr(float(n)) for n in numbers)} 7 {name}", "1.5 2.5 -1" if i else ""]
        (folder / "images.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def colmap_project(root: Path, **changes) -> Path:
    """Images and a sparse model of them."""
    model = changes.get("model", "PINHOLE")
    write_images(root / "images", model, changes.get("names", NAMES))
    write_colmap(root / "sparse" / "0", **changes)
    return root


def transforms(names=NAMES, w2c=None, **common) -> dict:
    """transforms.json: OpenGL camera-to-world."""
    c2w = np.linalg.inv(room().w2c if w2c is None else w2c) @ np.diag([1.0, -1, -1, 1])
    fx, fy, cx, cy = PINHOLE
    frames = [{"file_path": name, "transform_matrix": c2w[i].tolist()} for i, name in enumerate(names)]
    intrinsics = {"w": SIZE[0], "h": SIZE[1], "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy}
    return {key: value for key, value in (intrinsics | common).items() if value is not None} | {"frames": frames}


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def transforms_project(root: Path, names=NAMES, **common) -> Path:
    paths = [f"images/{name}" for name in names]
    write_images(root, names=paths)
    write_json(root / "transforms.json", transforms(paths, **common))
    return root


def opencv_cameras(names=NAMES) -> list[dict]:
    fx, fy, cx, cy = PINHOLE
    intrinsics = {"w": SIZE[0], "h": SIZE[1], "fx": fx, "fy": fy, "cx": cx, "cy": cy}
    return [intrinsics | {"file_path": name, "w2c": room().w2c[i].tolist()} for i, name in enumerate(names)]


def re10k_lines() -> list[str]:
    shares = np.array(PINHOLE) / [*SIZE, *SIZE]
    rows = [[33000 * (i + 3), *shares, 0, 0, *w2c[:3].ravel()] for i, w2c in enumerate(room().w2c)]
    return ["https://example.org/v", *(" ".join(map(repr, map(float_or_int, row))) for row in rows)]


def float_or_int(value):
    return value if isinstance(value, int) else float(value)


def run_importer(source: Path, out: Path, *more: object) -> Scene:
    """Import one scene and read it."""
    before = set((out / "metadata").glob("*.json"))
    main([str(source), "--output_dir", str(out), "--no_check", *map(str, more)])
    paths = set((out / "metadata").glob("*.json"))
    return read_scene((paths - before or paths).pop())
