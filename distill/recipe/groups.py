"""Every training setting once, with default, unit and range; in groups, as the help shows them.

In:  nothing.
Out: one dataclass per group; a field is a flag (`kd_loss` is --kd-loss) and a YAML key.
Elsewhere: all groups together (distill.recipe.whole), YAML (distill.recipe.reader), ranges and metavars
(runtime.cli.settings), what the settings do (distill.data, distill.training).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from runtime.cli import settings
from runtime.cli.settings import Flag
from runtime.errors import UsageError

from .. import losses as tables


class Group:
    """What all groups do when they are made: lists of YAML become tuples, and each value is checked."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        settings.check(self)
        for part in reversed(type(self).__mro__):
            if "check" in vars(part):
                vars(part)["check"](self)

    def need(self, condition: bool, name: str, expected: str) -> None:
        """Raise UsageError naming the setting, its value and what was expected, unless `condition` holds."""
        if not condition:
            raise UsageError(f"{name.replace('_', '-')} {getattr(self, name)!r}: expected {expected}")


@dataclass(frozen=True)
class Data(Group):
    """Data: the labeled images"""

    data: Annotated[str, Flag("DATA", aliases=("--data-dir",), common=True)] = ""
    """Training images: a folder (with train/ and val/, one sub-folder per class), a list of path,label
    (FILE.csv), a .tar, npz:FILE, digits, or a name timm reads with its folder after a colon
    (torch/cifar10:DIR, hfds/NAME, wds/NAME:DIR, tfds/NAME:DIR)."""
    val_data: Annotated[str, Flag("DATA", common=True)] = ""
    """Validation images when --data does not hold them, in the forms that --data takes."""
    val_split: Annotated[float, Flag("SHARE", common=True, least=0, below=1)] = 0.0
    """Share of each class to set apart for validation, by --seed and content, where --data holds none; the
    list is kept in the run folder. 0: none."""
    csv_image: Annotated[str, Flag("COLUMN")] = ""
    """Column of a list (--data FILE.csv) that holds the paths; by default guessed from the header."""
    csv_label: Annotated[str, Flag("COLUMN")] = ""
    """Column of a list (--data FILE.csv) that holds the labels; by default guessed from the header."""
    img_size: Annotated[int, Flag("PIXELS", aliases=("--imgsz",), common=True, least=0)] = 0
    """Side of the student's input; 0 takes what the student's architecture declares."""
    crop_pct: Annotated[float, Flag("SHARE", least=0, most=1)] = 0.0
    """Share of the resized side that validation crops, 0 to 1; 0 takes what the architecture declares (1
    with --crop-padding)."""
    exif: Literal["", "ignore", "apply"] = ""
    """Treatment of images that a camera stored turned or mirrored: apply turns them as their EXIF
    orientation says, here and wherever the student is used; ignore takes them as stored, as timm and
    torchvision do. By default that of --student-ckpt, else ignore."""
    num_classes: Annotated[int, Flag("N", least=0)] = 0
    """Number of classes; only needed for streamed data (wds, hfids, tfds), whose classes have no names."""
    sampler: Literal["uniform", "balanced"] = "uniform"
    """Choice of an epoch's images: each once (uniform), or as many in all, equally many of each class, those
    of a rare class several times (balanced)."""
    skip_bad_images: bool = False
    """Leave unreadable images out (training draws another one instead), count and list them; otherwise the
    first one stops the run."""
    workers: Annotated[int, Flag("N", aliases=("-j",), least=-1)] = -1
    """Processes that read and augment images; -1: up to 8 with a GPU, none on a CPU."""
    cache: Literal["none", "ram", "disk", "device"] = "none"
    """Place where training images are kept once they are decoded: memory that the reading processes share
    (ram), --cache-folder (disk), or the device, which then also crops, flips and erases them (device: for
    images of the input's size and --crop-padding). The pixels are the same with each."""
    cache_limit: Annotated[float, Flag("GB", least=0)] = 0.0
    """Largest size of what --cache keeps; further images are decoded each time. 0: half of what is free."""
    cache_folder: str = ""
    """Folder for --cache disk; by default large2small/images where the system keeps caches (~/.cache). It
    stays for other trainings on the same images, and may be removed at any time."""


@dataclass(frozen=True)
class Networks(Group):
    """Networks: the student and its teacher"""

    student: Annotated[str, Flag("NAME", common=True)] = "auto"
    """Architecture to train: any timm model, or one of this project's own (resnet20, ...); with timm's tag
    (resnet18.a1_in1k), or from a hub or a folder as timm takes it (hf-hub:OWNER/NAME, local-dir:DIR), it
    starts from those published weights; auto: what --student-ckpt says, and without one resnet18."""
    pretrained: Annotated[bool, Flag(common=True)] = False
    """Start the student from the weights that timm publishes for it. A classifier of other classes is
    replaced by a new one."""
    student_args: Annotated[tuple[str, ...], Flag("KEY=VALUE")] = ()
    """Arguments of the student's architecture, for example width=0.5 or dims=[16,32]."""
    student_ckpt: Annotated[str, Flag("CKPT", common=True)] = ""
    """Weights to start from instead of fresh ones: a run folder, a best.pth of this project, or a file of
    timm, torchvision or others. A classifier of other classes is replaced by a new one."""
    checkpoint_key: Annotated[str, Flag("KEY")] = ""
    """Entry of a foreign --student-ckpt that holds the weights, for example ema.module; by default
    averaged weights before others."""
    mean: Annotated[tuple[float, ...], Flag("X")] = ()
    """Mean of the student's input per channel, for pixels from 0 to 1; by default what the weights or the
    architecture declare."""
    std: Annotated[tuple[float, ...], Flag("X")] = ()
    """Standard deviation of the student's input per channel."""
    interpolation: Literal["", "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] = ""
    """Filter that resizes the student's evaluation images; by default what the weights or the architecture
    declare."""
    input_size: Annotated[tuple[int, ...], Flag("PIXELS")] = ()
    """Height and width of the student's input, for one that is not square."""
    teacher: Annotated[str, Flag("NAME", common=True)] = "auto"
    """Teacher's architecture; without --teacher-ckpt its published weights, by a name as --student takes it;
    auto: what --teacher-ckpt says, and without one no teacher; none: labels alone."""
    teacher_ckpt: Annotated[str, Flag("CKPT", common=True)] = ""
    """Teacher's weights: a best.pth of this project, or a file of timm, torchvision or the authors."""
    teacher_args: Annotated[tuple[str, ...], Flag("KEY=VALUE")] = ()
    """Arguments of the teacher's architecture."""
    teacher_checkpoint_key: Annotated[str, Flag("KEY")] = ""
    """Entry of a foreign --teacher-ckpt that holds the weights."""
    teacher_mean: Annotated[tuple[float, ...], Flag("X")] = ()
    """Mean of the teacher's input per channel, for pixels from 0 to 1; by default what the weights or the
    architecture declare."""
    teacher_std: Annotated[tuple[float, ...], Flag("X")] = ()
    """Standard deviation of the teacher's input per channel."""
    teacher_interpolation: Literal["", "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] = ""
    """Filter that resizes the images of a teacher that is evaluated."""
    teacher_input_size: Annotated[tuple[int, ...], Flag("PIXELS")] = ()
    """Height and width of the teacher's input."""
    teacher_labels: Annotated[str, Flag("DIR")] = ""
    """Folder of a teacher's stored answers (distill label), in place of the teacher: its images are seen
    again bit for bit, and cost no more than plain training."""
    verify_labels: Annotated[int, Flag("N", least=0)] = 64
    """Images at the start that are compared bit for bit with those that --teacher-labels was made for."""
    teacher_fit: Annotated[Literal["head", "all", "none"], Flag(common=True)] = "head"
    """Part of a teacher with other classes that is fitted to the data first: a new classifier on its
    features (head; seconds to minutes), the whole network (all), or nothing (none: such a teacher is
    refused). The fitted teacher is kept in RUN/teacher."""
    teacher_fit_epochs: Annotated[int, Flag("N", least=1)] = 10
    """Passes over the training images with --teacher-fit all."""
    teacher_fit_lr: Annotated[float, Flag("RATE", above=0)] = 1e-4
    """Peak learning rate of --teacher-fit all."""
    teacher_dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Precision the teacher computes in; auto: bf16 on a GPU of compute capability 8.0 or newer, elsewhere
    the student's --amp-dtype with --amp, else fp32."""
    teacher_graph: bool = False
    """Record the teacher's forward pass as a CUDA graph and replay it, which spares the processor its many
    launches; only on CUDA."""
    teacher_stream: bool = False
    """Compute the teacher's forward pass on a CUDA stream of its own, beside the student's; only on CUDA."""

    def check(self) -> None:
        """Refuse a teacher's file beside `teacher none`."""
        self.need(
            self.teacher != "none" or not self.teacher_ckpt,
            "teacher",
            "a name or auto, because --teacher-ckpt is given",
        )
        self.need(
            not self.teacher_labels or (self.teacher in ("auto", "none") and not self.teacher_ckpt),
            "teacher_labels",
            "no --teacher and no --teacher-ckpt beside it: the labels are the teacher's",
        )
        self.need(
            not (self.pretrained and self.student_ckpt), "pretrained", "no --student-ckpt beside it. Give one"
        )
        self.need(
            bool(self.student_ckpt) or not self.checkpoint_key,
            "checkpoint_key",
            "--student-ckpt with it. A teacher's: --teacher-checkpoint-key",
        )
        self.need(
            bool(self.teacher_ckpt) or not self.teacher_checkpoint_key,
            "teacher_checkpoint_key",
            "--teacher-ckpt with it",
        )
        for arguments in ("student_args", "teacher_args"):
            self.need(
                not any(word.partition("=")[0] == "pretrained" for word in getattr(self, arguments)),
                arguments,
                "arguments of the network itself, and 'pretrained' is not one. Published weights:"
                " --pretrained",
            )
            self.need(
                not any(word.partition("=")[0] == "num_classes" for word in getattr(self, arguments)),
                arguments,
                "arguments without 'num_classes': the classes are those of the data",
            )
        for side in ("", "teacher_"):
            for name in (f"{side}mean", f"{side}std"):
                self.need(len(getattr(self, name)) in (0, 3), name, "three numbers, for red, green and blue")
            self.need(min(getattr(self, f"{side}std"), default=1) > 0, f"{side}std", "three numbers above 0")
            sides = getattr(self, f"{side}input_size")
            self.need(
                len(sides) in (0, 2) and min(sides, default=1) > 0, f"{side}input_size", "height and width"
            )


@dataclass(frozen=True)
class Distillation(Group):
    """Distillation: what the student learns from its teacher and from the labels"""

    kd_loss: Annotated[str, Flag(choices=(*tables.LOGIT, "none"), common=True)] = "kl"
    """Distillation loss on the logits (kl is Hinton's); none: only --feature-loss."""
    kd_temperature: Annotated[float | None, Flag("T", common=True, above=0)] = None
    """Temperature that softens both networks' classes, above 0; by default the loss's own (kl 4, nkd 1).
    Losses without one ignore it."""
    kd_gamma: Annotated[float | None, Flag("WEIGHT", least=0)] = None
    """Weight of NKD's other classes, DIST's columns or MLKD's classes, 0 or more; by default the loss's own.
    Other losses ignore it."""
    kd_args: Annotated[tuple[str, ...], Flag("KEY=VALUE")] = ()
    """Any other setting of --kd-loss, for example alpha=1 beta=8 (dkd) or mixed_labels=both (nkd, dkd,
    ofa)."""
    distill_loss_weight: Annotated[float, Flag("WEIGHT", common=True, least=0)] = 1.0
    """Weight of --kd-loss, 0 or more."""
    feature_loss: Annotated[str, Flag(choices=("none", *tables.FEATURE), common=True)] = "none"
    """Distillation loss on feature maps, beside --kd-loss."""
    feature_weight: Annotated[float, Flag("WEIGHT", least=0)] = 1.0
    """Weight of --feature-loss, 0 or more. Scales differ much between losses: see `distill.losses` for what
    their papers used."""
    feature_stages: Annotated[str, Flag("STAGES")] = ""
    """Stages that --feature-loss compares: last, all, or pairs STUDENT:TEACHER as in 2:3,4:4; by default what
    the loss's paper does."""
    feature_args: Annotated[tuple[str, ...], Flag("KEY=VALUE")] = ()
    """Settings of --feature-loss, for example target_norm=map (fd)."""
    losses: Annotated[tuple[str, ...], Flag("NAME:KEY=VALUE,..")] = ()
    """Several losses at once, in place of the flags above, with weight (1) and stages among the keys, for
    example nkd:temperature=1 fd:weight=0.5,stages=last. In YAML a list of mappings with name, weight and
    settings will do."""
    task_loss_weight: Annotated[float, Flag("WEIGHT", common=True, least=0)] = 1.0
    """Weight of the cross-entropy with the labels beside a teacher, 0 or more; without a teacher it is 1."""
    smoothing: Annotated[float, Flag("SHARE", least=0, below=1)] = 0.0
    """Label smoothing, 0 to below 1."""
    class_weights: Annotated[tuple[str, ...], Flag("WEIGHT")] = ()
    """Weights of the classes in the cross-entropy with the labels: balanced (the rarer, the larger), a number
    for each class in the order of the classes, CLASS=WEIGHT (others 1), or a file of lines class,weight.
    Scaled to a mean of 1 over the training images; by default none."""

    def check(self) -> None:
        """Refuse losses that contradict each other."""
        self.need(
            not self.losses or self.feature_loss == "none",
            "feature_loss",
            "none beside --losses: name it there",
        )
        self.need(
            self.kd_loss != "none" or self.feature_loss != "none" or bool(self.losses),
            "kd_loss",
            "a loss, because there is no --feature-loss",
        )


@dataclass(frozen=True)
class Length(Group):
    """Length and batch: how many images, and how many at once"""

    epochs: Annotated[int, Flag("N", common=True, least=1)] = 100
    """Passes over the training images."""
    batch: Annotated[int, Flag("N", aliases=("-b", "--batch-size"), common=True, least=1)] = 128
    """Images per forward pass; of each process, where torchrun starts several."""
    grad_accum: Annotated[int, Flag("N", aliases=("--grad-accum-steps",), least=1)] = 1
    """Forward passes per optimizer step."""
    eval_batch: Annotated[int, Flag("N", least=1)] = 256
    """Images per forward pass in validation."""
    select: Literal["top1", "balanced", "loss"] = "top1"
    """Measure on the validation images that chooses the best epoch: top1, balanced (accuracy as the mean over
    the classes) or loss."""
    early_stop: Annotated[int, Flag("N", least=0)] = 0
    """End after N epochs in a row without an improvement of what --select names; 0: never. The schedule stays
    the one of all --epochs, so the learning rate may still be high then."""


@dataclass(frozen=True)
class Optimizer(Group):
    """Optimizer and schedule"""

    opt: Annotated[str, Flag("NAME", common=True)] = "adamw"
    """Optimizer, by timm's name: adamw, sgd (with Nesterov momentum), lamb, ..."""
    lr: Annotated[float | None, Flag("RATE", common=True, above=0)] = None
    """Peak learning rate; by default --lr-base scaled to the batch."""
    lr_base: Annotated[float, Flag("RATE", above=0)] = 1e-3
    """Learning rate at --lr-base-size images per step, scaled linearly."""
    lr_base_size: Annotated[int, Flag("N", least=1)] = 256
    """Images per step that --lr-base is meant for."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Flag("X", common=True, least=0)] = 0.05
    """Weight decay, which biases and norms are spared."""
    layer_decay: Annotated[float | None, Flag("SHARE", above=0, most=1)] = None
    """Learning rate of each layer group relative to the next, above 0, at most 1; by default all equal."""
    clip_grad: Annotated[float | None, Flag("NORM", above=0)] = None
    """Largest norm of all gradients together; by default no clipping."""
    sched: Annotated[str, Flag("NAME")] = "cosine"
    """Schedule, by timm's name: cosine, poly, tanh; step (every third of the run) or multistep (at half and
    three quarters)."""
    freeze: Annotated[str, Flag("PART")] = ""
    """Part of the student that stays as it is: stem, stages:N (the stem and the first N stages) or
    all-but-head; for weights that are good already."""
    freeze_norms: bool = False
    """Keep the statistics of the student's batch norms, which a few small batches would spoil."""
    warmup_epochs: Annotated[float | None, Flag("X", least=0)] = None
    """Epochs of linear warm-up; by default 5, and at most a fifth of the run."""
    warmup_lr: Annotated[float, Flag("RATE", least=0)] = 1e-6
    """Learning rate the warm-up starts from."""
    min_lr: Annotated[float, Flag("RATE", least=0)] = 1e-6
    """Learning rate the schedule ends at."""

    def check(self) -> None:
        """Refuse a part that nothing has."""
        kind, _, count = self.freeze.partition(":")
        numbered = kind == "stages" and count.isdecimal() and len(count) < 4
        known = self.freeze in ("", "stem", "all-but-head") or numbered
        self.need(known, "freeze", "stem, stages:N or all-but-head")


@dataclass(frozen=True)
class Augmentation(Group):
    """Augmentation"""

    scale: Annotated[tuple[float, float], Flag("SHARE")] = (0.08, 1.0)
    """Smallest and largest share of the image area that a random crop keeps."""
    ratio: Annotated[tuple[float, float], Flag("RATIO")] = (0.75, 1.3333333333333333)
    """Smallest and largest aspect ratio of a random crop."""
    crop_padding: Annotated[int, Flag("PIXELS", least=0)] = 0
    """Pixels to pad by before cropping at random, the usual for small images; 0: crop by --scale and
    --ratio instead."""
    hflip: Annotated[float, Flag("PROBABILITY", least=0, most=1)] = 0.5
    """Probability of a horizontal flip."""
    color_jitter: Annotated[float, Flag("STRENGTH", least=0)] = 0.0
    """Strength of brightness, contrast and saturation changes; unused with --aa."""
    aa: Annotated[str, Flag("POLICY")] = ""
    """Auto-augment policy in timm's words, for example rand-m9-mstd0.5-inc1."""
    train_interpolation: Literal["random", "bilinear", "bicubic"] = "bicubic"
    """Filter of the random resize."""
    reprob: Annotated[float, Flag("PROBABILITY", least=0, most=1)] = 0.0
    """Probability of random erasing."""
    remode: Literal["const", "rand", "pixel"] = "pixel"
    """Filling of an erased area: one constant, one random color, or random pixels."""
    mixup: Annotated[float, Flag("ALPHA", least=0)] = 0.0
    """Alpha of Mixup; 0 is off."""
    cutmix: Annotated[float, Flag("ALPHA", least=0)] = 0.0
    """Alpha of CutMix; 0 is off."""
    mixup_prob: Annotated[float, Flag("SHARE", least=0, most=1)] = 1.0
    """Share of batches that are mixed."""
    mixup_switch_prob: Annotated[float, Flag("SHARE", least=0, most=1)] = 0.5
    """Share of the mixed batches that CutMix takes when both are on."""

    def check(self) -> None:
        """Refuse intervals that are upside down or outside of their range."""
        self.need(
            0 < self.scale[0] <= self.scale[1] <= 1,
            "scale",
            "two shares above 0, at most 1, the smaller first",
        )
        self.need(0 < self.ratio[0] <= self.ratio[1], "ratio", "two ratios above 0, the smaller first")


@dataclass(frozen=True)
class Regularization(Group):
    """Regularization"""

    drop: Annotated[float, Flag("PROBABILITY", least=0, most=1)] = 0.0
    """Dropout before the classifier."""
    drop_path: Annotated[float, Flag("PROBABILITY", least=0, most=1)] = 0.0
    """Stochastic depth of the last block."""
    model_ema: bool = False
    """Keep an exponential moving average of the weights; it is validated and saved as best.pth."""
    model_ema_decay: Annotated[float, Flag("SHARE", least=0, most=1)] = 0.9998
    """Decay of the moving average per step."""
    model_ema_warmup: bool = True
    """Let the decay of the moving average grow from 0 in early steps."""


@dataclass(frozen=True)
class Sparsity(Group):
    """Dynamic sparsity, as SLaK's teachers are trained"""

    sparsity: Annotated[float, Flag("SHARE", least=0, below=1)] = 0.0
    """Share of the weights that stays 0 while training, 0 (off) to below 1; which ones changes now and then.
    SLaK takes 0.4."""
    sparse_update_every: Annotated[int, Flag("STEPS", least=1)] = 2000
    """Optimizer steps between changes (SLaK-T 2000; S and B 100)."""
    sparse_prune_rate: Annotated[float, Flag("SHARE", least=0, most=1)] = 0.5
    """Share of a layer's weights exchanged at the first change, 0 to 1; falls along a cosine to 0.005 (S and
    B begin at 0.3)."""
    sparse_growth: Literal["random", "gradient"] = "random"
    """Choice of new weights: by chance, or where the gradient is largest (RigL)."""
    sparse_only_large: bool = False
    """Mask large depthwise kernels alone."""


@dataclass(frozen=True)
class Machine(Group):
    """Machine: where and in which precision it computes"""

    device: Annotated[str, Flag("DEVICE", common=True)] = "auto"
    """Device: cpu, cuda, cuda:INDEX; auto: cuda where there is one."""
    amp: Annotated[bool, Flag(common=True)] = False
    """Train the student in mixed precision."""
    amp_dtype: Literal["bf16", "fp16"] = "bf16"
    """Type of mixed precision; fp16 scales the loss."""
    channels_last: bool = True
    """Keep images and weights in the memory format NHWC; on a GPU networks with large depthwise kernels stay
    in NCHW, which is faster for them."""
    compile: bool = False
    """Compile student and teacher with torch.compile."""
    sync_bn: bool = False
    """Take the statistics of batch norms over the images of all processes (torchrun), as in one process with
    their batches together; by default each process has its own."""
    ddp_compress: Literal["none", "bf16"] = "none"
    """Format in which several processes (torchrun) send their gradients to each other; bf16 halves the bytes
    and rounds the gradients."""
    seed: Annotated[int, Flag("N", common=True, least=0)] = 0
    """Seed for initial weights, data order and augmentation. A run repeats itself on the same machine and
    versions."""
    checkpoint_minutes: Annotated[float, Flag("MINUTES", least=0)] = 5.0
    """Longest time between two writes of last.pth, which is also written after every epoch."""
    tensorboard: bool = False
    """Write TensorBoard events to the run folder, too."""
