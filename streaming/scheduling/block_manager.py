"""Allocates the blocks of the KV cache and keeps the prefix cache.

Accounting only: a backend holds the tensors. The scheduler is the only caller.

The cache is a pool of blocks of `block_size` tokens. A sequence has a block table and allocates
blocks as it grows, so memory goes to tokens that exist and no space is lost between them (paging:
Kwon et al. 2023, arXiv:2309.06180).

A full block is cached under its own tokens and the cached block before it. A sequence that begins
with the same tokens shares it: a prefix hit. The key holds the tokens themselves instead of their
hash, so a crafted prompt cannot collide with the cache of another one. A block with a reference
count of 0 stays cached until its memory is needed; the least recently used one is evicted first.

A backend commits memory to a block at the first write, not when it makes the pool. So blocks that
have been written before are allocated first, and cached blocks are kept only while there is memory
to spare for new ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Key = tuple[int, tuple[int, ...]]
"""The prefix-tree node of the block before, and the block's own tokens."""

_ROOT = 0
"""The prefix-tree node before the first block."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The longest cached prefix of a sequence.

    Attributes:
        block_ids: the blocks that hold it.
        node: prefix-tree node of its last block.
        next_key: key of the full block after it; None if the sequence has no such block.
    """

    block_ids: tuple[int, ...]
    node: int
    next_key: Key | None


EMPTY_PREFIX = Prefix((), _ROOT, None)
"""For a sequence that must be computed from its first token and shares no block."""


class BlockTable:
    """The blocks of one sequence, in the order of its tokens.

    Attributes:
        block_ids: block `i` holds the tokens from `i * block_size` on.
        num_cached_blocks: how many of them, from the first, have a key in the prefix cache.
        num_verified_blocks: how many of these have yielded finite logits.
        node: prefix-tree node of the last cached block.
    """

    __slots__ = ("block_ids", "node", "num_cached_blocks", "num_verified_blocks")

    def __init__(self) -> None:
        # A tuple, so that a batch can hold it without a copy.
        self.block_ids: tuple[int, ...] = ()
        self.num_cached_blocks = 0
        self.num_verified_blocks = 0
        self.node = _ROOT


class BlockManager:
    """Allocates blocks, shares those of equal prefixes, and frees them.

    Args:
        num_blocks: size of the pool.
        block_size: tokens in a block.
        has_free_memory: whether there is memory for a block that has never been written. If not,
            a cached block is evicted instead.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        has_free_memory: Callable[[], bool] = lambda: True,
    ) -> None:
        assert num_blocks > 0
        assert block_size > 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._has_free_memory = has_free_memory
        self._ref_counts = [0] * num_blocks
        # The prefix cache: both directions of key <-> block, and the node of each cached block.
        self._block_by_key: dict[Key, int] = {}
        self._key_by_block: dict[int, Key] = {}
        self._node_by_block: dict[int, int] = {}
        self._verified: set[int] = set()
        self._num_nodes = 0
        # The free list has three parts. Uncached blocks that have been written: a stack, so that
        # the latest is allocated first. Cached ones: the least recently used in front. And those
        # that were never written: all from this number on.
        self._free_uncached: list[int] = []
        self._free_cached: OrderedDict[int, None] = OrderedDict()
        self._num_touched = 0

    @property
    def num_free_blocks(self) -> int:
        """Blocks with a reference count of 0, cached ones included."""
        num_untouched = self.num_blocks - self._num_touched
        return len(self._free_uncached) + len(self._free_cached) + num_untouched

    @property
    def num_touched_blocks(self) -> int:
        """Blocks that have ever been allocated, and so have backend memory committed to them."""
        return self._num_touched

    @property
    def max_tokens(self) -> int:
        """Most tokens that one sequence could ever hold."""
        return self.num_blocks * self.block_size

    def find_prefix(self, token_ids: Sequence[int]) -> Prefix:
        """Return the longest cached prefix of `token_ids` that leaves out at least the last token.

        The last token must be computed: its logits are needed, and the cache does not hold them.
        """
        block_ids: list[int] = []
        node = _ROOT
        while (key := self.next_key(token_ids, len(block_ids), node)) is not None:
            block_id = self._block_by_key.get(key)
            if block_id is None:
                break
            block_ids.append(block_id)
            node = self._node_by_block[block_id]
        return Prefix(tuple(block_ids), node, key)

    def next_key(self, token_ids: Sequence[int], num_cached_blocks: int, node: int) -> Key | None:
        """Return the key of the block after `num_cached_blocks`; None if it cannot be shared."""
        start = num_cached_blocks * self.block_size
        end = start + self.block_size
        return (node, tuple(token_ids[start:end])) if end < len(token_ids) else None

    def share_prefix(self, table: BlockTable, prefix: Prefix) -> None:
        """Start an empty table with a cached prefix, and count a reference to each block."""
        assert not table.block_ids
        for block_id in prefix.block_ids:
            self._ref_counts[block_id] += 1
            self._free_cached.pop(block_id, None)
        table.block_ids = prefix.block_ids
        table.num_cached_blocks = len(prefix.block_ids)
        table.node = prefix.node

    def num_free_in(self, prefix: Prefix) -> int:
        """Return how many blocks of `prefix` are free, and so leave the free list when shared."""
        return sum(block_id in self._free_cached for block_id in prefix.block_ids)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def num_missing_blocks(self, table: BlockTable, num_tokens: int) -> int:
        """Return how many blocks `table` lacks to hold `num_tokens` tokens."""
        return max(0, self.num_blocks_for(num_tokens) - len(table.block_ids))

    def allocate(self, table: BlockTable, num_tokens: int) -> None:
        """Extend `table` to hold `num_tokens` tokens; there must be enough free blocks."""
        block_ids: list[int] = []
        for _ in range(self.num_missing_blocks(table, num_tokens)):
            block_id = self._pop_free_block()
            # The block is about to be overwritten, so its old tokens must not be found any more.
            self._uncache(block_id)
            self._ref_counts[block_id] = 1
            block_ids.append(block_id)
        table.block_ids += tuple(block_ids)

    def cache_full_blocks(
        self, table: BlockTable, token_ids: Sequence[int], num_computed: int
    ) -> None:
        """Cache the blocks of `table` that are full after `num_computed` tokens."""
        while (table.num_cached_blocks + 1) * self.block_size <= num_computed:
            start = table.num_cached_blocks * self.block_size
            block_id = table.block_ids[table.num_cached_blocks]
            key = (table.node, tuple(token_ids[start : start + self.block_size]))
            # Two sequences may have computed the same tokens side by side: the first is cached,
            # and the second continues from the node of the first.
            cached_id = self._block_by_key.setdefault(key, block_id)
            if cached_id == block_id:
                self._num_nodes += 1
                self._key_by_block[block_id] = key
                self._node_by_block[block_id] = self._num_nodes
            table.node = self._node_by_block[cached_id]
            table.num_cached_blocks += 1

    def free(self, table: BlockTable) -> None:
        """Drop the references of `table`; the end of a sequence is evicted before its beginning."""
        for block_id in reversed(table.block_ids):
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] == 0:
                if block_id in self._key_by_block:
                    self._free_cached[block_id] = None
                else:
                    self._free_uncached.append(block_id)
        table.block_ids = ()
        table.num_cached_blocks = 0
        table.num_verified_blocks = 0
        table.node = _ROOT

    def mark_verified(self, table: BlockTable) -> None:
        """Record that the cached blocks of `table` have yielded finite logits.

        Logits depend on all keys and values before them, so those are finite too.
        """
        while table.num_verified_blocks < table.num_cached_blocks:
            self._verified.add(table.block_ids[table.num_verified_blocks])
            table.num_verified_blocks += 1

    def uncache_unverified(self, table: BlockTable) -> None:
        """Take the blocks of `table` out of the prefix cache, except verified ones.

        They may hold the keys and values that broke the sequence's logits. A verified block cannot:
        it was full when it yielded finite logits, and full blocks are never written again.
        """
        for block_id in table.block_ids:
            if block_id not in self._verified:
                self._uncache(block_id)

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Assert that the free list and `tables` make up the pool, and that ref counts match."""
        ref_counts = [0] * self.num_blocks
        for table in tables:
            for block_id in table.block_ids:
                ref_counts[block_id] += 1
        assert ref_counts == self._ref_counts
        untouched = range(self._num_touched, self.num_blocks)
        free = [*self._free_uncached, *self._free_cached, *untouched]
        assert sorted(free) == [i for i, count in enumerate(ref_counts) if not count]
        assert self._free_cached.keys() <= self._key_by_block.keys()
        assert not self._key_by_block.keys() & self._free_uncached
        assert all(self._block_by_key[key] == block for block, key in self._key_by_block.items())
        assert len(self._block_by_key) == len(self._key_by_block) == len(self._node_by_block)

    def _pop_free_block(self) -> int:
        """Return the free block that is cheapest to overwrite."""
        # Uncached blocks with memory cost nothing: no prefix is lost and no memory is committed.
        if self._free_uncached:
            return self._free_uncached.pop()
        has_untouched = self._num_touched < self.num_blocks
        # New memory is better than evicting, while there is memory. Without it, evict; and where
        # nothing can be evicted, running sequences still come before the memory target.
        if has_untouched and (not self._free_cached or self._has_free_memory()):
            self._num_touched += 1
            return self._num_touched - 1
        block_id, _ = self._free_cached.popitem(last=False)
        return block_id

    def _uncache(self, block_id: int) -> None:
        self._verified.discard(block_id)
        if (key := self._key_by_block.pop(block_id, None)) is not None:
            del self._block_by_key[key]
            del self._node_by_block[block_id]
