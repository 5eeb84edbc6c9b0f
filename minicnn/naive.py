"""Every op as plain loops: the definition to read first, and the oracle of the tests.

Nothing here is fast or clever. Each function takes and returns what its namesake in
`minicnn.ops` does, except that the backward functions take the inputs themselves.
"""

import numpy as np

from minicnn.ops import EPS, BlockWeights, Pad, conv_size, pads, transpose_size

Array = np.ndarray


def conv2d(x: Array, w: Array, b: Array, stride: int = 1, pad: Pad = 0) -> Array:
    """One window, one filter, one number at a time: its weighted sum plus the bias."""
    (top, bottom), (left, right) = pads(pad)
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    N, H, W, _ = x.shape
    K, _, _, F = w.shape
    OH, OW = conv_size(H, K, stride, 0, 0), conv_size(W, K, stride, 0, 0)
    y = np.empty((N, OH, OW, F), x.dtype)
    for n in range(N):
        for i in range(OH):
            for j in range(OW):
                window = x[n, i * stride : i * stride + K, j * stride : j * stride + K]
                for f in range(F):
                    y[n, i, j, f] = np.sum(window * w[:, :, :, f]) + b[f]
    return y


def conv2d_backward(
    dy: Array, x: Array, w: Array, stride: int = 1, pad: Pad = 0
) -> tuple[Array, Array, Array]:
    """The chain rule, window by window: y is linear in the window, the filter and the bias."""
    (top, bottom), (left, right) = pads(pad)
    N, H, W, _ = x.shape
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    K, _, _, F = w.shape
    dx, dw, db = np.zeros_like(padded), np.zeros_like(w), np.zeros(F, x.dtype)
    for n in range(N):
        for i in range(dy.shape[1]):
            for j in range(dy.shape[2]):
                window = np.s_[n, i * stride : i * stride + K, j * stride : j * stride + K]
                for f in range(F):
                    dx[window] += dy[n, i, j, f] * w[:, :, :, f]
                    dw[:, :, :, f] += dy[n, i, j, f] * padded[window]
                    db[f] += dy[n, i, j, f]
    return dx[:, top : top + H, left : left + W], dw, db


def conv_transpose2d(x: Array, w: Array, b: Array, stride: int = 2, crop: Pad = 0) -> Array:
    """Every pixel paints a K x K window, the windows overlap and add, the border is cropped."""
    N, H, W, C = x.shape
    K, _, F, _ = w.shape
    y = np.zeros((N, (H - 1) * stride + K, (W - 1) * stride + K, F), x.dtype)
    for n in range(N):
        for i in range(H):
            for j in range(W):
                for c in range(C):
                    window = np.s_[n, i * stride : i * stride + K, j * stride : j * stride + K]
                    y[window] += x[n, i, j, c] * w[:, :, :, c]
    (top, bottom), (left, right) = pads(crop)
    OH = transpose_size(H, K, stride, top, bottom)
    OW = transpose_size(W, K, stride, left, right)
    y = y[:, top : top + OH, left : left + OW]
    return np.asarray(y + b)


def conv_transpose2d_backward(
    dy: Array, x: Array, w: Array, stride: int = 2, crop: Pad = 0
) -> tuple[Array, Array, Array]:
    """What a pixel painted, weighted by dy, is what it owes."""
    (top, bottom), (left, right) = pads(crop)
    dy = np.pad(dy, ((0, 0), (top, bottom), (left, right), (0, 0)))  # the crop was thrown away
    N, H, W, C = x.shape
    K, _, F, _ = w.shape
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for n in range(N):
        for i in range(H):
            for j in range(W):
                window = dy[n, i * stride : i * stride + K, j * stride : j * stride + K]
                for c in range(C):
                    dx[n, i, j, c] = np.sum(window * w[:, :, :, c])
                    dw[:, :, :, c] += x[n, i, j, c] * window
    return dx, dw, dy.reshape(-1, F).sum(0)


def batch_norm(x: Array, gamma: Array, beta: Array) -> Array:
    """Shift and scale each channel to mean 0 and variance 1 over the batch, then to beta, gamma."""
    y = np.empty_like(x)
    for c in range(x.shape[3]):
        channel = x[..., c]
        mean = np.sum(channel) / channel.size
        var = np.sum((channel - mean) ** 2) / channel.size
        y[..., c] = gamma[c] * (channel - mean) / np.sqrt(var + EPS) + beta[c]
    return y


def batch_norm_backward(dy: Array, x: Array, gamma: Array) -> tuple[Array, Array, Array]:
    """The chain rule through y, the variance and the mean, one after the other."""
    dx, dgamma, dbeta = np.empty_like(x), np.empty_like(gamma), np.empty_like(gamma)
    for c in range(x.shape[3]):
        channel, dchannel = x[..., c], dy[..., c]
        count = channel.size
        mean = np.sum(channel) / count
        centred = channel - mean
        std = np.sqrt(np.sum(centred**2) / count + EPS)
        dnormal = gamma[c] * dchannel
        dvar = np.sum(dnormal * centred) * -0.5 / std**3
        dmean = -np.sum(dnormal) / std - dvar * 2 * np.sum(centred) / count
        dx[..., c] = dnormal / std + dvar * 2 * centred / count + dmean / count
        dgamma[c] = np.sum(dchannel * centred / std)
        dbeta[c] = np.sum(dchannel)
    return dx, dgamma, dbeta


def relu(x: Array) -> Array:
    """max(x, 0), one number at a time."""
    return np.array([max(value, 0.0) for value in x.ravel()], x.dtype).reshape(x.shape)


def relu_backward(dy: Array, x: Array) -> Array:
    """dy where x was positive."""
    pairs = zip(dy.ravel(), x.ravel(), strict=True)
    return np.array([d if v > 0 else 0.0 for d, v in pairs], x.dtype).reshape(x.shape)


def max_pool2d(x: Array, size: int = 2) -> Array:
    """The largest value of each area."""
    N, H, W, C = x.shape
    y = np.empty((N, H // size, W // size, C), x.dtype)
    for n, i, j, c in np.ndindex(y.shape):
        y[n, i, j, c] = x[n, i * size : (i + 1) * size, j * size : (j + 1) * size, c].max()
    return y


def max_pool2d_backward(dy: Array, x: Array, size: int = 2) -> Array:
    """dy to the first pixel, in reading order, that holds its area's largest value."""
    dx = np.zeros_like(x)
    for n, i, j, c in np.ndindex(dy.shape):
        area = x[n, i * size : (i + 1) * size, j * size : (j + 1) * size, c]
        row, column = divmod(int(area.argmax()), size)
        dx[n, i * size + row, j * size + column, c] = dy[n, i, j, c]
    return dx


def conv_bn_relu(x: Array, skip: Array | None, weights: BlockWeights, pad: Pad = 0) -> Array:
    """The block of the U-Net, step by step."""
    w, b, gamma, beta = weights
    joined = x if skip is None else np.concatenate((x, skip), 3)
    return relu(batch_norm(conv2d(joined, w, b, 1, pad), gamma, beta))


def conv_bn_relu_backward(
    dy: Array, x: Array, skip: Array | None, weights: BlockWeights, pad: Pad = 0
) -> tuple[Array, Array | None, BlockWeights]:
    """The same steps backwards: dx, dskip, and the gradients of the weights."""
    w, b, gamma, beta = weights
    joined = x if skip is None else np.concatenate((x, skip), 3)
    z = conv2d(joined, w, b, 1, pad)
    dnormal = relu_backward(dy, batch_norm(z, gamma, beta))
    dz, dgamma, dbeta = batch_norm_backward(dnormal, z, gamma)
    dx, dw, db = conv2d_backward(dz, joined, w, 1, pad)
    C = x.shape[3]
    dskip = None if skip is None else dx[..., C:]
    return dx[..., :C], dskip, BlockWeights(dw, db, dgamma, dbeta)
