#!/usr/bin/env bash
# From nothing to a tested detector: installs, makes a small world, trains a DSVT detector on it, tests
# it on streets it has not seen and draws what it found. Run again, it reuses what is done.
#
#   WORK_DIR    where results go (default work_dirs/quickstart)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/install.sh
RUN=$VENV/bin/python
CONFIG=configs/detection/dsvt_pillar_world.py
WORK_DIR=${WORK_DIR:-work_dirs/quickstart}
START=$SECONDS
mkdir -p "$WORK_DIR"
# Threads sleep at barriers instead of spinning: on a machine with other work several times faster.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
# The allocator keeps what it has: large feature maps come and go at every step.
export MALLOC_TRIM_THRESHOLD_=10000000000 MALLOC_MMAP_THRESHOLD_=10000000000

say "1/5  the world: streets, cars, trucks, cyclists and pedestrians, seen by a 64-beam LiDAR"
"$RUN" tools/prepare_data.py world --name quickstart --sensor hdl64 --train 400 --test 60 --seed 0 \
  --workers "$(nproc)"
"$RUN" tools/prepare_data.py database "$CONFIG"

say "2/5  a look at the data before training on it"
"$RUN" tools/prepare_data.py check "$CONFIG" \
  --cfg-options train_dataloader.dataset.limit=100

say "3/5  training"
if [ -e "$WORK_DIR/final.pth" ]; then
  echo "already trained: $WORK_DIR/final.pth"
else
  RESUME=$([ ! -e "$WORK_DIR/last_checkpoint" ] || echo --resume)
  "$RUN" tools/train.py "$CONFIG" --work-dir "$WORK_DIR" $RESUME
fi

say "4/5  testing on unseen streets"
"$RUN" tools/test.py "$CONFIG" "$WORK_DIR/final.pth" --out "$WORK_DIR/metrics.json" \
  --show-dir "$WORK_DIR/pictures"

say "5/5  one scene in 3-D"
"$RUN" tools/visualize.py "$CONFIG" "$WORK_DIR/final.pth" --index 0 --view 3d \
  --out "$WORK_DIR/boxes.png"

"$RUN" - "$WORK_DIR" "$((SECONDS - START))" <<'PY'
import json, sys
from pathlib import Path

folder, seconds = Path(sys.argv[1]), int(sys.argv[2])
metrics = json.loads((folder / "metrics.json").read_text())
print(f"""
----------------------------------------------------------------------
sparse3d quickstart: done in {seconds // 60} min {seconds % 60} s

  mAP on unseen streets   {metrics["mAP"]:.3f}
  all numbers             {folder}/metrics.json
  predicted and true      {folder}/boxes.png and {folder}/pictures/
  checkpoint              {folder}/final.pth
  the experiment          configs/detection/dsvt_pillar_world.py

Next: README.md, "Your own data".
----------------------------------------------------------------------""")
PY
