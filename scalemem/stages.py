"""The programs of a pack's stages, as the work on it asks for them; one call of each is one computation on the pack's devices."""

from __future__ import annotations

from typing import Any

import jax

from scalemem import pack, record, sharding, train
from scalemem.pack import Pack


class Stages:
    """The programs of a pack's stages, and which segments are whose: stage s has those after begins[s], up to begins[s + 1]."""

    def __init__(self, p: Pack, how: str, devices: int):
        count = len(p.runs[0].stages)
        self.shape = p.shape
        self.way = (how, devices, p.size if how == "fsdp" else 1)  # of its size no other program depends
        self.knobs = [pack.knobs(p, i) for i in range(count)]
        self.programs = [pack.program(p.shape.stage(i), *self.way) for i in range(count)]
        self.begins = [0]
        for i in range(count):
            self.begins.append(self.begins[-1] + max(record.segments(run, i) for run in p.runs))

    def of(self, segment: int) -> int:
        """The stage that a state after so many segments is in: at the end of one stage it is still that one's."""
        return next((s for s in range(len(self.knobs)) if segment <= self.begins[s + 1]), len(self.knobs) - 1)

    def start(self) -> train.State:
        return self.programs[0].start(self.knobs[0])

    def advance(self, states: train.State, stage: int, segments: int) -> train.State:
        return self.programs[stage].advance(states, self.knobs[stage], segments)

    def switch(self, states: train.State, stage: int) -> train.State:
        """The states before the first step of a stage."""
        return pack.switch(self.shape, stage, *self.way)(states, self.knobs[stage - 1], self.knobs[stage])

    def like(self, segment: int) -> train.State:
        """Shapes and types of the states after so many segments; of a split state also where its parts are."""
        states = jax.eval_shape(self.programs[0].start, self.knobs[0])
        for stage in range(1, self.of(segment) + 1):
            switch = pack.switch(self.shape, stage, *self.way)
            states = jax.eval_shape(switch, states, self.knobs[stage - 1], self.knobs[stage])
        return sharding.like(states, self.mesh) if self.way[0] == "fsdp" else states

    @property
    def mesh(self) -> Any:
        """The devices over which the states lie; None on one."""
        return self.programs[0].mesh

    def kept(self, states: train.State) -> train.State:
        """What is written as a checkpoint."""
        return states

    def restored(self, states: train.State) -> train.State:
        """What a checkpoint gave, as the programs take it."""
        return states

    def run(self, states: train.State, i: int) -> train.State:
        """The state of run i in the memory of the host, but for what no row of it needs."""
        bare = states._replace(optimizer=(), rest=(), memory=())
        return jax.device_get(pack.unpack(bare, i))

    def reference(self, states: train.State, i: int) -> Any:
        """The weights of run i at the start of the stage."""
        return pack.unpack(states.reference, i)

    def weights(self, states: train.State, i: int, stage: int, segment: int) -> Any:
        """The weights of run i of the pack, after so many segments of a stage."""
        ended = segment >= self.begins[stage + 1] - self.begins[stage]
        return pack.weights(self.shape.stage(stage), pack.unpack(states, i), pack.unpack(self.knobs[stage], i), ended)
