"""The fast CPU kernels against the readable ops, however many threads run them and call them.

The bounds are relative to the largest value, against the readable op in float64; Toom-Cook along
both axes has larger numbers in its way, and loses more digits, than along one.
"""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import minicnn as mc
from minicnn import ops
from minicnn.kernels import cpu
from minicnn.kernels.cpu import (
    conv_block,
    feature_maps,
    memory,
    threads,
    toom_cook,
    toom_cook_2d,
    toom_cook_rows,
    upsample,
    upsample_small,
)
from segment.unet import UNet

ONE_AXIS, BOTH_AXES = 1e-5, 5e-5

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
sides = st.integers(1, 6).map(lambda tiles: 4 * tiles) | st.integers(1, 23)


def error(actual, expected, least=1e-30):
    """The largest, relative to the largest value, or to `least` if that is more."""
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / max(least, np.abs(expected).max())


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def positive(rng, *shape):
    return rng.uniform(0.2, 2, shape).astype(np.float32)


def double(*arrays):
    return [None if a is None else a.astype(np.float64) for a in arrays]


@pytest.fixture
def team():
    """Sets the number of threads; what it was before comes back afterwards."""
    before = threads.num_threads()
    yield threads.set_num_threads
    threads.set_num_threads(before)


# ---------------------------------------------------------------------------- Toom-Cook


@pytest.mark.parametrize("taps", [2, 3, 4])
def test_toom_cook_is_the_sliding_sum(taps, rng):
    m = toom_cook.toom(taps)
    g, d = rng.standard_normal(taps), rng.standard_normal(taps + 3)
    y = m.outputs @ ((m.filters @ g) * (m.inputs @ d))
    np.testing.assert_allclose(y, np.correlate(d, g), atol=1e-5)


# ---------------------------------------------------------------------------- the fused block


@st.composite
def blocks(draw):
    K, rng = draw(st.integers(2, 4)), draw(seeds)
    N, H, W = draw(st.integers(1, 3)), draw(sides), draw(sides)
    C, F = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    D = draw(st.just(0) | st.integers(1, 40))
    x = feature_maps.Map(normal(rng, N, H, W, C), positive(rng, C), normal(rng, C))
    skip = normal(rng, N, H, W, D) if D else None
    vectors = (normal(rng, F) for _ in range(3))
    weights = ops.BlockWeights(normal(rng, K, K, C + D, F), *vectors)
    before = draw(st.integers(0, K - 1))
    side = before, K - 1 - before
    return x, skip, weights, (side, side), normal(rng, N, H, W, F)


METHODS = {toom_cook_rows.Windows: ONE_AXIS, toom_cook_2d.Tiles: BOTH_AXES}


@pytest.mark.parametrize("how", METHODS)
@pytest.mark.parametrize("small", [True, False])
@given(block=blocks(), trained=st.booleans(), lanes=st.sampled_from([1, 3, 8]))
def test_the_fused_block_equals_the_readable_one(how, small, block, trained, lanes):
    """Forward and backward, of a lazy first input and a plain second one, by either method."""
    x, skip, weights, pad, dy = block
    some = ops.Statistics(weights.b - 1, weights.b**2 + 0.5)
    statistics = None if trained else some
    sources = [x] if skip is None else [x, feature_maps.Map(skip)]

    def method(K, inputs, F, W, backward):
        chosen = how(K, inputs, [F], W)
        chosen.small = small and how is toom_cook_2d.Tiles
        return chosen

    exact_statistics = None if trained else ops.Statistics(*double(*statistics))
    exact = *double(x.value(), skip), ops.BlockWeights(*double(*weights))
    y64, cache64 = ops.conv_bn_relu(*exact, exact_statistics, pad)
    # Where a batch hardly varies, what rounding leaves is blown up. That of inputs is relative to
    # their shifts, which are left out of what is read: see docs/performance.md.
    assume((cache64.norm.inverse_std < 10).all())
    # A pixel within rounding of 0 may be open on one side only: no gradient comes from those.
    normalised = cache64.norm.normalised * weights.gamma + weights.beta
    dy *= np.abs(normalised) > 1e-3 * np.abs(normalised).max()
    # In training the gradients of a few pixels cancel: normalised, two are 1 and -1, whatever they
    # were. Rounding is relative to what cancels; plain float32 is off by a third of what is left.
    few = trained and y64.size < 16 * y64.shape[3]
    through = np.linalg.norm(dy * weights.gamma * cache64.norm.inverse_std) if few else 0
    by_pixel = 1e-30 + through * np.linalg.norm(weights.w) / weights.w.shape[2] ** 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_block, "LANES", lanes)
        patch.setattr(conv_block, "method", method)
        y, cache = conv_block.conv_bn_relu(sources, weights, statistics, pad)
        dx, grads = conv_block.conv_bn_relu_backward(dy, cache, True)
        known = cache.statistics
        folded = conv_block.conv_bn_relu_predict(sources, weights, known, pad, {})
    dx64, dskip64, grads64 = ops.conv_bn_relu_backward(dy.astype(float), cache64)
    dx64 *= x.value() > 0

    bound = METHODS[how]
    assert error(y.value(), y64) < bound
    assert error(folded.value(), y64) < bound
    pixels = few * x.z.size // x.z.shape[3]
    widest = np.abs(x.z).max()
    assert error(dx[0].dy, dx64, by_pixel) < bound
    np.testing.assert_allclose(
        dx[0].sums[0], dx64.sum((0, 1, 2)), atol=bound * max(sums(dx64), pixels * by_pixel)
    )
    np.testing.assert_allclose(
        dx[0].sums[1],
        (dx64 * x.z).sum((0, 1, 2)),
        atol=bound * max(sums(dx64 * x.z), pixels * by_pixel * widest),
    )
    if skip is not None:
        assert error(dx[1], dskip64, by_pixel) < bound
    dw, _, dgamma, dbeta = grads
    dw64, _, dgamma64, dbeta64 = grads64
    # Where the terms of dw cancel out, their rounding stays: as large as that of a random sum.
    largest = max(np.abs(dw64).max(), np.linalg.norm(dy), through * np.abs(x.value()).max())
    assert np.abs(dw - dw64).max() <= bound * largest
    terms = max(sums(dy), sums(dy * cache64.norm.normalised))
    assert np.abs(dgamma - dgamma64).max() <= bound * terms
    assert np.abs(dbeta - dbeta64).max() <= bound * sums(dy)


def sums(a):
    """The largest sum of absolute values over a channel's pixels: what rounding scales with."""
    return np.abs(a).sum((0, 1, 2)).max()


# ---------------------------------------------------------------------------- the other kernels


@pytest.mark.parametrize("way", [upsample, upsample_small])
@given(rng=seeds, N=st.integers(1, 3), H=sides, W=sides, C=st.integers(1, 20), F=st.integers(1, 20))
def test_upsampling_equals_the_readable_op(way, rng, N, H, W, C, F):
    x = feature_maps.Map(normal(rng, N, H, W, C), positive(rng, C), normal(rng, C))
    w, b, dy = normal(rng, 4, 4, F, C), normal(rng, F), normal(rng, N, 2 * H, 2 * W, F)
    y, cache = way.conv_transpose2d(x, w, b)
    dx, dw, db = way.conv_transpose2d_backward(dy, cache)
    y64, cache64 = ops.conv_transpose2d(*double(x.value(), w, b), 2, 1)
    dx64, dw64, db64 = ops.conv_transpose2d_backward(dy.astype(float), cache64)
    assert error(y, y64) < ONE_AXIS
    assert error(dx.dy, dx64 * (x.value() > 0)) < ONE_AXIS
    assert error(dw, dw64) < ONE_AXIS
    assert np.abs(db - db64).max() < ONE_AXIS * sums(dy)


@given(
    rng=seeds,
    N=st.integers(1, 3),
    H=st.integers(1, 9),
    W=st.integers(1, 9),
    C=st.integers(1, 9),
    levels=st.sampled_from([2, 5, 1000]),
)
def test_pooling_equals_the_readable_op(rng, N, H, W, C, levels):
    """Ties too: few levels make many."""
    z = rng.integers(-levels, levels, (N, 2 * H, 2 * W, C)).astype(np.float32)
    x = feature_maps.Map(z, np.ones(C, np.float32), np.zeros(C, np.float32))
    dy, other = normal(rng, N, H, W, C), normal(rng, N, 2 * H, 2 * W, C)
    y, cache = cpu.max_pool2d(x)
    plain, plain_cache = ops.max_pool2d(x.value())
    np.testing.assert_array_equal(y.value(), plain)
    dx = cpu.max_pool2d_backward(dy, cache, other)
    expected = ops.max_pool2d_backward(dy, plain_cache, other) * (x.value() > 0)
    np.testing.assert_allclose(dx.dy, expected, atol=1e-6)
    np.testing.assert_allclose(
        dx.sums[1], (expected * z).sum((0, 1, 2)), atol=1e-5 * sums(dy * levels)
    )


# ---------------------------------------------------------------------------- which path ran


@pytest.mark.parametrize(
    ("dtype", "kernel", "size", "fast"),
    [
        (np.float32, 4, 16, True),
        (np.float32, 3, 16, True),
        (np.float64, 4, 16, False),
        (np.float32, 5, 16, False),
        (np.float32, 4, 17, True),
        (np.float32, 4, 1, True),
    ],
)
def test_which_path_a_block_takes(dtype, kernel, size, fast, rng):
    shapes = (1, size, size, 2), (kernel, kernel, 2, 3), (3,), (3,), (3,)
    x, *weights = (normal(rng, *shape).astype(dtype) for shape in shapes)
    pad = ops.same_pad(kernel)
    _, cache = cpu.conv_bn_relu(x, None, ops.BlockWeights(*weights), None, pad)
    assert isinstance(cache, conv_block.BlockCache if fast else ops.BlockCache)


def test_a_gamma_of_zero_takes_the_readable_path(rng):
    """The fast one divides by it."""
    x, w = normal(rng, 1, 8, 8, 2), normal(rng, 4, 4, 2, 3)
    b, beta, gamma = normal(rng, 3), normal(rng, 3), np.array([1, 0, -1], np.float32)
    weights = ops.BlockWeights(w, b, gamma, beta)
    y, cache = cpu.conv_bn_relu(x, None, weights, None, ops.same_pad(4))
    assert isinstance(cache, ops.BlockCache)
    np.testing.assert_allclose(y[..., 1], max(0, beta[1]), rtol=1e-6)


def test_few_channels_take_windows_and_many_take_tiles():
    assert isinstance(conv_block.method(4, [3], 16, 256), toom_cook_rows.Windows)
    assert isinstance(conv_block.method(4, [32], 32, 128), toom_cook_rows.Windows)
    assert isinstance(conv_block.method(4, [32], 32, 128, backward=True), toom_cook_2d.Tiles)
    assert isinstance(conv_block.method(4, [64], 64, 64), toom_cook_2d.Tiles)


@pytest.mark.parametrize("size", [(64, 64), (80, 176), (16, 16)])
def test_a_whole_unet_runs_on_the_fast_path(size, rng, monkeypatch):
    """Whatever its sides: those of the lower levels need not be multiples of 4."""

    def slow(*_, **__):
        raise AssertionError("the readable path ran")

    for name in ("conv2d", "conv2d_dx", "conv2d_dw", "conv_transpose2d", "max_pool2d"):
        monkeypatch.setattr(ops, name, slow)
    net = UNet()
    logits = net.forward(normal(rng, 1, *size, 3), training=True)
    net.backward(logits)


# ---------------------------------------------------------------------------- the whole net


def smooth(net):
    """A net whose ReLUs are all open: single ones that open or close by rounding do not blur."""
    for name, p in net.parameters().items():
        if name.endswith("beta"):
            p[...] = 8
    return net


def step(net, x, labels):
    logits = net.forward(x, training=True)
    loss, dlogits = mc.losses.bce_with_logits(logits, labels)
    net.backward(dlogits)
    return logits, loss


def batch(rng, N, size, dtype=np.float32):
    x = rng.standard_normal((N, size, size, 3)).astype(dtype)
    return x, (rng.random((N, size, size, 1)) > 0.8).astype(dtype)


@pytest.mark.parametrize("size", [64, 80])  # 80: 5 pixels at the lowest level
def test_the_nets_gradients(rng, size):
    """Against float64 on the readable path; PyTorch's float32 is off by 2e-4 here."""
    x, labels = batch(rng, 2, size)
    fast, exact = smooth(UNet()), smooth(UNet()).astype(np.float64)
    logits, loss = step(fast, x, labels)
    exact_logits, exact_loss = step(exact, *double(x, labels))
    assert error(logits, exact_logits) < 1e-5
    assert loss == pytest.approx(exact_loss, rel=1e-6)
    gradients = fast.gradients()
    for name, gradient in exact.gradients().items():
        if np.abs(gradient).max() > 0:
            assert error(gradients[name], gradient) < 3e-4, name
    for name, buffer in exact.buffers().items():
        assert error(fast.buffers()[name], buffer) < 5e-5, name


def test_the_number_of_threads_does_not_change_a_bit(rng, team):
    x, labels = batch(rng, 3, 64)

    def run(count):
        team(count)
        net = UNet()
        logits, _ = step(net, x, labels)
        return [logits, net.predict(x), *net.gradients().values(), *net.buffers().values()]

    one = run(1)
    for count in (1, 2, 3):
        for a, b in zip(one, run(count), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("frozen", [False, True])
def test_predictions_from_several_threads_at_once(rng, frozen):
    net = UNet()
    inputs = [normal(rng, N, size, 64, 3) for N, size in ((1, 64), (2, 32), (1, 128), (1, 16)) * 3]
    expected = [net.predict(x) for x in inputs]
    if frozen:
        net.freeze()
    results = [[] for _ in inputs]

    def work(i):
        results[i] = [net.predict(inputs[i]) for _ in range(3)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for right, given_ in zip(expected, results, strict=True):
        for y in given_:
            np.testing.assert_array_equal(y, right)


@pytest.mark.slow
def test_training_follows_the_readable_path(rng):
    """The same loss curve for 12 steps, within what a change of rounding does."""
    x, labels = batch(rng, 2, 32)
    labels[...] = np.abs(x.sum(3, keepdims=True)) > 1.5
    fast, plain = UNet(), UNet().astype(np.float64)
    nets = [(fast, x, labels), (plain, *double(x, labels))]
    optimizers = [mc.optim.Adam(net) for net, *_ in nets]
    for _ in range(12):
        losses = [step(*net)[1] for net in nets]
        for optimizer in optimizers:
            optimizer.step()
        assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[1] < 0.68  # from log 2


def test_a_frozen_net_cannot_move_under_what_it_keeps(rng):
    net, x = UNet(), normal(rng, 1, 32, 32, 3)
    net.freeze().predict(x)
    step(net, *batch(rng, 1, 32))
    with pytest.raises(ValueError, match="read-only"):
        mc.optim.Adam(net).step()
    with pytest.raises(ValueError, match="read-only"):
        net.parameters()["encoder0.0.w"][...] = 0


def changes(net, rng):
    """Ways in which a net's arrays change, one after another."""
    weights = net.parameters()
    yield mc.optim.Adam(net).step
    yield lambda: weights["encoder4.1.w"].__setitem__((0, 0, 0, 0), 7)
    yield lambda: weights["decoder0.0.gamma"].__imul__(2)
    yield lambda: net.forward(normal(rng, 1, 32, 32, 3), training=True)  # running statistics
    other = mc.checkpoint.net_arrays(UNet(seed=5))
    yield lambda: mc.checkpoint.load_net(net, other, "other")
    yield lambda: net.encoder[0][0].params.update(b=normal(rng, 16))
    yield net.freeze


def test_inference_makes_its_weights_once_and_anew_whenever_an_array_has_changed(rng, monkeypatch):
    made = []
    for way in METHODS:
        real = way.weights
        monkeypatch.setattr(way, "weights", lambda *a, real=real: made.append(1) or real(*a))
    net, x = UNet(), normal(rng, 1, 32, 32, 3)
    step(net, *batch(rng, 1, 32))
    for change in changes(net, rng):
        net.predict(x)
        change()
        y, fresh = net.predict(x), UNet()
        mc.checkpoint.load_net(fresh, mc.checkpoint.net_arrays(net), "copy")
        np.testing.assert_array_equal(y, fresh.predict(x))
        made.clear()
        np.testing.assert_array_equal(net.predict(x), y)
        assert not made


def test_arrays_that_are_writable_again_are_looked_at(rng):
    net, x = UNet().freeze(), normal(rng, 1, 32, 32, 3)
    before = net.predict(x)
    w = net.parameters()["encoder0.0.w"]
    w.flags.writeable = True
    w *= -1
    assert np.abs(net.predict(x) - before).max() > 1e-4 * np.abs(before).max()


def test_a_net_that_is_not_frozen_sees_its_weights_move(rng):
    net, x = UNet(), normal(rng, 1, 32, 32, 3)
    for thawed in (net, UNet().freeze().astype(np.float32)):
        before = thawed.predict(x)
        thawed.parameters()["encoder0.0.w"][...] *= -1
        assert np.abs(thawed.predict(x) - before).max() > 1e-4 * np.abs(before).max()


# ---------------------------------------------------------------------------- threads and memory


def test_an_error_in_a_job_reaches_the_caller(team):
    team(2)

    def job(number):
        if number == 5:
            raise KeyError(number)

    with pytest.raises(KeyError):
        threads.run(50, job)
    done = []
    threads.run(50, done.append)
    assert sorted(done) == list(range(50))


def test_jobs_may_call_for_threads_themselves(team):
    team(2)
    done = []
    threads.run(4, lambda _: threads.run(3, done.append))
    assert sorted(done) == sorted([0, 1, 2] * 4)


def test_blas_is_on_one_thread_inside_and_as_before_outside(team):
    from threadpoolctl import threadpool_info

    def counts():
        libraries = threadpool_info()
        return [lib["num_threads"] for lib in libraries if lib["user_api"] == "blas"]

    before, inside = counts(), []
    team(2)
    threads.run(2, lambda _: inside.append(counts()))
    assert all(count == 1 for numbers in inside for count in numbers)
    assert counts() == before


def test_numpys_buffer_is_short_inside_and_as_before_outside(team):
    """Else NumPy copies rows shorter than it, where a row is added to each: at twice the time."""
    before, inside = np.getbufsize(), []
    team(2)
    threads.run(20, lambda _: inside.append(np.getbufsize()))
    with pytest.raises(KeyError):
        threads.run(2, lambda _: {}[0])
    assert set(inside) == {threads.BUFFER} and np.getbufsize() == before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread can't be kept off a core")
def test_helpers_keep_off_the_callers_core(team, monkeypatch):
    cores = os.sched_getaffinity(0)
    assert threads._current_core() in cores
    team(3)
    caller, allowed = threading.get_ident(), {}

    def job(_):
        time.sleep(0.01)
        if threading.get_ident() != caller:
            allowed[threading.get_ident()] = os.sched_getaffinity(0)

    for core in sorted(cores)[:2]:  # the caller moves
        monkeypatch.setattr(threads, "_current_core", lambda core=core: core)
        threads.run(9, job)
        others = cores - {core} or cores  # where there is but one, it is shared
        assert list(allowed.values()) == [others] * 2
    assert os.sched_getaffinity(0) == cores


def test_a_caller_may_do_with_fewer_threads(team):
    team(3)
    everybody = threading.Barrier(3, timeout=9)  # nobody passes before three are there

    def who(count, job):
        seen = []
        threads.run(count, lambda _: (job(), seen.append(threading.get_ident())))
        return set(seen)

    with threads.at_most(1):
        assert who(20, lambda: None) == {threading.get_ident()}
        with threads.at_most(2):
            assert len(who(20, lambda: time.sleep(0.01))) == 2
        assert who(20, lambda: None) == {threading.get_ident()}
    assert len(who(3, everybody.wait)) == 3


def test_the_environment_sets_the_number_of_threads():
    code = "import minicnn; print(minicnn.num_threads())"
    found = subprocess.run(
        [sys.executable, "-c", code], env={"MINICNN_NUM_THREADS": "3"}, capture_output=True
    )
    assert int(found.stdout) == 3


def test_memory_is_used_again_only_once_nobody_holds_it():
    memory.clear()
    a = memory.empty(100, 1000)
    address = a.ctypes.data
    view = a[50:]
    view[...] = 7
    del a
    b = memory.empty(100, 1000)
    b[...] = 0
    assert (view == 7).all()
    del view
    c = memory.empty(100, 1000)
    assert c.ctypes.data == address
