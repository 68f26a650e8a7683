"""Wrong calls of the layer with its Gaussian, refused in words."""

import math

import pytest
import torch

import fastvae.functional as F


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"h": torch.randn(20, 5)}, ValueError, r"h must have shape \(\*, 4\), got \(20, 5\)"),
        ({"h": torch.tensor(1.0)}, ValueError, r"h must have shape \(\*, 4\), got \(\)"),
        ({"h": [1.0]}, TypeError, "h must be a tensor, got list"),
        ({"h": torch.ones(20, 4, dtype=torch.int64)}, TypeError, "h must be float16, bfloat16, float32 or float64"),
        ({"weight": torch.randn(4)}, ValueError, r"weight must have shape \(D\(D\+3\)/2, H\), got \(4,\)"),
        ({"weight": torch.randn(8, 4)}, ValueError, r"weight must have D\(D\+3\)/2 rows for D >= 1 dimensions, got 8"),
        ({"weight": torch.randn(0, 4)}, ValueError, r"weight must have D\(D\+3\)/2 rows for D >= 1 dimensions, got 0"),
        ({"weight": torch.randn(9, 4).double()}, TypeError, "weight must have the dtype of h"),
        ({"weight": None}, TypeError, "weight must be a tensor, got NoneType"),
        ({"bias": torch.randn(8)}, ValueError, r"bias must have shape \(9,\), got \(8,\)"),
        ({"bias": torch.randn(9, device="meta")}, ValueError, "bias must be on the device of h"),
        ({"eps": torch.randn(20, 4)}, ValueError, r"eps must have the shape of the sample, \(20, 3\), got \(20, 4\)"),
        ({"eps": torch.randn(20, 3).double()}, TypeError, "eps must have the dtype of h, torch.float32, or float32"),
        ({"eps": torch.randn(20, 3), "generator": torch.Generator()}, ValueError, "eps and generator exclude"),
        ({"tril_scale": math.inf}, ValueError, "tril_scale must be a finite number, got inf"),
        ({"tril_scale": "1"}, ValueError, "tril_scale must be a finite number, got '1'"),
        ({"log_sigma_bounds": (1.0, 1.0)}, ValueError, "log_sigma_bounds must be increasing"),
        ({"log_sigma_bounds": 7.0}, ValueError, "log_sigma_bounds must be a pair of numbers or None, got 7.0"),
        ({"kl": "mean"}, ValueError, "kl must be 'sum' or 'dimensions', got 'mean'"),
        ({"row_offset": -1}, ValueError, "row_offset must be >= 0, got -1"),
        ({"impl": "cuda"}, ValueError, "impl must be one of"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rows", [3, 20])
def test_refusals(change, error, message, rows):
    """In the same words whether few rows run two steps or one kernel runs."""
    change = {name: t[:rows] if isinstance(t, torch.Tensor) and len(t.shape) and len(t) == 20 else t
              for name, t in change.items()}  # fmt: skip
    message = message.replace("20", str(rows))
    given = {"h": torch.randn(rows, 4), "weight": torch.randn(9, 4), "bias": torch.randn(9)} | change
    with pytest.raises(error, match=message):
        F.linear_tril_gaussian_rsample_with_kl(**given)
