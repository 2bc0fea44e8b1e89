"""A capture of one's own -> a scene on disk, which training, evaluation and the viewer take as any other.

    python -m data.importers SOURCE --output_dir DIR

SOURCE is a COLMAP project, a folder with transforms.json or opencv_cameras.json or such a file, the text file of a
RealEstate10K clip, or a folder of such folders. Distorted images are undistorted; all others keep their bytes. What
could not be used is named at the end and in DIR/lost.json. Then it is checked whether the cameras fit the images, as
`python -m data.importers.check` does. Run it again to go on where it stopped.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import chain

from data.importers.capture import Options, Prepared, plain_name, prepare
from data.importers.kinds import KINDS, find_sources
from data.importers.verdict import check_scene
from data.outcome import tell_losses, tell_packing, tell_written
from data.scene import Scene
from data.writing import ImportResult, SceneWriter
from utils.cli import path_argument, run_main
from utils.errors import InputError
from utils.files import check_plain_name
from utils.stop_signal import exit_on_sigterm
from utils.text import counted, printable


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m data.importers", description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("source", type=path_argument, metavar="SOURCE", help="a folder or file of cameras with images")
    add(
        "--output_dir",
        type=path_argument,
        required=True,
        metavar="DIR",
        help="folder of the set; scenes are added to it",
    )
    add("--kind", choices=list(KINDS), help="what SOURCE is; found out if not given")
    add("--name", help="the scene's name; default: that of the folder")
    add("--images", type=path_argument, metavar="DIR", help="folder of the images, if it is not where it usually is")
    add("--model", metavar="N", help="which of several COLMAP models; default: the one with most images")
    add("--fov", type=float, metavar="DEGREES", help="what photographs without cameras show along their longer side")
    add("--focal35", type=float, metavar="MM", help="their focal length in 35 mm terms; default: what they name (EXIF)")
    add("--pack", action="store_true", help="write the frames of a scene as one tar (data/packing.py converts)")
    add("--no_check", action="store_true", help="do not check whether the cameras fit the images")
    add("--allow_outside_images", action="store_true", help="read images outside the folder of the source, too")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Import what a source holds.

    Raises:
        InputError: nothing of it can be used, or the cameras of a scene do not fit its images.
        OSError: the disk is full or not writable; complete scenes stay.
    """
    arguments = parse(argv)
    result = ImportResult()
    writer = SceneWriter(arguments.output_dir, packed=arguments.pack)
    with exit_on_sigterm():
        scenes = _prepared(arguments, writer, result)
        # Nothing is made on disk before something can be used.
        first = next(scenes, None)
        if first is None:
            raise InputError(f"nothing of {printable(str(arguments.source))} can be used: {_first_loss(result)}")
        with writer.session():
            written = [_write(prepared, writer, result) for prepared in chain([first], scenes)]
    _tell(result, writer)
    if not arguments.no_check:
        _check(written)


def _prepared(arguments: argparse.Namespace, writer: SceneWriter, result: ImportResult) -> Iterator[Prepared | Scene]:
    """The scenes of all sources; a source that cannot be used is lost.

    Of a source that takes long to read, the scene that is there already, if there is one.
    """
    sources = find_sources(arguments.source, arguments.kind)
    _check_focal_length(arguments)
    options = Options(
        arguments.images, arguments.model, arguments.allow_outside_images, arguments.fov, arguments.focal35
    )
    if arguments.name is not None:
        check_plain_name(arguments.name, "--name")
        if len(sources) > 1:
            raise InputError(f"--name names one scene, but {arguments.source} holds {len(sources)}: leave it out")
    for path, kind in sources.items():
        if KINDS[kind].wait:
            found = writer.find(arguments.name or plain_name(path))
            if isinstance(found, Scene):
                yield found
                continue
            print(printable(f"{path}: {KINDS[kind].wait}"), flush=True)
        try:
            yield prepare(KINDS[kind].read(path, options), arguments.name)
        except InputError as error:
            if len(sources) == 1:
                raise
            result.lose(f"clip {plain_name(path)}", error)


def _check_focal_length(arguments: argparse.Namespace) -> None:
    if arguments.fov is not None and arguments.focal35 is not None:
        raise InputError("--fov and --focal35 both name the focal length: leave one out")
    if arguments.fov is not None and not 5 <= arguments.fov <= 150:
        raise InputError(f"--fov is {arguments.fov:g}: a field of view in degrees lies between 5 and 150")
    if arguments.focal35 is not None and not 4 <= arguments.focal35 <= 500:
        raise InputError(f"--focal35 is {arguments.focal35:g}: in millimetres it lies between 4 and 500")


def _write(prepared: Prepared | Scene, writer: SceneWriter, result: ImportResult) -> Scene | None:
    """Write a scene unless it is there, and say what was read; gives the scene as it is on disk."""
    if isinstance(prepared, Scene):
        return _keep(prepared, writer, result)
    key = prepared.scene.key
    for line in prepared.lines:
        print(printable(line))
    writer.add(key, lambda: prepared.scene, result)
    found = writer.find(key)
    scene = found if isinstance(found, Scene) else None
    used = 0 if scene is None else sum(path is not None for path in scene.image_paths)
    print(f"  {used} of {counted(len(prepared.scene.w2c), 'image')} used")
    return scene


def _keep(scene: Scene, writer: SceneWriter, result: ImportResult) -> Scene:
    """Leave a scene as it is, and say so."""
    path = writer.metadata(scene.name)
    print(
        printable(f"{scene.name} is there already and stays as it is: delete {path} to have its cameras found anew, or")
        + " name another scene with --name"
    )
    writer.keep(scene.name, scene, None, result)
    return scene


def _check(scenes: Sequence[Scene | None]) -> None:
    """Say of scenes whether their cameras fit their images.

    Raises:
        InputError: those of one do not.
    """
    verdicts = []
    for scene in scenes:
        if scene is not None:
            verdicts.append(check_scene(scene))
            print(verdicts[-1].line())
    bad = [verdict.scene for verdict in verdicts if verdict.state == "bad"]
    if bad:
        raise InputError(
            f"the scenes are written, but the cameras of {len(bad)} of {len(verdicts)} do not fit their images, "
            f"{bad[0]} first: see docs/own_photos.md"
        )


def _first_loss(result: ImportResult) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in list(result.lost.items())[:1])


def _tell(result: ImportResult, writer: SceneWriter) -> None:
    """Name what was lost.

    Raises:
        InputError: that is everything.
    """
    lost_path = tell_losses(result, writer)
    if not result.written + result.kept:
        raise InputError(f"no scene could be written: {_first_loss(result)}")
    tell_written(result, writer, "scene")
    tell_packing(result, writer)
    if lost_path is not None:
        print(f"not used: {len(result.lost)} images or scenes, which {printable(str(lost_path))} names")


if __name__ == "__main__":
    run_main(main)
