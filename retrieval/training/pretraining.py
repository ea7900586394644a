"""Start weights for small encoders that no official weights fit: seconds on a CPU.

    python -m retrieval.pretraining --cache data/sample/cache \\
        --text-encoder data/sample/text_encoder --output data/sample/weights

    OUTPUT/audio_encoder.ckpt   ATST-Frame in an official layout: audio_encoder.checkpoint
    OUTPUT/text_encoder/        Hugging Face folder: text_encoder.name, text_encoder.pretrained=true
    OUTPUT/made_from.json       settings and sources; equal weights are reused

They are made from the clips and captions of the development split, and nothing here sees which
caption belongs to which clip. Audio: the patch embedding becomes a whitening of the spectrogram's
patches (their principal components, each scaled to unit variance); the blocks stay random. Text:
token 0 learns to predict the tokens of its caption, rare ones first. Untrained, token 0 hardly
depends on the caption: all texts lie in one point, and text-aware attention, whose query is that
point, learns late.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torchaudio
from accelerate.utils import set_seed
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from retrieval.base.errors import OneLineParser, UserError, one_line
from retrieval.base.files import disk_remedy, sha256_of
from retrieval.base.folders import MADE_FROM, read_made_from, whole_folder
from retrieval.base.launch import check_environment
from retrieval.base.progress import bar, set_quiet, silence_transformers
from retrieval.data import ClipSplit, open_cache
from retrieval.models.audio.atst import PREFIXES, AtstFrame
from retrieval.models.text import TextEncoder, load_tokenizer, normalise_caption, text_architecture

VERSION = 1  # raise it with every change that changes the weights
SECONDS = 10.0  # of each clip that the whitening is measured on
LARGEST_SIZE = 2**16
EVERY_FRAME = 3  # neighbouring frames resemble each other
VARIANCE_FLOOR = 1e-3  # of the largest variance, added to all: weak components are mostly noise
MAX_TOKENS, DROPOUT, BATCH_SIZE, LEARNING_RATE, WARMUP_STEPS = 32, 0.1, 64, 1e-3, 30


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__.split("\n")[0])
    folder = {"type": Path, "required": True, "metavar": "DIR"}
    parser.add_argument("--cache", **folder, help="Arrow cache with a development split")
    parser.add_argument("--text-encoder", **folder, help="folder with config.json and tokenizer")
    parser.add_argument("--output", **folder, help="folder that is made")
    parser.add_argument("--embed-dim", type=int, default=96, help="of the ATST-Frame")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument(
        "--steps", type=int, default=300, help=f"of the text encoder, {BATCH_SIZE} captions each"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    options = parser.parse_args(arguments)
    sizes = {name: getattr(options, name) for name in ("embed_dim", "depth", "num_heads")}
    for name, value in (*sizes.items(), ("steps", options.steps)):
        if not 1 <= value <= LARGEST_SIZE:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {value}: must be 1 to {LARGEST_SIZE}")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed {options.seed}: must be 0 to {2**32 - 1}")
    check_environment(several=False)
    set_quiet(options.quiet)
    # the same weights at any number of cores; more hardly help encoders this small
    torch.set_num_threads(1)
    silence_transformers()
    folders = options.cache, options.text_encoder, options.output
    pretrain(*folders, sizes, options.steps, options.seed)
    return 0


def pretrain(
    cache: Path, text_folder: Path, output: Path, sizes: dict[str, int], steps: int, seed: int
) -> None:
    """Write both encoders' weights to the folder `output`, or reuse equal ones.

    Args:
        cache: Arrow cache with a development split.
        text_folder: Folder with config.json and tokenizer of the text encoder.
        output: Folder that is made, or that this command made before.
        sizes: embed_dim, depth and num_heads of the ATST-Frame.
        steps: Optimizer steps of the text encoder.
        seed: Of all random numbers.

    Raises:
        UserError: A file is missing or does not fit, or `output` holds anything else.
    """
    if not (text_folder / "config.json").is_file():
        raise UserError(
            f"--text-encoder {text_folder} has no config.json; make one with"
            " data_prep/make_text_encoder.py"
        )
    for source in (cache.resolve(), text_folder.resolve()):
        if source.is_relative_to(output.resolve()) or output.resolve().is_relative_to(source):
            raise UserError(
                f"--output {output} would replace or change {source}, from which it is made; give"
                " another --output"
            )
    clips = open_cache(cache).split("development")
    sources = {
        path.name: sha256_of(path)
        for path in sorted(text_folder.iterdir())
        if path.suffix in (".json", ".txt")
    }
    settings = {
        "version": VERSION,
        "corpus": clips.fingerprint(),
        "sample_rate": clips.sample_rate,
        "text_encoder": sources,
        **sizes,
        "steps": steps,
        "seed": seed,
    }
    found = read_made_from(output, {"settings": dict, "files": dict})
    if (found and found["settings"] == settings) and all(
        (output / name).is_file() and sha256_of(output / name) == digest
        for name, digest in found["files"].items()
    ):
        print(f"{output} was made from this cache and these settings: reused")
        return
    # replaces an empty folder, or one made by this command
    with whole_folder(output, "the weights") as folder:
        set_seed(seed)
        text = untrained_text_encoder(text_folder)
        try:
            audio = whitened_audio_encoder(clips, sizes)
            train_text_encoder(text, clips, steps, seed)
            weights = {PREFIXES[-1] + name: value for name, value in audio.state_dict().items()}
            torch.save({"state_dict": weights}, folder / "audio_encoder.ckpt")
            text.model.save_pretrained(folder / "text_encoder")
            text.tokenizer.save_pretrained(folder / "text_encoder")
        # torch and safetensors raise these where the disk or the memory is full
        except (RuntimeError, MemoryError, SafetensorError) as error:
            is_memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
            remedy = "memory is full: close other programs" if is_memory else disk_remedy(error)
            if remedy is None:
                raise
            raise UserError(
                f"no weights were written to {output} ({one_line(error)}); {remedy}, or choose a"
                " smaller encoder"
            ) from None
        made = {
            str(path.relative_to(folder)): sha256_of(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        text_of_json = json.dumps({"settings": settings, "files": made}, indent=1) + "\n"
        (folder / MADE_FROM).write_text(text_of_json, encoding="utf-8")
    print(
        f"{output}: audio_encoder.ckpt and text_encoder/, from {len(clips)} clips and"
        f" {sum(map(len, clips.captions))} captions"
    )


def whitened_audio_encoder(clips: ClipSplit, sizes: dict[str, int]) -> AtstFrame:
    """Return an ATST-Frame whose patch embedding whitens the patches of `clips`.

    Its rows are the principal components of the patches, each divided by its standard deviation;
    all other weights are random.

    Raises:
        UserError: All patches are alike.
    """
    encoder = AtstFrame(**sizes)
    parts = []
    with bar(total=len(clips), desc="patches", unit="clip") as progress:
        for index in range(len(clips)):
            end = min(int(clips.num_samples[index]), round(SECONDS * clips.sample_rate))
            waveform = torch.from_numpy(clips.read(index, 0, end))  # (S,)
            resample = torchaudio.functional.resample
            waveform = resample(waveform, clips.sample_rate, encoder.sample_rate)
            missing = max(0, encoder.sample_rate // 2 - len(waveform))
            waveform = functional.pad(waveform, (0, missing))  # a spectrogram needs over 32 ms
            log_mel = encoder.log_mel(waveform[None])
            parts.append(encoder.patch_embed.patches(log_mel)[0, ::EVERY_FRAME])
            progress.update()
    whitening, mean = _whitening(torch.cat(parts).double(), encoder.feature_dim)
    with torch.no_grad():
        encoder.patch_embed.patch_embed.weight[: len(whitening)] = whitening
        encoder.patch_embed.patch_embed.bias[: len(whitening)] = -whitening @ mean
    return encoder


def _whitening(patches: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return up to `size` whitening rows (min(size, P), P) of patches (N, P), and the mean (P,)."""
    mean = patches.mean(dim=0)
    variances, directions = torch.linalg.eigh(torch.cov((patches - mean).T))  # ascending
    variances, directions = variances.flip(0)[:size], directions.flip(1)[:, :size]
    if not variances[0] > 1e-9:
        raise UserError(
            "the development clips all sound alike, or are silent: nothing to start an audio"
            " encoder from; check the cache"
        )
    return (directions / torch.sqrt(variances + VARIANCE_FLOOR * variances[0])).T, mean


def untrained_text_encoder(folder: Path) -> TextEncoder:
    """Make the text encoder of `folder` with random weights."""
    encoder = TextEncoder(text_architecture(str(folder), DROPOUT), MAX_TOKENS)
    encoder.tokenizer = load_tokenizer(folder, encoder.model.config.vocab_size)
    return encoder


def train_text_encoder(encoder: TextEncoder, clips: ClipSplit, steps: int, seed: int) -> None:
    """Train `encoder` to predict a caption's tokens from its token 0."""
    captions = [caption for captions in clips.captions for caption in captions]
    targets = token_shares(encoder, captions)  # (N, V)
    if not targets.any():
        raise UserError(
            "the development captions have no words that tell them apart: nothing to start a text"
            " encoder from; check the cache"
        )
    head = nn.Linear(encoder.feature_dim, targets.shape[1])
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], weight_decay=0.0)
    rng = np.random.default_rng(seed)
    encoder.train()
    with bar(total=steps, desc="text encoder", unit="step") as progress:
        for step in range(steps):
            factor = min(1.0, (step + 1) / WARMUP_STEPS, 2.0 * (steps - step) / steps)
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * factor
            batch = rng.choice(len(captions), size=min(BATCH_SIZE, len(captions)), replace=False)
            logits = head(encoder([captions[index] for index in batch]))  # (b, V)
            log_probabilities = functional.log_softmax(logits, dim=-1)
            loss = -(targets[batch] * log_probabilities).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not math.isfinite(value := loss.item()):
                raise UserError(
                    f"the text encoder's loss is {value} at step {step + 1}; try a smaller one, or"
                    " another --seed"
                )
            progress.set_postfix(loss=f"{value:.2f}", refresh=False)
            progress.update()


def token_shares(encoder: TextEncoder, captions: list[str]) -> Tensor:
    """Return (N, V): the tokens of each caption, weighted by their inverse document frequency.

    A rare token weighs log(captions / captions with it). Rows sum to 1, or are 0.
    """
    held = torch.zeros(len(captions), len(encoder.tokenizer))
    for row, caption in enumerate(captions):
        tokens = encoder.tokenizer(normalise_caption(caption), add_special_tokens=False)
        held[row, tokens["input_ids"]] = 1.0
    shares = held * torch.log(len(captions) / held.sum(dim=0).clamp_min(1.0))
    return shares / shares.sum(dim=1, keepdim=True).clamp_min(1e-12)
