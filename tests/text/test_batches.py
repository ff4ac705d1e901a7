"""Order, splits, shards, padding, packing and resuming."""

import json

import cloudpickle
import grain
import numpy as np
import pytest

from jaxdiff.config import SourceConfig, TextConfig
from jaxdiff.errors import JaxdiffError
from jaxdiff.text import batches, count, encode_document, splits
from jaxdiff.types import Role

CONTEXT, BATCH, DOCUMENTS = 16, 3, 40


@pytest.fixture
def corpus(write):
    """40 texts, each unlike the others, of 1 to 19 letters."""
    rows = [{"text": chr(0x100 + i) + "x" * (i * 7 % 18)} for i in range(DOCUMENTS)]
    return (write("corpus.jsonl", rows),)


@pytest.fixture
def read(bytes_):
    def read(sources, *, start=0, stop=DOCUMENTS, seed=0, **settings):
        settings = {"context": CONTEXT, "batch": BATCH} | settings
        return batches(sources, bytes_, start=start, stop=stop, seed=seed, **settings)

    return read


def documents(dataset):
    """Tokens of each document by its index, put together from the batches."""
    found = {}
    for batch in dataset:
        for row in range(BATCH):
            for index in np.unique(batch.sequences[row]):
                if index >= 0:
                    assert index not in found, "a document was split or given twice"
                    at = batch.sequences[row] == index
                    place = np.flatnonzero(at)
                    assert np.all(np.diff(place) == 1)
                    np.testing.assert_array_equal(batch.positions[row][at], np.arange(at.sum()))
                    found[int(index)] = tuple(batch.tokens[row][at].tolist())
    return found


def equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for name in ("tokens", "roles", "sequences", "positions", "labels"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("pack", [False, True])
def test_every_token_exactly_once(corpus, read, bytes_, pack):
    got = documents(read(corpus, pack=pack))
    assert sorted(got) == list(range(DOCUMENTS))
    texts = [chr(0x100 + i) + "x" * (i * 7 % 18) for i in range(DOCUMENTS)]
    want = {tuple(encode_document(bytes_, {"text": t}, CONTEXT).tokens.tolist()) for t in texts}
    assert set(got.values()) == want


@pytest.mark.parametrize("pack", [False, True])
def test_shapes_dtypes_and_padding(corpus, read, pack):
    for batch in read(corpus, pack=pack):
        for name in ("tokens", "roles", "sequences", "positions", "labels"):
            field = getattr(batch, name)
            assert field.shape == (BATCH, CONTEXT)
            assert field.dtype == np.int32
            if name != "sequences":
                assert np.all(field[batch.sequences < 0] == 0)
        # Padding is behind the documents, so that the last column tells what a row had to spare.
        padding = batch.sequences < 0
        assert np.all(np.diff(padding.astype(int), axis=1) >= 0)
        real = ~padding & (batch.positions > 0)
        assert np.all(batch.roles[real] == Role.TEXT)
        assert np.all(batch.roles[~padding & (batch.positions == 0)] == Role.TEMPLATE)


def test_last_batch_is_filled_with_padding_rows(corpus, read):
    got = list(read(corpus, stop=7))
    assert len(got) == 3
    assert np.all(got[-1].sequences[0] < 7) and got[-1].sequences[0, 0] == 6
    assert np.all(got[-1].sequences[1:] == -1)


@pytest.mark.parametrize("pack", [False, True])
def test_order_depends_on_the_seed_only(corpus, read, pack):
    equal(list(read(corpus, pack=pack, seed=5)), list(read(corpus, pack=pack, seed=5)))
    one, other = documents(read(corpus, seed=5)), documents(read(corpus, seed=6))
    assert one != other
    assert sorted(one.values()) == sorted(other.values())
    in_file = [one[i] for i in range(DOCUMENTS)] == sorted(one.values())
    assert not in_file


@pytest.mark.parametrize("pack", [False, True])
def test_ranges_are_parts_of_one_order(corpus, read, pack):
    whole = documents(read(corpus))
    parts = [
        documents(read(corpus, start=a, stop=b, pack=pack)) for a, b in [(0, 7), (7, 8), (8, 40)]
    ]
    assert [len(part) for part in parts] == [7, 1, 32]
    assert {k: v for part in parts for k, v in part.items()} == whole


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("shards", [2, 3, 5])
def test_shards_partition_the_documents(corpus, read, pack, shards):
    kinds = [
        read(corpus, start=3, stop=31, pack=pack, shard_index=i, shard_count=shards)
        for i in range(shards)
    ]
    parts = [documents(kind) for kind in kinds]
    together = {k: v for part in parts for k, v in part.items()}
    assert sum(len(part) for part in parts) == len(together)
    assert together == documents(read(corpus, start=3, stop=31))
    if not pack:
        assert len({len(list(kind)) for kind in kinds}) == 1


def test_packing_saves_rows(corpus, read):
    padded = sum(int(np.sum(batch.sequences[:, 0] >= 0)) for batch in read(corpus))
    packed = sum(int(np.sum(batch.sequences[:, 0] >= 0)) for batch in read(corpus, pack=True))
    assert padded == DOCUMENTS
    assert packed < 0.9 * padded
    several = [len(np.unique(row)) for b in read(corpus, pack=True) for row in b.sequences]
    assert max(several) >= 3


@pytest.mark.parametrize("pack", [False, True])
def test_resuming_anywhere_gives_the_same_rest(corpus, read, pack):
    dataset = read(corpus, pack=pack, start=2)
    whole = list(dataset)
    iterator = iter(dataset)
    for done in range(len(whole) + 1):
        state = iterator.get_state()
        assert json.loads(json.dumps(state)) == state
        fresh = iter(read(corpus, pack=pack, start=2))
        next(fresh)
        fresh.set_state(state)
        assert fresh.get_state() == state
        equal(list(fresh), whole[done:])
        next(iterator, None)


@pytest.mark.parametrize("pack", [False, True])
def test_grains_own_checkpoint_check(corpus, read, pack):
    plain = read(corpus, pack=pack, stop=12).map(lambda batch: vars(batch))
    grain.experimental.assert_equal_output_after_checkpoint(plain)


@pytest.mark.parametrize("pack", [False, True])
def test_pipelines_can_be_pickled(corpus, read, pack):
    dataset = read(corpus, pack=pack, stop=9)
    equal(list(cloudpickle.loads(cloudpickle.dumps(dataset))), list(dataset))


@pytest.mark.parametrize("pack", [False, True])
def test_empty_documents_keep_their_index_but_have_no_tokens(write, read, pack):
    rows = [{"text": "" if i % 3 else "text"} for i in range(12)]
    source = (write("a.jsonl", rows),)
    assert count(source) == 12
    whole = list(read(source, stop=12, pack=pack))
    found = documents(whole)
    assert len(found) == 4 and set(found) <= set(range(12))
    empty = (write("b.jsonl", [{"text": ""}] * 5),)
    for batch in read(empty, stop=5, pack=pack):
        assert not pack and np.all(batch.sequences == -1)


def test_mixing_keeps_the_shares_and_gives_no_document_twice(write, read):
    one = write("one.txt", "\n\n".join(f"a{i}" for i in range(90)), weight=3)
    two = write("two.txt", "\n\n".join(f"b{i}" for i in range(20)), weight=1)
    total = count((one, two))
    assert total == 80
    found = documents(read((one, two), stop=total, seed=3))
    assert len(set(found.values())) == 80
    letters = [bytes_of[1] for bytes_of in found.values()]
    assert sorted(np.unique(letters, return_counts=True)[1].tolist()) == [20, 60]
    # Also in part of the order, and in each of two shards, the shares are about the same.
    for part in (letters[:40], letters[::2], letters[1::2]):
        assert 3 <= np.unique(part, return_counts=True)[1].min() <= 17


def test_mixing_draws_from_the_whole_of_each_corpus(write, read, bytes_):
    many = write("many.txt", "\n\n".join(f"{i:04d}" for i in range(1000)))
    few = write("few.txt", "\n\n".join(f"b{i:03d}" for i in range(30)))
    found = documents(read((many, few), stop=60))
    texts = [bytes_.decode(tokens[1:]) for tokens in found.values()]
    numbers = [int(text) for text in texts if not text.startswith("b")]
    assert len(numbers) == 30
    assert min(numbers) < 300 and max(numbers) > 700


def test_concatenated_parts_of_a_folder_are_mixed_as_one(write, read, tmp_path):
    write("d/a.txt", "\n\n".join(f"a{i}" for i in range(9)))
    write("d/b.jsonl", [{"text": f"b{i}"} for i in range(7)])
    source = (SourceConfig(path=str(tmp_path / "d")),)
    assert count(source) == 16
    assert len(set(documents(read(source, stop=16)).values())) == 16


def test_splits_do_not_overlap_and_training_may_grow(corpus):
    def ranges(train):
        return splits(
            TextConfig(
                sources=corpus, train_sequences=train, validation_sequences=4, test_sequences=5
            )
        )

    assert ranges(10) == {"test": (0, 5), "validation": (5, 9), "train": (9, 19)}
    assert ranges(31)["train"] == (9, 40)
    with pytest.raises(JaxdiffError) as info:
        ranges(32)
    assert info.value.what == (
        "the corpora give 40 documents, the splits ask for 41: "
        "5 for test + 4 for validation + 32 for train"
    )
    assert "corpus.jsonl has 40" in info.value.where


def test_too_long_a_range(corpus, read):
    with pytest.raises(JaxdiffError, match="give 40 documents, 3 to 41 are asked for"):
        read(corpus, start=3, stop=41)
    with pytest.raises(JaxdiffError, match="there is no corpus"):
        read((), stop=0)
    with pytest.raises(ValueError, match="no such range or shard"):
        read(corpus, shard_index=2, shard_count=2)
    assert list(read(corpus, start=4, stop=4)) == []
    assert list(read(corpus, start=4, stop=4, pack=True)) == []


def test_errors_come_through_the_pipeline(write, read):
    source = (write("a.jsonl", '{"text": "x"}\n{"text": 3}\n'),)
    for pack in (False, True):
        with pytest.raises(JaxdiffError, match="should be a string") as info:
            list(read(source, stop=2, pack=pack))
        assert info.value.where.endswith("a.jsonl, line 2")


def test_labels_and_chats_reach_the_batch(write, words):
    chat = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "mat"}]
    rows = [{"messages": chat, "labels": [0, 0, 1, 0, 0, 0, 2, 0]}]
    (batch,) = batches(
        (write("a.jsonl", rows),), words, context=10, batch=1, seed=0, start=0, stop=1
    )
    assert batch.roles[0].tolist() == [1, 1, 3, 1, 1, 1, 4, 1, 0, 0]
    assert batch.labels[0].tolist() == [0, 0, 1, 0, 0, 0, 2, 0, 0, 0]
    assert batch.sequences[0].tolist() == [0] * 8 + [-1] * 2
