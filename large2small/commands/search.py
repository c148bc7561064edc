"""`distill search`: the most accurate student that answers in a given time.

In:  argv: the flags of a training, candidates, a limit of latency.
Out: a folder with the winner's artifact, every trial as a run, search.json and a page.
Elsewhere: the steps (large2small.searching.search), tables and files (large2small.searching.result).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from distill.recipe import Recipe
from distill.run.options import TrainOptions, given_data, value_of, with_file
from runtime import GateError, MissingError, UsageError, env, files
from runtime.backends import registry
from runtime.cli import flags
from runtime.cli.settings import Flag
from runtime.cli.terminal import loading, say
from runtime.errors import Large2SmallError

from ..searching import candidates, times

if TYPE_CHECKING:
    from ..searching.result import Found
    from ..searching.search import Search, Winner
    from ..searching.steps import Asked

SUMMARY = "find the most accurate student within a limit of latency"
DESCRIPTION = """Candidates are exported with fresh weights and timed first; what is within the limit is
trained for a few epochs, the best of it for more, and the winner for all --epochs. A search that was stopped
goes on when its command is given again.

examples:
  {prog} --max-latency 5ms --teacher-ckpt teacher.pth --data photos --candidates 'convnext_*' --img-size 160
  {prog} --max-latency 1ms --teacher-ckpt t.pth --data DIR --candidates 'resnet20 width=0.5|1|2' mine.txt
  {prog} --max-latency 5ms --teacher-ckpt t.pth --data DIR --int8 --engine-backend openvino --budget 2h"""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of all candidates where none is given: those of ImageNet, so that one teacher's answers serve all."""
EXPORTING = ("onnx", "onnxscript", "onnxslim")
"""Packages that an export imports besides those of a training."""
STUDENT = ("student", "student_args", "student_ckpt", "checkpoint_key", "pretrained", "input_size")
"""Settings that the candidates have in the place of one student."""


@dataclass(frozen=True)
class Options(Recipe):
    """Search: between which networks, within which limits."""

    max_latency: Annotated[str, Flag("TIME", common=True)] = ""
    """Longest median time of one image, such as 5ms or 800us; has to be given."""
    candidates: Annotated[tuple[str, ...], Flag("NAMES|FILE", common=True)] = (candidates.OURS,)
    """Networks to choose from: names and patterns such as 'convnext_*', ours (this project's small ones),
    each with arguments and sizes behind it in one word, 'resnet20 width=0.5|1 img_size=32|64'; or a file of
    such lines."""
    recipe: Annotated[str, Flag("FILE|NAME", aliases=("-c", "--config"), common=True)] = ""
    """Recipe to start from, a shipped one or a YAML file; flags override it."""
    output: Annotated[str, Flag("DIR", aliases=("-o",), common=True)] = "search"
    """Folder of the search, a new one or one to go on with."""
    budget: Annotated[str, Flag("TIME", common=True)] = ""
    """Longest time for all of it, earlier calls included, such as 2h or 45min; by default no limit."""
    int8: Annotated[bool, Flag(common=True)] = False
    """Time the candidates as int8, and export the winner so."""
    engine_backend: Annotated[str | None, Flag("NAME", choices=registry.names(), common=True)] = None
    """Engine that the candidates are timed on; by default onnxruntime."""
    threads: Annotated[int | None, Flag("N", least=1)] = None
    """CPU threads of the engine; by default all usable cores."""
    student: Annotated[str, Flag("NAME")] = "auto"
    """Refused: --candidates takes its place."""
    student_ckpt: Annotated[str, Flag("CKPT")] = ""
    """Refused: candidates start from fresh weights."""
    pretrained: bool = False
    """Refused, as --student-ckpt is."""
    one_in: Annotated[int, Flag("N", least=2)] = 3
    """Candidates of which one stays after each round; the next round is as many times longer."""
    label_top: Annotated[int, Flag("N", least=0)] = 0
    """Classes of the teacher's answer that are stored for each image, as --top of distill label; 0: all."""
    retry: bool = False
    """Try again what failed in an earlier call."""
    json: bool = False
    """Print the result as one JSON object and nothing else."""

    def check(self) -> None:
        """Refuse settings of one student, and a teacher whose answers are stored already."""
        for name in ("student_ckpt", "pretrained"):
            self.need(not getattr(self, name), name, "none: candidates start from fresh weights")
        chosen = registry.engines().get(self.engine_backend or "")
        self.need(
            chosen is None or ".onnx" in chosen.suffixes,
            "engine_backend",
            "an engine that opens .onnx files, which candidates are",
        )
        self.need(not self.input_size, "input_size", "none: candidates are square. Give --img-size")
        self.need(not self.teacher_labels, "teacher_labels", "none: give the teacher, the search asks it")
        self.need(
            self.teacher_fit != "all" or self.teacher == "none",
            "teacher_fit",
            "head or none. Fit all of the teacher with distill train --teacher-fit all first",
        )


def parse(argv: Sequence[str], prog: str = "distill search") -> Options:
    """Flags over --recipe, or over the defaults."""
    flags.check_flags(Options, argv, prog)
    for flag in ("--student", "--student-args"):
        if value_of(argv, flag):
            raise UsageError(f"{flag}: a search has candidates instead. Give --candidates")
    base = TrainOptions()
    for flag in ("--recipe", "--config", "-c"):
        if value_of(argv, flag):
            base = with_file(base, value_of(argv, flag), given_data(argv))
    values = {each.name: getattr(base, each.name) for each in fields(Recipe) if each.name not in STUDENT}
    start = Options(**values)
    return flags.parse(Options, argv, prog, flags.description(sys.modules[__name__], prog), start)


def run(options: Options) -> int:
    """Search, and print what was found."""
    found, problem = searched(options)
    if not options.json:
        from bench import report

        from ..searching import result

        report.console().print(result.shown(found))
        if found.reproduce:
            print(found.reproduce)  # in one line, to be copied
        if problem:
            raise problem
        return 0
    if problem:
        print(f"error: {problem}", file=sys.stderr)
    print(files.json_text(found.to_dict()))
    return problem.exit_code if problem else 0


def do(options: Options) -> Found:
    """Search. Raises GateError where no candidate wins, and what answers and export of the winner raise;
    search.json has what is known of the candidates.
    """
    found, problem = searched(options)
    if problem:
        raise problem
    return found


def searched(options: Options) -> tuple[Found, Large2SmallError | None]:
    """What was found, and why there is no winner or why it is over the limit."""
    if not options.data:
        raise UsageError("no data given. Expected --data, as for distill train")
    if not options.max_latency:
        raise UsageError("no limit given. Expected --max-latency, such as --max-latency 5ms")
    limit = 1000 * times.parse(options.max_latency, "--max-latency", "5ms or 800us")
    budget = times.parse(options.budget, "--budget", "2h or 45min") if options.budget else None
    lines = candidates.lines(options.candidates)
    _require_packages(options.engine_backend)
    folder = Path(options.output).absolute()
    with files.only_one(folder, "is searching"):
        with loading("loading torch"):
            from ..searching.journal import opened
            from ..searching.search import Search
        among = candidates.candidates(lines, options.img_size)
        asked = _asked(options, folder, limit)
        journal = opened(folder, _settings(asked))
        if options.retry:
            journal.forget_failures()
        _require_usable(asked)
        journal.write()
        search = Search(asked, among, journal, times.Clock(budget, journal.seconds))
        return _run(search, options)


def _require_packages(backend: str | None) -> None:
    """Raise MissingError naming all that every candidate would fail without."""
    needed = dict.fromkeys(EXPORTING, "export") | {"onnxruntime": "cpu"}  # which verifies every export
    if backend and backend not in needed:
        needed[backend] = backend
    missing = {name: extra for name, extra in needed.items() if importlib.util.find_spec(name) is None}
    if missing:
        extras = ",".join(dict.fromkeys(missing.values()))
        raise MissingError(
            f'a search needs {", ".join(missing)}. Install them: pip install "large2small[{extras}]"'
        )


def _asked(options: Options, folder: Path, limit_ms: float) -> Asked:
    from distill.run.folder import with_files

    from ..searching.steps import Asked
    from ..searching.words import Engine

    values = {each.name: getattr(options, each.name) for each in fields(Recipe)}
    training = with_files(TrainOptions(**values))
    training = replace(training, mean=training.mean or MEAN, std=training.std or STD)
    engine = Engine(options.engine_backend, options.threads, options.int8)
    return Asked(folder, training, limit_ms, options.one_in, options.label_top, engine)


def _settings(asked: Asked) -> dict[str, str]:
    """What a search that goes on has in common with the earlier one, as text by name."""
    from bench.results.saved import command_line

    alike = replace(asked.training, epochs=1, img_size=0, workers=-1)
    return {
        "training": command_line("train", alike),
        "engine": " ".join([asked.engine.precision, *asked.engine.words]),
        "label-top": str(asked.label_top),
        "processor": str(env.fingerprint()["cpu"]),
    }


def _require_usable(asked: Asked) -> None:
    """Raise now what every candidate would fail with: no images, a teacher that cannot be opened."""
    from distill.data.sets import StreamSet
    from distill.run import job
    from distill.run.splits import open_splits

    from ..searching import words

    with loading(f"looking for the images of {asked.training.data}"):
        data = open_splits(asked.training, asked.folder, False)
    if words.stores_labels(asked.training) and isinstance(data.train, StreamSet):
        raise UsageError(
            f"{asked.training.data}: streamed images have no fixed order, so that the teacher's answers"
            " cannot be stored. Unpack them into a folder"
        )
    job.with_balance(asked.training, data.train)
    job.open_teacher(asked.training, asked.folder, data.train.class_names, asked.training.exif or "ignore")


def _run(search: Search, options: Options) -> tuple[Found, Large2SmallError | None]:
    from ..searching import result

    winner: Winner | None = None
    problem: Large2SmallError | None = None
    try:
        winner = search.run()
        if winner.timed.median_ms > search.asked.limit_ms:
            problem = GateError(
                f"{winner.artifact}: {winner.timed.words} as it was trained, over {search.asked.limit_ms:g}"
                " ms. Give a lower --max-latency, or measure again on a quiet machine"
            )
    except Large2SmallError as error:
        problem = error
    found = result.found(search, winner, _reproduce(search, winner) if winner else "")
    _keep(found, options)
    return found, problem


def _reproduce(search: Search, winner: Winner) -> str:
    """The command that trains the winner again, into a folder that is not there yet."""
    from bench.results.saved import command_line

    labels = search.labels_of(winner.candidate)
    options = search.training_of(winner.candidate, winner.trained.epochs, labels)
    again = replace(options, output=f"runs/{winner.candidate.folder}", report=True)
    return command_line("train", again)


def _keep(found: Found, options: Options) -> None:
    """search.json, and the page where the extra for it is installed."""
    from bench.results import saved

    from ..searching import processes, result

    path, page = found.folder / result.NAME, found.folder / result.PAGE
    saved.write(path, "table", saved.command_line("search", options), found.to_dict())
    if not found.rows:
        return
    words = ["bench", "report", str(path), "--output", str(page), "--overwrite"]
    made = processes.run(words, page.with_suffix(".log"))
    say(f"report: {page}" if made.code == 0 else f"no report: {made.reason}")
