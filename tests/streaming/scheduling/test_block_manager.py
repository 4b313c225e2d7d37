"""Blocks: none is lost, none is handed out twice, and equal tokens alone make a prefix known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.scheduling.block_manager import BlockManager, BlockTable, Prefix
from tests.support import property_test

SIZE = 2


def hold(
    cache: BlockManager, token_ids: list[int], *, num_computed: int | None = None
) -> BlockTable:
    """Give a sequence what is known of it and room for the rest, and compute it."""
    table = BlockTable()
    cache.share(table, cache.find_prefix(token_ids))
    cache.grow(table, len(token_ids))
    cache.commit(table, token_ids, len(token_ids) if num_computed is None else num_computed)
    return table


def use(cache: BlockManager, token_ids: list[int]) -> None:
    """Let a sequence come and go."""
    cache.release(hold(cache, token_ids))


def num_known(cache: BlockManager, token_ids: list[int]) -> int:
    """Return how many blocks of a longer text that begins with `token_ids` are known."""
    return len(cache.find_prefix([*token_ids, 999]).block_ids)


def test_a_pool_has_blocks_and_blocks_have_tokens():
    for sizes in ((0, 4), (4, 0)):
        with pytest.raises(AssertionError):
            BlockManager(num_blocks=sizes[0], block_size=sizes[1])


def test_a_table_grows_by_what_it_lacks():
    cache = BlockManager(num_blocks=4, block_size=SIZE)
    table = BlockTable()
    counts = []
    for num_tokens in (1, 2, 3, 3, 8):
        counts.append(cache.num_missing_blocks(table, num_tokens))
        cache.grow(table, num_tokens)
    assert counts == [1, 0, 1, 0, 2]
    assert (cache.num_free_blocks, cache.max_tokens) == (0, 8)
    cache.check_integrity([table])
    cache.release(table)
    assert (table.block_ids, cache.num_free_blocks) == ([], 4)
    cache.check_integrity([])


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (2, 1), (3, 2)])
def test_blocks_for_tokens_round_up(num_tokens: int, num_blocks: int):
    assert BlockManager(num_blocks=4, block_size=SIZE).num_blocks_for(num_tokens) == num_blocks


# What is known.


def test_a_prefix_is_found_up_to_where_the_tokens_part():
    cache = BlockManager(num_blocks=9, block_size=SIZE)
    table = hold(cache, [1, 2, 3, 4, 5, 6])
    a, b, c = table.block_ids
    found = {
        name: cache.find_prefix(token_ids).block_ids
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
def test_the_last_token_is_left_out(length: int):
    """Its logits are wanted, and those are not in a cache."""
    cache = BlockManager(num_blocks=9, block_size=SIZE)
    hold(cache, list(range(8)))
    prefix = cache.find_prefix(list(range(length)))
    assert len(prefix.block_ids) == (length - 1) // SIZE
    assert prefix.next_key is None


def test_the_next_key_is_the_block_that_would_be_needed():
    cache = BlockManager(num_blocks=9, block_size=SIZE)
    table = hold(cache, [1, 2, 3, 4])
    prefix = cache.find_prefix([1, 2, 3, 4, 5, 6, 7])
    assert prefix == Prefix(tuple(table.block_ids), table.node, (table.node, (5, 6)))
    assert prefix.next_key == cache.next_key([1, 2, 3, 4, 5, 6, 8], 2, table.node)
    assert cache.next_key([1, 2, 3, 4, 5, 6], 2, table.node) is None


def test_only_what_is_full_and_computed_is_known():
    cache = BlockManager(num_blocks=9, block_size=SIZE)
    token_ids = [1, 2, 3, 4, 5]
    table = hold(cache, token_ids, num_computed=3)
    assert num_known(cache, token_ids) == 1
    cache.commit(table, token_ids, 4)
    assert num_known(cache, token_ids) == 2
    cache.commit(table, token_ids, 5)
    assert num_known(cache, token_ids) == 2


def test_what_two_compute_side_by_side_is_known_once():
    cache = BlockManager(num_blocks=9, block_size=SIZE)
    tables = [BlockTable(), BlockTable()]
    for table in tables:
        cache.grow(table, 4)
    for table in tables:
        cache.commit(table, [1, 2, 3, 4], 4)
    first, second = tables
    assert cache.find_prefix([1, 2, 3, 4, 5]).block_ids == tuple(first.block_ids)
    assert first.node == second.node, "what the second one adds continues the known one"
    cache.grow(second, 6)
    cache.commit(second, [1, 2, 3, 4, 5, 6], 6)
    expected = (*first.block_ids, second.block_ids[2])
    assert cache.find_prefix([1, 2, 3, 4, 5, 6, 7]).block_ids == expected
    cache.check_integrity(tables)
    cache.release(first)
    cache.release(second)
    cache.check_integrity([])
    assert num_known(cache, [1, 2, 3, 4, 5, 6]) == 3


def test_no_prompt_is_served_anothers_cache():
    """The tokens are the key: numbers that hash alike, or a node of another's, open nothing."""
    cache = BlockManager(num_blocks=9, block_size=SIZE)
    same_hash = hash(-1)
    assert same_hash == hash(-2)
    hold(cache, [-1, 5, 7, 8])
    assert num_known(cache, [-2, 5, 7, 8]) == 0
    assert num_known(cache, [7, 8]) == 0


def test_a_prefix_that_was_evicted_in_its_middle_hides_its_end():
    cache = BlockManager(num_blocks=3, block_size=SIZE)
    tables = [BlockTable(), BlockTable()]
    for table in tables:
        cache.grow(table, 2)
        cache.commit(table, [1, 2], 2)
    first, second = tables
    cache.grow(second, 4)
    cache.commit(second, [1, 2, 3, 4], 4)
    cache.release(first)
    other = hold(cache, [9, 9])  # takes the known first block: all else is held
    assert num_known(cache, [1, 2, 3, 4]) == 0
    cache.check_integrity([second, other])
    cache.release(other)
    again = hold(cache, [1, 2])
    assert num_known(cache, [1, 2, 3, 4]) == 1, "the old end belonged to the old beginning"
    cache.check_integrity([second, again])


def test_what_is_forgotten_is_computed_again():
    cache = BlockManager(num_blocks=6, block_size=SIZE)
    broken = hold(cache, [1, 2, 3, 4])
    sharing = hold(cache, [1, 2, 5, 6])
    cache.forget(broken)
    assert num_known(cache, [1, 2, 3, 4]) == 0
    cache.check_integrity([broken, sharing])
    cache.release(broken)
    cache.release(sharing)
    cache.check_integrity([])
    use(cache, [1, 2, 3, 4])
    assert num_known(cache, [1, 2, 3, 4]) == 2


def test_what_is_trusted_stays_known_when_the_rest_is_forgotten():
    cache = BlockManager(num_blocks=6, block_size=SIZE)
    fine = hold(cache, [1, 2, 3])
    cache.trust(fine)
    broken = hold(cache, [1, 2, 3, 4, 5, 6])
    cache.forget(broken)
    assert num_known(cache, [1, 2, 3, 4, 5, 6]) == 1
    cache.check_integrity([fine, broken])


def test_what_a_sequence_added_since_it_was_trusted_is_forgotten():
    cache = BlockManager(num_blocks=6, block_size=SIZE)
    table = hold(cache, [1, 2, 3, 4])
    cache.trust(table)
    cache.grow(table, 6)
    cache.commit(table, [1, 2, 3, 4, 5, 6], 6)
    cache.forget(table)
    assert num_known(cache, [1, 2, 3, 4, 5, 6]) == 2


def test_a_block_that_is_handed_out_anew_is_trusted_no_more():
    cache = BlockManager(num_blocks=2, block_size=SIZE)
    fine = hold(cache, [1, 2, 3, 4])
    cache.trust(fine)
    cache.release(fine)
    broken = hold(cache, [5, 6, 7, 8])
    cache.forget(broken)
    assert num_known(cache, [5, 6, 7, 8]) == 0


def test_a_block_that_was_never_known_is_trusted_no_more_either():
    """Its twin was known first. Who gets a trusted block next may break it."""
    cache = BlockManager(num_blocks=2, block_size=SIZE)
    twins = [BlockTable(), BlockTable()]
    for table in twins:
        cache.grow(table, SIZE)
    for table in twins:
        cache.commit(table, [1, 2], SIZE)
        cache.trust(table)
    cache.release(twins[1])
    broken = hold(cache, [5, 6])
    assert broken.block_ids == [1]
    cache.forget(broken)
    assert num_known(cache, [5, 6]) == 0


# Who goes first.


def test_the_one_unused_for_longest_goes_first():
    cache = BlockManager(num_blocks=4, block_size=SIZE)
    for token in (1, 2, 3):
        use(cache, [token, token])
    use(cache, [1, 1, 0])  # used again, with a block that never fills and is taken first
    taken = BlockTable()
    gone = []
    for num_blocks in (1, 2, 3, 4):
        cache.grow(taken, num_blocks * SIZE)
        gone.append([token for token in (1, 2, 3) if not num_known(cache, [token, token])])
    assert gone == [[], [2], [2, 3], [1, 2, 3]]


def test_the_end_of_a_sequence_goes_before_its_beginning():
    cache = BlockManager(num_blocks=3, block_size=SIZE)
    use(cache, [1, 2, 3, 4, 5, 6])
    taken = BlockTable()
    counts = []
    for num_blocks in (1, 2, 3):
        cache.grow(taken, num_blocks * SIZE)
        counts.append(num_known(cache, [1, 2, 3, 4, 5, 6]))
    assert counts == [2, 1, 0]


def test_what_is_held_never_goes():
    cache = BlockManager(num_blocks=3, block_size=SIZE)
    holder = hold(cache, [1, 2])
    sharer = hold(cache, [1, 2, 3, 4])
    assert sharer.block_ids[0] == holder.block_ids[0]
    cache.release(holder)
    use(cache, [8, 8])
    use(cache, [9, 9])
    assert num_known(cache, [1, 2, 3, 4]) == 2
    cache.check_integrity([sharer])


def test_a_prefix_counts_what_it_takes_from_the_free():
    cache = BlockManager(num_blocks=4, block_size=SIZE)
    use(cache, [1, 2, 3, 4])
    holder = hold(cache, [1, 2, 9])
    prefix = cache.find_prefix([1, 2, 3, 4, 5])
    assert (len(prefix.block_ids), cache.num_taken_by(prefix)) == (2, 1)
    assert cache.num_free_blocks == 2
    cache.share(BlockTable(), prefix)
    assert cache.num_free_blocks == 1
    assert holder.block_ids[0] == prefix.block_ids[0]


def test_a_prefix_begins_an_empty_table_only():
    cache = BlockManager(num_blocks=4, block_size=SIZE)
    table = hold(cache, [1, 2])
    with pytest.raises(AssertionError):
        cache.share(table, cache.find_prefix([1, 2, 3]))


def test_an_unbalanced_pool_is_noticed():
    cache = BlockManager(num_blocks=4, block_size=SIZE)
    table = hold(cache, [1, 2])
    with pytest.raises(AssertionError):
        cache.check_integrity([])
    cache.release(table)
    table.block_ids = [0]
    with pytest.raises(AssertionError):
        cache.check_integrity([table])


# Which blocks are used at all.


def test_what_was_used_and_is_unknown_goes_first_the_latest_in_front():
    cache = BlockManager(num_blocks=9, block_size=SIZE)
    tables = [hold(cache, [token]) for token in range(3)]
    assert [table.block_ids for table in tables] == [[0], [1], [2]]
    for number in (1, 0, 2):
        cache.release(tables[number])
    taken = BlockTable()
    cache.grow(taken, 5 * SIZE)
    assert taken.block_ids == [2, 0, 1, 3, 4]
    assert (cache.num_used_blocks, cache.num_free_blocks) == (5, 4)


def test_what_is_known_is_kept_while_there_is_memory():
    has_free_memory = True
    cache = BlockManager(num_blocks=9, block_size=SIZE, has_free_memory=lambda: has_free_memory)
    for token in (1, 2, 3):
        use(cache, [token, token])
    assert cache.num_used_blocks == 3
    has_free_memory = False
    use(cache, [4, 4])
    assert cache.num_used_blocks == 3
    assert [num_known(cache, [token, token]) for token in (1, 2, 3, 4)] == [0, 1, 1, 1]
    has_free_memory = True
    use(cache, [5, 5])
    assert cache.num_used_blocks == 4
    assert [num_known(cache, [token, token]) for token in (2, 3, 4, 5)] == [1, 1, 1, 1]


def test_without_memory_all_blocks_can_be_had_all_the_same():
    """Sequences that run are worth more than what is left of the machine."""
    cache = BlockManager(num_blocks=4, block_size=SIZE, has_free_memory=lambda: False)
    use(cache, [1, 1])
    table = BlockTable()
    cache.grow(table, 4 * SIZE)
    assert sorted(table.block_ids) == [0, 1, 2, 3]
    assert num_known(cache, [1, 1]) == 0
    cache.check_integrity([table])


# Anything, in any order.


class _Model:
    """What a cache must hand back: the tokens that were computed into each block.

    A block's content is the tokens up to its end, as it is for keys and values.
    """

    def __init__(self, num_blocks: int, *, has_free_memory: Callable[[], bool]) -> None:
        self.cache = BlockManager(
            num_blocks=num_blocks, block_size=SIZE, has_free_memory=has_free_memory
        )
        self.contents: dict[int, tuple[int, ...]] = {}
        self.live: list[tuple[BlockTable, list[int], int]] = []
        self.trusted: set[tuple[int, ...]] = set()
        """Beginnings, in whole blocks, that were ever trusted."""
        self.handed_out: set[int] = set()
        self.most_held = 0
        self.most_used = 0

    def look(self) -> None:
        """Count what is held and what is of use."""
        held = {block_id for table in self.tables for block_id in table.block_ids}
        self.handed_out |= held
        self.most_held = max(self.most_held, len(held))
        self.most_used = max(self.most_used, len(held | self.cache._key_of.keys()))

    @property
    def tables(self) -> list[BlockTable]:
        return [table for table, _, _ in self.live]

    def num_trusted(self, token_ids: list[int]) -> int:
        """Return how many blocks of this beginning were ever trusted."""
        ends = range(SIZE, len(token_ids) + 1, SIZE)
        return sum(tuple(token_ids[:end]) in self.trusted for end in ends)

    def compute(self, table: BlockTable, token_ids: list[int], start: int, end: int) -> None:
        for position in range(start, end):
            block_id = table.block_ids[position // SIZE]
            holders = [other for other in self.tables if block_id in other.block_ids]
            assert holders in ([], [table]), "nobody writes what another one reads"
            self.contents[block_id] = tuple(token_ids[: position + 1])
        self.cache.commit(table, token_ids, end)

    def begin(self, token_ids: list[int], num_computed: int) -> None:
        prefix = self.cache.find_prefix(token_ids)
        for index, block_id in enumerate(prefix.block_ids):
            assert self.contents[block_id] == tuple(token_ids[: (index + 1) * SIZE])
        assert len(prefix.block_ids) * SIZE < len(token_ids)
        num_needed = self.cache.num_blocks_for(len(token_ids)) - len(prefix.block_ids)
        if num_needed > self.cache.num_free_blocks - self.cache.num_taken_by(prefix):
            return
        table = BlockTable()
        self.cache.share(table, prefix)
        self.cache.grow(table, len(token_ids))
        start = len(prefix.block_ids) * SIZE
        end = max(start, min(num_computed, len(token_ids)))
        self.compute(table, token_ids, start, end)
        self.live.append((table, token_ids, end))

    def go_on(self, index: int, num_new: int) -> None:
        table, token_ids, computed = self.live[index]
        longer = [*token_ids, *(token_ids[-1:] * num_new)]
        if self.cache.num_missing_blocks(table, len(longer)) > self.cache.num_free_blocks:
            return
        self.cache.grow(table, len(longer))
        self.compute(table, longer, computed, len(longer))
        self.live[index] = (table, longer, len(longer))


actions = st.one_of(
    st.tuples(st.just("begin"), st.lists(st.integers(0, 1), min_size=1, max_size=9)),
    st.tuples(st.just("go on"), st.integers(0, 3)),
    st.tuples(st.just("release"), st.integers(0, 9)),
    st.tuples(st.just("forget"), st.integers(0, 9)),
    st.tuples(st.just("trust"), st.integers(0, 9)),
)


def run(model: _Model, script: list[tuple[str, object]], num_computed: int) -> None:
    """Let anything happen."""
    for number, (action, value) in enumerate(script):
        match action, value:
            case "begin", list(token_ids):
                model.begin(token_ids, num_computed)
            case "go on", int(num_new) if model.live:
                model.go_on(number % len(model.live), num_new)
            case "release", int(index) if model.live:
                model.cache.release(model.live.pop(index % len(model.live))[0])
            case "forget", int(index) if model.live:
                table, token_ids, computed = model.live[index % len(model.live)]
                model.cache.forget(table)
                # What another one computed side by side, in blocks of its own, stays known.
                known = model.cache.find_prefix([*token_ids[:computed], 999]).block_ids
                own = [block_id for block_id in known if block_id in table.block_ids]
                assert len(own) <= model.num_trusted(token_ids)
            case "trust", int(index) if model.live:
                table, token_ids, computed = model.live[index % len(model.live)]
                model.cache.trust(table)
                model.trusted |= {tuple(token_ids[:end]) for end in range(SIZE, computed + 1, SIZE)}
        model.cache.check_integrity(model.tables)
        model.look()


@property_test
@given(st.lists(actions, max_size=40), st.integers(1, 10), st.integers(0, 9), st.data())
def test_whatever_happens_a_known_block_holds_what_it_is_known_for(
    script: list[tuple[str, object]], num_blocks: int, num_computed: int, data: st.DataObject
):
    model = _Model(num_blocks, has_free_memory=lambda: data.draw(st.booleans()))
    run(model, script, num_computed)
    for table in model.tables:
        model.cache.release(table)
    model.cache.check_integrity([])
    assert model.cache.num_free_blocks == num_blocks


@property_test
@given(st.lists(actions, max_size=40), st.integers(1, 30), st.integers(0, 9))
def test_without_memory_to_spare_no_more_blocks_are_used_than_were_ever_held(
    script: list[tuple[str, object]], num_blocks: int, num_computed: int
):
    """Memory follows use, however many requests come and go."""
    model = _Model(num_blocks, has_free_memory=lambda: False)
    run(model, script, num_computed)
    assert model.handed_out == set(range(model.most_held))
    assert model.cache.num_used_blocks == model.most_held


@property_test
@given(st.lists(actions, max_size=40), st.integers(1, 30), st.integers(0, 9))
def test_with_memory_to_spare_no_more_blocks_are_used_than_were_ever_of_use(
    script: list[tuple[str, object]], num_blocks: int, num_computed: int
):
    """Held, or known: a block is not used while another one lies idle that nobody would miss."""
    model = _Model(num_blocks, has_free_memory=lambda: True)
    run(model, script, num_computed)
    assert model.handed_out == set(range(model.most_used))
    assert model.cache.num_used_blocks == model.most_used
