"""medseg from Python: make a small data set, train on it, predict one volume, evaluate a folder.

    python examples/python_api.py FOLDER

Takes about a minute. The same as `medseg train`, `predict` and `evaluate`.
"""

import sys
from pathlib import Path

import nibabel as nib

import medseg
from medseg.volumes import phantom

RUN = """
name: example
data: {layout: nnunet, path: data}
preprocess: {spacing: [3, 3, 3], normalise: [{name: zscore, region: nonzero}]}
model:
  encoder: {name: resnet, widths: [8, 16, 32]}
  decoder: unet
  deep_supervision: 1
train: {patch: [32, 32, 32], budget: {steps: 150}}
evaluation: {lesions: true}
"""


def main(folder: Path) -> None:
    """Run the example in a folder."""
    phantom.generate(folder / "data", cases=6, seed=1)
    (folder / "run.yaml").write_text(RUN)

    # A config is checked whole before anything else happens; overrides are as on the command line.
    config = medseg.load_config(folder / "run.yaml", ["train.lr=1e-2"])
    summary = medseg.train(config, folder / "run")
    print(f"validation: mean Dice {summary['mean_dice']:.3f}")

    # One volume: a path a channel, a nibabel image, or an array with its affine.
    predictor = medseg.Predictor.load(folder / "run")
    channels = sorted((folder / "data" / "imagesTr").glob("head_001_*.nii.gz"))
    prediction = predictor.predict(channels)
    lesion_ml = (prediction.labels > 0).sum() * prediction.voxel_mm3 / 1000
    print(f"head_001: {prediction.labels.shape} voxels, {lesion_ml:.1f} mL of lesion")
    nib.save(nib.Nifti1Image(prediction.labels, prediction.affine), folder / "head_001.nii.gz")

    # A folder: one bad case costs one case, and a second run does only what is missing or stale.
    outcome = medseg.predict(folder / "run", folder / "data" / "imagesTr", folder / "masks")
    print(f"{len(outcome.done)} predicted, {len(outcome.failed)} failed")
    scores = medseg.evaluate(folder / "masks", config, folder / "scores")
    print(f"all cases: mean Dice {scores['mean_dice']:.3f}, {folder / 'scores' / 'report.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
