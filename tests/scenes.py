"""Scenes as a source of one's own gives them, and their import."""

import numpy as np

from data.writing import ImportResult, NewScene, SceneWriter
from tests.chunks import jpeg


def photographs(key, count=3, w2c=None, **changes):
    """Photographs with cameras in pixels, as an importer reads them from a folder."""
    images = {number: jpeg(64, 36, number) for number in range(count)} | changes.pop("images", {})
    poses = np.tile(np.eye(4), (count, 1, 1)) if w2c is None else w2c
    return NewScene(key, images.__getitem__, np.tile([50.0, 50, 32, 18], (count, 1)), poses, **changes)


def import_scenes(root, scenes, image_format="jpeg", **options):
    """A whole import in one process, as a source of one's own would do it."""
    writer = SceneWriter(root, image_format, **options)
    result = ImportResult()
    with writer.session():
        for scene in scenes:
            writer.add(scene.key, lambda scene=scene: scene, result)
    writer.write_lost(result)
    return result
