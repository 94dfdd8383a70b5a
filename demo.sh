#!/usr/bin/env bash
# The whole pipeline on real video: `make demo`. Safe to rerun: finished steps are skipped. DEMO_SHORT=1 does the same
# in a minute or two with far fewer steps, in demo-short/, as a check that everything works.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

out=demo
upscale_frames=60
study=configs/studies/demo.yaml
train_overrides=()
evaluate_options=()
if [[ "${DEMO_SHORT:-0}" == 1 ]]; then
  out=demo-short
  upscale_frames=6
  evaluate_options=(--frames 8)
  study=$out/study.yaml
  mkdir -p $out
  sed -e "s#^study_dir: .*#study_dir: $out/study#" -e 's/^num_trials: .*/num_trials: 2/' \
    -e "s#^set:#set:\n  - data.root=$out/data\n  - tracking.uri=sqlite:///$out/mlflow.db#" \
    -e 's/train.steps=.*/train.steps=6/' -e 's/train.validate_every=.*/train.validate_every=3/' \
    -e "s#train.init_generator=.*#train.init_generator=$out/run#" \
    configs/studies/demo.yaml > $study
  train_overrides=(
    --set run_dir=$out/run --set data.root=$out/data --set tracking.uri=sqlite:///$out/mlflow.db
    --set train.steps=40 --set train.warmup_steps=30 --set train.validate_every=20 --set train.checkpoint_every=20
  )
fi

title() { printf '\n\033[1m== %s\033[0m\n' "$1"; }
begin=$SECONDS

title "1/7  sample clips -> $out/clips"
vsr-dist samples $out/clips

title "2/7  shards: shots, bicubic x4 pairs, index -> $out/data  (last fifth of each clip and all of carphone held out)"
vsr-dist pack $out/clips/bikes.mp4 $out/clips/bigbuckbunny.mp4 $out/clips/carphone_pristine.mp4 \
  --out $out/data --holdout-tail 0.2 --holdout carphone_pristine --workers 2

title "3/7  GAN training on two processes (DDP over gloo) -> $out/run"
accelerate launch --config_file configs/accelerate/cpu-2.yaml \
  -m vsr_dist.train --config configs/demo.yaml --resume auto "${train_overrides[@]}"

title "4/7  evaluation on the held-out frames -> $out/evaluation"
vsr-dist evaluate --checkpoint $out/run --data $out/data --out $out/evaluation "${evaluate_options[@]}"

title "5/7  a real video upscaled with it, beside bicubic -> $out/carphone_x4.mp4, carphone_compared.mp4"
vsr-dist upscale $out/clips/carphone_pristine.mp4 $out/carphone_x4.mp4 --checkpoint $out/run \
  --frames $upscale_frames --compare $out/carphone_compared.mp4 --overwrite

title "6/7  Optuna study: the discriminator's width and gradient penalty -> $out/study"
vsr-dist study run --config $study
vsr-dist study report --config $study
vsr-dist report $out/report --runs $out/run $out/evaluation

title "7/7  done in $(( (SECONDS - begin) / 60 )) min $(( (SECONDS - begin) % 60 )) s"
cat <<END
Held-out frames, never trained on: bicubic against the generator of this run
$(cat $out/evaluation/table.txt)

  $out/data                       ordered WebDataset shards and index.json
  $out/run                        checkpoints, generator.safetensors, metrics.jsonl, summary.json
  $out/evaluation/comparison.png  input, bicubic, ours, ground truth
  $out/evaluation/videos          the same side by side as mp4
  $out/carphone_compared.mp4      bicubic and the network side by side, at four times the size
  $out/report/report.html         the run and its evaluation on one page
  $out/study/report.md            the trials, best first

Compare the runs, with charts and sample pictures over the steps, in the MLflow UI:

  .venv/bin/mlflow ui --backend-store-uri sqlite:///$out/mlflow.db

and open http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART
(pictures hide behind the parameters: in a picture card choose Configure and switch "Show run parameters" off)
END
