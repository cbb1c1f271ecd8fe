"""Render the data and train the models that ship, within a given time, on one or two GPUs of one machine.

    python benchmarks/train_bundled.py --assets ASSETS --basis BASIS --out OUT --seconds 1500 --workers 30

Rendering, the autoencoder and the drafts run side by side; then the denoiser gets the rest of the time on all GPUs, or
with ``--train hpdm prior`` on one of them, the prior on the other. With ``--initial`` the denoiser goes on from a model
and the autoencoder stays as it is. Everything is resumed by the same command. Models of so far are written every 150 s
in OUT/hpdm/denoiser/hpdm and OUT/prior; the finished ones are OUT/hpdm/hpdm and OUT/prior. What each step said is in
OUT/*.log.
"""
import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
AUTOENCODER_SHARDS = 24
"""Rendered shards with which the autoencoder begins."""
AUTOENCODER_SECONDS = 190.0
OVERHEAD = 25.0
"""Seconds a training needs before its first and after its last step."""


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """The command of each step, without those options that depend on the clock."""
    out, weights = args.out, ROOT / "custom" / "portrait_diffusion" / "weights"
    source = ["--assets", args.assets, "--basis", args.basis, "--workers", args.workers, "--views", 12,
              "--turned", args.turned, "--grown", args.grown]
    held_out = ["--subjects", 64, "--sampling", "evaluation", "--shard-size", 4, "--extras", "label", "depth", "normal"]
    hpdm = ["train-hpdm", "--data", out / "train", "--out", out / "hpdm", "--quiet"]
    perceptual = ["--perceptual-weights", args.perceptual_weights] if args.perceptual_weights else []
    initial = ["--initial", args.initial] if args.initial else []
    found = {
        "val": ["render-dataset", out / "val", "--split", "val", *held_out, *source],
        "test": ["render-dataset", out / "test", "--split", "test", *held_out, *source],
        "train": ["render-dataset", out / "train", "--split", "train", "--subjects", args.subjects,
                  "--seed", args.seed, "--extras", "depth", "normal", "label", *source],
        "autoencoder": [*hpdm, "--stage", "autoencoder", "--val", out / "val", *perceptual],
        "drafts": ["render-drafts", "--data", out / "train", "--out", out / "drafts", "--worsen", 0.4,
                   "--fitted", 0.75],
        "denoiser": [*hpdm, "--stage", "denoiser", "--drafts", out / "drafts", *perceptual, *initial,
                     *args.hpdm_options.split()],
        "prior": ["train-prior", "--data", out / "train", "--val", out / "val", "--out", out / "prior",
                  "--initial", weights / "prior.safetensors", weights / "encoder.safetensors", *perceptual,
                  *args.prior_options.split()],
    }  # fmt: skip
    return {name: [str(word) for word in words] for name, words in found.items()}


def budget(seconds: float) -> list[str]:
    """Options of a training that is over after so many seconds."""
    training = max(1.0, seconds - OVERHEAD)
    return ["--total-seconds", f"{training:.0f}", "--seconds", f"{training + 10:.0f}"]


class Machine:
    """Runs commands side by side and notes when each began and ended."""

    def __init__(self, out: Path, gpus: int):
        self.out, self.gpus, self.start = out, gpus, time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def say(self, text: str) -> None:
        with open(self.out / "steps.log", "a", encoding="utf-8") as file:
            file.write(f"{self.elapsed():6.0f} s  {text}\n")
        print(f"{self.elapsed():6.0f} s  {text}", flush=True)

    def run(self, name: str, words: list[str], gpu: int | None = None, threads: int = 2) -> None:
        """One command of launch_portrait.py to its end.

        Raises: SystemExit when it fails, naming its log.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(min(gpu, self.gpus - 1))
        self.say(f"{name} begins")
        with open(self.out / f"{name}.log", "ab") as file:
            command = [sys.executable, str(ROOT / "launch_portrait.py"), *words]
            code = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
        self.say(f"{name} ends with {code}")
        if code:
            raise SystemExit(f"{name} failed; see {self.out / (name + '.log')}.")

    def beside(self, work, *args) -> threading.Thread:
        """Start a call in a thread; an error there ends the process."""

        def guarded() -> None:
            try:
                work(*args)
            except BaseException as error:
                self.say(f"stopped: {error}")
                os._exit(1)

        thread = threading.Thread(target=guarded)
        thread.start()
        return thread


def rendered(folder: Path) -> int:
    """Shards there are so far."""
    return len(list(folder.glob("train_[0-9]*.npz")))


def train_all(args: argparse.Namespace) -> None:
    """The whole plan; returns when everything is done."""
    machine, words = Machine(args.out, args.gpus), commands(args)
    both = args.gpus > 1 and "prior" in args.train
    for split in ("val", "test"):
        machine.run(split, words[split], threads=1)
    rendering = machine.beside(machine.run, "train", words["train"], None, 1)
    enough = min(AUTOENCODER_SHARDS, -(-args.subjects // 50))
    while rendered(args.out / "train") < enough:
        time.sleep(1)

    def drafts() -> None:
        while rendering.is_alive():
            machine.run("drafts", words["drafts"], 0)
            time.sleep(1)
        machine.run("drafts", words["drafts"], 0)

    drafting = machine.beside(drafts)
    if args.initial is None:
        limit = ["--total-seconds", str(args.autoencoder_seconds), "--seconds", str(args.autoencoder_seconds + 10)]
        machine.run("autoencoder", [*words["autoencoder"], *limit], 1)
    rendering.join()
    prior = None
    if both:
        drafting.join()
        prior = machine.beside(machine.run, "prior", [*words["prior"], *budget(args.seconds - machine.elapsed())], 0)
    drafting.join()
    devices, gpu = ([], 1) if both else (["--devices", str(args.gpus)], None)
    machine.run("denoiser", [*words["denoiser"], *devices, *budget(args.seconds - machine.elapsed())], gpu)
    if prior is not None:
        prior.join()


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, required=True, help="folder of the MakeHuman CC0 assets")
    parser.add_argument("--basis", type=Path, required=True, help="file of portrait_diffusion.synthetic.heads")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1500.0, help="for everything")
    parser.add_argument("--autoencoder-seconds", type=float, default=AUTOENCODER_SECONDS)
    parser.add_argument("--subjects", type=int, default=4500)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="renderers")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--train", nargs="+", choices=("hpdm", "prior"), default=["hpdm"], help="prior: needs two GPUs")
    parser.add_argument("--seed", type=int, default=0, help="of the training heads")
    parser.add_argument("--turned", type=float, default=0.7, help="share of people with turned shoulders")
    parser.add_argument("--grown", type=float, default=0.0, help="share of people with haircuts that no asset has")
    parser.add_argument("--initial", type=Path, help="HPDM folder that the denoiser goes on from")
    parser.add_argument("--perceptual-weights", type=Path, help="ST-LPIPS AlexNet file; default: the package's")
    parser.add_argument(
        "--hpdm-options", default="--w-picture 0.3", help="more options of the denoiser's train-hpdm, in one word"
    )
    parser.add_argument(
        "--prior-options", help="more options of train-prior, in one word",
        default="--batch 24 --sampled 8 --lr-generator 1.2e-3 --adversarial-from 0.15 --decay-from 0.55 "
        "--w-adversarial 0.01 --w-sampled 0.025",  # at twice that the front lost 0.4 dB in the last fifth
    )  # fmt: skip
    args = parser.parse_args(argv)
    if "hpdm" not in args.train or ("prior" in args.train and args.gpus < 2):
        parser.error("--train is 'hpdm', or with two GPUs 'hpdm prior'; train-prior trains the prior alone.")
    args.out.mkdir(parents=True, exist_ok=True)
    train_all(args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
