"""Answers on disk: what was asked is what is read, and what is damaged is asked again."""

import json
import warnings

import numpy as np
import pytest
import torch

from swindow.data.augment import AugmentConfig
from swindow.data.labelled import Images
from swindow.errors import ConfigError, DataError
from swindow.objectives import Stream
from swindow.objectives.answers import DamagedAnswers, KeptAnswers
from teaching import HALF

K = 6


class Asked:
    """Logits that differ with every call, and how often there was one."""

    def __init__(self, count, seed=0):
        self.count, self.calls = count, 0
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self):
        self.calls += 1
        return 4 * torch.randn(self.count, K, generator=self.generator)


def kept(folder, top=0, **facts):
    return KeptAnswers(folder, facts, classes=K, top=top)


def never():
    raise AssertionError("the teacher was asked")


def places(*indices):
    return np.asarray(indices, np.int64)


@pytest.mark.parametrize("top", [0, 2])
def test_what_is_read_is_to_the_bit_what_the_asking_run_got(tmp_path, top):
    asked, logits = Asked(4), 4 * torch.randn(4, K, generator=torch.Generator().manual_seed(0))
    first = kept(tmp_path, top).answers(3, places(5, 0, 9, 2), asked)
    again = kept(tmp_path, top).answers(3, places(2, 5, 9, 0), never)
    assert torch.equal(again, first[[3, 0, 2, 1]])
    shares = logits.softmax(1)
    torch.testing.assert_close(first.softmax(1).sum(1), torch.ones(4))
    if top:
        shares = shares.sort(1, descending=True).values
        rest = shares[:, 2:].mean(1, keepdim=True).expand(-1, K - 2)
        torch.testing.assert_close(
            first.softmax(1).sort(1, descending=True).values, torch.cat([shares[:, :2], rest], 1), rtol=2e-3, atol=1e-4
        )
        assert torch.equal(first.argmax(1), logits.argmax(1))
    else:
        torch.testing.assert_close(first.softmax(1), shares, rtol=8e-3, atol=1e-4)


def test_another_epoch_or_key_is_another_answer(tmp_path):
    asked = Asked(2)
    one = kept(tmp_path, teacher="a")
    answers = [one.answers(epoch, places(0, 1), asked) for epoch in (0, 1)]
    kept(tmp_path, teacher="b").answers(0, places(0, 1), asked)
    kept(tmp_path, teacher="a", top=2).answers(0, places(0, 1), asked)
    assert asked.calls == 4
    assert not torch.equal(*answers)
    assert torch.equal(kept(tmp_path, teacher="a").answers(1, places(0, 1), never), answers[1])
    assert len(list(tmp_path.iterdir())) == 3
    assert json.loads((one.folder / "facts.json").read_text())["teacher"] == "a"


def test_a_batch_of_which_one_is_missing_is_asked_whole_and_only_the_missing_is_added(tmp_path):
    first = kept(tmp_path)
    first.answers(0, places(1, 2), Asked(2))
    size = next(first.folder.glob("*.answers")).stat().st_size
    asked = Asked(3, seed=1)
    second = kept(tmp_path)
    found = second.answers(0, places(1, 7, 2), asked)
    assert asked.calls == 1
    own = next(second.folder.glob(f"*{second._own}.answers"))
    assert own.stat().st_size == size // 2
    assert torch.equal(kept(tmp_path).answers(0, places(7), never), found[1:2])


def test_processes_write_side_by_side_and_read_each_other(tmp_path):
    one, other = kept(tmp_path), kept(tmp_path)
    mine, theirs = one.answers(0, places(0, 2), Asked(2)), other.answers(0, places(1, 3), Asked(2, seed=1))
    both = kept(tmp_path).answers(0, places(0, 1, 2, 3), never)
    assert torch.equal(both, torch.stack([mine[0], theirs[0], mine[1], theirs[1]]))


def test_every_flipped_bit_is_found_and_its_answer_asked_again(tmp_path):
    first = kept(tmp_path)
    first.answers(0, places(4, 5, 6), Asked(3))
    file = next(first.folder.glob("*.answers"))
    whole = file.read_bytes()
    size = len(whole) // 3
    for bit in range(0, 8 * size, 7):  # of the second record
        content = bytearray(whole)
        content[size + bit // 8] ^= 1 << bit % 8
        file.write_bytes(bytes(content))
        asked = Asked(1, seed=2)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            kept(tmp_path).answers(0, places(5), asked)
        assert asked.calls == 1
        assert all(one.category is DamagedAnswers for one in told)
        for other in first.folder.glob("*.answers"):
            if other != file:
                other.unlink()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.warns(DamagedAnswers, match=f"{file.name}: damaged"):
        kept(tmp_path).answers(0, places(6), Asked(1))


def test_a_file_that_was_cut_short_keeps_what_is_whole(tmp_path):
    first = kept(tmp_path)
    answers = first.answers(0, places(4, 5, 6), Asked(3))
    file = next(first.folder.glob("*.answers"))
    whole = file.read_bytes()
    size = len(whole) // 3
    for length in (0, 1, size - 1, size, 2 * size, 2 * size + 5):
        file.write_bytes(whole[:length])
        count = length // size
        if count:
            assert torch.equal(kept(tmp_path).answers(0, places(4, 5)[:count], never), answers[:count])
        asked = Asked(1)
        kept(tmp_path).answers(0, places(6), asked)
        assert asked.calls == 1
        for other in first.folder.glob("*.answers"):
            if other != file:
                other.unlink()


def test_an_answer_that_is_not_finite_is_not_kept(tmp_path):
    logits = torch.randn(2, K)
    logits[1, 0] = torch.nan
    assert kept(tmp_path).answers(0, places(0, 1), lambda: logits)[1].isnan().any()
    kept(tmp_path).answers(0, places(0), never)
    asked = Asked(1)
    kept(tmp_path).answers(0, places(1), asked)
    assert asked.calls == 1


def test_places_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cache_top is 6 and there are 6 classes"):
        kept(tmp_path, K)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: cannot keep a teacher's answers here"):
        kept(tmp_path / "file")


def images(value=0, **changes):
    pixels = torch.full((3, 3, 4, 4), value, dtype=torch.uint8)
    how = {"names": ["a", "b", "c"], "labels": np.zeros(3, np.int64), "classes": ("x",), "channels": 3}
    return Images(**(how | {"pixels": pixels} | changes))


def stream(**changes):
    how = {"images": images(), "augment": AugmentConfig(), "preprocess": HALF, "seed": 0, "batch": 8}
    return Stream(**(how | changes))


def test_answers_go_by_all_that_pixels_depend_on(tmp_path):
    plain = stream().facts()
    for changes in (
        {"images": images(1)},
        {"augment": AugmentConfig(hflip=0.5)},
        {"preprocess": None},
        {"seed": 1},
        {"precision": "bf16"},
    ):
        assert stream(**changes).facts() != plain
    assert stream(batch=16, accumulate=2, world=2).facts() == plain  # an unmixed image does not know its batch
    mixed = AugmentConfig(mixup=0.2)
    others = [stream(augment=mixed, **how).facts() for how in ({}, {"batch": 16}, {"accumulate": 2}, {"world": 2})]
    assert all(one != other for place, one in enumerate(others) for other in others[:place])


def test_files_go_by_names_sizes_and_times(tmp_path):
    names = [str(tmp_path / name) for name in "abc"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    before = stream(images=images(names=names, pixels=None)).facts()
    assert stream(images=images(names=names, pixels=None)).facts() == before
    (tmp_path / "b").write_bytes(b"xy")
    assert stream(images=images(names=names, pixels=None)).facts() != before
    (tmp_path / "c").unlink()
    with pytest.raises(DataError, match="c: not a local file"):
        stream(images=images(names=names, pixels=None)).facts()


def test_images_that_come_several_times_an_epoch_are_refused():
    with pytest.raises(ConfigError, match="augment repeats is 3 and answers are kept by epoch and image"):
        stream(augment=AugmentConfig(repeats=3)).facts()


def test_shards_go_by_what_they_tell_of_images():
    class Shards:
        read = order = damaged = cached = len

        def __init__(self, last):
            self.last = last

        def name(self, row):
            return f"a.tar/{row}"

        def digest(self, row):
            return self.last if row == 2 else None

    def facts(last, rows):
        return stream(images=images(pixels=None, encoded=Shards(last), rows=np.asarray(rows))).facts()

    assert facts(7, [0, 1, 2]) == facts(7, [0, 1, 2])
    assert facts(7, [0, 1, 2]) != facts(8, [0, 1, 2])
    assert facts(7, [0, 1, 2]) != facts(7, [1, 0, 2])
