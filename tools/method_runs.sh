#!/bin/bash
# The runs that settle what GTM is worth and why the student does not reach its teacher, on the synthetic benchmark; then
# weak against full supervision on real frames. Data and the 2D detector as the heads of config/train/synthetic.yaml and
# real.yaml say. Every call resumes where it stopped; its results are each ablation.json, and test_sets.json. What was run
# before lies in docs/results, NAME.json and NAME_test_sets.json for runs/NAME, and is not run again.
#
#   tools/method_runs.sh gtm [SEEDS] | gtm-long FORM [SEEDS] | gap [SEEDS] | real [SEEDS]      JOBS=2 runs at a time
set -e
cd "$(dirname "$0")/.."
JOBS=${JOBS:-2}
PYTHON=${PYTHON:-python}
SYNTHETIC=config/train/synthetic.yaml

ablate() { # CONFIG OUT ROWS SEEDS [section.key=value ...]
    local config=$1 out=$2 rows=$3 seeds=$4 options=()
    shift 4
    local before=docs/results/${out##*/}.json
    if [ ! -e "$out/ablation.json" ] && [ -e "$before" ]; then
        mkdir -p "$out"
        cp "$before" "$out/ablation.json"
        before=${before%.json}_test_sets.json
        if [ -e "$before" ]; then cp "$before" "$out/test_sets.json"; fi
    fi
    for item in "$@"; do options+=(--set "$item"); done
    "$PYTHON" -m skd_core.cli ablate "$config" --out "$out" --rows "$rows" --seeds "$seeds" --jobs "$JOBS" "${options[@]}"
}

compare() { # the row that is compared with, then folders
    "$PYTHON" tools/compare_runs.py "$@"
}

case "$1" in
gtm) # 600 steps each: GTM's forms against none (distill_uad) and damp_teacher (full of gtm_none)
    seeds=${2:-3}
    ablate $SYNTHETIC runs/gtm_none distill_uad,full "$seeds"
    ablate $SYNTHETIC runs/gtm_lift_labels full "$seeds" method.gtm_form=lift_student method.gtm_measure=labels
    ablate $SYNTHETIC runs/gtm_lift_slope full "$seeds" method.gtm_form=lift_student method.gtm_measure=loss_slope
    ablate $SYNTHETIC runs/gtm_objects full "$seeds" method.gtm_form=per_object method.gtm_measure=labels
    ablate $SYNTHETIC runs/gtm_feedback full "$seeds" method.gtm_form=feedback
    compare runs/gtm_none:distill_uad runs/gtm_none runs/gtm_lift_labels runs/gtm_lift_slope runs/gtm_objects runs/gtm_feedback
    ;;
gtm-long) # 1800 steps of one form, such as: gtm-long "method.gtm_form=lift_student method.gtm_measure=labels"
    seeds=${3:-3}
    ablate $SYNTHETIC runs/long_none distill_uad "$seeds" schedule.epochs=9 schedule.eval_every=9
    # shellcheck disable=SC2086
    ablate $SYNTHETIC runs/long_form full "$seeds" schedule.epochs=9 schedule.eval_every=9 $2
    compare runs/long_none:distill_uad runs/long_form
    ;;
gap) # one cause at a time, without GTM, 400 steps (long: 800) from data/street/first.safetensors (see real.yaml): a screen of one seed
    seeds=${2:-1}
    ablate $SYNTHETIC runs/gap_base distill_uad "$seeds" initial.weights=data/street/first.safetensors schedule.epochs=2 schedule.eval_every=2
    ablate $SYNTHETIC runs/gap_ema distill_uad "$seeds" initial.weights=data/street/first.safetensors schedule.epochs=2 schedule.eval_every=2 method.ema_teacher=true
    ablate $SYNTHETIC runs/gap_cosine distill_uad "$seeds" initial.weights=data/street/first.safetensors schedule.epochs=2 schedule.eval_every=2 method.features=cosine
    ablate $SYNTHETIC runs/gap_long distill_uad "$seeds" initial.weights=data/street/first.safetensors schedule.epochs=4 schedule.eval_every=4
    compare runs/gap_base:distill_uad runs/gap_ema:distill_uad runs/gap_cosine:distill_uad runs/gap_long:distill_uad
    ;;
real) # 720 steps each: weak and supervised over SEEDS, the two other rows over one
    ablate config/train/real.yaml runs/real weak,supervised "${2:-3}"
    ablate config/train/real.yaml runs/real rendered,real_2d 1
    cat runs/real/test_sets.md
    for boxes in labels ${YOLOX:+"$YOLOX"}; do # and without a network
        "$PYTHON" -m skd_core.cli eval real data/street/astyx:val data/street/kitti_labelled --lift --kind Car \
            --boxes "$boxes" --threshold 0.2
    done
    ;;
*)
    sed -n '2,7p' "$0"
    exit 2
    ;;
esac
