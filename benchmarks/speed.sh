#!/bin/sh
# The speeds of the published sizes on one GPU, table by table, which also stay in OUT_DIR: updates with keep_activations=1,
# within 20 GB, within 80 GB, and with everything saved, which takes up to 110 GB (or says "out of memory"); rendering;
# and whether the fast path computes what the plain one does.
#
#   benchmarks/speed.sh OUT_DIR [key=value ...]
set -eu
[ $# -ge 1 ] || { echo "usage: benchmarks/speed.sh OUT_DIR [key=value ...]" >&2; exit 2; }
out=$1
status=0
shift
mkdir -p "$out"
everything="training.grad_checkpoint_every=0 training.compile_layers=4"
kept=training.keep_activations=1
# The attention of 8 of 24 layers beside the inputs of all.
within_20_gb=training.keep_activations=0.037
# A third of the layers save everything.
within_80_gb=training.keep_activations=1.34
run() {
    name=$1 benchmark=$2
    shift 2
    echo "$name: python -m benchmarks.$benchmark $*"
    python -m "benchmarks.$benchmark" "$@" >"$out/$name.txt" 2>&1 || { echo "failed with $?"; status=1; }
    grep -v '^measured ' "$out/$name.txt"
}
for variant in decoder_only encoder_decoder prefix; do
    config=configs/LVSM_scene_$variant.yaml
    run "update_$variant" train_step --config "$config" --calls 3 --vary "$kept" --vary "$within_20_gb" \
        --vary "$within_80_gb" --vary "$everything" "$@"
    run "rendering_$variant" render "$@" --config "$config" --calls 2 --inputs 2
done
run update_prefix_prope train_step --config "$config" --calls 3 --vary "$kept" --vary "$everything" \
    model.transformer.camera_encoding=prope "$@"
for variant in decoder_only encoder_decoder prefix; do
    run "agreement_$variant" agreement --config "configs/LVSM_scene_$variant.yaml" "$kept" "$@"
    # Unquoted: two settings.
    run "agreement_saved_$variant" agreement --config "configs/LVSM_scene_$variant.yaml" $everything "$@"
done
exit "$status"
