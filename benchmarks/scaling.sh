#!/bin/sh
# Images a second on 1, 2, 4, ... GPUs of one machine, with the real loader, as share of N times one GPU.
#
#   benchmarks/scaling.sh CONFIG SCENE_LIST [UPDATES, at least 12] [key=value ...]
set -eu
usage() {
    echo "usage: benchmarks/scaling.sh CONFIG SCENE_LIST [UPDATES, at least 12] [key=value ...]" >&2
    exit 2
}
[ $# -ge 2 ] || usage
config=$1 list=$2 updates=120
shift 2
case ${1-none=given} in
*=*) ;;
*[!0-9]*) usage ;;
*) updates=$1 && shift ;;
esac
[ "$updates" -ge 12 ] || usage
gpus=$(nvidia-smi -L | wc -l)
out=$(mktemp -d)
export WANDB_MODE=disabled
n=1
while [ "$n" -le "$gpus" ]; do
    torchrun --standalone --nproc_per_node "$n" -m benchmarks.loss_curve --config "$config" --output_dir "$out/$n" \
        --setting "gpus$n:" --json "$out/$n.json" training.dataset_path="$list" training.train_steps="$updates" \
        training.print_every=$((updates / 6)) training.checkpoint_every="$updates" "$@" >"$out/$n.log" 2>&1 ||
        { tail -20 "$out/$n.log"; exit 1; }
    n=$((n * 2))
done
python - "$out" <<'END'
import json, pathlib, sys

rows = {int(p.stem): json.loads(p.read_text())["rows"][0] for p in pathlib.Path(sys.argv[1]).glob("*.json")}
for n, row in sorted(rows.items()):
    print(f"{n} GPUs: {row['images/s']:.1f} images/s, {row['images/s'] / rows[1]['images/s']:.2f} times one, data {row['data']}")
END
