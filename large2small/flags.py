"""The keywords of `import large2small`, with their types: for type checkers and editors.

In:  nothing.
Out: one TypedDict for each function.
Elsewhere: the functions (large2small.functions), what the flags mean (`distill COMMAND --help-all`).

Written by `make flags` from the Options of the commands; edit those.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

Pathlike = str | os.PathLike[str]


class TrainFlags(TypedDict, total=False):
    """Flags of `distill train`."""

    data: Pathlike
    val_data: Pathlike
    val_split: float
    csv_image: str
    csv_label: str
    img_size: int
    crop_pct: float
    exif: Literal["", "ignore", "apply"]
    num_classes: int
    sampler: Literal["uniform", "balanced"]
    skip_bad_images: bool
    workers: int
    cache: Literal["none", "ram", "disk", "device"]
    cache_limit: float
    cache_folder: str
    student: str
    pretrained: bool
    student_args: Sequence[str] | Mapping[str, object]
    student_ckpt: Pathlike
    checkpoint_key: str
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: Literal["", "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
    input_size: Sequence[int]
    teacher: str
    teacher_ckpt: Pathlike
    teacher_args: Sequence[str] | Mapping[str, object]
    teacher_checkpoint_key: str
    teacher_mean: Sequence[float]
    teacher_std: Sequence[float]
    teacher_interpolation: Literal["", "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
    teacher_input_size: Sequence[int]
    teacher_labels: Pathlike
    verify_labels: int
    teacher_fit: Literal["head", "all", "none"]
    teacher_fit_epochs: int
    teacher_fit_lr: float
    teacher_dtype: Literal["auto", "fp32", "fp16", "bf16"]
    teacher_graph: bool
    teacher_stream: bool
    kd_loss: str
    kd_temperature: float | None
    kd_gamma: float | None
    kd_args: Sequence[str] | Mapping[str, object]
    distill_loss_weight: float
    feature_loss: str
    feature_weight: float
    feature_stages: str
    feature_args: Sequence[str] | Mapping[str, object]
    losses: Sequence[str]
    task_loss_weight: float
    smoothing: float
    class_weights: Sequence[str | float] | Mapping[str, object]
    epochs: int
    batch: int
    grad_accum: int
    eval_batch: int
    select: Literal["top1", "balanced", "loss"]
    early_stop: int
    opt: str
    lr: float | None
    lr_base: float
    lr_base_size: int
    momentum: float
    weight_decay: float
    layer_decay: float | None
    clip_grad: float | None
    sched: str
    freeze: str
    freeze_norms: bool
    warmup_epochs: float | None
    warmup_lr: float
    min_lr: float
    scale: Sequence[float]
    ratio: Sequence[float]
    crop_padding: int
    hflip: float
    color_jitter: float
    aa: str
    train_interpolation: Literal["random", "bilinear", "bicubic"]
    reprob: float
    remode: Literal["const", "rand", "pixel"]
    mixup: float
    cutmix: float
    mixup_prob: float
    mixup_switch_prob: float
    drop: float
    drop_path: float
    model_ema: bool
    model_ema_decay: float
    model_ema_warmup: bool
    sparsity: float
    sparse_update_every: int
    sparse_prune_rate: float
    sparse_growth: Literal["random", "gradient"]
    sparse_only_large: bool
    device: str
    amp: bool
    amp_dtype: Literal["bf16", "fp16"]
    channels_last: bool
    compile: bool
    sync_bn: bool
    ddp_compress: Literal["none", "bf16"]
    seed: int
    checkpoint_minutes: float
    tensorboard: bool
    recipe: Pathlike
    output: Pathlike
    resume: Pathlike
    overwrite: bool
    control: bool
    erf: bool
    report: bool
    wandb: str | bool
    mlflow: str | bool
    qat: bool
    placement: Literal["tensorrt", "cpu"]
    calib_size: int
    calib_method: Literal["minmax", "percentile", "entropy", "mse"]
    percentile: float
    exclude: Sequence[str]
    depthwise: Literal["auto", "int8", "float"]
    first_layer: Literal["auto", "int8", "float"]
    last_layer: Literal["auto", "int8", "float"]
    opset: int
    train_size: int


class EvalFlags(TypedDict, total=False):
    """Flags of `distill eval`."""

    data: Pathlike
    split: Literal["val", "train"]
    model: str
    model_args: Sequence[str] | Mapping[str, object]
    checkpoint_key: str
    img_size: int
    input_size: Sequence[int]
    batch: int
    workers: int
    device: str
    num_classes: int
    skip_bad_images: bool


class OnnxFlags(TypedDict, total=False):
    """Flags of `distill export onnx`."""

    int8: bool
    fp16: bool
    data: Pathlike | None
    model: str | None
    model_args: Sequence[str] | Mapping[str, object]
    checkpoint_key: str
    output: Pathlike | None
    overwrite: bool
    img_size: int | None
    input_size: Sequence[int]
    opset: int
    verify_size: int
    atol: float
    seed: int
    calib: Pathlike | None
    calib_size: int
    calib_method: Literal["auto", "minmax", "percentile", "entropy", "mse"]
    percentile: float
    calib_draws: int
    calib_cache: Pathlike
    max_drop: float
    min_agreement: float | None
    accuracy_size: int
    exclude: Sequence[str]
    depthwise: Literal["auto", "int8", "fp16", "fp32"]
    first_layer: Literal["auto", "int8", "float"]
    last_layer: Literal["auto", "int8", "float"]
    weight_scales: Literal["max", "mse"]
    equalize: bool
    bias_correction: bool
    sensitivity: bool
    placement: Literal["auto", "cpu", "tensorrt"]


class TrtFlags(TypedDict, total=False):
    """Flags of `distill export trt`."""

    int8: bool
    fp16: bool
    data: Pathlike | None
    model: str | None
    model_args: Sequence[str] | Mapping[str, object]
    checkpoint_key: str
    output: Pathlike | None
    overwrite: bool
    img_size: int | None
    input_size: Sequence[int]
    opset: int
    verify_size: int
    atol: float
    seed: int
    flavor: Literal["auto", "tensorrt", "rtx"]
    batch: int | None
    dynamic: Sequence[str]
    workspace: str | None
    opt_level: int
    timing_cache: Pathlike
    hardware_compat: Literal["none", "ampere_plus", "same_cc"]
    version_compat: bool
    strip_weights: bool
    sparsity: bool
    tf32: bool
    rebuild: bool
    calib: Pathlike | None
    calib_size: int
    calib_method: Literal["auto", "minmax", "percentile", "entropy", "mse"]
    percentile: float
    calib_draws: int
    calib_cache: Pathlike
    max_drop: float
    min_agreement: float | None
    accuracy_size: int
    exclude: Sequence[str]
    depthwise: Literal["auto", "int8", "fp16", "fp32"]
    first_layer: Literal["auto", "int8", "float"]
    last_layer: Literal["auto", "int8", "float"]
    weight_scales: Literal["max", "mse"]
    equalize: bool
    bias_correction: bool
    sensitivity: bool


class PredictFlags(TypedDict, total=False):
    """Flags of `distill predict`."""

    top: int
    batch: int
    backend: str | None
    device: str | None
    threads: int | None


class LatencyFlags(TypedDict, total=False):
    """Flags of `distill bench latency`."""

    engine_backend: str | None
    provider: Literal["cpu", "cuda", "tensorrt"] | None
    device: str | None
    threads: int | None
    hint: Literal["latency", "throughput"] | None
    contexts: int | None
    cuda_graph: bool
    batch: int
    warmup: int
    iterations: int
    duration: float | None
    percentiles: str
    boundary: Literal["compute", "end-to-end", "both"]
    cold_start: int
    concurrency: int
    layers: bool
    data: Pathlike | None
    split: Literal["train", "val"]
    img_size: str | None
    seed: int
    results_file: Pathlike | None
    overwrite: bool


class AccuracyFlags(TypedDict, total=False):
    """Flags of `distill bench accuracy`."""

    engine_backend: str | None
    provider: Literal["cpu", "cuda", "tensorrt"] | None
    device: str | None
    threads: int | None
    hint: Literal["latency", "throughput"] | None
    contexts: int | None
    cuda_graph: bool
    split: Literal["train", "val"]
    reference: Pathlike | None
    batch: int
    limit: int | None
    skip_bad_images: bool
    workers: int | None
    save: Pathlike | None
    overwrite: bool
