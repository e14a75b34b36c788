"""Attention over sets of tokens: exact, linear by random features (FAVOR+), and from latents.

Shapes: n_cells sets of n_tokens tokens; heads stand before tokens, (n_cells, n_heads, n_tokens,
head_dim). A set states the logarithm of each token's weight: 0 counts it once, -inf leaves it out,
log w counts it w times. Every kind of attention below reads it alike.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Keeps estimates of small attention weights above zero, as in the authors' library of FAVOR+.
FEATURE_EPS = 1e-4


def orthogonal_gaussian(n_rows: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Rows that are orthogonal in blocks of `dim`, each distributed as N(0, I), float64.

    The rows of a random rotation, each given the length of an independent Gaussian vector
    (Choromanski et al. 2021, section 3: orthogonal random features).

    Parameters
    ----------
    n_rows, dim
        Shape of the result.
    rng
        Source of the draws.
    """
    rotations, triangles = np.linalg.qr(rng.standard_normal((-(-n_rows // dim), dim, dim)))
    # With the signs of the diagonal the rotations are uniformly distributed.
    signs = np.sign(np.diagonal(triangles, axis1=1, axis2=2))
    rows = (rotations * signs[:, None, :]).swapaxes(1, 2).reshape(-1, dim)[:n_rows]
    lengths = np.sqrt(rng.chisquare(dim, n_rows))
    return rows * lengths[:, None]


def positive_features(
    x: Tensor, omega: Tensor, *, query: bool, counted: Tensor | None = None, eps: float
) -> Tensor:
    """Random features whose products estimate exp(⟨q, k⟩/√d) up to a factor a query.

    φ(x) = r^(−1/2)·[exp(ωᵀu − ‖u‖²/2 − c) + ε] with u = x·d^(−1/4). The stabiliser c is the largest
    ωᵀu of the token for queries and of all tokens of the set for keys: it cancels in the attention.
    Choromanski et al. 2021, lemma 1 (positive features), and its library for c and ε.

    Parameters
    ----------
    x
        Queries or keys (..., n_tokens, dim).
    omega
        (n_features, dim).
    query
        Which of both they are.
    counted
        Bool (..., n_tokens): the keys that the stabiliser looks at; all when None.
    eps
        ε, at least 0.

    Returns
    -------
    Tensor
        (..., n_tokens, n_features), positive.
    """
    u = x * x.shape[-1] ** -0.25
    projected = u @ omega.T
    if query:
        largest = projected.detach().amax(-1, keepdim=True)
    else:
        seen = projected.detach()
        if counted is not None:
            seen = seen.masked_fill(~counted[..., None], -torch.inf)
        largest = seen.amax((-1, -2), keepdim=True)
    exponent = projected - 0.5 * u.square().sum(-1, keepdim=True) - largest
    if counted is not None:
        # What is left out could be large enough to overflow, and 0 * inf is no number.
        exponent = exponent.masked_fill(~counted[..., None], -torch.inf)
    return (exponent.exp() + eps) * omega.shape[0] ** -0.5


def favor_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    omega: Tensor,
    log_weight: Tensor | None = None,
    *,
    eps: float = FEATURE_EPS,
) -> Tensor:
    """Attention in time linear in the tokens: φ(q)(φ(k)ᵀv) / (φ(q)Σφ(k)).

    Parameters
    ----------
    q, k, v
        (n_cells, n_heads, n_tokens, head_dim); queries may be of another number.
    omega
        (n_features, head_dim), from `orthogonal_gaussian`.
    log_weight
        (n_cells, n_tokens) of the keys; None counts each once.
    eps
        Added to every feature.

    Returns
    -------
    Tensor
        (n_cells, n_heads, n_queries, head_dim). Tends to `exact_attention` as n_features grows
        and eps falls.
    """
    counted = weight = None
    if log_weight is not None:
        counted = (log_weight > -torch.inf)[:, None].expand(k.shape[:-1])
        weight = log_weight.exp()[:, None, :, None]
    query = positive_features(q, omega, query=True, eps=eps)
    key = positive_features(k, omega, query=False, counted=counted, eps=eps)
    if weight is not None:
        key = key * weight
    norm = query @ key.sum(-2)[..., None]
    return query @ (key.transpose(-1, -2) @ v) / norm


def exact_attention(q: Tensor, k: Tensor, v: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """Softmax attention; the arguments and shapes of `favor_attention`."""
    mask = None if log_weight is None else log_weight[:, None, None, :].to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class RandomFeatures(nn.Module):
    """The random directions ω of one attention layer, redrawn now and then in training.

    They follow from the seed and the number of training passes so far, which is all that is saved:
    averaged or rounded directions would no longer be Gaussian.

    Parameters
    ----------
    n_features, dim
        Number of directions and their width.
    seed
        Seed of all of them.
    redraw_every
        Training passes between two draws.
    """

    omega: Tensor

    def __init__(self, n_features: int, dim: int, *, seed: int, redraw_every: int = 1000) -> None:
        super().__init__()
        self.seed = seed
        self.redraw_every = redraw_every
        self.passes = 0
        self.register_buffer("omega", torch.zeros(n_features, dim), persistent=False)
        self._draw()

    def count_pass(self) -> None:
        """Take note of one training pass, after which the directions may be new ones."""
        self.passes += 1
        if self.passes % self.redraw_every == 0:
            self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        rng = np.random.default_rng([self.seed, self.passes // self.redraw_every])
        n_rows, dim = self.omega.shape
        self.omega.copy_(torch.from_numpy(orthogonal_gaussian(n_rows, dim, rng)))

    def get_extra_state(self) -> Tensor:
        """Return the number of passes, as a tensor like the rest of a model's state."""
        return torch.tensor(self.passes)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over a number of passes, and the directions that belong to it."""
        self.passes = int(state)
        self._draw()


class SelfAttention(nn.Module):
    """Tokens of a set attend to each other.

    Parameters
    ----------
    dim
        Width of a token.
    n_heads, head_dim
        Their product is the width inside, which may differ from `dim`.
    features
        Random directions for FAVOR+; None for exact attention.
    """

    def __init__(
        self, dim: int, n_heads: int, head_dim: int, features: RandomFeatures | None
    ) -> None:
        super().__init__()
        self.n_heads, self.head_dim = n_heads, head_dim
        self.qkv = nn.Linear(dim, 3 * n_heads * head_dim, bias=False)
        self.out = nn.Linear(n_heads * head_dim, dim)
        self.features = features

    def forward(self, tokens: Tensor, log_weight: Tensor | None) -> Tensor:
        """Map (n_cells, n_tokens, dim) to the same shape."""
        n_cells, n_tokens, _ = tokens.shape
        split = self.qkv(tokens).view(n_cells, n_tokens, 3, self.n_heads, self.head_dim)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        if self.features is None:
            heads = exact_attention(q, k, v, log_weight)
        else:
            # Exponentials of sums over the width need more than bfloat16's eight bits.
            with torch.autocast(tokens.device.type, enabled=False):
                heads = favor_attention(
                    q.float(), k.float(), v.float(), self.features.omega, log_weight
                )
        return self.out(heads.to(tokens.dtype).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """x + Attention(LN x), then x + FF(LN x): layer normalisation stands before both.

    Parameters
    ----------
    attention
        What the tokens exchange.
    dim
        Width of a token.
    ff_mult
        Width of the hidden layer, in `dim`.
    dropout
        Rate behind attention, hidden layer and output.
    """

    def __init__(self, attention: SelfAttention, dim: int, *, ff_mult: int, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.norm = nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)
        self.feed = feed_forward(dim, ff_mult, dropout)

    def forward(self, tokens: Tensor, log_weight: Tensor | None) -> Tensor:
        """Map (n_cells, n_tokens, dim) to the same shape."""
        tokens = tokens + self.drop(self.attention(self.norm(tokens), log_weight))
        return tokens + self.feed(tokens)


def feed_forward(dim: int, mult: int, dropout: float) -> nn.Sequential:
    """LayerNorm, Linear to `mult * dim`, GELU, Linear back, with dropout behind both."""
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, mult * dim),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(mult * dim, dim),
        nn.Dropout(dropout),
    )


class LatentAttention(nn.Module):
    """A few learned queries read a set of any size (Perceiver; Jaegle et al. 2021).

    Keys and values are given, so that what tokens of many sets have in common is projected once.

    Parameters
    ----------
    n_latents
        Number of queries.
    dim
        Their width, divisible by `n_heads`.
    n_heads
        Heads.
    """

    def __init__(self, n_latents: int, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.latents = nn.Parameter(torch.randn(n_latents, dim) * dim**-0.5)
        self.query = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, keys: Tensor, values: Tensor, log_weight: Tensor | None) -> Tensor:
        """Read (n_cells, n_tokens, dim) keys and values into (n_cells, n_latents, dim)."""
        n_cells, _, dim = keys.shape
        head_dim = dim // self.n_heads

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.n_heads, head_dim)).transpose(-3, -2)

        # Of unit variance against unit keys whatever the width of a latent.
        query = self.query(self.latents * math.sqrt(dim))
        q = heads(query).expand(n_cells, -1, -1, -1)
        read = exact_attention(q.to(keys.dtype), heads(keys), heads(values), log_weight)
        return self.latents + self.out(read.transpose(1, 2).flatten(2))
