"""Score a trained model on a split of an Arrow cache: both directions, metrics.json and ranks.csv.

    python evaluate.py --checkpoint runs/tap/best [--split evaluation] [--cache DIR] [--output DIR]

Cache, batch sizes and precision are those of the run (RUN/config.yaml) unless given here.
`import evaluate` is the Hugging Face package and never this script: see retrieval/__init__.py.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.config import Config
from retrieval.errors import OneLineParser, UserError, run_main
from retrieval.files import check_writable

if TYPE_CHECKING:
    from retrieval.evaluation import EvaluationResult


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    checkpoint: Path = arguments.checkpoint
    if not checkpoint.is_dir():
        raise UserError(
            f"checkpoint {checkpoint} is no folder; train.py writes RUN/best and RUN/last, "
            "and a model of the Hugging Face hub is fetched by: hf download NAME --local-dir DIR"
        )
    output: Path = arguments.output or checkpoint / "results" / arguments.split
    check_writable(output)
    # Below the checks, because these take seconds to import.
    import transformers
    from accelerate import Accelerator

    from retrieval.checkpoint import read_config
    from retrieval.data import open_cache, usable_workers
    from retrieval.evaluation import evaluate_split
    from retrieval.models import DualEncoder
    from retrieval.training import choose_precision

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    run = checkpoint.resolve().parent
    config = read_config(run) if (run / "config.yaml").is_file() else None
    model = DualEncoder.from_pretrained(checkpoint)
    if config is None and arguments.cache is None:
        raise UserError(f"{run} has no config.yaml that says which cache to score: add --cache DIR")
    cache = open_cache(arguments.cache or config.data.cache)
    if cache.sample_rate != model.sample_rate:
        raise UserError(
            f"cache {cache.path} is sampled at {cache.sample_rate} Hz, checkpoint {checkpoint} needs {model.sample_rate} Hz; "
            f"give another --cache, or build one with --sample-rate {model.sample_rate}"
        )
    split = cache.split(arguments.split)

    config = config or Config()
    accelerator = Accelerator(mixed_precision=choose_precision(arguments.mixed_precision or config.train.mixed_precision))
    precision = accelerator.mixed_precision
    accelerator.print(f"scoring {checkpoint} on {split.name} of {cache.path}, {accelerator.device}, mixed precision {precision}")
    result = evaluate_split(
        model.to(accelerator.device),
        split,
        audio_batch_size=arguments.audio_batch_size or config.evaluation.audio_batch_size,
        text_batch_size=arguments.text_batch_size or config.evaluation.text_batch_size,
        num_workers=usable_workers(config.data.num_workers),
        autocast=accelerator.autocast,
    )
    if accelerator.is_main_process:
        settings = {"checkpoint": str(checkpoint), "cache": str(cache.path), "mixed_precision": precision}
        report(result, output, settings)
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model folder, for example runs/tap/best")
    parser.add_argument("--split", default="evaluation", help="default: evaluation")
    parser.add_argument("--cache", type=Path, help="Arrow cache; default: data.cache in the config.yaml beside the model folder")
    parser.add_argument("--output", type=Path, help="folder of metrics.json and ranks.csv; default: CHECKPOINT/results/SPLIT")
    parser.add_argument("--audio-batch-size", type=int, help="clips encoded at once")
    parser.add_argument("--text-batch-size", type=int, help="captions encoded at once, and rows of a score block")
    parser.add_argument("--mixed-precision", choices=["auto", "no", "bf16", "fp16"], help="of the encoders; scores are float32")
    arguments = parser.parse_args(argv)
    for name in ("audio_batch_size", "text_batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, found {value}")
    return arguments


def report(result: "EvaluationResult", output: Path, settings: dict[str, Any]) -> None:
    """The table in the terminal, metrics.json and ranks.csv in `output`."""
    from retrieval.checkpoint import environment
    from retrieval.evaluation import few_clips_warning, format_table, write_metrics, write_ranks
    from retrieval.metrics.text_audio_retrieval.text_audio_retrieval import TextAudioRetrieval

    print(format_table(result))
    num_clips = len(result.clip_ids)
    if warning := few_clips_warning(num_clips):
        print(f"warning: {warning}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        metric = TextAudioRetrieval(keep_in_memory=True, cache_dir=folder)
        metrics = metric.compute(predictions=result.scores.numpy(), references=result.relevant)
    settings |= {"split": result.split, "num_clips": num_clips, "num_captions": len(result.captions), "chance": result.chance}
    write_metrics(output / "metrics.json", metrics | settings, environment())
    write_ranks(output / "ranks.csv", result)
    print(f"written: {output / 'metrics.json'}, {output / 'ranks.csv'}")


if __name__ == "__main__":
    run_main(main)
