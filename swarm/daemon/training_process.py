"""The training process of a node: opens the work link, waits to be admitted, trains."""

from __future__ import annotations

import asyncio
import platform
import signal
import socket

import torch

from swarm.daemon.body_sizes import BodySizes
from swarm.daemon.bridge import Begin, Failed, Listening, Stop
from swarm.daemon.bridges import SocketBridge
from swarm.daemon.compute import InlineCompute
from swarm.daemon.founders import check_memory
from swarm.daemon.links import open_link
from swarm.daemon.options import NodeOptions, UserError
from swarm.daemon.process import (
    TRAINING_SLICE_NS,
    check_device,
    choose_slice,
    die_with_parent,
    keep_heap,
    memory_total_bytes,
)
from swarm.daemon.training_half import TrainingHalf
from swarm.daemon.training_setup import WORK_SCHEMA, TrainingSetup
from swarm.daemon.trust import Trust
from swarm.events import Emit, EventFile, wall_time
from swarm.job import parse_job
from swarm.pipeline.data import load_corpus
from swarm.pipeline.model import preset
from transport.identity import Identity
from transport.segments import LinkLimits
from transport.zmq_link import ZmqLink

HELD_PART = 2
"""What others send and nobody has taken yet may be this part of a node's memory."""


def run_training(options: NodeOptions, identity: Identity, end: socket.socket, parent: int) -> int:
    """In the forked child: train until told to stop or until the parent is gone."""
    die_with_parent(parent)
    keep_heap()
    choose_slice(TRAINING_SLICE_NS)
    torch.set_num_threads(options.threads)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the gossip process decides when we leave
    return asyncio.run(_train(options, identity, end))


async def _train(options: NodeOptions, identity: Identity, end: socket.socket) -> int:
    bridge = await SocketBridge.open(end)
    emit = EventFile(options.data_dir / "events.jsonl")
    link: ZmqLink | None = None
    sizes = BodySizes()
    memory_bytes = options.memory_bytes or memory_total_bytes()
    try:
        check_device(options.device)
        link = await open_link(
            identity,
            WORK_SCHEMA.bounded(sizes),
            what="work",
            directory=options.data_dir,
            emit=emit,
            limits=LinkLimits(held_bytes_max=memory_bytes // HELD_PART),
            host=options.host,
            advertise=options.advertise,
            port=options.work_port,
        )
        bridge.send(Listening(address=link.endpoint.address))
        begin = await bridge.recv()
        if isinstance(begin, Stop):
            return 0
        assert isinstance(begin, Begin)
        setup = _setup(options, identity, begin, emit)
        check_memory(setup.memory_bytes, setup.stage_sizes())
        sizes.learn(setup.job, setup.config.width, setup.stage_sizes())
        half = TrainingHalf(setup, link, bridge, InlineCompute())
        await half.run()
    except EOFError:
        return 1
    except (UserError, ValueError, OSError) as error:
        bridge.send(Failed(reason=str(error)[:2000]))
        await bridge.drain()
        return 2
    finally:
        if link is not None:
            await link.close()
        bridge.close()
    return 0


def _setup(options: NodeOptions, identity: Identity, begin: Begin, emit: Emit) -> TrainingSetup:
    job = parse_job(begin.job_toml, "the job of the lobby")
    corpus = load_corpus(job.data)
    return TrainingSetup(
        me=identity.node,
        sign=identity.signing_in(job.digest),
        public_key=Trust(job.digest, begin.root_key, wall_time).public_key,
        job=job,
        config=preset(job.model.preset, corpus.vocab),
        corpus=corpus,
        data_dir=options.data_dir,
        device=options.device,
        platform=platform_of(options.device),
        memory_bytes=options.memory_bytes or memory_total_bytes(),
        checkpoints=options.checkpoints,
        wall=wall_time,
        emit=emit,
    )


def platform_of(device: str) -> str:
    """What must be equal for two nodes to agree bit for bit: kernels, device and torch."""
    kind = torch.device(device).type
    chip = torch.cuda.get_device_name(device) if kind == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{kind}/{chip}/{platform.machine()}/torch-{torch.__version__}"[:128]
