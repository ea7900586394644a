"""Score matrix, metrics and results of a model. Loaded when its names are first used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "result": ["EvaluationResult", "evaluate_split", "retrieval_metrics"],
        "score_matrix": ["similarity_matrix"],
    },
)
