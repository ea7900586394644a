"""The model card, README.md of a model folder, and about.json beside it: what is known of how the
model was made.

about.json is what train.py writes down and the card is made from: `data`, `settings`, `git_commit`,
`validation`, `evaluation`, `license`; and a digest of the card, by which one that was edited by
hand is known. Whatever is not in it the card calls unknown.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from retrieval.base.errors import UserError
from retrieval.base.files import atomic_writer
from retrieval.base.json_files import read_json

ABOUT = "about.json"
CARD = "README.md"
DIGEST = "card_sha256"
TASK = "text-to-audio-retrieval"
METRIC_TYPES = {"mAP@": "map_at_", "R@": "recall_at_"}

TEMPLATE = """
# Text-to-audio retrieval model

Finds the recording that a sentence describes: audio encoder `{audio_encoder}`, text encoder `{text_encoder}`, pooling `{pooling}`.
Hears mono audio at {sample_rate} Hz, of a clip the first {clip_seconds:g} s.

## Results

{results}

## Use

With the code that trained it{commit}:

```python
import torch
from retrieval.models.dual_encoder import DualEncoder

model = DualEncoder.from_pretrained("DIRECTORY_OR_HUB_ID")
waveform, lengths = torch.zeros(1, 5 * model.sample_rate), torch.tensor([5 * model.sample_rate])
with torch.inference_mode():
    frames, mask = model.encode_audio(waveform, lengths)
    scores = model.score(model.encode_text(["A dog barks twice.", "Rain falls."]), frames, mask)  # rows are texts
```

Search a folder of recordings with it:

    python -m retrieval.search index FOLDER --checkpoint DIRECTORY --index INDEX
    python -m retrieval.search query "a dog barks twice" --index INDEX

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
UNKNOWN_LICENCE = (
    "**unknown**, whoever trained it has not set one; ask before you pass it on. Its maker sets one"
    " by `python -m retrieval.sharing card --checkpoint DIRECTORY --license cc-by-4.0`."
)


def read_about(folder: Path) -> dict[str, Any]:
    """Content of about.json; empty where there is none, as in models of earlier versions. Raises
    UserError for one that cannot be read.
    """
    try:
        about = read_json(folder / ABOUT)
        kinds = {"data": list, "settings": dict, "validation": dict, "evaluation": dict}
        if not isinstance(about, dict) or not all(
            isinstance(about.get(name, kind()), kind) for name, kind in kinds.items()
        ):
            raise ValueError(f"expected {', '.join(kinds)}")
        needed = {"split", "corpus", "num_clips", "num_captions", "fingerprint"}
        if not all(
            isinstance(data, dict) and needed <= data.keys() for data in about.get("data", [])
        ):
            raise ValueError(f"its data lack {', '.join(sorted(needed))}")
        return about
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / ABOUT} cannot be read ({error}); copy it again, or delete it: the model"
            " loads without it"
        ) from None


def about_json(architecture: dict[str, Any], about: dict[str, Any]) -> str:
    """Text of about.json, with a digest of the card that is made from it: `is_as_written`."""
    return (
        json.dumps(about | {DIGEST: _digest(str(model_card(architecture, about)))}, indent=2) + "\n"
    )


def is_as_written(folder: Path, about: dict[str, Any]) -> bool:
    """Whether the card is what was written with `about`, also by another version; one that is
    absent is.

    Of models without a digest in about.json, it is one by an earlier version, which is known by its
    title.
    """
    card = folder / CARD
    if not card.exists():
        return True
    text = card.read_text(encoding="utf-8")
    return _digest(text) == about[DIGEST] if DIGEST in about else TITLE in text


def _digest(card: str) -> str:
    return hashlib.sha256(card.strip().encode()).hexdigest()


def model_card(architecture: dict[str, Any], about: dict[str, Any]) -> ModelCard:
    """architecture: config.json of the model."""
    names = {
        "audio_encoder": architecture["audio_encoder"]["name"],
        "text_encoder": architecture["text_encoder"]["model_type"],
        "pooling": architecture["pooling"]["name"],
    }
    results = _eval_results(about)
    data = ModelCardData(
        license=about.get("license") or "unknown",
        tags=["audio", "model_hub_mixin", "pytorch_model_hub_mixin", TASK],
        model_name="-".join([*names.values(), TASK]) if results else None,
        eval_results=results or None,
    )
    text = TEMPLATE.format(
        **names,
        sample_rate=architecture["sample_rate"],
        clip_seconds=architecture["clip_seconds"],
        results=_results(about),
        commit=f" (commit `{about['git_commit']}`)" if about.get("git_commit") else "",
        data=_data(about),
        license=f"`{about['license']}`." if about.get("license") else UNKNOWN_LICENCE,
        data_licences=_licences(about),
        settings=_settings(about),
    )
    return ModelCard(f"---\n{data}\n---\n{text}", ignore_metadata_errors=False)


def _scored(about: dict[str, Any]) -> list[tuple[str, str, dict[str, float]]]:
    """Split, direction in words and metrics (fractions) of all that was measured."""
    rows = []
    for split in ("validation", "evaluation"):
        metrics = about.get(split, {}).get("metrics", {})
        rows += [
            (split, direction.replace("_", " "), metrics[direction])
            for direction in ("text_to_audio", "audio_to_text")
            if direction in metrics
        ]
    return rows


def _results(about: dict[str, Any]) -> str:
    rows = _scored(about)
    if not rows:
        return "Not evaluated."
    names = list(dict.fromkeys(name for _, _, metrics in rows for name in metrics))
    lines = [f"| split | direction | {' | '.join(names)} |", "| --- " * (2 + len(names)) + "|"]
    for split, direction, metrics in rows:
        values = [f"{100 * metrics[name]:.2f}" if name in metrics else "" for name in names]
        lines.append(f"| {split} | {direction} | {' | '.join(values)} |")
    epoch = about.get("validation", {}).get("epoch")
    return "\n".join(["In percent" + (f", after epoch {epoch}:" if epoch else ":"), "", *lines])


def _eval_results(about: dict[str, Any]) -> list[EvalResult]:
    """Text to audio, in percent, for the header that the hub reads."""
    corpora = {data["split"]: data for data in about.get("data", [])}
    results = []
    for split, direction, metrics in _scored(about):
        if direction == "text to audio" and split in corpora:
            corpus = corpora[split]["corpus"]
            # With the number of clips: a corpus is called by its layout, and a small one in
            # Clotho's is not Clotho.
            dataset = {
                "dataset_type": corpus,
                "dataset_name": f"{corpus} ({corpora[split]['num_clips']:,} clips)",
                "dataset_split": split,
            }
            for name, value in metrics.items():
                scored = {
                    "metric_type": _metric_type(name),
                    "metric_name": f"{name} (%)",
                    "metric_value": round(100 * value, 2),
                }
                results.append(EvalResult(task_type=TASK, **dataset, **scored))
    return results


def _metric_type(name: str) -> str:
    return next(
        (
            kind + name.removeprefix(prefix)
            for prefix, kind in METRIC_TYPES.items()
            if name.startswith(prefix)
        ),
        name,
    )


def _data(about: dict[str, Any]) -> str:
    if not about.get("data"):
        return "Unknown."
    lines = [
        "| split | corpus | clips | captions | hours | fingerprint |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for data in about["data"]:
        hours = "" if data.get("hours") is None else f"{data['hours']:.1f}"
        counts = f"{data['num_clips']:,} | {data['num_captions']:,} | {hours}"
        lines.append(
            f"| {data['split']} | {data['corpus']} | {counts} | `{data['fingerprint'][:16]}` |"
        )
    commands = dict.fromkeys(data["command"] for data in about["data"] if data.get("command"))
    built = [f"Built by `{command}`." for command in commands]
    return "\n".join(
        [
            *lines,
            "",
            *built,
            "The corpus is named as its cache names it: by the layout that it was read from.",
        ]
    )


def _licences(about: dict[str, Any]) -> str:
    """Of the training clips; those of other splits did not make the model."""
    lines = []
    for data in about.get("data", []):
        if data["split"] != "development":
            continue
        if not data.get("licenses"):
            lines += ["", f"Of the training data ({data['corpus']}): the cache does not say."]
            continue
        lines += [
            "",
            f"Of the training data ({data['corpus']}), each clip its own:",
            "",
            "| licence | clips |",
            "| --- | --- |",
        ]
        lines += [
            f"| {name or 'not given'} | {count:,} |"
            for name, count in sorted(data["licenses"].items(), key=lambda item: -item[1])
        ]
    text = "\n".join(lines or ["", "Of the training data: unknown."])
    started = [
        name
        for part in ("audio_encoder.checkpoint", "text_encoder.name", "train.init_from")
        if (name := _setting(about, part))
    ]
    if started:
        text += (
            f"\n\nThe training started from {', '.join(f'`{name}`' for name in started)}: their"
            " licences hold as well."
        )
    return text


def _setting(about: dict[str, Any], name: str) -> str | None:
    section, key = name.split(".")
    settings = about.get("settings", {}).get(section, {})
    return (
        None
        if name == "text_encoder.name" and not settings.get("pretrained")
        else settings.get(key)
    )


def _settings(about: dict[str, Any]) -> str:
    settings = about.get("settings")
    return SETTINGS.format(settings=yaml.safe_dump(settings, sort_keys=False)) if settings else ""


def write_card(folder: Path, architecture: dict[str, Any], about: dict[str, Any]) -> None:
    """about.json and model card of a model folder anew; the model itself stays as it is. Raises
    UserError.
    """
    with atomic_writer(folder / ABOUT) as file:
        file.write(about_json(architecture, about))
    with atomic_writer(folder / CARD) as file:
        file.write(str(model_card(architecture, about)))
