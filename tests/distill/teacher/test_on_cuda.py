"""A CUDA graph and a stream of the teacher's own: without a GPU by doubles of torch.cuda that keep a journal,
and replay what was computed while they recorded; with one, for real.
"""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distill import models
from distill.models.depthwise import forms
from distill.teacher import Teacher, on_cuda
from distill.teacher.on_cuda import Recorded, SideStream
from runtime.preprocess import Preprocess

CPU = torch.device("cpu")
SIZE = Preprocess((3, 16, 16))


class Graph(TorchDispatchMode):
    """What torch.cuda.CUDAGraph does, on a CPU: calls again what was called while it recorded, and writes
    to the same tensors.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out

    def replay(self):
        for function, args, kwargs, out in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                old.copy_(new)


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are recorded, where torch.cuda is a double."""
    made = []

    @contextlib.contextmanager
    def recording(graph, capture_error_mode):
        assert capture_error_mode == "thread_local"
        made.append(graph)
        with graph:
            yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    return made


class Network(nn.Module):
    """Counts how often it is called."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.calls = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), 0

    def forward(self, x):
        self.calls += 1
        return self.head(self.conv(x).relu().mean((2, 3)))


@pytest.fixture
def recorded_teacher(graphs):
    """recorded_teacher() -> (a teacher that records, the lines it says)."""

    def make(network=None):
        teacher, lines = Teacher(network or Network(), SIZE, SIZE, CPU), []
        teacher.recorded = Recorded()
        teacher.recorded.say = lines.append
        return teacher, lines

    return make


def test_from_the_second_batch_of_a_shape_on_it_is_replayed(recorded_teacher, graphs):
    teacher, lines = recorded_teacher()
    batches = torch.randn(6, 2, 3, 16, 16)
    expected = [teacher.model(batch) for batch in batches]
    teacher.model.calls = 0
    teacher(torch.randn(1, 3, 16, 16))  # a probe of another size
    found = [teacher(batch).logits for batch in batches]
    assert len(graphs) == 1 and lines == []
    assert teacher.model.calls == 1 + 1 + on_cuda.WARM_UPS + 1  # probe, first batch, the recording
    for one, other in zip(found, expected, strict=True):  # also the older ones: no replay wrote over them
        assert torch.equal(one, other)


def test_another_shape_is_computed_as_ever_and_said_once(recorded_teacher, graphs):
    teacher, lines = recorded_teacher()
    for count in (4, 4, 4, 3, 2, 4):
        images = torch.randn(count, 3, 16, 16)
        assert torch.equal(teacher(images).logits, teacher.model(images))
    assert len(graphs) == 1
    assert lines == [
        "teacher: images of 3 x 3 x 16 x 16 are computed without the CUDA graph, which is of 4 x 3 x 16 x 16"
    ]


def test_other_strides_are_another_shape(recorded_teacher, graphs):
    teacher, lines = recorded_teacher()
    images = torch.randn(2, 3, 16, 16)
    for batch in (images, images, images.contiguous(memory_format=torch.channels_last)):
        assert torch.allclose(teacher(batch).logits, teacher.model(batch), atol=1e-6)
    assert len(graphs) == len(lines) == 1


def test_where_recording_fails_it_computes_as_ever_and_says_why_once(recorded_teacher, monkeypatch):
    @contextlib.contextmanager
    def refusing(graph, capture_error_mode):
        yield
        raise RuntimeError("CUDA error: operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refusing)
    teacher, lines = recorded_teacher()
    images = torch.randn(2, 3, 16, 16)
    assert all(torch.equal(teacher(images).logits, teacher.model(images)) for _ in range(4))
    assert lines == [
        "teacher: computed without a CUDA graph, because recording one failed (RuntimeError: CUDA error:"
        " operation not permitted when stream is capturing)"
    ]


def test_maps_of_stages_are_replayed_too_and_other_stages_recorded_anew(recorded_teacher, graphs):
    network = models.build("resnet20", 4, {"width": 0.25})
    plain, (teacher, _) = Teacher(network, SIZE, SIZE, CPU), recorded_teacher(network)
    teacher(images := torch.randn(2, 3, 16, 16)), teacher(images)
    plain.tap()
    plain.taps.use(plain.taps.stages[:2])
    wanted = [plain(each) for each in torch.randn(3, 2, 3, 16, 16, generator=seeded())]
    plain.untap()
    teacher.tap()
    teacher.taps.use(teacher.taps.stages[:2])
    found = [teacher(each) for each in torch.randn(3, 2, 3, 16, 16, generator=seeded())]
    assert len(graphs) == 2 and [len(each.features) for each in found] == [2, 2, 2]
    for one, other in zip(found, wanted, strict=True):
        for a, b in zip((one.logits, *one.features), (other.logits, *other.features), strict=True):
            assert torch.equal(a, b) and not a.is_inference()
    teacher.untap()
    assert [len(teacher(images).features) for _ in range(3)] == [0, 0, 0] and len(graphs) == 3


def seeded():
    return torch.Generator().manual_seed(0)


def test_a_graph_keeps_the_forms_that_it_reads(recorded_teacher, monkeypatch):
    """And they are used while it records, because the teacher's weights do not change."""

    class Weight(nn.Parameter):
        is_cuda = True

    class Layer(nn.Module):
        weight = Weight(torch.ones(4, 3), requires_grad=False)

        def forward(self, x):
            form = forms.kept(self.weight, "test", lambda: self.weight * 2)
            seen.append(form)
            return F.linear(x.mean((2, 3)), form)

    seen, is_recording = [], lambda: on_cuda.torch.utils._python_dispatch._get_current_dispatch_mode()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: is_recording() is not None)
    teacher, lines = recorded_teacher(Layer())
    images = torch.randn(2, 3, 16, 16)
    found = [teacher(images).logits for _ in range(3)]
    assert lines == [] and all(each is seen[0] for each in seen) and torch.equal(found[2], found[0])
    assert len(teacher.recorded._forms) == 1 and teacher.recorded._forms[0] is seen[0]


def test_a_trial_and_a_look_in_fp32_are_without_graph_and_stream(recorded_teacher, graphs):
    teacher, _ = recorded_teacher()
    images = torch.randn(2, 3, 16, 16)
    assert teacher.plain().recorded is None and teacher.plain().side.stream is None
    for _ in range(3):
        teacher.plain()(images), teacher.in_fp32(images)
    assert graphs == []


# streams


class Stream:
    """A stream that writes down for whom it waits."""

    def __init__(self, name, journal):
        self.name, self.journal = name, journal

    def wait_stream(self, other):
        self.journal.append(f"{self.name} waits for {other.name}")


class Held:
    """A tensor that writes down on which streams it is used."""

    def __init__(self, name, journal):
        self.name, self.journal = name, journal

    def record_stream(self, stream):
        self.journal.append(f"{self.name} is used on {stream.name}")


@pytest.fixture
def journal(monkeypatch):
    """What happens to the streams main and side, in order."""
    lines = []
    streams = [Stream("main", lines)]

    @contextlib.contextmanager
    def on(stream):
        streams.append(stream)
        yield
        streams.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", lines))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: streams[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    return lines


def test_the_side_waits_for_the_images_and_the_student_for_the_logits(journal):
    side = SideStream(torch.device("cuda"), True)
    with side.beside(Held("images", journal)):
        journal.append(f"teacher on {torch.cuda.current_stream().name}")
    journal.append(f"student on {torch.cuda.current_stream().name}")
    side.join(Held("logits", journal), Held("map", journal))
    assert journal == [
        "side waits for main",
        "images is used on side",
        "teacher on side",
        "student on main",
        "main waits for side",
        "logits is used on main",
        "map is used on main",
    ]


@pytest.mark.parametrize(("device", "is_wanted"), [("cpu", True), ("cuda", False)])
def test_without_cuda_or_the_wish_there_is_no_other_stream(journal, device, is_wanted):
    side = SideStream(torch.device(device), is_wanted)
    with side.beside(Held("images", journal)):
        pass
    side.join(Held("logits", journal))
    assert journal == [] and side.stream is None


def test_a_step_joins_the_teacher_after_the_student_and_before_the_losses(
    trainer, teacher, images, journal, monkeypatch
):
    mine = trainer(teacher=teacher(), train=images(32))
    mine.teacher.side = SideStream(torch.device("cuda"), True)

    def noted(name, call):
        def noting(*given):
            journal.append(f"{name} on {torch.cuda.current_stream().name}")
            return call(*given)

        return noting

    for place, name in ((mine.objective, "student"), (mine.teacher, "_computed"), (mine, "task_loss")):
        monkeypatch.setattr(place, name, noted(name.strip("_"), getattr(place, name)))
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda _, stream: journal.append(f"kept for {stream.name}")
    )
    mine.step([next(mine.train_loader.epoch(0))])
    assert journal == [
        "side waits for main",
        "kept for side",
        "computed on side",
        "student on main",
        "main waits for side",
        "kept for main",
        "task_loss on main",
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_on_a_gpu_graph_and_stream_give_the_same_logits(compile):
    network = models.build("slak_tiny", 10, {"depths": [1, 1, 1, 1], "dims": [16, 16, 16, 16]})
    spec, cuda, lines = Preprocess((3, 64, 64)), torch.device("cuda"), []
    plain = Teacher(network, spec, spec, cuda, "bf16")
    quick = Teacher(network, spec, spec, cuda, "bf16", compile=compile, graph=True, stream=True)
    quick.recorded.say = lines.append
    for images in torch.randn(6, 4, 3, 64, 64, device="cuda"):
        with quick.side.beside(images):
            found = quick(images)
        busy = images.square().sum()  # meanwhile, on the stream of the student
        quick.side.join(found.logits)
        expected = plain(images).logits
        assert busy > 0 and (found.logits - expected).norm() <= (2e-2 if compile else 0) * expected.norm()
    assert quick.recorded._graph is not None and lines == []
