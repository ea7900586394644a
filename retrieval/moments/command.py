"""`python evaluate.py --moments`: find and score the moments of a split's queries.

Writes the metrics (moments.json) and the values of every query (moments.csv) to the folder of the
results. The options are those of retrieval.evaluation.options.
"""

import argparse
import sys
from dataclasses import replace

from retrieval.base.errors import UserError
from retrieval.base.extras import needs_extra
from retrieval.base.launch import check_environment
from retrieval.base.progress import silence_transformers
from retrieval.evaluation.options import check_outside_cache
from retrieval.evaluation.outputs import ScoringRecord
from retrieval.moments.files import (
    castella_rounding,
    read_queries,
    rounded,
    write_predictions,
)
from retrieval.moments.result import format_metrics, remarks, score_answers


def evaluate_moments(arguments: argparse.Namespace) -> int:
    """Answer, score and write, as the options say. Returns the exit code."""
    queries = read_queries(arguments.queries) if arguments.queries else None
    check_environment()
    # Below the checks, because these take seconds to import.
    from retrieval.evaluation.score_matrix import Scorer
    from retrieval.moments.evaluation import (
        as_asked,
        check_has_moments,
        match_queries,
        write_moments,
    )
    from retrieval.moments.locator import Locator
    from retrieval.moments.split import answer_split, truths_of

    silence_transformers()
    if arguments.report:
        with needs_extra("tracking"):
            from retrieval.moments.report import write_report
    checkpoint = arguments.checkpoint[0]
    scorer = Scorer(
        arguments.checkpoint,
        arguments.cache,
        arguments.text_encoder,
        arguments.mixed_precision,
    )
    cache, accelerator = scorer.cache.path, scorer.accelerator
    check_outside_cache(arguments, cache)
    split = scorer.cache.split(arguments.split, need_captions=False)
    if arguments.is_default_output and scorer.is_other_cache:
        raise UserError(
            f"{arguments.output} is for results on the cache of the run, and {cache} is another"
            " one: add --output DIR for this result"
        )
    asked = match_queries(queries, split) if queries else None
    if asked is None:
        check_has_moments(split)
    method = None if arguments.method == "auto" else arguments.method
    model = scorer.take(checkpoint)
    locator = Locator(model, method, accelerator.autocast, alternatives=True)
    method = locator.method
    accelerator.print(
        f"moments of {checkpoint} in {split.name} of {cache}, method {method},"
        f" {accelerator.device}, mixed precision {accelerator.mixed_precision}"
    )
    answers = answer_split(locator, split, asked)
    if not accelerator.is_main_process:
        return 0

    answers = as_asked(answers, queries) if queries else answers
    round_moments = castella_rounding if arguments.castella_rounding else rounded
    answers = [replace(one, moments=round_moments(one.moments)) for one in answers]
    if arguments.predictions:
        write_predictions(arguments.predictions, answers)
        print(f"written: {arguments.predictions}")
    if arguments.submission:
        file = arguments.submission[1]
        write_predictions(file, answers, with_scores=not arguments.without_scores)
        print(f"written: {file}")
    if queries:
        return 0
    result = score_answers(answers, truths_of(split))
    print(format_metrics(result))
    for remark in remarks(result):
        print(f"note: {remark}", file=sys.stderr)
    record = ScoringRecord(
        checkpoint=str(checkpoint),
        cache=str(cache),
        fingerprint=split.fingerprint(with_moments=True),
        sample_rate=split.sample_rate,
        mixed_precision=accelerator.mixed_precision,
    )
    about = {"method": method, "castella_rounding": arguments.castella_rounding}
    if method == "head":
        about["threshold"] = float(model.moment_head.threshold)
    write_moments(arguments.output, result, split, record, about)
    if arguments.report:
        write_report(
            result,
            split,
            locator,
            arguments.report,
            record,
            about,
            arguments.report_queries,
        )
    return 0
