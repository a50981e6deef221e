"""Trains the small detector of the drawn world and writes it as one file. The packaged one was made so, with the seed
of the drawing not that of the demo, so that the demo's pictures are unseen (some 15 minutes on one core):

python tools/draw_world.py --out WORLD --train 3000 --val 200 --alone 1 --seed 7
python tools/train_detector.py --world WORLD --out unimo_ds/vision/weights/world.safetensors --steps 4000 --bf16
"""

import argparse
from pathlib import Path

from unimo_ds.vision.training import TrainingPlan, train_detector


def main() -> None:
    plan = TrainingPlan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="folder with images/ and annotations/")
    parser.add_argument("--out", type=Path, required=True, help="detector file to write (.safetensors)")
    parser.add_argument("--steps", type=int, default=plan.steps)
    parser.add_argument("--batch", type=int, default=plan.batch)
    parser.add_argument("--peak-rate", type=float, default=plan.peak_rate)
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--bf16", action="store_true", help="convolve in bfloat16: faster where the CPU has it")
    chosen = parser.parse_args()
    plan = TrainingPlan(chosen.steps, chosen.batch, chosen.peak_rate, seed=chosen.seed, bf16=chosen.bf16)
    flags = f"--steps {plan.steps} --batch {plan.batch} --peak-rate {plan.peak_rate} --seed {plan.seed}{' --bf16' * plan.bf16}"
    quality = train_detector(chosen.world, chosen.out, plan, f"python tools/train_detector.py --world WORLD --out FILE {flags}")
    print(f"AP50 {quality.ap50:.3f}, AP {quality.ap:.3f}, attribute accuracy {quality.attribute_accuracy:.3f}: {chosen.out}")


if __name__ == "__main__":
    main()
