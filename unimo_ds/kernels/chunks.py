"""Work cut into chunks."""


def slices(count: int, size: int) -> list[slice]:
    """Slices of up to `size` (at least 1) that cover `range(count)`."""
    step = max(1, size)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]
