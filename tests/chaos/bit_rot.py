"""Bar: nothing damaged is ever used. Flipped bits, files cut short, swapped, deleted, with a block of zeros."""

import contextlib
import dataclasses
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from chaos.crash_points import Half
from chaos.lanes import Lanes, Result
from chaos.trial import Training, Trial, seeded, trial

BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class Saved:
    """How saved states are found and chosen, for those that can be asked without training."""

    newest: Callable[[Path], Path]
    """The folder of the newest finished state of a run, by its name."""
    step: Callable[[Path], int]
    """The step of such a folder."""
    chosen: Callable[[Path], tuple[int, list[str]]]
    """The step that a run would go on from, its tensors read, and what it says about others; -1 if it refuses."""


def bit_rot(
    training: Training, lanes: Lanes, saved: Saved, *, half: Half, flips: int, cuts: int, resumed: int, seed: int
) -> Result:
    """Every kind of damage to the newest state of a run that has an older one.

    Passes if the loader each time takes the older one and names the damaged folder, and if runs that go on from there
    (`resumed` of them) end in the state of the one that was left alone.
    """
    with trial(training, lanes.place) as alone:
        want = alone.finish()
    with trial(training, lanes.place) as base:
        _stop(base, half)
        chance = seeded(seed)
        names = [path.name for path in sorted(saved.newest(base.run).iterdir())]
        damages = [Damage("flip", chance.choice(names), chance.random()) for _ in range(flips)]
        damages += [Damage("cut", chance.choice(names), chance.random()) for _ in range(cuts)]
        for name in names:
            damages += [Damage("delete", name, 0.0), Damage("zeros", name, chance.random())]
            damages += [Damage("swap", name, 0.0, other) for other in names if other > name]
        share = max(len(damages) // max(resumed, 1), 1)
        items = [(damage, number % share == 0) for number, damage in enumerate(damages)]

        def work(item: tuple[Damage, bool], place: Path) -> Result:
            return _one(training, place, base.run, saved, item[0], resume=item[1])

        done = lanes.map(work, items)
    unseen = [one for one in done if not one["detected"]]
    lost = [one for one in done if one["state"] not in (None, want)]
    count = {kind: sum(one.kind == kind for one in damages) for kind in ("flip", "cut", "delete", "zeros", "swap")}
    return {
        "bar": "bit-rot",
        **{f"{kind}s" if kind != "zeros" else kind: number for kind, number in count.items()},
        "detected": len(done) - len(unseen),
        "said_so": sum(one["said"] for one in done),
        "went_on_from_the_one_before": sum(one["fell_back"] for one in done),
        "resumed_to_the_same_state": sum(one["state"] == want for one in done),
        "passed": not unseen and not lost and all(one["said"] and one["fell_back"] for one in done),
        "failures": [*unseen[:3], *lost[:3], *[one for one in done if not one["said"]][:2]],
    }


@dataclasses.dataclass(frozen=True)
class Damage:
    """What happens to one file."""

    kind: str
    name: str
    where: float
    """As a share of its length."""
    other: str = ""

    @contextlib.contextmanager
    def done_to(self, folder: Path) -> Iterator[bool]:
        """Do it, and undo it afterwards; gives whether anything is different."""
        path = folder / self.name
        before = path.read_bytes()
        beside = (folder / self.other).read_bytes() if self.other else b""
        if self.kind == "delete":
            path.unlink()
        elif self.kind == "swap":
            path.write_bytes(beside)
            (folder / self.other).write_bytes(before)
        else:
            path.write_bytes(self._damaged(before))
        yield self.kind == "delete" or path.read_bytes() != before
        if folder.is_dir() and path.parent.is_dir():  # or somebody has cleared it away
            path.write_bytes(before)
            if self.other:
                (folder / self.other).write_bytes(beside)

    def _damaged(self, content: bytes) -> bytes:
        if self.kind == "cut":
            return content[: int(self.where * len(content))]
        changed = bytearray(content)
        if self.kind == "flip":
            bit = int(self.where * 8 * len(content))
            changed[bit // 8] ^= 1 << bit % 8
        else:
            start = int(self.where * max(len(content) - BLOCK, 0))
            block = changed[start : start + BLOCK]
            changed[start : start + BLOCK] = bytes(len(block))
        return bytes(changed)


def _stop(base: Trial, half: Half) -> None:
    code, said, _ = base.go(extra=half)
    if code:
        raise RuntimeError(f"the training does not work without faults either:\n{said}")


def _one(training: Training, place: Path, like: Path, saved: Saved, damage: Damage, *, resume: bool) -> Result:
    """Damage a copy that is kept in this lane; ask the loader; once in a while go on from it in another copy."""
    run = place / "damaged"
    if not run.exists():
        shutil.copytree(like, run)
    newest = saved.newest(run)
    with damage.done_to(newest) as changed, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step, said = saved.chosen(run) if changed else (-1, [newest.name])
        state = None
        if resume:
            with trial(training, place, like=run) as one:
                state = one.finish()
    fell_back = 0 <= step < saved.step(newest) or not changed
    return {
        "damage": dataclasses.asdict(damage),
        "detected": step < saved.step(newest),
        "fell_back": fell_back,
        "said": any(newest.name in line or str(saved.step(newest)) in line for line in said),
        "state": state,
    }
