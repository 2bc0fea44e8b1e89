"""Walk through a scene in the browser: what the model paints from where you stand.

    python view.py --config configs/rooms.yaml training.checkpoint_dir=FILE_OR_FOLDER \\
        viewer.scene=SCENE.json_OR_LIST.txt viewer.input_frames=[0,30]

The window is served at the address that it names once it is ready; docs/viewer.md says what is in it. A CPU renders in
float32, which is two to three times as fast there as bf16; training.use_amp=true on the command line undoes that.
"""

import logging
from collections.abc import Sequence

from data.dataset import ViewLoader
from setup import load_config, load_renderer, output_folder, set_threads_and_precision, with_training
from utils.cli import run_main
from utils.distributed import describe_device, process_group
from viewer.server import SPARED_CORES, find_scenes, serve
from viewer.session import Sessions

log = logging.getLogger("lvsm")


def main(argv: Sequence[str]) -> None:
    """Read the configuration and serve the window until SIGTERM or Ctrl-C."""
    config, overridden = load_config(argv)
    output_folder(config.viewer.out_dir, "viewer.out_dir")
    scenes = find_scenes(config.viewer, config.training.data.dataset_path)
    with process_group() as process:
        if process.device.type == "cpu" and "training.use_amp" not in overridden:
            config = with_training(config, use_amp=False)
        tokenizer = config.model.image_tokenizer
        set_threads_and_precision(config.training, SPARED_CORES)
        renderer, checkpoint, config = load_renderer(config, process)
        log.info("%s on %s", checkpoint, describe_device(process.device))
        load = ViewLoader(config.training.data, tokenizer.image_size, tokenizer.patch_size)
        serve(config.viewer, config.inference.evaluation.render_video_config, Sessions(renderer, load), scenes)


if __name__ == "__main__":
    run_main(main)
