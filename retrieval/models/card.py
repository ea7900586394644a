"""The model card: README.md of a model folder, written from the record of its training (record.py).

about.json keeps a digest of the card, which tells whether the card was edited by hand since.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from retrieval.base.files import atomic_writer
from retrieval.models.record import ABOUT, TrainingRecord

CARD = "README.md"
TASK = "text-to-audio-retrieval"
METRIC_TYPES = {"mAP@": "map_at_", "R@": "recall_at_"}  # the hub's names

TEMPLATE = """
# Text-to-audio retrieval model

Finds the recording that a sentence describes:
audio encoder `{audio_encoder}`, text encoder `{text_encoder}`, pooling `{pooling}`.
Hears mono audio at {sample_rate} Hz, of a clip the first {clip_seconds:g} s.
{lora}
## Results

{results}

## Use

With {code}:

```python
import torch
from retrieval.models.dual_encoder import DualEncoder

model = DualEncoder.from_pretrained("DIRECTORY_OR_HUB_ID")
waveform, lengths = torch.zeros(1, 5 * model.sample_rate), torch.tensor([5 * model.sample_rate])
with torch.inference_mode():
    frames, mask = model.encode_audio(waveform, lengths)
    text = model.encode_text(["A dog barks twice.", "Rain falls."])
    scores = model.score(text, frames, mask)  # rows are texts, columns audios
```

Search a folder of recordings with it:

    python -m retrieval.search index FOLDER --checkpoint DIRECTORY --index INDEX
    python -m retrieval.search query "a dog barks twice" --index INDEX
{moments}
## Training data

{data}

## Licence

Of the model: {license}
{data_licences}
{settings}"""
TITLE = TEMPLATE.strip().partition("\n")[0]  # also of the cards of earlier versions
SETTINGS = """
## Settings

<details><summary>All settings of the training</summary>

```yaml
{settings}```

</details>
"""
MOMENTS = """
Its moment head tells when in a recording a sentence is heard:

```python
from retrieval.moments.locator import Locator

locator = Locator(model)
text = model.encode_text(["a dog barks twice"])
# samples float32 (S,) at model.sample_rate Hz, in one block or several
moments = locator.locate(text, locator.hear([samples])).moments[0]  # start, end, score; best first
```
"""
UNKNOWN_LICENCE = (
    "**unknown**: its author has not set one; ask before you pass it on. The author sets one by"
    " `python -m retrieval.sharing card --checkpoint DIRECTORY --license cc-by-4.0`."
)


def about_json(architecture: dict[str, Any], record: TrainingRecord) -> str:
    """Text of about.json: `record` with the digest of the card that is written beside it."""
    card = str(model_card(architecture, record))
    record = record.updated(card_sha256=_digest(card))
    return json.dumps(record.model_dump(exclude_unset=True), indent=2) + "\n"


def is_unedited(folder: Path, record: TrainingRecord) -> bool:
    """Return True if the card is absent or was not edited by hand since it was written.

    Earlier versions kept no digest: their card is known by its title.
    """
    if not (folder / CARD).exists():
        return True
    text = (folder / CARD).read_text(encoding="utf-8")
    return TITLE in text if record.card_sha256 is None else _digest(text) == record.card_sha256


def write_card(folder: Path, architecture: dict[str, Any], record: TrainingRecord) -> None:
    """Write about.json and the model card of a model folder anew; the model stays as it is.

    Args:
        folder: The model folder.
        architecture: Content of its config.json.
        record: How the model was made.

    Raises:
        UserError: A file cannot be written.
    """
    with atomic_writer(folder / ABOUT) as file:
        file.write(about_json(architecture, record))
    with atomic_writer(folder / CARD) as file:
        file.write(str(model_card(architecture, record)))


def model_card(architecture: dict[str, Any], record: TrainingRecord) -> ModelCard:
    """Return the model card, with the header that the hub reads.

    Args:
        architecture: Content of the model's config.json.
        record: How the model was made; the card calls missing facts unknown.
    """
    names = {
        "audio_encoder": architecture["audio_encoder"]["name"],
        "text_encoder": architecture["text_encoder"]["model_type"],
        "pooling": architecture["pooling"]["name"],
    }
    results = _eval_results(record)
    data = ModelCardData(
        license=record.license or "unknown",
        tags=["audio", "model_hub_mixin", "pytorch_model_hub_mixin", TASK],
        model_name="-".join([*names.values(), TASK]) if results else None,
        eval_results=results or None,
    )
    settings = yaml.safe_dump(record.settings, sort_keys=False) if record.settings else None
    code = "the code that trained it"
    if record.git_commit:
        code += f" (commit `{record.git_commit}`)"
    kind = architecture["audio_encoder"].get("architecture", {}).get("model_type")
    shown = {"audio_encoder": f"{names['audio_encoder']} ({kind})"} if kind else {}
    text = TEMPLATE.format(
        **names | shown,
        sample_rate=architecture["sample_rate"],
        clip_seconds=architecture["clip_seconds"],
        lora=_lora(record),
        moments=MOMENTS if architecture.get("moment_head") else "",
        results=_results(record),
        code="the code that converted it" if record.converted_from else code,
        data=_data(record),
        license=f"`{record.license}`." if record.license else UNKNOWN_LICENCE,
        data_licences=_licences(record),
        settings=SETTINGS.format(settings=settings) if settings else "",
    )
    return ModelCard(f"---\n{data}\n---\n{text}", ignore_metadata_errors=False)


def _lora(record: TrainingRecord) -> str:
    """A line for each encoder that was trained with LoRA."""
    lines = []
    for part in ("audio_encoder", "text_encoder"):
        lora = record.settings.get(part, {}).get("lora")
        if not lora:
            continue
        targets = ", ".join(lora["targets"] or ["the default layers"])
        line = (
            f"The {part.replace('_', ' ')} was trained with LoRA (rank {lora['rank']}, alpha"
            f" {lora['alpha']}, dropout {lora['dropout']:g}, on {targets})"
        )
        lines.append(
            f"{line}, and its adapters are merged into its weights.\n"
            if lora["save"] == "merged"
            else f"{line}. Its adapters are here, and need their base and the package peft.\n"
        )
    return "\n" + "\n".join(lines) if lines else ""


def _digest(card: str) -> str:
    return hashlib.sha256(card.strip().encode()).hexdigest()


def _eval_results(record: TrainingRecord) -> list[EvalResult]:
    """Scores of text to audio, or of moments, in percent, for the header that the hub reads."""
    splits = {data.split: data for data in record.data}
    results = []
    for split, scores in record.scores.items():
        if split not in splits:
            continue
        data = splits[split]
        shown = scores.metrics.get("text_to_audio", {}) | scores.metrics.get("moments", {})
        for name, value in shown.items():
            metric_type = name
            for prefix, kind in METRIC_TYPES.items():
                metric_type = metric_type.replace(prefix, kind)
            # The name says the number of clips: a corpus is called by its layout, and a small one
            # in Clotho's layout is not Clotho.
            result = EvalResult(
                task_type=TASK,
                dataset_type=data.corpus,
                dataset_name=f"{data.corpus} ({data.num_clips:,} clips)",
                dataset_split=split,
                metric_type=metric_type,
                metric_name=f"{name} (%)",
                metric_value=round(100 * value, 2),
            )
            results.append(result)
    return results


def _results(record: TrainingRecord) -> str:
    """Table of all scores in percent."""
    rows = [
        (split, direction.replace("_", " "), scores.metrics[direction])
        for split, scores in record.scores.items()
        for direction in ("text_to_audio", "audio_to_text", "moments")
        if direction in scores.metrics
    ]
    if not rows:
        return "Not evaluated."
    names = list(dict.fromkeys(name for _, _, metrics in rows for name in metrics))
    lines = [f"| split | direction | {' | '.join(names)} |", "| --- " * (2 + len(names)) + "|"]
    for split, direction, metrics in rows:
        values = [f"{100 * metrics[name]:.2f}" if name in metrics else "" for name in names]
        lines.append(f"| {split} | {direction} | {' | '.join(values)} |")
    epoch = record.validation.epoch if record.validation else None
    when = {None: "", 0: ", before training"}.get(epoch, f", after epoch {epoch}")
    return "\n".join([f"In percent{when}:", "", *lines])


def _data(record: TrainingRecord) -> str:
    """Table of the splits, and the commands that built their caches."""
    if not record.data:
        return "Unknown."
    lines = [
        "| split | corpus | clips | captions | hours | fingerprint |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for data in record.data:
        hours = "" if data.hours is None else f"{data.hours:.1f}"
        counts = f"{data.num_clips:,} | {data.num_captions:,} | {hours}"
        lines.append(f"| {data.split} | {data.corpus} | {counts} | `{data.fingerprint[:16]}` |")
    commands = dict.fromkeys(data.command for data in record.data if data.command)
    lines += ["", *(f"Built by `{command}`." for command in commands)]
    lines += ["The corpus is named as its cache names it: by the layout that it was read from."]
    return "\n".join(lines)


def _licences(record: TrainingRecord) -> str:
    """Licences of the training clips, and the models that the training started from."""
    lines = []
    for data in record.data:
        if data.split != "development":  # only these clips made the model
            continue
        if not data.licenses:
            lines += ["", f"Of the training data ({data.corpus}): the cache does not say."]
            continue
        lines += ["", f"Of the training data ({data.corpus}), each clip its own:", ""]
        lines += ["| licence | clips |", "| --- | --- |"]
        for name, count in sorted(data.licenses.items(), key=lambda item: -item[1]):
            lines.append(f"| {name or 'not given'} | {count:,} |")
    text = "\n".join(lines or ["", "Of the training data: unknown."])
    settings = record.settings
    started = [settings.get("audio_encoder", {}).get("checkpoint")]
    if settings.get("text_encoder", {}).get("pretrained"):
        started.append(settings["text_encoder"].get("name"))
    started.append(settings.get("train", {}).get("init_from"))
    if any(started):
        named = ", ".join(f"`{name}`" for name in dict.fromkeys(filter(None, started)))
        text += f"\n\nThe training started from {named}: their licences hold as well."
    if record.converted_from:
        text += (
            f"\n\nConverted from `{record.converted_from}`, without any further training: its"
            " licence holds."
        )
    return text
