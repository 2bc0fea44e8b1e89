"""COLMAP projects: a sparse model beside its images."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data.image_paths import exists
from data.importers.capture import Capture, Options, Photo, find_image, images_in, make_photo, plain_name
from data.importers.colmap_model import Model, ModelImage, holds_model, read_model
from data.importers.lens import Lens, make_lens
from utils.errors import InputError
from utils.text import counted, printable, shown

# Where models are, from a project's folder, and images, from that of a project or a model.
_MODELS = (".", "sparse", "sparse/*", "colmap/sparse", "colmap/sparse/*", "distorted/sparse/*")
_IMAGES = ("images", "input", "photos", ".", "images_2", "images_4", "images_8")


def finds(source: Path) -> bool:
    """Whether a folder is a project or a model."""
    return source.is_dir() and any(_model_folders(source))


def read(source: Path, options: Options) -> Capture:
    """Read a project: its largest model, or that which is asked for.

    Raises:
        InputError: it has no such model, a file is damaged, or no image is registered.
    """
    folders = list(_model_folders(source)) if source.is_dir() else []
    if not folders:
        raise InputError(f"{printable(str(source))} holds no COLMAP model (cameras and images, .bin or .txt)")
    model, notes = _choose(folders, options)
    where = _label(source, model.folder)
    if not model.images:
        raise InputError(f"{printable(str(model.folder))}: no image is registered in this COLMAP model")
    images = _images_folder(source, model, options)
    photos = [_photo(image, model, images, options) for image in model.images]
    notes += _unregistered(model, images)
    kind = "binary" if model.is_binary else "text"
    cameras = counted(len(model.cameras), "camera")
    name = plain_name(_project(source))
    return Capture(name, f"COLMAP model {where} ({kind}), {cameras}, images in {printable(str(images))}", photos, notes)


def _model_folders(source: Path) -> Iterator[Path]:
    for pattern in _MODELS:
        folders = sorted(source.glob(pattern)) if "*" in pattern else [source / pattern]
        yield from (folder for folder in folders if folder.is_dir() and holds_model(folder))


def _label(source: Path, folder: Path) -> str:
    """A model's name: its path from the source."""
    path = folder.relative_to(source).as_posix()
    return printable(source.resolve().name if path == "." else path)


def _choose(folders: list[Path], options: Options) -> tuple[Model, list[str]]:
    """The model that is asked for, or else the largest, and what to say of the choice."""
    if options.model is not None:
        folders = [folder for folder in folders if folder.name == options.model]
        if not folders:
            raise InputError(f"there is no COLMAP model named {shown(options.model)}: --model takes a folder's name")
    models = [read_model(folder) for folder in folders]
    model = max(models, key=lambda model: len(model.images))
    if len(models) == 1:
        return model, []
    sizes = ", ".join(f"{printable(other.folder.name)} has {len(other.images)}" for other in models)
    return model, [f"  {len(models)} models; the one with most images is used (--model takes another): {sizes}"]


def _project(source: Path) -> Path:
    """The project's folder, also if the source is its model."""
    folder = source.resolve()
    if holds_model(folder):
        folder = folder.parent if folder.parent.name == "sparse" else folder
        folder = folder.parent if folder.name == "sparse" else folder
    return folder


def _images_folder(source: Path, model: Model, options: Options) -> Path:
    """The folder in which most of a model's images are."""
    if options.images is not None:
        return options.images
    bases = dict.fromkeys([_project(source), source])
    folders = [base / name for base in bases for name in _IMAGES if (base / name).is_dir()]
    found = {folder: sum(exists(folder / image.name) for image in model.images[:100]) for folder in folders}
    best = max(folders, key=lambda folder: found[folder])
    if not found[best]:
        raise InputError(
            f"{printable(str(source))}: the images of the COLMAP model, {shown(model.images[0].name)} among them, are "
            "in none of its folders: --images DIR names theirs"
        )
    return best


def _photo(image: ModelImage, model: Model, images: Path, options: Options) -> Photo:
    root = None if options.allow_outside else images

    def find() -> tuple[Path, Lens]:
        path = find_image(images, image.name, root)
        return path, _lens(model, image)

    return make_photo(image.name, image.w2c, find)


def _lens(model: Model, image: ModelImage) -> Lens:
    camera = model.cameras.get(image.camera)
    if camera is None:
        raise InputError(f"image {shown(image.name, 300)}: the model has no camera {image.camera}")
    try:
        return make_lens(camera.model, (camera.width, camera.height), camera.parameters)
    except InputError as error:
        raise InputError(f"image {shown(image.name, 300)}, camera {camera.number}: {error}") from None


def _unregistered(model: Model, images: Path) -> list[str]:
    """How many images of the folder the model leaves out, with the first of their names."""
    registered = Counter(Path(image.name.replace("\\", "/")).as_posix() for image in model.images)
    there = sorted(path.relative_to(images).as_posix() for path in images_in(images))
    others = [name for name in there if name not in registered]
    if not others:
        return []
    named = ", ".join(shown(name) for name in others[:5])
    more = ", ..." if len(others) > 5 else ""
    return [f"  {counted(len(others), 'image')} not used, as COLMAP did not register them: {named}{more}"]
