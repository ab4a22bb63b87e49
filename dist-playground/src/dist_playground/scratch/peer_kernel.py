"""One kernel that is a whole all-reduce: write, tell the others, wait for them, read and add up.

Each program has a tile of the tensor to itself, on all ranks the same one, and talks only to the
program of that tile on the other ranks, so nothing has to wait for a whole GPU. A rank's mapped
memory holds two buffers and, for every tile, one flag a rank: the number of the last call in which
that rank wrote the tile. The own flag tells a program which call this is. It is counted on the
device, not in Python, so that a CUDA graph can replay the kernel.

The two buffers take turns, and so one wait a call is enough: a program writes to a buffer again in
the call after the next, and it waits in the next call for ranks that have ended this one.
"""

# mypy: ignore-errors
# A kernel is typed by what it is compiled for, and Triton is only where torch is a CUDA build.

import triton
import triton.language as tl

__all__ = ["all_reduce_kernel"]


# Not specialised: compiled once for all lengths and alignments, of which PeerMemory keeps no track.
ANY = ["x", "numel"]


@triton.jit(do_not_specialize=ANY, do_not_specialize_on_alignment=ANY)
def all_reduce_kernel(
    peers,  # [W] int64: where each rank's memory begins, as this rank sees it
    RANK: tl.constexpr,
    W: tl.constexpr,
    TILE: tl.constexpr,  # numbers a program adds up
    MOST: tl.constexpr,  # bytes of a buffer; the flags come after two of them
    MAXIMUM: tl.constexpr,
    x,
    numel,
):
    """Replace x [numel] by its sum, or largest value, over W ranks, added up in order of rank."""
    tile = tl.program_id(0)
    place = tile * TILE + tl.arange(0, TILE)
    inside = place < numel
    own = tl.load(peers + RANK)
    flags = (own + 2 * MOST).to(tl.pointer_type(tl.int32)) + tile * W
    turn = tl.load(flags + RANK) + 1
    buffer = (turn & 1).to(tl.int64) * MOST
    dtype = tl.pointer_type(x.dtype.element_ty)
    mine = (own + buffer).to(dtype)
    tl.store(mine + place, tl.load(x + place, inside), inside)
    # All threads have written, and read the flag, before one thread says so. Its release, and the
    # acquire below, order the whole program's accesses, since barriers are between them.
    tl.debug_barrier()
    for rank in tl.static_range(W):
        there = (tl.load(peers + rank) + 2 * MOST).to(tl.pointer_type(tl.int32)) + tile * W
        tl.atomic_xchg(there + RANK, turn, sem="release", scope="sys")
    for rank in tl.static_range(W):
        # A difference, as the count may pass 2^31; a rank may be one call ahead.
        while tl.atomic_add(flags + rank, 0, sem="acquire", scope="sys") - turn < 0:
            pass
    tl.debug_barrier()
    for rank in tl.static_range(W):
        theirs = (tl.load(peers + rank) + buffer).to(dtype)
        part = tl.load(theirs + place, inside)
        if part.dtype.primitive_bitwidth == 16:
            part = part.to(tl.float32)
        if rank == 0:
            total = part
        elif MAXIMUM:
            total = tl.maximum(total, part, propagate_nan=tl.PropagateNan.ALL)
        else:
            total += part
    tl.store(x + place, total.to(x.dtype.element_ty), inside)
