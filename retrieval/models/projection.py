"""Projections from an encoder's output into the shared space, by name.

A projection is one class here and one line in PROJECTIONS. The audio and the text side of a model
have the same kind. D = dim, the size of the shared space; F = size of the encoder's output.
"""

from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from retrieval.base.errors import UserError


class MlpProjection(nn.Module):
    """Two linear maps with an activation between them, as in CLAP (arXiv 2211.06687).

    Args:
        feature_dim: F.
        dim: D.
        activation: A name of transformers.activations.ACT2FN, such as "relu".

    Raises:
        UserError: The activation is unknown.
    """

    def __init__(self, feature_dim: int, dim: int, activation: str = "relu"):
        super().__init__()
        if activation not in ACT2FN:
            raise UserError(
                f"projection.activation={activation!r} is unknown; take relu, gelu or another of"
                " transformers.activations.ACT2FN"
            )
        self.linear1 = nn.Linear(feature_dim, dim)
        self.activation = ACT2FN[activation]
        self.linear2 = nn.Linear(dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Project features (..., F) to (..., D)."""
        return self.linear2(self.activation(self.linear1(features)))


class NormLinearProjection(nn.Module):
    """Layer norm, then a linear map without bias, as in PE-Audio (arXiv 2512.19687).

    Args:
        feature_dim: F.
        dim: D.
        eps: Of the norm.
    """

    def __init__(self, feature_dim: int, dim: int, eps: float = 1e-6):
        super().__init__()
        self.layer_norm = nn.LayerNorm(feature_dim, eps=eps)
        self.proj = nn.Linear(feature_dim, dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Project features (..., F) to (..., D)."""
        return self.proj(self.layer_norm(features))


PROJECTIONS: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    "mlp": MlpProjection,
    "norm_linear": NormLinearProjection,
}


def make_projection(feature_dim: int, dim: int, name: str, **settings: Any) -> nn.Module:
    """Return a projection of PROJECTIONS with random weights.

    Args:
        feature_dim: F.
        dim: D.
        name: A key of PROJECTIONS.
        **settings: Other arguments of its constructor.

    Raises:
        UserError: The name is unknown.
    """
    if name not in PROJECTIONS:
        raise UserError(f"projection {name!r} is unknown; there is: {', '.join(PROJECTIONS)}")
    return PROJECTIONS[name](feature_dim, dim, **settings)
