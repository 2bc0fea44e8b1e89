#!/bin/sh
# The whole system on procedural rooms: chunks, preprocessing, training, evaluation, page. Run through `make demo`.
set -eu
export WANDB_MODE=disabled
cpus=$($PYTHON -c 'from utils.parallel import usable_cores; print(usable_cores())')

say() { printf '\n== %s\n' "$1"; }

# The rooms of another seed than the weights in the box learned from.
rm -rf "$OUT"
say "Rendering 48 rooms to train on and 12 to test on"
$PYTHON -m data.synthetic --output_dir "$OUT/chunks" --seed 2026 --train_scenes 48 --test_scenes 12 --frames 40 \
    --width 256 --height 144 --speed 0.04 --context_distance 30
say "Preprocessing them as if they were RealEstate10K"
for mode in train test; do
    $PYTHON preprocess_data.py --base_path "$OUT/chunks" --output_dir "$OUT/scenes" --mode $mode
done
say "Training a small model on $cpus cores (or a GPU)"
$PYTHON train.py --config configs/demo.yaml training.checkpoint_dir="$OUT/run" \
    training.dataset_path="$OUT/scenes/train/full_list.txt" \
    training.validation_path="$OUT/scenes/test/full_list.txt" \
    training.validation_index="$OUT/chunks/evaluation_index.json" training.validate_every=20

# evaluate NAME CONFIG key=value ...
evaluate() {
    name=$1
    config=$2
    shift 2
    $PYTHON inference.py --config "$config" training.dataset_path="$OUT/scenes/test/full_list.txt" \
        inference.view_idx_file_path="$OUT/chunks/evaluation_index.json" \
        inference.render_video_config.num_frames=15 inference.render_video_config.fps=15 training.use_amp=false \
        inference_out_dir="$OUT/evaluation/$name" "$@"
}
say "The test rooms: copying the nearest input view"
evaluate nearest_input configs/rooms_prefix.yaml inference.predictor=nearest_input inference.render_video=false
say "The test rooms, rendered by the small model"
evaluate trained_here configs/demo.yaml training.checkpoint_dir="$OUT/run"
say "The test rooms, rendered by the weights in the box"
evaluate shipped_weights configs/rooms_prefix.yaml training.checkpoint_dir=weights/rooms_prefix.safetensors
$PYTHON inference.py --compare "$OUT/evaluation/nearest_input" "$OUT/evaluation/trained_here" \
    "$OUT/evaluation/shipped_weights" --output "$OUT/comparison"
$PYTHON -m benchmarks.demo_summary "$OUT"
