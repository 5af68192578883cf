"""How the training set is divided among scoring tasks."""


def shard_indices(num_rows: int, shard: int, num_shards: int) -> range:
    """Return the rows of one shard: contiguous, in order, sizes differing by at most one.

    Args:
        num_rows: Rows in all.
        shard: From 0.
        num_shards: At least 1.

    Raises:
        ValueError: There is no such shard.
    """
    if not 0 <= shard < num_shards:
        raise ValueError(f"shard {shard} of {num_shards} does not exist")
    return range(num_rows * shard // num_shards, num_rows * (shard + 1) // num_shards)
