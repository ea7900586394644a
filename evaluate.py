"""Score a trained model, or the mean of several, on a split of an Arrow cache.

Writes the metrics of both directions (metrics.json) and the ranks of all queries (ranks.csv).

    python evaluate.py --checkpoint runs/tap/best [--split evaluation] [--cache DIR] [--output DIR]

    # the mean of the score matrices of two models
    python evaluate.py --checkpoint runs/a/best --checkpoint runs/b/best --output DIR
    # a weighted mean, with weights given or found on the validation split
    python evaluate.py --checkpoint A --weight 0.7 --checkpoint B --weight 0.3 --output DIR
    python evaluate.py --checkpoint A --checkpoint B --fit-weights validation --output DIR
    # several right clips for a query (DCASE 2025)
    python evaluate.py --checkpoint runs/tap/best --relevance FILE
    # queries in other styles: tags, questions, ... (CSV file_name,caption,style)
    python evaluate.py --checkpoint runs/tap/best --captions FILE
    # scores.npy as well, for distillation
    python evaluate.py --checkpoint runs/tap/best --split development --save-scores
    python evaluate.py --checkpoint runs/tap/best --submission dcase2025 FILE [--queries FILE]
    # a page to look inside the run
    python evaluate.py --checkpoint runs/tap/best --report DIR [--against runs/mean/best]
    # when in the recordings: moments.json, moments.csv (docs/moments.md)
    python evaluate.py --moments --checkpoint runs/tap/best [--method head] [--report DIR]

--relevance, --queries and --captions bring their own texts: then the clips need no captions.
Cache, batch sizes and precision default to those of the run (RUN/config.yaml); with several
checkpoints, of the first. `import evaluate` is the Hugging Face package and never this script: see
retrieval/__init__.py.
"""

import sys

from retrieval.base.command import run_main
from retrieval.base.errors import UserError
from retrieval.base.extras import needs_extra
from retrieval.base.launch import check_environment
from retrieval.base.progress import set_quiet, silence_transformers
from retrieval.evaluation.options import check_outside_cache, parse_arguments
from retrieval.evaluation.outputs import (
    SCORES,
    SCORES_RECORD,
    ScoringRecord,
    name_mean,
    write_results,
)
from retrieval.evaluation.relevance import MAP_AT, read_relevance, relevant_columns
from retrieval.evaluation.score_files import write_scores
from retrieval.evaluation.styles import StyledQueries, read_styles, take_last_rows
from retrieval.evaluation.submission import check_file_names, read_queries, write_submission
from retrieval.moments.command import evaluate_moments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv, __doc__)
    set_quiet(arguments.quiet)
    if arguments.moments:
        return evaluate_moments(arguments)
    relevance = read_relevance(arguments.relevance) if arguments.relevance else None
    queries = read_queries(arguments.queries) if arguments.queries else None
    styles = read_styles(arguments.captions) if arguments.captions else {}
    check_environment()
    # Below the checks, because these take seconds to import.
    import torch

    from retrieval.evaluation.ensemble import fitted_weights
    from retrieval.evaluation.result import (
        EvaluationResult,
        few_clips_warning,
        format_styles,
        format_table,
    )
    from retrieval.evaluation.score_matrix import Scorer, captions_of, join_columns

    silence_transformers()
    if arguments.report:
        with needs_extra("tracking"):
            from retrieval.evaluation.report import Against, write_report
    sizes = {name: getattr(arguments, name) for name in ("audio_batch_size", "text_batch_size")}
    against = None
    if arguments.against:
        against = Against(arguments.against, arguments.text_encoder, sizes)
    scorer = Scorer(
        arguments.checkpoint,
        arguments.cache,
        arguments.text_encoder,
        arguments.mixed_precision,
        **sizes,
    )
    cache, accelerator = scorer.cache.path, scorer.accelerator
    check_outside_cache(arguments, cache)
    brings_texts = relevance or queries or styles
    split = scorer.cache.split(arguments.split, need_captions=not brings_texts)
    if arguments.save_scores and not any(split.captions):
        raise UserError(
            f"--save-scores keeps the scores of the split's own captions, and split {split.name!r}"
            " has none: leave it out"
        )
    if arguments.submission:
        check_file_names(split.file_names)
    if arguments.is_default_output and scorer.is_other_cache:
        raise UserError(
            f"{arguments.output} is for results on the cache of the run, and {cache} is another"
            " one: add --output DIR for this result"
        )
    styled = StyledQueries(styles, split)
    relevant, map_at = None, (10,)
    if relevance:
        relevant, map_at = relevant_columns(relevance, split), MAP_AT
        captions, clips = list(relevance), [columns[0] for columns in relevant]
    elif queries:
        captions, clips = queries, None
    elif styles and not any(split.captions):
        captions, relevant = styled.captions, styled.relevant
        clips = [columns[0] for columns in relevant]
    else:
        captions, clips = captions_of(split)
    if against:
        against.check(scorer, split, captions, relevant)
    fitted_on = None
    if arguments.weight:
        scorer.weights = [weight / sum(arguments.weight) for weight in arguments.weight]
    elif arguments.fit_weights:
        scorer.weights, fitted_on = fitted_weights(scorer, arguments.fit_weights, split)
    is_weighted = bool(arguments.weight or arguments.fit_weights)
    names = [str(path) for path in arguments.checkpoint]
    record = ScoringRecord(
        checkpoint=names[0] if len(names) == 1 else names,
        cache=str(cache),
        fingerprint=split.fingerprint(),
        sample_rate=split.sample_rate,
        mixed_precision=accelerator.mixed_precision,
        relevance=str(arguments.relevance) if relevance else None,
        captions=str(arguments.captions) if styles else None,
        weights=scorer.weights if is_weighted else None,
        fitted_on=fitted_on,
    )

    accelerator.print(
        f"scoring {name_mean(names, record.weights)} on {split.name} of {cache},"
        f" {accelerator.device}, mixed precision {accelerator.mixed_precision}"
    )
    more = [] if captions is styled.captions else styled.captions
    styled_scores = torch.empty(len(more), len(split))
    columns = take_last_rows(scorer.columns([*captions, *more], split), styled_scores)
    if arguments.save_scores and accelerator.is_main_process:
        # Column by column into a memory map: the matrix need not fit into memory.
        scores = torch.from_numpy(write_scores(arguments.output, columns, split, record).scores)
    else:
        scores = join_columns(columns, captions, split)
    if against:
        against.score(scorer, captions, split)
    if not accelerator.is_main_process:
        return 0

    if arguments.submission:
        write_submission(*arguments.submission, captions, split.file_names, scores.numpy())
        print(f"written: {arguments.submission[1]}")
    if queries:
        return 0
    result = EvaluationResult(
        split.name,
        scores,
        captions,
        clips,
        split.clip_ids,
        split.file_names,
        relevant,
        map_at,
    )
    style_results = styled.results(styled_scores if more else scores)
    print(format_table(result))
    if styles:
        print(f"\n{format_styles(result, style_results)}")
    if warning := few_clips_warning(len(split)):
        print(f"warning: {warning}", file=sys.stderr)
    write_results(arguments.output, result, record, style_results)
    if arguments.save_scores:
        print(f"written: {arguments.output / SCORES}, {arguments.output / SCORES_RECORD}")
    if arguments.report:
        other = against.other_run(result) if against else None
        num_shown = arguments.report_queries
        write_report(
            result, split, scorer, arguments.report, record, num_shown, other, style_results
        )
    return 0


if __name__ == "__main__":
    run_main(main)
