#!/bin/sh
# The whole system on procedural rooms: chunks, preprocessing, training, evaluation, page. Run through `make demo`.
set -eu
export WANDB_MODE=disabled
cpus=$($PYTHON -c 'from utils.parallel import usable_cores; print(usable_cores())')

say() { printf '\n== %s\n' "$1"; }

rm -rf "$OUT"
say "Rendering 96 rooms to train on and 12 to test on"
$PYTHON -m data.synthetic --output_dir "$OUT/chunks" --train_scenes 96 --test_scenes 12 --frames 40 \
    --width 128 --height 72 --speed 0.05 --context_distance 36
say "Preprocessing them as if they were RealEstate10K"
for mode in train test; do
    $PYTHON preprocess_data.py --base_path "$OUT/chunks" --output_dir "$OUT/scenes" --mode $mode
done
say "Training a small model on $cpus cores (or a GPU)"
$PYTHON train.py --config configs/demo.yaml training.checkpoint_dir="$OUT/run" \
    training.dataset_path="$OUT/scenes/train/full_list.txt"
say "Rendering the test rooms, which it has never seen"
$PYTHON inference.py --config configs/demo.yaml training.checkpoint_dir="$OUT/run" \
    training.dataset_path="$OUT/scenes/test/full_list.txt" \
    inference.view_idx_file_path="$OUT/chunks/evaluation_index.json" inference_out_dir="$OUT/evaluation"
$PYTHON - "$OUT/evaluation" <<'END'
import json, pathlib, sys

folder = pathlib.Path(sys.argv[1])
means = json.loads((folder / "results.json").read_text())["averages"]
print(f"\nOn views of rooms it was not trained on: PSNR {means['psnr']:.2f} dB; copying the nearest input view gives "
      f"{means['psnr_nearest_input']:.2f} dB.")
print(f"Open {(folder / 'index.html').resolve().as_uri()}")
if means["psnr"] <= means["psnr_nearest_input"]:
    sys.exit("The model does not beat copying: was the training stopped early? Run it again.")
END
