"""Recordings that fail: calls are made one by one from then on, and nothing goes on recording. On a device that pretends to."""

import contextlib
import gc
from types import SimpleNamespace

import pytest

from flamert.runtime import capture
from flamert.runtime.capture import Replay


class Stream(contextlib.nullcontext):
    """A stream whose recordings cannot be ended once something went wrong in them."""

    recording = broken = False

    def begin_capture(self):
        self.recording = True

    def end_capture(self):
        self.recording = False
        if self.broken:
            raise RuntimeError("invalidated")
        return SimpleNamespace(graph=0, launch=lambda: launches.append(1))


launches = []


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(capture, "reads_host_memory", lambda graph: False)
    launches.clear()
    streams = []

    def stream(non_blocking):
        assert non_blocking
        streams.append(Stream())
        return streams[-1]

    pool = SimpleNamespace(malloc=None)
    cuda = SimpleNamespace(Stream=stream, MemoryPool=lambda: pool, using_allocator=contextlib.nullcontext)
    cuda.Device = contextlib.nullcontext
    return SimpleNamespace(xp=SimpleNamespace(cuda=cuda), index=0, synchronize=lambda: None, streams=streams)


def test_the_second_call_records_and_every_later_one_launches(device):
    made = []
    replay = Replay(device, [lambda: made.append(device.streams and device.streams[-1].recording)], None)
    assert not replay() and not replay.recorded
    assert replay() and replay() and replay.recorded
    assert made == [True] and len(launches) == 2 and len(device.streams) == 1


@pytest.mark.parametrize("broken", [False, True])
def test_what_cannot_be_recorded_is_not_tried_again(device, broken):
    def call():
        device.streams[-1].broken = broken
        raise ValueError("no such engine")

    replay = Replay(device, [call], None)
    assert [replay() for _ in range(3)] == [False] * 3
    assert replay.obstacle == "a kernel cannot be recorded: no such engine" and len(device.streams) == 1
    assert not device.streams[0].recording and gc.isenabled()


def test_an_interrupted_recording_is_ended_and_made_again(device):
    interrupts = [KeyboardInterrupt]

    def call():
        if interrupts:
            device.streams[-1].broken = True
            raise interrupts.pop()

    replay = Replay(device, [call], None)
    replay()
    with pytest.raises(KeyboardInterrupt):
        replay()
    assert not device.streams[0].recording and gc.isenabled() and not launches
    assert replay() and replay.obstacle is None and len(launches) == 1
