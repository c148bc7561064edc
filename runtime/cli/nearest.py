"""What was probably meant by a word that is not known.

In:  the word; the words that are known.
Out: the end of a sentence: "; did you mean X?", or a full stop.
Elsewhere: the sentences themselves, in every message about an unknown word.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from .settings import Setting

SYNONYMS = {
    "accumulate": ("grad_accum",),
    "alpha": ("distill_loss_weight",),
    "amp_bf16": ("amp",),
    "arch": ("student", "model"),
    "architecture": ("student", "model"),
    "artifact": ("engine", "artifact", "file"),
    "auto_augment": ("aa",),
    "autoaugment": ("aa",),
    "backend": ("engine_backend",),
    "bs": ("batch",),
    "calib_data": ("calib",),
    "calibration": ("calib",),
    "checkpoint": ("checkpoint", "checkpoints", "student_ckpt"),
    "ckpt": ("checkpoint", "checkpoints", "student_ckpt"),
    "class_weight": ("class_weights",),
    "clip_grad_norm": ("clip_grad",),
    "cuda": ("device",),
    "data_path": ("data",),
    "dataset": ("data",),
    "dropout": ("drop",),
    "engine": ("engine", "artifact", "file"),
    "early_stopping": ("early_stop",),
    "ema": ("model_ema",),
    "ema_decay": ("model_ema_decay",),
    "force": ("overwrite",),
    "eval_metric": ("select",),
    "fp32": (),
    "gpu": ("device",),
    "gpus": ("device",),
    "gradient_accumulation_steps": ("grad_accum",),
    "half": ("fp16", "amp"),
    "image_size": ("img_size",),
    "images": ("data",),
    "input_size": ("img_size",),
    "iters": ("iterations",),
    "kd_t": ("kd_temperature",),
    "label_smoothing": ("smoothing",),
    "learning_rate": ("lr",),
    "learningrate": ("lr",),
    "lr_scheduler": ("sched",),
    "max_batch_size": ("max_batch", "batch"),
    "max_grad_norm": ("clip_grad",),
    "model": ("model", "student", "engine", "artifact", "file"),
    "monitor": ("select",),
    "n_epochs": ("epochs",),
    "network": ("student", "model"),
    "num_epochs": ("epochs",),
    "num_threads": ("threads",),
    "num_workers": ("workers",),
    "onnx": ("engine", "artifact", "file"),
    "optim": ("opt",),
    "optimizer": ("opt",),
    "out": ("output",),
    "output_dir": ("output",),
    "patience": ("early_stop",),
    "path": ("data", "engine", "artifact", "file"),
    "plan": ("engine", "artifact", "file"),
    "precision": ("fp16", "amp_dtype"),
    "pretrained": ("student_ckpt", "checkpoint"),
    "quantize": ("int8",),
    "resolution": ("img_size",),
    "resume_from": ("resume",),
    "runs": ("iterations",),
    "save_dir": ("output",),
    "scheduler": ("sched",),
    "size": ("img_size",),
    "t": ("kd_temperature",),
    "teacher_weights": ("teacher_ckpt",),
    "temp": ("kd_temperature",),
    "temperature": ("kd_temperature",),
    "train_data": ("data",),
    "verbose": (),
    "wd": ("weight_decay",),
    "weights": ("student_ckpt", "checkpoint", "checkpoints", "engine", "file"),
    "yaml": ("recipe",),
}
"""What neighboring tools call a setting -> what it may be called here; the first that the command has."""


def nearest(word: str, known: Sequence[str] | set[str]) -> str:
    """'; did you mean X?' for the closest of `known`, or a full stop."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else "."


def nearest_flag(typed: str, settings: Iterable[Setting]) -> str:
    """'; did you mean --opt?' for a flag that the command has not: a synonym first, then the closest in
    spelling; never a --no- form of what cannot be turned off.
    """
    by_name = {setting.name: setting for setting in settings}
    word = typed[2:].replace("-", "_").lower()
    if word in SYNONYMS:
        meant = _synonym(word, by_name)
        return _meant(meant) if meant else "."
    known = {flag[2:]: flag for s in by_name.values() for flag in s.words if flag.startswith("--")}
    if word.startswith("no_"):  # compared without it, which all of them share
        word = word.removeprefix("no_")
        known = {s.negated[len("--no-") :]: s.negated for s in by_name.values() if s.negated and s.words}
    close = difflib.get_close_matches(word.replace("_", "-"), sorted(known), n=1, cutoff=0.66)
    return f"; did you mean {known[close[0]]}?" if close else "."


def nearest_keyword(word: str, settings: Iterable[Setting]) -> str:
    """The same for a keyword of a Python function, which has the name of the field."""
    by_name = {setting.name: setting for setting in settings}
    if word in SYNONYMS:
        meant = _synonym(word, by_name)
        return f"; did you mean {meant.name}?" if meant else "."
    close = difflib.get_close_matches(word, sorted(by_name), n=1, cutoff=0.66)
    return f"; did you mean {close[0]}?" if close else "."


def _synonym(word: str, by_name: Mapping[str, Setting]) -> Setting | None:
    return next((by_name[name] for name in SYNONYMS[word] if name in by_name), None)


def _meant(setting: Setting) -> str:
    if setting.flag.positional:
        return f"; give {setting.label} without a flag."
    return f"; did you mean {setting.words[0]}?"
