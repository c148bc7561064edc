"""The Triton kernels: a large depthwise convolution as products with banded Toeplitz matrices.

In:  pointers, sizes and strides, from `launch.py`, which is the only caller. Importing this file imports
     Triton.
Out: outputs, and partial sums of the kernel's gradient, in memory that the caller allocated.
Elsewhere: sizes of tiles (tiles.py), the banded matrices of frozen weights (forms.py), torch's side of it
(operators.py).

A map has a short and a long side of the kernel. Along the short side the kernel is walked tap by tap; along
the long side a tap is the matrix T[i, j] = w[tap, i - j + L // 2], so that `y[row] += x[row + tap - K // 2]
@ T`: a product that tensor cores do. "Rows" is the axis of the short side, whichever of H and W that is.

Strides and the sides of the map come divided by a power of two, their unit (`A_...`), and are multiplied
again here: so the compiler sees what they are divisible by, which vector loads and stores depend on.

Zeros of T that lie outside the kernel would turn an infinite input into NaN where the convolution does not
even look. A tile whose sum is not finite is therefore computed again, value by value.
"""

# Triton reads every annotation as a type of its own:
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

CHUNK = tl.constexpr(4)
"""Places that are computed value by value at once: few, because registers are what programs compete for."""


@triton.jit
def _row_products(
    x,  # (M, 1) pointers to the map of each row of the tile
    inside,  # (M,) whether the row's image exists
    r,  # (M,) the row within its map
    first_row,
    last_row,  # of the tile
    j0,  # where the tile begins along the long side
    R,
    S,  # size of the map: rows, long side
    x_row,
    x_long,  # strides
    w,  # the channel's kernel
    w_tap,
    w_long,
    K,
    L,  # size of the kernel: taps, long side
    form,  # the channel's matrices (K, 2 * REACH + 1, B, B), where FORM
    M: tl.constexpr,
    B: tl.constexpr,
    BLOCKS: tl.constexpr,
    REACH: tl.constexpr,
    FORM: tl.constexpr,
    FLIP: tl.constexpr,
    FAR: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """(M, B) float32: the convolution of one tile."""
    local = tl.arange(0, B)
    j = j0 + local
    first_tap = tl.maximum(K // 2 - last_row, 0)
    taps = tl.minimum(K - 1, R - 1 - first_row + K // 2) - first_tap + 1
    first_block = tl.maximum(j0 - L // 2, 0) // B
    blocks = tl.minimum(S - 1, j0 + B - 1 + L // 2) // B - first_block + 1
    acc = tl.zeros((M, B), dtype=tl.float32)
    for step in range(0, taps * blocks):
        if BLOCKS == 1:
            block = 0
            tap = first_tap + step
        else:
            block = first_block + step // taps
            tap = first_tap + step % taps
        i = block * B + local
        row = r + tap - K // 2
        seen = (inside & (row >= 0) & (row < R))[:, None] & (i < S)[None, :]
        if FAR:
            at = row.to(tl.int64)[:, None] * x_row + i.to(tl.int64)[None, :] * x_long
        else:
            at = row[:, None] * x_row + i[None, :] * x_long
        a = tl.load(x + at, mask=seen, other=0.0)
        if FORM:
            which = tap * (2 * REACH + 1) + block - j0 // B + REACH
            t = tl.load(form + which * (B * B) + local[:, None] * B + local[None, :])
        else:
            k = i[:, None] - j[None, :] + L // 2
            banded = (k >= 0) & (k < L)
            if FLIP:
                k = L - 1 - k
                tap = K - 1 - tap
            t = tl.load(w + tap * w_tap + k * w_long, mask=banded, other=0.0).to(a.dtype)
        if EMULATE:  # Triton's interpreter multiplies the bits of bfloat16 as integers
            a = a.to(tl.float32)
            t = t.to(tl.float32)
        acc = tl.dot(a, t, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _value_by_value(
    x,
    inside,
    r,
    j,
    R,
    S,
    x_row,
    x_long,
    w,
    w_tap,
    w_long,
    K,
    L,
    M: tl.constexpr,
    FLIP: tl.constexpr,
):
    """(M, CHUNK) float32: places j of the same tile, where nothing outside the kernel is multiplied by 0."""
    acc = tl.zeros((M, CHUNK), dtype=tl.float32)
    for tap in range(0, K):
        row = r + tap - K // 2
        for k in range(0, L):
            i = j + k - L // 2
            seen = (inside & (row >= 0) & (row < R))[:, None] & ((i >= 0) & (i < S))[None, :]
            at = row.to(tl.int64)[:, None] * x_row + i.to(tl.int64)[None, :] * x_long
            a = tl.load(x + at, mask=seen, other=0.0)
            if FLIP:
                t = tl.load(w + (K - 1 - tap) * w_tap + (L - 1 - k) * w_long)
            else:
                t = tl.load(w + tap * w_tap + k * w_long)
            acc += a.to(tl.float32) * t.to(a.dtype).to(tl.float32)
    return acc


@triton.jit
def _store(values, outputs, real, j, S, y_long):
    """Values (M, places) to the rows `outputs` points to, where those are real, at the places j below S."""
    at = outputs + j.to(tl.int64)[None, :] * y_long
    tl.store(at, values.to(at.dtype.element_ty), mask=real[:, None] & (j < S)[None, :])


@triton.jit
def _any_not_finite(acc):
    return tl.min(tl.min((tl.abs(acc) < float("inf")).to(tl.int32), 1), 0) == 0


@triton.jit
def one(
    x,
    w,
    form,
    bias,
    y,
    N,
    C,
    R,
    S,
    K,
    L,
    x_n,
    x_c,
    x_row,
    x_long,
    w_c,
    w_tap,
    w_long,
    y_n,
    y_c,
    y_row,
    y_long,
    P: tl.constexpr,
    BR: tl.constexpr,
    B: tl.constexpr,
    BLOCKS: tl.constexpr,
    REACH: tl.constexpr,
    FORM: tl.constexpr,
    BIAS: tl.constexpr,
    FLIP: tl.constexpr,
    FAR: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
    A_PLANE: tl.constexpr,
    A_ROW: tl.constexpr,
    A_LONG: tl.constexpr,
    A_SIDE: tl.constexpr,
    A_SIZE: tl.constexpr,
):
    """One kernel: a program computes BR rows and B places along the long side, of P images of one channel."""
    x_n = x_n * A_PLANE
    x_c = x_c * A_PLANE
    x_row = x_row * A_ROW
    x_long = x_long * A_LONG
    y_n = y_n * A_PLANE
    y_c = y_c * A_PLANE
    y_row = y_row * A_ROW
    y_long = y_long * A_LONG
    R = R * A_SIDE
    S = S * A_SIZE
    program = tl.program_id(0)
    c = (program % C).to(tl.int64)
    rest = program // C
    j0 = rest % BLOCKS * B
    rest = rest // BLOCKS
    row_blocks = (R + BR - 1) // BR
    first_row = rest % row_blocks * BR
    m = tl.arange(0, P * BR)
    n = rest // row_blocks * P + m // BR
    r = first_row + m % BR
    inside = n < N
    maps = x + (n.to(tl.int64) * x_n + c * x_c)[:, None]
    kernel = w + c * w_c
    acc = _row_products(
        maps,
        inside,
        r,
        first_row,
        tl.minimum(first_row + BR, R) - 1,
        j0,
        R,
        S,
        x_row,
        x_long,
        kernel,
        w_tap,
        w_long,
        K,
        L,
        form + c * (K * (2 * REACH + 1) * B * B),
        P * BR,
        B,
        BLOCKS,
        REACH,
        FORM,
        FLIP,
        FAR,
        PRECISION,
        EMULATE,
    )
    shift = 0.0
    if BIAS:
        shift = tl.load(bias + c).to(tl.float32)
    outputs = y + (n.to(tl.int64) * y_n + c * y_c + r.to(tl.int64) * y_row)[:, None]
    real = inside & (r < R)
    if _any_not_finite(acc):
        for chunk in range(0, B, CHUNK):
            j = j0 + chunk + tl.arange(0, CHUNK)
            part = _value_by_value(
                maps, inside, r, j, R, S, x_row, x_long, kernel, w_tap, w_long, K, L, P * BR, FLIP
            )
            _store(part + shift, outputs, real, j, S, y_long)
    else:
        _store(acc + shift, outputs, real, j0 + tl.arange(0, B), S, y_long)


@triton.jit
def two(
    x,
    x_tall,  # what the tall kernel reads: x, or maps of the same strides
    tall,
    wide,
    tall_form,
    wide_form,
    bias,
    y,
    y_tall,  # what the tall kernel gives, where APART
    N,
    C,
    H,
    W,
    TALL_K,
    TALL_L,
    WIDE_K,
    WIDE_L,
    x_n,
    x_c,
    x_h,
    x_w,
    tall_c,
    tall_tap,
    tall_long,
    wide_c,
    wide_tap,
    wide_long,
    y_n,
    y_c,
    y_h,
    y_w,
    P: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    H_BLOCKS: tl.constexpr,
    W_BLOCKS: tl.constexpr,
    TALL_REACH: tl.constexpr,
    WIDE_REACH: tl.constexpr,
    FORM: tl.constexpr,
    BIAS: tl.constexpr,
    APART: tl.constexpr,
    FLIP: tl.constexpr,
    FAR: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
    A_PLANE: tl.constexpr,
    A_ROW: tl.constexpr,
    A_LONG: tl.constexpr,
    A_SIDE: tl.constexpr,
    A_SIZE: tl.constexpr,
):
    """Two kernels in one pass: a tall one (products along H) and a wide one (products along W); their sum, or
    APART.
    """
    x_n = x_n * A_PLANE
    x_c = x_c * A_PLANE
    x_h = x_h * A_ROW
    x_w = x_w * A_LONG
    y_n = y_n * A_PLANE
    y_c = y_c * A_PLANE
    y_h = y_h * A_ROW
    y_w = y_w * A_LONG
    H = H * A_SIDE
    W = W * A_SIZE
    program = tl.program_id(0)
    c = (program % C).to(tl.int64)
    rest = program // C
    w0 = rest % W_BLOCKS * BW
    rest = rest // W_BLOCKS
    h0 = rest % H_BLOCKS * BH
    n0 = rest // H_BLOCKS * P
    m = tl.arange(0, P * BH)
    n = n0 + m // BH
    h = h0 + m % BH
    inside = n < N
    maps = x + (n.to(tl.int64) * x_n + c * x_c)[:, None]
    acc = _row_products(
        maps,
        inside,
        h,
        h0,
        tl.minimum(h0 + BH, H) - 1,
        w0,
        H,
        W,
        x_h,
        x_w,
        wide + c * wide_c,
        wide_tap,
        wide_long,
        WIDE_K,
        WIDE_L,
        wide_form + c * (WIDE_K * (2 * WIDE_REACH + 1) * BW * BW),
        P * BH,
        BW,
        W_BLOCKS,
        WIDE_REACH,
        FORM,
        FLIP,
        FAR,
        PRECISION,
        EMULATE,
    )
    turned = tl.arange(0, P * BW)
    n_turned = n0 + turned // BW
    across = _row_products(
        x_tall + (n_turned.to(tl.int64) * x_n + c * x_c)[:, None],
        n_turned < N,
        w0 + turned % BW,
        w0,
        tl.minimum(w0 + BW, W) - 1,
        h0,
        W,
        H,
        x_w,
        x_h,
        tall + c * tall_c,
        tall_tap,
        tall_long,
        TALL_K,
        TALL_L,
        tall_form + c * (TALL_K * (2 * TALL_REACH + 1) * BH * BH),
        P * BW,
        BH,
        H_BLOCKS,
        TALL_REACH,
        FORM,
        FLIP,
        FAR,
        PRECISION,
        EMULATE,
    )
    down = tl.reshape(tl.permute(tl.reshape(across, (P, BW, BH)), (0, 2, 1)), (P * BH, BW))
    shift = 0.0
    if BIAS:
        shift = tl.load(bias + c).to(tl.float32)
    outputs = y + (n.to(tl.int64) * y_n + c * y_c + h.to(tl.int64) * y_h)[:, None]
    tall_outputs = y_tall + (n.to(tl.int64) * y_n + c * y_c + h.to(tl.int64) * y_h)[:, None]
    tall_maps = x_tall + (n.to(tl.int64) * x_n + c * x_c)[:, None]
    real = inside & (h < H)
    if _any_not_finite(acc + down):
        across_map, down_map = wide + c * wide_c, tall + c * tall_c
        for chunk in range(0, BW, CHUNK):
            j = w0 + chunk + tl.arange(0, CHUNK)
            part = _value_by_value(
                maps,
                inside,
                h,
                j,
                H,
                W,
                x_h,
                x_w,
                across_map,
                wide_tap,
                wide_long,
                WIDE_K,
                WIDE_L,
                P * BH,
                FLIP,
            )
            tall_part = _value_by_value(
                tall_maps,
                inside,
                h,
                j,
                H,
                W,
                x_h,
                x_w,
                down_map,
                tall_long,
                tall_tap,
                TALL_L,
                TALL_K,
                P * BH,
                FLIP,
            )
            if APART:
                _store(part, outputs, real, j, W, y_w)
                _store(tall_part, tall_outputs, real, j, W, y_w)
            else:
                _store(part + tall_part + shift, outputs, real, j, W, y_w)
    elif APART:
        _store(acc, outputs, real, w0 + tl.arange(0, BW), W, y_w)
        _store(down, tall_outputs, real, w0 + tl.arange(0, BW), W, y_w)
    else:
        _store(acc + down + shift, outputs, real, w0 + tl.arange(0, BW), W, y_w)


@triton.jit
def weight_sums(
    x,
    g,
    out,
    N,
    C,
    R,
    S,
    K,
    x_n,
    x_c,
    x_row,
    x_long,
    g_n,
    g_c,
    g_row,
    g_long,
    PER_PART,  # groups of rows that one program adds
    P: tl.constexpr,
    BR: tl.constexpr,
    B: tl.constexpr,
    BLOCKS: tl.constexpr,
    REACH: tl.constexpr,
    FAR: tl.constexpr,
    PRECISION: tl.constexpr,
    EMULATE: tl.constexpr,
    A_PLANE: tl.constexpr,
    A_ROW: tl.constexpr,
    A_LONG: tl.constexpr,
    A_SIDE: tl.constexpr,
    A_SIZE: tl.constexpr,
):
    """The kernel's gradient, of one tap and channel: sums along the diagonals of x^T @ g over a part of the
    images. out is (parts, BLOCKS, 2 * REACH + 1, C, K, 2 * B) float32; its last axis is i - j + B within a
    pair of blocks. Nothing is added by several programs, so the sum is the same every time.
    """
    x_n = x_n * A_PLANE
    x_c = x_c * A_PLANE
    x_row = x_row * A_ROW
    x_long = x_long * A_LONG
    g_n = g_n * A_PLANE
    g_c = g_c * A_PLANE
    g_row = g_row * A_ROW
    g_long = g_long * A_LONG
    R = R * A_SIDE
    S = S * A_SIZE
    program = tl.program_id(0)
    tap = program % K
    rest = program // K
    c = (rest % C).to(tl.int64)
    rest = rest // C
    offset = rest % (2 * REACH + 1) - REACH
    rest = rest // (2 * REACH + 1)
    j_block = rest % BLOCKS
    part = rest // BLOCKS
    row_blocks = (R + BR - 1) // BR
    groups = (N + P - 1) // P * row_blocks
    local = tl.arange(0, B)
    i = (j_block + offset) * B + local
    j = j_block * B + local
    m = tl.arange(0, P * BR)
    i_seen = (i >= 0) & (i < S)
    j_seen = j < S
    acc = tl.zeros((B, B), dtype=tl.float32)
    for group in range(part * PER_PART, tl.minimum((part + 1) * PER_PART, groups)):
        n = group // row_blocks * P + m // BR
        r = group % row_blocks * BR + m % BR
        row = r + tap - K // 2
        both = ((n < N) & (r < R) & (row >= 0) & (row < R))[:, None]  # no product with the padding
        x_at = (n.to(tl.int64) * x_n + c * x_c)[:, None]
        g_at = (n.to(tl.int64) * g_n + c * g_c)[:, None]
        if FAR:
            x_at += row.to(tl.int64)[:, None] * x_row + i.to(tl.int64)[None, :] * x_long
            g_at += r.to(tl.int64)[:, None] * g_row + j.to(tl.int64)[None, :] * g_long
        else:
            x_at += row[:, None] * x_row + i[None, :] * x_long
            g_at += r[:, None] * g_row + j[None, :] * g_long
        a = tl.load(x + x_at, mask=both & i_seen[None, :], other=0.0)
        b = tl.load(g + g_at, mask=both & j_seen[None, :], other=0.0)
        if EMULATE:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(tl.trans(a), b, acc, input_precision=PRECISION)
    acc = tl.where(i_seen[:, None] & j_seen[None, :], acc, 0.0)
    turned = tl.gather(acc, (local[:, None] + local[None, :]) % B, 0)  # each diagonal becomes a row
    upper = local[:, None] + local[None, :] < B
    at = out + program.to(tl.int64) * (2 * B) + local
    tl.store(at, tl.sum(tl.where(upper, 0.0, turned), 1))
    tl.store(at + B, tl.sum(tl.where(upper, turned, 0.0), 1))
