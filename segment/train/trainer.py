"""The training loop: epochs of augmented batches, a validation after each, and nothing lost.

Every random choice is drawn from (seed, epoch, step), never from a generator that lives on. So
the state of a run is its arrays and two counters, and a run that was killed anywhere continues
from its last checkpoint to the same bits.
"""

import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicnn.backend import Array, array_module, staged, to_host
from minicnn.checkpoint import load, load_net, net_arrays, save
from minicnn.losses import Loss, bce_with_logits, sigmoid, soft_dice, total
from minicnn.optim import Average, Cosine, Muon
from segment.data.crops import Crops
from segment.data.labels import BACKGROUND, BUILDING, IGNORE
from segment.data.tiles import FULL, TileStore, classes
from segment.errors import InputError
from segment.evaluate.metrics import BINS, Confusion, calibrate, histogram
from segment.interrupts import Terminated
from segment.model import ModelInfo, normalise, save_model
from segment.plots import curves
from segment.progress import progress
from segment.run_folder import Row, Run, write_history
from segment.run_settings import Settings
from segment.train.ranks import World
from segment.unet import UNet

READ_EVERY = 50  # steps between two looks at how a GPU is doing, which it must be stopped for
BATCH = 8  # tiles that are validated together
SAVE_SECONDS = 300  # a run that is killed loses at most this much
LOSS: Loss = total(bce_with_logits, soft_dice)


@dataclass
class Sums:
    """What an epoch adds up, batch by batch: loss x tiles, tiles, and pixels right and wrong.

    Batches wait where they were computed until somebody reads them: a GPU need not be waited for.
    """

    loss: float = 0.0
    tiles: int = 0
    pixels: Confusion = field(default_factory=Confusion)
    waiting: list[tuple[Array, Array]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # tiles of the batches that wait

    def add(self, loss: Array, tiles: int, pixels: Array) -> None:
        """Note a batch: its mean loss, and its pixels as `_confusion` counts them."""
        self.waiting.append((loss, pixels))
        self.sizes.append(tiles)

    def read(self) -> list[float]:
        """Add up what waits, in two copies however much it is; the losses of the batches."""
        if not self.waiting:
            return []
        xp = array_module(self.waiting[0][1])
        losses = to_host(xp.stack([xp.asarray(loss) for loss, _ in self.waiting])).tolist()
        for counts in to_host(xp.stack([pixels for _, pixels in self.waiting])).tolist():
            self.pixels += Confusion(*counts)
        for loss, tiles in zip(losses, self.sizes, strict=True):
            self.loss += loss * tiles
            self.tiles += tiles
        self.waiting, self.sizes = [], []
        return losses

    def row(self, part: str) -> Row:
        return {
            f"{part}_loss": self.loss / self.tiles,
            f"{part}_accuracy": self.pixels.accuracy,
            f"{part}_iou": self.pixels.iou,
        }


class Stop:
    """While in force, Ctrl-C and SIGTERM are noted, not obeyed: the batch in hand is finished.

    A second one is obeyed at once.
    """

    def __enter__(self) -> "Stop":
        self.signal: int | None = None
        self.before = {
            number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
        }
        for number in self.before:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.signal = number
        self.__exit__()


def visits(cities: Sequence[str]) -> NDArray[np.float64]:
    """How often an epoch shows each tile, given the tiles' cities; 1 on average.

    A city of n tiles gets a share of the epoch in proportion to the root of n: a large one does
    not drown the small ones, and a small one is not learnt by heart.
    """
    _, city, sizes = np.unique(cities, return_inverse=True, return_counts=True)
    shares = np.sqrt(sizes) / np.sqrt(sizes).sum()
    return (len(cities) * shares / sizes)[city]


class Trainer:
    """A net, its optimiser and how far they have come; `fit` takes them to the end."""

    least_crops = 0  # in an epoch: of fewer cells it shows each several times

    def __init__(
        self,
        net: UNet,
        info: ModelInfo,
        store: TileStore,
        parts: dict[str, np.ndarray],
        run: Run,
        settings: Settings,
        device: str,
        world: World | None = None,
    ) -> None:
        self.net, self.info, self.store, self.parts, self.run = net, info, store, parts, run
        self.epochs, self.patience = settings.epochs, settings.patience
        self.seed, self.device = settings.seed, device
        self.read_every = 1 if device == "cpu" else READ_EVERY
        self.world = world or World()
        self.crops = Crops(store, parts["train"])
        self.batch_size = min(settings.batch_size, max(len(self.crops), self.least_crops))
        if self.batch_size % self.world.count:
            raise InputError(
                f"a batch of {self.batch_size} crops can't be shared by {self.world.count} ranks: "
                "choose a --batch-size that divides by their number"
            )
        self.visits = visits(self.crops.cities)
        self.steps_per_epoch = -(-max(len(self.crops), self.least_crops) // self.batch_size)
        warmup = min(100, self.steps_per_epoch)
        self.schedule = Cosine(settings.lr, self.epochs * self.steps_per_epoch, warmup)
        self.average = Average(net)
        for each in (net, self.average.net):
            each.to(device)
            self.world.broadcast(net_arrays(each).values())
        self.optimizer = Muon(net, settings.lr)
        self.epoch = self.step = 0  # the next batch is number `step` of epoch `epoch`
        self.sums = Sums()
        self.history: list[Row] = []
        self.seconds_before, self.began = 0.0, time.monotonic()  # this epoch, and before a resume
        self.saved_at = time.monotonic()

    # ------------------------------------------------------------------ the loop

    def fit(self) -> None:
        """Train until the last epoch, or until validation IoU stops progressing."""
        with Stop() as stop, warnings.catch_warnings():
            # From any thread. What comes of them is found, and said, by `check_finite`.
            warnings.filterwarnings("ignore", "(overflow|invalid value|divide by zero) encountered")
            self.began = time.monotonic()
            while self.epoch < self.epochs and not self.waited_enough():
                self.train_epoch(stop)
                row: Row = {"epoch": self.epoch + 1, **self.sums.row("train")}
                validation, threshold = self.validate(stop)
                row |= validation
                row["seconds"] = round(self.seconds(), 2)
                self.finish_epoch(row, threshold)
                print(self.describe(row), flush=True)

    def seconds(self) -> float:
        """What this epoch has taken so far, also before the run was resumed."""
        return self.seconds_before + time.monotonic() - self.began

    def train_epoch(self, stop: Stop) -> None:
        """The rest of an epoch, from `step` on."""
        bar = progress(
            total=self.steps_per_epoch * self.batch_size,
            desc=f"epoch {self.epoch + 1}/{self.epochs}",
            unit="crop",
        )
        with bar:
            bar.update(self.sums.tiles)
            for batch in staged(self.augmented(), self.device):
                self.train_step(*batch)
                self.step += 1
                if self.step % self.read_every == 0:
                    self.read(bar)
                self.obey(stop)
                if self.world.rank == 0 and time.monotonic() - self.saved_at > SAVE_SECONDS:
                    self.save()
                    self.run.mirror(patient=True)
            self.read(bar)

    def read(self, bar: Any) -> None:
        """Look at the steps since the last time; a run that diverged ends here."""
        for loss in self.sums.read():
            self.check_finite(loss)
        bar.update(self.sums.tiles - bar.n)
        bar.set_postfix(
            loss=f"{self.sums.loss / self.sums.tiles:.3f}",
            acc=f"{self.sums.pixels.accuracy:.3f}",
            IoU=f"{self.sums.pixels.iou:.3f}",
        )

    def batches(self) -> Iterator[np.ndarray]:
        """This epoch's batches of cells from `step` on, in random order, all of them full.

        A cell comes up `visits` times: the whole part of it for sure, the rest by chance.
        """
        rng = np.random.default_rng((self.seed, self.epoch))
        times = np.floor(self.visits + rng.random(len(self.visits))).astype(int)
        order = rng.permutation(np.repeat(np.arange(len(self.crops)), times))
        order = np.resize(order, self.steps_per_epoch * self.batch_size)  # the end from the start
        for step in range(self.step, self.steps_per_epoch):
            yield order[step * self.batch_size : (step + 1) * self.batch_size]

    def augmented(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """This rank's crops of this epoch's batches: pixels and coverage."""
        for step, cells in enumerate(self.batches(), self.step):
            own, _ = self.world.part(np.arange(len(cells)))
            crops = [self.crop(step, place, cells[place]) for place in own]
            images, coverages = zip(*crops, strict=True)
            yield np.stack(images), np.stack(coverages)

    def crop(self, step: int, place: int, cell: int) -> tuple[np.ndarray, np.ndarray]:
        """The crop at a place in a batch: the same on whatever rank."""
        return self.crops.cut(cell, np.random.default_rng((self.seed, self.epoch, step, place)))

    def train_step(self, images: Array, coverage: Array) -> None:
        """One batch: forward, loss, backward, update. On a GPU nothing leaves it here."""
        _, loss, dlogits, pixels = self.forward(images, coverage, training=True)
        self.net.backward(dlogits)
        self.world.merge(self.net)
        self.optimizer.lr = self.schedule.at(self.epoch * self.steps_per_epoch + self.step)
        self.optimizer.step()
        self.average.update(self.optimizer.steps)
        self.sums.add(loss, self.batch_size, pixels)

    def forward(
        self, images: Array, coverage: Array, training: bool
    ) -> tuple[Array, Array, Array, Array]:
        """This rank's logits, the loss over all ranks, its gradient for these logits, and the
        pixels right and wrong at p = 0.5 over all ranks.

        The net itself is trained; what is validated is its average. Labels are soft: the wanted
        probability of a pixel at the edge of a building is the share of it that is building.
        """
        x, coverage = normalise(images), coverage[..., None]
        valid = (coverage != IGNORE).astype(x.dtype)
        truth = coverage.astype(x.dtype) / FULL * valid
        net = self.net if training else self.average.net
        logits = net.forward(x, training=True) if training else net.predict(x)
        loss, dlogits = LOSS(logits, truth, valid=valid)
        return logits, loss, dlogits, self.world.sum(_confusion(logits, classes(coverage)))

    def check_finite(self, value: float) -> None:
        """A run that has diverged ends here, before anything is overwritten."""
        if not np.isfinite(value):
            raise InputError(
                f"the training diverged to {value} in epoch {self.epoch + 1}, batch "
                f"{self.step + 1}; {self.run.home} keeps what was saved before, and a smaller "
                "--lr may help"
            )

    def validate(self, stop: Stop) -> tuple[Row, float]:
        """Scores over the validation tiles, and the threshold that suits them best. IoU is that at
        this threshold, which will be used; by it the best epoch is chosen."""
        sums, tiles = Sums(), self.parts["val"]
        counts: Array = np.zeros((2, BINS), np.int64)
        batches = np.split(tiles, range(BATCH, len(tiles), BATCH))
        parts = staged(map(self.part, batches), self.device)
        for batch, (images, coverage) in zip(batches, parts, strict=True):
            logits, loss, _, pixels = self.forward(images, coverage, training=False)
            sums.add(loss, len(batch), pixels)
            counts = counts + to_host(histogram(sigmoid(logits)[..., 0], classes(coverage)))
            self.obey(stop)  # at step = steps_per_epoch: resumed, it validates
        sums.read()
        self.check_finite(sums.loss)
        threshold, iou = calibrate(self.world.sum(counts))
        return sums.row("val") | {"val_iou": iou}, threshold

    def part(self, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """This rank's images and coverage of some tiles; those that come again have no labels."""
        own, again = self.world.part(tiles)
        coverage = self.store.coverage[own]
        coverage[again] = IGNORE
        return self.store.images[own], coverage

    def finish_epoch(self, row: Row, threshold: float) -> None:
        """Record an epoch. The best model is written first: `last` is what a resumed run trusts."""
        self.history.append(row)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, Sums()
        self.seconds_before, self.began = 0.0, time.monotonic()
        if self.world.rank > 0:
            return
        if self.best_epoch() == self.epoch:
            trained = {**self.info.trained, "epoch": self.epoch, "val_iou": row["val_iou"]}
            info = replace(self.info, threshold=threshold, trained=trained)
            save_model(self.run.best, self.average.net, info)
        self.save()
        write_history(self.run.history, self.history)
        curves(self.history, self.run.curves)
        self.run.mirror(patient=True)

    def describe(self, row: Row) -> str:
        mark = " *" if self.best_epoch() == self.epoch else ""
        return (
            f"epoch {row['epoch']}/{self.epochs}  loss {row['train_loss']:.3f} / "
            f"{row['val_loss']:.3f}  accuracy {row['train_accuracy']:.3f} / "
            f"{row['val_accuracy']:.3f}  IoU {row['train_iou']:.3f} / {row['val_iou']:.3f}  "
            f"{row['seconds']:.0f} s{mark}"
        )

    def best_epoch(self) -> int:
        """The number of the epoch with the highest validation IoU, the first of equals; 0: none."""
        scores = [row["val_iou"] for row in self.history]
        return scores.index(max(scores)) + 1 if scores else 0

    def waited_enough(self) -> bool:
        """Whether validation IoU has not risen for `patience` epochs."""
        return len(self.history) - self.best_epoch() >= self.patience

    def obey(self, stop: Stop) -> None:
        """If a signal has come to any rank: save and leave, saying how to go on."""
        number = self.world.highest(stop.signal or 0)
        if number == 0:
            return
        if self.world.rank == 0:
            self.save()
            self.run.mirror()
        self.world.wait()
        how = f"saved; go on with: {self.run.resume_line}"
        raise KeyboardInterrupt(how) if number == signal.SIGINT else Terminated(how)

    # ------------------------------------------------------------------ checkpoints

    def save(self) -> None:
        """Write all that a resumed run needs; no tensor in it depends on the clock."""
        for loss in self.sums.read():
            self.check_finite(loss)
        self.check_finite(sum(float(p.sum()) for p in self.net.parameters().values()))
        arrays = {f"net.{name}": array for name, array in net_arrays(self.net).items()}
        arrays |= {f"average.{name}": a for name, a in net_arrays(self.average.net).items()}
        arrays |= {f"optimizer.{name}": a for name, a in self.optimizer.state().items()}
        about = {
            "epoch": self.epoch,
            "step": self.step,
            "loss": self.sums.loss,
            "tiles": self.sums.tiles,
            "pixels": vars(self.sums.pixels),
            "history": self.history,
            "seconds": self.seconds(),
            "data": self.store.key,
        }
        save(self.run.last, arrays, about)
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Continue from the last checkpoint of the run."""
        arrays, about = self.world.share(lambda: load(self.run.last))
        if about["data"] != self.store.key:
            raise InputError(
                f"{self.run.last}: the run was trained on other data than is given now"
            )
        load_net(self.net, _under("net.", arrays), self.run.last)
        load_net(self.average.net, _under("average.", arrays), self.run.last)
        self.optimizer.load_state(_under("optimizer.", arrays))
        self.epoch, self.step, self.history = about["epoch"], about["step"], about["history"]
        self.seconds_before = about.get("seconds", 0.0)
        self.sums = Sums(about["loss"], about["tiles"], Confusion(**about["pixels"]))


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _confusion(logits: Array, labels: Array) -> Array:
    """tp, fp, fn, tn at p = 0.5, that is at logit 0; counted where the arrays are."""
    xp = array_module(logits)
    predicted, building, background = logits >= 0, labels == BUILDING, labels == BACKGROUND
    pairs = (
        (predicted, building),
        (predicted, background),
        (~predicted, building),
        (~predicted, background),
    )
    return xp.stack([(a & b).sum() for a, b in pairs])
