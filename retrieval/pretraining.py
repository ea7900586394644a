"""A start for small encoders that no official weights fit: seconds on a CPU, from the clips and captions of the development split alone.

    python -m retrieval.pretraining --cache data/sample/cache --text-encoder data/sample/text_encoder --output data/sample/weights

    data/sample/weights/audio_encoder.ckpt   ATST-Frame in an official layout: audio_encoder.checkpoint
    data/sample/weights/text_encoder/        Hugging Face folder: text_encoder.name, with text_encoder.pretrained true
    data/sample/weights/made_from.json       what they were made from; equal weights are reused

Audio: the patch embedding becomes a whitening of the spectrogram's patches (their principal components, each scaled to unit variance); the
blocks stay random. Text: token 0 learns to say which tokens its caption has, rare ones first. Untrained, token 0 hardly depends on the
caption, all texts lie in one point, and text-aware attention, which asks with that point, learns late. Nothing here sees which caption
belongs to which clip.
"""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import torch
import torchaudio
import transformers
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from retrieval.data import ClipSplit, open_cache
from retrieval.data.pairs import PairDataset
from retrieval.errors import OneLineParser, UserError, run_main
from retrieval.models.audio.atst import PREFIXES, AtstFrame
from retrieval.models.text import TextEncoder, load_tokenizer, normalise_caption, text_architecture

VERSION = 1  # raise it with every change that changes the weights
SECONDS = 10.0  # of each clip that the whitening is measured on
EVERY_FRAME = 3  # neighbouring frames resemble each other
VARIANCE_FLOOR = 1e-3  # of the largest variance, added to all: weak components are mostly noise
MAX_TOKENS, DROPOUT, BATCH_SIZE, LEARNING_RATE, WARMUP_STEPS = 32, 0.1, 64, 1e-3, 30


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=Path, required=True, metavar="DIR", help="Arrow cache with a development split")
    parser.add_argument("--text-encoder", type=Path, required=True, metavar="DIR", help="folder with config.json and tokenizer")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--embed-dim", type=int, default=96, help="of the ATST-Frame")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300, help=f"of the text encoder, {BATCH_SIZE} captions each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for name in ("embed_dim", "depth", "num_heads", "steps"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be 1 or more")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    sizes = {name: getattr(options, name) for name in ("embed_dim", "depth", "num_heads")}
    pretrain(options.cache, options.text_encoder, options.output, sizes, options.steps, options.seed)
    return 0


def pretrain(cache: Path, text_folder: Path, output: Path, sizes: dict[str, int], steps: int, seed: int) -> None:
    """Write both encoders' weights to the folder `output`, or reuse equal ones. Raises UserError."""
    if not (text_folder / "config.json").is_file():
        raise UserError(f"--text-encoder {text_folder} has no config.json; make one with data_prep/make_text_encoder.py")
    clips = open_cache(cache).split("development")
    corpus = PairDataset(clips, max_samples=1, seed=0).fingerprint()
    text_config = json.loads((text_folder / "config.json").read_text(encoding="utf-8"))
    made_from = {"version": VERSION, "corpus": corpus, "text_encoder": text_config, **sizes, "steps": steps, "seed": seed}
    if _reusable(output, made_from):
        print(f"{output} was made from this cache and these settings: reused")
        return
    if output.name in ("", ".."):
        raise UserError(f"--output {output}: give the folder by its own name; it is written beside that name and renamed when it is complete")
    partial = output.with_name(f".{output.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        set_seed(seed)
        audio = whitened_audio_encoder(clips, sizes)
        torch.save({"state_dict": {PREFIXES[-1] + name: value for name, value in audio.state_dict().items()}}, partial / "audio_encoder.ckpt")
        text = trained_text_encoder(clips, text_folder, steps, seed)
        text.model.save_pretrained(partial / "text_encoder")
        text.tokenizer.save_pretrained(partial / "text_encoder")
        (partial / "made_from.json").write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(output, ignore_errors=True)  # empty, or made by this module
        partial.rename(output)
    except OSError as error:
        raise UserError(f"the weights could not be written to {output}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{output}: audio_encoder.ckpt and text_encoder/, from {len(clips)} clips and {sum(map(len, clips.captions))} captions")


def whitened_audio_encoder(clips: ClipSplit, sizes: dict[str, int]) -> AtstFrame:
    """An ATST-Frame whose patch embedding whitens the patches of `clips`; all else is random."""
    encoder = AtstFrame(**sizes)
    patches = []
    for index in tqdm(range(len(clips)), desc="patches", unit="clip", mininterval=1.0):
        waveform = torch.from_numpy(clips.read(index, 0, min(int(clips.num_samples[index]), round(SECONDS * clips.sample_rate))))
        waveform = torchaudio.functional.resample(waveform, clips.sample_rate, encoder.sample_rate)
        waveform = functional.pad(waveform, (0, max(0, encoder.sample_rate // 2 - len(waveform))))  # the spectrogram needs more than 32 ms
        patches.append(encoder.patch_embed.patches(encoder.log_mel(waveform[None]))[0, ::EVERY_FRAME])
    whitening, mean = _whitening(torch.cat(patches).double(), encoder.feature_dim)
    with torch.no_grad():
        encoder.patch_embed.patch_embed.weight[: len(whitening)] = whitening
        encoder.patch_embed.patch_embed.bias[: len(whitening)] = -whitening @ mean
    return encoder


def _whitening(patches: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """patches (N, P) -> at most `size` principal directions over their deviations (min(size, P), P), and the mean (P,)."""
    mean = patches.mean(dim=0)
    variances, directions = torch.linalg.eigh(torch.cov((patches - mean).T))  # ascending
    variances, directions = variances.flip(0)[:size], directions.flip(1)[:, :size]
    return (directions / torch.sqrt(variances + VARIANCE_FLOOR * variances[0])).T, mean


def trained_text_encoder(clips: ClipSplit, folder: Path, steps: int, seed: int) -> TextEncoder:
    """The text encoder of `folder` from random weights, trained to predict a caption's tokens from its token 0."""
    encoder = TextEncoder(text_architecture(str(folder), DROPOUT), MAX_TOKENS)
    encoder.tokenizer = load_tokenizer(folder)
    captions = [caption for captions in clips.captions for caption in captions]
    targets = token_shares(encoder, captions)  # (N, V)
    head = nn.Linear(encoder.feature_dim, targets.shape[1])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], weight_decay=0.0)
    rng = np.random.default_rng(seed)
    encoder.train()
    progress = tqdm(range(steps), desc="text encoder", unit="step", mininterval=1.0)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS, 2.0 * (steps - step) / steps)
        batch = rng.choice(len(captions), size=min(BATCH_SIZE, len(captions)), replace=False)
        log_probabilities = functional.log_softmax(head(encoder([captions[index] for index in batch])), dim=-1)
        loss = -(targets[batch] * log_probabilities).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not math.isfinite(value := loss.item()):
            raise UserError(f"text encoder {folder}: the loss is {value} at step {step + 1}; try a smaller one, or another --seed")
        progress.set_postfix(loss=f"{value:.2f}", refresh=False)
    return encoder


def token_shares(encoder: TextEncoder, captions: list[str]) -> Tensor:
    """(N, V): the tokens of each caption, weighted by the logarithm of how rare they are over all captions; rows sum to 1, or are 0."""
    held = torch.zeros(len(captions), len(encoder.tokenizer))
    for row, caption in enumerate(captions):
        held[row, encoder.tokenizer(normalise_caption(caption), add_special_tokens=False)["input_ids"]] = 1.0
    shares = held * torch.log(len(captions) / held.sum(dim=0).clamp_min(1.0))
    return shares / shares.sum(dim=1, keepdim=True).clamp_min(1e-12)


def _reusable(output: Path, made_from: dict) -> bool:
    """Does `output` hold the wanted weights? Raises UserError where something else is in the way."""
    if not output.exists():
        return False
    if not output.is_dir():
        raise UserError(f"{output} is not a folder; give another --output")
    if any(output.iterdir()) and not (output / "made_from.json").is_file():
        raise UserError(f"{output} is not empty and was not made by this command (no made_from.json); give another --output")
    try:
        found = json.loads((output / "made_from.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    weights = (output / "audio_encoder.ckpt", output / "text_encoder" / "model.safetensors", output / "text_encoder" / "tokenizer.json")
    return found == made_from and all(path.is_file() for path in weights)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_main(main)
