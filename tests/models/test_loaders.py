"""Samples depend on (seed, epoch, index) alone, and every index is dealt once."""

import pytest
import torch

from models.data import EpochSampler, begin_epoch, build_dataset, build_loader, build_transform
from tests.models.voc_trees import some_mask, write_image, write_list, write_mask


@pytest.fixture
def many(tmp_path):
    names = [f"n{i:02d}" for i in range(11)]
    for i, name in enumerate(names):
        write_image(tmp_path / f"JPEGImages/{name}.jpg", i, (40, 50))
        write_mask(tmp_path / f"SegmentationClass/{name}.png", some_mask(i, size=(40, 50)))
    write_list(tmp_path / "ImageSets/Segmentation/train.txt", names)
    return tmp_path


def epoch_of(root, workers, epoch, batch=2, seed=3):
    dataset = build_dataset(root, transform=build_transform("default", True, 33), seed=seed)
    loader = build_loader(dataset, batch, workers=workers, drop_last=False)
    begin_epoch(loader, epoch)
    return {name: image for b in loader for name, image in zip(b["name"], b["image"], strict=True)}, loader


def test_samples_do_not_depend_on_workers_or_batches(many):
    alone, loader = epoch_of(many, workers=0, epoch=1)
    several, worker_loader = epoch_of(many, workers=2, epoch=1, batch=3)
    assert list(alone) == list(several)
    assert all(torch.equal(alone[name], several[name]) for name in alone)
    for each in (loader, worker_loader):  # workers outlive the epoch and must see the next begin
        begin_epoch(each, 2)
    second = {n: i for b in loader for n, i in zip(b["name"], b["image"], strict=True)}
    second_workers = {n: i for b in worker_loader for n, i in zip(b["name"], b["image"], strict=True)}
    assert list(second) == list(second_workers) != list(alone)
    assert all(torch.equal(second[name], second_workers[name]) for name in second)
    assert not any(torch.equal(second[name], alone[name]) for name in second)


def test_a_resumed_epoch_equals_the_uninterrupted_one(many):
    fresh, _ = epoch_of(many, 0, epoch=4)
    _, loader = epoch_of(many, 0, epoch=3)
    begin_epoch(loader, 4)
    assert all(torch.equal(i, fresh[n]) for b in loader for n, i in zip(b["name"], b["image"], strict=True))
    other_seed, _ = epoch_of(many, 0, epoch=4, seed=4)
    assert list(other_seed) != list(fresh)


@pytest.mark.parametrize("length", [1, 7, 12])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_sampler_deals_every_index_once(length, world):
    for even in (False, True):
        samplers = [EpochSampler(length, True, 0, rank, world, even) for rank in range(world)]
        dealt = [list(sampler) for sampler in samplers]
        assert [len(sampler) for sampler in samplers] == [len(indices) for indices in dealt]
        together = sorted(i for indices in dealt for i in indices)
        assert len(set(together)) == len(together)
        if even:
            assert {len(indices) for indices in dealt} == {length // world}
        else:
            assert together == list(range(length))
