"""README.md of an ONNX folder; its Python runs in that folder."""

from typing import Any

from retrieval.models.dual_encoder import POOLINGS

README = """# Text-to-audio retrieval model as ONNX

Audio encoder `{audio_encoder}`, text encoder `{text_encoder}`, pooling `{pooling}`, {dim}
dimensions.
`export.json` has all that is needed to call the graphs.

| graph | inputs | outputs | MB |
| --- | --- | --- | --- |
{rows}

Audio is mono at {sample_rate} Hz, float32 in [-1, 1]. The model hears the first {clip_seconds:g} s
of a clip.
Captions go through the tokenizer: {captions}.
Scores are {similarity}: {score}.
Batches, clips, captions and frame sequences may be of any size. {advice}

```python
import json
import string
import numpy as np
import onnxruntime
from transformers import AutoTokenizer

export = json.load(open("export.json"))
audio, text, score = (
    onnxruntime.InferenceSession(name) for name in ("audio.onnx", "text.onnx", "score.onnx")
)
tokenizer = AutoTokenizer.from_pretrained("tokenizer")

rate = export["sample_rate"]
clips = [np.zeros(3 * rate, np.float32), np.zeros(rate, np.float32)]  # your recordings
lengths = np.array([len(clip) for clip in clips])
waveform = np.zeros((len(clips), lengths.max()), np.float32)
for row, clip in enumerate(clips):
    waveform[row, : len(clip)] = clip
frames, mask = audio.run(None, {{"waveform": waveform, "lengths": lengths}})

captions = ["A dog barks twice.", "Rain falls."]
{prepared}
limits = {{"padding": True, "truncation": True, "max_length": export["max_tokens"]}}
tokens = tokenizer(words, **limits, padding_side="right", return_tensors="np")
names = "input_ids", "attention_mask"
texts = text.run(None, {{name: tokens[name].astype(np.int64) for name in names}})[0]

scores = score.run(None, {{"text": texts, "frames": frames, "mask": mask}})[0]  # (captions, clips)
print(scores)
```

Largest difference to PyTorch, measured with ONNX Runtime {onnxruntime} when these files were
written ({tolerance:g} is allowed):

| | difference |
| --- | --- |
{differences}
"""
AS_WRITTEN, NORMALISED = "as written", "lower case, ASCII punctuation deleted"
PREPARED = {
    AS_WRITTEN: "words = captions",
    NORMALISED: (
        'no_punctuation = str.maketrans("", "", string.punctuation)\n'
        "words = [caption.lower().translate(no_punctuation) for caption in captions]"
    ),
}
SIMILARITIES = {"cosine": "cosine", "dot": "dot product"}
VECTOR_SCORE = {
    "cosine": "divide each vector of `frames[:, 0]` and `text` by its length, then multiply them",
    "dot": "multiply the vectors of `frames[:, 0]` and `text` as they are",
}
FRAMES_SCORE = "each caption weighs the frames of each clip, which only `score.onnx` computes"
FRAMES_ADVICE = (
    "The score of TAP holds as many numbers as captions x clips x dimensions: keep `frames` and"
    " `mask` of each clip, and score large collections in blocks."
)


def onnx_readme(record: dict[str, Any]) -> str:
    """Return the text of README.md; `record` is the content of export.json."""
    graphs = record["graphs"].values()
    rows = [
        f"| `{graph['file']}` | {_shapes(graph['inputs'])} | {_shapes(graph['outputs'])} |"
        f" {graph['bytes'] / 1e6:.1f} |"
        for graph in graphs
    ]
    keeps_frames = POOLINGS[record["pooling"]].keeps_frames
    names = "audio_encoder text_encoder pooling dim sample_rate clip_seconds captions tolerance"
    return README.format(
        **{name: record[name] for name in names.split()},
        rows="\n".join(rows),
        similarity=f"{SIMILARITIES[record['similarity']]}s",
        score=FRAMES_SCORE if keeps_frames else VECTOR_SCORE[record["similarity"]],
        advice=FRAMES_ADVICE if keeps_frames else "",
        prepared=PREPARED[record["captions"]],
        onnxruntime=record["versions"]["onnxruntime"],
        differences="\n".join(
            f"| {name} | {found:.2g} |" for name, found in record["differences_to_pytorch"].items()
        ),
    )


def _shapes(values: dict[str, Any]) -> str:
    return ", ".join(
        f"`{name}` ({', '.join(map(str, value['shape']))})" for name, value in values.items()
    )
