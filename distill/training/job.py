"""The command `distill train`: from flags to a run folder with a student, and a control if asked.

In:  a `TrainOptions`.
Out: RUN/ (student), RUN/control/ (the same without the teacher), RUN/result.json.
Elsewhere: the training itself (distill.training.trainer).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from runtime import files
from runtime.artifact import require_same_classes
from runtime.errors import UsageError

from .. import recipe as recipes
from ..recipe import Recipe
from .options import TrainOptions, run_folder

ERF_IMAGES = 50
"""Validation images that --erf averages over, as in the papers."""


def run(options: TrainOptions, make: Callable[..., Any] | None = None) -> None:
    """Train, save, print what the teacher bought. make: what trains, with the arguments of `Trainer` (the
    default).
    """
    if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        raise UsageError(
            "started as one of several processes (WORLD_SIZE): training uses one GPU, and each process would"
            " write the same run. Start it without torchrun"
        )
    folder = _prepare_folder(options)
    paths = {
        name: _absolute(getattr(options, name))
        for name in ("data", "val_data", "teacher_ckpt", "student_ckpt")
    }
    options = replace(options, **paths)
    import torch

    from .. import teacher as teachers
    from ..evaluate import pick_device
    from . import trainer

    device = pick_device(options.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what runs in fp32
    train, val, train_spec, val_spec = open_splits(options)
    preprocess = _student_preprocess(options)
    teacher = teachers.load(options, train.class_names, preprocess, device)
    if options.control and not teacher:
        raise UsageError(
            "--control trains the student once more without its teacher, and there is no teacher here. "
            "Give --teacher-ckpt, or leave --control out"
        )
    if options.erf:
        from ..erf.field import choose

        choose(
            val, ERF_IMAGES, options.seed
        )  # streamed images cannot be drawn from: said now, not after the training
    result: dict[str, Any] = {
        "run": str(folder),
        "student": options.student,
        "teacher": None,
        "control": None,
    }
    teacher_classes = None
    if teacher:
        _say(
            f"teacher: {teacher.about['model']} from {teacher.about['file'] or 'published weights'} in"
            f" {teacher.about['dtype']}"
        )
        for note in [*(teacher.about["converted"] or []), teacher.about["merged"]]:
            _say(f"teacher: {note}")
        accuracy = _teacher_accuracy(teacher, val, options, device)
        result["teacher"] = teacher.about | {"top1_percent": accuracy.top1}
        teacher_classes = accuracy.classes
        _say(f"teacher: top-1 {accuracy.top1:.2f} % on {len(val) or 'the'} validation images")
    roles = [("student" if teacher else "plain", folder, teacher)]
    if options.control and teacher:
        roles.append(("control", folder / "control", None))
    recipe = _as_recipe(options)
    lineage = trainer.lineage(recipe, train, val, train_spec, val_spec, teacher)  # once: it hashes the data
    for role, where, its_teacher in roles:
        mine, its_lineage = recipe, lineage
        if role == "control":
            mine = replace(recipe, teacher="none", teacher_ckpt="")
            its_lineage = lineage | {"teacher": None, "recipe": recipes.to_dict(mine)}
        run_ = (make or trainer.Trainer)(
            mine, where, train, val, its_teacher, device, preprocess, role, its_lineage, teacher_classes
        )
        for line in run_.notes:
            _say(line)
        if options.resume and (where / "last.pth").is_file():
            run_.resume(where / "last.pth")
            _say(
                f"{role}: resumed at epoch {run_.epoch + 1}, step {run_.updates}"
                if run_.epoch < recipe.epochs
                else f"{role}: finished already"
            )
        elif options.resume:
            _say(f"{role}: nothing was saved yet, it starts from the beginning")
        if role != "control" and options.overwrite and not options.resume:
            _remove_old_run(folder)
        if (
            role != "control"
        ):  # not earlier: a refused resume leaves the run as it was, a refused setting no run at all
            args = recipes.to_yaml(_as_recipe(options)) + recipes.yaml_lines(options.beside_recipe())
            files.write_text(folder / "args.yaml", args)
        best = run_.fit()
        key = "control" if role == "control" else "best"
        result[key] = {
            "checkpoint": str(where / "best.pth"),
            "top1_percent": best["val_top1_percent"],
            "epoch": best["epoch"],
            "loss_nats": best["val_loss_nats"],
            "images": best["val_images"],
            "teacher_agreement_percent": best["val_teacher_agreement_percent"],
            **run_.more,
        }
    if result["control"]:
        result["gain_points"] = result["best"]["top1_percent"] - result["control"]["top1_percent"]
    files.write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")
    if options.erf:
        result["erf"] = _measure_erf(options, folder, result, val_spec)
        files.write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")
    print(json.dumps(result) if options.json else _summary(result))


def open_splits(recipe: Recipe) -> tuple[Any, Any, str, str]:
    """Training and validation images and the specs to find them again; classes and their order must agree."""
    from runtime.images import has_own_split

    from ..data import TIMM_PREFIXES, open_data

    train_spec = _absolute(recipe.data)
    val_spec = _absolute(recipe.val_data) or train_spec
    train = open_data(train_spec, "train", recipe.num_classes)
    splittable = train_spec.startswith(TIMM_PREFIXES) or (
        not train_spec.endswith(".tar") and has_own_split(train_spec, "val")
    )
    if not recipe.val_data and not splittable:
        raise UsageError(
            f"{recipe.data}: has no validation images apart from the training images. "
            "Expected a val/ folder in it, or --val-data"
        )
    val = open_data(val_spec, "val", recipe.num_classes)
    require_same_classes(
        train.class_names, f"training images {train_spec}", val.class_names, f"validation images {val_spec}"
    )
    return train, val, train_spec, val_spec


def _teacher_accuracy(teacher: Any, val: Any, options: TrainOptions, device: Any) -> Any:
    """The teacher's own accuracy on its own preprocessing: shows a wrong file or normalization before any
    training.
    """
    from ..data import eval_loader
    from ..evaluate import evaluate

    loader = eval_loader(val, teacher.preprocess, options.eval_batch, options.workers, device)
    # not teacher.forward: one that is compiled now may miss the hooks that a feature loss adds later
    return evaluate(
        teacher.model,
        loader,
        device,
        amp_dtype=teacher.dtype,
        channels_last=options.channels_last,
        skip_bad=options.skip_bad_images,
    )


def _measure_erf(
    options: TrainOptions, folder: Path, result: dict[str, Any], val_spec: str
) -> list[dict[str, Any]]:
    """Effective receptive fields of the networks of this run on the same images; also a line in
    metrics.jsonl.
    """
    from ..erf.options import ErfOptions
    from ..erf.report import measure_and_write

    networks = [("student" if result["teacher"] else "plain", result["best"]["checkpoint"], "auto")]
    if result["control"]:
        networks.insert(0, ("control", result["control"]["checkpoint"], "auto"))
    if result["teacher"] and result["teacher"]["file"]:
        networks.insert(0, ("teacher", result["teacher"]["file"], result["teacher"]["model"]))
    labels, paths, names = zip(*networks, strict=True)
    _, report = measure_and_write(
        ErfOptions(
            checkpoints=paths,
            labels=labels,
            model=names,
            model_args=options.teacher_args,
            data=val_spec,
            num_images=ERF_IMAGES,
            num_classes=options.num_classes,
            seed=options.seed,
            device=options.device,
            output=folder / "erf",
            overwrite=True,
            skip_bad_images=options.skip_bad_images,
        )
    )
    records = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    files.write_text(folder / "metrics.jsonl", records + json.dumps({"erf": report["networks"]}) + "\n")
    return report["networks"]


def _student_preprocess(options: Recipe) -> Any:
    from .. import checkpoint as checkpoints
    from .. import models

    if options.student_ckpt:
        preprocess = checkpoints.load_any(options.student_ckpt, options.student).preprocess
    else:
        preprocess = models.preprocess_of(options.student)
    built_for = recipes.key_values(options.student_args).get("img_size", 0)
    if options.img_size and built_for not in (0, options.img_size):
        raise UsageError(
            f"--img-size {options.img_size} and --student-args img_size={built_for}: two sizes. Give one"
        )
    size = models.preprocess_of(
        options.student, options.img_size or built_for or preprocess.input_size[1:]
    ).input_size
    # random crops of a padded image show it at its own scale, and so must validation
    crop_pct = options.crop_pct or (1.0 if options.crop_padding else preprocess.crop_pct)
    return replace(preprocess, input_size=size, crop_pct=crop_pct)


def _prepare_folder(options: TrainOptions) -> Path:
    if options.resume:
        folder = run_folder(options.resume)
        is_new = not (
            Path(options.resume).is_file() or options.resume.endswith(".pth") or any(folder.glob("*.pth"))
        )
        if not (folder / "args.yaml").is_file() and not (
            options.data and is_new
        ):  # a script may always say --resume
            raise UsageError(
                f"{options.resume}: no run to resume (no args.yaml). Give the folder that --output named; to"
                " start from weights give --student-ckpt, or --qat --resume FILE to train them as int8"
            )
        for place in (folder, folder / "control"):
            files.remove_leftovers(place)
            if (place / "metrics.jsonl").exists() and not (place / "last.pth").exists():
                raise UsageError(
                    f"{place / 'last.pth'} is gone, so the run cannot go on bit for bit. Put it back, or"
                    f" start another run from its best weights: --student-ckpt {place / 'best.pth'} --output"
                    " OTHER"
                )
        return folder
    if not options.data:
        raise UsageError(
            "no data given. Expected --data DIR (with train/ and val/), npz:FILE, digits or torch/NAME:DIR"
        )
    folder = Path(options.output or f"runs/{options.student}")
    if (folder / "args.yaml").exists() and not options.overwrite:
        raise UsageError(
            f"{folder} holds a run already. Continue it: --resume {folder}; replace it: --overwrite; "
            "or choose another --output"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file. Choose another --output")
    written = {
        (place / name).resolve()
        for place in (folder, folder / "control")
        for name in ("best.pth", "last.pth")
    }
    for flag in ("teacher_ckpt", "student_ckpt"):
        given = getattr(options, flag)
        if given and Path(given).resolve() in written:
            raise UsageError(
                f"--{flag.replace('_', '-')} {given} would be overwritten by this run. Choose another"
                " --output"
            )
    return folder


def _remove_old_run(folder: Path) -> None:
    for place in (folder, folder / "control"):
        for name in ("last.pth", "best.pth", "summary.csv", "metrics.jsonl", "result.json"):
            (place / name).unlink(missing_ok=True)
        for events in place.glob("events.out.tfevents.*"):  # TensorBoard would draw both runs as one
            events.unlink()
    shutil.rmtree(folder / "erf", ignore_errors=True)


def _as_recipe(options: TrainOptions) -> Recipe:
    return Recipe(**{f.name: getattr(options, f.name) for f in fields(Recipe)})


def _absolute(spec: str) -> str:
    """Paths made absolute, so that a resumed run, eval and export find the files from another folder."""
    if not spec or spec == "digits":
        return spec
    if Path(spec).exists():
        return str(Path(spec).absolute())
    kind, _, path = spec.partition(":")  # npz:FILE, torch/NAME:DIR
    return f"{kind}:{Path(path).absolute()}" if path and (kind == "npz" or Path(path).exists()) else spec


def _summary(result: dict[str, Any]) -> str:
    best = result["best"]
    lines = [
        f"{best['checkpoint']}: top-1 {best['top1_percent']:.2f} % at epoch {best['epoch']}"
        f" (n={best['images']})"
    ]
    if "fp32_top1_percent" in best:
        lines[0] += (
            f" as int8; the fp32 student has {best['fp32_top1_percent']:.2f} %, "
            f"quantized without this training {best['untrained_int8_top1_percent']:.2f} %"
        )
    if result["teacher"]:
        lines[0] += f", teacher {result['teacher']['top1_percent']:.2f} %"
    if result["control"]:
        lines.append(
            f"{result['control']['checkpoint']}: control top-1 {result['control']['top1_percent']:.2f} %; "
            f"the teacher bought {result['gain_points']:+.2f} points (one seed)"
        )
    if best["teacher_agreement_percent"] is not None:
        beside = result["control"] and result["control"]["teacher_agreement_percent"]
        lines.append(
            f"student and teacher choose the same class on {best['teacher_agreement_percent']:.2f} % of the"
            " images" + (f"; control and teacher on {beside:.2f} %" if beside is not None else "")
        )
    for network in result.get("erf", []):
        shares = {
            name: ", ".join(
                f"{100 * threshold:g} % in " + ("-" if ratio is None else f"{100 * ratio:.1f} %")
                for threshold, ratio in zip(network["thresholds"], network[name]["area_ratios"], strict=True)
            )
            for name in ("reference", "scale_free")
        }
        lines.append(
            f"receptive field of the {network['label']}, share of the score in share of the area: "
            f"{shares['reference']}; scale-free {shares['scale_free']}"
        )
    if result.get("erf"):
        lines.append(f"figures in {Path(result['run']) / 'erf'}")
    return "\n".join(lines)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
