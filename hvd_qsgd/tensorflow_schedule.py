"""Schedules in TensorFlow: while a graph runs, its ops ask here for levels, and tell what frames arrived."""

from __future__ import annotations

import ctypes
import functools
import json
import threading
import weakref
from ctypes import c_char_p, c_int, c_int64, c_uint32, c_uint64, c_void_p
from typing import Any

import tensorflow as tf

from hvd_qsgd import controller, tensorflow_ops
from hvd_qsgd.config import Levels, Quantization
from hvd_qsgd.controller import Controller
from hvd_qsgd.progress import Progress


class Scheduled(tf.train.experimental.PythonState):  # type: ignore[misc]
    """The schedule of compressor number ``compressor``, if it has one, and what it knows; a part of checkpoints.

    A step is what one run of a graph reduces: it is over when the next run asks.
    """

    def __init__(self, compressor: int) -> None:
        super().__init__()
        self._compressor = compressor
        self.quantization: Quantization | None = None  # None: without a schedule
        self._controller: Controller | None = None
        self._lock = threading.Lock()  # ops run in several threads
        self._run = 0
        self._opened: dict[str, int] = {}  # levels by tensor, in this run
        _all[compressor] = self
        _connect()

    @property
    def levels(self) -> Levels:
        """Of all tensors in the step that is next or under way; None: they differ."""
        return None if self._controller is None else self._controller.levels

    def use(self, quantization: Quantization, past: Progress | None = None) -> None:
        """Go on with ``quantization``, and its schedule after ``past``: where it is, or at its beginning."""
        with self._lock:
            self._end_step()
            scheduled = quantization.schedule is not None
            if self._controller is not None and quantization.schedule is self._controller.schedule:
                past = self._controller.past
            self.quantization = quantization if scheduled else None
            self._controller = Controller(quantization, past) if scheduled else None
            self._sign()

    def state(self) -> dict[str, Any]:
        """Entries for a compressor's saved state: the schedule and its progress, if there is one."""
        with self._lock:
            self._end_step()
            return {} if self._controller is None else {controller.KEY: self._controller.state()}

    def serialize(self) -> str:
        """For ``tf.train.Checkpoint``."""
        kept = {} if self.quantization is None else self.quantization.saved()
        return json.dumps({**kept, **self.state()})

    def deserialize(self, text: bytes) -> None:
        """From ``tf.train.Checkpoint``."""
        kept = json.loads(text)
        self._opened = {}
        if controller.KEY in kept:
            schedule, past = controller.read_state(kept.pop(controller.KEY))
            self.use(Quantization.create(**kept, schedule=schedule), past)
        else:
            self.quantization = self._controller = None
            self._sign()

    def decide(self, tensor: str, elements: int, run: int) -> int:
        """Levels of the tensor's frame in this run; 0: the run is none of the last step."""
        with self._lock:
            if run > self._run:
                self._end_step()
                self._run = run
            if self._controller is None or run < self._run or tensor in self._opened:
                return 0
            levels = self._controller.quantization(tensor, elements).levels
            assert isinstance(levels, int)
            self._opened[tensor] = levels
            return levels

    def arrived(self, tensor: str, run: int, frames: int, ranks: int) -> bool:
        """The tensor's frames of all ranks are at address ``frames``. False: its step is over already."""
        with self._lock:
            if self._controller is None:
                return True
            if run != self._run or tensor not in self._opened:
                return False
            self._controller.arrived(tensor, controller.read_arrival(frames, ranks, self._opened[tensor]))
            return True

    def _sign(self) -> None:
        """Let tokens tell whether ranks have different schedules, and the ops whether they are to tell of frames."""
        signature, needs_frames = "", False
        if self._controller is not None:
            signature, needs_frames = self._controller.signature, self._controller.schedule.needs_frames
        sign = tensorflow_ops.native_library().qsgd_tensorflow_sign_schedule
        sign(c_int64(self._compressor), signature.encode(), c_int(needs_frames))

    def _end_step(self) -> None:
        if self._controller is not None and self._opened:
            self._controller.settle(len(self._opened))
        self._opened = {}


_all: weakref.WeakValueDictionary[int, Scheduled] = weakref.WeakValueDictionary()


def _decide(compressor: int, tensor: bytes, elements: int, run: int) -> int:
    scheduled = _all.get(compressor)
    return 0 if scheduled is None else scheduled.decide(tensor.decode(), elements, run)


def _arrived(compressor: int, tensor: bytes, run: int, frames: int, ranks: int) -> int:
    scheduled = _all.get(compressor)
    return scheduled is None or scheduled.arrived(tensor.decode(), run, frames, ranks)


# Called while the interpreter runs other threads; what they raise is printed, and is 0 to the ops: an error.
_CALLED_BY_OPS = (
    ctypes.CFUNCTYPE(c_uint32, c_int64, c_char_p, c_uint64, c_int64)(_decide),
    ctypes.CFUNCTYPE(c_int, c_int64, c_char_p, c_int64, c_void_p, c_uint32)(_arrived),
)


@functools.cache
def _connect() -> None:
    tensorflow_ops.native_library().qsgd_tensorflow_schedule_by(*_CALLED_BY_OPS)
