"""Tests that need a processor on which `weights: int8` is not refused."""

from __future__ import annotations

import pytest

from difflm.models.quantised import has_products

needs_products = pytest.mark.skipif(
    not has_products(), reason="weights 'int8' are refused on this processor: no exact products of 8-bit numbers"
)
