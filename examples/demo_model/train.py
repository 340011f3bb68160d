"""Train a small Llama- or Qwen3-shaped language model on a CPU and save it as an HF folder.

The script trains the tokenizer (first run only) and the model, and writes ``model.safetensors``,
``config.json`` and the tokenizer files. Plain PyTorch; ``transformers`` is not needed.

    python train.py --corpus scratch/corpus --work scratch/demo --out OUT --steps N --decay-steps D
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from corpus import SHARES
from model import PRESETS, SPECIALS, Model, export, generate
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MICRO = 2048  # tokens in one forward and backward pass


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz; parameters of one shape share a batched product."""

    def __init__(self, params: list[nn.Parameter], lr: float, decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take one step."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                shapes.setdefault(p.shape, []).append(p)
            for shape, same in shapes.items():
                updates = []
                for p in same:
                    buf = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buf.lerp_(p.grad, 0.05)
                    updates.append(p.grad.lerp(buf, 0.95))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for p, u in zip(same, newton_schulz(torch.stack(updates)), strict=True):
                    p.mul_(1 - group["lr"] * group["decay"]).add_(u, alpha=-group["lr"] * scale)


def newton_schulz(g: Tensor) -> Tensor:
    """Return the nearest semi-orthogonal matrices of a (count, rows, columns) stack."""
    tall = g.shape[1] > g.shape[2]
    x = (g.mT if tall else g) / (g.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16()
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.mT if tall else x).float()


def train_tokenizer(corpus: Path, vocab: int) -> Tokenizer:
    """Train the byte-level BPE on the training text, mixed as the model will see it."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(QWEN2_SPLIT), behavior="isolated", invert=False),
            pre.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    texts = []
    for name, share in SHARES.items():
        text = (corpus / "train" / f"{name}.txt").read_text("utf-8")
        size = int(share * 12_000_000)
        texts += (text * (size // len(text) + 1))[:size].split(SPECIALS[0])
    alphabet = pre.ByteLevel.alphabet()
    size = vocab - len(SPECIALS)
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tok.train_from_iterator(texts, trainer)
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    assert tok.get_vocab_size() == vocab
    return tok


def encode(corpus: Path, tok: Tokenizer, work: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the token stream of every source (cached in ``work``) and the held-out names."""
    streams: dict[str, np.ndarray] = {}
    held = sorted(p.stem for p in (corpus / "heldout").glob("*.txt"))
    for part, names in (("train", list(SHARES)), ("heldout", held)):
        for name in names:
            cache = work / f"{part}-{name}.npy"
            if not cache.exists():
                docs = (corpus / part / f"{name}.txt").read_text("utf-8").split(SPECIALS[0])
                ids = [
                    i
                    for e in tok.encode_batch(docs)
                    for i in (*e.ids, tok.token_to_id(SPECIALS[0]))
                ]
                np.save(cache, np.array(ids, dtype=np.uint16))
            streams[f"{part}/{name}"] = np.load(cache)
    return streams, held


def batch(streams: dict[str, np.ndarray], seed: int, step: int, rows: int, seq: int) -> Tensor:
    """Draw ``rows`` windows of ``seq + 1`` tokens; a pure function of seed and step."""
    rng = np.random.default_rng((seed, step))
    names = [f"train/{n}" for n in SHARES]
    share = np.array(list(SHARES.values()))
    out = []
    for name in rng.choice(names, size=rows, p=share / share.sum()):
        at = int(rng.integers(0, len(streams[name]) - seq))
        out.append(streams[name][at : at + seq + 1].astype(np.int64))
    return torch.from_numpy(np.stack(out))


@torch.no_grad()
def heldout_loss(model: Model, stream: np.ndarray, seq: int = 512, limit: int = 1 << 30) -> float:
    """Return the mean loss over consecutive windows of the first ``limit`` tokens."""
    n = (min(len(stream), limit) - 1) // seq
    total = 0.0
    for i in range(n):
        ids = torch.from_numpy(stream[i * seq : (i + 1) * seq + 1].astype(np.int64))[None]
        total += model.loss(ids[:, :-1], ids[:, 1:]).item()
    return total / max(n, 1)


@dataclass
class Schedule:
    """Warm-up, constant, linear decay to nought; ended by a step count or by the clock.

    With a wall-clock limit the decay starts at 70 per cent of it and follows the steps or
    the clock, whichever is further along, so that the run always ends in time.
    """

    steps: int
    decay_steps: int
    limit: float  # seconds; used where ``steps`` is 0
    warmup: int
    decay_at: int = 0
    decay_began: float = 0.0
    decay: float = 1.0

    def __post_init__(self) -> None:
        if self.steps:
            self.decay_steps = self.decay_steps or max(1, int(0.3 * self.steps))
            self.decay_at = self.steps - self.decay_steps

    def factor(self, step: int, elapsed: float) -> float:
        """Return what multiplies the learning rates at ``step``; 0 or less ends the run."""
        if not self.steps:
            if not self.decay_at and elapsed >= 0.7 * self.limit:
                self.decay_at, self.decay_began = step, elapsed
                self.decay_steps = int(0.95 * step * (self.limit - elapsed) / elapsed)
            if self.decay_at:
                left = (self.limit - elapsed) / (self.limit - self.decay_began)
                self.decay = min(self.decay, left)
        if self.decay_at and step >= self.decay_at:
            self.decay = min(self.decay, 1 - (step - self.decay_at) / self.decay_steps)
        return self.decay * min(1.0, (step + 1) / self.warmup)


def save(path: Path, model: Model, optimizers: list[torch.optim.Optimizer], rest: object) -> None:
    """Write a checkpoint atomically."""
    states = [o.state_dict() for o in optimizers]
    torch.save((model.state_dict(), states, rest), path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def accumulate(loss_fn: Callable[[Tensor, Tensor], Tensor], ids: Tensor, parts: int) -> float:
    """Run one micro-batch (small enough for the caches) and add its share of the gradient."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_fn(ids[:, :-1], ids[:, 1:]) / parts
    loss.backward()
    return loss.item()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--preset", choices=PRESETS, default="demo")
    cli.add_argument("--corpus", type=Path, required=True, help="folder written by corpus.py")
    cli.add_argument("--work", type=Path, required=True, help="token caches and checkpoints")
    cli.add_argument("--out", type=Path, required=True, help="Hugging Face folder to write")
    cli.add_argument("--tokenizer", type=Path, help="use this tokenizer.json; else train one")
    cli.add_argument("--steps", type=int, default=0, help="total steps (with --decay-steps)")
    cli.add_argument("--decay-steps", type=int, default=0)
    cli.add_argument("--minutes", type=float, default=0, help="wall-clock cap instead of --steps")
    cli.add_argument("--tokens", type=int, default=8192, help="tokens a step")
    cli.add_argument("--muon-lr", type=float, default=0.02)
    cli.add_argument("--adam-lr", type=float, default=0.004)
    cli.add_argument("--warmup", type=int, default=60)
    cli.add_argument("--save-every", type=float, default=8, help="minutes between checkpoints")
    cli.add_argument("--seed", type=int, default=1)
    cli.add_argument("--threads", type=int, default=2)
    cli.add_argument("--no-compile", action="store_true", help="where there is no C++ compiler")
    args = cli.parse_args()
    if not args.steps and not args.minutes:
        cli.error("one of --steps and --minutes is needed")
    return args


def main() -> None:
    """Train, checkpoint, export, and print the held-out losses and a few samples."""
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    shape = PRESETS[args.preset]
    args.work.mkdir(parents=True, exist_ok=True)
    tok_file = args.tokenizer or args.work / "tokenizer.json"
    if not tok_file.exists():
        train_tokenizer(args.corpus, shape.vocab).save(str(tok_file))
    tok = Tokenizer.from_file(str(tok_file))
    streams, held = encode(args.corpus, tok, args.work)
    model = Model(shape)
    print(f"parameters {sum(p.numel() for p in model.parameters()):,}")
    print("tokens", {k: len(v) for k, v in streams.items()}, flush=True)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "layers" not in n]
    muon = Muon(matrices, args.muon_lr)
    adam = torch.optim.AdamW(others, args.adam_lr, (0.9, 0.95), weight_decay=0.0)
    schedule = Schedule(args.steps, args.decay_steps, args.minutes * 60, args.warmup)
    step, spent, mean, checkpoint = 0, 0.0, 0.0, args.work / "checkpoint.pt"
    if checkpoint.exists():
        weights, states, (step, spent, mean, saved_schedule) = torch.load(checkpoint)
        model.load_state_dict(weights)
        for opt, state in zip((muon, adam), states, strict=True):
            opt.load_state_dict(state)
        vars(schedule).update(saved_schedule)
    loss_fn = model.loss if args.no_compile else torch.compile(model.loss, dynamic=False)
    for seq in (512, shape.positions):  # compile both lengths before the clock starts
        accumulate(loss_fn, batch(streams, args.seed, 0, MICRO // seq, seq), 1)
    model.zero_grad(set_to_none=True)
    began = time.monotonic() - spent
    saved_at, logged, logged_step = time.monotonic(), time.monotonic(), step
    while (factor := schedule.factor(step, time.monotonic() - began)) > 0:
        muon.param_groups[0]["lr"] = factor * args.muon_lr
        adam.param_groups[0]["lr"] = factor * args.adam_lr
        seq = shape.positions if schedule.decay < 1 / 3 else 512  # long windows at the end
        parts = batch(streams, args.seed, step, args.tokens // seq, seq).split(MICRO // seq)
        loss = sum(accumulate(loss_fn, part, len(parts)) for part in parts)
        nn.utils.clip_grad_norm_(others, 1.0)
        for opt in (muon, adam):
            opt.step()
            opt.zero_grad(set_to_none=True)
        step += 1
        mean = 0.95 * mean + 0.05 * loss if mean else loss
        now = time.monotonic()
        if step % 20 == 0:
            rate = (step - logged_step) * args.tokens / (now - logged)
            line = f"step {step} loss {mean:.3f} lr x{factor:.3f} seq {seq}"
            print(f"{line} {rate:.0f} tok/s {(now - began) / 60:.1f} min", flush=True)
            logged, logged_step = now, step
        if now - saved_at > args.save_every * 60:
            save(checkpoint, model, [muon, adam], (step, now - began, mean, vars(schedule)))
            export(model, shape, tok, args.out)
            quick = {
                n: f"{heldout_loss(model, streams[f'heldout/{n}'], 512, 4097):.3f}" for n in held
            }
            print(f"saved at step {step}; held-out {quick}", flush=True)
            print(generate(model, tok, "Once upon a time", 60), flush=True)
            saved_at = logged = time.monotonic()
            logged_step = step
    export(model, shape, tok, args.out)
    print(f"done: --steps {step} --decay-steps {step - schedule.decay_at}")
    print(f"{step * args.tokens:,} tokens in {(time.monotonic() - began) / 60:.1f} minutes")
    model.load_state_dict({k: v.bfloat16().float() for k, v in model.state_dict().items()})
    for name in held:
        print(f"held-out {name}: {heldout_loss(model, streams[f'heldout/{name}']):.4f}", flush=True)
    for prompt in ("Once upon a time", "The king", "def main(", "Norge er"):
        print(repr(generate(model, tok, prompt)), flush=True)


if __name__ == "__main__":
    main()
