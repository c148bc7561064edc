"""A search from its first step to the winner.

In:  what is asked for, the candidates, the journal.
Out: for each candidate its latency, its accuracy and what became of it; the winner's artifact.
Elsewhere: the schedule (large2small.searching.halving), the timing (large2small.searching.timing), the
commands (large2small.searching.words), tables and files of the result (large2small.searching.result).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distill.run.options import TrainOptions
from runtime import files
from runtime.cli.terminal import loading, say
from runtime.errors import GateError

from . import halving, processes, timing, words
from .candidates import Candidate
from .journal import Exported, Journal, Labeled, Timed, Trained
from .processes import Finished
from .steps import FAILED, WON, Asked, Steps
from .times import Clock, in_words

SAFETY = 1.1
"""What a training may take, as a multiple of what shorter ones took for each epoch."""


@dataclass(frozen=True)
class Winner:
    """The chosen candidate."""

    candidate: Candidate
    run: Path
    trained: Trained
    artifact: Path
    timed: Timed
    """Of the trained artifact."""
    result: Path
    """What bench latency saved about it."""
    int8_top1_percent: float | None = None
    """Of the artifact; None of fp32, which is as accurate as the student."""


class Search:
    """The steps of a search in their order."""

    def __init__(self, asked: Asked, candidates: Sequence[Candidate], journal: Journal, clock: Clock) -> None:
        self.asked, self.candidates, self.journal, self.clock = asked, candidates, journal, clock
        self.steps = Steps(asked, journal, clock)
        self.outcome = self.steps.outcome
        self.timed: dict[Candidate, Timed] = {}
        self.trained: dict[Candidate, Trained] = {}
        """The longest training of each."""
        self.epochs = asked.training.epochs

    def run(self) -> Winner:
        """All steps. Raises GateError where no candidate is within the limit, or none could be trained."""
        self.timed = timing.time_all(self.steps, self.candidates)
        return self.finish(self.halve(timing.within(self.steps, self.timed)))

    # training

    def halve(self, entering: Sequence[Candidate]) -> list[Candidate]:
        """The trained ones after successive halving, the best first; one alone needs no training to be it.
        Raises GateError where none could be trained.
        """
        if len(entering) == 1:
            return list(entering)
        left = list(entering)
        for number, each in enumerate(halving.rounds(len(left), self.epochs, self.asked.one_in), 1):
            say(f"round {number}: {len(left)} candidates, {epochs_in_words(each.epochs)}{self.clock.words}")
            found = self._round(left, each)
            if not found:
                break
            left = found
        if not self.trained:
            raise GateError(f"no candidate could be trained; {left[0].name} {self.outcome[left[0]]}")
        ranked = halving.best(self._accuracies(list(self.trained)), self._latencies(), len(self.trained))
        return sorted(ranked, key=lambda each: -self.trained[each].epochs)

    def _round(self, left: Sequence[Candidate], each: halving.Round) -> list[Candidate]:
        """Those that stay; none where none could be trained."""
        found: list[Candidate] = []
        for number, candidate in enumerate(left, 1):
            trained = self._train(candidate, each.epochs, spare=self._seconds_of_a_winner())
            if trained:
                found.append(candidate)
                self.outcome[candidate] = f"dropped after {epochs_in_words(each.epochs)}"
            said = _top1(trained) if trained else self.outcome[candidate]
            say(f"[{number}/{len(left)}] {candidate.name}: {said}{self.clock.words}")
        return list(halving.best(self._accuracies(found), self._latencies(), each.kept))

    def _train(self, candidate: Candidate, epochs: int, spare: float = 0.0) -> Trained | None:
        """What is known of the training, or comes out of it now; None, with an outcome, where it failed or
        there is no time. spare: seconds that have to be left afterwards.
        """
        key = _training(candidate, epochs)
        known = self.journal.find(key, Trained)
        if not known and self.steps.has_failed(key, candidate):
            return None
        if not known:
            known = self._train_now(key, candidate, epochs, spare)
        if known:
            self.trained[candidate] = known
        return known

    def _train_now(self, key: str, candidate: Candidate, epochs: int, spare: float) -> Trained | None:
        is_over = not self.clock.left() or self.seconds_of(candidate, epochs) + spare > self.clock.left()
        if is_over or not self._has_labels(candidate.size, epochs):
            self.outcome[candidate] = f"not trained for {epochs_in_words(epochs)}: no time left"
            return None
        labels = self.labels_of(candidate)
        with loading(f"training {candidate.name} for {epochs_in_words(epochs)}"):
            options = self.training_of(candidate, epochs, labels)
            done = self.steps.run(words.train(options), candidate)
        best = done.printed.get("best")
        if done.code != 0 or not isinstance(best, Mapping):
            self.steps.note_failure(key, candidate, done)
            return None
        return self.journal.keep(
            key, Trained(done.seconds, best["top1_percent"], int(best["images"]), epochs)
        )

    def training_of(self, candidate: Candidate, epochs: int, labels: Path | None) -> TrainOptions:
        """In the candidate's own folder for so many epochs; a report is made of a winner's."""
        folder = self.asked.folder / "trials" / f"{epochs}ep+{candidate.folder}"  # seen where names are cut
        options = words.training(self.asked.training, candidate, epochs, labels, folder)
        return replace(options, report=options.report and epochs == self.epochs)

    def labels_of(self, candidate: Candidate) -> Path | None:
        """Where its teacher's answers are stored; None where the teacher itself teaches, or there is none."""
        if not words.stores_labels(self.asked.training):
            return None
        return self.asked.folder / "labels" / str(candidate.size)

    def _has_labels(self, size: int, epochs: int) -> bool:
        """Whether the teacher's answers for so many epochs are there; they are made now where they are
        missing and there is time.

        Raises what distill label raises: without answers no candidate can be trained.
        """
        missing = epochs - sum(each.epochs for each in self._labeled(size))
        if not words.stores_labels(self.asked.training) or missing <= 0:
            return True
        folder = self.asked.folder / "labels"
        command = words.labels(self.asked.training, size, epochs, self.asked.label_top, folder / str(size))
        with loading(f"teacher's answers, {epochs_in_words(missing)}"):
            made = processes.run(command, folder / f"{size}.log", self.clock.left())
        if made.code is None:
            return False
        made.raise_failure(f"teacher's answers at {size} pixels")
        self.journal.keep(f"labels {size}, {epochs_in_words(epochs)}", Labeled(made.seconds, missing))
        return True

    def _labeled(self, size: int) -> list[Labeled]:
        return [
            step
            for key, step in self.journal.steps.items()
            if isinstance(step, Labeled) and key.startswith(f"labels {size},")
        ]

    # the winner

    def finish(self, ranked: Sequence[Candidate]) -> Winner:
        """Train the best in full, or as long as there is time, and where that fails the next; export and time
        it. Raises GateError where there is no time, or all failed.
        """
        for candidate in ranked:
            trained = self._train_winner(candidate)
            if trained:
                self.outcome[candidate] = WON
                return self._exported(candidate, trained)
            say(f"{candidate.name}: {self.outcome[candidate]}")
            if not self.outcome[candidate].startswith(FAILED):
                raise GateError(f"{candidate.name}: {self.outcome[candidate]}. {self._again}")
        best = f"{ranked[0].name}, {self.outcome[ranked[0]]}"
        raise GateError(f"none of {len(ranked)} candidates could be trained in full; the best, {best}")

    def _train_winner(self, candidate: Candidate) -> Trained | None:
        trained, epochs = self.trained.get(candidate), self._affordable(candidate)
        if trained is None or trained.epochs < epochs:
            say(f"winner: {candidate.name}, {epochs_in_words(epochs)}{self.clock.words}")
            trained = self._train(candidate, epochs)
        if trained and trained.epochs < self.epochs:
            say(f"no time left for more than {trained.epochs} of {self.epochs} epochs. {self._again}")
        return trained

    @property
    def _again(self) -> str:
        return f"The same command goes on in {self.asked.folder}; give it more time with --budget"

    def _affordable(self, candidate: Candidate) -> int:
        """Epochs that there is time for, at most those of a full training."""
        if self.journal.find(_training(candidate, self.epochs), Trained):
            return self.epochs
        lengths = range(self.epochs, 0, -1)
        left = self.clock.left()
        return next((each for each in lengths if self.seconds_of(candidate, each) <= left), 0)

    def _exported(self, candidate: Candidate, trained: Trained) -> Winner:
        run = Path(self.training_of(candidate, trained.epochs, None).output)
        name = "winner.int8.onnx" if self.asked.engine.int8 else "winner.onnx"
        artifact, result = self.asked.folder / name, self.asked.folder / "winner.json"
        key = f"{candidate.name}, {epochs_in_words(trained.epochs)}"
        log = self.asked.folder / "winner.log"
        exported = self.journal.find(f"export {key}", Exported)
        if exported is None or not artifact.is_file():
            with loading(f"exporting {candidate.name}"):
                made = processes.run(words.export(run / files.BEST, artifact, self.asked.engine), log)
            made.raise_failure(f"export of {run}")
            top1 = made.printed.get("int8_top1_percent")
            exported = self.journal.keep(f"export {key}", Exported(made.seconds, top1))
        timed = self.journal.find(f"time winner {key}", Timed)
        if timed is None or not result.is_file():
            with loading(f"timing {artifact.name}", still=True):
                found = timing.measured(artifact, result, self.asked.engine, log)
            if isinstance(found, Finished):
                found.raise_failure(f"timing {artifact}")
            assert isinstance(found, Timed)
            timed = self.journal.keep(f"time winner {key}", found)
        return Winner(candidate, run, trained, artifact, timed, result, exported.int8_top1_percent)

    # what several steps need

    def seconds_of(self, candidate: Candidate, epochs: int) -> float:
        """That a training will take, as far as shorter ones tell; 0 where nothing is known."""
        known = self.trained.get(candidate)
        some = [known] if known else list(self.trained.values())
        each = sum(step.seconds for step in some) / max(sum(step.epochs for step in some), 1)
        there = self._labeled(candidate.size)
        answered = sum(step.epochs for step in there)
        answer = sum(step.seconds for step in there) / max(answered, 1)
        return SAFETY * (each * epochs + answer * max(epochs - answered, 0))

    def _seconds_of_a_winner(self) -> float:
        """That the full training of the best until now takes."""
        if not self.trained or not self.epochs:
            return 0.0
        leader = halving.best(self._accuracies(list(self.trained)), self._latencies(), 1)[0]
        return self.seconds_of(leader, self.epochs)

    def _accuracies(self, among: Sequence[Candidate]) -> dict[Candidate, float]:
        return {each: self.trained[each].top1_percent for each in among if each in self.trained}

    def _latencies(self) -> dict[Candidate, float]:
        return {each: timed.median_ms for each, timed in self.timed.items()}


def _training(candidate: Candidate, epochs: int) -> str:
    """The key of a training."""
    return f"train {candidate.name}, {epochs_in_words(epochs)}"


def epochs_in_words(count: int) -> str:
    """1 epoch, 3 epochs."""
    return f"{count} epoch{'s' * (count != 1)}"


def _top1(trained: Trained) -> str:
    return f"top-1 {trained.top1_percent:.2f} % (n={trained.images}) in {in_words(trained.seconds)}"
