"""Recipe: every training setting once, with default, unit and range; one dataclass = flags = YAML.

In:  a recipe's name or YAML file, and what the flags override.
Out: a frozen `Recipe`; its YAML form, saved in the run folder as args.yaml.
Elsewhere: what the settings do (distill.data, distill.training.trainer); flags (runtime.cli.flags).
"""

from __future__ import annotations

import json
import math
import re
import typing
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from runtime.cli.nearest import nearest
from runtime.errors import UsageError

EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def _flag(*aliases: str) -> Any:
    return tyro.conf.arg(aliases=list(aliases))


@dataclass(frozen=True)
class Recipe:
    """How a student is trained. Every field is a flag (`kd_loss` is --kd-loss) and a YAML key."""

    # data
    data: Annotated[str, _flag("--data-dir")] = ""
    """Training images: a folder (with train/ and val/, one sub-folder per class), a .tar, npz:FILE, digits,
    or a name timm reads with its folder after a colon (torch/cifar10:DIR, hfds/NAME, wds/NAME:DIR,
    tfds/NAME:DIR)."""
    val_data: str = ""
    """Validation images when --data does not hold them: the same forms."""
    img_size: Annotated[int, _flag("--imgsz")] = 0
    """Side of the student's input, pixels; 0 takes what the student's architecture declares."""
    crop_pct: float = 0.0
    """Validation crops this share of the side it resizes to; 0 takes what the architecture declares (1 with
    --crop-padding)."""
    num_classes: int = 0
    """Number of classes; only needed for streamed data (wds, hfids, tfds), whose classes have no names."""
    skip_bad_images: bool = False
    """Leave unreadable images out (training takes the next one instead) and count them; otherwise the first
    one stops the run."""
    workers: Annotated[int, _flag("-j")] = -1
    """Processes that read and augment images; -1: up to 8 with a GPU, none on a CPU."""

    # student and teacher
    student: str = "resnet18"
    """Architecture to train: any timm model, or this project's own (resnet20, ...)."""
    student_args: tuple[str, ...] = ()
    """Arguments of the architecture as KEY=VALUE, for example width=0.5 or dims=[16,32]."""
    student_ckpt: str = ""
    """Weights to start from instead of fresh ones."""
    teacher: str = "auto"
    """Teacher's architecture; auto: what --teacher-ckpt says, and without one no teacher; none: labels
    alone."""
    teacher_ckpt: str = ""
    """Teacher's weights: our best.pth, or a file of timm, torchvision or the authors."""
    teacher_args: tuple[str, ...] = ()
    """Arguments of the teacher's architecture as KEY=VALUE."""
    teacher_dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Precision the teacher computes in; auto: the student's --amp-dtype with --amp, else fp32."""

    # losses
    kd_loss: Literal[
        "kl",
        "nkd",
        "dkd",
        "dist",
        "lskd",
        "lskd_dkd",
        "mlkd",
        "ofa",
        "binary_kl",
        "deit_soft",
        "deit_hard",
        "none",
    ] = "kl"
    """Distillation loss on the logits (kl is Hinton's); none: only --feature-loss."""
    kd_temperature: float | None = None
    """Softens both networks' classes, above 0; None takes the loss's own default (kl 4, nkd 1). Losses
    without one ignore it."""
    kd_gamma: float | None = None
    """Weight of NKD's other classes, DIST's columns or MLKD's classes, 0 or more; None: the loss's own.
    Others ignore it."""
    kd_args: tuple[str, ...] = ()
    """Any other setting of the loss as KEY=VALUE, for example alpha=1 beta=8 (dkd) or mixed_labels=both (nkd,
    dkd, ofa)."""
    distill_loss_weight: float = 1.0
    """Weight of --kd-loss, 0 or more."""
    feature_loss: Literal["none", "fitnets", "at", "rkd", "reviewkd", "fd", "mgd", "srrl", "ofa_stages"] = (
        "none"
    )
    """Distillation loss on feature maps, beside --kd-loss."""
    feature_weight: float = 1.0
    """Its weight, 0 or more. Scales differ much between losses: see `distill.losses` for what their papers
    used."""
    feature_stages: str = ""
    """Which stages it compares: last, all, or pairs STUDENT:TEACHER as in 2:3,4:4; empty: what the loss's
    paper does."""
    feature_args: tuple[str, ...] = ()
    """Its settings as KEY=VALUE, for example target_norm=map (fd)."""
    losses: tuple[str, ...] = ()
    """Several losses at once, in place of the flags above: NAME:KEY=VALUE,... with weight (1) and stages
    among the keys, for example nkd:temperature=1 fd:weight=0.5,stages=last. In YAML a list of mappings with
    name, weight and settings will do."""
    task_loss_weight: float = 1.0
    """Weight of the cross-entropy with the labels beside a teacher, 0 or more; without a teacher it is 1."""
    smoothing: float = 0.0
    """Label smoothing, 0 to below 1."""

    # length and batch
    epochs: int = 100
    """Passes over the training images."""
    batch: Annotated[int, _flag("-b", "--batch-size")] = 128
    """Images per forward pass."""
    grad_accum: Annotated[int, _flag("--grad-accum-steps")] = 1
    """Forward passes per optimizer step."""
    eval_batch: int = 256
    """Images per forward pass in validation."""

    # optimizer and schedule
    opt: str = "adamw"
    """Optimizer, by timm's name: adamw, sgd (with Nesterov momentum), lamb, ..."""
    lr: float | None = None
    """Peak learning rate; None: --lr-base scaled to the batch."""
    lr_base: float = 1e-3
    """Learning rate at --lr-base-size images per step, scaled linearly."""
    lr_base_size: int = 256
    """Images per step that --lr-base is meant for."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.05
    """Not applied to biases and norms."""
    layer_decay: float | None = None
    """Learning rate of each layer group relative to the next, 0 to 1; None: all equal."""
    clip_grad: float | None = None
    """Largest norm of all gradients together; None: no clipping."""
    sched: str = "cosine"
    """Schedule, by timm's name: cosine, poly, tanh; step (every third of the run) or multistep (at half and
    three quarters)."""
    warmup_epochs: float = 5.0
    """Epochs of linear warm-up."""
    warmup_lr: float = 1e-6
    """Learning rate the warm-up starts from."""
    min_lr: float = 1e-6
    """Learning rate the schedule ends at."""

    # augmentation
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image area that a random crop keeps."""
    ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Aspect ratio of a random crop."""
    crop_padding: int = 0
    """Above 0: pad by that many pixels and crop at random, the usual for small images, instead of --scale and
    --ratio."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.0
    """Strength of brightness, contrast and saturation changes; unused with --aa."""
    aa: str = ""
    """Auto-augment policy in timm's words, for example rand-m9-mstd0.5-inc1."""
    train_interpolation: Literal["random", "bilinear", "bicubic"] = "bicubic"
    """Filter of the random resize."""
    reprob: float = 0.0
    """Probability of random erasing."""
    remode: Literal["const", "rand", "pixel"] = "pixel"
    """What is erased is filled with this."""
    mixup: float = 0.0
    """Mixup's alpha; 0 is off."""
    cutmix: float = 0.0
    """CutMix's alpha; 0 is off."""
    mixup_prob: float = 1.0
    """Share of batches mixed."""
    mixup_switch_prob: float = 0.5
    """Of those, share that is cut instead of mixed when both are on."""

    # regularization
    drop: float = 0.0
    """Dropout before the classifier."""
    drop_path: float = 0.0
    """Stochastic depth of the last block."""
    model_ema: bool = False
    """Keep an exponential moving average of the weights; it is validated and saved as best.pth."""
    model_ema_decay: float = 0.9998
    """Its decay per step."""
    model_ema_warmup: bool = True
    """Let the decay grow from 0 in early steps."""

    # dynamic sparsity, as SLaK's teachers are trained
    sparsity: float = 0.0
    """Share of the weights that stays 0 while training, 0 (off) to below 1; which ones changes now and then.
    SLaK takes 0.4."""
    sparse_update_every: int = 2000
    """Optimizer steps between changes (SLaK-T 2000; S and B 100)."""
    sparse_prune_rate: float = 0.5
    """Share of a layer's weights exchanged at the first change, 0 to 1; falls along a cosine to 0.005 (S and
    B begin at 0.3)."""
    sparse_growth: Literal["random", "gradient"] = "random"
    """New weights by chance, or where the gradient is largest (RigL)."""
    sparse_only_large: bool = False
    """Mask large depthwise kernels alone."""

    # machine
    device: str = "auto"
    """cpu, cuda, cuda:INDEX; auto: cuda where there is one."""
    amp: bool = False
    """Mixed precision for the student."""
    amp_dtype: Literal["bf16", "fp16"] = "bf16"
    """Its type; fp16 scales the loss."""
    channels_last: bool = True
    """Memory format NHWC."""
    compile: bool = False
    """Compile student and teacher with torch.compile."""
    seed: int = 0
    """Of weights, order and augmentation. The same seed gives the same run on the same machine and
    versions."""
    checkpoint_minutes: float = 5.0
    """last.pth is written at least this often, and after every epoch."""
    tensorboard: bool = False
    """Also write TensorBoard events to the run folder."""

    def __post_init__(self) -> None:
        for field in fields(self):  # YAML gives lists
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        self._check()

    def _check(self) -> None:
        def need(condition: bool, name: str, expected: str) -> None:
            if not condition:
                raise UsageError(f"{name.replace('_', '-')} {getattr(self, name)!r}: expected {expected}")

        for name in ("epochs", "batch", "grad_accum", "eval_batch", "lr_base_size"):
            need(getattr(self, name) >= 1, name, "1 or more")
        for name in (
            "distill_loss_weight",
            "feature_weight",
            "task_loss_weight",
            "weight_decay",
            "mixup",
            "cutmix",
            "crop_padding",
            "warmup_epochs",
            "min_lr",
            "warmup_lr",
            "img_size",
            "num_classes",
            "checkpoint_minutes",
            "color_jitter",
            "seed",
        ):
            need(getattr(self, name) >= 0, name, "0 or more")
        for name in (
            "hflip",
            "reprob",
            "mixup_prob",
            "mixup_switch_prob",
            "drop",
            "drop_path",
            "model_ema_decay",
            "sparse_prune_rate",
        ):
            need(0 <= getattr(self, name) <= 1, name, "0 to 1")
        need(0 <= self.sparsity < 1, "sparsity", "0 to below 1")
        need(self.sparse_update_every >= 1, "sparse_update_every", "1 or more")
        need(0 <= self.smoothing < 1, "smoothing", "0 to below 1")
        need(self.kd_temperature is None or self.kd_temperature > 0, "kd_temperature", "above 0")
        need(0 <= self.crop_pct <= 1, "crop_pct", "0 to 1")
        need(self.kd_gamma is None or self.kd_gamma >= 0, "kd_gamma", "0 or more")
        need(
            0 < self.scale[0] <= self.scale[1] <= 1,
            "scale",
            "two shares above 0, at most 1, the smaller first",
        )
        need(0 < self.ratio[0] <= self.ratio[1], "ratio", "two ratios above 0, the smaller first")
        need(self.lr is None or (self.lr > 0 and math.isfinite(self.lr)), "lr", "above 0")
        need(self.lr_base > 0, "lr_base", "above 0")
        need(self.clip_grad is None or self.clip_grad > 0, "clip_grad", "above 0")
        need(self.layer_decay is None or 0 < self.layer_decay <= 1, "layer_decay", "above 0, at most 1")
        need(self.workers >= -1, "workers", "-1 or more")
        need(
            not self.losses or self.feature_loss == "none",
            "feature_loss",
            "none beside --losses: name it there",
        )
        need(
            self.kd_loss != "none" or self.feature_loss != "none" or bool(self.losses),
            "kd_loss",
            "a loss, because there is no --feature-loss",
        )
        need(
            self.teacher != "none" or not self.teacher_ckpt,
            "teacher",
            "a name or auto, because --teacher-ckpt is given",
        )
        need(
            not (self.mixup or self.cutmix) or self.batch % 2 == 0,
            "batch",
            "an even number with mixup or cutmix",
        )

    @property
    def peak_lr(self) -> float:
        """The learning rate at the top of the schedule."""
        return (
            self.lr
            if self.lr is not None
            else self.lr_base * self.batch * self.grad_accum / self.lr_base_size
        )


def named() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(
        file.name.removesuffix(".yaml")
        for file in resources.files("distill.recipes").iterdir()
        if file.name.endswith(".yaml")
    )


def load(name_or_file: str, base: Recipe | None = None) -> Recipe:
    """A shipped recipe by name, or a YAML file; keys it leaves out keep the value of `base`.

    Raises UsageError for an unknown name, an unknown key (nearest suggested) or a value of the wrong type.
    """
    return from_dict(read(name_or_file), name_or_file, base or Recipe())


def read(name_or_file: str) -> dict[str, Any]:
    """The keys and values of a shipped recipe or a YAML file, unchecked. Raises UsageError when there are
    none to read.
    """
    import yaml

    try:
        if name_or_file in named():
            text = (
                resources.files("distill.recipes")
                .joinpath(f"{name_or_file}.yaml")
                .read_text(encoding="utf-8")
            )
        elif Path(name_or_file).is_file():
            text = Path(name_or_file).read_text(encoding="utf-8")
        else:
            raise UsageError(
                f"no recipe {name_or_file!r}{nearest(name_or_file, set(named()))} "
                f"Shipped: {', '.join(named())}; or give a YAML file"
            )
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{name_or_file}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UsageError(f"{name_or_file}: expected lines of `key: value`")
    return values


def from_dict(values: dict[str, Any], name: str, base: Recipe) -> Recipe:
    """`base` with `values` put in; types are checked, 1 is taken for 1.0 and 1e-3 (YAML: text) for
    a number.
    """
    return replace(base, **typed(values, Recipe, name))


def typed(values: dict[str, Any], kind: type, name: str) -> dict[str, Any]:
    """`values` as the fields of the dataclass `kind` declare them. Raises UsageError naming the key."""
    hints = typing.get_type_hints(kind)
    checked = {}
    for key, value in values.items():
        plain = str(key).replace("-", "_")
        if plain not in hints:
            raise UsageError(f"{name}: unknown key {key!r}{nearest(plain, set(hints))}")
        if plain == "losses" and isinstance(value, list):
            value = [_loss_as_text(entry, f"{name}: {key}") for entry in value]
        checked[plain] = _typed(value, hints[plain], f"{name}: {key}")
    return checked


def to_yaml(recipe: Recipe) -> str:
    """All settings as YAML, in the order of the dataclass."""
    return yaml_lines({f.name: getattr(recipe, f.name) for f in fields(Recipe)})


def yaml_lines(values: dict[str, Any]) -> str:
    """`key: value` lines; tuples as lists."""
    import yaml

    return yaml.safe_dump(
        {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}, sort_keys=False
    )


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain values, tuples as lists."""
    names = {f.name for f in fields(Recipe)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items() if k in names}


def key_values(pairs: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE pairs as a dict; values are read as YAML (numbers, lists, true), and 1e-3 as the number it
    is.

    Raises UsageError without `=`.
    """
    import yaml

    result = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{pair!r}: expected KEY=VALUE, for example width=0.5")
        try:
            result[key] = _with_exponents(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise UsageError(
                f"{pair!r}: the value cannot be read ({' '.join(str(error).split())})"
            ) from error
    return result


def _with_exponents(value: Any) -> Any:
    """Numbers as 1e-3, which YAML 1.1 takes for words because they have no point, or no sign behind the e."""
    if isinstance(value, list):
        return [_with_exponents(item) for item in value]
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def _loss_as_text(entry: Any, where: str) -> Any:
    """{name: fd, weight: 0.5} -> fd:weight=0.5, the form that the flag has; text stays as it is."""
    if not isinstance(entry, dict):
        return entry
    if not isinstance(entry.get("name"), str):
        raise UsageError(
            f"{where} has an entry {entry!r}; expected a name in it, as in {{name: fd, weight: 0.5}}"
        )
    settings = ",".join(f"{key}={json.dumps(value)}" for key, value in entry.items() if key != "name")
    return entry["name"] + (f":{settings}" if settings else "")


def _typed(value: Any, hint: Any, where: str) -> Any:
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        if value in options:
            return value
        raise UsageError(f"{where} is {value!r}; expected one of {', '.join(map(str, options))}")
    if type(None) in options:
        return None if value is None else _typed(value, options[0], where)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, (list, tuple)) and (options[-1] is Ellipsis or len(value) == len(options)):
            return tuple(_typed(v, options[0], where) for v in value)
        raise UsageError(f"{where} is {value!r}; expected a list")
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            raise UsageError(f"{where} is {value!r}; expected a number") from None
    if hint is str and value is None:
        return ""
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UsageError(
            f"{where} is {value!r}; expected {'true or false' if hint is bool else hint.__name__}"
        )
    return value
