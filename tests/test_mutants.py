"""Planted bugs: each is a mistake that people make, and each must fail a test.

A test that no bug fails proves nothing. Every mutant is a copy of the source with one line
changed; the test named beside it runs on the copy, in a process of its own, and has to fail.
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
OPS, LAYERS, LOSSES, OPTIM = (f"minicnn/{name}.py" for name in ("ops", "layers", "losses", "optim"))
UNET, CHECKPOINT, FILES = "segment/unet.py", "minicnn/checkpoint.py", "minicnn/files.py"

OPS_TESTS = "tests/minicnn/test_ops.py::test_"
LOOPS, DIRECTION = "convolution_equals_its_loops", "convolution_gradients_along_a_random_direction"
NORM, POOL = "batch_norm_equals_its_loops[plain-numpy]", "max_pool_equals_its_loops[plain-numpy]"
UNET_TESTS = "tests/segment/test_unet.py::test_"
WHOLE_NET = f"{UNET_TESTS}gradients_of_the_whole_net[4-widths0-True]"
LOSS_TESTS = "tests/minicnn/test_losses.py::test_"
OPTIM_TESTS = "tests/minicnn/test_optim.py::test_"
RANKS = "tests/minicnn/test_ranks.py::test_parts_of_a_batch_equal_the_whole[numpy-float64]"


class Mutant(NamedTuple):
    file: str
    original: str
    mutated: str
    test: str


def conv(test, name="conv2d"):
    return f"{OPS_TESTS}{test}[plain-numpy-{name}]"


MUTANTS = {
    "kernel rotated in dx": Mutant(
        OPS,
        "columns = dy[n, start:stop].reshape(-1, F) @ w.reshape(-1, F).T",
        "columns = dy[n, start:stop].reshape(-1, F) @ w[::-1, ::-1].reshape(-1, F).T",
        conv(DIRECTION),
    ),
    "kernel transposed": Mutant(
        OPS,
        "return windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)",
        "return windows[:, ::stride, ::stride].transpose(0, 1, 2, 5, 4, 3)",
        conv(LOOPS),
    ),
    "dw rotated": Mutant(
        OPS,
        "return dw.reshape(K, K, C, F)",
        "return dw.reshape(K, K, C, F)[::-1, ::-1]",
        conv(DIRECTION),
    ),
    "dw keeps only the last window": Mutant(
        OPS, "dw += columns.T", "dw[...] = columns.T", conv(DIRECTION)
    ),
    "dx assigned, not added": Mutant(
        OPS,
        "j : j + stride * OW : stride] += columns[",
        "j : j + stride * OW : stride] = columns[",
        conv(LOOPS),
    ),
    "stride forgotten in dx": Mutant(
        OPS, "fold(windows, stride, padded", "fold(windows, 1, padded", conv(LOOPS)
    ),
    "db a mean": Mutant(
        OPS,
        "return dx, conv2d_dw(x, dy, len(w), stride, pad), over_pixels(dy)",
        "return dx, conv2d_dw(x, dy, len(w), stride, pad), dy.mean((0, 1, 2))",
        conv(LOOPS),
    ),
    "padding swapped": Mutant(
        OPS,
        "((0, 0), (top, bottom), (left, right), (0, 0))",
        "((0, 0), (bottom, top), (right, left), (0, 0))",
        conv(LOOPS),
    ),
    "'same' padding of an even kernel on the wrong side": Mutant(
        OPS,
        "before = (kernel - 1) // 2",
        "before = kernel // 2",
        f"{UNET_TESTS}receptive_field[1-4]",
    ),
    "bands overlap": Mutant(
        OPS,
        "x[n : n + 1, top * stride : (bottom - 1) * stride + K]",
        "x[n : n + 1, top : bottom - 1 + K]",
        f"{OPS_TESTS}bands_do_not_show",
    ),
    "crop forgotten on the way back": Mutant(
        OPS,
        "dx, _ = conv2d(dy, w, no_bias, stride, crop)",
        "dx, _ = conv2d(dy, w, no_bias, stride)",
        conv(LOOPS, "conv_transpose2d"),
    ),
    "batch norm forgets that x moves the variance": Mutant(
        OPS, "(dbeta + normalised * dgamma) / count", "dbeta / count", f"{OPS_TESTS}{NORM}"
    ),
    "batch norm forgets that x moves the mean": Mutant(
        OPS,
        "(dbeta + normalised * dgamma) / count",
        "normalised * dgamma / count",
        f"{OPS_TESTS}{NORM}",
    ),
    "inference differentiated as training": Mutant(
        OPS,
        "if not from_batch:",
        "if False:",
        f"{OPS_TESTS}batch_norm_with_given_statistics_is_affine[plain-numpy]",
    ),
    "float32 sums": Mutant(
        OPS,
        "dtype=float)",
        "dtype=a.dtype)",
        f"{OPS_TESTS}sums_over_many_pixels_keep_their_digits[plain-numpy]",
    ),
    "relu masked by dy": Mutant(
        OPS,
        "return dy * positive",
        "return dy * (dy > 0)",
        f"{OPS_TESTS}relu_equals_its_loops[plain-numpy]",
    ),
    "relu passes at 0": Mutant(
        OPS,
        "maximum(x, 0), x > 0",
        "maximum(x, 0), x >= 0",
        f"{OPS_TESTS}relu_at_its_kink_and_ends[plain-numpy]",
    ),
    "gradient for those that lost, too": Mutant(
        OPS,
        "won = winner == xp.arange(size * size).reshape(-1, 1)",
        "won = winner <= xp.arange(size * size).reshape(-1, 1)",
        f"{OPS_TESTS}{POOL}",
    ),
    "the last of a tie wins": Mutant(
        OPS,
        "winner = areas.argmax(3)[",
        "winner = (size**2 - 1 - areas[:, :, :, ::-1].argmax(3))[",
        f"{OPS_TESTS}in_a_tie_the_first_pixel_takes_all[plain-numpy-0.0]",
    ),
    "skip joined in front": Mutant(
        OPS,
        ".concatenate((x, skip), 3)",
        ".concatenate((skip, x), 3)",
        f"{OPS_TESTS}block_equals_its_loops[plain-numpy]",
    ),
    "running variance biased": Mutant(
        LAYERS,
        "MOMENTUM * unbias * batch.var",
        "MOMENTUM * batch.var",
        "tests/minicnn/test_layers.py::test_running_statistics_move_a_tenth_of_the_way[norm]",
    ),
    "momentum the other way round": Mutant(
        LAYERS,
        '(1 - MOMENTUM) * state["mean"] + MOMENTUM * batch.mean',
        'MOMENTUM * state["mean"] + (1 - MOMENTUM) * batch.mean',
        "tests/minicnn/test_layers.py::test_running_statistics_move_a_tenth_of_the_way[norm]",
    ),
    "a memory used twice": Mutant(
        LAYERS,
        "cache, self.cache = self.cache, None",
        "cache = self.cache",
        f"{UNET_TESTS}a_layer_in_two_places_raises",
    ),
    "a row not reversed": Mutant(
        LAYERS,
        "for layer in reversed(self.layers):",
        "for layer in self.layers:",
        "tests/minicnn/test_layers.py::test_gradients_along_a_random_direction[True-row]",
    ),
    "skips handed back in the wrong order": Mutant(
        UNET, ".backward(dx, dskips.pop())", ".backward(dx, dskips.pop(0))", WHOLE_NET
    ),
    "skip's gradient dropped": Mutant(
        UNET, ".backward(dx, dskips.pop())", ".backward(dx)", WHOLE_NET
    ),
    "predict unlike forward": Mutant(
        UNET,
        "skips.append(x)\n                x = self.pools[level - 1].predict(x)",
        "skips.append(x * 1.01)\n                x = self.pools[level - 1].predict(x)",
        f"{UNET_TESTS}predict_is_forward_in_inference[4]",
    ),
    "one kernel too small": Mutant(
        UNET,
        "return first, ConvBlock(F, F, kernel, rng=rng)",
        "return first, ConvBlock(F, F, kernel - 1, rng=rng)",
        f"{UNET_TESTS}the_published_counts",
    ),
    "labels' weight forgotten in the gradient": Mutant(
        LOSSES,
        "pos_weight * labels * (1 - p)",
        "labels * (1 - p)",
        f"{LOSS_TESTS}gradient_along_a_random_direction[True-weighted bce]",
    ),
    "pixels left out still averaged over": Mutant(
        LOSSES,
        "count = valid.sum(dtype=float)",
        "count = xp.asarray(logits.size, float)",
        f"{LOSS_TESTS}pixels_left_out_do_not_count[bce]",
    ),
    "ranks' statistics of their own": Mutant(
        OPS, "return Statistics(mean.astype", "return part or Statistics(mean.astype", RANKS
    ),
    "only this rank's share of what moves the statistics": Mutant(
        OPS, "dbeta, dgamma = mean_of_parts(", "dbeta, dgamma = iter(", RANKS
    ),
    "a loss of this rank's part": Mutant(
        LOSSES, "return p, *sum_of_parts(", "return p, *iter(", RANKS
    ),
    "an overflow": Mutant(
        LOSSES,
        "xp.log1p(xp.exp(-xp.abs(logits))) + xp.maximum(-logits, 0)",
        "xp.log(1 + xp.exp(-logits))",
        f"{LOSS_TESTS}extreme_logits_overflow_nowhere[float32-bce]",
    ),
    "Jaccard's union counts the overlap twice": Mutant(
        LOSSES,
        "union = total - both + smooth",
        "union = total + smooth",
        f"{LOSS_TESTS}overlaps_by_hand",
    ),
    "Adam's first average not corrected": Mutant(
        OPTIM,
        "self.lr / (1 - beta1**self.steps)",
        "self.lr",
        f"{OPTIM_TESTS}the_first_step_by_hand[adam]",
    ),
    "Adam's second average not corrected": Mutant(
        OPTIM,
        "math.sqrt(1 - beta2**self.steps)",
        "1.0",
        f"{OPTIM_TESTS}the_first_step_by_hand[adam]",
    ),
    "Muon's steps grow with the kernel": Mutant(
        OPTIM,
        "step *= length * (",
        "step *= (",
        f"{OPTIM_TESTS}muon_by_the_plain_iteration",
    ),
    "Muon without Nesterov's look ahead": Mutant(
        OPTIM,
        "u += self.momentum * m",
        "u[...] = m",
        f"{OPTIM_TESTS}muon_by_the_plain_iteration",
    ),
    "steps not resumed": Mutant(
        OPTIM,
        'self.steps = int(state["steps"])',
        "self.steps = 0",
        f"{OPTIM_TESTS}resuming_from_a_file_is_bit_for_bit[adam]",
    ),
    "folded weights kept whatever became of the weights": Mutant(
        "minicnn/kernels/cpu/conv_block.py",
        "return all(_unchanged(a, b) for a, b in zip(arrays, self.arrays, strict=True))",
        "return True",
        "tests/minicnn/test_fast_kernels.py::test_inference_makes_its_weights_once_and_anew_whenever"
        "_an_array_has_changed",
    ),
    "checksum not looked at": Mutant(
        CHECKPOINT,
        "if _digest(arrays, document) != digest:",
        "if not digest:",
        "tests/minicnn/test_checkpoint.py::test_a_flipped_byte_anywhere_is_refused[1]",
    ),
    "written in place": Mutant(
        FILES,
        "yield temporary\n",
        "temporary = path\n        yield temporary\n",
        "tests/minicnn/test_files.py::test_an_error_inside_leaves_what_was[ValueError]",
    ),
    "a view turned on, not back": Mutant(
        "segment/predict/views.py",
        "-turn, axes=(1, 2)",
        "turn, axes=(1, 2)",
        "tests/segment/predict/test_views.py::test_views_are_averaged_pixel_by_pixel[4]",
    ),
    "half a building found": Mutant(
        "segment/evaluate/objects.py",
        "same = 2 * shared > area",
        "same = 2 * shared >= area",
        "tests/segment/evaluate/test_examine.py::test_half_is_not_enough_and_nothing_matches_twice",
    ),
    "outlines cut where masks are": Mutant(
        "segment/geo/separate.py",
        "return np.where(mark >= least, mark, np.uint8(0))",
        "return np.where(mark >= 1, mark, np.uint8(0))",
        "tests/segment/geo/test_separate.py::test_outlines_have_a_threshold_of_their_own",
    ),
    "a fold scored on what it has learnt": Mutant(
        "segment/train/folds.py",
        "rest = np.setdiff1d(np.arange(len(store)), fold)",
        "rest = np.arange(len(store))",
        "tests/segment/train/test_folds.py::test_no_model_learns_from_what_it_is_scored_on",
    ),
    "an outline drawn into its neighbour": Mutant(
        "segment/geo/right_angles.py",
        "clash = np.flatnonzero(_overlapping(found))",
        "clash = np.flatnonzero(_overlapping(found))[:0]",
        "tests/segment/geo/test_right_angles.py::test_houses_in_a_row_that_share_walls_get_few_corners",
    ),
}


def plant(folder, mutant=None):
    """A copy of the sources and their tests in `folder`, with the mutant's one change."""
    skip = shutil.ignore_patterns("__pycache__", "weights")
    for name in ("minicnn", "segment", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    shutil.copy(ROOT / "setup.cfg", folder)
    if mutant:
        path = folder / mutant.file
        path.write_text(path.read_text().replace(mutant.original, mutant.mutated))


def run_tests(folder, *tests):
    """pytest's exit code and output for `tests` on the copy in `folder`."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider"]
    process = subprocess.run(
        [*command, "--hypothesis-profile=no-shrinking", *tests],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    return process.returncode, process.stdout + process.stderr


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_follows_the_source_it_changes(name):
    mutant = MUTANTS[name]
    assert (ROOT / mutant.file).read_text().count(mutant.original) == 1
    assert mutant.mutated != mutant.original


def test_without_a_mutant_all_these_tests_pass(tmp_path):
    plant(tmp_path)
    code, output = run_tests(tmp_path, *sorted({mutant.test for mutant in MUTANTS.values()}))
    assert code == pytest.ExitCode.OK, output


def test_every_planted_bug_fails_its_test(tmp_path):
    def survives(name):
        folder = tmp_path / name.replace(" ", "-")
        plant(folder, MUTANTS[name])
        code, output = run_tests(folder, MUTANTS[name].test)
        return None if code == pytest.ExitCode.TESTS_FAILED else f"{name}: {output}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        assert not [survivor for survivor in pool.map(survives, MUTANTS) if survivor]
