"""Bar: power cuts. Kills never test fsync, since the system keeps what was written; here it forgets what it may.

The file operations of a sitting are recorded. For every moment, the disk may hold any mixture of what was not synced by
then: writes lost, torn at a sector, or as zeros, and names made, changed or removed, or not. What was synced stays: a
file's content by an fsync of the file, a name by one of its folder. That is all that POSIX promises, and less than any
file system in use does.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from chaos.crash_points import Half
from chaos.disk import Disk, Loss
from chaos.faults import Orders
from chaos.lanes import Lanes, Result
from chaos.operations import Operation, read_log
from chaos.trial import Training, seeded, trial

WHOLESALE = (
    Loss(names=0.0, content=0.0),
    Loss(names=1.0, content=0.0),
    Loss(names=1.0, content=0.0, zeros=True),
    Loss(names=1.0, content=0.5, torn=True),
    Loss(names=0.0, content=1.0),
)
"""Everything lost; files that are there and empty; or full of zeros; or torn; and files that nobody can find."""


def power_loss(training: Training, lanes: Lanes, *, half: Half, count: int, seed: int) -> Result:
    """At least `count` different states of a disk after a power cut during a sitting, each gone on from to the end.

    Passes if every one of them ends in the state of the run that was left alone, if none goes back behind the last
    commit that was synced, and if commits sync content, rename, and sync the folder, in that order.
    """
    with trial(training, lanes.place) as base:
        log = base.folder / "operations.log"
        if half:
            base.go(Orders(log=log), half)
        first = len(read_log(log, base.run)) if half else 0
        code, said, _ = base.go(Orders(log=log))
        if code:
            raise RuntimeError(f"the training does not work without faults either:\n{said}")
        want, operations = training.state(base.run), read_log(log, base.run)
        cuts = list(_distinct(operations, first, count, seed))

        def work(cut: tuple[int, Loss, int], place: Path) -> Result:
            moment, loss, seed = cut
            with trial(training, place) as one:
                Disk(operations[:moment]).after_power_loss(loss, seeded(seed)).lay_out(one.run)
                code, said, board = one.go()
                state = training.state(one.run) if code == 0 else f"exit {code}: {said[-1500:]}"
                return {"after": str(operations[moment - 1]), "moment": moment, "from": board.began, "state": state}

        done = lanes.map(work, cuts)
    durable = [durable_step(operations[: one["moment"]]) for one in done]
    back = [one for one, step in zip(done, durable, strict=True) if 0 <= one["from"] < step]
    wrong = [one for one in done if one["state"] != want]
    disorder = out_of_order(operations)
    return {
        "bar": "power-loss",
        "operations": len(operations) - first,
        "states": len(done),
        "same_final_state": len(done) - len(wrong),
        "behind_the_last_synced_commit": len(back),
        "commits_in_order": not disorder,
        "passed": not (wrong or back or disorder),
        "failures": [*wrong[:3], *back[:3], *disorder[:3]],
    }


def durable_step(operations: list[Operation]) -> int:
    """The step of the newest state whose name was synced; 0 where there is none."""
    named: dict[PurePosixPath, int] = {}
    synced = 0
    for operation in operations:
        if operation.kind == "rename" and operation.other and is_state(operation.other):
            named[operation.other] = int(operation.other.name.split("-")[1])
        if operation.kind == "sync":
            synced = max([synced, *(step for path, step in named.items() if path.parent == operation.path)])
    return synced


def is_state(path: PurePosixPath) -> bool:
    """Whether this is the proper name of a saved state."""
    return path.parent.name == "steps" and path.name.startswith("step-") and "." not in path.name


def out_of_order(operations: list[Operation]) -> list[str]:
    """Commits that are not: every file's content synced, then their folder, then the rename, then its folder."""
    found = []
    for place, operation in enumerate(operations):
        if operation.kind == "rename" and operation.other is not None and is_state(operation.other):
            found += [f"{operation}: {wrong}" for wrong in _wrong_with(operation, operations, place)]
    return found


def _wrong_with(commit: Operation, operations: list[Operation], place: int) -> Iterator[str]:
    before, after = operations[:place], operations[place + 1 :]
    within = [(number, one) for number, one in enumerate(before) if one.path.parent == commit.path]
    written = {one.path: number for number, one in within if one.kind == "write"}
    made = [number for number, one in within if one.kind == "create"]
    synced = {one.path: number for number, one in enumerate(before) if one.kind == "sync"}
    for path, number in written.items():
        if synced.get(path, -1) < number:
            yield f"{path} is not synced before"
    if made and synced.get(commit.path, -1) < max(made):
        yield "the names within are not synced before"
    following = next((one for one in after if one.kind in ("sync", "unlink", "rmdir", "rename")), None)
    if following is None or following.kind != "sync" or following.path != commit.other.parent:  # type: ignore[union-attr]
        yield f"its folder is not synced next, but {following}"


def _distinct(operations: list[Operation], first: int, count: int, seed: int) -> Iterator[tuple[int, Loss, int]]:
    """Moments and losses that make different disks: wholesale ones after every operation, then random mixtures."""
    chance, seen, made = seeded(seed), set(), 0
    moments = range(first + 1, len(operations) + 1)
    wholesale = [(moment, loss) for loss in WHOLESALE for moment in moments]
    chance.shuffle(wholesale)
    for number in range(40 * count):
        if number < len(wholesale):
            moment, loss = wholesale[number]
        else:
            moment = chance.choice(moments)
            loss = Loss(
                names=chance.random(), content=chance.random(), torn=chance.random() < 0.5, zeros=chance.random() < 0.3
            )
        draw = chance.randrange(2**32)
        digest = Disk(operations[:moment]).after_power_loss(loss, seeded(draw)).digest(hashlib.sha256())
        if digest not in seen:
            seen.add(digest)
            made += 1
            yield moment, loss, draw
        if made == count:
            return
