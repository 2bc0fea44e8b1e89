#!/bin/sh
# The live viewer on rooms never seen, with the weights in the box. Run through `make view`.
set -eu
rooms="$OUT/scenes/test/full_list.txt"
if [ ! -f "$rooms" ]; then
    rooms="$OUT/walk/scenes/test/full_list.txt"
fi
if [ ! -f "$rooms" ]; then
    # Without the rooms of `make demo`, two of them.
    rm -rf "$OUT/walk"
    $PYTHON -m data.synthetic --output_dir "$OUT/walk/chunks" --seed 2026 --train_scenes 0 --test_scenes 2 --frames 40 \
        --width 256 --height 144 --speed 0.04 --context_distance 30
    $PYTHON preprocess_data.py --base_path "$OUT/walk/chunks" --output_dir "$OUT/walk/scenes" --mode test
fi
exec $PYTHON view.py --config configs/rooms_prefix.yaml training.checkpoint_dir=weights/rooms_prefix.safetensors \
    training.use_amp=false viewer.scene="$rooms" "viewer.input_frames=[0,30]" viewer.out_dir="$OUT/viewer" "$@"
