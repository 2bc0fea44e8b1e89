"""Do a scene's cameras fit its images?

    python -m data.importers.check SCENE.json
    python -m data.importers.check full_list.txt --num_scenes 20 --page check.html --json check.json

One line a scene: good, bad (with the usual misreading that explains the images, if there is one), or cannot tell.
The exit code is 1 if any scene is bad.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.importers.check_page import scene_section, write_check_page
from data.importers.verdict import Verdict, check_scene
from data.scene import read_scene, read_scene_list
from utils.cli import path_argument, run_main
from utils.errors import InputError
from utils.files import write_json
from utils.text import counted, printable


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data.importers.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", type=path_argument, metavar="SCENE|LIST", help="a scene's metadata (.json), or a list of such files")
    add("--num_scenes", type=int, metavar="N", help="check N scenes spread over the list; default: all")
    add("--json", type=path_argument, metavar="FILE", help="write all figures there")
    add("--page", type=path_argument, metavar="FILE.html", help="write a page with epipolar lines there")
    add("--allow_outside_images", action="store_true", help="images may lie outside the set's folder")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Check scenes, print a line each, write what was asked for.

    Raises:
        InputError: the list cannot be read, or a scene is bad.
    """
    arguments = parse(argv)
    paths = _chosen(_scene_paths(arguments.source), arguments.num_scenes)
    figures = []
    sections = []
    bad = []
    for path in tqdm(paths, unit="scene", disable=None if len(paths) > 1 else True):
        verdict = _check(path, arguments.allow_outside_images)
        tqdm.write(verdict.line(), file=sys.stdout)
        # Verdicts hold images, so they are not kept.
        figures.append(verdict.as_json())
        if arguments.page:
            sections.append(scene_section(verdict))
        if verdict.state == "bad":
            bad.append(verdict.scene)
    if arguments.json:
        write_json(arguments.json, {"scenes": figures})
    if arguments.page:
        write_check_page(arguments.page, sections)
    if bad:
        raise InputError(f"the cameras of {len(bad)} of {counted(len(paths), 'scene')} are bad, {bad[0]} first")


def _scene_paths(source: Path) -> list[Path]:
    return [source] if source.suffix == ".json" else read_scene_list(source, "LIST")


def _chosen(paths: list[Path], count: int | None) -> list[Path]:
    if count is None or count >= len(paths):
        return paths
    if count < 1:
        raise InputError(f"--num_scenes is {count}; at least 1 is needed")
    return [paths[n] for n in np.linspace(0, len(paths) - 1, count).round().astype(int)]


def _check(path: Path, allow_outside: bool) -> Verdict:
    try:
        scene = read_scene(path, allow_outside)
    except InputError as error:
        return Verdict(printable(path.stem, 200), "bad", str(error))
    return check_scene(scene)


if __name__ == "__main__":
    run_main(main)
