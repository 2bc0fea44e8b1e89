"""What an evaluation says of inputs in which hardly a point is found twice."""

from data.importers.verdict import remarks_on_inputs
from data.scene import read_scene
from tests.helpers import write_toy_object, write_toy_scene
from tests.messages import check_names, is_named


def test_of_inputs_on_a_walk_nearer_ones_are_advised(tmp_path):
    scene = read_scene(write_toy_scene(tmp_path, "walk", 13))
    remark = remarks_on_inputs(scene, [0, 12], shape=None)["baseline"]
    check_names(remark, "scene walk", "inference.input_frames", "training.num_input_views")


def test_of_inputs_all_around_an_object_no_nearer_ones_are(tmp_path):
    scene = read_scene(write_toy_object(tmp_path, "toy", 8))
    remark = remarks_on_inputs(scene, [0, 2, 4, 6], shape=None)["baseline"]
    check_names(remark, "scene toy", "object", "training.num_input_views")
    assert not is_named("inference.input_frames", remark)
