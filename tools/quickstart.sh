#!/usr/bin/env bash
# From nothing to a tested model: installs, makes a small world, trains on it, tests and draws. Run
# again, it reuses what is done.
#
#   quickstart.sh         a DSVT detector on streets, tested on streets it has not seen
#   quickstart.sh room    photographs of a room, and the scene of Gaussians that they make
#
#   WORK_DIR    where results go (default work_dirs/quickstart, or work_dirs/quickstart_room)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
WHAT=${1:-streets}
case $WHAT in
streets) WORK_DIR=${WORK_DIR:-work_dirs/quickstart} CONFIG=configs/detection/dsvt_pillar_world.py ;;
room) WORK_DIR=${WORK_DIR:-work_dirs/quickstart_room} CONFIG=configs/splatting/edgs_world_room.py ;;
*) echo "quickstart.sh knows 'streets' and 'room', not '$WHAT'" >&2 && exit 2 ;;
esac
source tools/install.sh
RUN=$VENV/bin/python
START=$SECONDS
mkdir -p "$WORK_DIR"
# The allocator keeps what it has: large feature maps come and go at every step.
export MALLOC_TRIM_THRESHOLD_=10000000000 MALLOC_MMAP_THRESHOLD_=10000000000

train() {
  if [ -e "$WORK_DIR/final.pth" ]; then
    echo "already trained: $WORK_DIR/final.pth"
  else
    RESUME=$([ ! -e "$WORK_DIR/last_checkpoint" ] || echo --resume)
    "$RUN" tools/train.py "$CONFIG" --work-dir "$WORK_DIR" $RESUME
  fi
}

# The last page; its arguments are the lines that tell what came out and where it is.
finish() {
  printf '\n%s\n' "----------------------------------------------------------------------"
  printf 'sparse3d quickstart: done in %d min %d s\n\n' $(((SECONDS - START) / 60)) $(((SECONDS - START) % 60))
  printf '  %s\n' "$@"
  printf '\nNext: README.md, "Your own data".\n%s\n' \
    "----------------------------------------------------------------------"
}

metric() { "$RUN" -c 'import json, sys; print(f"{json.load(open(sys.argv[1]))[sys.argv[2]]:.3f}")' \
  "$WORK_DIR/metrics.json" "$1"; }

if [ "$WHAT" = room ]; then
  say "1/4  a furnished room and 60 photographs of it"
  "$RUN" tools/prepare_data.py rooms --name quickstart --pictures 1 --queries 0 --size 400 300 \
    --workers "$(nproc)"
  say "2/4  a dense start and training; every eighth photograph is held out"
  train
  say "3/4  testing on the photographs held out"
  "$RUN" tools/test.py "$CONFIG" "$WORK_DIR/final.pth" --out "$WORK_DIR/metrics.json"
  say "4/4  the room beside the truth"
  "$RUN" tools/visualize.py "$CONFIG" "$WORK_DIR/final.pth" --index 1 --out "$WORK_DIR/room.png" \
    --web "$WORK_DIR/room.html" --export "$WORK_DIR/room.ply"
  finish "PSNR of unseen views    $(metric psnr) dB" \
    "photograph, rendering   $WORK_DIR/room.png" \
    "to walk through         $WORK_DIR/room.html" \
    "for other viewers       $WORK_DIR/room.ply" \
    "all numbers             $WORK_DIR/metrics.json" \
    "the experiment          $CONFIG"
  exit 0
fi

say "1/5  the world: streets, cars, trucks, cyclists and pedestrians, seen by a 64-beam LiDAR"
"$RUN" tools/prepare_data.py world --name quickstart --sensor hdl64 --train 400 --test 60 --seed 0 \
  --workers "$(nproc)"
"$RUN" tools/prepare_data.py database "$CONFIG"

say "2/5  a look at the data before training on it"
"$RUN" tools/prepare_data.py check "$CONFIG" \
  --cfg-options train_dataloader.dataset.limit=100

say "3/5  training"
train

say "4/5  testing on unseen streets"
"$RUN" tools/test.py "$CONFIG" "$WORK_DIR/final.pth" --out "$WORK_DIR/metrics.json" \
  --show-dir "$WORK_DIR/pictures"

say "5/5  one scene in 3-D"
"$RUN" tools/visualize.py "$CONFIG" "$WORK_DIR/final.pth" --index 0 --view 3d \
  --out "$WORK_DIR/boxes.png"

finish "mAP on unseen streets   $(metric mAP)" \
  "all numbers             $WORK_DIR/metrics.json" \
  "predicted and true      $WORK_DIR/boxes.png and $WORK_DIR/pictures/" \
  "checkpoint              $WORK_DIR/final.pth" \
  "the experiment          $CONFIG" \
  "another one             bash tools/quickstart.sh room"
