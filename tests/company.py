"""Processes that are one group (gloo, CPU), started once and asked to run functions together."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

PATIENCE = 120.0
"""Seconds to wait for an answer, after which the processes are taken for stuck and ended."""


class Company:
    """`world` processes in which `ask` calls a function at once; what one raises is raised here."""

    def __init__(self, world: int = 2) -> None:
        self.world = world
        self.pipes: list[Any] = []
        self.members: list[Any] = []

    def ask(self, function: Callable[..., Any], *given: Any, **named: Any) -> list[Any]:
        """What the function, which must be importable by its name, returns in each process."""
        if not self.members:
            self._start()
        for pipe in self.pipes:
            pipe.send((function, given, named))
        answers = [self._answer(rank) for rank in range(self.world)]
        wrong = [f"process {rank}:\n{text}" for rank, (well, text) in enumerate(answers) if not well]
        if wrong:
            self.end()  # the others may still wait for the one that failed
            raise AssertionError("\n".join(wrong))
        return [value for _, value in answers]

    def end(self) -> None:
        """Let the processes go."""
        for member in self.members:
            member.kill()
            member.join()
        self.pipes, self.members = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        port = _free_port()
        for rank in range(self.world):
            ours, theirs = context.Pipe()
            member = context.Process(target=_member, args=(theirs, rank, self.world, port), daemon=False)
            member.start()
            self.pipes.append(ours)
            self.members.append(member)

    def _answer(self, rank: int) -> tuple[bool, Any]:
        pipe = self.pipes[rank]
        if not pipe.poll(PATIENCE):
            return False, f"no answer in {PATIENCE:.0f} s"
        try:
            return pipe.recv()
        except EOFError:
            return False, "it is gone"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _member(pipe: Any, rank: int, world: int, port: int) -> None:
    facts = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in facts.items()})
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    while True:
        try:
            function, given, named = pipe.recv()
        except EOFError:  # whoever asked is gone
            return
        torch.manual_seed(0)
        try:
            pipe.send((True, function(*given, **named)))
        except BaseException:  # noqa: BLE001  # whoever asked is to know
            pipe.send((False, traceback.format_exc()))
