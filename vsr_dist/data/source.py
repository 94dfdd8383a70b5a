"""From the `data` section to open shards: a folder on disk, or a remote set behind the node's cache."""

from __future__ import annotations

from pathlib import Path

from sharding.index import read_index
from sharding.schema import Index
from vsr_dist.core.errors import BadConfigError
from vsr_dist.data.cache import ShardCache
from vsr_dist.data.config import DataConfig
from vsr_dist.data.remote import Fetcher, is_remote, make_store
from vsr_dist.data.shards import MAX_SHARDS_OPEN, OpenShard, ShardSet


class RemoteShardSet(ShardSet):
    """A set behind the node's cache."""

    def __init__(self, cache: ShardCache, index: Index, max_open: int) -> None:
        self._cache = cache
        self._shards = {shard.name: shard for shard in index.shards}
        super().__init__(cache.fetcher.root, index, lambda name: cache.open(self._shards[name]), max_open)
        cache.make_way = self.close_idle

    def fetch(self, name: str) -> None:
        """See `ShardSet`."""
        self._cache.fetch(self._shards[name])


def open_shard_set(config: DataConfig) -> ShardSet:
    """The set of `data.root`. Its index is read first; sizes of local shards are checked, remote ones when fetched.

    Raises BadShardError for a set that is not whole, BadConfigError for a cache that is too small for the order.
    """
    if not is_remote(config.root):
        root = Path(config.root)
        index = read_index(root)
        return ShardSet(str(root), index, lambda name: OpenShard(root / name))
    store = make_store(config.root, config.s3_endpoint)
    fetcher = Fetcher(config.root.rstrip("/"), store, config.fetch_tries, config.fetch_backoff_s)
    cache = ShardCache(Path(config.cache_dir).expanduser(), int(config.cache_gb * 1e9), fetcher)
    index = cache.fetch_index()
    check_cache_size(config, index)
    return RemoteShardSet(cache, index, min(MAX_SHARDS_OPEN, shards_at_once(config, index)))


def shards_at_once(config: DataConfig, index: Index) -> int:
    """How many training shards the windows around one position of the stream lie in, at most."""
    num_shards = sum(shard.split == config.train_split for shard in index.shards)
    wanted = {"shuffle": num_shards, "block": config.block_shards, "ordered": config.batch_clips}[config.order]
    return max(1, min(wanted, num_shards))


def check_cache_size(config: DataConfig, index: Index) -> None:
    """Refuse a cache in which the shards in use, those just used and those needed next do not fit together."""
    sizes = sorted((shard.num_bytes for shard in index.shards if shard.split == config.train_split), reverse=True)
    need_gb = sum(sizes[: 3 * shards_at_once(config, index)]) / 1e9
    if need_gb <= config.cache_gb:
        return
    advice = {
        "shuffle": "order=shuffle touches all shards all the time: use data.order=block",
        "block": f"three blocks of {config.block_shards} shards must fit: lower data.block_shards",
        "ordered": f"{config.batch_clips} shards are walked at once, and the next must fit: lower data.batch_clips",
    }[config.order]
    raise BadConfigError(f"data.cache_gb is {config.cache_gb:g}, but needs {need_gb:.3g}; {advice}, or raise it")
