"""What QSGD's theorems say of the bits that a vector takes (Alistarh et al., 2017), as they are printed: without the
factors 1 + o(1), and without a float for the norm."""

from __future__ import annotations

import math


def nonzeros_bound(n: int, s: int) -> float:
    """E of the nonzeros among the codes of n values with s levels and the l2 norm (docs/theory.md, errata)."""
    return s * (s + math.sqrt(n))


def sparse_bits_bound(n: int, s: int) -> float:
    """Theorem 3.2's bits, for s <= √n / 2, with what bounds the nonzeros in its proof."""
    nonzeros = nonzeros_bound(n, s)
    return (3 + 1.5 * math.log2(2 * (s * s + n) / nonzeros)) * nonzeros


def one_level_bits_bound(n: int) -> float:
    """The bits for s = 1 in the paper's first version: the set of the nonzeros, and their signs (lemma 2.2)."""
    return math.sqrt(n) * (math.log2(n) + math.log2(2 * math.e))
