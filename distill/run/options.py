"""The options of a training run: a recipe, and where the run goes.

In:  flags and YAML files by name.
Out: a `TrainOptions`.
Elsewhere: the settings of the training itself (distill.recipe), from argv to here (distill.commands.train).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from runtime.cli.settings import Flag
from runtime.errors import UsageError
from runtime.recorded import found_again

from .. import recipe as recipes
from ..recipe import Recipe


@dataclass(frozen=True)
class TrainOptions(Recipe):
    """Run: where it goes, and what is done afterwards."""

    recipe: Annotated[str, Flag("FILE|NAME", aliases=("-c", "--config"), common=True)] = ""
    """Recipe to start from: a shipped one (finetune, linear-probe, paper, demo, cifar10-cpu, cifar10-teacher)
    or a YAML file; flags override it."""
    output: Annotated[str, Flag("DIR", aliases=("-o",), common=True)] = ""
    """Folder of the run; by default runs/STUDENT."""
    resume: Annotated[str, Flag("DIR", common=True)] = ""
    """Run folder (or its last.pth) to continue bit for bit; its recipe is used. With --data, one without a
    run is begun. auto: continue the run in --output, or begin it where there is none."""
    overwrite: Annotated[bool, Flag(common=True)] = False
    """Replace an existing run folder."""
    control: Annotated[bool, Flag(common=True)] = False
    """Train the same student afterwards for the same budget and seed without the teacher, into
    RUN/control."""
    erf: bool = False
    """Measure at the end how far teacher, control and student look (distill erf), into RUN/erf, result.json
    and metrics.jsonl."""
    report: bool = True
    """Make RUN/report.html at the end: curves, confusion, the worst images. Needs the extra report."""
    wandb: Annotated[str, Flag("PROJECT", alone="large2small")] = ""
    """Send figures and pictures to Weights & Biases, into this project or ENTITY/PROJECT (without a value:
    large2small). A resumed run goes on there if the flag is given again."""
    mlflow: Annotated[str, Flag("URI|EXPERIMENT", alone="large2small")] = ""
    """Send figures and pictures to MLflow: to the server of this URI, or into this experiment (without a
    value: large2small) of the server that MLflow is set to. A resumed run goes on there if the flag is
    given again."""
    json: bool = False
    """Print the result as one JSON object and nothing else."""

    @property
    def services(self) -> dict[str, str]:
        """The services that figures are sent to, and where there."""
        return {name: place for name in ("wandb", "mlflow") if (place := getattr(self, name))}

    def beside_recipe(self) -> dict[str, Any]:
        """Settings that args.yaml keeps although they are not the recipe's, because a resumed run
        needs them.
        """
        return {"control": self.control, "erf": self.erf}


AUTO = "auto"
"""In place of the folder of --resume: the run in --output, if there is one."""

AnyOptions = TypeVar("AnyOptions", bound=TrainOptions)
"""The options of `distill train`, or those with more flags."""


def run_folder(path: str) -> Path:
    """The folder that --resume names: itself, or the one of its last.pth or best.pth."""
    return Path(path).parent if path.endswith(".pth") else Path(path)


def with_file(
    base: AnyOptions, name: str, given: Mapping[str, str], kept: Collection[str] = ()
) -> AnyOptions:
    """`base` with what a recipe or an args.yaml says; given: data and networks on the command line
    (`given_data`); kept: networks whose names are not followed, because the run has what they stand for.

    Raises UsageError naming the key that cannot be.
    """
    values = recipes.read(name)
    beside = {key: values.pop(key) for key in base.beside_recipe() if key in values}
    recipe = recipes.from_dict(values, name, base, given, kept)
    return replace(recipe, **recipes.typed(beside, type(base), name))


def where_now(options: AnyOptions, folder: Path) -> AnyOptions:
    """The options of the run in `folder` with the paths that its files have now, if the folder was moved."""
    return replace(
        options,
        data=found_again(options.data, folder),
        val_data=found_again(options.val_data, folder),
        teacher_ckpt=found_again(options.teacher_ckpt, folder),
        student_ckpt=found_again(options.student_ckpt, folder),
        teacher_labels=found_again(options.teacher_labels, folder),
    )


def given_data(argv: Sequence[str]) -> dict[str, str]:
    """The data specs and networks that the command line gives, by field."""
    spelled = [_with_dashes(word) for word in argv]
    found = {
        field: next(filter(None, (value_of(spelled, flag) for flag in flags)), "")
        for field, flags in (recipes.DATA_FLAGS | recipes.NETWORK_FLAGS).items()
    }
    return {field: spec for field, spec in found.items() if spec}


def _with_dashes(word: str) -> str:
    """--val_data=DIR as --val-data=DIR; what is not a flag stays as it is."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if word.startswith("--") else word


def value_of(argv: Sequence[str], flag: str) -> str:
    """The word after the first `flag`, or behind its `=`; empty when it is not there."""
    for index, word in enumerate(argv):
        if word == flag and index + 1 < len(argv):
            return argv[index + 1]
        if word.startswith(f"{flag}="):
            return word.split("=", 1)[1]
    return ""


def without(argv: Sequence[str], flag: str) -> list[str]:
    """The words without the flag and its value."""
    kept = [
        word for index, word in enumerate(argv) if word != flag and (index == 0 or argv[index - 1] != flag)
    ]
    return [word for word in kept if not word.startswith(f"{flag}=")]


def settled(argv: Sequence[str]) -> list[str]:
    """The words with the run that --resume auto finds in --output, and without the flag where there is none.
    Raises UsageError where --output is missing or its run is to be replaced.
    """
    if value_of(argv, "--resume") != AUTO:
        return list(argv)
    joined = next((word[2:] for word in argv if word.startswith("-o") and len(word) > 2), "")  # -oDIR
    folder = value_of(argv, "--output") or value_of(argv, "-o") or joined
    if not folder:
        raise UsageError("--resume auto continues the run in --output. Give --output DIR")
    if "--overwrite" in argv:
        raise UsageError(
            "--overwrite replaces the run that --resume auto would continue. Leave one of them out"
        )
    begun = (Path(folder) / "args.yaml").is_file()
    return [*without(argv, "--resume"), *(["--resume", folder] if begun else [])]
