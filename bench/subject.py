"""The artifact under measurement: the flags that say what it runs on, opening it, and what it is.

In:  a path and `RunOptions`.
Out: a `Predictor`; its `Description`, which is part of every result.
Elsewhere: what is called (bench.clock.calls), the clock (bench.clock.latency), the engines
(runtime.backends.registry).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import runtime
from runtime import ArtifactError, Predictor, Preprocess, UsageError, env, files
from runtime.backends import Engine, Settings, registry
from runtime.cli.settings import Flag
from runtime.cli.terminal import loading, printable

if TYPE_CHECKING:
    EngineName = str
else:
    EngineName = Literal[registry.names()]  # the choices of the flag; a new engine is one of them


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Engine: what the artifacts run on. A flag is for the engines that read it, and an error when none of
    the files runs on one.
    """

    engine_backend: Annotated[EngineName | None, Flag(common=True)] = None
    """Engine to run on; by default onnxruntime for .onnx files and tensorrt for .plan files, which run on
    nothing else."""
    provider: Literal["cpu", "cuda", "tensorrt"] | None = None
    """ONNX Runtime's execution provider; by default that of --device."""
    device: Annotated[str | None, Flag("DEVICE", common=True)] = None
    """Device: cpu, cuda or cuda:INDEX, for OpenVINO cpu, gpu or npu; by default cpu for .onnx and cuda for
    .plan."""
    threads: Annotated[int | None, Flag("N", common=True)] = None
    """CPU threads of the engine; by default all usable cores."""
    hint: Literal["latency", "throughput"] | None = None
    """Goal that OpenVINO is tuned for; latency when not given."""
    contexts: int | None = None
    """Number of calls on a plan that may run at once, 1 or more; 1 when not given."""
    cuda_graph: bool = False
    """Replay a plan's launches as a CUDA graph."""

    @property
    def of_engine(self) -> RunOptions:
        """These flags, without the others that a command has."""
        return RunOptions(**{each.name: getattr(self, each.name) for each in fields(RunOptions)})

    def backend(self, path: Path) -> Engine:
        """The engine that a file runs on: the one asked for, where there is a choice."""
        able = registry.opening(path)
        if len(able) == 1:
            return able[0]
        known = registry.engines()
        return known[self.engine_backend] if self.engine_backend else (able or list(known.values()))[0]

    def require_read(self, paths: Sequence[Path]) -> None:
        """Raise UsageError for a flag that the engine of none of the files reads, and for an engine that
        cannot open one.
        """
        used = {path: self.backend(path) for path in paths}
        if self.engine_backend:
            self._require_used(registry.engines()[self.engine_backend], used)
        for flag in registry.SETTINGS:
            value = getattr(self, flag)
            if value is None or value is False or any(flag in engine.reads for engine in used.values()):
                continue
            raise UsageError(
                f"--{flag.replace('_', '-')} is read by {' and '.join(registry.readers(flag))} only, and"
                f" {paths[0].name} runs on {used[paths[0]].name}. Leave it out"
            )
        if self.contexts is not None and self.contexts < 1:
            raise UsageError(f"--contexts {self.contexts}: expected 1 or more")

    @staticmethod
    def _require_used(asked: Engine, used: Mapping[Path, Engine]) -> None:
        for path, engine in used.items():
            if engine == asked and registry.opening(path) and path.suffix not in asked.suffixes:
                raise UsageError(
                    f"--engine-backend {asked.name}: {path} is not {asked.file}. "
                    f"{asked.make.format(path=path)}"
                )
        if asked not in used.values():
            path, engine = next(iter(used.items()))
            raise UsageError(
                f"--engine-backend {asked.name}: {path} is {engine.file}, which runs on {engine.title} only."
                f" Give {asked.file}, or leave --engine-backend out"
            )


@dataclass(frozen=True)
class Description:
    """Which file ran, on which engine, provider and device: as reported by the engine, not as asked for.

    None is not known, or not a setting of this engine. The names are the keys of the JSON result.
    """

    name: str
    """Role and precision, or the file's name."""
    file: str
    model: str | None
    role: str | None
    precision: str | None
    engine: str
    """Library and version."""
    backend: str
    provider: str
    device: str
    threads: int | None
    hint: str | None
    contexts: int | None
    cuda_graph: bool | None
    unknown: list[str]
    """Which of preprocess and class_names the file does not carry."""
    sha256: str
    """Of the file, as its size and what it says of parameters and multiply-accumulates."""
    file_bytes: int
    parameters: int | None
    macs: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @property
    def ran_on(self) -> str:
        """The engine, what it runs on and how, for a person."""
        return ran_on(
            self.engine, self.provider, self.device, self.threads, self.contexts, bool(self.cuda_graph)
        )


def ran_on(
    engine: str, provider: str, device: str, threads: int | None, contexts: int | None, cuda_graph: bool
) -> str:
    """The engine, what it runs on and how, for a person."""
    words = [
        engine,
        provider,
        f"device {device}",
        f"{threads} thread{'s' if threads > 1 else ''}" if threads else None,
        f"{contexts} contexts" if (contexts or 1) > 1 else None,
        "CUDA graph" if cuda_graph else None,
    ]
    return ", ".join(word for word in words if word)


def open_artifact(path: Path, on: RunOptions) -> Predictor:
    """`runtime.load`, whose warning about unknown fields is left to `describe`, which says the same in the
    result.
    """
    engine = on.backend(path)
    settings: dict[str, Any] = {
        flag: getattr(on, flag) for flag in engine.reads if getattr(on, flag) is not None
    }
    device = "cuda" if on.device is None and settings.get("provider") in ("cuda", "tensorrt") else on.device
    with warnings.catch_warnings(), loading(f"opening {path.name}"):
        warnings.simplefilter("ignore")
        return runtime.load(path, device, backend=engine.name, **settings)


def describe(predictor: Predictor, on: RunOptions) -> Description:
    """What the open artifact is and where it runs."""
    metadata = predictor.metadata
    reads = on.backend(predictor.path).reads
    return Description(
        name=label(predictor),
        file=str(predictor.path),
        model=metadata.model,
        role=metadata.role,
        precision=None if metadata.precision == "unknown" else metadata.precision,
        engine=predictor.engine,
        backend=predictor.engine.split()[0],
        provider=predictor.provider,
        device=predictor.device,
        threads=predictor.threads or (env.usable_cores() if predictor.device == "cpu" else None),
        hint=on.hint or Settings.hint if "hint" in reads else None,
        contexts=on.contexts or Settings.contexts if "contexts" in reads else None,
        cuda_graph=on.cuda_graph if "cuda_graph" in reads else None,
        unknown=predictor.unknown,
        sha256=files.sha256(predictor.path),
        file_bytes=predictor.path.stat().st_size,
        parameters=metadata.parameters,
        macs=metadata.macs,
    )


def label(predictor: Predictor, role: str | None = None) -> str:
    """'student int8', or the file's name when it says nothing about itself; ranges of noise are named."""
    metadata = predictor.metadata
    words = [role or metadata.role, None if metadata.precision == "unknown" else metadata.precision]
    if metadata.quantization and metadata.quantization.not_for_accuracy:
        words.append("(not for accuracy)")
    return printable(" ".join(word for word in words if word) or predictor.path.name)


def require_preprocess(predictor: Predictor) -> Preprocess:
    """How images become its input. Raises ArtifactError when the artifact cannot be fed images."""
    if predictor.preprocess is None:
        raise ArtifactError(
            f"{predictor.path}: does not say how images are preprocessed, so accuracy cannot be measured. "
            "Export it with distill export onnx"
        )
    return predictor.preprocess
