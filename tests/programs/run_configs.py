"""Train every configuration file for two steps at a reduced size. Under torchrun: with as many processes as it starts.

python -m tests.programs.run_configs OUT_DIR CONFIG [CONFIG ...]
"""

from pathlib import Path

import train
from geometry.image_size import sides
from model import VARIANTS, find_variant
from setup import read_config
from tests.helpers import small_overrides
from utils.cli import run_main
from utils.distributed import process_group

# What stands for sizes that are wider than high.
WIDE = [f"model.{tokenizer}.image_size=[16,32]" for tokenizer in ("image_tokenizer", "target_pose_tokenizer")]


def main(argv):
    out, configs = Path(argv[0]), [Path(path) for path in argv[1:]]
    with process_group():
        for config in configs:
            model = read_config(config, []).model
            named = find_variant(model.class_name)
            variant = next(name for name, variant in VARIANTS.items() if variant is named)
            places = [f"dataset_path={out}/scenes/full_list.txt", f"checkpoint_dir={out}/{config.stem}"]
            height, width = sides(model.image_tokenizer.image_size)
            wide = WIDE if height < width else []
            train.main(["--config", str(config), *small_overrides(variant), *wide, *(f"training.{p}" for p in places)])


if __name__ == "__main__":
    run_main(main)
