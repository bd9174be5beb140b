"""Weight buckets keep every bit, and what changed on the way is refused."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

from rlhf.errors import WeightSyncError
from rlhf.rollout.updates import UpdateState
from rlhf.rollout.weights import WeightBucket, fingerprint, pack, unpack


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "a.bf16": torch.randn(5, 3, generator=generator).bfloat16(),
        "b.odd": torch.randn(7, generator=generator).half(),  # 14 bytes: what follows is not 4-byte aligned
        "c.fp32": torch.randn(2, 3, 4, generator=generator),
        "d.scalar": torch.tensor(2.5),
        "e.empty": torch.zeros(0, 4),
        "f.special": torch.tensor([float("nan"), -0.0, float("inf"), 1e-42]),
        "g.view": torch.arange(12.0).reshape(3, 4).T,
    }


@pytest.fixture
def bucket() -> WeightBucket:
    return pack(_tensors().items())


def test_round_trip_keeps_every_bit(bucket: WeightBucket) -> None:
    back = dict(unpack(pickle.loads(pickle.dumps(bucket))))
    assert list(back) == list(_tensors())
    for name, tensor in _tensors().items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        expected = tensor.contiguous().reshape(-1).view(torch.uint8)
        assert torch.equal(back[name].reshape(-1).view(torch.uint8), expected), name


def test_a_bucket_is_a_copy() -> None:
    weight = torch.ones(3)
    bucket = pack([("w", weight)])
    weight.zero_()
    assert dict(unpack(bucket))["w"].tolist() == [1, 1, 1]


def test_a_read_only_buffer_can_be_unpacked(bucket: WeightBucket) -> None:
    data = bucket.data.copy()
    data.flags.writeable = False  # as Ray's object store hands it out
    assert torch.equal(dict(unpack(replace(bucket, data=data)))["c.fp32"], _tensors()["c.fp32"])


@pytest.mark.parametrize("change", ["bit", "name", "shape", "dtype", "order"])
def test_a_changed_bucket_is_refused(bucket: WeightBucket, change: str) -> None:
    data = bucket.data.copy()
    data[-1] ^= 1
    broken = {
        "bit": replace(bucket, data=data),
        "name": replace(bucket, names=("z", *bucket.names[1:])),
        "shape": replace(bucket, shapes=((3, 5), *bucket.shapes[1:])),
        "dtype": replace(bucket, dtypes=("float16", *bucket.dtypes[1:])),
        "order": replace(bucket, names=bucket.names[::-1]),
    }[change]
    with pytest.raises(WeightSyncError, match="changed on its way"):
        list(unpack(broken))


def test_the_fingerprint_knows_content_and_order() -> None:
    one, two = pack([("a", torch.ones(2))]), pack([("a", torch.zeros(2))])
    assert one.digest == pack([("a", torch.ones(2))]).digest
    assert fingerprint([one.digest, two.digest]) == fingerprint(iter([one.digest, two.digest]))
    prints = {fingerprint(d) for d in ([one.digest, two.digest], [two.digest, one.digest], [one.digest], [two.digest])}
    assert len(prints) == 4


def test_an_update_answers_only_when_it_is_whole() -> None:
    state = UpdateState()
    assert state.version == 0
    with pytest.raises(WeightSyncError, match="no weight update is open"):
        state.require_open()
    state.begin(5)
    assert state.version == -1
    with pytest.raises(WeightSyncError, match="version 5 is unfinished"):
        state.require_closed()
    state.received("x")
    state.failed("first reason")
    state.failed("second reason")
    for refused in (state.require_open, state.finish, state.require_closed):
        with pytest.raises(WeightSyncError, match="first reason"):
            refused()
    state.begin(6)
    state.received("y")
    assert state.finish() == fingerprint(["y"])  # nothing of the dropped update is left
    assert state.version == 6
    state.require_closed()
