"""Blocks: none is lost or allocated twice, and only equal tokens make a prefix hit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.scheduling.block_manager import BlockManager, BlockTable, Prefix
from tests.support import property_test

SIZE = 2


def computed_table(
    manager: BlockManager, token_ids: list[int], *, num_computed: int | None = None
) -> BlockTable:
    """Share the cached prefix of a sequence, allocate the rest, and compute it."""
    table = BlockTable()
    manager.share_prefix(table, manager.find_prefix(token_ids))
    manager.allocate(table, len(token_ids))
    manager.cache_full_blocks(
        table, token_ids, len(token_ids) if num_computed is None else num_computed
    )
    return table


def compute_and_free(manager: BlockManager, token_ids: list[int]) -> None:
    """Compute a sequence, and free its blocks."""
    manager.free(computed_table(manager, token_ids))


def num_cached(manager: BlockManager, token_ids: list[int]) -> int:
    """Return the number of cached blocks of a longer text that begins with `token_ids`."""
    return len(manager.find_prefix([*token_ids, 999]).block_ids)


def test_pool_and_blocks_must_not_be_empty():
    for sizes in ((0, 4), (4, 0)):
        with pytest.raises(AssertionError):
            BlockManager(num_blocks=sizes[0], block_size=sizes[1])


def test_allocate_adds_only_the_missing_blocks():
    manager = BlockManager(num_blocks=4, block_size=SIZE)
    table = BlockTable()
    counts = []
    for num_tokens in (1, 2, 3, 3, 8):
        counts.append(manager.num_missing_blocks(table, num_tokens))
        manager.allocate(table, num_tokens)
    assert counts == [1, 0, 1, 0, 2]
    assert (manager.num_free_blocks, manager.max_tokens) == (0, 8)
    manager.check_integrity([table])
    manager.free(table)
    assert (table.block_ids, manager.num_free_blocks) == ((), 4)
    manager.check_integrity([])


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (2, 1), (3, 2)])
def test_blocks_for_tokens_round_up(num_tokens: int, num_blocks: int):
    assert BlockManager(num_blocks=4, block_size=SIZE).num_blocks_for(num_tokens) == num_blocks


# The prefix cache.


def test_a_prefix_hit_ends_where_the_tokens_differ():
    manager = BlockManager(num_blocks=9, block_size=SIZE)
    table = computed_table(manager, [1, 2, 3, 4, 5, 6])
    a, b, c = table.block_ids
    found = {
        name: manager.find_prefix(token_ids).block_ids
        for name, token_ids in {
            "longer": [1, 2, 3, 4, 5, 6, 7],
            "parts in the third": [1, 2, 3, 4, 5, 9, 7],
            "parts in the first": [1, 9, 3, 4, 5, 6, 7],
            "same blocks elsewhere": [3, 4, 5, 6, 7],
            "nothing": [],
        }.items()
    }
    assert found == {
        "longer": (a, b, c),
        "parts in the third": (a, b),
        "parts in the first": (),
        "same blocks elsewhere": (),
        "nothing": (),
    }


@pytest.mark.parametrize("length", range(1, 8))
def test_a_prefix_leaves_out_the_last_token(length: int):
    """Its logits are needed, and the cache does not hold them."""
    manager = BlockManager(num_blocks=9, block_size=SIZE)
    computed_table(manager, list(range(8)))
    prefix = manager.find_prefix(list(range(length)))
    assert len(prefix.block_ids) == (length - 1) // SIZE
    assert prefix.next_key is None


def test_the_next_key_is_that_of_the_block_after_the_prefix():
    manager = BlockManager(num_blocks=9, block_size=SIZE)
    table = computed_table(manager, [1, 2, 3, 4])
    prefix = manager.find_prefix([1, 2, 3, 4, 5, 6, 7])
    assert prefix == Prefix(tuple(table.block_ids), table.node, (table.node, (5, 6)))
    assert prefix.next_key == manager.next_key([1, 2, 3, 4, 5, 6, 8], 2, table.node)
    assert manager.next_key([1, 2, 3, 4, 5, 6], 2, table.node) is None


def test_only_full_computed_blocks_are_cached():
    manager = BlockManager(num_blocks=9, block_size=SIZE)
    token_ids = [1, 2, 3, 4, 5]
    table = computed_table(manager, token_ids, num_computed=3)
    assert num_cached(manager, token_ids) == 1
    manager.cache_full_blocks(table, token_ids, 4)
    assert num_cached(manager, token_ids) == 2
    manager.cache_full_blocks(table, token_ids, 5)
    assert num_cached(manager, token_ids) == 2


def test_a_block_computed_by_two_sequences_is_cached_once():
    manager = BlockManager(num_blocks=9, block_size=SIZE)
    tables = [BlockTable(), BlockTable()]
    for table in tables:
        manager.allocate(table, 4)
    for table in tables:
        manager.cache_full_blocks(table, [1, 2, 3, 4], 4)
    first, second = tables
    assert manager.find_prefix([1, 2, 3, 4, 5]).block_ids == tuple(first.block_ids)
    assert first.node == second.node, "the second sequence continues the cached block"
    manager.allocate(second, 6)
    manager.cache_full_blocks(second, [1, 2, 3, 4, 5, 6], 6)
    expected = (*first.block_ids, second.block_ids[2])
    assert manager.find_prefix([1, 2, 3, 4, 5, 6, 7]).block_ids == expected
    manager.check_integrity(tables)
    manager.free(first)
    manager.free(second)
    manager.check_integrity([])
    assert num_cached(manager, [1, 2, 3, 4, 5, 6]) == 3


def test_different_tokens_with_equal_hashes_share_no_block():
    """The tokens are the key; an equal hash, or the node of another block, is no hit."""
    manager = BlockManager(num_blocks=9, block_size=SIZE)
    same_hash = hash(-1)
    assert same_hash == hash(-2)
    computed_table(manager, [-1, 5, 7, 8])
    assert num_cached(manager, [-2, 5, 7, 8]) == 0
    assert num_cached(manager, [7, 8]) == 0


def test_a_prefix_without_its_first_block_is_not_found():
    manager = BlockManager(num_blocks=3, block_size=SIZE)
    tables = [BlockTable(), BlockTable()]
    for table in tables:
        manager.allocate(table, 2)
        manager.cache_full_blocks(table, [1, 2], 2)
    first, second = tables
    manager.allocate(second, 4)
    manager.cache_full_blocks(second, [1, 2, 3, 4], 4)
    manager.free(first)
    other = computed_table(
        manager, [9, 9]
    )  # evicts the cached first block: all others are referenced
    assert num_cached(manager, [1, 2, 3, 4]) == 0
    manager.check_integrity([second, other])
    manager.free(other)
    again = computed_table(manager, [1, 2])
    assert num_cached(manager, [1, 2, 3, 4]) == 1, "the old end belonged to the old beginning"
    manager.check_integrity([second, again])


def test_uncached_blocks_are_computed_again():
    manager = BlockManager(num_blocks=6, block_size=SIZE)
    broken = computed_table(manager, [1, 2, 3, 4])
    sharing = computed_table(manager, [1, 2, 5, 6])
    manager.uncache_unverified(broken)
    assert num_cached(manager, [1, 2, 3, 4]) == 0
    manager.check_integrity([broken, sharing])
    manager.free(broken)
    manager.free(sharing)
    manager.check_integrity([])
    compute_and_free(manager, [1, 2, 3, 4])
    assert num_cached(manager, [1, 2, 3, 4]) == 2


def test_verified_blocks_stay_cached_when_the_rest_is_uncached():
    manager = BlockManager(num_blocks=6, block_size=SIZE)
    fine = computed_table(manager, [1, 2, 3])
    manager.mark_verified(fine)
    broken = computed_table(manager, [1, 2, 3, 4, 5, 6])
    manager.uncache_unverified(broken)
    assert num_cached(manager, [1, 2, 3, 4, 5, 6]) == 1
    manager.check_integrity([fine, broken])


def test_blocks_added_after_verification_are_uncached():
    manager = BlockManager(num_blocks=6, block_size=SIZE)
    table = computed_table(manager, [1, 2, 3, 4])
    manager.mark_verified(table)
    manager.allocate(table, 6)
    manager.cache_full_blocks(table, [1, 2, 3, 4, 5, 6], 6)
    manager.uncache_unverified(table)
    assert num_cached(manager, [1, 2, 3, 4, 5, 6]) == 2


def test_a_reallocated_block_is_not_verified():
    manager = BlockManager(num_blocks=2, block_size=SIZE)
    fine = computed_table(manager, [1, 2, 3, 4])
    manager.mark_verified(fine)
    manager.free(fine)
    broken = computed_table(manager, [5, 6, 7, 8])
    manager.uncache_unverified(broken)
    assert num_cached(manager, [5, 6, 7, 8]) == 0


def test_a_reallocated_block_that_was_never_cached_is_not_verified():
    """Its twin was cached first. The next sequence that gets the block may break it."""
    manager = BlockManager(num_blocks=2, block_size=SIZE)
    twins = [BlockTable(), BlockTable()]
    for table in twins:
        manager.allocate(table, SIZE)
    for table in twins:
        manager.cache_full_blocks(table, [1, 2], SIZE)
        manager.mark_verified(table)
    manager.free(twins[1])
    broken = computed_table(manager, [5, 6])
    assert broken.block_ids == (1,)
    manager.uncache_unverified(broken)
    assert num_cached(manager, [5, 6]) == 0


# Eviction.


def test_the_least_recently_used_block_is_evicted_first():
    manager = BlockManager(num_blocks=4, block_size=SIZE)
    for token in (1, 2, 3):
        compute_and_free(manager, [token, token])
    compute_and_free(
        manager, [1, 1, 0]
    )  # used again, with a block that never fills and is reused first
    taken = BlockTable()
    evicted = []
    for num_blocks in (1, 2, 3, 4):
        manager.allocate(taken, num_blocks * SIZE)
        evicted.append([token for token in (1, 2, 3) if not num_cached(manager, [token, token])])
    assert evicted == [[], [2], [2, 3], [1, 2, 3]]


def test_the_end_of_a_sequence_is_evicted_before_its_beginning():
    manager = BlockManager(num_blocks=3, block_size=SIZE)
    compute_and_free(manager, [1, 2, 3, 4, 5, 6])
    taken = BlockTable()
    counts = []
    for num_blocks in (1, 2, 3):
        manager.allocate(taken, num_blocks * SIZE)
        counts.append(num_cached(manager, [1, 2, 3, 4, 5, 6]))
    assert counts == [2, 1, 0]


def test_a_referenced_block_is_never_evicted():
    manager = BlockManager(num_blocks=3, block_size=SIZE)
    holder = computed_table(manager, [1, 2])
    sharer = computed_table(manager, [1, 2, 3, 4])
    assert sharer.block_ids[0] == holder.block_ids[0]
    manager.free(holder)
    compute_and_free(manager, [8, 8])
    compute_and_free(manager, [9, 9])
    assert num_cached(manager, [1, 2, 3, 4]) == 2
    manager.check_integrity([sharer])


def test_sharing_a_prefix_takes_its_unreferenced_blocks_from_the_free_list():
    manager = BlockManager(num_blocks=4, block_size=SIZE)
    compute_and_free(manager, [1, 2, 3, 4])
    holder = computed_table(manager, [1, 2, 9])
    prefix = manager.find_prefix([1, 2, 3, 4, 5])
    assert (len(prefix.block_ids), manager.num_free_in(prefix)) == (2, 1)
    assert manager.num_free_blocks == 2
    manager.share_prefix(BlockTable(), prefix)
    assert manager.num_free_blocks == 1
    assert holder.block_ids[0] == prefix.block_ids[0]


def test_only_an_empty_table_can_share_a_prefix():
    manager = BlockManager(num_blocks=4, block_size=SIZE)
    table = computed_table(manager, [1, 2])
    with pytest.raises(AssertionError):
        manager.share_prefix(table, manager.find_prefix([1, 2, 3]))


def test_check_integrity_fails_on_wrong_ref_counts():
    manager = BlockManager(num_blocks=4, block_size=SIZE)
    table = computed_table(manager, [1, 2])
    with pytest.raises(AssertionError):
        manager.check_integrity([])
    manager.free(table)
    table.block_ids = (0,)
    with pytest.raises(AssertionError):
        manager.check_integrity([table])


# Which blocks are touched.


def test_uncached_blocks_are_reused_first_the_latest_in_front():
    manager = BlockManager(num_blocks=9, block_size=SIZE)
    tables = [computed_table(manager, [token]) for token in range(3)]
    assert [table.block_ids for table in tables] == [(0,), (1,), (2,)]
    for number in (1, 0, 2):
        manager.free(tables[number])
    taken = BlockTable()
    manager.allocate(taken, 5 * SIZE)
    assert taken.block_ids == (2, 0, 1, 3, 4)
    assert (manager.num_touched_blocks, manager.num_free_blocks) == (5, 4)


def test_cached_blocks_are_kept_while_there_is_free_memory():
    has_free_memory = True
    manager = BlockManager(num_blocks=9, block_size=SIZE, has_free_memory=lambda: has_free_memory)
    for token in (1, 2, 3):
        compute_and_free(manager, [token, token])
    assert manager.num_touched_blocks == 3
    has_free_memory = False
    compute_and_free(manager, [4, 4])
    assert manager.num_touched_blocks == 3
    assert [num_cached(manager, [token, token]) for token in (1, 2, 3, 4)] == [0, 1, 1, 1]
    has_free_memory = True
    compute_and_free(manager, [5, 5])
    assert manager.num_touched_blocks == 4
    assert [num_cached(manager, [token, token]) for token in (2, 3, 4, 5)] == [1, 1, 1, 1]


def test_all_blocks_can_be_allocated_without_free_memory():
    """Running sequences come before the memory target."""
    manager = BlockManager(num_blocks=4, block_size=SIZE, has_free_memory=lambda: False)
    compute_and_free(manager, [1, 1])
    table = BlockTable()
    manager.allocate(table, 4 * SIZE)
    assert sorted(table.block_ids) == [0, 1, 2, 3]
    assert num_cached(manager, [1, 1]) == 0
    manager.check_integrity([table])


# Random operations.


class _Model:
    """A block manager, and the tokens that were computed into each block.

    A block's content is all tokens up to its end, since keys and values depend on them.
    """

    def __init__(self, num_blocks: int, *, has_free_memory: Callable[[], bool]) -> None:
        self.manager = BlockManager(
            num_blocks=num_blocks, block_size=SIZE, has_free_memory=has_free_memory
        )
        self.contents: dict[int, tuple[int, ...]] = {}
        self.live: list[tuple[BlockTable, list[int], int]] = []
        self.verified: set[tuple[int, ...]] = set()
        """Prefixes, in whole blocks, that were ever verified."""
        self.allocated: set[int] = set()
        self.most_referenced = 0
        self.most_useful = 0

    def update_counts(self) -> None:
        """Update the counts of referenced and of useful blocks."""
        held = {block_id for table in self.tables for block_id in table.block_ids}
        self.allocated |= held
        self.most_referenced = max(self.most_referenced, len(held))
        self.most_useful = max(self.most_useful, len(held | self.manager._key_by_block.keys()))

    @property
    def tables(self) -> list[BlockTable]:
        return [table for table, _, _ in self.live]

    def num_verified(self, token_ids: list[int]) -> int:
        """Return how many blocks of this prefix were ever verified."""
        ends = range(SIZE, len(token_ids) + 1, SIZE)
        return sum(tuple(token_ids[:end]) in self.verified for end in ends)

    def compute(self, table: BlockTable, token_ids: list[int], start: int, end: int) -> None:
        for position in range(start, end):
            block_id = table.block_ids[position // SIZE]
            holders = [other for other in self.tables if block_id in other.block_ids]
            assert holders in ([], [table]), "a shared block is never written"
            self.contents[block_id] = tuple(token_ids[: position + 1])
        self.manager.cache_full_blocks(table, token_ids, end)

    def start(self, token_ids: list[int], num_computed: int) -> None:
        prefix = self.manager.find_prefix(token_ids)
        for index, block_id in enumerate(prefix.block_ids):
            assert self.contents[block_id] == tuple(token_ids[: (index + 1) * SIZE])
        assert len(prefix.block_ids) * SIZE < len(token_ids)
        num_needed = self.manager.num_blocks_for(len(token_ids)) - len(prefix.block_ids)
        if num_needed > self.manager.num_free_blocks - self.manager.num_free_in(prefix):
            return
        table = BlockTable()
        self.manager.share_prefix(table, prefix)
        self.manager.allocate(table, len(token_ids))
        start = len(prefix.block_ids) * SIZE
        end = max(start, min(num_computed, len(token_ids)))
        self.compute(table, token_ids, start, end)
        self.live.append((table, token_ids, end))

    def grow(self, index: int, num_new: int) -> None:
        table, token_ids, computed = self.live[index]
        longer = [*token_ids, *(token_ids[-1:] * num_new)]
        if self.manager.num_missing_blocks(table, len(longer)) > self.manager.num_free_blocks:
            return
        self.manager.allocate(table, len(longer))
        self.compute(table, longer, computed, len(longer))
        self.live[index] = (table, longer, len(longer))


actions = st.one_of(
    st.tuples(st.just("start"), st.lists(st.integers(0, 1), min_size=1, max_size=9)),
    st.tuples(st.just("grow"), st.integers(0, 3)),
    st.tuples(st.just("free"), st.integers(0, 9)),
    st.tuples(st.just("uncache"), st.integers(0, 9)),
    st.tuples(st.just("verify"), st.integers(0, 9)),
)


def run(model: _Model, script: list[tuple[str, object]], num_computed: int) -> None:
    """Run a script of random operations."""
    for number, (action, value) in enumerate(script):
        match action, value:
            case "start", list(token_ids):
                model.start(token_ids, num_computed)
            case "grow", int(num_new) if model.live:
                model.grow(number % len(model.live), num_new)
            case "free", int(index) if model.live:
                model.manager.free(model.live.pop(index % len(model.live))[0])
            case "uncache", int(index) if model.live:
                table, token_ids, computed = model.live[index % len(model.live)]
                model.manager.uncache_unverified(table)
                # Equal tokens in blocks of another sequence stay cached.
                known = model.manager.find_prefix([*token_ids[:computed], 999]).block_ids
                own = [block_id for block_id in known if block_id in table.block_ids]
                assert len(own) <= model.num_verified(token_ids)
            case "verify", int(index) if model.live:
                table, token_ids, computed = model.live[index % len(model.live)]
                model.manager.mark_verified(table)
                model.verified |= {
                    tuple(token_ids[:end]) for end in range(SIZE, computed + 1, SIZE)
                }
        model.manager.check_integrity(model.tables)
        model.update_counts()


@property_test
@given(st.lists(actions, max_size=40), st.integers(1, 10), st.integers(0, 9), st.data())
def test_a_cached_block_always_holds_the_tokens_of_its_key(
    script: list[tuple[str, object]], num_blocks: int, num_computed: int, data: st.DataObject
):
    model = _Model(num_blocks, has_free_memory=lambda: data.draw(st.booleans()))
    run(model, script, num_computed)
    for table in model.tables:
        model.manager.free(table)
    model.manager.check_integrity([])
    assert model.manager.num_free_blocks == num_blocks


@property_test
@given(st.lists(actions, max_size=40), st.integers(1, 30), st.integers(0, 9))
def test_without_free_memory_only_as_many_blocks_are_touched_as_were_referenced_at_once(
    script: list[tuple[str, object]], num_blocks: int, num_computed: int
):
    """Memory follows the peak use, however many requests come and go."""
    model = _Model(num_blocks, has_free_memory=lambda: False)
    run(model, script, num_computed)
    assert model.allocated == set(range(model.most_referenced))
    assert model.manager.num_touched_blocks == model.most_referenced


@property_test
@given(st.lists(actions, max_size=40), st.integers(1, 30), st.integers(0, 9))
def test_with_free_memory_only_as_many_blocks_are_touched_as_were_useful_at_once(
    script: list[tuple[str, object]], num_blocks: int, num_computed: int
):
    """Useful is referenced or cached. No block is touched while an uncached one is free."""
    model = _Model(num_blocks, has_free_memory=lambda: True)
    run(model, script, num_computed)
    assert model.allocated == set(range(model.most_useful))
    assert model.manager.num_touched_blocks == model.most_useful
