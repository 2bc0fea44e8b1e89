"""Train every configuration file for two steps at a reduced size. Under torchrun: with as many processes as it starts.

python -m tests.programs.run_configs OUT_DIR CONFIG [CONFIG ...]
"""

from pathlib import Path

import train
from model import VARIANTS, find_variant
from setup import read_config
from tests.helpers import small_overrides
from utils.cli import run_main
from utils.distributed import process_group


def main(argv):
    out, configs = Path(argv[0]), [Path(path) for path in argv[1:]]
    with process_group():
        for config in configs:
            named = find_variant(read_config(config, []).model.class_name)
            variant = next(name for name, variant in VARIANTS.items() if variant is named)
            places = [f"dataset_path={out}/scenes/full_list.txt", f"checkpoint_dir={out}/{config.stem}"]
            train.main(["--config", str(config), *small_overrides(variant), *(f"training.{p}" for p in places)])


if __name__ == "__main__":
    run_main(main)
