"""The peer: nnU-Net 2's own planning, trainer and predictor, for a number of CPU seconds.

    python benchmarks/accuracy_parts/nnunet.py prepare job.json
    python benchmarks/accuracy_parts/nnunet.py train job.json

job.json: {"folder", "train": [{"id", "image", "label"}], "validation": [{"id", "image"}],
"channel", "classes": [names], "seconds", "seed", "output"}. `prepare` writes nnU-Net's data set of
the training cases alone into `folder`, plans and preprocesses it; `train` trains 3d_fullres and
writes a mask `ID.nii.gz` for each validation case into `output`. Both print JSON on their last
line. Runs in an environment that has nnunetv2; nothing else of this repository is imported.

All is as it comes (network, patch and batch of its plans, fp32 as on every CPU, loss, SGD with
Nesterov momentum .99 from .01, its augmentation, its predictor with mirroring) but for three
things. The polynomial of the learning rate falls with the share of the CPU seconds that are spent,
step by step, where nnU-Net's falls over 1000 epochs of 250 steps: so it anneals over the budget
whatever a step takes. There is no online validation, which would only log. And augmentation runs in
the training process (nnU-Net's own single-threaded augmenter), so that its CPU seconds count.
What counts is the process that trains, from its start; planning and preprocessing do not.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

_NAME, _ID = "Dataset001_Benchmark", 1


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Plan and preprocess; tells the CPU seconds that it took."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    raw = Path(job["folder"]) / "raw" / _NAME
    raw.mkdir(parents=True, exist_ok=True)
    cases = {c["id"]: {"images": [c["image"]], "label": c["label"]} for c in job["train"]}
    labels = {"background": 0, **{name: n + 1 for n, name in enumerate(job["classes"])}}
    about = {
        "channel_names": {"0": job["channel"]}, "labels": labels, "file_ending": ".nii.gz",
        "numTraining": len(cases), "dataset": cases,
    }  # fmt: skip
    (raw / "dataset.json").write_text(json.dumps(about))
    api.extract_fingerprints([_ID], num_processes=1, verbose=False, show_progress_bar=False)
    api.plan_experiments([_ID])
    api.preprocess([_ID], configurations=["3d_fullres"], num_processes=[1], verbose=False)
    plans = json.loads(Path(job["folder"], "preprocessed", _NAME, "nnUNetPlans.json").read_text())
    mine = plans["configurations"]["3d_fullres"]
    return {
        "cpu_s": sum(_cpu_seconds(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)),
        "patch": mine["patch_size"],
        "batch": mine["batch_size"],
    }


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train until the CPU seconds are spent, and predict with the last weights."""
    import numpy as np
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.set_num_threads(1)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(job["seed"])
    folder = Path(job["folder"]) / "preprocessed" / _NAME
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    trainer: Any = nnUNetTrainer(
        plans | {"continue_training": False}, "3d_fullres", "all",
        json.loads((folder / "dataset.json").read_text()), torch.device("cpu"),
    )  # fmt: skip
    trainer.on_train_start()
    trainer.network.train()
    started, steps, losses = time.process_time(), 0, []
    while (fraction := time.process_time() / job["seconds"]) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - fraction) ** 0.9
        losses.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
        steps += 1
    spent = time.process_time()
    if not steps:
        raise SystemExit(f"no step within {job['seconds']} CPU seconds: start-up took {spent:.0f}")
    _predict(trainer, job)
    last = losses[-max(1, steps // 10) :]
    return {
        "steps": steps, "cpu_s": spent, "s_per_step": (spent - started) / steps,
        "loss": sum(last) / len(last),
    }  # fmt: skip


def _predict(trainer: Any, job: dict[str, Any]) -> None:
    """Write the masks, as `nnUNetv2_predict` would."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=True,
        perform_everything_on_device=False, device=trainer.device, allow_tqdm=False,
    )  # fmt: skip
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager,
        [trainer.network.state_dict()], trainer.dataset_json, "nnUNetTrainer",
        trainer.inference_allowed_mirroring_axes,
    )  # fmt: skip
    Path(job["output"]).mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files_sequential(
        [[case["image"]] for case in job["validation"]],
        [f"{job['output']}/{case['id']}" for case in job["validation"]],
    )


def _cpu_seconds(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Do what the first argument says."""
    part, file = sys.argv[1:]
    job = json.loads(Path(file).read_text())
    results = job.get("results", job["folder"])
    for name, place in (
        ("raw", f"{job['folder']}/raw"),
        ("preprocessed", f"{job['folder']}/preprocessed"),
        ("results", f"{results}/results"),
    ):
        os.environ[f"nnUNet_{name}"] = place
    workers = "0" if part == "train" else "1"  # planning takes it for a number of threads
    os.environ |= {"nnUNet_n_proc_DA": workers, "nnUNet_def_n_proc": "1", "nnUNet_compile": "0"}
    print(json.dumps({"prepare": prepare, "train": train}[part](job)), flush=True)


if __name__ == "__main__":  # its workers are spawned
    main()
