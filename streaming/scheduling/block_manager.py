"""Which block of the key-value cache belongs to whom. Accounting only; a backend has the tensors.

The cache is a pool of blocks of `block_size` tokens. A sequence holds a table of blocks and takes
more as it grows, so memory goes to tokens that exist and never lies unusable between them (paging:
Kwon et al. 2023, arXiv:2309.06180).

A full block is known by its tokens and by the known block before it, so a sequence that begins with
the same tokens shares it. The tokens themselves are the key, not a hash of them: no prompt can be
made up that is served another's cache. A block that nobody holds stays known until its place is
needed; the one unused for longest goes first.

A backend's memory is taken by the first write to a block, not when the pool is made. So blocks that
have been used before are handed out again first, and what is known is kept only as long as there is
memory to spare for new ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Key = tuple[int, tuple[int, ...]]
"""The node of the block before, and the block's own tokens."""

_ROOT = 0
"""The node before the first block."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The longest known beginning of a sequence.

    Attributes:
        block_ids: blocks that hold it.
        node: of its last block.
        next_key: of the full block after it; None where the sequence has none.
    """

    block_ids: tuple[int, ...]
    node: int
    next_key: Key | None


NO_PREFIX = Prefix((), _ROOT, None)
"""Of a sequence that is to be computed from its first token, and that nobody waits for."""


class BlockTable:
    """The blocks of one sequence, in the order of its tokens."""

    __slots__ = ("block_ids", "node", "num_known_blocks", "num_trusted_blocks")

    def __init__(self) -> None:
        self.block_ids: list[int] = []
        self.num_known_blocks = 0
        self.num_trusted_blocks = 0
        self.node = _ROOT


class BlockManager:
    """Hands out blocks, shares those with equal prefixes, and takes them back.

    Args:
        num_blocks: size of the pool.
        block_size: tokens in a block.
        has_free_memory: whether a block may be taken that has never been used while others could
            be used again, if what they are known for is given up.
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
        self._num_holders = [0] * num_blocks
        self._block_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        self._node_of: dict[int, int] = {}
        self._trusted: set[int] = set()
        self._num_nodes = 0
        self._has_free_memory = has_free_memory
        # Blocks that nobody holds are of three kinds: used before and unknown, the next to be taken
        # last; known, the one unused for longest in front; and never used, from this number on.
        self._unknown: list[int] = []
        self._known: OrderedDict[int, None] = OrderedDict()
        self._num_used = 0

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds, whether or not their tokens are still known."""
        return len(self._unknown) + len(self._known) + self.num_blocks - self._num_used

    @property
    def num_used_blocks(self) -> int:
        """Blocks that have ever been handed out: those that a backend's memory is taken by."""
        return self._num_used

    @property
    def max_tokens(self) -> int:
        """Most tokens that one sequence could ever hold."""
        return self.num_blocks * self.block_size

    def find_prefix(self, token_ids: Sequence[int]) -> Prefix:
        """Return the longest known beginning of `token_ids`, leaving at least one token out.

        The last token is left out because its logits are wanted, which a cache does not hold.
        """
        block_ids: list[int] = []
        node = _ROOT
        while (key := self.next_key(token_ids, len(block_ids), node)) is not None:
            block_id = self._block_of.get(key)
            if block_id is None:
                break
            block_ids.append(block_id)
            node = self._node_of[block_id]
        return Prefix(tuple(block_ids), node, key)

    def next_key(self, token_ids: Sequence[int], num_known_blocks: int, node: int) -> Key | None:
        """Return the key of the block after `num_known_blocks`; None where none can be shared."""
        start = num_known_blocks * self.block_size
        end = start + self.block_size
        return (node, tuple(token_ids[start:end])) if end < len(token_ids) else None

    def share(self, table: BlockTable, prefix: Prefix) -> None:
        """Begin an empty table with a known prefix."""
        assert not table.block_ids
        for block_id in prefix.block_ids:
            self._num_holders[block_id] += 1
            self._known.pop(block_id, None)
        table.block_ids = list(prefix.block_ids)
        table.num_known_blocks = len(prefix.block_ids)
        table.node = prefix.node

    def num_taken_by(self, prefix: Prefix) -> int:
        """Return how many free blocks `share` would take for `prefix`."""
        return sum(block_id in self._known for block_id in prefix.block_ids)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def num_missing_blocks(self, table: BlockTable, num_tokens: int) -> int:
        """Return how many blocks `table` lacks to hold `num_tokens` tokens."""
        return max(0, self.num_blocks_for(num_tokens) - len(table.block_ids))

    def grow(self, table: BlockTable, num_tokens: int) -> None:
        """Give `table` room for `num_tokens` tokens; there must be enough free blocks."""
        for _ in range(self.num_missing_blocks(table, num_tokens)):
            block_id = self._take()
            self._forget(block_id)
            self._num_holders[block_id] = 1
            table.block_ids.append(block_id)

    def commit(self, table: BlockTable, token_ids: Sequence[int], num_computed: int) -> None:
        """Make known the blocks of `table` that are full now that `num_computed` tokens are in."""
        while (table.num_known_blocks + 1) * self.block_size <= num_computed:
            start = table.num_known_blocks * self.block_size
            block_id = table.block_ids[table.num_known_blocks]
            key = (table.node, tuple(token_ids[start : start + self.block_size]))
            # Two sequences may have computed the same tokens side by side: the first one is known.
            known_id = self._block_of.setdefault(key, block_id)
            if known_id == block_id:
                self._num_nodes += 1
                self._key_of[block_id] = key
                self._node_of[block_id] = self._num_nodes
            table.node = self._node_of[known_id]
            table.num_known_blocks += 1

    def release(self, table: BlockTable) -> None:
        """Take all blocks back; the end of a sequence is forgotten before its beginning."""
        for block_id in reversed(table.block_ids):
            self._num_holders[block_id] -= 1
            if self._num_holders[block_id] == 0:
                if block_id in self._key_of:
                    self._known[block_id] = None
                else:
                    self._unknown.append(block_id)
        table.block_ids = []
        table.num_known_blocks = 0
        table.num_trusted_blocks = 0
        table.node = _ROOT

    def trust(self, table: BlockTable) -> None:
        """Take that logits computed from the known blocks of `table` are finite: so are these."""
        while table.num_trusted_blocks < table.num_known_blocks:
            self._trusted.add(table.block_ids[table.num_trusted_blocks])
            table.num_trusted_blocks += 1

    def forget(self, table: BlockTable) -> None:
        """Make the blocks of `table` unknown, but for those that are trusted.

        They may hold what broke the sequence's logits. It cannot be in a trusted block, which does
        not change any more.
        """
        for block_id in table.block_ids:
            if block_id not in self._trusted:
                self._forget(block_id)

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Assert that free and held blocks make up the pool, and that every holder is counted."""
        num_holders = [0] * self.num_blocks
        for table in tables:
            for block_id in table.block_ids:
                num_holders[block_id] += 1
        assert num_holders == self._num_holders
        free = [*self._unknown, *self._known, *range(self._num_used, self.num_blocks)]
        assert sorted(free) == [i for i, count in enumerate(num_holders) if not count]
        assert self._known.keys() <= self._key_of.keys()
        assert not self._key_of.keys() & self._unknown
        assert all(self._block_of[key] == block_id for block_id, key in self._key_of.items())
        assert len(self._block_of) == len(self._key_of) == len(self._node_of)

    def _take(self) -> int:
        """Return the block that nobody holds and that is missed least."""
        if self._unknown:
            return self._unknown.pop()
        has_unused = self._num_used < self.num_blocks
        if has_unused and (not self._known or self._has_free_memory()):
            self._num_used += 1
            return self._num_used - 1
        block_id, _ = self._known.popitem(last=False)
        return block_id

    def _forget(self, block_id: int) -> None:
        self._trusted.discard(block_id)
        if (key := self._key_of.pop(block_id, None)) is not None:
            del self._block_of[key]
            del self._node_of[block_id]
