"""Scores of a whole split, data loading, an index and its queries, on the device."""

import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.steps import Place


def validation(place: Place) -> Iterator[dict[str, Any]]:
    """Time similarity_matrix on noise at the sizes of tap.yaml, in bf16 and float32."""
    import torch

    from benchmarks.full_size import CAPTIONS_A_CLIP
    from benchmarks.gpu.training import seconds_of
    from benchmarks.training_step import make_captions, make_clips, make_model
    from benchmarks.validation_pass import NoiseSplit, plain_matrix
    from retrieval.base.launch import make_accelerator
    from retrieval.evaluation.score_matrix import similarity_matrix

    model, config = make_model(place.rehearse)
    model.eval().to(place.device)
    num_clips = 4 if place.rehearse else 128
    split = NoiseSplit(make_clips(num_clips, model.sample_rate))
    captions = make_captions(num_clips * CAPTIONS_A_CLIP)
    sizes = {
        "audio_batch_size": config.evaluation.audio_batch_size,
        "text_batch_size": config.evaluation.text_batch_size,
    }
    accelerator = make_accelerator("bf16", cpu=not place.is_gpu, several=False)

    def ours(precision: str) -> torch.Tensor:
        more = {"autocast": accelerator.autocast} if precision == "bf16" else {}
        return similarity_matrix(model, captions, split, **sizes, **more)

    expected = ours("float32").float().cpu()
    for precision in ("bf16", "float32"):
        seconds = statistics.median(seconds_of(place, lambda: ours(precision), 1, 3))
        difference = (ours(precision).float().cpu() - expected).abs().max().item()
        yield {
            "way": "ours",
            "precision": precision,
            "clips": num_clips,
            "captions": len(captions),
            "s": seconds,
            "s for 1,045 clips (computed, scores grow faster)": 1045 / num_clips * seconds,
            "difference to float32": difference,
        }
    few = split.waveforms[: max(2, num_clips // 8)]
    part, own = NoiseSplit(few), captions[: len(few) * CAPTIONS_A_CLIP]
    begin = time.perf_counter()
    with accelerator.autocast():
        plain_matrix(model, own, part).cpu()  # waits for the GPU
    plain = time.perf_counter() - begin
    yield {
        "way": "plain",
        "precision": "bf16",
        "clips": len(few),
        "captions": len(own),
        "s": plain,
        "s for 1,045 clips (computed, scores grow faster)": 1045 / len(few) * plain,
        "difference to float32": None,
    }


def scores(place: Place) -> Iterator[dict[str, Any]]:
    """Time TAP's score matrix at Clotho's size on random frames: 5,225 texts, 1,045 clips."""
    import torch

    from benchmarks.gpu.training import seconds_of
    from benchmarks.tap_scoring import (
        FULL,
        NUM_CLIPS_OF_SPLIT,
        QUICK,
        make_inputs,
        unfolded_score,
    )

    sizes = QUICK if place.rehearse else FULL._replace(num_clips=NUM_CLIPS_OF_SPLIT)
    few = QUICK.num_clips if place.rehearse else FULL.num_clips
    module, text, frames, mask = make_inputs(sizes)
    module.to(place.device)
    text, frames, mask = (values.to(place.device) for values in (text, frames, mask))
    with torch.no_grad():
        plain = unfolded_score(module, text, frames[:few], mask[:few])
        plain_seconds = statistics.median(
            seconds_of(place, lambda: unfolded_score(module, text, frames[:few], mask[:few]), 1, 3)
        )
        for precision in ("float32", "bf16"):
            with torch.autocast(place.device, dtype=torch.bfloat16, enabled=precision == "bf16"):
                found = module.score(text, frames, mask)
                seconds = statistics.median(
                    seconds_of(place, lambda: module.score(text, frames, mask), 1, 3)
                )
            whole = plain_seconds * len(frames) / few
            difference = (found[:, :few].float() - plain).abs().max().item()
            yield {
                "precision": precision,
                "texts": len(text),
                "clips": len(frames),
                "s": seconds,
                "plain s (from a part, computed)": whole,
                "ratio": whole / seconds,
                "difference to plain": difference,
            }
            most = 1e-5 if precision == "float32" else 1e-2
            assert difference <= most, f"scores in {precision} differ by {difference:.1e}"


def loading(place: Place) -> Iterator[dict[str, Any]]:
    """Train from a cache of noise as train.py does; measure the time that a step waits for data."""
    import torch

    from benchmarks.data_loading import FULL, QUICK, SAMPLE_RATE
    from benchmarks.full_size import run_script, write_corpus
    from benchmarks.gpu.training import start
    from benchmarks.training_step import make_model
    from retrieval.data import EpochBatches, PairDataset, make_loader, open_cache
    from retrieval.training.loop import train_step

    sizes = QUICK if place.rehearse else FULL
    corpus = place.folder / "corpus"
    write_corpus(corpus, {"development": sizes.num_clips}, sizes.seconds, sizes.num_captions)
    rate = str(SAMPLE_RATE)
    run_script(
        "build_clotho.py", "--root", corpus, "--splits", "development", "--sample-rate", rate
    )
    run = start(place, *make_model(place.rehearse))
    pairs = PairDataset(
        open_cache(corpus / "cache", SAMPLE_RATE).split("development"), 30 * SAMPLE_RATE, seed=0
    )
    for batch_size in (4,) if place.rehearse else (16, 64):
        batches = EpochBatches(len(pairs), batch_size, seed=0)
        num_warm = 2 if place.rehearse else min(12, len(batches) // 2)
        num_workers = 0 if place.rehearse else 4
        loader = make_loader(pairs, batches, num_workers)
        batches.start(0)
        waits, steps, stream = [], [], iter(loader)
        for _ in range(min(len(batches), 6 if place.rehearse else num_warm + 40)):
            begin = time.perf_counter()
            batch = next(stream)
            got = time.perf_counter()
            train_step(run, batch)  # it copies the loss to the host: the GPU has finished
            waits.append(got - begin)
            steps.append(time.perf_counter() - got)
        waits, steps = waits[num_warm:], steps[num_warm:]
        yield {
            "batch": batch_size,
            "loader processes": loader.num_workers,
            "s a step": statistics.median(steps),
            "ms waited, median": 1000 * statistics.median(waits),
            "ms waited, most": 1000 * max(waits),
            "of the time waited": sum(waits) / (sum(waits) + sum(steps)),
            "steps": len(steps),
        }
        del stream, loader
    if place.is_gpu:
        torch.cuda.synchronize()


def search(place: Place) -> Iterator[dict[str, Any]]:
    """Index noise with frames by the model of tap.yaml, and ask for sentences."""
    import torch

    from benchmarks.gpu.training import seconds_of
    from benchmarks.search_profile import write_recordings
    from benchmarks.training_step import make_captions, make_model
    from retrieval.search import AudioIndex

    model, _ = make_model(place.rehearse)
    model.save_pretrained(place.folder / "model")
    del model
    minutes = 1 if place.rehearse else 10
    write_recordings(place.folder / "recordings", minutes)
    begin = time.perf_counter()
    AudioIndex.build(place.folder / "recordings", place.folder / "model", place.folder / "index")
    built = time.perf_counter() - begin
    yield {"what": f"index of {minutes} min, with loading the model", "s": built}
    yield {"what": "an hour at this speed (computed)", "s": built * 60 / minutes}
    begin = time.perf_counter()
    index = AudioIndex.open(place.folder / "index")
    yield {"what": "open", "s": time.perf_counter() - begin}
    device = index.model.temperature.device.type
    assert device == place.device, f"the model of the index is on {device}"
    queries = make_captions(20)
    whole = seconds_of(place, lambda: index.search(queries[0]), 0, 1)
    yield {"what": "first query", "s": whole[0]}
    times, texts = [], []
    for query in queries[: 3 if place.rehearse else 20]:
        times += seconds_of(place, lambda: index.search(query), 0, 1)
        with torch.no_grad():
            texts += seconds_of(place, lambda: index.model.encode_text([query]), 0, 1)
    yield {"what": "a query, median", "s": statistics.median(times)}
    yield {"what": "of it the text encoder, median", "s": statistics.median(texts)}
